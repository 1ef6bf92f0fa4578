"""Nothing but one JSON document may reach stdout, however long a query takes."""

from pathlib import Path

import qagent_mlx
from qagent_mlx.utils.database import open_duckdb

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
