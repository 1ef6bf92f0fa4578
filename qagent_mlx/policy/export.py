"""A policy as one standalone mlx-lm folder: adapters fused, tokenizer and model card beside it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import QAgentError
from ..models.loading import QLORA_GROUP, set_precision
from ..models.model_size import read_header
from ..utils.atomic_files import read_json, replacing_folder, write_json, write_with
from ..utils.settings import SettingError
from .files import base_folder, load_policy
from .policy import Policy
from .summary import licence_of

# The files of a tokenizer, which are copied; everything else is written anew.
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


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written where: the number of weights, their bytes and their precision."""

    folder: str
    parameters: int
    bytes: int
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def fuse(folder: Path, target: Path, dtype: str = "", overwrite: bool = False) -> ExportReport:
    """Write a policy as a model folder of its own that mlx-lm loads and this package too.

    Args:
        folder: The policy's folder, see `registry.resolve`.
        target: The new folder; it takes its place only when all of it is written.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default what the base is stored
            in, bfloat16 when that is quantised. ``4bit`` quantises anew, which rounds.
        overwrite: Replace a folder that is there already.

    Raises:
        SettingError: the target exists, and it is not said that it may be replaced.
        QAgentError: it cannot be written, or the policy cannot be loaded.
    """
    if target.exists() and not overwrite:
        raise SettingError("overwrite", f"must be set to replace {target}, which exists")
    base = base_folder(folder)
    if target.resolve() in (folder.resolve(), base.resolve()):
        raise QAgentError(f"{target} is the model itself; choose another folder")
    config = read_json(base / "config.json", f"the model {base}")
    config = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    dtype = dtype or _stored_dtype(base)
    # Sums are made in float32 and rounded once, at the end.
    policy = load_policy(folder, "float32")
    policy.merge_lora()
    if dtype == "4bit":
        config |= _quantize(policy)
    else:
        policy.model.set_dtype(getattr(mx, dtype))
    weights = dict(tree_flatten(policy.model.parameters()))
    info = replace(policy.info, base="", base_fingerprint="", dtype="", weights="")
    try:
        with replacing_folder(target) as new:
            write_with(
                new / "model.safetensors",
                lambda p: mx.save_safetensors(p, weights, metadata={"format": "mlx"}),
            )
            write_json(new / "config.json", config)
            for name in _TOKENIZER_FILES:
                if (base / name).exists():
                    shutil.copyfile(base / name, new / name)
            write_json(new / "policy.json", asdict(info))
            (new / "README.md").write_text(model_card(policy, base, dtype), encoding="utf-8")
    except OSError as error:
        raise QAgentError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose a "
            "folder you may write to"
        ) from error
    size = sum(v.nbytes for v in weights.values())
    return ExportReport(str(target), policy.parameters, size, dtype)


def _stored_dtype(base: Path) -> str:
    """The precision that a model's files hold; bfloat16 where they are quantised."""
    if read_json(base / "config.json", f"the model {base}").get("quantization"):
        return "bfloat16"
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    for path in sorted(base.glob("model*.safetensors")):
        for tensor in read_header(path).values():
            if tensor["dtype"] in names:
                return names[tensor["dtype"]]
    raise QAgentError(f"{base} has no model*.safetensors; pull the model again")


def _quantize(policy: Policy) -> dict[str, Any]:
    """Quantise the model in place; what that adds to ``config.json``."""
    policy.model = set_precision(policy.model, "4bit")
    policy.model.set_dtype(mx.bfloat16)
    quantization = {"group_size": QLORA_GROUP, "bits": 4}
    return {"quantization": quantization, "quantization_config": quantization}


def model_card(policy: Policy, base: Path, dtype: str) -> str:
    """The README of an exported model: what it is, how it was trained, how to run it."""
    from jinja2 import Template

    source = base / "source.json"
    text = Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8")
    last = policy.info.trained[-1] if policy.info.trained else {}
    return Template(text, keep_trailing_newline=True).render(
        info=policy.info,
        base=base.name,
        origin=read_json(source, f"the model {base}") if source.exists() else {},
        licence=licence_of(base),
        parameters=policy.parameters,
        dtype=dtype,
        settings=last.get("config", {}),
    )
