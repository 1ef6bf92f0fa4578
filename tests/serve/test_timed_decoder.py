from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from qagent_mlx.agent.recommend import Recommender
from qagent_mlx.errors import QAgentError
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.metrics import Metrics
from qagent_mlx.serve.requests import PendingRequest
from qagent_mlx.serve.timed_decoder import TimedDecoder
from qagent_mlx.serve.worker_processes import UNITS_AHEAD


@pytest.fixture(scope="module")
def recommender(tiny_shop, nano_policy):
    return Recommender(tiny_shop, nano_policy, group=2)


class Process(str):
    """A process by its name."""

    pid = 0


@dataclass
class Pool:
    """Processes that answer when a test lets them."""

    ready: list[str]
    asked: list = field(default_factory=list)

    def look_after(self):
        pass

    def ask(self, process, job):
        reply = Future()
        self.asked.append((process, *job, reply))
        return reply

    def remove(self, process, _error):
        self.ready.remove(process)

    replaced = ()

    def replace(self, process):
        self.replaced += (process,)


@pytest.fixture
def desk(recommender):
    """A decoder with two processes, what it keeps, and the jobs of its thread."""
    pool, later, kept = Pool([Process("one"), Process("two")]), [], {}
    policy = SimpleNamespace(name="nano", version=3)
    decoder = TimedDecoder(recommender, pool, ServeConfig(), Metrics(), policy, later.append)

    def prepare(pending):
        moment = recommender.shop.end_of_log()
        profiles = recommender.profiles([p.user for p in pending])
        return list(zip(pending, recommender.requests(profiles, moment, 3), strict=True))

    decoder.prepare = prepare
    decoder.remember = lambda waiting, response: kept.setdefault(waiting.user, response)
    return SimpleNamespace(decoder=decoder, pool=pool, later=later, kept=kept)


def waiting(*users, seconds=60.0):
    deadline = time.monotonic() + seconds
    return [PendingRequest(user, 3, 2, deadline, submitted=time.monotonic()) for user in users]


def answer(recommender, job):
    """Let a process reply as the real one does."""
    _, requests, seed, reply = job
    results = [(r.recommendations, r.latency_ms) for r in recommender.answer(requests, seed)]
    reply.set_result((results, {"chains": 0.01, "searches": 0.0, "slates": 0.0}))


def expected(recommender, user):
    return recommender.recommend([user], 3)[0].recommendations


def test_somebody_alone_is_answered_here(desk, recommender):
    (request,) = waiting("u01")
    desk.decoder.decode([request])
    assert request.future.result(0).recommendations == expected(recommender, "u01")
    assert not desk.pool.asked and not desk.decoder.busy and desk.kept.keys() == {"u01"}


def run(later):
    while later:
        later.pop(0)()


def test_processes_share_who_waits_and_get_one_unit_ahead(desk, recommender):
    desk.decoder.pace.seconds_per_chain = 0.0001  # they are nearly done as soon as they have begun
    users = [f"u{n:02}" for n in range(12)]
    first = waiting(*users[:4])
    desk.decoder.decode(first)
    assert [(process, len(asks)) for process, asks, *_ in desk.pool.asked] == [
        ("one", 2),
        ("two", 2),
    ]
    others = [waiting(user)[0] for user in users[4:]]
    for request in others:
        desk.decoder.decode([request])
    given = Counter(process for process, *_ in desk.pool.asked)
    assert given == {"one": UNITS_AHEAD, "two": UNITS_AHEAD}
    assert desk.decoder.waiting == 6 and desk.decoder.busy
    for job in desk.pool.asked:  # those that follow, too
        answer(recommender, job)
        run(desk.later)
    for request in (*first, *others):
        got = request.future.result(0)
        assert got.recommendations == expected(recommender, request.user)
        assert (got.source, got.policy, got.version) == ("agent", "nano", 3)
    assert not desk.decoder.busy and len(desk.kept) == 12


def test_who_comes_while_processes_compute_is_in_one_unit(desk, recommender):
    first = waiting("u00", "u01", "u02", "u03")
    desk.decoder.decode(first)
    others = [waiting(f"u{n:02}")[0] for n in range(4, 10)]
    for request in others:
        desk.decoder.decode([request])
    assert len(desk.pool.asked) == 2 and desk.decoder.waiting == 6
    assert 0 < desk.decoder.pause() < 1  # until the processes are nearly done
    next(iter(desk.decoder._given)).due = time.monotonic()
    desk.decoder.go_on()
    assert [(process, len(asks)) for process, asks, *_ in desk.pool.asked[2:]] == [("one", 6)]
    for job in desk.pool.asked:
        answer(recommender, job)
        run(desk.later)
    assert all(request.future.result(0).source == "agent" for request in (*first, *others))


def test_an_overdue_unit_is_done_by_others_and_its_process_gets_no_more(desk, recommender):
    requests = waiting("u01", "u02", "u03", "u04")
    desk.decoder.decode(requests)
    late, other = desk.pool.asked
    answer(recommender, other)
    run(desk.later)
    assert [request.future.done() for request in requests] == [False, False, True, True]
    next(iter(desk.decoder._given)).overdue = 0.0
    assert desk.decoder.pause() == 0
    desk.decoder.go_on()
    assert [process for process, *_ in desk.pool.asked] == ["one", "two", "two"]
    more = waiting("u05")
    desk.decoder.decode(more)
    answer(recommender, desk.pool.asked[2])
    run(desk.later)
    for request in requests:
        assert request.future.result(0).recommendations == expected(recommender, request.user)
    assert "one" not in [process for process, *_ in desk.pool.asked[2:]]
    pace = desk.decoder.pace.seconds_per_chain
    answer(recommender, late)  # at last
    run(desk.later)
    assert desk.decoder.pace.seconds_per_chain == pace  # which says nothing of the policy
    desk.decoder.decode(waiting("u06", "u07", "u08"))
    assert "one" in [process for process, *_ in desk.pool.asked[3:]]


def test_where_no_process_replies_this_one_decodes(desk, recommender):
    requests = waiting("u01", "u02")
    desk.decoder.decode(requests)
    for unit in desk.decoder._given:
        unit.overdue = 0.0
    desk.decoder.go_on()
    for request in requests:
        assert request.future.result(0).recommendations == expected(recommender, request.user)
    assert not desk.decoder.busy  # nobody waits for those processes, nor does the server's end
    desk.decoder.go_on()
    assert set(desk.pool.replaced) == {"one", "two"}


@pytest.mark.parametrize("forgotten", [["u01"], None])
def test_an_answer_from_before_an_event_is_not_kept(desk, recommender, forgotten):
    requests = waiting("u01", "u02")
    desk.decoder.decode(requests)
    desk.decoder.forget(forgotten, lambda: None)
    for job in desk.pool.asked:
        answer(recommender, job)
    assert all(request.future.result(0).source == "agent" for request in requests)
    assert list(desk.kept) == (["u02"] if forgotten else [])


def test_what_a_lost_process_had_is_done_by_others(desk, recommender):
    requests = waiting("u01", "u02", "u03")
    desk.decoder.decode(requests)
    (_, _, _, reply), other = desk.pool.asked
    desk.decoder.pace.seconds_per_chain = 0.0001
    for unit in desk.decoder._given:
        unit.due = 0.0
    reply.set_exception(EOFError())
    run(desk.later)
    assert desk.pool.ready == ["two"] and [p for p, *_ in desk.pool.asked] == ["one", "two", "two"]
    for job in (other, desk.pool.asked[-1]):
        answer(recommender, job)
    for request in requests:
        assert request.future.result(0).recommendations == expected(recommender, request.user)


def test_an_error_of_a_process_is_told_and_the_memorys_lines_are_at_hand(desk):
    requests = waiting("u01", "u02")
    desk.decoder.decode(requests)
    for *_, reply in desk.pool.asked:
        reply.set_exception(QAgentError("the engine does not answer"))
    while desk.later:
        desk.later.pop(0)()
    for request in requests:
        assert isinstance(request.future.exception(0), QAgentError)
        assert request.fallback.source == "top-line"


def test_whoever_has_no_time_gets_the_memorys_lines(desk):
    desk.decoder.pace.seconds_per_chain = 1000.0
    requests = waiting("u01", "u02")
    desk.decoder.decode(requests)
    assert not desk.pool.asked
    assert {r.future.result(0).reason for r in requests} == {"deadline"}


def test_the_lines_are_read_when_half_of_the_time_has_passed(desk):
    requests = waiting("u01", "u02", seconds=600.0)
    desk.decoder.pace.seconds_per_chain = 0.001
    desk.decoder.decode(requests)
    for unit in desk.decoder._given:
        unit.overdue = float("inf")
    assert 200 < desk.decoder.pause() <= 300
    assert not any(request.fallback for request in requests)
    for unit in desk.decoder._given:
        unit.patience -= 300
    assert desk.decoder.pause() == 0
    desk.decoder.go_on()
    assert all(request.fallback for request in requests)
    assert desk.decoder.pause() == float("inf")


def test_with_processes_that_know_less_it_decodes_itself(desk, recommender):
    desk.decoder.is_pool_stale = True
    requests = waiting("u01", "u02")
    desk.decoder.decode(requests)
    assert not desk.pool.asked
    assert requests[1].future.result(0).recommendations == expected(recommender, "u02")


def test_whoever_was_answered_otherwise_costs_nothing(desk):
    requests = waiting("u01", "u02", "u03")
    for request in requests:
        request.given_up = True
    desk.decoder.decode(requests)
    assert not desk.pool.asked and not desk.decoder.busy
