"""Read and write a policy's folder: its description and its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import QAgentError
from ..models.download import relocated
from ..models.fingerprint import ADAPTER, MODEL, fingerprint, fingerprint_files
from ..models.loading import load_model_folder, quantize, set_precision
from ..protocol.actions import PROTOCOL_VERSION
from ..protocol.codec import AnyCodec, ShopCodec, load_codec
from ..protocol.config import AgentConfig
from ..shop.policy_folders import (
    all_versions,
    parse_reference,
    policies_of,
    reference_of,
    version_folders,
)
from ..utils.atomic_files import finish_replacement, read_json, unfinished_replacements
from ..utils.settings import merge
from . import calibration
from .adapters import load_adapter
from .agreement import check_agreement
from .lora import LoraConfig
from .policy import Policy, PolicyInfo

# In a ready-made vocabulary a tag is several tokens, and so is a word of a shop's language.
CHAT_AGENT = AgentConfig(turn_tokens=40, profile_budget=192, writes=True)


def read_info(folder: Path, path: Path | None = None) -> PolicyInfo | None:
    """The ``policy.json`` of a folder (or ``path`` in its stead); None for a plain model folder.

    Raises:
        QAgentError: it is damaged, or the policy was trained for another protocol.
    """
    path = path or folder / "policy.json"
    if not path.exists():
        return None
    values = read_json(path, f"the policy {reference_of(folder)}")
    try:
        info = merge(PolicyInfo(name=""), values)
        if not {"name", "agent"} <= values.keys():
            raise QAgentError("name or agent is missing")
    except QAgentError as error:
        raise QAgentError(f"{path} is damaged ({error}); train the policy again") from error
    if info.protocol != PROTOCOL_VERSION:
        raise QAgentError(
            f"the policy {reference_of(folder)} was trained for protocol "
            f"{str(info.protocol)[:20]}, this program speaks {PROTOCOL_VERSION}; train it again "
            "with qagent train"
        )
    return info


def base_of(folder: Path, info: PolicyInfo) -> Path:
    """The folder of the model that a policy's adapter belongs to.

    A shop may have come from another machine, a package may move and a policy may be renamed: then
    it is the policy beside it, the shipped or a pulled model with the same weights. Files of
    before policies had versions name no version: it is the one with the same weights.

    Raises:
        QAgentError: it is not on this machine.
    """
    base = Path(info.base)
    versions = _policies_beside(folder)
    if base.is_absolute():
        places = [base, *version_folders(base.parent, base.name).values()]
        named = [place for place in places if _has_model(place)]
        others = [*relocated(base), *versions.values()]
    else:
        named = [p for ref, p in versions.items() if info.base in (ref, parse_reference(ref)[0])]
        others = [*versions.values(), *relocated(base)]
    if info.base_fingerprint:
        for place in (*named, *others):
            if place != folder and fingerprint(place) == info.base_fingerprint:
                return place
    if named:
        return named[0]  # not the one that it was trained on, which `load_policy` says
    raise QAgentError(
        f"the policy {reference_of(folder)} needs its base model {base}, which is gone; put it "
        "back, pull it (qagent models pull), or train the policy again"
    )


def _policies_beside(folder: Path) -> dict[str, Path]:
    """All policies of a folder's shop by reference; outside of shops those in the same folder."""
    if policies := policies_of(folder):
        return all_versions(policies)
    return {path.parent.name: path.parent for path in sorted(folder.parent.glob("*/policy.json"))}


def _has_model(folder: Path) -> bool:
    return (folder / "policy.json").exists() or (folder / "config.json").exists()


def require_base(folder: Path, info: PolicyInfo) -> Path:
    """The folder below a policy's adapter, with the very weights that it was trained on.

    Raises:
        QAgentError: there is none.
    """
    base = base_of(folder, info)
    if info.base_fingerprint and fingerprint(base) != info.base_fingerprint:
        raise QAgentError(
            f"the policy {reference_of(folder)} was trained on another version of "
            f"{reference_of(base)}, which was overwritten since; train it again"
        )
    return base


def base_folder(folder: Path) -> Path:
    """The model folder below a policy's adapters.

    Raises:
        QAgentError: a policy names no base, or it is not on this machine.
    """
    while not (folder / "config.json").exists():
        info = read_info(folder)
        if info is None or not info.base:
            raise QAgentError(
                f"the policy {reference_of(folder)} names no base model; train it again"
            )
        folder = base_of(folder, info)
    return folder


def check_policy(folder: Path) -> None:
    """Check that a policy can be opened, without loading its weights.

    Raises:
        QAgentError: files are missing or do not belong together, the policy was trained for
            another protocol, or something below it is gone or was overwritten.
    """
    info = read_info(folder)
    if info is not None and info.weights and not _has_weights_of(folder, info):
        info = _complete_save(folder)
    if info is not None and (folder / ADAPTER).exists():
        check_policy(require_base(folder, info))
    elif not (folder / "config.json").exists() or not [*folder.glob("model*.safetensors")]:
        raise QAgentError(f"the policy {reference_of(folder)} has lost its weights; train it again")


def load_policy(folder: Path, dtype: str = "") -> Policy:
    """A policy from its folder: an adapter with its base, a whole policy, or a plain model.

    Raises:
        QAgentError: files are missing, damaged, or the base is not the one it was trained on.
    """
    info = read_info(folder)
    if info is not None and info.weights and not _has_weights_of(folder, info):
        info = _complete_save(folder)
    dtype = dtype or (info.dtype if info else "")
    if not (folder / ADAPTER).exists():
        model, codec = load_model_folder(folder, dtype)
        policy = Policy(model, codec, info or fresh_info(folder.name, codec), folder)
        check_agreement(policy, folder)
        policy.calibration = calibration.read(folder)
        return policy
    if info is None:
        raise QAgentError(f"{folder} has an adapter but no policy.json; train the policy again")
    base = require_base(folder, info)
    # An adapter belongs to the weights that it was trained on, rounded as they were.
    below = load_merged(base, info.dtype or dtype)
    if info.dtype and dtype != info.dtype:
        below.model = set_precision(below.model, dtype)
    policy = Policy(below.model, below.codec, info, folder)
    policy.calibration = calibration.read(folder)
    config = read_json(folder / "adapter_config.json", f"the policy {info.name}")
    try:
        parameters = {**config["lora_parameters"], "blocks": config["num_layers"]}
        policy.add_lora(merge(LoraConfig(), parameters))
        weights: Any = mx.load(str(folder / ADAPTER))
    except (
        QAgentError,
        KeyError,
        TypeError,
        RuntimeError,
        ValueError,
        ArithmeticError,
        AttributeError,
    ) as error:
        raise QAgentError(f"the adapter in {folder} is damaged ({error}); train again") from error
    load_adapter(policy.model, weights, str(folder))
    return policy


def load_merged(folder: Path, dtype: str = "") -> Policy:
    """A policy with its adapters made part of its weights: what a new adapter is put on.

    Args:
        folder: See `load_policy`.
        dtype: A precision. Weights are rounded to 4 bits after the adapters were added, once.
    """
    rounded = dtype == "4bit" and (folder / ADAPTER).exists()
    policy = load_policy(folder, "" if rounded else dtype)
    policy.merge_lora()
    if rounded:
        policy.model = quantize(policy.model)
    return policy


def _has_weights_of(folder: Path, info: PolicyInfo) -> bool:
    """Whether the folder's weights are those that a ``policy.json`` was written for."""
    name = ADAPTER if (folder / ADAPTER).exists() else MODEL
    return (folder / name).exists() and fingerprint_files({name: folder / name}) == info.weights


def _complete_save(folder: Path) -> PolicyInfo:
    """Complete a save that a kill stopped between its renames; returns its ``policy.json``."""
    for temporaries in unfinished_replacements(folder / "policy.json"):
        path = next(p for p in temporaries if p.name.endswith("-policy.json"))
        try:
            info = read_info(folder, path)
            if info is not None and _has_weights_of(folder, info):
                finish_replacement(temporaries)
                return info
        except (QAgentError, OSError, ValueError):
            continue  # torn, or in a folder that cannot be written
    raise QAgentError(
        f"the weights in {folder} are not what its policy.json was written for: the file was "
        "changed; resume its training run, or train the policy again"
    )


def fresh_info(name: str, codec: AnyCodec) -> PolicyInfo:
    """What a model folder without ``policy.json`` starts with."""
    return PolicyInfo(name, agent=AgentConfig() if isinstance(codec, ShopCodec) else CHAT_AGENT)


def agent_below(folder: Path) -> AgentConfig:
    """How a policy's or a plain model folder's chains run, without loading its weights."""
    info = read_info(folder)
    return info.agent if info else fresh_info(folder.name, load_codec(folder)).agent
