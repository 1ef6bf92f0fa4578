"""Checkpoints: weights, optimizer state and step, written so that a crash tears nothing.

Random numbers and the order of the data are functions of the seed and the step, so these
three are all that a run needs to go on exactly. A checkpoint at which the policy was evaluated
also holds the value, and the best one is kept beside the last ones.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import QAgentError
from ..policy.adapters import load_adapter
from ..policy.policy import Policy
from ..utils.atomic_files import read_json, replacing_folder, write_json


def save(
    folder: Path,
    step: int,
    policy: Policy,
    optimizer: optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write ``folder/step-NNNNNN``; delete all but the last ``keep`` and the best checkpoint.

    The policy's adapter, the optimizer's state and ``state`` are written, in which a ``value``
    makes this checkpoint a candidate for the best. If that fails, the older ones stay.
    """
    place = folder / f"step-{step:06d}"
    if (place / "state.json").exists():
        return place  # a run is a function of its seed: the same step has the same weights
    try:
        with replacing_folder(place) as working:
            _write_arrays(working / "adapters.safetensors", policy.adapter())
            _write_arrays(working / "optimizer.safetensors", dict(tree_flatten(optimizer.state)))
            write_json(working / "state.json", {"step": step, **state})
    except (OSError, RuntimeError) as error:
        raise QAgentError(
            f"cannot write the checkpoint {place}: {error}; earlier checkpoints are intact: "
            "free some space, then resume the run"
        ) from error
    best_place = best(folder)
    for old in saved(folder)[: -max(1, keep)]:
        if old != best_place:
            # Renamed first: a kill in the middle leaves nothing that looks like a checkpoint.
            gone = old.rename(old.with_name(f".{old.name}.writing-"))
            shutil.rmtree(gone, ignore_errors=True)
    return place


def _write_arrays(path: Path, arrays: dict[str, mx.array]) -> None:
    mx.save_safetensors(str(path), arrays)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; half-written ones are none."""
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").exists())


def best(folder: Path) -> Path | None:
    """The checkpoint with the highest ``value``, the earliest of equals; None without any."""
    values = [(_state(place).get("value"), place) for place in saved(folder)]
    rated = [(float(value), place) for value, place in values if value is not None]
    return max(rated, key=lambda item: item[0])[1] if rated else None


def clear(folder: Path) -> None:
    """Remove what killed writers left behind."""
    for left in folder.glob(".*writing*"):
        shutil.rmtree(left, ignore_errors=True)


def restore_weights(place: Path, policy: Policy) -> None:
    """Put one checkpoint's adapter in place."""
    with _readable(place):
        weights: Any = mx.load(str(place / "adapters.safetensors"))
        load_adapter(policy.model, weights, str(place))


def restore(folder: Path, policy: Policy, optimizer: optim.Optimizer) -> dict[str, Any] | None:
    """Put the last checkpoint's weights and optimizer state in place; its state, or None."""
    checkpoints = saved(folder)
    if not checkpoints:
        return None
    place = checkpoints[-1]
    restore_weights(place, policy)
    with _readable(place):
        stored: Any = mx.load(str(place / "optimizer.safetensors"))
        optimizer.init(policy.model.trainable_parameters())
        optimizer.state = tree_unflatten(list(stored.items()))
        mx.eval(optimizer.state)
    return _state(place)


def _state(place: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_json(place / "state.json", f"the checkpoint {place}")
    return state


@contextmanager
def _readable(place: Path) -> Iterator[None]:
    """Name the checkpoint in the error when its files cannot be read."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise QAgentError(
            f"the checkpoint {place} is damaged ({error}); delete it to go on from the one before"
        ) from error


def identity(state: dict[str, Any], policy: Policy) -> str:
    """Identifies what `restore` put in place: the step and every weight of the adapter."""
    digest = hashlib.sha256(str(state.get("step")).encode())
    for name, weight in sorted(policy.adapter().items()):
        digest.update(name.encode())
        digest.update(np.array(weight.astype(mx.float32)).tobytes())
    return digest.hexdigest()
