"""Checkpoints: weights, optimizer state and step, written so that a crash tears nothing.

Random numbers and the order of the data are functions of the seed and the step, so these
three are all that a run needs to go on exactly.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import QAgentError
from ..files import read_json, sync_folder, write_json
from ..policy.model import Policy, load_adapter


def save(
    folder: Path,
    step: int,
    policy: Policy,
    optimizer: optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write ``folder/step-NNNNNN`` and delete all but the last ``keep`` checkpoints.

    Raises:
        QAgentError: the disk is full or the folder cannot be written; older ones stay.
    """
    place = folder / f"step-{step:06d}"
    working: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=folder, prefix=".writing."))
        mx.save_safetensors(str(working / "adapters.safetensors"), policy.adapter())
        mx.save_safetensors(
            str(working / "optimizer.safetensors"), dict(tree_flatten(optimizer.state))
        )
        write_json(working / "state.json", {"step": step, **state})
        shutil.rmtree(place, ignore_errors=True)
        working.rename(place)
        sync_folder(folder)
    except (OSError, RuntimeError) as error:
        raise QAgentError(
            f"cannot write the checkpoint {place}: {error}; earlier checkpoints are intact: "
            "free some space, then go on with --resume"
        ) from error
    finally:
        if working is not None:
            shutil.rmtree(working, ignore_errors=True)
    for old in saved(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first. Half-written ones are no checkpoints."""
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").exists())


def restore(folder: Path, policy: Policy, optimizer: optim.Optimizer) -> dict[str, Any] | None:
    """Put the last checkpoint's weights and optimizer state in place; its state, or None.

    Raises:
        QAgentError: the checkpoint does not fit the policy or is damaged.
    """
    found = saved(folder)
    if not found:
        return None
    place = found[-1]
    try:
        weights: Any = mx.load(str(place / "adapters.safetensors"))
        load_adapter(policy, weights, str(place))
        stored: Any = mx.load(str(place / "optimizer.safetensors"))
    except (RuntimeError, OSError, ValueError) as error:
        raise QAgentError(
            f"the checkpoint {place} is damaged ({error}); delete it to go on from the one before"
        ) from error
    optimizer.init(policy.model.trainable_parameters())
    optimizer.state = tree_unflatten(list(stored.items()))
    mx.eval(optimizer.state)
    state: dict[str, Any] = read_json(place / "state.json", f"the checkpoint {place}")
    return state
