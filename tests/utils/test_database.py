"""Nothing but one JSON document may reach stdout, however long a query takes."""

from datetime import datetime
from pathlib import Path

import qagent_mlx
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


def test_rows_come_as_dicts_and_moments_as_seconds():
    with open_duckdb() as connection:
        rows = fetch_dicts(connection.execute("SELECT 1 AS a, 'x' AS b UNION ALL SELECT 2, 'y'"))
    assert rows == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert epoch_seconds(datetime(1970, 1, 2, 0, 0, 0, 500_000)) == 86400.5
