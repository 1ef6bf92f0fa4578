"""Times of a format of their own are read with the format that the message names."""

import re

import duckdb
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.ingest.time_formats import fitting_formats
from qagent_mlx.shop.shop import Shop


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        yield shop


def load(shop, *times, **options):
    path = shop.path.parent / "x.csv"
    rows = [f'u1,"{time}",lamp {number}' for number, time in enumerate(times)]
    path.write_text("\n".join(["user_id,time,query", *rows]))
    return ingest_files(shop, "events", [path], ReadOptions(**options))


def stored(shop):
    rows = shop.connection.execute("SELECT ts::VARCHAR FROM events ORDER BY ts").fetchall()
    return [ts for (ts,) in rows]


@pytest.mark.parametrize(
    ("time", "moment"),
    [
        ("13.03.2026", "2026-03-13 00:00:00"),
        ("13.03.2026 18:57", "2026-03-13 18:57:00"),
        ("13/03/2026 18:57:35", "2026-03-13 18:57:35"),
        ("03/13/2026 06:57 PM", "2026-03-13 18:57:00"),
        ("3/13/2026, 6:57:35 PM", "2026-03-13 18:57:35"),
        ("13 Mar 2026 18:57", "2026-03-13 18:57:00"),
        ("March 13, 2026", "2026-03-13 00:00:00"),
        ("13.03.2026 18:57:35 +02:00", "2026-03-13 16:57:35"),
        ("13.03.2026 18:57+0530", "2026-03-13 13:27:00"),
        ("13.03.2026, 18:57 Europe/Berlin", "2026-03-13 17:57:00"),
    ],
)
def test_the_named_format_reads_them(shop, time, moment):
    with pytest.raises(QAgentError) as error:
        load(shop, time)
    (form,) = re.findall(r"`time_format` '([^']+)'$", str(error.value))
    load(shop, time, time_format=form)
    assert stored(shop) == [moment]


def test_days_and_months_that_may_be_either_are_asked_for(shop):
    with pytest.raises(QAgentError, match="'%d/%m/%Y' or '%m/%d/%Y'"):
        load(shop, "03/04/2026", "05/06/2026")
    with pytest.raises(QAgentError, match="`time_format` '%m/%d/%Y'"):
        load(shop, "03/04/2026", "05/16/2026")


def test_no_format_is_named_that_does_not_read_all(shop):
    with pytest.raises(QAgentError, match="use ISO 8601"):
        load(shop, "03/04/2026", "yesterday")


def test_days_of_two_formats_have_none():
    with duckdb.connect() as connection:
        connection.execute(
            """CREATE TABLE checked AS SELECT unnest(['13.03.2026', '03/13/2026']) AS time_text,
            NULL::TIMESTAMP AS ts, 'unparseable time' AS reason"""
        )
        assert fitting_formats(connection) == []


@pytest.mark.parametrize(
    "form", ["%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y", "%m/%d/%Y %X"]
)
def test_a_format_may_be_that_of_the_day_or_of_both_columns(shop, form):
    path = shop.path.parent / "x.csv"
    path.write_text("user_id,date,time,query\nu1,03/04/2026,10:00:05 PM,lamp\n")
    ingest_files(shop, "events", [path], ReadOptions(time_format=form))
    assert stored(shop) == ["2026-03-04 22:00:05"]
