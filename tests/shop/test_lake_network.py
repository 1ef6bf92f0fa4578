"""Machines of a lake that leave the network and tell nobody, as by a power cut."""

import multiprocessing
import time

import namespaces
import pytest
from lakes import lakes
from namespaces import seen_from

from qagent_mlx.shop import postgres_patience
from qagent_mlx.shop.lake_catalog import LakeCatalog, LakeInUse
from qagent_mlx.shop.moving import create_in
from qagent_mlx.shop.postgres_patience import patient, session_settings


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("host=db dbname=lake", "host=db dbname=lake connect_timeout=10 keepalives_idle=10 "),
        ("host=db connect_timeout=3", "host=db connect_timeout=3 keepalives_idle=10 "),
        (
            "postgresql://me@db/lake",
            "postgresql://me@db/lake?connect_timeout=10&keepalives_idle=10&",
        ),
        (
            "postgresql://db/x?sslmode=require",
            "postgresql://db/x?sslmode=require&connect_timeout=10&",
        ),
    ],
)
def test_a_catalog_that_is_silent_is_given_up(place, expected):
    assert patient(place).startswith(expected)
    assert patient(patient(place)) == patient(place)


def test_a_session_is_ended_as_soon_as_a_server_is_given_up(monkeypatch):
    assert session_settings() == {
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": 25_000,
    }
    monkeypatch.setattr(postgres_patience, "SILENT_SECONDS", 1)
    assert session_settings()["tcp_user_timeout"] == 16_000
    assert "keepalives_idle=1 " in patient("host=db") and "=16000" in patient("host=db")


def keep_lock(machine, address, held):
    machine.enter()
    for name, seconds in (("SILENT_SECONDS", 1), ("ASK_SECONDS", 1), ("ASK_TIMES", 2)):
        setattr(postgres_patience, name, seconds)
    with LakeCatalog(address, "test").lock(5.0):
        held.set()
        time.sleep(600)


def test_a_machine_without_power_keeps_the_lake_from_others_for_seconds_only(tmp_path):
    if not namespaces.can_make():
        pytest.skip("network namespaces need Linux, root, and the program ip")
    with namespaces.machines(1) as (machine,), lakes("postgres", [machine.gateway]) as new_lake:
        address = new_lake(tmp_path)
        there = seen_from(address, machine)
        create_in(tmp_path / "a", address, str(tmp_path / "data"))
        create_in(tmp_path / "b", there, None)
        context = multiprocessing.get_context("spawn")
        held = context.Event()
        process = context.Process(target=keep_lock, args=(machine, there, held))
        process.start()
        try:
            assert held.wait(60)
            machine.cut()
            process.kill()
            process.join()
            catalog = LakeCatalog(address, "test")
            with pytest.raises(LakeInUse), catalog.lock(0.2):
                pass
            with catalog.lock(30.0):
                pass
        finally:
            process.kill()
