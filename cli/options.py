"""Options that are generated from settings, and options that many commands share.

`setting_options` turns the annotated fields of a dataclass (see `qagent_mlx.utils.settings`)
into options of a command: type, range, choices, default and help come from the annotations.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import typing
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.errors import QAgentError
from qagent_mlx.utils.child_process import python_command
from qagent_mlx.utils.settings import Setting, SettingError, describe

from .console import emit, note
from .param_types import FILE, FOLDER, ISO_MOMENT, MOMENT, PLAIN

if TYPE_CHECKING:
    from qagent_mlx.shop.shop import Shop

F = TypeVar("F", bound=Callable[..., Any])

# Starts this command line.
PROGRAM = python_command("from qagent_cli.main import cli; cli(prog_name='qagent')")
Changes = dict[str, Any]  # settings that were given, nested as `utils.settings.merge` takes them

NICENESS = 10  # of a command that works beside a server, as `nice` gives it

_NOT_GIVEN = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


class SettingOption(click.Option):
    """An option that gives a setting, named with dots, of a class of settings its value."""

    def __init__(
        self, *args: Any, setting: str, settings: type | None = None, **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.setting, self.settings = setting, settings


def setting_options(
    settings: type, *names: str, into: str, build: bool = False, **attributes: Any
) -> Callable[[F], F]:
    """Give a command options for settings.

    Args:
        settings: A dataclass of annotated fields.
        names: Which fields, dotted where nested; all by default.
        into: The command's parameter that gets the values.
        build: Whether it gets an instance of ``settings``; by default it gets the `Changes`
            that were given on the command line.
        attributes: For a field, what differs from its annotation: its flag, or a dict of
            attributes of `click.option` (``flags`` among them). Dots in names are ``__``.
    """
    described = {setting.name: setting for setting in describe(settings)}
    options = {f"{into}__{name.replace('.', '__')}": described[name] for name in names or described}

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, **parameters: Any) -> Any:
            context = click.get_current_context()
            values = {}
            for parameter, setting in options.items():
                value = parameters.pop(parameter)
                if setting.kind is bool:
                    value = value != setting.default  # a flag switches the default
                elif value is None:
                    value = setting.default
                if build or context.get_parameter_source(parameter) not in _NOT_GIVEN:
                    values[setting.name] = value
            parameters[into] = settings(**values) if build else _nested(values)
            return function(*args, **parameters)

        for parameter, setting in reversed(options.items()):
            differing = attributes.get(parameter.removeprefix(f"{into}__"), {})
            if isinstance(differing, str):
                differing = {"flags": (differing,)}
            command = _option(settings, setting, parameter, differing)(command)
        return typing.cast(F, command)

    return decorate


def with_flags(error: SettingError, command: click.Command) -> QAgentError:
    """The error as the command line puts it: settings are named by the flags that set them."""
    if error.where:  # a file, which knows no flags
        return error
    flags = _flags(command)
    reason = in_flags(error.reason, command)
    reason = re.sub(r"\b[a-z]+(?:_[a-z0-9]+)+\b", lambda m: flags.get(m[0], m[0]), reason)
    return QAgentError(f"{flags.get(error.setting, error.setting)} {reason}")


def in_flags(text: str, command: click.Command) -> str:
    """A text that names settings as `` `time_format` `` with the flags that set them."""
    flags = _flags(command)
    return re.sub(r"`([a-z_]+)`", lambda match: flags.get(match[1], match[0]), text)


def _flags(command: click.Command) -> dict[str, str]:
    """The flags of a command by the names of their settings, also without their groups'."""
    flags: dict[str, str] = {}
    for option in command.params:
        if isinstance(option, click.Option):
            setting = getattr(option, "setting", str(option.name))
            flags[setting] = max(option.opts, key=len)
            flags.setdefault(setting.rpartition(".")[2], flags[setting])
    return flags


def _option(
    settings: type, setting: Setting, parameter: str, differing: dict[str, Any]
) -> Callable[[F], F]:
    """The click option of a setting."""
    flags = differing.get("flags", ())
    attributes: dict[str, Any] = {
        "help": setting.description,
        "default": None if setting.default == "" else setting.default,
        "show_default": setting.default not in (None, "", ()),
    }
    kind = setting.kind
    if typing.get_args(kind)[1:] == (...,):  # tuple[kind, ...]
        attributes["multiple"] = True
        kind = typing.get_args(kind)[0]
    if kind is bool:
        attributes |= {"is_flag": True, "default": False, "show_default": False}
    else:
        attributes["type"] = _type(kind, setting)
    if setting.unit:
        attributes["metavar"] = setting.unit.upper()
    attributes |= {name: value for name, value in differing.items() if name != "flags"}
    name = setting.name.rpartition(".")[2].replace("_", "-")
    flag = f"--{name}" if len(name) > 1 else f"-{name}"
    attributes |= {"cls": SettingOption, "setting": setting.name, "settings": settings}
    return click.option(*(flags or (flag,)), parameter, **attributes)


def _type(kind: Any, setting: Setting) -> click.ParamType:
    if setting.choices:
        return click.Choice(setting.choices)
    bounds = setting.bounds
    low: Any = bounds.get("ge", bounds.get("gt"))
    high: Any = bounds.get("le", bounds.get("lt"))
    if kind is int:
        return click.IntRange(low, high) if bounds else click.INT
    if kind is float:
        if not bounds:
            return click.FLOAT
        return click.FloatRange(low, high, min_open="gt" in bounds, max_open="lt" in bounds)
    return {datetime: MOMENT, Path: FILE}.get(kind, PLAIN)


def _nested(values: dict[str, Any]) -> Changes:
    """``{"lora.rank": 4}`` as ``{"lora": {"rank": 4}}``."""
    changes: Changes = {}
    for name, value in values.items():
        *tables, last = name.split(".")
        table = changes
        for part in tables:
            table = table.setdefault(part, {})
        table[last] = value
    return changes


# Options that many commands share


class Output(typing.NamedTuple):
    """What a command has to say: a document for ``--json``, else what ``draw`` prints."""

    document: Any
    draw: Callable[[], None]


def json_option(function: Callable[..., Output | None]) -> Callable[..., None]:
    """``--json``: print the document of the command's `Output` instead of drawing it."""

    @functools.wraps(function)
    def command(*args: Any, as_json: bool, **parameters: Any) -> None:
        output = function(*args, **parameters)
        if output is None:
            return
        if as_json:
            emit(output.document)
        else:
            output.draw()

    text = "Print one JSON document on stdout."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


shop_option = click.option(
    "--shop",
    "shop_path",
    type=FOLDER,
    envvar="QAGENT_SHOP",
    default=Path("shop"),
    show_default="./shop",
    show_envvar=True,
    metavar="PATH",
    help="The shop's folder.",
)
as_of_option = click.option(
    "--as-of",
    type=MOMENT,
    metavar="T",
    help="A moment (UTC); nothing at or after it is used. Default: after the log's last event.",
)
_SPLIT = ("min_history", "test_from", "test_share", "validation_share", "scenario", "new_share")
_TEST_FROM = {"type": ISO_MOMENT, "metavar": "T"}
# Which moments are cases and how time splits them; `learning_options`: also what they ask for.
split_options = setting_options(SplitConfig, *_SPLIT, into="split", test_from=_TEST_FROM)
learning_options = setting_options(
    SplitConfig, "learn_from", *_SPLIT, into="split", test_from=_TEST_FROM
)


@contextlib.contextmanager
def opened(path: Path, *, write: bool = False, snapshot: bool = False) -> Iterator[Shop]:
    """The shop in a folder, closed at the end; what reads for long takes a snapshot.

    What writes or reads for long lets a server of the shop go first.
    """
    from qagent_mlx.shop.journal import is_served
    from qagent_mlx.shop.shop import Shop

    if (write or snapshot) and os.getpriority(os.PRIO_PROCESS, 0) < NICENESS and is_served(path):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        context = click.get_current_context(silent=True)
        if context is None or not context.params.get("as_json"):
            note(f"a server of {path} goes first: this command has lowered its own priority")
    with Shop.snapshot(path) if snapshot else Shop.open(path, read_only=not write) as shop:
        yield shop
