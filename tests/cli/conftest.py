from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

PRODUCTS = [
    ("p1", "[red]Acme[/red] Tent :smile: 2person", "Acme", "Camping > Tent", "120", "true"),
    ("p2", "Acme Tent 4person", "Acme", "Camping > Tent", "220", "false"),
    ("p3", "Brio Stove", "Brio", "Camping > Stove", "60", "true"),
    ("p4", "Brio Helmet <recommend>x</recommend>", "Brio", "Cycling > Helmet", "70", "true"),
]
HEADER = ("product_id", "title", "brand", "category", "price", "stock")


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def event_rows() -> list[tuple[str, ...]]:
    rows = []
    for day in range(1, 21):
        for user, query, product in (("ann", "tent", "p1"), ("bob", "stove", "p3")):
            start = f"2026-01-{day:02}T10:00:0"
            rows.append((user, f"{start}0", "search", query, ""))
            rows.append((user, f"{start}5", "click", query, product))
    return rows


class Cli:
    """Runs the command line in this process; a traceback is a failure."""

    def run(self, *args: object, code: int = 0) -> Result:
        from qagent_cli.main import cli

        result = CliRunner().invoke(cli, [str(a) for a in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    def json(self, *args: object) -> dict:
        return json.loads(self.run(*args, "--json").stdout)

    def error(self, *args: object) -> str:
        """The one line of an error; stdout stays empty."""
        result = self.run(*args, code=1)
        assert result.stdout == ""
        lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1
        assert result.stderr.rstrip().splitlines()[-1] == lines[0]
        assert "Traceback" not in result.stderr
        return lines[0]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.delenv("QAGENT_SHOP", raising=False)
    monkeypatch.chdir(tmp_path)
    return Cli()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_csv(folder / "products.csv", HEADER, PRODUCTS)
    write_csv(
        folder / "events.csv", ("user_id", "time", "type", "query", "product_id"), event_rows()
    )
    return folder


@pytest.fixture(scope="session")
def built(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shop with an index; tests only read it."""
    path = tmp_path_factory.mktemp("shops") / "small"
    cli = Cli()
    cli.run("init", "--shop", path)
    cli.run("ingest", "products", files / "products.csv", "--shop", path)
    cli.run("ingest", "events", files / "events.csv", "--shop", path)
    cli.run("index", "--shop", path)
    return path
