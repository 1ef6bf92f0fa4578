"""Checkpoints: weights, optimizer state and step, written so that a crash tears nothing.

Random numbers and the order of the data are functions of the seed and the step, so these
three are all that a run needs to go on exactly. A checkpoint at which the policy was evaluated
also holds the value, and the best one is kept beside the last ones.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import QAgentError
from ..policy.files import load_adapter
from ..policy.policy import Policy
from ..utils.atomic_files import read_json, sync_folder, write_json


def save(
    folder: Path,
    step: int,
    policy: Policy,
    optimizer: optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write ``folder/step-NNNNNN``; delete all but the last ``keep`` and the best checkpoint.

    Args:
        folder: The run's checkpoints.
        step: How many steps were done.
        policy: Its adapter is written.
        optimizer: Its state is written.
        state: What else to keep; ``value`` makes this one a candidate for the best.
        keep: How many of the last ones remain, at least 1.

    Raises:
        QAgentError: the disk is full or the folder cannot be written; older ones stay.
    """
    place = folder / f"step-{step:06d}"
    if (place / "state.json").exists():
        return place  # a run is a function of its seed: the same step has the same weights
    working: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=folder, prefix=".writing."))
        mx.save_safetensors(str(working / "adapters.safetensors"), policy.adapter())
        mx.save_safetensors(
            str(working / "optimizer.safetensors"), dict(tree_flatten(optimizer.state))
        )
        for name in ("adapters", "optimizer"):
            with (working / f"{name}.safetensors").open("rb") as file:
                os.fsync(file.fileno())
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
    found = saved(folder)
    top = best(folder)
    for old in found[: -max(1, keep)]:
        if old != top:
            # Renamed first: a kill in the middle leaves nothing that looks like a checkpoint.
            gone = old.rename(old.with_name(f".writing.{old.name}"))
            shutil.rmtree(gone, ignore_errors=True)
    return place


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first. Half-written ones are no checkpoints."""
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").exists())


def best(folder: Path) -> Path | None:
    """The checkpoint with the highest ``value``, the earliest of equals; None without any."""
    values = [
        (float(state["value"]), place)
        for place in saved(folder)
        if (state := read_json(place / "state.json", f"the checkpoint {place}")).get("value")
        is not None
    ]
    return max(values, key=lambda item: item[0])[1] if values else None


def clear(folder: Path) -> None:
    """Remove what killed writers left behind."""
    for left in folder.glob(".writing.*"):
        shutil.rmtree(left, ignore_errors=True)


def restore_weights(place: Path, policy: Policy) -> None:
    """Put one checkpoint's adapter in place.

    Raises:
        QAgentError: the checkpoint does not fit the policy or is damaged.
    """
    try:
        weights: Any = mx.load(str(place / "adapters.safetensors"))
        load_adapter(policy, weights, str(place))
    except (RuntimeError, OSError, ValueError) as error:
        raise _damaged(place, error) from error


def _damaged(place: Path, error: BaseException) -> QAgentError:
    return QAgentError(
        f"the checkpoint {place} is damaged ({error}); delete it to go on from the one before"
    )


def restore(folder: Path, policy: Policy, optimizer: optim.Optimizer) -> dict[str, Any] | None:
    """Put the last checkpoint's weights and optimizer state in place; its state, or None.

    Raises:
        QAgentError: the checkpoint does not fit the policy or is damaged.
    """
    found = saved(folder)
    if not found:
        return None
    place = found[-1]
    restore_weights(place, policy)
    try:
        stored: Any = mx.load(str(place / "optimizer.safetensors"))
        optimizer.init(policy.model.trainable_parameters())
        optimizer.state = tree_unflatten(list(stored.items()))
        mx.eval(optimizer.state)
    except (RuntimeError, OSError, ValueError) as error:
        raise _damaged(place, error) from error
    state: dict[str, Any] = read_json(place / "state.json", f"the checkpoint {place}")
    return state


def identity(state: dict[str, Any] | None, policy: Policy) -> str:
    """Identifies what `restore` put in place: the step and every weight of the adapter."""
    made = hashlib.sha256(str(state and state["step"]).encode())
    for name, weight in sorted(policy.adapter().items()):
        made.update(name.encode())
        made.update(np.array(weight.astype(mx.float32)).tobytes())
    return made.hexdigest()
