"""Distillation: a large policy's validated chains teach a small one.

The teacher samples chains on training cases. Those that ended in a recommendation which they
had searched are told again in the student's tokenizer, over the memory as the student will
read it, and the student learns them by maximum likelihood (sequence-level distillation,
arXiv:1606.07947; rejection of what is not validated as in arXiv:2203.14465).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..agent.types import Rollout
from ..environment.cases import SplitConfig
from ..environment.environment import Environment, Example, evaluate_policy
from ..environment.rewards import WEIGHTS
from ..errors import QAgentError
from ..policy.lora import LoraConfig
from ..policy.registry import derive, open_policy
from ..policy.scoring import TrainingSequence
from ..policy.small_llama import SIZES, new_policy, save_base
from ..protocol.codec import train_tokenizer
from ..protocol.config import AgentConfig
from ..shop.shop import Shop
from ..utils.text import query_key
from .demonstrations import DemoConfig, Demonstrator
from .fit import FitConfig, fit
from .pretrain import shop_texts


@dataclass(frozen=True)
class DistillConfig:
    """How many chains are sampled, and how the student learns them."""

    cases: int = 1000  # training cases, spread over the log
    group: int = 4  # chains that the teacher samples for each
    steps: int = 350
    batch_size: int = 32
    learning_rate: float = 1e-3
    vocab_size: int = 2048
    read: float = 0.3  # share of what it reads that a new student learns too
    measured: int = 100  # validation cases for both policies' reward
    seed: int = 0
    lora: LoraConfig = field(default_factory=LoraConfig)  # of a student that exists already


def distill(
    shop: Shop,
    teacher: str,
    student: str = "tiny",
    name: str = "distilled",
    config: DistillConfig | None = None,
    split: SplitConfig | None = None,
    on_chain: Callable[[int, int], None] | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train a small policy on a large one's chains and save it as ``policies/<name>``.

    Args:
        shop: With an index.
        teacher: A policy.
        student: A size of `build.SIZES`, for a new model with a tokenizer of the shop's
            text; or a policy to put an adapter on.
        name: What the student is called.
        config: How long, how fast.
        split: Only cases of the training split are learned from.
        on_chain: Called with the teacher's finished chains and how many there will be.
        on_step: Called after each step of the student with its numbers.

    Returns:
        policy, teacher, chains (sampled), validated, kept, reward_teacher, reward_student
        (mean reward of greedy chains on validation cases), ms_teacher, ms_student (a chain of
        those), speedup, loss_first, loss_last, steps, seconds.

    Raises:
        QAgentError: the name is taken, or too few chains can be learned from.
    """
    config = config or DistillConfig()
    folder = shop.folder("policies", name)
    if folder.exists():
        raise QAgentError(f"the policy {name} exists; choose another --name or delete {folder}")
    start = time.perf_counter()
    master = open_policy(shop, teacher)
    theirs = Environment.of_shop(shop, master.codec, master.info.agent, split)
    chosen = _spread(theirs.of_split("train"), config.cases)
    if not chosen:
        raise QAgentError("there is no training case; ingest a longer log")
    rollouts = theirs.rollout_runner(master, master.info.agent).run(
        [e.task for e in chosen],
        config.group,
        (config.seed,),
        (lambda done: on_chain(done, len(chosen) * config.group)) if on_chain else None,
    )
    validated = [r for r in rollouts if r.validated and r.finish == "recommended"]

    agent = student_agent(master.info.agent)
    if student in SIZES:
        until = theirs.of_split("train")[-1].case.as_of
        tokenizer = train_tokenizer(shop_texts(shop, theirs, agent, until), config.vocab_size)
        policy, model_config = new_policy(tokenizer, student, name, config.seed)
    else:
        policy = derive(shop, student, name, config.lora, config.seed)
        agent = policy.info.agent
    policy.info.agent = agent
    own = Environment.of_shop(shop, policy.codec, agent, split)
    examples = {e.case.case_id: e for e in own.of_split("train")}
    lessons = []
    for rollout in validated:
        example = examples[chosen[rollout.case].case.case_id]
        lines = retold(example, rollout)
        if lines is not None:
            lessons.append((example, lines))
    if len(lessons) < min(config.batch_size, 4):
        raise QAgentError(
            f"of {len(rollouts)} chains of {teacher} only {len(lessons)} can be learned from "
            f"({len(validated)} were validated); train the teacher longer or raise --cases"
        )
    read = config.read if student in SIZES else 0.0
    demonstrator = Demonstrator(own, policy, agent, DemoConfig(read=read))

    def lesson(i: int, step: int) -> TrainingSequence:
        example, lines = lessons[i]
        random = np.random.default_rng([config.seed, step, i])
        return demonstrator.tell(example, example.profile, lines[:-1], lines[-1], random, i)

    report = fit(
        policy,
        lesson,
        len(lessons),
        FitConfig(
            config.steps,
            min(config.batch_size, len(lessons)),
            config.learning_rate,
            seed=config.seed,
        ),
        on_step,
    )
    counts = {"chains": len(rollouts), "validated": len(validated), "kept": len(lessons)}
    policy.info.trained.append(
        {"stage": "distil", "teacher": teacher, "config": asdict(config), **counts}
    )
    if student in SIZES:
        save_base(policy, tokenizer, model_config, folder)
    else:
        policy.save(folder)
    timed = {}
    for who, place, them in (("teacher", theirs, master), ("student", own, policy)):
        cases = _spread(place.of_split("validation"), config.measured)
        began = time.perf_counter()
        timed[f"reward_{who}"] = (
            evaluate_policy(place, them, cases, WEIGHTS)["reward"] if cases else 0.0
        )
        timed[f"ms_{who}"] = 1000 * (time.perf_counter() - began) / max(1, len(cases))
    return {
        "policy": name,
        "teacher": teacher,
        "parameters": policy.parameters,
        "parameters_teacher": master.parameters,
        **counts,
        **timed,
        "speedup": timed["ms_teacher"] / max(timed["ms_student"], 1e-9),
        "steps": config.steps,
        **report,
        "seconds": round(time.perf_counter() - start, 1),
    }


def student_agent(agent: AgentConfig) -> AgentConfig:
    """The teacher's way of working, with the turns of a policy whose tags are one token."""
    plain = AgentConfig()
    return replace(agent, turn_tokens=plain.turn_tokens, profile_budget=plain.profile_budget)


def retold(example: Example, rollout: Rollout) -> list[int] | None:
    """The lines that a chain searched, in order, the recommended one last; else None.

    Lines are those of the student's memory. A chain that searched something else, searched
    the same twice, or did what was refused is not told: it would teach no more than that.
    """
    if rollout.refused or rollout.repeated or not rollout.fetched:
        return None
    place: dict[str, int] = {}
    for i, query in enumerate(example.profile.references):
        place.setdefault(query_key(query), i)
    searched = [query_key(t.query) for t in rollout.turns if t.kind == "search"]
    if any(key not in place for key in searched):
        return None
    return [*(place[key] for key in searched), place[rollout.query_key]]


def _spread(examples: Sequence[Example], most: int) -> list[Example]:
    if len(examples) <= most:
        return list(examples)
    return [examples[i * len(examples) // most] for i in range(most)]
