"""Types of options and arguments: moments, plain text, names that Tab completes, shards."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class MomentType(click.ParamType):
    """A time as ISO 8601; one with a zone is converted to UTC."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """A naive UTC datetime."""
        if isinstance(value, datetime):
            return value
        from qagent_mlx.utils.text import parse_utc

        try:
            return parse_utc(value)
        except ValueError:
            self.fail(f"{value!r}: write it as 2026-03-01 or 2026-03-01T12:00", param, ctx)
        except OverflowError:
            self.fail(f"{value!r} is out of range", param, ctx)


class IsoMomentType(MomentType):
    """A time, as the ISO 8601 text that settings hold."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text of a naive UTC datetime."""
        return super().convert(value, param, ctx).isoformat()


class PlainType(click.ParamType):
    """Text; bytes of the shell that are no UTF-8 become replacement characters."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Valid Unicode."""
        return str(value).encode("utf-8", "replace").decode("utf-8")


class IdType(PlainType):
    """The id of a user or a product, in the form in which shops store it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Text without spaces at its ends and without control characters."""
        from qagent_mlx.utils.text import clean_id

        cleaned = clean_id(super().convert(value, param, ctx))
        if not cleaned:
            self.fail("an id must have a visible character", param, ctx)
        return cleaned


class NameType(PlainType):
    """The name of something in a shop, completed by Tab.

    Args:
        pattern: Glob of files in the shop; their folders' names are offered.
        names: Other names that are offered.
        policies: Whether the shop's policies and their versions are offered too.
        baselines: Whether the baselines' names are offered too.
    """

    def __init__(
        self, pattern: str = "", *names: str, policies: bool = False, baselines: bool = False
    ) -> None:
        self._pattern, self._names = pattern, names
        self._policies, self._baselines = policies, baselines

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin with what was typed."""
        from click.shell_completion import CompletionItem

        names = {*self._names}
        if self._pattern:
            shop = Path(ctx.params.get("shop_path") or "shop")
            names |= {path.parent.name for path in shop.glob(self._pattern)}
        if self._policies:
            from qagent_mlx.shop.policy_folders import all_versions, parse_reference

            versions = all_versions(Path(ctx.params.get("shop_path") or "shop") / "policies")
            names |= {*versions, *(parse_reference(version)[0] for version in versions)}
        if self._baselines:
            from qagent_mlx.evaluate.baselines.registry import BASELINES

            names |= {*BASELINES}
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


class ShardType(click.ParamType):
    """One of several shares: ``2/4`` is the second of four."""

    name = "shard"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(number from 1, how many)."""
        if isinstance(value, tuple):
            return value
        number, _, shards = value.partition("/")
        if not (number.isdecimal() and shards.isdecimal() and 1 <= int(number) <= int(shards)):
            self.fail(f"{value!r}: write it as 1/4, 2/4, 3/4 and 4/4", param, ctx)
        return int(number), int(shards)


MOMENT = MomentType()
ISO_MOMENT = IsoMomentType()
PLAIN = PlainType()
ID = IdType()
DTYPE = click.Choice(["float32", "bfloat16", "float16", "4bit", "stored"])
FILE = click.Path(path_type=Path, dir_okay=False)
EXISTING_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
FOLDER = click.Path(path_type=Path, file_okay=False)
POLICY = NameType("", "sample", "promoted", policies=True)
VERSION = NameType("", policies=True)
SERVING = "the promoted one, else grpo, else the newest"  # help of options that name no default
RUN = NameType("runs/[!.]*/config.json")
BASELINE = NameType(baselines=True)
SYSTEM = NameType("", "sample", policies=True, baselines=True)
