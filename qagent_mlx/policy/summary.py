"""What is known of a policy or model without loading it: size, licence, memory, training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..models import backend
from ..models.download import cached, shipped_name
from ..models.known_models import KNOWN_MODELS, KnownModel, ModelShape
from ..models.model_size import memory_needed, shape_of, stored_size
from ..shop.policy_folders import parse_reference, reference_of
from ..shop.shop import Shop
from ..utils import runtime
from ..utils.atomic_files import read_json
from .files import base_folder
from .registry import resolve


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """Bytes to serve and to train a model on this machine, and whether that fits."""

    precision: str
    serving_bytes: int
    training_bytes: int
    memory_bytes: int
    serving_fits: bool
    training_fits: bool


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """A policy or model folder: its size and how it was trained."""

    name: str
    folder: str
    base: str
    megabytes: float
    trained: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model with a short name, pulled or not; ``folder`` is empty where it was not."""

    name: str
    kind: str
    parameters: int
    licence: str
    hub: str
    package: str
    folder: str
    memory: MemoryFit

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the memory's among them."""
        values = asdict(self)
        return values | values.pop("memory")


@dataclass(frozen=True, slots=True)
class PolicyDetails:
    """A policy's or model's summary, its base's architecture, and the memory it needs.

    Attributes:
        summary: The folder's.
        kind: ``policy``, ``embedding`` or ``reranker``.
        parameters: The number of the base's weights.
        licence: The base's; ``unknown`` where it states none.
        stored_bytes: The size of the base's files.
        architecture: Some values of the base's ``config.json``.
        training: Some values of ``policy.json``: protocol, agent, dtype.
        memory: What serving and training need here.
    """

    summary: PolicySummary
    kind: str
    parameters: int
    licence: str
    stored_bytes: int
    architecture: dict[str, Any]
    training: dict[str, Any]
    memory: MemoryFit

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, all on one level."""
        values = asdict(self)
        summary, memory = values.pop("summary"), values.pop("memory")
        architecture, training = values.pop("architecture"), values.pop("training")
        return {**summary, **values, **architecture, **training, **memory}


def describe(folder: Path) -> PolicySummary:
    """Summarise a policy or model folder, as ``qagent models list`` shows it."""
    info = _policy_json(folder)
    base = info.get("base", "")
    return PolicySummary(
        name=shipped_name(folder) or parse_reference(reference_of(folder))[0],
        folder=str(folder),
        base=shipped_name(base) or base,
        megabytes=round(sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6, 1),
        trained=[stage["stage"] for stage in info.get("trained", [])],
    )


def describe_model(model: KnownModel) -> ModelSummary:
    """Summarise a model that has a short name."""
    folder = cached(model.name)
    return ModelSummary(
        name=model.name,
        kind=model.kind,
        parameters=model.parameters,
        licence=model.licence,
        hub=model.hub,
        package=model.wheel.requirement if model.wheel else "",
        folder=str(folder) if folder else "",
        memory=memory_here(model.parameters, model.shape),
    )


def details(shop: Shop | None, name: str) -> PolicyDetails | ModelSummary:
    """What ``qagent models show`` tells: where it is, how large, its licence, its memory here.

    Args:
        shop: For the shop's own policies.
        name: Of a policy, a known model (pulled or not), or a model folder.
    """
    known = KNOWN_MODELS.get(name)
    if known is not None and cached(name) is None:
        return describe_model(known)
    folder = resolve(shop, name)
    base = base_folder(folder)
    config, info, size = _config_json(base), _policy_json(folder), stored_size(base)
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "quantization")
    return PolicyDetails(
        summary=describe(folder),
        kind=known.kind if known else "policy",
        parameters=size.parameters,
        licence=licence_of(base) or (known.licence if known else "unknown"),
        stored_bytes=size.bytes,
        architecture={key: config[key] for key in keys if key in config},
        training={key: info[key] for key in ("protocol", "agent", "dtype") if info.get(key)},
        memory=memory_here(size.parameters, shape_of(config), bool(config.get("quantization"))),
    )


def licence_of(folder: Path) -> str:
    """The licence that a model folder states; empty when it states none."""
    if (folder / "source.json").exists():
        return str(read_json(folder / "source.json", f"the model {folder}").get("licence", ""))
    return "Apache-2.0" if shipped_name(folder) else ""


def memory_here(parameters: int, shape: ModelShape, quantized: bool = False) -> MemoryFit:
    """Estimate what a model needs on this machine, in the precision that it would be loaded in."""
    cpu = backend.on_cpu()
    precision = "float32" if cpu else "4bit" if quantized else "bfloat16"
    weight_bytes = {"float32": 4.0, "4bit": 0.5625, "bfloat16": 2.0}[precision]
    needed = memory_needed(parameters, shape, weight_bytes, 4 if cpu else 2, checkpointed=cpu)
    memory = runtime.total_memory()
    usable = 0.9 * memory  # a tenth stays for the system and the shop
    return MemoryFit(
        precision=precision,
        serving_bytes=needed.serving,
        training_bytes=needed.training,
        memory_bytes=memory,
        serving_fits=needed.serving < usable,
        training_fits=needed.training < usable,
    )


def _policy_json(folder: Path) -> dict[str, Any]:
    path = folder / "policy.json"
    if not path.exists():
        return {}
    values: dict[str, Any] = read_json(path, f"the policy {reference_of(folder)}")
    return values


def _config_json(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = read_json(folder / "config.json", f"the model {folder}")
    return values
