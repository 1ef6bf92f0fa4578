"""The workloads that are measured, and the policies that they are measured on.

Standard: 4 prompts of 256 tokens, G = 8, exactly 48 new tokens at temperature 1, LoRA of rank
8 on the last 16 blocks, a KL term to the reference, float32, one update. Agentic: chains that
read a profile, search twice and recommend, with texts of fixed lengths.

Prompts are random ids, so that a run needs no shop and every trainer can be given the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from ..agent.decode import Decoder
from ..agent.sequences import DecodingBatch, DecodingSequence
from ..agent.types import Rollout
from ..distributed.world import gather_rollouts
from ..models.download import cache_folder, sample_folder
from ..models.loading import load_plain_llama
from ..policy import scoring
from ..policy.files import load_policy
from ..policy.lora import LoraConfig
from ..policy.policy import Policy
from ..train import grpo, grpo_batches
from ..train.groups import CreditedChain
from ..train.grpo_config import GrpoConfig
from ..utils.atomic_files import read_json, write_json
from ..utils.settings import SettingError

FIRST_ID = 16  # ids below may be special


@dataclass(frozen=True)
class Workload:
    """Sizes of the standard workload."""

    prompts: int = 4
    prompt_tokens: int = 256
    group: int = 8
    new_tokens: int = 48
    rank: int = 8
    blocks: int = 16
    beta: float = 0.04

    @property
    def tokens(self) -> int:
        """Tokens of all chains of a step, prompts included."""
        return self.prompts * self.group * (self.prompt_tokens + self.new_tokens)


def model_folder(name: str) -> Path:
    """A model that mlx-lm and transformers both load: ``tiny``, ``small`` or ``smol``.

    ``tiny`` is the shipped sample policy; the others get random weights of a shape in
    ``models.json`` (``smol`` has that of SmolLM2-135M) and are written once. All get a tokenizer
    of plain words ``w0 w1 …``, one a token. An unknown name is a `SettingError`.
    """
    shapes = read_json(Path(__file__).with_name("models.json"), "the benchmark")
    if name not in ("tiny", *shapes):
        raise SettingError("model", f"cannot be {name}; choose tiny, {' or '.join(shapes)}")
    folder = cache_folder() / "bench" / name
    if (folder / "tokenizer.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if name == "tiny":
        config = read_json(sample_folder() / "config.json", "the sample policy")
        config["max_position_embeddings"] = 2048
        weights = (sample_folder() / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights)
    else:
        config = shapes[name]
        _random_weights(config, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    _write_tokenizer(config["vocab_size"], folder)
    return folder


def _random_weights(config: dict[str, Any], path: Path) -> None:
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    model = llama.Model(llama.ModelArgs.from_dict(config))
    key = mx.random.key(0)
    weights = {}
    for name, value in dict(tree_flatten(model.parameters())).items():
        key, part = mx.random.split(key)
        norm = "norm" in name
        weights[name] = value if norm else mx.random.normal(value.shape, key=part) * 0.02
    mx.save_safetensors(str(path), weights, metadata={"format": "pt"})


def _write_tokenizer(size: int, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "w0",
            "eos_token": "w1",
            "unk_token": "w2",
            "pad_token": "w3",
            "model_max_length": 4096,
        },
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def open_policy(folder: Path, work: Workload) -> Policy:
    """The model with a fresh adapter, ready to train."""
    # As `load_policy` would: a shop's own model without what only chat models need.
    model = None
    if folder.name == "tiny":
        model = load_plain_llama(folder, read_json(folder / "config.json", "the model"))
    if model is None:
        from mlx_lm.utils import load_model

        model, _ = load_model(folder)
    # Its ids are never turned into text; any codec will do.
    codec, info = (sample := load_policy(sample_folder())).codec, sample.info
    model.set_dtype(mx.float32)
    policy = Policy(model, codec, info)
    mx.random.seed(0)
    policy.add_lora(LoraConfig(rank=work.rank, blocks=work.blocks))
    mx.eval(model.parameters())
    return policy


def prompts(work: Workload, vocabulary: int, seed: int) -> list[list[int]]:
    """Random prompts; the same for every trainer."""
    random = np.random.default_rng([seed, 7])
    shape = (work.prompts, work.prompt_tokens)
    return [row.tolist() for row in random.integers(FIRST_ID, vocabulary, shape)]


def vocabulary(policy: Policy) -> int:
    """How many ids the model knows."""
    return int(policy.model.args.vocab_size)


class Never:
    """Stops at no token, so that every chain has the same length."""

    def feed(self, token: int) -> bool:
        """False: go on."""
        return False

    def reset(self) -> None:
        """Nothing to forget."""


class _NoShop:
    """Stands where `Trainer` expects an environment; the benchmark makes its own chains."""

    automaton = None

    def rollout_runner(self, policy: Policy, agent: Any) -> _NoShop:
        """No runner, chains come from `Standard.rollout`; and nothing that constrains them."""
        return self

    def of_split(self, split: str) -> list[str]:
        """Something, as training refuses to begin without cases."""
        return ["random prompts"]


@dataclass
class Step:
    """Times of one step, in seconds, and what was computed in it."""

    rollout: float = 0.0
    update: float = 0.0
    cpu: float = 0.0  # of all threads: what a busy machine changes least
    update_cpu: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    prefilled: int = 0
    decoded: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.rollout + self.update


class Standard:
    """The standard workload on one policy: the very decoder and update that training uses."""

    def __init__(self, policy: Policy, work: Workload) -> None:
        self.policy, self.work = policy, work
        config = GrpoConfig(
            group=work.group, cases_per_step=work.prompts, beta=work.beta, solvable=False
        )
        environment: Any = _NoShop()
        self.trainer = grpo.GrpoTrainer(policy, environment, config)

    def step(self, number: int) -> Step:
        """One rollout and one update."""
        measured = Step()
        start, spent = time.perf_counter(), time.process_time()
        with _watched(measured.parts):
            rollouts = self.rollout(number, measured)
            rolled = time.perf_counter()
            advantages = np.random.default_rng([number, 9]).normal(size=len(rollouts)).tolist()
            scored = list(map(CreditedChain.as_one, rollouts, advantages))
            updating = time.process_time()
            measured.metrics = self.trainer.update(scored, number)
        measured.rollout, measured.update = rolled - start, time.perf_counter() - rolled
        measured.cpu = time.process_time() - spent
        measured.update_cpu = time.process_time() - updating
        measured.parts["other"] = measured.seconds - sum(measured.parts.values())
        return measured

    def rollout(self, number: int, measured: Step) -> list[Rollout]:
        """All chains of a step; counts its tokens in ``measured``."""
        work = self.work
        decoder = Decoder(self.policy)
        world = self.trainer.world
        local = world.local_indices(work.prompts)
        sequences = [
            DecodingSequence(
                tokens=list(prompt),
                stopper=Never(),  # type: ignore[arg-type]
                turn_limit=work.new_tokens,
                stream=np.random.Generator(np.random.Philox(key=[number, 64 * i + member])),
            )
            for i, prompt in enumerate(prompts(work, vocabulary(self.policy), number))
            if i in local
            for member in range(work.group)
        ]
        self.policy.model.eval()
        batch = decoder.start(sequences)
        while batch.sequences:
            batch, _ = decoder.draw(batch)
            if batch.sequences:
                decoder.advance(batch)
        measured.prefilled = decoder.prefill_tokens * world.size
        measured.decoded = decoder.decode_tokens * world.size
        own = [
            Rollout(
                local[i // work.group],
                i % work.group,
                tuple(sequence.tokens),
                work.prompt_tokens,
                tuple(sequence.sampled),
                tuple(sequence.logprobs),
            )
            for i, sequence in enumerate(sequences)
        ]
        return gather_rollouts(world, own)


@contextmanager
def _watched(parts: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of a step's parts while the block runs."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*values, **named)
            parts[name] = parts.get(name, 0.0) + time.perf_counter() - start
            return result

        return run

    with ExitStack() as stack:
        for owner, attribute, name in (
            (grpo_batches, "reference_logprobs", "reference"),
            (scoring, "frozen_states", "blocks below the adapter"),
            (scoring, "gradient", "forward and backward"),
            (Decoder, "start", "prefill"),
            (Decoder, "draw", "sampling"),
            (Decoder, "advance", "decoding"),
        ):
            replacement = timed(name, getattr(owner, attribute))
            stack.enter_context(patch.object(owner, attribute, replacement))
        yield


@dataclass(frozen=True)
class Agentic:
    """Chains of retrieval with texts of fixed length: (said by the policy, then inserted).

    All chains begin with the same words, those that read the memory, and a case's chains get
    the same profile for them. What they search is their own.
    """

    cases: int = 4
    group: int = 8
    task: int = 48
    turns: tuple[tuple[int, int], ...] = ((6, 128), (10, 64), (10, 64), (10, 0))


def agentic_rollout(
    policy: Policy, shape: Agentic, number: int, reprefill: bool
) -> list[DecodingSequence]:
    """Roll out chains with two searches; the same step ``number`` gives the same chains.

    ``reprefill`` computes every chain's whole conversation again at every turn, as a loop around
    a plain generator does, instead of going on from the chains' caches.
    """
    random = np.random.default_rng([number, 11])
    known = vocabulary(policy)

    def text(count: int) -> list[int]:
        ids: list[int] = random.integers(FIRST_ID, known, count).tolist()
        return ids

    task = text(shape.task)
    sequences = [
        DecodingSequence(tokens=list(task), stopper=Never(), turn_limit=0, tag=case, stream=None)  # type: ignore[arg-type]
        for case in range(shape.cases)
        for member in range(shape.group)
    ]
    policy.model.eval()
    decoder = Decoder(policy)
    batch = DecodingBatch()
    for index, (said, inserted) in enumerate(shape.turns):
        for place, sequence in enumerate(sequences):
            sequence.turn_limit = said
            if index == 1:
                sequence.stream = np.random.Generator(np.random.Philox(key=[number, place]))
        if index == 0 and not reprefill:
            batch = decoder.start(sequences)
        elif reprefill:
            batch = _computed_again(decoder, sequences)
        else:
            batch = decoder.resume(batch)
        halted = DecodingBatch()
        while batch.sequences:
            batch, halted = decoder.draw(batch)
            if batch.sequences:
                decoder.advance(batch)
        batch = halted
        answers = {case: text(inserted) for case in range(shape.cases)}
        for sequence in sequences:
            # The profile is one a case; results depend on the query that a sequence chose.
            sequence.insert(answers[sequence.tag] if index == 0 else text(inserted))
    return sequences


def _computed_again(decoder: Decoder, sequences: Sequence[DecodingSequence]) -> DecodingBatch:
    cache = decoder.empty_cache(len(sequences))
    logits = decoder.prefill([sequence.tokens for sequence in sequences], cache)
    for sequence in sequences:
        sequence.start_turn()
    mx.eval(logits, [c.state for c in cache])
    return DecodingBatch(list(sequences), cache, logits)
