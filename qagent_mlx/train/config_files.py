"""Settings: dataclasses with defaults, changed by a preset, then a TOML file, then flags.

A settings file holds what the flags hold, and more:

    policy = "sft"
    name = "grpo"
    preset = "consistency"
    rewards = ["rewards.py:short"]        # beside the settings file

    [train]                               # GrpoConfig or SftConfig
    steps = 50
    [train.weights]
    consistency = 2.0
    [train.curriculum]
    item = [[1, 0.0], [30, 1.0]]
    [train.lora]
    rank = 16
    [train.alarms]
    kl = "warn"

    [agent]                               # changes to the parent policy's AgentConfig
    max_searches = 2
    [split]                               # SplitConfig
    test_share = 0.2
"""

from __future__ import annotations

import difflib
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..environment.cases import SplitConfig
from ..errors import QAgentError
from ..policy.files import agent_below
from ..policy.registry import resolve
from ..protocol.config import AgentConfig
from ..shop.shop import Shop

T = TypeVar("T")


def merged(default: T, values: Any, where: str) -> T:
    """A dataclass with values from a file put in, nested ones too.

    A table of numbers (``weights``) changes the entries that it names and keeps the others.

    Raises:
        QAgentError: a name is unknown (with the one that was probably meant), or a value is of
            the wrong type.
    """
    if not isinstance(values, Mapping):
        raise QAgentError(f"{where} must be a table of settings, not {type(values).__name__}")
    hints = typing.get_type_hints(type(default))
    known = [f.name for f in fields(default)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise QAgentError(f"{where}: {unknown(name, known)}")
    made: dict[str, Any] = {}
    for name, value in values.items():
        now: Any = getattr(default, name)
        if is_dataclass(now) and not isinstance(now, type):
            made[name] = merged(now, value, f"{where}: {name}")
            continue
        try:
            fitted = _fitted(value, hints[name])
        except TypeError as error:
            raise QAgentError(
                f"{where}: {name} must be {error}, not {reprlib.repr(value)}"
            ) from None
        made[name] = {**now, **fitted} if isinstance(now, dict) else fitted
    return replace(default, **made)  # type: ignore[type-var]


def unknown(name: str, known: list[str]) -> str:
    """What to say of a name that does not exist: the near match, or all that do."""
    near = difflib.get_close_matches(str(name)[:100], known, 1)
    if near:
        return f"unknown setting {reprlib.repr(name)}; did you mean {near[0]}?"
    return f"unknown setting {reprlib.repr(name)}; known are {', '.join(known)}"


def _fitted(value: Any, wanted: Any) -> Any:
    """The value as its field's type; TypeError says what it should have been."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _fitted(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError("a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_fitted(v, arguments[0]) for v in value)
        if len(value) != len(arguments):
            raise TypeError(f"a list whose items have {len(arguments)} values")
        return tuple(_fitted(v, a) for v, a in zip(value, arguments, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError("a table")
        return {str(k): _fitted(v, arguments[1]) for k, v in value.items()}
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise TypeError("a number of bearable size") from None
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if wanted in names and (
        not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)
    ):
        raise TypeError(names[wanted])
    return value


@dataclass(frozen=True)
class Settings:
    """All of a training command: where it starts, what it makes, and how.

    ``train`` is a `GrpoConfig` or a `SftConfig`; ``agent`` holds changes to the parent's
    `AgentConfig`, which is not known before the shop is open.
    """

    train: Any
    policy: str = ""
    name: str = ""
    run: str = ""
    preset: str = ""
    rewards: tuple[str, ...] = ()
    agent: dict[str, Any] = field(default_factory=dict)
    split: SplitConfig = field(default_factory=SplitConfig)


def read_settings(path: Path, settings: Settings, preset: str | None = None) -> Settings:
    """The settings in a TOML file, on top of others.

    The preset (the one given, else the file's) comes before the file, so that the file may
    change what it says. Reward files are found beside the settings file.

    Raises:
        QAgentError: the file cannot be read, or holds an unknown name or a wrong value.
    """
    values = _toml(path)
    where = path.name
    agent, inner, split = (values.pop(name, {}) for name in ("agent", "train", "split"))
    merged(AgentConfig(), agent, f"{where}: agent").check()  # only to refuse what is wrong in it
    plain: Settings = merged(settings, values, where)
    chosen = preset or plain.preset
    if chosen:
        plain = with_preset(plain, chosen)
    return replace(
        plain,
        train=merged(plain.train, inner, f"{where}: train"),
        agent={**plain.agent, **agent},
        split=merged(plain.split, split, f"{where}: split"),
        rewards=tuple(str(path.parent / spec) for spec in plain.rewards),
    )


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QAgentError(f"--config {path}: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:  # also of numbers that are too long
        raise QAgentError(f"--config {path} is no TOML: {error}") from error


def agent_of(shop: Shop, policy: str, changes: Mapping[str, Any]) -> AgentConfig | None:
    """The parent policy's `AgentConfig` with changes; None without any.

    Raises:
        QAgentError: there is no such policy, or a change is unknown or of the wrong type.
    """
    if not changes:
        return None
    made = merged(agent_below(resolve(shop, policy)), changes, "agent")
    made.check()
    return made


# ---------------------------------------------------------------- presets


@dataclass(frozen=True)
class Preset:
    """A named kind of GRPO run: one arm of a study."""

    says: str
    weights: dict[str, float] = field(default_factory=dict)
    agent: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "consistency": Preset("query and product must both be right, with a chain of retrieval"),
    "query-only": Preset(
        "the query alone is rewarded: what it retrieves does not count",
        weights={"item": 0.0, "consistency": 0.0},
    ),
    "typed": Preset(
        "the same of what people type first, whether it led to anything or not: "
        "all that a recommender knows that never looks at products",
        weights={"item": 0.0, "consistency": 0.0},
        split={"learn_from": "searches"},
    ),
    "single-turn": Preset(
        "no search: one query is chosen from memory and its products are never seen",
        agent={"search": False, "max_searches": 1},
    ),
    "no-memory": Preset(
        "nothing is known of the user: the profile holds only what the whole shop searches for",
        agent={"sections": ("trending",)},
    ),
}


def with_preset(settings: Settings, name: str) -> Settings:
    """The settings with a preset's weights, agent and split put in.

    Raises:
        QAgentError: there is no such preset, or the settings are not those of GRPO.
    """
    if name not in PRESETS:
        raise QAgentError(f"preset: {unknown(name, list(PRESETS))}")
    if not hasattr(settings.train, "weights"):
        raise QAgentError("a preset is for GRPO; SFT has none")
    preset = PRESETS[name]
    weights = {**settings.train.weights, **preset.weights}
    return replace(
        settings,
        preset=name,
        train=replace(settings.train, weights=weights),
        agent={**settings.agent, **preset.agent},
        split=replace(settings.split, **preset.split),
    )
