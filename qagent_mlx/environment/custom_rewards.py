"""Reward components from users' own Python files."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from ..errors import QAgentError
from ..utils import trust
from ..utils.atomic_files import hash_file
from ..utils.settings import SettingError
from .rewards import COMPONENTS, Component


class RewardFile(TypedDict):
    """What a run stores of a reward, so that it goes on with exactly the same one."""

    file: str
    name: str
    sha256: str


def load_component(spec: str) -> tuple[str, Component]:
    """Load the component ``NAME`` from ``FILE:NAME``; returns its name and the function."""
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        raise SettingError("rewards", f"{spec}: write it as FILE:NAME")
    if not path.is_file():
        raise SettingError("rewards", f"{spec}: there is no file {path}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is shown
        raise SettingError(
            "rewards", f"{spec}: importing {path} failed: {type(error).__name__}: {error}"
        ) from error
    component = getattr(module, name, None)
    if not callable(component):
        raise SettingError("rewards", f"{spec}: {path} has no function {name}")
    return name, component


def components_of(specs: Sequence[str]) -> dict[str, Component] | None:
    """The package's components and those of ``FILE:NAME`` specs; None without any spec."""
    components = dict(COMPONENTS)
    for spec in specs:
        name, component = load_component(spec)
        if name in components:
            raise SettingError(
                "rewards", f"{spec}: {name} is taken by another reward; rename yours"
            )
        components[name] = component
    return components if specs else None


def reward_files(specs: Sequence[str]) -> list[RewardFile]:
    """Describe the files of ``FILE:NAME`` specs for a run's configuration, and trust them."""
    files = []
    for spec in specs:
        file, _, name = spec.rpartition(":")
        path = Path(file)
        trust.trust_file(path)
        files.append(RewardFile(file=str(path.resolve()), name=name, sha256=hash_file(path)))
    return files


def reward_specs(files: Sequence[RewardFile]) -> list[str]:
    """The ``FILE:NAME`` specs of a run that goes on, with the very files that it began with."""
    for stored in files:
        path = Path(stored["file"])
        if not path.is_file() or hash_file(path) != stored["sha256"]:
            raise QAgentError(
                f"the reward file {path} is gone or has changed since the run began, so it cannot "
                "go on exactly; put it back, or name the reward again to go on with the new one"
            )
        remedy = f"name the reward {path}:{stored['name']} again, or others"
        trust.require_file(path, "the run's reward", remedy)
    return [f"{stored['file']}:{stored['name']}" for stored in files]
