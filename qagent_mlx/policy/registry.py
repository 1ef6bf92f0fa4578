"""Policies and base models by name."""

from __future__ import annotations

from pathlib import Path

from ..errors import QAgentError
from ..files import read_json
from ..shop import Shop
from .model import LoraConfig, Policy, fingerprint, load_policy, merge_adapters

SAMPLE = "sample"  # the small base model that is shipped for the sample shop


def sample_folder() -> Path:
    """Where the package keeps the sample shop's base model."""
    import qagent_sample  # type: ignore[import-not-found, unused-ignore]

    return Path(qagent_sample.__path__[0]) / "policy"


def resolve(shop: Shop | None, name: str) -> Path:
    """The folder of a policy: one of the shop, the shipped one, or any mlx-lm model folder.

    Raises:
        QAgentError: nothing of that name exists; says which names do.
    """
    if shop is not None and "/" not in name and name not in (".", ".."):
        folder = shop.path / "policies" / name
        if (folder / "policy.json").exists():
            return folder
    if name == SAMPLE and (sample_folder() / "policy.json").exists():
        return sample_folder()
    path = Path(name).expanduser()
    if (path / "config.json").exists() or (path / "policy.json").exists():
        return path.resolve()
    shipped = [SAMPLE] if (sample_folder() / "policy.json").exists() else []
    known = ", ".join([*(policy_names(shop) if shop else []), *shipped]) or "none yet"
    raise QAgentError(
        f"there is no policy {name}; known are {known}, or give an mlx-lm model folder"
    )


def policy_names(shop: Shop) -> list[str]:
    """The shop's policies, oldest first."""
    folder = shop.path / "policies"
    return [n for n in shop.names("policies") if (folder / n / "policy.json").exists()]


def open_policy(shop: Shop | None, name: str, dtype: str = "") -> Policy:
    """Load a policy by name."""
    return load_policy(resolve(shop, name), dtype)


def derive(
    shop: Shop, parent: str, name: str, lora: LoraConfig, seed: int = 0, dtype: str = ""
) -> Policy:
    """A new trainable policy on top of another.

    The parent's adapters are merged into the weights, so with the new adapter switched off
    the model *is* the parent: that is the reference, and there is no second copy.
    """
    folder = resolve(shop, parent)
    if folder == shop.folder("policies", name):
        raise QAgentError(
            f"--name {name} would overwrite the policy it starts from; choose another"
        )
    policy = load_policy(folder, dtype or lora.dtype)
    merge_adapters(policy)
    policy.info.dtype = dtype or lora.dtype or policy.info.dtype
    inside = folder.parent == shop.path / "policies"
    policy.info.name = name
    policy.info.base = folder.name if inside else str(folder)
    policy.info.base_fingerprint = fingerprint(folder)
    import mlx.core as mx

    mx.random.seed(seed)  # of the adapter's first values
    policy.add_lora(lora)
    policy.folder = shop.folder("policies", name)
    return policy


def describe(folder: Path) -> dict[str, object]:
    """What `qagent models show` tells of a policy or model folder."""
    info = read_json(folder / "policy.json", "the policy") if (
        folder / "policy.json"
    ).exists() else {}
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    return {
        "name": info.get("name", folder.name),
        "folder": str(folder),
        "base": info.get("base", ""),
        "megabytes": round(size / 1e6, 1),
        "trained": [stage["stage"] for stage in info.get("trained", [])],
    }
