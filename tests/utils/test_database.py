"""Connections of every DuckDB that is supported; nothing but one JSON document reaches stdout."""

from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pytest

import qagent_mlx
from qagent_mlx.errors import QAgentError
from qagent_mlx.utils import database
from qagent_mlx.utils.database import epoch_seconds, fetch_dicts, open_duckdb

SETTING = "SELECT current_setting('enable_progress_bar')"


def test_no_connection_draws_a_progress_bar(tiny_shop):
    with open_duckdb() as connection:
        assert connection.execute(SETTING).fetchone() == (False,)
    assert tiny_shop.connection.execute(SETTING).fetchone() == (False,)


def test_connections_are_opened_in_one_place():
    package = Path(qagent_mlx.__file__).parent
    opening = [
        path.relative_to(package).as_posix()
        for path in sorted(package.rglob("*.py"))
        if "duckdb.connect(" in path.read_text(encoding="utf-8")
    ]
    assert opening == ["utils/database.py"]


def test_what_has_no_memory_is_kept_in_files_of_its_own(monkeypatch):
    monkeypatch.setenv("QAGENT_DATABASE_MEMORY", "100MB")
    with open_duckdb() as connection:
        (folder,) = connection.execute("SELECT current_setting('temp_directory')").fetchone()
        # 320 MB of numbers that do not compress
        connection.execute(
            "CREATE TABLE t AS SELECT hash(range) a, hash(range + 1) b FROM range(20_000_000)"
        )
        ((rows, kept),) = connection.execute(
            "SELECT (SELECT count(DISTINCT a % 1000) FROM t), sum(size) FROM duckdb_temporary_files()"
        ).fetchall()
    assert rows == 1000
    assert kept > 100e6
    assert Path(folder).parent.stat().st_mode & 0o077 == 0  # rows of people: for nobody else
    assert not list(Path(folder).glob("*"))


def test_what_two_databases_keep_in_files_is_not_mixed(monkeypatch, tmp_path):
    """DuckDB 1.5 gives such files of all databases and processes the same names."""
    monkeypatch.setenv("QAGENT_DATABASE_MEMORY", "100MB")
    with open_duckdb() as first, open_duckdb() as second, open_duckdb(tmp_path / "a") as file:
        databases = {0: first, 1: second, 2: file}
        for number, connection in databases.items():
            connection.execute(
                f"CREATE TEMP TABLE t AS SELECT hash(range + {number}) a FROM range(20_000_000)"
            )
        folders = set()
        for number, connection in databases.items():
            (kept,), (expected,) = (
                connection.execute(f"SELECT sum({what}::HUGEINT) FROM {rows}").fetchone()
                for what, rows in (("a", "t"), (f"hash(range + {number})", "range(20_000_000)"))
            )
            assert kept == expected
            files = connection.execute("SELECT path FROM duckdb_temporary_files()").fetchall()
            folders.add(Path(files[0][0]).parent)
    assert len(folders) == 3
    assert not any(folder.is_relative_to(tmp_path) for folder in folders)


def test_connections_to_one_file_are_of_one_database(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with open_duckdb(tmp_path / "a") as first, open_duckdb(Path("a")) as second:
        first.execute("CREATE TABLE t AS SELECT 1 AS x")
        assert second.execute("FROM t").fetchall() == [(1,)]


@pytest.mark.parametrize("amount", ["much", "50%", "-1", "0", "50MB", "4 GB of it"])
def test_an_amount_of_memory_is_one(monkeypatch, amount):
    monkeypatch.setenv("QAGENT_DATABASE_MEMORY", amount)
    with pytest.raises(QAgentError, match="QAGENT_DATABASE_MEMORY is .* such as 4GB"):
        open_duckdb()


@pytest.mark.parametrize(("amount", "shown"), [("", "953.6 MiB"), ("2GiB", "2.0 GiB")])
def test_every_database_has_the_memory_that_was_given(monkeypatch, tmp_path, amount, shown):
    monkeypatch.setenv("QAGENT_DATABASE_MEMORY", amount)
    for path in (":memory:", tmp_path / "a.duckdb"):
        with open_duckdb(path) as connection:
            limit = connection.execute("SELECT current_setting('memory_limit')").fetchone()
        assert limit == (shown,)


def test_rows_come_as_dicts_and_moments_as_seconds():
    with open_duckdb() as connection:
        rows = fetch_dicts(connection.execute("SELECT 1 AS a, 'x' AS b UNION ALL SELECT 2, 'y'"))
    assert rows == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert epoch_seconds(datetime(1970, 1, 2, 0, 0, 0, 500_000)) == 86400.5


class _WithoutAppender:
    """A connection as DuckDB before 2.0 has it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.execute = connection.execute


@pytest.mark.parametrize("columns", [None, ("x", "name")])
def test_rows_are_appended_alike_by_every_duckdb(monkeypatch, columns):
    monkeypatch.setattr(database, "ROWS_AT_ONCE", 2)
    made = datetime(2026, 1, 2, 3, 4, 5, 678901)
    rows = [
        ("it's \x00 “é” 😀", np.float64(1 / 3), 2**62, made, ["a", 'b"'], True),
        (None, None, None, None, None, None),
        ("", -0.0, np.int64(-1), made, [], False),
    ]
    if columns:
        rows = [(row[1], row[0]) for row in rows]
    tables = []
    for name in ("by_rows", "as_json"):
        with database.open_duckdb() as connection:
            connection.execute(
                "CREATE TABLE t (name VARCHAR, x DOUBLE, n BIGINT, ts TIMESTAMP, l VARCHAR[], b BOOLEAN)"
            )
            target = connection if name == "by_rows" else _WithoutAppender(connection)
            database.append_rows(target, "t", iter(rows), columns)
            tables.append(connection.execute("FROM t").fetchall())
    assert tables[0] == tables[1]
    assert [row[:2] for row in tables[0]] == [r[::-1] if columns else r[:2] for r in rows]
