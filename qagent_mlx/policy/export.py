"""A policy as one standalone mlx-lm folder: adapters fused, tokenizer and model card beside it."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import QAgentError
from ..utils.atomic_files import read_json, replacing_folder, write_json, write_with
from .files import load_policy, merge_adapters
from .policy import Policy
from .registry import base_folder, licence_of

# What belongs to a tokenizer; everything else is written anew.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def fuse(folder: Path, target: Path, dtype: str = "", overwrite: bool = False) -> dict[str, Any]:
    """Write a policy as a model folder of its own that mlx-lm loads and this package too.

    Args:
        folder: The policy's folder, see `registry.resolve`.
        target: The new folder; it takes its place only when all of it is written.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default what the base is stored
            in, bfloat16 when that is quantised. ``4bit`` quantises anew, which rounds.
        overwrite: Replace a folder that is there already.

    Returns:
        folder, parameters, bytes, dtype.

    Raises:
        QAgentError: the target exists or cannot be written, or the policy cannot be loaded.
    """
    if target.exists() and not overwrite:
        raise QAgentError(f"{target} exists; choose another folder or give --overwrite")
    base = base_folder(folder)
    if target.resolve() in (folder.resolve(), base.resolve()):
        raise QAgentError(f"{target} is the model itself; choose another folder")
    config = read_json(base / "config.json", f"the model {base}")
    wanted = dtype or _stored_type(base)
    # Sums are made in float32 and rounded once, at the end.
    policy = load_policy(folder, "float32")
    merge_adapters(policy)
    config = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    if wanted == "4bit":
        config |= _quantize(policy)
    else:
        policy.model.set_dtype(getattr(mx, wanted))
    weights = dict(tree_flatten(policy.model.parameters()))
    try:
        with replacing_folder(target) as made:
            write_with(
                made / "model.safetensors",
                lambda p: mx.save_safetensors(p, weights, metadata={"format": "mlx"}),
            )
            write_json(made / "config.json", config)
            for name in _TOKENIZER_FILES:
                if (base / name).exists():
                    shutil.copyfile(base / name, made / name)
            policy.info.base, policy.info.base_fingerprint, policy.info.dtype = "", "", ""
            policy.info.weights = ""
            write_json(made / "policy.json", asdict(policy.info))
            (made / "README.md").write_text(model_card(policy, base, wanted), encoding="utf-8")
    except OSError as error:
        raise QAgentError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose a "
            "folder you may write to"
        ) from error
    return {
        "folder": str(target),
        "parameters": policy.parameters,
        "bytes": sum(v.nbytes for v in weights.values()),
        "dtype": wanted,
    }


def _stored_type(base: Path) -> str:
    from ..models.known_models import read_header

    config = read_json(base / "config.json", f"the model {base}")
    if config.get("quantization"):
        return "bfloat16"
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    for path in sorted(base.glob("model*.safetensors")):
        for tensor in read_header(path).values():
            if tensor["dtype"] in names:
                return names[tensor["dtype"]]
    raise QAgentError(f"{base} has no model*.safetensors; pull the model again")


def _quantize(policy: Policy) -> dict[str, Any]:
    """Quantise the model in place; what that adds to ``config.json``."""
    from ..models.load import QLORA_GROUP, set_precision

    policy.model = set_precision(policy.model, "4bit")
    policy.model.set_dtype(mx.bfloat16)
    quantization = {"group_size": QLORA_GROUP, "bits": 4}
    return {"quantization": quantization, "quantization_config": quantization}


def model_card(policy: Policy, base: Path, dtype: str) -> str:
    """The README of an exported model: what it is, how it was made, how to run it."""
    info = policy.info
    licence = licence_of(base)
    origin = {}
    if (base / "source.json").exists():
        origin = read_json(base / "source.json", f"the model {base}")
    head = ["---", "library_name: mlx", "pipeline_tag: text-generation"]
    if licence:
        head.append(f"license: {licence.lower()}")
    if origin.get("hub"):
        head.append(f"base_model: {origin['hub']}")
    stages = [
        f"{number}. {stage.get('stage', 'trained')}, run {stage['run']}"
        if stage.get("run")
        else f"{number}. {stage.get('stage', 'trained')}"
        for number, stage in enumerate(info.trained, 1)
    ] or ["It was not trained any further."]
    config = [
        f"   {key}: {value}"
        for stage in info.trained[-1:]
        for key, value in stage.get("config", {}).items()
    ]
    return "\n".join(
        [
            *head,
            "tags: [query-recommendation, qagent-mlx]",
            "---",
            "",
            f"# {info.name}",
            "",
            "A query recommendation policy: it reads an abstraction of a shopper's memory,",
            "searches the shop's inventory, looks at what comes back, and recommends a query",
            "(QueryAgent-R1, arXiv:2606.05671). Made with qagent-mlx; adapters are fused.",
            "",
            f"- base model: {origin.get('hub') or base.name}",
            f"- parameters: {policy.parameters:,}, stored as {dtype}",
            f"- protocol: version {info.protocol}, at most {info.agent.max_searches} searches",
            f"- licence of the base: {licence or 'see the base model'}",
            "",
            "## How it was trained",
            "",
            *stages,
            *(["", "The last stage's settings:", "", *config] if config else []),
            "",
            "It learned from one shop's log. Products, prices and habits of that shop are in its",
            "weights; check before you publish it whether that log may leave the house.",
            "",
            "## How to run it",
            "",
            "As a policy, with tools: `qagent recommend USER --policy FOLDER`.",
            "As a plain language model: `mlx_lm.generate --model FOLDER --prompt TEXT`, or",
            "`mlx_lm.server --model FOLDER`; then whatever calls it plays the tools.",
            "",
        ]
    )
