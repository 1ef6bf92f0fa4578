"""Temporary files with what users did end with their process, also with one that is killed."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

import pytest

from qagent_mlx.utils import process_folder as module
from qagent_mlx.utils.process_folder import PREFIX, UNLOCKED_SECONDS, delete_abandoned

HOLDS = """import sys
from qagent_mlx.utils.process_folder import process_folder
(process_folder() / "events.parquet").write_text("ann")
print(process_folder(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def own_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    module._own_folder.cache_clear()
    yield
    module._own_folder.cache_clear()


@pytest.fixture
def start():
    """Starts processes that hold a folder with rows of a user."""
    processes = []

    def begin():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-c", HOLDS], **pipes))
        return processes[-1], module.Path(processes[-1].stdout.readline().strip())

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_what_a_killed_process_leaves_is_deleted_by_the_next_one(start):
    killed, left = start()
    _, living = start()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (left / "events.parquet").exists()
    own = module.process_folder()
    assert not left.exists()
    assert (living / "events.parquet").exists()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_a_process_that_ends_leaves_nothing(start):
    process, folder = start()
    process.communicate("\n")
    assert process.returncode == 0 and not folder.exists()


def test_large_files_go_where_there_is_a_disk_unless_a_place_is_named(tmp_path, monkeypatch):
    disk = tmp_path / "var"
    disk.mkdir()
    monkeypatch.setattr(module, "LARGE_FILES", disk)
    assert module.process_folder().parent == tmp_path  # as TMPDIR says
    monkeypatch.delenv("TMPDIR")
    abandoned = disk / f"{PREFIX}killed"
    abandoned.mkdir()
    (abandoned / module.LOCK).touch()
    module._own_folder.cache_clear()
    assert module.process_folder().parent == disk and not abandoned.exists()
    monkeypatch.setattr(module, "LARGE_FILES", tmp_path / "missing")
    module._own_folder.cache_clear()
    assert module.process_folder().parent == module.Path(tempfile.gettempdir())


def test_a_folder_that_was_cleared_away_is_made_again_and_held(start):
    folder = module.process_folder()
    shutil.rmtree(folder)
    assert module.process_folder() == folder
    start()  # which deletes what is nobody's
    assert folder.is_dir()


def test_a_folder_without_a_lock_is_somebodys_for_a_while(tmp_path):
    fresh, old = (tmp_path / f"{PREFIX}{name}" for name in ("fresh", "old"))
    for folder in (fresh, old):
        folder.mkdir()
    before = time.time() - UNLOCKED_SECONDS - 60
    os.utime(old, (before, before))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "elsewhere")
    delete_abandoned()
    assert fresh.is_dir() and not old.exists() and (tmp_path / "elsewhere").is_dir()


def test_where_there_are_no_locks_a_folder_is_used_and_never_deleted(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    folder = module.process_folder()
    delete_abandoned()
    assert module.process_folder() == folder and folder.is_dir()
