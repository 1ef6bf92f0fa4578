"""What a stranger can put into a shop's folder: pipes, devices and times that no log has."""

from __future__ import annotations

import os
import shutil

import duckdb
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.shop.shop import Shop


@pytest.fixture
def folder(base_folder, tmp_path):
    return shutil.copytree(base_folder, tmp_path / "shop")


def handed(folder):
    """What somebody may put in place of a part of a shop."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.suffix not in (".lock",) and p.name != ".lock"
    )


def test_pipes_and_devices_in_a_handed_shop_are_refused_before_they_are_opened(folder):
    """Opening a pipe would wait for ever, and /dev/zero has no end."""
    (folder / "journal").mkdir(exist_ok=True)
    (folder / "journal" / f"{'0' * 16}-{1:09}.log").touch()
    for path in handed(folder):
        kept = path.rename(path.with_name("kept-elsewhere"))
        os.mkfifo(path)
        with pytest.raises(QAgentError, match="is no file"):
            Shop.open(folder)
        path.unlink()
        path.symlink_to("/dev/zero")
        with pytest.raises(QAgentError, match="link out of the shop|is no file"):
            Shop.open(folder)
        path.unlink()
        kept.rename(path)
    Shop.open(folder).close()


@pytest.mark.parametrize("time", ["290000-01-01", "infinity", "-infinity", "0001-01-01"])
def test_times_that_overflow_are_refused_in_one_line(folder, time):
    with duckdb.connect(str(folder / "shop.duckdb")) as connection:
        connection.execute(f"UPDATE events SET ts = '{time}'::TIMESTAMP WHERE rowid = 0")
    for read_only in (True, False):
        with (
            pytest.raises(QAgentError, match=r"rows of events before 1900 or after 2200"),
            Shop.open(folder, read_only=read_only) as shop,
        ):
            shop.end_of_log()
