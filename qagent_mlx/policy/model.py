"""A policy: a language model with a LoRA adapter, its tokenizer, and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import QAgentError
from ..protocol.actions import PROTOCOL_VERSION, Stopper
from ..protocol.codec import AnyCodec, ShopCodec, load_codec, speaks_tags
from ..protocol.config import AgentConfig
from ..shop.config import from_dict
from ..utils.atomic_files import json_text, read_json, replacing_together, settle, unfinished
from ..utils.runtime import device_name
from . import blocks
from .plain import adapt, load_plain
from .sources import moved

ADAPTER, MODEL = "adapters.safetensors", "model.safetensors"
MOST_BLOCKS = 1000
DTYPES = ("float32", "bfloat16", "float16", "4bit", "stored")
CHAT_TURN_TOKENS = 40  # of one action: its tags take about ten
CHAT_PROFILE_BUDGET = 192  # about what 128 tokens of a shop's own tokenizer hold
QLORA_GROUP = 64  # weights that share a scale, where a model is quantised at loading


@dataclass(frozen=True)
class LoraConfig:
    """Which layers get an adapter, and how large it is."""

    rank: int = 16
    scale: float = 2.0
    dropout: float = 0.0
    blocks: int = -1  # the last so many blocks; -1 for all
    keys: tuple[str, ...] = ()  # module names inside a block; empty for all linear ones
    dtype: str = ""  # of the weights below the adapter, one of DTYPES; 4bit makes it QLoRA

    def check(self) -> None:
        """Refuse an adapter that cannot be made.

        Raises:
            QAgentError: names the setting and what it may be.
        """
        if self.rank < 1:
            raise QAgentError("lora: rank must be at least 1")
        if self.blocks != -1 and self.blocks < 1:
            raise QAgentError("lora: blocks must be at least 1, or -1 for all")
        if not 0 <= self.dropout < 1:
            raise QAgentError("lora: dropout must be from 0 to below 1")
        if not 0 < abs(self.scale) < float("inf"):
            raise QAgentError("lora: scale must be a number other than 0")


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
                return blocks.run(self.model, self.embed(tokens), blocks.Causal(length))
            if blocks.Cached.serves(cache):
                return blocks.run(self.model, self.embed(tokens), blocks.Cached(cache, length))
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
        if config.keys or not adapt(self.model, blocks, **parameters):
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
            config = {
                "fine_tune_type": "lora", "num_layers": blocks, "lora_parameters": parameters,
            }  # fmt: skip
            writers["adapter_config.json"] = lambda p: p.write_text(json_text(config), "utf-8")
        # policy.json is last: a folder without it is no policy. The weights are first: whatever
        # a kill leaves, an old policy.json does not know new weights.
        names = [name, *writers, "policy.json"]
        with replacing_together([folder / n for n in names]) as places:
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


def fingerprint(folder: Path) -> str:
    """Identifies a folder's weights: hash of their first and last megabyte and size."""
    paths = sorted([*folder.glob("model*.safetensors"), *folder.glob(ADAPTER)])
    return _fingerprint([(path.name, path) for path in paths])


def _fingerprint(files: Sequence[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        size = path.stat().st_size
        digest.update(f"{name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]


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
        agent = from_dict(AgentConfig, values.pop("agent"), "agent")
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


def load_model_folder(folder: Path, dtype: str = "") -> tuple[nn.Module, AnyCodec]:
    """An mlx-lm model and its codec.

    Args:
        folder: Holds config.json, tokenizer.json and model*.safetensors. No code in it is run.
        dtype: One of `DTYPES`; see `set_precision`.

    Raises:
        QAgentError: something is missing or damaged.
    """
    if not (folder / "config.json").exists():
        raise QAgentError(f"{folder} is no model folder: it has no config.json")
    config = read_json(folder / "config.json", f"the model {folder}")
    if not isinstance(config, dict):
        raise QAgentError(f"{folder}: config.json holds no object; pull the model again")
    if config.get("model_file"):
        raise QAgentError(f"{folder} brings its own model code, which is never run")
    _check_depth(folder, config)
    try:
        own = isinstance(config, dict) and speaks_tags(folder)
        model = load_plain(folder, config) if own else None
        if model is None:
            from mlx_lm.utils import load_model

            model, config = load_model(folder)
    except FileNotFoundError as error:
        raise QAgentError(f"{folder} has no model*.safetensors; pull the model again") from error
    except (
        ValueError, KeyError, TypeError, RuntimeError, AttributeError, ArithmeticError,
        IndexError, AssertionError, RecursionError, OSError,
    ) as error:  # fmt: skip
        line = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise QAgentError(f"{folder}: the model cannot be loaded: {line}") from error
    model = set_precision(model, dtype)
    model.eval()
    mx.eval(model.parameters())
    return model, load_codec(folder, config.get("eos_token_id"))


def _check_depth(folder: Path, config: dict[str, Any]) -> None:
    """Weights of a wrong size are refused by name; blocks are made one by one, so count first."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key, value in part.items():
            counted = "layers" in str(key) and isinstance(value, (int, float))
            if counted and not value <= MOST_BLOCKS:
                raise QAgentError(
                    f"{folder}: config.json says {key} {str(value)[:20]}, which no model has"
                )


def set_precision(model: nn.Module, dtype: str = "") -> nn.Module:
    """The model with its weights in a precision that suits the device, or the one asked for.

    Args:
        model: As it was stored, quantised or not.
        dtype: ``float32``, ``bfloat16`` and ``float16`` undo a quantisation; ``4bit`` keeps
            one or makes one; ``stored`` changes nothing. By default float32 on a CPU, whose
            matrix products are slow in all others, and what is stored on a GPU.

    Raises:
        QAgentError: there is no such precision.
    """
    cpu = device_name() == "cpu"
    wanted = dtype or ("float32" if cpu else "stored")
    if wanted not in DTYPES:
        raise QAgentError(f"--dtype {wanted}: choose one of {', '.join(DTYPES)}")
    if wanted == "stored":
        return model
    quantized = any(hasattr(m, "scales") for _, m in model.named_modules())
    if wanted == "4bit":
        # Scales and what is not quantised stay in a type that the device computes well in.
        model.set_dtype(mx.float32 if cpu else mx.bfloat16)
        if not quantized:
            nn.quantize(model, QLORA_GROUP, 4, class_predicate=_quantizable)
        return model
    # Scales change type first: so a float32 weight is the stored one exactly.
    model.set_dtype(getattr(mx, wanted))
    if not quantized:
        return model
    from mlx_lm.utils import dequantize_model

    return dequantize_model(model)


def _quantizable(_name: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % QLORA_GROUP == 0


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
    for place in (*(beside if base.parent == folder.parent else ()), *moved(base)):
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
        KeyError, TypeError, RuntimeError, ValueError, ArithmeticError, AttributeError,
    ) as error:  # fmt: skip
        raise QAgentError(f"the adapter in {folder} is damaged ({error}); train again") from error
    load_adapter(policy, stored, str(folder))
    return policy


def _known(folder: Path, info: PolicyInfo) -> bool:
    """Whether the weights are those that a ``policy.json`` was written for."""
    name = ADAPTER if (folder / ADAPTER).exists() else MODEL
    return (folder / name).exists() and _fingerprint([(name, folder / name)]) == info.weights


def _ended(folder: Path) -> PolicyInfo:
    """Ends a save that a kill stopped between its renames, and gives the policy's new record."""
    for temporaries in unfinished(folder / "policy.json"):
        stored = next(p for p in temporaries if p.name.endswith("-policy.json"))
        try:
            info = read_info(folder, stored)
            if info is not None and _known(folder, info):
                settle(temporaries)
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
