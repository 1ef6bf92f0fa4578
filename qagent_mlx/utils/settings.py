"""Settings: dataclasses whose fields say what they are, in which range and in which unit.

A setting is described once, in its annotation:

    steps: Annotated[int, Meta(ge=1, description="Training steps.")] = 100
    half_life: Annotated[float, Meta(gt=0, description="…", extra={"unit": "days"})] = 14.0
    advantage: Annotated[Literal["grpo", "gdpo"], Meta(description="…")] = "gdpo"

Reading TOML and JSON (`merge`), validation (`check`), the command line's options and the
reference page (`describe`) all come from that. Errors name the setting, never a flag.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from ..errors import QAgentError

T = TypeVar("T")

# What any number may be at most that has no closer limit: beyond it a float holds no whole number,
# and times and counts overflow.
LARGEST = 2**53

Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}  # by the names that msgspec gives them
_BOUNDS = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}


class SettingError(QAgentError):
    """A setting (its dotted name, such as ``lora.rank``) has a value that it cannot have.

    The ``reason`` is read after the name; ``where`` says what the value comes from.
    """

    def __init__(self, setting: str, reason: str, where: str = "") -> None:
        self.setting, self.reason, self.where = setting, reason, where
        super().__init__(f"{where + ': ' if where else ''}{setting} {reason}")


@dataclass(frozen=True, slots=True)
class Setting:
    """Description of one field of a settings class."""

    name: str  # dotted where the field stands in a nested settings class
    kind: Any  # the Python type that a value has, without None
    default: Any
    description: str  # a sentence or noun phrase that stands alone
    unit: str  # what a number counts, such as ``days``; empty where it has none
    choices: tuple[Any, ...]  # all values, or all that a tuple may hold, where they are few
    bounds: dict[str, float]  # ``ge``, ``gt``, ``le``, ``lt`` and their limits


def check(config: Any) -> None:
    """Refuse a settings dataclass with a `SettingError` for the first value that cannot be."""
    merge(config, {})


def merge(default: T, values: Any, where: str = "") -> T:
    """A copy of a settings dataclass with values from a file or request put in.

    ``values`` are plain ones, as TOML or JSON give them; ``where`` begins error messages. A nested
    settings class is given as a table. A table of numbers (``weights``) changes the entries that
    it names and keeps the others. A `SettingError` says which value cannot be, and of an unknown
    name which one was probably meant.
    """
    combined = _combined(default, values, where, "")
    try:
        merged = msgspec.convert(combined, type(default))
        for name, number in _numbers(combined, ""):
            if isinstance(number, float) and not math.isfinite(number):
                raise SettingError(name, f"must be a finite number, not {number}", where)
            if abs(number) > LARGEST:
                reason = f"must lie within {LARGEST:,} of 0, not {reprlib.repr(number)}"
                raise SettingError(name, reason, where)
    except msgspec.ValidationError as error:
        raise _explained(type(default), combined, str(error), where) from None
    except RecursionError:
        raise QAgentError(
            f"{where + ': ' if where else ''}the values are nested too deeply"
        ) from None
    return merged


def describe(settings: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a settings class, nested ones under dotted names, in order."""
    hints = typing.get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        hint = hints[field.name]
        default = (
            field.default
            if field.default is not MISSING
            else (field.default_factory() if field.default_factory is not MISSING else None)
        )
        if isinstance(hint, type) and is_dataclass(hint):
            yield from describe(hint, f"{prefix}{field.name}.")
            continue
        metas, kind = _unwrapped(hint)
        bounds = {
            name: limit
            for name in ("ge", "gt", "le", "lt")
            for meta in metas
            if (limit := getattr(meta, name)) is not None
        }
        yield Setting(
            name=prefix + field.name,
            kind=kind,
            default=default,
            description=next((m.description for m in metas if m.description), ""),
            unit=next((m.extra["unit"] for m in metas if m.extra and "unit" in m.extra), ""),
            choices=_choices(kind),
            bounds=bounds,
        )


def unknown_name(name: object, known: list[str]) -> str:
    """The message for a setting that does not exist, with the near match or all names."""
    shown = reprlib.repr(name)
    near = difflib.get_close_matches(str(name)[:100], known, 1)
    if near:
        return f"unknown setting {shown}; did you mean {near[0]}?"
    return f"unknown setting {shown}; known are {', '.join(known)}"


def _combined(default: Any, values: Any, where: str, prefix: str) -> dict[str, Any]:
    """The plain values of ``default`` with ``values`` put in their places."""
    if not isinstance(values, Mapping):
        place = ": ".join(filter(None, (where, prefix.rstrip("."))))
        raise QAgentError(f"{place} must be a table of settings, not {type(values).__name__}")
    known = [field.name for field in fields(default)]
    for name in values:
        if name not in known:
            place = ": ".join(filter(None, (where, prefix.rstrip("."))))
            raise QAgentError(f"{place + ': ' if place else ''}{unknown_name(name, known)}")
    combined = {}
    for name in known:
        now = getattr(default, name)
        if is_dataclass(now) and not isinstance(now, type):
            combined[name] = _combined(now, values.get(name, {}), where, f"{prefix}{name}.")
        elif name not in values:
            combined[name] = now
        elif isinstance(now, Mapping) and isinstance(values[name], Mapping):
            combined[name] = {**now, **values[name]}
        else:
            combined[name] = values[name]
    return combined


def requirement(message: str) -> tuple[str, str]:
    """A validation error of msgspec in plain words: the dotted name, and what must be.

    ``"Expected `int` >= 1 - at `$.lora.rank`"`` becomes ``("lora.rank", "must be a whole
    number of at least 1")``.
    """
    wanted, _, path = message.partition(" - at `$")
    name = ".".join(re.findall(r"\.([A-Za-z_0-9]+)", path))
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", wanted):
        return ".".join(filter(None, (name, missing[1]))), "must be given"
    if not wanted.startswith("Expected "):  # "Number out of range" and the like
        return name, f"cannot be used: {wanted[:1].lower()}{wanted[1:]}"
    kinds, _, bound = wanted.removeprefix("Expected ").partition(", got")[0].partition("` ")
    text = " or ".join(_TYPES.get(kind, kind) for kind in kinds.strip("`").split(" | "))
    items = "items" if kinds.endswith("array") else "characters"
    length = bound.startswith("of length ")
    sign, _, limit = bound.removeprefix("of length ").partition(" ")
    if sign in _BOUNDS:
        text += f" {_BOUNDS[sign]} {limit.removesuffix('.0')}{f' {items}' if length else ''}"
    elif bound:
        text += f" {bound}"
    return name, f"{'must hold' if '[' in path else 'must be'} {text}"


def _explained(settings: type, values: Any, message: str, where: str) -> SettingError:
    """A validation error in plain words: the setting, what it must be, and what it is."""
    name, must = requirement(message)
    value = values
    for field in name.split("."):
        value = value[field]
    if message.startswith("Invalid enum value"):
        choices = next((s.choices for s in describe(settings) if s.name == name), ())
        verb = "must hold only" if "[" in message else "must be one of"
        must = f"{verb} {', '.join(map(str, choices))}"
    return SettingError(name, f"{must}, not {reprlib.repr(value)}", where)


def _numbers(values: Any, name: str) -> Iterator[tuple[str, int | float]]:
    """Every number in nested plain values, with the name of the setting that holds it."""
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        yield name, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _numbers(value, name)


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of the Literal that a tuple holds; empty for other types."""
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def _unwrapped(hint: Any) -> tuple[list[msgspec.Meta], Any]:
    """Split an annotation into its `Meta`s, outermost first, and its type without None."""
    metas: list[msgspec.Meta] = []
    while True:
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Annotated:
            # Annotated[Annotated[float, A], B] is flattened to the arguments float, A, B.
            metas += [a for a in reversed(arguments[1:]) if isinstance(a, msgspec.Meta)]
            hint = arguments[0]
        elif type(None) in arguments:
            rest = [a for a in arguments if a is not type(None)]
            hint = rest[0] if len(rest) == 1 else typing.Union[tuple(rest)]  # noqa: UP007
            if len(rest) > 1:
                return metas, hint
        else:
            return metas, hint
