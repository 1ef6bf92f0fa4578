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


@pytest.fixture
def desk(recommender):
    """A decoder with two processes, what it keeps, and the jobs of its thread."""
    pool, later, kept = Pool(["one", "two"]), [], {}
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


def test_processes_share_who_waits_and_get_one_unit_ahead(desk, recommender):
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
        while desk.later:
            desk.later.pop(0)()
    for request in (*first, *others):
        got = request.future.result(0)
        assert got.recommendations == expected(recommender, request.user)
        assert (got.source, got.policy, got.version) == ("agent", "nano", 3)
    assert not desk.decoder.busy and len(desk.kept) == 12


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
    reply.set_exception(EOFError())
    while desk.later:
        desk.later.pop(0)()
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
    assert 200 < desk.decoder.pause() <= 300
    assert not any(request.fallback for request in requests)
    for unit in desk.decoder._units():
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
