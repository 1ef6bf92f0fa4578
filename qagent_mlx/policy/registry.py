"""Policies and base models by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import QAgentError
from ..models.download import SHIPPED, cached, shipped_folder
from ..models.fingerprint import fingerprint
from ..models.known_models import KNOWN_MODELS
from ..shop.policy_folders import (
    all_versions,
    parse_reference,
    policies_of,
    reference_of,
    release,
    reserve,
    save_version,
    version_folders,
)
from ..shop.shop import Shop, check_name
from .agreement import make_trainable
from .files import load_merged, load_policy, read_info
from .lora import LoraConfig
from .policy import Policy, PolicyInfo
from .promotions import promoted

SAMPLE = "sample"  # the small base model that is shipped for the sample shop
WRITER = "writer"  # the shipped policy that writes queries in the sample shop without its log
SHIPPED_POLICIES = (SAMPLE, WRITER)
PROMOTED = "promoted"  # names the promoted policy, in a shop that has none of that name


def resolve(shop: Shop | None, name: str) -> Path:
    """The folder of a policy: one of the shop, the shipped one, a model folder, a pulled model.

    ``sft`` is the newest version of sft, ``sft@2`` a certain one, and `PROMOTED` the promoted one.

    Raises:
        QAgentError: nothing of that name exists; says which names do.
    """
    if shop is not None and "/" not in name and name not in (".", ".."):
        if folder := _shop_version(shop, name):
            return folder
        if name == PROMOTED:
            return resolve(shop, serving_policy(shop))
    if name in SHIPPED and (shipped_folder(name) / "policy.json").exists():
        return shipped_folder(name)
    path = Path(name).expanduser()
    if (path / "config.json").exists() or (path / "policy.json").exists():
        return path.resolve()
    if pulled := cached(name):
        return pulled
    if name in KNOWN_MODELS:
        raise QAgentError(f"the model {name} is not here yet; run: qagent models pull {name}")
    shipped = [n for n in SHIPPED_POLICIES if (shipped_folder(n) / "policy.json").exists()]
    known = ", ".join([*(policy_names(shop) if shop else []), *shipped]) or "none yet"
    raise QAgentError(
        f"there is no policy {name}; known are {known}, or give an mlx-lm model folder, or the "
        "name of a model that you pulled (qagent models list)"
    )


def _shop_version(shop: Shop, name: str) -> Path | None:
    """The folder of a version of the shop's; None where it has none of that name.

    Raises:
        QAgentError: there is the name, but not that version.
    """
    name, number = parse_reference(name)
    versions = version_folders(shop.path / "policies", name)
    if not versions:
        return None
    if number is None:
        return versions[max(versions)]
    if number not in versions:
        there = ", ".join(f"{name}@{n}" for n in versions)
        raise QAgentError(f"there is no policy {name}@{number}; its versions are {there}")
    return versions[number]


def lasting_name(shop: Shop, name: str) -> str:
    """What leads to the same policy for ever: ``NAME@N``, a model's name, or an absolute path."""
    folder = resolve(shop, name)
    if _is_of(shop, folder):
        return reference_of(folder)
    return str(folder) if folder == Path(name).expanduser().resolve() else name


def _is_of(shop: Shop, folder: Path) -> bool:
    policies = policies_of(folder)
    return policies is not None and policies.samefile(shop.path / "policies")


def policy_names(shop: Shop) -> list[str]:
    """The names of the shop's policies; the one that was saved last comes last."""
    names = [parse_reference(reference)[0] for reference in by_age(shop)]
    return [*dict.fromkeys(names[::-1])][::-1]


def by_age(shop: Shop) -> dict[str, Path]:
    """``NAME@N`` -> folder of every version of the shop's policies, oldest first."""
    versions = all_versions(shop.path / "policies").items()
    return dict(sorted(versions, key=lambda item: (created_at(item[1]), parse_reference(item[0]))))


def created_at(folder: Path) -> datetime:
    """When a policy was saved; its file's time where it says nothing of it, or is damaged."""
    path = folder / "policy.json"
    try:
        info = read_info(folder)
        if info is not None and info.created:
            return datetime.fromisoformat(info.created).astimezone(timezone.utc)
    except (QAgentError, ValueError):
        pass  # `policies.check` says what is wrong with it
    with suppress(OSError):
        return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    return datetime.fromtimestamp(0, timezone.utc)


def serving_policy(shop: Shop) -> str:
    """The policy that is used where nobody names one, as ``NAME@N``: the promoted one.

    Where none is promoted, the newest version of grpo; without one the newest policy; and in a
    shop without policies the sample's.
    """
    if policy := promoted(shop):
        return policy
    names = policy_names(shop)
    return lasting_name(shop, "grpo" if "grpo" in names else names[-1] if names else SAMPLE)


def pretrained_policy(shop: Shop) -> str:
    """What SFT starts from: the newest base that was trained from nothing, else the sample's."""
    return _newest(shop, lambda info: not info.base and _last_stage(info) in ("pretrain", ""))


def cold_started_policy(shop: Shop) -> str:
    """What GRPO starts from: the promoted policy, else SFT's newest, else what SFT starts from."""
    sft = _newest(shop, lambda info: _last_stage(info) == "sft")
    return promoted(shop) or (sft if sft != SAMPLE else pretrained_policy(shop))


def _newest(shop: Shop, fits: Callable[[PolicyInfo], bool]) -> str:
    """The version that was saved last of those that fit, else the sample's policy."""
    for reference, folder in reversed(by_age(shop).items()):
        with suppress(QAgentError):  # damaged, or for another protocol
            info = read_info(folder)
            if info is not None and fits(info):
                return reference
    return SAMPLE


def _last_stage(info: PolicyInfo) -> str:
    return str(info.trained[-1].get("stage", "")) if info.trained else ""


def open_policy(shop: Shop | None, name: str, dtype: str = "") -> Policy:
    """Load a policy by name."""
    folder = resolve(shop, name)
    try:
        return load_policy(folder, dtype)
    except QAgentError:
        if resolve(shop, name) == folder:
            raise
    return open_policy(shop, name, dtype)  # another process moved it into a version just now


def save_next(shop: Shop, policy: Policy, write: Callable[[Path], Any] | None = None) -> int:
    """Save a policy as the next version of its name; returns the version's number.

    Args:
        shop: Where it belongs.
        policy: To be saved.
        write: Writes its files into a folder; `Policy.save` by default.
    """
    policies, info = shop.path / "policies", policy.info
    base = info.base if parse_reference(info.base)[1] else ""
    reservation = reserve(policies, info.name, base)
    try:
        reservation = save_version(policies, reservation, write or policy.save)
    except BaseException:
        release(policies, reservation)
        raise
    policy.folder = policies / info.name / str(reservation.number)
    return reservation.number


def derive(
    shop: Shop | None, parent: str, name: str, lora: LoraConfig, seed: int = 0, dtype: str = ""
) -> Policy:
    """A new trainable policy on top of another.

    The parent's adapters are merged into the weights, so with the new adapter switched off
    the model *is* the parent: that is the reference, and there is no second copy.

    Args:
        shop: Where the new policy belongs; None for one that belongs to no shop.
        parent: The policy it starts from, see `resolve`.
        name: The new policy's name; it is saved as the next version of that.
        lora: The new adapter.
        seed: Of the adapter's first values.
        dtype: The precision of the frozen weights; by default the adapter's or the parent's.
    """
    check_name(name, "policy")
    folder = resolve(shop, parent)
    info = read_info(folder)
    dtype = dtype or lora.dtype or (info.dtype if info else "")
    policy = load_merged(folder, dtype)
    base = reference_of(folder) if shop and _is_of(shop, folder) else str(folder)
    policy.info = replace(
        policy.info, name=name, base=base, base_fingerprint=fingerprint(folder), dtype=dtype
    )
    mx.random.seed(seed)
    make_trainable(policy, lora)
    policy.folder = policy.calibration = None
    return policy
