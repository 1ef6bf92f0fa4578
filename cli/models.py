"""``qagent models``: which models there are to start from, and what was made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import PLAIN, emit, json_option, opened, out, plain_table, shop_option, shown

if TYPE_CHECKING:
    from qagent_mlx.shop import Shop


@click.group()
def models() -> None:
    """List and show base models and policies."""


@models.command("list")
@shop_option
@json_option
@click.pass_context
def list_models(ctx: click.Context, shop_path: Path, as_json: bool) -> None:
    """List the shipped model and the shop's policies."""
    from qagent_mlx.policy.registry import SAMPLE, describe, policy_names, sample_folder

    found: list[dict[str, Any]] = []
    if (sample_folder() / "policy.json").exists():
        found.append({**describe(sample_folder()), "name": SAMPLE})
    if _asked(ctx) or (shop_path / "shop.json").exists():
        with opened(shop_path) as shop:
            found += [describe(shop.path / "policies" / name) for name in policy_names(shop)]
    if as_json:
        emit({"models": found})
        return
    if not found:
        out().print("no models yet; make one with: qagent pretrain", soft_wrap=True)
        return
    table = plain_table("name", "base", "MB", "trained", numbers=("MB",))
    for model in found:
        table.add_row(
            shown(model["name"]), shown(Path(model["base"]).name or "-"),
            f"{model['megabytes']:.1f}", shown(", ".join(model["trained"]) or "-"),
        )  # fmt: skip
    out().print(table)


@models.command()
@click.argument("name", type=PLAIN)
@shop_option
@json_option
@click.pass_context
def show(ctx: click.Context, name: str, shop_path: Path, as_json: bool) -> None:
    """Show a policy of the shop, or an mlx-lm model folder."""
    if _asked(ctx) or (shop_path / "shop.json").exists():
        with opened(shop_path) as shop:
            report = _described(shop, name)
    else:
        report = _described(None, name)
    if as_json:
        emit(report)
        return
    table = plain_table("", "")
    table.show_header = False
    for key, value in report.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(key.replace("_", " "), shown(text or "-"))
    out().print(table)


@models.command()
@click.argument("name", type=PLAIN)
def pull(name: str) -> None:
    """Check a local model folder. Downloading is not there yet."""
    if (Path(name).expanduser() / "config.json").exists():
        out().print(
            shown(f"{name} is a local model folder; use it as it is: --policy {name}"),
            soft_wrap=True,
        )
        return
    raise click.ClickException(
        f"cannot pull {name!r}: only local folders work for now; download the model with "
        "another tool and give its folder as --policy FOLDER"
    )


def _described(shop: Shop | None, name: str) -> dict[str, Any]:
    from qagent_mlx.files import read_json
    from qagent_mlx.policy.registry import describe, resolve

    folder = resolve(shop, name)
    report: dict[str, Any] = describe(folder)
    for file, keys in (
        ("config.json", ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")),
        ("policy.json", ("protocol", "agent")),
    ):
        if (folder / file).exists():
            values = read_json(folder / file, f"the model {name}")
            report |= {key: values[key] for key in keys if key in values}
    return report


def _asked(ctx: click.Context) -> bool:
    """Whether a shop was named: without one, the shipped model is all there is."""
    source = ctx.get_parameter_source("shop_path")
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
