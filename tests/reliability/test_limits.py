"""Full disks, folders that cannot be written, clocks that go back, too little memory."""

import os
import resource
import shutil
import subprocess
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner
from crashes import events_agree, index_matches
from qagent_cli.main import cli
from starlette.testclient import TestClient

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.index import build_index, open_index
from qagent_mlx.privacy import erase_user
from qagent_mlx.serve import event_clock
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.http import create_app
from qagent_mlx.shop.shop import Shop


@contextmanager
def mounted(place, *options):
    """A file system of its own; as root only, as in a container."""
    place.mkdir(exist_ok=True)
    made = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place):
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError:
            return


@pytest.fixture
def small_disk(base_folder, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=48m", "tmpfs") as place:
        shutil.copytree(base_folder, place / "shop")
        yield place


def many(count, stem="d"):
    return [
        {
            "user_id": f"{stem}{n % 50}",
            "time": datetime(2026, 4, 1) + timedelta(seconds=n),
            "type": "search",
            "query": f"usb cable {n * 7919 % 1000003}",
        }
        for n in range(count)
    ]


def test_a_full_disk_is_one_clear_line_and_loses_nothing(small_disk, tmp_path):
    with Shop.open(small_disk / "shop", read_only=False) as shop:
        before = shop.counts()["events"]
        fill(small_disk)
        with pytest.raises(QAgentError) as caught:
            append_events(shop, many(20_000))
        assert "\n" not in str(caught.value)
        with pytest.raises(QAgentError, match="free some space"):
            build_index(shop)
    with Shop.open(small_disk / "shop") as shop:  # also while it is full
        assert shop.counts()["events"] == before
    (small_disk / "filler").unlink()
    with Shop.open(small_disk / "shop", read_only=False) as shop:
        assert append_events(shop, many(500)).accepted == 500
        events_agree(shop)
        assert index_matches(open_index(shop), shop)
        erase_user(shop, "d1")


def test_a_server_on_a_full_disk_says_so_and_goes_on_when_there_is_room(small_disk):
    config = ServeConfig(policy="base", chains=1, deadline_ms=30_000.0, cache_seconds=0.0)
    with TestClient(
        create_app(small_disk / "shop", config),
        base_url="http://127.0.0.1",
        raise_server_exceptions=False,
    ) as client:
        fill(small_disk)
        filler = small_disk / "filler"
        os.truncate(filler, filler.stat().st_size - (1 << 18))  # room for some events
        accepted = 0
        for n in range(40):
            events = [{k: v for k, v in row.items() if k != "time"} for row in many(900, f"s{n}-")]
            answer = client.post("/events", json={"events": events})
            if answer.status_code != 200:
                break
            accepted += answer.json()["accepted"]
        assert answer.status_code == 503 and accepted > 0, answer.text
        assert "no space left" in answer.json()["error"] and answer.headers["retry-after"]
        health = client.get("/healthz")
        assert health.status_code == 503 and health.json()["status"] == "failed"
        assert str(small_disk) not in answer.text + health.text
        # Reading goes on, and what has to write more than an event does says the same.
        assert client.post("/recommend", json={"user": "s0-1"}).json()["source"] == "agent"
        fill(small_disk)
        refused = client.delete("/users/u01")
        assert refused.status_code == 503 and str(small_disk) not in refused.text, refused.text
        (small_disk / "filler").unlink()
        deadline = time.monotonic() + 20
        while client.get("/healthz").status_code != 200:
            assert time.monotonic() < deadline, client.get("/healthz").text
            time.sleep(0.1)
        answer = client.post(
            "/events", json={"user_id": "after", "type": "search", "query": "lamp"}
        )
        assert answer.status_code == 200 and answer.json()["accepted"] == 1, answer.text
        assert client.post("/recommend", json={"user": "after"}).json()["source"] == "agent"
    with Shop.open(small_disk / "shop") as shop:
        ((found,),) = shop.connection.execute(
            "SELECT count(*) FROM events WHERE user_id LIKE 's%-%' OR user_id = 'after'"
        ).fetchall()
    assert found == accepted + 1


def test_a_folder_that_cannot_be_written_can_be_read(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "shop")
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)

        def run(*words, code):
            result = CliRunner().invoke(cli, [*words, "--shop", str(folder)])
            assert result.exit_code == code, (words, result.output, result.exception)
            return result.output

        run("memory", "u01", code=0)
        run("search", "lamp", code=0)
        run("recommend", "u01", "--policy", "base", code=0)
        (tmp_path / "e.csv").write_text("user_id,time,type,query\nu,2026-04-01,search,a\n")
        for words in (
            ("ingest", "events", str(tmp_path / "e.csv")),
            ("index",),
            ("memory", "forget", "u01", "--yes"),
            ("train", "sft", "--policy", "base", "--steps", "1"),
        ):
            last = run(*words, code=1).splitlines()[-1]
            assert last.startswith("Error: ") and ("write" in last or "ead-only" in last), last


def test_a_clock_that_goes_back_loses_no_event(base_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(base_folder, tmp_path / "shop")
    began = datetime.now(timezone.utc)

    class Clock(datetime):
        at = began

        @classmethod
        def now(cls, tz=None):
            return cls.at

    monkeypatch.setattr(event_clock, "datetime", Clock)
    config = ServeConfig(policy="base", chains=1, deadline_ms=30_000.0)
    with TestClient(create_app(folder, config), base_url="http://127.0.0.1") as client:
        for hours in (0, -30, 1, -90_000):
            Clock.at = began + timedelta(hours=hours)
            event = {"user_id": "clock", "type": "search", "query": f"lamp {hours}"}
            assert client.post("/events", json=event).json()["accepted"] == 1
            assert client.post("/recommend", json={"user": "clock"}).status_code == 200
    with Shop.open(folder) as shop:
        events_agree(shop)
        ((found,),) = shop.connection.execute(
            "SELECT count(*) FROM events WHERE user_id = 'clock'"
        ).fetchall()
    assert found == 4


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits as Linux has them")
def test_too_little_memory_is_one_clear_line_and_loses_nothing(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "shop")
    with Shop.open(folder) as shop:
        before = shop.counts()["events"]
    lines = [f"u{n % 99},{1775000000 + n},search,{'lamp ' * 40}{n}" for n in range(200_000)]
    (tmp_path / "e.csv").write_text("user_id,time,type,query\n" + "\n".join(lines))
    endless = resource.RLIM_INFINITY
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), endless))
    try:
        result = CliRunner().invoke(
            cli, ["ingest", "events", str(tmp_path / "e.csv"), "--shop", str(folder)]
        )
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (endless, endless))
    assert result.exit_code == 1, result.output
    said = result.output.splitlines()[-1]
    assert "not enough memory; set QAGENT_DATABASE_MEMORY, which is 1GB, to more" in said
    assert said.endswith("close other programs, or cut it into smaller files")
    with Shop.open(folder, read_only=False) as shop:
        assert shop.counts()["events"] == before
        assert append_events(shop, many(50)).accepted == 50
