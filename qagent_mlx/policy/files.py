"""Read and write a policy's folder: its description and its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from ..errors import QAgentError
from ..models.download import relocated
from ..models.fingerprint import ADAPTER, MODEL, _fingerprint, fingerprint
from ..models.load import load_model_folder
from ..protocol.actions import PROTOCOL_VERSION
from ..protocol.codec import AnyCodec, ShopCodec, load_codec
from ..protocol.config import AgentConfig
from ..utils.atomic_files import finish_replacement, read_json, unfinished_replacements
from ..utils.settings import merge
from .lora import LoraConfig
from .policy import CHAT_PROFILE_BUDGET, CHAT_TURN_TOKENS, Policy, PolicyInfo


def read_info(folder: Path, path: Path | None = None) -> PolicyInfo | None:
    """The ``policy.json`` of a folder (or ``path`` in its stead); None for a plain model folder.

    Raises:
        QAgentError: it is damaged, or the policy speaks another protocol.
    """
    path = path or folder / "policy.json"
    if not path.exists():
        return None
    values = read_json(path, f"the policy {folder.name}")
    try:
        agent = merge(AgentConfig(), values.pop("agent"), "agent")
        info = PolicyInfo(agent=agent, **values)
        for name in ("name", "base", "base_fingerprint", "dtype", "weights"):
            if not isinstance(getattr(info, name), str):
                raise TypeError(f"{name} is no text")
        if not isinstance(info.trained, list) or not all(isinstance(t, dict) for t in info.trained):
            raise TypeError("trained is no list of stages")
        if not all(isinstance(section, str) for section in info.agent.sections):
            raise TypeError("agent: sections are no names")
        info.agent.check()
    except (TypeError, KeyError, AttributeError, QAgentError) as error:
        raise QAgentError(f"{path} is damaged ({error}); train the policy again") from error
    if info.protocol != PROTOCOL_VERSION:
        raise QAgentError(
            f"the policy {folder.name} was trained for protocol {str(info.protocol)[:20]}, this "
            f"program speaks {PROTOCOL_VERSION}; train it again with qagent train"
        )
    return info


def base_of(folder: Path, info: PolicyInfo) -> Path:
    """The folder of the model that a policy's adapter belongs to.

    A shop may have come from another machine, a package may move and a policy may be renamed: then
    it is the policy beside it, the shipped or a pulled model with the same weights.

    Raises:
        QAgentError: it is not on this machine.
    """
    base = Path(info.base)
    if not base.is_absolute():
        base = folder.parent / base
    if base.exists():
        return base
    beside = sorted(p.parent for p in folder.parent.glob("*/policy.json") if p.parent != folder)
    for place in (*(beside if base.parent == folder.parent else ()), *relocated(base)):
        if info.base_fingerprint and fingerprint(place) == info.base_fingerprint:
            return place
    raise QAgentError(
        f"the policy {info.name} needs its base model {base}, which is gone; put it back, pull "
        "it (qagent models pull), or train the policy again"
    )


def load_policy(folder: Path, dtype: str = "") -> Policy:
    """A policy from its folder: an adapter with its base, a whole policy, or a plain model.

    Raises:
        QAgentError: files are missing, damaged, or the base is not the one it was trained on.
    """
    info = read_info(folder)
    if info is not None and info.weights and not _known(folder, info):
        info = _ended(folder)
    dtype = dtype or (info.dtype if info else "")
    if not (folder / ADAPTER).exists():
        model, codec = load_model_folder(folder, dtype)
        return Policy(model, codec, info or fresh_info(folder.name, codec), folder)
    if info is None:
        raise QAgentError(f"{folder} has an adapter but no policy.json; train the policy again")
    base = base_of(folder, info)
    if info.base_fingerprint and fingerprint(base) != info.base_fingerprint:
        raise QAgentError(
            f"the policy {info.name} was trained on another version of {base.name}; train it again"
        )
    # The base may itself be a policy with an adapter; it becomes part of the weights.
    below = load_policy(base, dtype)
    merge_adapters(below)
    policy = Policy(below.model, below.codec, info, folder)
    config = read_json(folder / "adapter_config.json", f"the policy {info.name}")
    try:
        parameters = config["lora_parameters"]
        policy.add_lora(
            LoraConfig(
                rank=parameters["rank"],
                scale=parameters["scale"],
                dropout=parameters.get("dropout", 0.0),
                blocks=config["num_layers"],
                keys=tuple(parameters.get("keys", ())),
            )
        )
        stored: Any = mx.load(str(folder / ADAPTER))
    except (
        KeyError,
        TypeError,
        RuntimeError,
        ValueError,
        ArithmeticError,
        AttributeError,
    ) as error:
        raise QAgentError(f"the adapter in {folder} is damaged ({error}); train again") from error
    load_adapter(policy, stored, str(folder))
    return policy


def _known(folder: Path, info: PolicyInfo) -> bool:
    """Whether the weights are those that a ``policy.json`` was written for."""
    name = ADAPTER if (folder / ADAPTER).exists() else MODEL
    return (folder / name).exists() and _fingerprint([(name, folder / name)]) == info.weights


def _ended(folder: Path) -> PolicyInfo:
    """Ends a save that a kill stopped between its renames, and gives the policy's new record."""
    for temporaries in unfinished_replacements(folder / "policy.json"):
        stored = next(p for p in temporaries if p.name.endswith("-policy.json"))
        try:
            info = read_info(folder, stored)
            if info is not None and _known(folder, info):
                finish_replacement(temporaries)
                return info
        except (QAgentError, OSError, ValueError):
            continue  # torn, or in a folder that cannot be written
    raise QAgentError(
        f"the weights in {folder} are not what its policy.json was written for: the file was "
        "changed; go on with its run (qagent train sft|grpo --resume), or train the policy again"
    )


def fresh_info(name: str, codec: AnyCodec) -> PolicyInfo:
    """What a model folder without ``policy.json`` starts with."""
    if isinstance(codec, ShopCodec):
        return PolicyInfo(name=name)
    # In a ready-made vocabulary a tag is several tokens, and so is a word of a shop's language.
    agent = AgentConfig(turn_tokens=CHAT_TURN_TOKENS, profile_budget=CHAT_PROFILE_BUDGET)
    return PolicyInfo(name=name, agent=agent)


def agent_below(folder: Path) -> AgentConfig:
    """How a policy's or a plain model folder's chains run, without loading its weights."""
    info = read_info(folder)
    return info.agent if info else fresh_info(folder.name, load_codec(folder)).agent


def merge_adapters(policy: Policy) -> None:
    """Add the adapters to the weights that they belong to; the model computes the same.

    Quantised layers with an adapter come out unquantised: rounding the sum again would make
    another model than the one that was trained.
    """
    adapted = [(n, m) for n, m in policy.model.named_modules() if hasattr(m, "lora_a")]
    fused = [(n, m.fuse(dequantize=True)) for n, m in adapted]
    if fused:
        policy.model.update_modules(tree_unflatten(fused))
        mx.eval(policy.model.parameters())
    policy.lora = None


def load_adapter(policy: Policy, weights: dict[str, mx.array], where: str) -> None:
    """Put stored adapter weights in place; every name and shape must fit.

    Raises:
        QAgentError: the weights belong to another model, listing what does not fit.
    """
    own = policy.adapter()
    wrong = sorted(set(own) ^ set(weights))
    wrong += [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if wrong:
        raise QAgentError(
            f"{where}: the adapter does not fit the model ({len(wrong)} tensors, first "
            f"{wrong[0]}); train it again on this base"
        )
    policy.model.load_weights(list(weights.items()), strict=False)
    mx.eval(policy.model.parameters())
