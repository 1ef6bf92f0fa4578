"""Who and when, as what is stored notes it."""

import getpass
from datetime import datetime, timedelta, timezone

import pytest

from qagent_mlx.utils.stamps import user_name, utc_now


def test_now_is_utc_without_a_zone():
    assert utc_now().tzinfo is None
    assert abs(utc_now() - datetime.now(timezone.utc).replace(tzinfo=None)) < timedelta(minutes=1)


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_container_whose_user_has_no_name_stores_something(monkeypatch, error):
    def nobody():
        raise error

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert user_name() == "unknown"
