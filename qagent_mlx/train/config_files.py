"""Settings of a training command: defaults, changed by a preset, then by a TOML file.

The file holds:

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

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..environment.config import SplitConfig
from ..errors import QAgentError
from ..policy.files import agent_below
from ..policy.registry import resolve
from ..protocol.config import AgentConfig
from ..shop.shop import Shop
from ..utils.settings import merge, unknown_name
from .grpo_config import GrpoConfig


@dataclass(frozen=True, kw_only=True)
class Names:
    """Where a training starts and what it makes."""

    policy: str = ""
    name: str = ""
    run: str = ""
    preset: str = ""
    rewards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings(Names):
    """All of a training command: where it starts, what it makes, and how.

    ``agent`` holds changes to the parent's `AgentConfig`, which is not known before the shop is
    open.
    """

    train: Any  # GrpoConfig or SftConfig
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
    agent, train, split = (values.pop(name, {}) for name in ("agent", "train", "split"))
    merge(AgentConfig(), agent, f"{where}: agent").check()  # only to refuse what is wrong in it
    before = Names(**{f.name: getattr(settings, f.name) for f in fields(Names)})
    names = merge(before, values, where)
    settings = replace(settings, **asdict(names))
    if preset or names.preset:
        settings = with_preset(settings, preset or names.preset)
    return replace(
        settings,
        train=merge(settings.train, train, f"{where}: train"),
        agent={**settings.agent, **agent},
        split=merge(settings.split, split, f"{where}: split"),
        rewards=tuple(str(path.parent / spec) for spec in names.rewards),
    )


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QAgentError(f"the settings file {path}: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:  # also of numbers that are too long
        raise QAgentError(f"the settings file {path} is no TOML: {error}") from error


def agent_with_changes(shop: Shop, policy: str, changes: Mapping[str, Any]) -> AgentConfig | None:
    """The parent policy's `AgentConfig` with changes; None without any.

    Raises:
        QAgentError: there is no such policy, or a change is unknown or of the wrong type.
    """
    if not changes:
        return None
    agent = merge(agent_below(resolve(shop, policy)), changes, "agent")
    agent.check()
    return agent


@dataclass(frozen=True)
class Preset:
    """A named kind of GRPO run; see ``presets.toml``."""

    description: str
    weights: dict[str, float] = field(default_factory=dict)
    agent: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    name: Preset(**values)
    for name, values in _toml(Path(__file__).with_name("presets.toml")).items()
}


def with_preset(settings: Settings, name: str) -> Settings:
    """The settings with a preset's weights, agent and split put in.

    Raises:
        QAgentError: there is no such preset, or the settings are not those of GRPO.
    """
    if name not in PRESETS:
        raise QAgentError(f"preset: {unknown_name(name, list(PRESETS))}")
    if not isinstance(settings.train, GrpoConfig):
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
