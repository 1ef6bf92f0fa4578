from __future__ import annotations

import asyncio
from concurrent.futures import Future

import pytest
from starlette.exceptions import HTTPException

from qagent_mlx.serve import bodies


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(bodies, "CALL_SECONDS", 0.02)


def test_a_job_that_has_not_begun_in_time_is_never_done():
    future = Future()
    with pytest.raises(HTTPException) as error:
        asyncio.run(bodies.result_of(future))
    assert error.value.status_code == 503
    assert not future.set_running_or_notify_cancel()  # by which the worker leaves it out


def test_a_job_that_has_begun_is_waited_for_as_trying_again_would_do_it_twice():
    future = Future()
    assert future.set_running_or_notify_cancel()

    async def ask():
        asyncio.get_running_loop().call_later(0.2, future.set_result, "stored")
        return await bodies.result_of(future)

    assert asyncio.run(ask()) == "stored"


def test_an_error_of_a_job_is_its_callers():
    future = Future()
    future.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        asyncio.run(bodies.result_of(future))
