"""Load reward components from users' own Python files."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import QAgentError
from ..utils import trusted_code
from .rewards import COMPONENTS, Component


def load_component(spec: str) -> tuple[str, Component]:
    """A component from ``FILE:NAME``.

    Raises:
        QAgentError: the file or name does not exist, or importing it fails (shown as it is).
    """
    place, _, name = spec.rpartition(":")
    path = Path(place)
    if not place or not name.isidentifier():
        raise QAgentError(f"--reward {spec}: write it as FILE:NAME")
    if not path.exists():
        raise QAgentError(f"--reward {spec}: there is no file {path}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is the answer
        raise QAgentError(
            f"--reward {spec}: importing {path} failed: {type(error).__name__}: {error}"
        ) from error
    component = getattr(module, name, None)
    if not callable(component):
        raise QAgentError(f"--reward {spec}: {path} has no function {name}")
    return name, component


def components_of(specs: Sequence[str]) -> dict[str, Component] | None:
    """The package's components and those of ``FILE:NAME`` specs; None without any spec.

    Raises:
        QAgentError: as `load_component`, or a name is taken.
    """
    made = dict(COMPONENTS)
    for spec in specs:
        name, component = load_component(spec)
        if name in made:
            raise QAgentError(f"--reward {spec}: {name} is taken by another reward; rename yours")
        made[name] = component
    return made if specs else None


def reward_files(specs: Sequence[str]) -> list[dict[str, str]]:
    """What a run keeps of its own rewards, so that it goes on with the very same ones."""
    kept = []
    for spec in specs:
        place, _, name = spec.rpartition(":")
        digest = hashlib.sha256(Path(place).read_bytes()).hexdigest()
        trusted_code.trust(Path(place))
        kept.append({"file": str(Path(place).resolve()), "name": name, "sha256": digest})
    return kept


def reward_specs(kept: Sequence[Mapping[str, str]]) -> list[str]:
    """The ``FILE:NAME`` specs of a run that goes on.

    Raises:
        QAgentError: a file is gone, has changed, or was never named by this user.
    """
    for one in kept:
        path = Path(one["file"])
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != one["sha256"]:
            raise QAgentError(
                f"the reward file {path} is gone or has changed since the run began, so it cannot "
                "go on exactly; put it back, or give --reward again to go on with the new one"
            )
        trusted_code.require(path, "the run's reward", f"give --reward {path}:{one['name']} again")
    return [f"{one['file']}:{one['name']}" for one in kept]
