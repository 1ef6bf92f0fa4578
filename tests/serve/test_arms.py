"""A server takes part in the experiment of its shop."""

import time

from qagent_mlx.live.experiment_report import experiment_report
from qagent_mlx.live.experiments import running, start_experiment, stop_experiment
from qagent_mlx.live.limits import shop_time
from qagent_mlx.live.outcomes import shown_answers
from qagent_mlx.shop.shop import Shop

USERS = [f"u{n:02}" for n in range(16)]


def ask(client, user):
    return client.post("/recommend", json={"user_id": user, "k": 3}).json()


def begin(folder, control, treatment):
    with Shop.open(folder, read_only=False) as shop:
        return start_experiment(shop, "x", control, treatment, 0.5, shop_time(shop))


def test_each_user_gets_one_arm_also_after_a_restart(serving, own_folder):
    experiment = begin(own_folder, "memory", "agent")
    client = serving()
    first = {user: ask(client, user) for user in USERS}
    for user, reply in first.items():
        is_agent = experiment.arm(user) == "treatment"
        assert (reply["source"], reply["reason"]) == (
            ("agent", "") if is_agent else ("top-line", "experiment")
        )
        assert not reply["fallback"]
    assert {reply["source"] for reply in first.values()} == {"agent", "top-line"}
    assert ask(client, USERS[0])["cached"]
    client.__exit__(None, None, None)
    client = serving()
    assert {u: ask(client, u)["source"] for u in USERS} == {
        u: r["source"] for u, r in first.items()
    }
    client.__exit__(None, None, None)
    with Shop.open(own_folder) as shop:
        for answer in shown_answers(shop, limit=1000):
            assert (answer["experiment"], answer["arm"]) == ("x", experiment.arm(answer["user_id"]))
        report = experiment_report(shop, running(shop), shop_time(shop))
        assert sum(report.users.values()) == len(USERS) and report.switched == 0
        assert report.guardrails["latency_ms"]["treatment"] > 0


def test_another_policy_can_be_an_arm_and_stopping_ends_it_without_a_restart(serving, own_folder):
    experiment = begin(own_folder, "agent", "b")
    client = serving()
    for user in USERS[:6]:
        reply = ask(client, user)
        assert reply["policy"] == ("b" if experiment.arm(user) == "treatment" else "a")
    with Shop.open(own_folder, read_only=False) as shop:
        stop_experiment(shop, shop_time(shop))
    until = time.monotonic() + 30
    while any(ask(client, user)["policy"] == "b" for user in USERS[:6]):
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_server_that_records_nothing_takes_no_part(serving, own_folder):
    begin(own_folder, "memory", "b")
    client = serving(record=False)
    assert {ask(client, user)["policy"] for user in USERS[:6]} == {"a"}
    assert {ask(client, user)["source"] for user in USERS[:6]} == {"agent"}
