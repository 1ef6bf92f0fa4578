"""``qagent export``."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from qagent_mlx.errors import QAgentError
from qagent_mlx.serve.config import BulkConfig
from qagent_mlx.utils.settings import merge

from .console import say
from .groups import Group
from .options import Changes, Output, json_option, opened, setting_options, shop_option
from .param_types import MOMENT, POLICY, SERVING
from .recommend import Recipients, recommend_to_many

F = TypeVar("F", bound=Callable[..., Any])
STDOUT = "-"


@dataclass(frozen=True)
class Target:
    """Where an export goes: the ending of its name says the form, ``-`` is standard output."""

    name: str
    form: str | None

    @contextlib.contextmanager
    def path(self) -> Iterator[Path]:
        """A file to write; what is for standard output goes there at the end."""
        if self.name != STDOUT:
            if self.form is not None:
                raise click.UsageError("--format goes with -; the ending of FILE says its form")
            yield Path(self.name)
            return
        if click.get_current_context().params["as_json"]:
            raise click.UsageError("--json and - would both print on stdout; name a FILE")
        from qagent_mlx.utils.process_folder import process_folder

        with tempfile.TemporaryDirectory(dir=process_folder()) as folder:
            path = Path(folder) / f"export.{self.form or 'csv'}"
            yield path
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)


def target_options(function: F) -> F:
    """``FILE``, ``--format`` and ``--shop``: where from and where to."""
    file = click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
    form = click.option(
        "--format",
        "form",
        type=click.Choice(["csv", "jsonl", "parquet"]),
        help="The form on standard output.  [default: csv]",
    )
    return file(form(shop_option(function)))


def _time_options(function: F) -> F:
    since = click.option(
        "--from", "since", type=MOMENT, metavar="T", help="Only from this moment on (UTC)."
    )
    until = click.option("--until", type=MOMENT, metavar="T", help="Only before this moment (UTC).")
    return since(until(function))


@click.group(cls=Group)
def export() -> None:
    """Write what the shop holds to FILE, in the form that its ending names.

    That is .csv, .jsonl or .parquet; - is standard output. Columns are called as qagent ingest
    reads them. It shows one moment of the shop, also beside a server that takes events. All of
    one user: qagent memory export USER; the rejected rows: qagent ingest rejects --out FILE.
    """


def _export(
    name: str,
    target: Target,
    shop_path: Path,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Output | None:
    from qagent_mlx.export import export_table

    if since is not None and until is not None and since >= until:
        raise QAgentError("--from is not before --until; nothing lies between them")
    with target.path() as path, opened(shop_path) as shop:
        rows = export_table(shop, name, path, since, until)
    if target.name == STDOUT:
        return None
    document = {"table": name, "rows": rows, "out": target.name}
    return Output(document, lambda: say(f"{rows:,} rows of {name} written to {target.name}"))


@export.command()
@target_options
@json_option
def products(file: str, form: str | None, shop_path: Path) -> Output | None:
    """Write the catalog as it is now: one row for each product."""
    return _export("products", Target(file, form), shop_path)


@export.command()
@_time_options
@target_options
@json_option
def prices(
    file: str, form: str | None, since: datetime | None, until: datetime | None, shop_path: Path
) -> Output | None:
    """Write the history of prices and stock: one row for each change that has a time."""
    return _export("prices", Target(file, form), shop_path, since, until)


@export.command()
@_time_options
@target_options
@json_option
def events(
    file: str, form: str | None, since: datetime | None, until: datetime | None, shop_path: Path
) -> Output | None:
    """Write the log: one row for each search, view, click, cart and purchase, in order of time."""
    return _export("events", Target(file, form), shop_path, since, until)


@export.command()
@_time_options
@target_options
@json_option
def impressions(
    file: str, form: str | None, since: datetime | None, until: datetime | None, shop_path: Path
) -> Output | None:
    """Write the products that users were shown, with their positions."""
    return _export("impressions", Target(file, form), shop_path, since, until)


@export.command()
@target_options
@json_option
def metrics(file: str, form: str | None, shop_path: Path) -> Output | None:
    """Write the metrics of all training runs: one row for each step."""
    return _export("metrics", Target(file, form), shop_path)


@export.command()
@click.option("--policy", type=POLICY, help=f"Policy that recommends.  [default: {SERVING}]")
@setting_options(BulkConfig, "k", "as_of", into="changes", as_of={"metavar": "T", "type": MOMENT})
@target_options
@json_option
def recommendations(
    file: str, form: str | None, policy: str | None, changes: Changes, shop_path: Path
) -> Output | None:
    """Recommend to everybody in the log, and write it: one row for each query of each user.

    The same as qagent recommend --all --out FILE, which has more options.
    """
    target = Target(file, form)
    with target.path() as path:
        output = recommend_to_many(
            Recipients(everybody=True), path, merge(BulkConfig(), changes), shop_path, policy
        )
    return None if target.name == STDOUT else output
