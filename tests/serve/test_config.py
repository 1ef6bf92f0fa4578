from __future__ import annotations

from dataclasses import replace

import pytest

from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.utils.settings import SettingError


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"host": "0.0.0.0"}, "token"),
        ({"host": "shop.example", "token": "short"}, "token"),
        ({"token": "not plain\n" * 3}, "token"),
        ({"port": -1}, "port"),
        ({"k": 0}, "k"),
        ({"chains": 0}, "chains"),
        ({"deadline_ms": 0.0}, "deadline_ms"),
        ({"rate": float("inf")}, "rate"),
    ],
)
def test_what_would_be_unsafe_or_never_answer_is_refused(values, setting):
    with pytest.raises(SettingError) as error:
        replace(ServeConfig(), **values).check()
    assert error.value.setting == setting


def test_a_loopback_address_needs_no_token():
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        ServeConfig(host=host).check()
    ServeConfig(host="0.0.0.0", token="x" * 16).check()


def test_a_request_may_ask_for_as_many_chains_as_the_server_was_started_with():
    assert ServeConfig(chains=3).max_chains == 3
    assert ServeConfig().max_chains == 8
