"""A policy: a language model with a LoRA adapter, its tokenizer, and where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx.utils import tree_flatten

from ..errors import QAgentError
from ..models import backend, composition, transformer_blocks
from ..models.attention import CachedAttention, CausalAttention
from ..models.batch_cache import serves_batches
from ..models.composition import Composition
from ..models.fingerprint import ADAPTER, MODEL, fingerprint_files
from ..protocol.actions import PROTOCOL_VERSION, Stopper
from ..protocol.codec import AnyCodec
from ..protocol.config import AgentConfig
from ..utils.atomic_files import json_text, replacing_files
from . import calibration
from .adapters import add_adapters, merge_adapters
from .lora import LoraConfig
from .prefix_sharing import serves_prefixes


@dataclass(frozen=True)
class PolicyInfo:
    """``policy.json``: what a policy is and how it was trained.

    Attributes:
        name: The policy's name in its shop.
        base: What the adapter belongs to: ``NAME@N`` in the same shop, or a model folder; empty for
            a whole model.
        base_fingerprint: Identifies the base's weights.
        protocol: The protocol version that it was trained for.
        agent: How its chains run.
        trained: The training stages, oldest first: ``stage``, ``run``, ``config`` and more.
        created: When it was saved, in UTC; empty in older files.
        dtype: The precision that it was trained in, where that was chosen.
        weights: Identifies the policy's own weights; empty in older files.
    """

    name: str
    base: str = ""
    base_fingerprint: str = ""
    protocol: int = PROTOCOL_VERSION
    agent: AgentConfig = field(default_factory=AgentConfig)
    trained: tuple[dict[str, Any], ...] = ()
    dtype: str = ""
    weights: str = ""
    created: str = ""

    def with_stage(self, **stage: Any) -> PolicyInfo:
        """The same after one more training stage."""
        return replace(self, trained=(*self.trained, stage))


class Policy:
    """A model ready to act and to be trained.

    `model` is an mlx-lm model; `codec` turns text to ids and back. `backbone` and `head`
    split the model so that the head can run on chosen positions only.
    """

    def __init__(
        self,
        model: nn.Module,
        codec: AnyCodec,
        info: PolicyInfo,
        folder: Path | None = None,
        lora: LoraConfig | None = None,
    ) -> None:
        self.model = model
        self.codec = codec
        self.info = info
        self.folder = folder
        self.lora = lora
        self.calibration: calibration.Calibration | None = None
        self._prompts: dict[bool, list[int]] = {}

    @property
    def prompt(self) -> list[int]:
        """Token ids that every chain begins with."""
        writes = self.info.agent.writes
        if writes not in self._prompts:
            self._prompts[writes] = self.codec.prompt(writes)
        return self._prompts[writes]

    def calibration_of(self, agent: AgentConfig) -> calibration.Calibration | None:
        """What the votes of chains are worth that run so; None where that was not learned."""
        return self.calibration if agent == self.info.agent else None

    @property
    def parameters(self) -> int:
        """The number of the model's weights, adapters included; packed ones count singly."""
        weights = dict(tree_flatten(self.model.parameters()))
        bits = {n: m.bits for n, m in self.model.named_modules() if hasattr(m, "scales")}
        count = 0
        for name, value in weights.items():
            module, _, part = name.rpartition(".")
            if module not in bits or part not in ("weight", "scales", "biases"):
                count += value.size
            elif part == "weight":
                count += value.size * 32 // bits[module]
        return count

    def backbone(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Hidden states before the head: (B, N, width) of (B, N) ids.

        On a CPU the blocks run one by one, with numpy's kernels; on a GPU as mlx-lm wrote them.
        """
        if self.by_blocks and backend.on_cpu():
            length = tokens.shape[1]
            if cache is None:
                causal = CausalAttention(length)
                return transformer_blocks.run(self.model, self.embed(tokens), causal)
            if CachedAttention.serves(cache):
                cached = CachedAttention(cache, length)
                return transformer_blocks.run(self.model, self.embed(tokens), cached)
        if self.composition == "whole":
            return composition.run_whole(self.model, tokens, cache)
        return composition.run_body(self.model, tokens, cache)

    @property
    def by_blocks(self) -> bool:
        """Whether `transformer_blocks` can run this model block by block."""
        return self.composition == "blocks"

    @cached_property
    def composition(self) -> Composition:
        """How the model is run; of a model that runs as a whole, hidden states are its logits."""
        return composition.composition_of(self.model, self.tolerance)

    @cached_property
    def decodes_batches(self) -> bool:
        """Whether mlx-lm's caches for several contexts serve this model."""
        return self.by_blocks or serves_batches(self.model, self.logits, self.tolerance)

    @cached_property
    def shares_prefixes(self) -> bool:
        """Whether sequences of a group can be scored with their common prefix computed once."""
        return self.by_blocks or serves_prefixes(
            self.backbone, self.head, len(self.layers), self.tolerance
        )

    @property
    def tolerance(self) -> float:
        """By how much two ways to compute a log-probability may differ where both are right."""
        return composition.TOLERANCES[not self.precise]

    def embed(self, tokens: mx.array) -> mx.array:
        """The input of the first block; only where the model runs `by_blocks`."""
        if not tokens.size:  # which a quantised embedding does not take
            width = self.model.model.norm.weight.shape[0]
            return mx.zeros((*tokens.shape, width), self.model.model.norm.weight.dtype)
        hidden: mx.array = self.model.model.embed_tokens(tokens)
        return hidden

    @property
    def precise(self) -> bool:
        """Whether nothing is computed in half precision."""
        weights = dict(tree_flatten(self.model.parameters())).values()
        return not any(v.dtype in (mx.bfloat16, mx.float16) for v in weights)

    @property
    def first_trained(self) -> int:
        """The first block with trainable weights; all below compute the same as the reference."""
        if not self.by_blocks or self.model.model.embed_tokens.trainable_parameters():
            return 0
        trained = (bool(tree_flatten(b.trainable_parameters())) for b in self.layers)
        return next((i for i, t in enumerate(trained) if t), len(self.layers))

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that one token of one row takes while decoding."""
        args = getattr(self.model, "args", None)
        heads = int(getattr(args, "num_attention_heads", 0) or 1)
        key_heads = int(getattr(args, "num_key_value_heads", 0) or heads)
        width = int(getattr(args, "hidden_size", 0) or 1024)
        head_width = int(getattr(args, "head_dim", 0) or width // heads)
        weights = dict(tree_flatten(self.layers[0].parameters())).values()
        size = max((v.itemsize for v in weights if v.dtype != mx.uint32), default=4)
        return 2 * len(self.layers) * key_heads * head_width * size

    def frozen_head(self) -> mx.array | None:
        """The head's (vocabulary, width) weights for `cpu_kernels.head_logprobs`.

        None on a GPU, and where the head is not plain, not float32, or trained.
        """
        if not self.by_blocks:
            return None
        module = getattr(self.model, "lm_head", None) or self.model.model.embed_tokens
        plain = type(module) in (nn.Linear, nn.Embedding) and "bias" not in module
        if not plain or module.trainable_parameters():
            return None
        weight: mx.array = module.weight
        return weight if backend.uses_numpy(weight.dtype) else None

    def head(self, hidden: mx.array) -> mx.array:
        """Logits, float32, of hidden states of any leading shape, as the model scales them."""
        if self.composition == "whole":
            return hidden
        if not self.by_blocks:
            return composition.run_head(self.model, hidden)
        head = getattr(self.model, "lm_head", None) or self.model.model.embed_tokens.as_linear
        return head(hidden).astype(mx.float32)

    def logits(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Logits, float32, of all positions: (B, N, vocabulary) of (B, N) ids."""
        return self.head(self.backbone(tokens, cache))

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        layers: Sequence[nn.Module] = self.model.layers
        return layers

    def stopper(self) -> Stopper:
        """A detector of the end of an action in one row's tokens."""
        return Stopper(self.codec, self.codec.single_stops)

    def add_lora(self, config: LoraConfig) -> None:
        """Put new adapters on the model and freeze everything else."""
        self.model.freeze()
        add_adapters(self.model, config)
        self.lora = config

    def merge_lora(self) -> None:
        """Add the adapters to the weights that they belong to; the policy computes the same."""
        merge_adapters(self.model)
        self.lora = None

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside the block the model is the reference: its adapters are switched off.

        The scale is set to 0 and put back bit for bit; there is no second copy.
        """
        modules = [m for _, m in self.model.named_modules() if hasattr(m, "lora_a")]
        scales = [m.scale for m in modules]
        for module in modules:
            module.scale = 0.0
        try:
            yield
        finally:
            for module, scale in zip(modules, scales, strict=True):
                module.scale = scale

    def adapter(self) -> dict[str, mx.array]:
        """The trainable parameters by name."""
        return dict(tree_flatten(self.model.trainable_parameters()))

    def save(self, folder: Path, beside: Mapping[str, Callable[[Path], Any]] | None = None) -> None:
        """Write the adapter (or the whole model when there is none) and ``policy.json``.

        A kill leaves the old policy or the new one, or, between the renames, some of both: then
        ``policy.json`` does not know the weights, and `load_policy` completes the save.

        Args:
            folder: The policy's folder; it is made where it is missing.
            beside: Other files of the policy by name, and what writes each.
        """
        writers = dict(beside or {})
        if self.calibration is not None:
            content = json_text(msgspec.to_builtins(self.calibration))
            writers[calibration.FILE] = lambda p: p.write_text(content, "utf-8")
        name = MODEL if self.lora is None else ADAPTER
        metadata = None if self.lora else {"format": "mlx"}
        if self.lora is None:
            weights = dict(tree_flatten(self.model.parameters()))
        else:
            weights = {k: v.astype(mx.float32) for k, v in self.adapter().items()}
            config = _adapter_config(self.lora, len(self.layers))
            writers["adapter_config.json"] = lambda p: p.write_text(json_text(config), "utf-8")
        # policy.json is last: a folder without it is no policy. The weights are first: whatever
        # a kill leaves, an old policy.json does not know new weights.
        names = [name, *writers, "policy.json"]
        with replacing_files([folder / n for n in names]) as paths:
            try:
                mx.save_safetensors(str(paths[0]), weights, metadata=metadata)
                for path, write in zip(paths[1:-1], writers.values(), strict=True):
                    write(path)
            except RuntimeError as error:  # MLX's, for a full disk among others
                raise QAgentError(
                    f"cannot write {folder}: {error}; free some space or choose a folder you "
                    "may write to"
                ) from error
            created = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            weights_id = fingerprint_files({name: paths[0]})
            self.info = replace(self.info, weights=weights_id, created=created)
            paths[-1].write_text(json_text(asdict(self.info)), encoding="utf-8")
        self.folder = folder


def _adapter_config(lora: LoraConfig, layers: int) -> dict[str, Any]:
    """``adapter_config.json``, as mlx-lm reads it."""
    parameters: dict[str, Any] = {k: getattr(lora, k) for k in ("rank", "scale", "dropout")}
    if lora.keys:
        parameters["keys"] = list(lora.keys)
    blocks = layers if lora.blocks < 0 else lora.blocks
    return {"fine_tune_type": "lora", "num_layers": blocks, "lora_parameters": parameters}
