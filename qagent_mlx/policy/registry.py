"""Policies and base models by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..models.download import cached, sample_folder
from ..models.fingerprint import fingerprint
from ..models.known_models import CATALOG, KnownModel, memory_needed, shape_of, stored_size
from ..shop.shop import Shop
from ..utils.atomic_files import read_json
from .files import base_of, load_policy, merge_adapters, read_info
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
    if found := cached(name):
        return found
    if name in CATALOG:
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


def default_policy(shop: Shop, *wanted: str) -> str:
    """The first of some policies that exists; else the shop's newest one, else the sample's."""
    names = policy_names(shop)
    for name in wanted:
        if name in names:
            return name
    return names[-1] if names else SAMPLE


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
    """What `qagent models list` tells of a policy or model folder."""
    info = (
        read_json(folder / "policy.json", "the policy") if (folder / "policy.json").exists() else {}
    )
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    return {
        "name": SAMPLE if folder == sample_folder() else folder.name,
        "folder": str(folder),
        "base": SAMPLE if (base := info.get("base", "")) == str(sample_folder()) else base,
        "megabytes": round(size / 1e6, 1),
        "trained": [stage["stage"] for stage in info.get("trained", [])],
    }


def describe_named(entry: KnownModel) -> dict[str, Any]:
    """What `qagent models list` tells of a model of the catalog."""
    folder = cached(entry.name)
    return {
        "name": entry.name,
        "kind": entry.kind,
        "parameters": entry.parameters,
        "licence": entry.licence,
        "hub": entry.hub,
        "package": entry.wheel.requirement if entry.wheel else "",
        "folder": str(folder) if folder else "",
        **memory_here(entry.parameters, entry, None),
    }


def details(shop: Shop | None, name: str) -> dict[str, Any]:
    """What `qagent models show` tells: where it is, how large, its licence, what it needs here.

    Args:
        shop: For the shop's own policies.
        name: Of a policy, a catalog entry (pulled or not), or a model folder.
    """
    entry = CATALOG.get(name)
    if entry is not None and cached(name) is None:
        return describe_named(entry)
    folder = resolve(shop, name)
    report: dict[str, Any] = describe(folder)
    policy = (
        read_json(folder / "policy.json", f"the policy {name}")
        if (folder / "policy.json").exists()
        else {}
    )
    base = base_folder(folder)
    config = read_json(base / "config.json", f"the model {base}")
    parameters, size = stored_size(base)
    report |= {
        "kind": entry.kind if entry else "policy",
        "parameters": parameters,
        "licence": licence_of(base) or (entry.licence if entry else "unknown"),
        "stored_bytes": size,
    }
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "quantization"):
        if key in config:
            report[key] = config[key]
    report |= {key: policy[key] for key in ("protocol", "agent", "dtype") if policy.get(key)}
    return report | memory_here(parameters, entry, config)


def base_folder(folder: Path) -> Path:
    """The model folder below a policy's adapters."""
    while not (folder / "config.json").exists():
        info = read_info(folder)
        if info is None or not info.base:
            raise QAgentError(f"the policy {folder.name} names no base model; train it again")
        folder = base_of(folder, info)
    return folder


def licence_of(folder: Path) -> str:
    """The licence that a model folder states; empty when it states none."""
    if (folder / "source.json").exists():
        return str(read_json(folder / "source.json", f"the model {folder}").get("licence", ""))
    if folder == sample_folder():
        return "Apache-2.0"
    return ""


def memory_here(parameters: int, entry: KnownModel | None, config: Any) -> dict[str, Any]:
    """Bytes to serve and to train a model on this machine, and whether that fits."""
    from ..utils.runtime import device_name, total_memory

    shape = shape_of(config) if config is not None else entry.shape if entry else None
    if shape is None:
        return {}
    cpu = device_name() == "cpu"
    quantized = not cpu and bool(config and config.get("quantization"))
    each = 4.0 if cpu else 0.5625 if quantized else 2.0
    needed = memory_needed(parameters, shape, each, 4 if cpu else 2, sparing=cpu)
    have = total_memory()
    return {
        "precision": "float32" if cpu else "4bit" if quantized else "bfloat16",
        "serving_bytes": needed.serving,
        "training_bytes": needed.training,
        "memory_bytes": have,
        # A tenth stays for the system and the shop.
        "serving_fits": needed.serving < 0.9 * have,
        "training_fits": needed.training < 0.9 * have,
    }
