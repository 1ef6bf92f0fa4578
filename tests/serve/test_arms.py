"""A server takes part in the experiment of its shop."""

import time

from qagent_mlx.live.experiment_report import experiment_report
from qagent_mlx.live.experiments import running, start_experiment, stop_experiment
from qagent_mlx.live.interleaving import interleaving_report
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


def test_two_systems_share_an_answer_and_each_query_is_its_own(serving, own_folder):
    with Shop.open(own_folder, read_only=False) as shop:
        start_experiment(shop, "x", "memory", "agent", 0.5, shop_time(shop), "interleave")
    client = serving(explore=0.2)
    replies = {user: ask(client, user) for user in USERS}
    assert {(r["source"], r["reason"]) for r in replies.values()} == {("interleaved", "experiment")}
    assert not any(reply["fallback"] for reply in replies.values())
    again = ask(client, USERS[0])
    assert again["cached"] and again["recommendations"] == replies[USERS[0]]["recommendations"]
    client.__exit__(None, None, None)
    with Shop.open(own_folder) as shop:
        rows = shop.connection.execute(
            "SELECT arm, propensity, experiment FROM recommendations WHERE position > 0"
        ).fetchall()
        assert {row[0] for row in rows} == {"control", "treatment"}
        assert {row[1:] for row in rows} == {(1.0, "x")}
        report = interleaving_report(shop, running(shop), shop_time(shop))
    assert report.users == len(USERS) and report.preferences["taken"].margin == 0


def test_experiments_are_started_read_and_stopped_over_http(serving, own_folder):
    client = serving()
    body = {"name": "x", "control": "memory", "treatment": "b"}
    made = client.post("/experiments", json=body)
    assert made.status_code == 200 and made.json()["experiment"]["kind"] == "split"
    assert "salt" not in made.json()["experiment"]
    refused = client.post("/experiments", json={**body, "name": "y"})
    assert refused.status_code == 400 and "x runs" in refused.json()["error"]
    until = time.monotonic() + 30
    while {ask(client, user)["source"] for user in USERS} != {"agent", "top-line"}:
        assert time.monotonic() < until
        time.sleep(0.2)
    report = client.get("/experiments/x").json()["report"]
    assert sum(report["users"].values()) == len(USERS)
    assert client.get("/experiments/nothing").status_code == 404
    assert client.delete("/experiments/nothing").status_code == 404
    assert client.delete("/experiments/x").json()["experiment"]["stopped"]
    (listed,) = client.get("/experiments").json()["experiments"]
    assert listed["name"] == "x" and listed["stopped"]
    for wrong in ({"name": "z", "treatment": "../b"}, {"name": "z", "treatment": "memory"}):
        assert client.post("/experiments", json=wrong).status_code == 400
    assert client.post("/experiments", json={"name": "z", "share": 1}).status_code == 422
