"""Policies and base models by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from ..errors import QAgentError
from ..models.download import cached, sample_folder
from ..models.fingerprint import fingerprint
from ..models.known_models import KNOWN_MODELS
from ..shop.shop import Shop
from ..utils.settings import SettingError
from .files import load_policy
from .lora import LoraConfig
from .policy import Policy

SAMPLE = "sample"  # the small base model that is shipped for the sample shop
SHIPPED = (SAMPLE, "tiny")  # its names


def resolve(shop: Shop | None, name: str) -> Path:
    """The folder of a policy: one of the shop, the shipped one, a model folder, a pulled model.

    Raises:
        QAgentError: nothing of that name exists; says which names do.
    """
    if shop is not None and "/" not in name and name not in (".", ".."):
        folder = shop.path / "policies" / name
        if (folder / "policy.json").exists():
            return folder
    if name in SHIPPED and (sample_folder() / "policy.json").exists():
        return sample_folder()
    path = Path(name).expanduser()
    if (path / "config.json").exists() or (path / "policy.json").exists():
        return path.resolve()
    if pulled := cached(name):
        return pulled
    if name in KNOWN_MODELS:
        raise QAgentError(f"the model {name} is not here yet; run: qagent models pull {name}")
    shipped = [SAMPLE] if (sample_folder() / "policy.json").exists() else []
    known = ", ".join([*(policy_names(shop) if shop else []), *shipped]) or "none yet"
    raise QAgentError(
        f"there is no policy {name}; known are {known}, or give an mlx-lm model folder, or the "
        "name of a model that you pulled (qagent models list)"
    )


def policy_names(shop: Shop) -> list[str]:
    """The shop's policies, oldest first."""
    folder = shop.path / "policies"
    return [n for n in shop.names("policies") if (folder / n / "policy.json").exists()]


def default_policy(shop: Shop, *preferred: str) -> str:
    """The first preferred policy that exists; else the shop's newest one, else the sample's."""
    names = policy_names(shop)
    return next((name for name in preferred if name in names), names[-1] if names else SAMPLE)


def open_policy(shop: Shop | None, name: str, dtype: str = "") -> Policy:
    """Load a policy by name."""
    return load_policy(resolve(shop, name), dtype)


def derive(
    shop: Shop, parent: str, name: str, lora: LoraConfig, seed: int = 0, dtype: str = ""
) -> Policy:
    """A new trainable policy on top of another.

    The parent's adapters are merged into the weights, so with the new adapter switched off
    the model *is* the parent: that is the reference, and there is no second copy.

    Args:
        shop: Where the new policy belongs.
        parent: The policy it starts from, see `resolve`.
        name: The new policy's name.
        lora: The new adapter.
        seed: Of the adapter's first values.
        dtype: The precision of the frozen weights; by default the adapter's or the parent's.

    Raises:
        SettingError: the new policy would overwrite its parent.
    """
    folder = resolve(shop, parent)
    if folder == shop.folder("policies", name):
        raise SettingError("name", f"{name} would overwrite the policy it starts from")
    dtype = dtype or lora.dtype
    policy = load_policy(folder, dtype)
    policy.merge_lora()
    beside = folder.parent == shop.path / "policies"
    policy.info = replace(
        policy.info,
        name=name,
        base=folder.name if beside else str(folder),
        base_fingerprint=fingerprint(folder),
        dtype=dtype or policy.info.dtype,
    )
    mx.random.seed(seed)
    policy.add_lora(lora)
    policy.folder = shop.folder("policies", name)
    return policy
