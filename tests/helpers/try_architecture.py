"""Takes one architecture through all that a policy does: act, SFT, GRPO, and being fused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from architectures import tiny_config, tiny_model
from mlx.utils import tree_flatten

from qagent_mlx.environment.environment import Environment
from qagent_mlx.errors import QAgentError
from qagent_mlx.models.composition import difference, run_whole
from qagent_mlx.policy.batches import TrainingSequence
from qagent_mlx.policy.export import fuse
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.policy import Policy
from qagent_mlx.policy.registry import derive
from qagent_mlx.policy.scoring import prepare, token_scores
from qagent_mlx.protocol.codec import AnyCodec, tokenizer_files
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.fit import FitConfig, LikelihoodTrainer
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_config import GrpoConfig

CLOSE = 0.01  # nats
# What the members of a group do, so that chains part, wait for tools and end at different times.
SCRIPTS = (
    "<fetch_memory/><search><r0></search><recommend><s1></recommend>",
    "<fetch_memory/><search><r1></search><search><r0></search><recommend><s2></recommend>",
    "<fetch_memory/><search>desk lamp</search><recommend><r0></recommend>",
)
STAGES = ("zero-shot", "sft", "grpo", "fuse")


@dataclass
class Report:
    """What an architecture can do; ``stages`` has an empty text or why not."""

    name: str
    runs_as: str = ""
    one_by_one: bool = False  # decodes a context at a time
    shares: bool = False  # computes a group's prefix once
    stages: dict[str, str] | None = None


def write_folder(name: str, tokenizer: Any, folder: Path) -> Path:
    """A model folder of this architecture with random weights."""
    config = tiny_config(name, tokenizer.get_vocab_size())
    model = tiny_model(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    for file, write in tokenizer_files(tokenizer).items():
        write(folder / file)
    return folder


def try_architecture(
    name: str,
    tokenizer: Any,
    environment_of: Callable[[AnyCodec], Environment],
    shop: Shop,
    place: Path,
) -> Report:
    """Go through all stages; one that fails is reported, and the next is tried."""
    report = Report(name, stages=dict.fromkeys(STAGES, "not tried"))
    assert report.stages is not None
    try:
        folder = write_folder(name, tokenizer, place / name)
        policy = load_policy(folder)
        environment = environment_of(policy.codec)
        report.runs_as, report.one_by_one = policy.composition, not policy.decodes_batches
        chains = _act(policy, environment)
        report.stages["zero-shot"] = ""
    except Exception as error:
        report.stages["zero-shot"] = _said(error)
        return report
    try:
        policy = derive(shop, str(folder), name, LoraConfig(rank=4))
        report.shares = policy.shares_prefixes
        _sft(policy, chains)
        report.stages["sft"] = ""
        _grpo(policy, environment)
        report.stages["grpo"] = ""
        _fuse(policy, place / f"{name}-policy", place / f"{name}-fused")
        report.stages["fuse"] = ""
    except Exception as error:
        stage = next(s for s in STAGES if report.stages[s])
        report.stages[stage] = _said(error)
    return report


def _said(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, QAgentError) else f"{type(error).__name__}: {text}"


def _act(policy: Policy, environment: Environment) -> list[TrainingSequence]:
    """Scripted chains, whose log-probabilities must be those of the model's own forward pass."""
    scripts = [policy.codec.encode(text) for text in SCRIPTS]
    runner = environment.rollout_runner(policy, policy.info.agent)

    def scripted(
        logits: mx.array, sequences: Sequence[Any], context_of: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        norm = mx.logsumexp(logits, axis=-1)
        ids = [scripts[s.tag.member][sum(s.sampled)] for s in sequences]
        values = [float(logits[row, i] - norm[row]) for i, row in zip(ids, context_of, strict=True)]
        return ids, values

    runner.decoder.sample = scripted  # type: ignore[method-assign]
    tasks = [e.task for e in environment.of_split("train")[:3]]
    chains = []
    for rollout in runner.run(tasks, len(SCRIPTS), (0,)):
        own = run_whole(policy.model, mx.array([rollout.tokens]))[0]
        logprobs = np.array(own - mx.logsumexp(own, axis=-1, keepdims=True))
        for place, token in enumerate(rollout.tokens):
            if rollout.trained_mask[place]:
                wanted = logprobs[place - 1, token]
                got = rollout.logprobs[place - rollout.prompt_length]
                assert abs(wanted - got) <= CLOSE, f"sampled {got:.3f}, scored {wanted:.3f}"
        chains.append(TrainingSequence(list(rollout.tokens), rollout.trained_mask, rollout.case))
    assert len({len(c.tokens) for c in chains}) > 1
    return chains


def _sft(policy: Policy, chains: list[TrainingSequence]) -> None:
    """A few steps, after which the chains are likelier; scores are the model's own throughout."""
    config = FitConfig(6, len(chains), 1e-2, warmup=1)
    trainer = LikelihoodTrainer(policy, lambda i, _: chains[i], len(chains), config)
    losses = [trainer.step(number).metrics["loss"] for number in range(6)]
    assert losses[-1] < losses[0], f"loss from {losses[0]:.3f} to {losses[-1]:.3f}"
    policy.model.eval()
    for item in prepare(policy, chains, 4096).batches:
        scores = token_scores(policy, item.batch)
        own = []
        for i in item.sequences:
            chain = chains[i]
            logits = run_whole(policy.model, mx.array([chain.tokens]))[0]
            logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
            own += [logprobs[p - 1, chain.tokens[p]] for p, t in enumerate(chain.trained) if t]
        off = np.abs(np.array(scores.logprobs) - np.array(own)).max()
        assert off <= CLOSE, f"scored {off:.3f} nats off"


def _grpo(policy: Policy, environment: Environment) -> None:
    """Two steps with a reward that differs among chains: first ratio 1, then away from it."""
    components = {"odd": lambda outcome: (sum(outcome.rollout.tokens) % 97) / 96}
    config = GrpoConfig(
        cases_per_step=3,
        group=4,
        learning_rate=1e-2,
        warmup=0,
        solvable=False,
        weights={"odd": 1.0},
    )
    trainer = GrpoTrainer(policy, environment, config, components)
    first, second = (trainer.step(number).metrics for number in range(2))
    assert first["ratio_drift"] <= CLOSE, f"the first ratio is off by {first['ratio_drift']:.3f}"
    assert first["grad_norm"] > 0 and np.isfinite(second["grad_norm"])
    assert np.isfinite(second["kl"]) and second["kl"] > 0


def _fuse(policy: Policy, folder: Path, target: Path) -> None:
    """What is fused computes what the policy does, here and in mlx-lm."""
    from mlx_lm.utils import load_model

    tokens = mx.array([[60, 61, 62, 63, 64, 65]])
    wanted = policy.logits(tokens)
    policy.save(folder)
    fuse(folder, target, "float32")
    assert difference(load_policy(target).logits(tokens), wanted) <= CLOSE
    model, _ = load_model(target)
    assert difference(run_whole(model, tokens), wanted) <= CLOSE
