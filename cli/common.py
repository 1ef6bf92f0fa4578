"""What the commands share: options, consoles, and one JSON document on stdout."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.console import Console
    from rich.text import Text

    from qagent_mlx.shop.shop import Shop

F = TypeVar("F", bound=Callable[..., Any])


class MomentType(click.ParamType):
    """A time as ISO 8601; one with a zone is turned to UTC."""

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


class PlainType(click.ParamType):
    """Text without the half characters that a shell hands over for bytes that are no UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Valid Unicode."""
        return str(value).encode("utf-8", "replace").decode("utf-8")


class NameType(PlainType):
    """The name of something in a shop, which Tab completes by what there is."""

    def __init__(self, pattern: str = "", *names: str, baselines: bool = False) -> None:
        """The shop's folders that hold what ``pattern`` finds, other names, and the baselines'."""
        self._pattern, self._names, self._baselines = pattern, names, baselines

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """What begins so."""
        from click.shell_completion import CompletionItem

        found = [*self._names]
        if self._pattern:
            shop = Path(ctx.params.get("shop_path") or "shop")
            found += [path.parent.name for path in shop.glob(self._pattern)]
        if self._baselines:
            from qagent_mlx.evaluate.baselines.registry import BASELINES

            found += BASELINES
        return [CompletionItem(n) for n in sorted({*found}) if n.startswith(incomplete)]


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
PLAIN = PlainType()
_POLICIES = "policies/[!.]*/policy.json"  # what begins with a dot is still being made
POLICY = NameType(_POLICIES, "sample")
RUN = NameType("runs/[!.]*/config.json")
BASELINE = NameType(baselines=True)
SYSTEM = NameType(_POLICIES, "sample", baselines=True)

as_of_option = click.option(
    "--as-of",
    type=MOMENT,
    metavar="T",
    help="A moment (UTC); nothing at or after it is used. Default: after the log's last event.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
)

dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "4bit", "stored"]),
    help="Of the model's weights; 4bit keeps or makes a quantised one.  [default: float32 on "
    "a CPU, as stored on a GPU]",
)


def shop_option(function: F) -> F:
    """``--shop PATH``, or QAGENT_SHOP, or ./shop."""
    return click.option(
        "--shop",
        "shop_path",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="QAGENT_SHOP",
        default=Path("shop"),
        show_default="./shop",
        show_envvar=True,
        metavar="PATH",
        help="The shop's folder.",
    )(function)


def split_options(function: F) -> F:
    """Options that say which moments of the log are cases, and where they are cut by time."""
    for option in (
        click.option(
            "--validation-share",
            type=click.FloatRange(0, 0.9),
            default=None,
            help="Share of the cases just before the test cases.  [default: 0.05]",
        ),
        click.option(
            "--test-share",
            type=click.FloatRange(0, 0.9),
            default=None,
            help="Share of the cases that are test cases, the last ones.  [default: 0.2]",
        ),
        click.option(
            "--test-from",
            type=MOMENT,
            metavar="T",
            help="Cases from this moment on are test cases, instead of a share.",
        ),
        click.option(
            "--min-history",
            type=click.IntRange(min=0),
            default=None,
            help="Events a user must have before a case; 0 lets new users in.  [default: 1]",
        ),
    ):
        function = option(function)
    return function


def split_config(
    test_from: datetime | None,
    min_history: int | None,
    test_share: float | None,
    validation_share: float | None,
    base: Any = None,
) -> Any:
    """The `SplitConfig` that `split_options` describe, on top of another one."""
    from dataclasses import replace

    from qagent_mlx.environment.cases import SplitConfig

    return replace(
        base or SplitConfig(),
        **given(
            test_from=test_from.isoformat() if test_from else None,
            min_history=min_history,
            test_share=test_share,
            validation_share=validation_share,
        ),
    )


def given(**values: Any) -> dict[str, Any]:
    """The options that were given: those that are not None. The others keep their defaults."""
    return {name: value for name, value in values.items() if value is not None}


@contextlib.contextmanager
def opened(path: Path, *, write: bool = False) -> Iterator[Shop]:
    """The shop in a folder, closed at the end."""
    from qagent_mlx.shop.shop import Shop

    with Shop.open(path, read_only=not write) as shop:
        yield shop


# ---------------------------------------------------------------- output


_hushed = False


def hush() -> None:
    """From now on this process shows no progress and no notes: another one of its run does."""
    global _hushed
    _hushed = True


def _console(stream: Any) -> Console:
    from rich.console import Console

    from qagent_mlx.utils.text import strip_control_characters

    class Plain(Console):
        """Obeys nothing that stands in a text."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(strip_control_characters(text), **options)

    # Data is printed as it is: no markup, no emoji codes, no colouring of numbers.
    quiet = _hushed and stream is sys.stderr
    # A notebook's cell says that it is a terminal, and keeps every frame of what moves.
    still = stream is sys.stderr and "JPY_PARENT_PID" in os.environ
    return Plain(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        quiet=quiet,
        force_terminal=False if still else None,
    )


def out() -> Console:
    """For what was asked for."""
    return _console(sys.stdout)


def err() -> Console:
    """For progress and notes."""
    return _console(sys.stderr)


def note(text: str) -> None:
    """One line about what is going on, on stderr."""
    err().print(shown(text), soft_wrap=True)


def shown(value: Any, style: str = "") -> Text:
    """Text that is safe on a terminal: control and direction characters are gone."""
    from rich.text import Text

    from qagent_mlx.utils.text import clean

    # Two spaces are a gap between columns; `clean` alone would close it.
    return Text("  ".join(clean(part) for part in str(value).split("  ")), style=style)


def short(text: str, width: int) -> str:
    """The text, cut at a number of characters."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def plain_table(*columns: str, numbers: tuple[str, ...] = ()) -> Any:
    """A table without frames, which reads well at 80 columns and without colour."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    return table


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on stderr while something takes time; nothing where that is no terminal."""
    console = err()
    if not console.is_terminal:
        yield
        return
    with console.status(shown(text)):
        yield


def emit(document: Any) -> None:
    """Print the one JSON document."""
    from qagent_mlx.utils.text import escape_control_characters

    text = json.dumps(
        _plain(document), indent=2, ensure_ascii=not writes_unicode(), allow_nan=False
    )
    click.echo(escape_control_characters(text))


def writes_unicode() -> bool:
    """Whether stdout can write every character."""
    return "utf" in (sys.stdout.encoding or "").lower()


def _plain(value: Any) -> Any:
    """The value in JSON's types; what is no number (NaN) becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int)) or value is None:
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "item"):
        return _plain(value.item())
    return str(value)
