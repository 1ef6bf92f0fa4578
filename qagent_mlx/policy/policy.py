"""A policy: a language model with a LoRA adapter, its tokenizer, and where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import QAgentError
from ..models import transformer_blocks as blocks
from ..models.fast_load import add_adapters
from ..models.fingerprint import ADAPTER, MODEL, _fingerprint
from ..protocol.actions import PROTOCOL_VERSION, Stopper
from ..protocol.codec import AnyCodec
from ..protocol.config import AgentConfig
from ..utils.atomic_files import json_text, replacing_files
from ..utils.runtime import device_name
from .lora import LoraConfig

CHAT_TURN_TOKENS = 40  # of one action: its tags take about ten
CHAT_PROFILE_BUDGET = 192  # about what 128 tokens of a shop's own tokenizer hold


@dataclass
class PolicyInfo:
    """``policy.json``: what a policy is and how it was made."""

    name: str
    base: str = ""  # the model folder that the adapter belongs to; empty when it is whole
    base_fingerprint: str = ""
    protocol: int = PROTOCOL_VERSION
    agent: AgentConfig = field(default_factory=AgentConfig)
    trained: list[dict[str, Any]] = field(default_factory=list)
    dtype: str = ""  # the precision that it was trained in, where that was chosen
    weights: str = ""  # identifies the file with its weights; empty in older ones


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
        self.prompt = codec.prompt()

    @property
    def parameters(self) -> int:
        """How many weights the model has, adapters included."""
        weights = dict(tree_flatten(self.model.parameters()))
        packed = {n for n, m in self.model.named_modules() if hasattr(m, "scales")}
        bits = {n: m.bits for n, m in self.model.named_modules() if n in packed}
        count = 0
        for name, value in weights.items():
            module, _, part = name.rpartition(".")
            if module not in packed or part not in ("weight", "scales", "biases"):
                count += value.size
            elif part == "weight":
                count += value.size * 32 // bits[module]
        return count

    # ------------------------------------------------------------ computing

    def backbone(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Hidden states before the head: (rows, length, width) of (rows, length) ids."""
        if self.by_blocks and device_name() == "cpu":
            length = tokens.shape[1]
            if cache is None:
                return blocks.run(self.model, self.embed(tokens), blocks.CausalAttention(length))
            if blocks.CachedAttention.serves(cache):
                return blocks.run(
                    self.model, self.embed(tokens), blocks.CachedAttention(cache, length)
                )
        hidden: mx.array = self._inner()(tokens, cache=cache)
        return hidden

    @cached_property
    def by_blocks(self) -> bool:
        """Whether `blocks` can run this model block by block."""
        return blocks.supported(self.model)

    def embed(self, tokens: mx.array) -> mx.array:
        """What goes into the first block; only where the model runs `by_blocks`."""
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
        inner = self._inner()
        if inner.embed_tokens.trainable_parameters():
            return 0
        for index, layer in enumerate(self.layers):
            if tree_flatten(layer.trainable_parameters()):
                return index
        return len(self.layers)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that one token of one row takes while decoding."""
        args = getattr(self.model, "args", None)
        heads = int(getattr(args, "num_attention_heads", 0) or 1)
        kept = int(getattr(args, "num_key_value_heads", 0) or heads)
        width = int(getattr(args, "hidden_size", 0) or 1024)
        each = int(getattr(args, "head_dim", 0) or width // heads)
        kind = dict(tree_flatten(self.layers[0].parameters()))
        size = max((v.itemsize for v in kind.values() if v.dtype != mx.uint32), default=4)
        return 2 * len(self.layers) * kept * each * size

    def head_weight(self) -> mx.array | None:
        """The head's (vocabulary, width) weights where it is plain, float32 and not trained."""
        language = self._language()
        module = getattr(language, "lm_head", None) or self._inner().embed_tokens
        plain = type(module) in (nn.Linear, nn.Embedding) and "bias" not in module
        if not (self.by_blocks and plain) or module.trainable_parameters():
            return None
        weight: mx.array = module.weight
        return weight if weight.dtype == mx.float32 else None

    def head(self, hidden: mx.array) -> mx.array:
        """Logits, float32, of hidden states of any leading shape."""
        inner = self._inner()
        if hasattr(self._language(), "lm_head"):
            logits = self._language().lm_head(hidden)
        else:
            logits = inner.embed_tokens.as_linear(hidden)
        return logits.astype(mx.float32)

    def _language(self) -> Any:
        # Some mlx-lm models (vision, gemma3) wrap the language model once more.
        return getattr(self.model, "language_model", self.model)

    def _inner(self) -> Any:
        return self._language().model

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        layers: Sequence[nn.Module] = self.model.layers
        return layers

    def stopper(self) -> Stopper:
        """Something that notices the end of an action in one row's tokens."""
        return Stopper(self.codec, self.codec.single_stops)

    # ------------------------------------------------------------ training

    def add_lora(self, config: LoraConfig) -> None:
        """Put adapters on the model and freeze everything else."""
        self.model.freeze()
        blocks = len(self.layers) if config.blocks < 0 else min(config.blocks, len(self.layers))
        parameters: dict[str, Any] = {
            "rank": config.rank,
            "scale": config.scale,
            "dropout": config.dropout,
        }
        if config.keys:
            parameters["keys"] = list(config.keys)
        if config.keys or not add_adapters(self.model, blocks, **parameters):
            from mlx_lm.tuner.utils import linear_to_lora_layers

            linear_to_lora_layers(self.model, blocks, parameters)
        self.lora = config

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

    # ------------------------------------------------------------ files

    def save(self, folder: Path, beside: Mapping[str, Callable[[Path], Any]] | None = None) -> None:
        """Write the adapter (or the whole model when there is none) and ``policy.json``.

        A kill leaves the old policy or the new one, or, between the renames, some of both: then
        ``policy.json`` does not know the weights, and `load_policy` ends the work.

        Args:
            folder: Is made where it is missing.
            beside: Other files of the policy by name, and what writes each.
        """
        writers = dict(beside or {})
        name = MODEL if self.lora is None else ADAPTER
        metadata = None if self.lora else {"format": "mlx"}
        if self.lora is None:
            weights = dict(tree_flatten(self.model.parameters()))
        else:
            weights = {k: v.astype(mx.float32) for k, v in self.adapter().items()}
            lora = asdict(self.lora)
            parameters = {k: lora[k] for k in ("rank", "scale", "dropout")}
            if self.lora.keys:
                parameters["keys"] = list(self.lora.keys)
            blocks = len(self.layers) if self.lora.blocks < 0 else self.lora.blocks
            config = {"fine_tune_type": "lora", "num_layers": blocks, "lora_parameters": parameters}
            writers["adapter_config.json"] = lambda p: p.write_text(json_text(config), "utf-8")
        # policy.json is last: a folder without it is no policy. The weights are first: whatever
        # a kill leaves, an old policy.json does not know new weights.
        names = [name, *writers, "policy.json"]
        with replacing_files([folder / n for n in names]) as places:
            try:
                mx.save_safetensors(str(places[0]), weights, metadata=metadata)
                for place, write in zip(places[1:-1], writers.values(), strict=True):
                    write(place)
            except RuntimeError as error:  # MLX's, for a full disk among others
                raise QAgentError(
                    f"cannot write {folder}: {error}; free some space or choose a folder you "
                    "may write to"
                ) from error
            self.info.weights = _fingerprint([(name, places[0])])
            places[-1].write_text(json_text(asdict(self.info)), encoding="utf-8")
        self.folder = folder
