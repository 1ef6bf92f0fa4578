"""Distillation: a large policy's validated chains teach a small one.

The teacher samples chains on training cases. Those that ended in a recommendation which they
had searched are retold in the student's tokenizer, over the memory as the student will read it,
and the student learns them by maximum likelihood (sequence-level distillation,
arXiv:1606.07947; rejection of what is not validated as in arXiv:2203.14465).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..agent.types import Rollout
from ..environment.cases import evenly_spaced
from ..environment.config import SplitConfig
from ..environment.environment import Environment, Example, evaluate_policy
from ..environment.rewards import WEIGHTS
from ..environment.scenarios import open_scenario
from ..environment.served_slates import calibrate
from ..errors import QAgentError
from ..policy.batches import TrainingSequence
from ..policy.policy import Policy
from ..policy.registry import derive, lasting_name, open_policy, save_next
from ..policy.small_llama import SIZES, new_policy, save_base
from ..protocol.codec import train_tokenizer
from ..protocol.config import AgentConfig
from ..runs.loop import OnStep
from ..shop.shop import Shop, check_name
from ..utils import settings
from ..utils.text import query_key
from .config import DistillConfig
from .demonstrations import DemoConfig, Demonstrator, Step
from .fit import FitConfig, FitReport, LikelihoodTrainer, fit
from .pretrain import shop_texts

OnChains = Callable[[int, int], None]


@dataclass(frozen=True)
class DistillReport(FitReport):
    """What came of a distillation; rewards and times are of greedy chains on validation cases."""

    teacher: str
    parameters: int  # of the student
    parameters_teacher: int
    chains: int  # that the teacher sampled
    validated: int  # of these
    kept: int  # of these, what the student could learn from
    reward_teacher: float
    reward_student: float
    ms_teacher: float  # for one chain
    ms_student: float
    speedup: float


@dataclass(frozen=True, slots=True)
class Lesson:
    """A chain of the teacher's, in references of the student's memory and in words."""

    example: Example
    searches: list[Step]
    recommended: Step


def distill(
    shop: Shop,
    teacher: str,
    student: str = "tiny",
    name: str = "distilled",
    config: DistillConfig | None = None,
    split: SplitConfig | None = None,
    on_chains: OnChains | None = None,
    on_step: OnStep | None = None,
) -> DistillReport:
    """Train a small policy on a large one's chains and save it as the next version of ``name``.

    Args:
        shop: With an index.
        teacher: A policy.
        student: A size of `small_llama.SIZES`, for a new model with a tokenizer of the shop's
            text; or a policy to put an adapter on.
        name: What the student is called.
        config: How long, how fast.
        split: Only cases of the training split are learned from.
        on_chains: Called with how many of the teacher's chains have ended, of how many.
        on_step: Called after each step of the student with its numbers.

    Raises:
        QAgentError: the name cannot be one, or too few chains can be learned from.
    """
    config = config or DistillConfig()
    settings.check(config)
    check_name(name, "policy")
    teacher = lasting_name(shop, teacher)
    start = time.perf_counter()
    master = open_policy(shop, teacher)
    scenario = open_scenario(shop, split)
    source = Environment.of_scenario(scenario, scenario.cases, master.codec, master.info.agent)
    examples = evenly_spaced(source.of_split("train"), config.cases)
    rollouts = _sample(source, master, examples, config, on_chains)
    validated = [r for r in rollouts if r.validated and r.finish == "recommended"]
    policy, save = _student((shop, scenario.shop), student, name, config, source, master.info.agent)
    target = Environment.of_scenario(scenario, scenario.cases, policy.codec, policy.info.agent)
    demos = DemoConfig(read=config.read if student in SIZES else 0.0)
    demonstrator = Demonstrator(target, policy, policy.info.agent, demos)
    lessons = _lessons(demonstrator, examples, validated)
    counts = {"chains": len(rollouts), "validated": len(validated), "kept": len(lessons)}
    _check_enough(counts, teacher, config)
    report = fit(_trainer(policy, demonstrator, lessons, config), on_step)
    policy.info = policy.info.with_stage(
        stage="distil", teacher=teacher, config=asdict(config), **counts
    )
    policy.calibration = calibrate(target, policy)
    version = save()
    measures = _compare((source, master), (target, policy), config.measured)
    seconds = round(time.perf_counter() - start, 1)
    return DistillReport(
        **report.to_dict() | counts | measures | {"seconds": seconds, "version": version},
        teacher=teacher,
        parameters=policy.parameters,
        parameters_teacher=master.parameters,
    )


def _check_enough(counts: Mapping[str, int], teacher: str, config: DistillConfig) -> None:
    """Raise `QAgentError` where too few of the teacher's chains can be learned from."""
    if counts["kept"] < min(config.batch_size, 4):
        raise QAgentError(
            f"of {counts['chains']} chains of {teacher} only {counts['kept']} can be learned from "
            f"({counts['validated']} were validated); train the teacher longer or raise cases"
        )


def _sample(
    environment: Environment,
    teacher: Policy,
    examples: Sequence[Example],
    config: DistillConfig,
    on_chains: OnChains | None,
) -> list[Rollout]:
    """The teacher's chains, ``config.group`` for each example."""
    if not examples:
        raise QAgentError("there is no training case; ingest a longer log")
    count = len(examples) * config.group
    return environment.rollout_runner(teacher, teacher.info.agent).run(
        [e.task for e in examples],
        config.group,
        (config.seed,),
        (lambda done: on_chains(done, count)) if on_chains else None,
    )


def _student(
    shops: tuple[Shop, Shop],
    student: str,
    name: str,
    config: DistillConfig,
    environment: Environment,
    agent: AgentConfig,
) -> tuple[Policy, Callable[[], int]]:
    """The student before it learns, and what saves it; environment and agent are the teacher's.

    ``shops`` are the one that has the policies, and the one with the texts.
    """
    shop, source = shops
    if student not in SIZES:
        policy = derive(shop, student, name, config.lora, config.seed)
        return policy, lambda: save_next(shop, policy)
    agent = student_agent(agent)
    until = environment.of_split("train")[-1].case.as_of
    tokenizer = train_tokenizer(shop_texts(source, environment, agent, until), config.vocab_size)
    policy, model_config = new_policy(tokenizer, student, name, config.seed)
    policy.info = replace(policy.info, agent=agent)

    def write(folder: Path) -> None:
        save_base(policy, tokenizer, model_config, folder)

    return policy, lambda: save_next(shop, policy, write)


def student_agent(agent: AgentConfig) -> AgentConfig:
    """The teacher's agent, with the turns of a policy whose tags are one token each."""
    plain = AgentConfig()
    return replace(agent, turn_tokens=plain.turn_tokens, profile_budget=plain.profile_budget)


def _lessons(
    demonstrator: Demonstrator, examples: Sequence[Example], rollouts: Sequence[Rollout]
) -> list[Lesson]:
    """The chains that the student can retell in its own environment."""
    own = {e.case.case_id: e for e in demonstrator.environment.of_split("train")}
    lessons = [
        retell(own[examples[r.case].case.case_id], r, demonstrator.can_write) for r in rollouts
    ]
    return [lesson for lesson in lessons if lesson is not None]


def retell(
    example: Example, rollout: Rollout, can_write: Callable[[str, Example], bool]
) -> Lesson | None:
    """A chain of the teacher's in references of the student's memory, or in words.

    A query that the student's memory has no line for is written where the student ``can_write``
    it. None for a chain that searched something else, searched the same twice, or did what was
    refused: it would teach no more than that.
    """
    if rollout.refused or rollout.repeated or not rollout.fetched:
        return None
    references: dict[str, int] = {}
    for i, query in enumerate(example.profile.references):
        references.setdefault(query_key(query), i)
    steps: dict[str, Step] = {}
    for turn in rollout.turns:
        if turn.kind != "search":
            continue
        key = query_key(turn.query)
        if key in references:
            steps[key] = references[key]
        elif can_write(turn.query, example):
            steps[key] = turn.query
        else:
            return None
    return Lesson(example, list(steps.values()), steps[rollout.query_key])


def _trainer(
    policy: Policy, demonstrator: Demonstrator, lessons: Sequence[Lesson], config: DistillConfig
) -> LikelihoodTrainer:
    """Teaches the lessons to the student."""

    def make_sequence(index: int, step: int) -> TrainingSequence:
        lesson = lessons[index]
        random = np.random.default_rng([config.seed, step, index])
        return demonstrator.write(
            lesson.example, lesson.searches, lesson.recommended, random, index
        )

    batch_size = min(config.batch_size, len(lessons))
    fit_config = FitConfig(config.steps, batch_size, config.learning_rate, seed=config.seed)
    return LikelihoodTrainer(policy, make_sequence, len(lessons), fit_config)


def _compare(
    teacher: tuple[Environment, Policy], student: tuple[Environment, Policy], most: int
) -> dict[str, float]:
    """Rewards and times of teacher and student, as `DistillReport` names them."""
    reward_teacher, ms_teacher = _measure(*teacher, most)
    reward_student, ms_student = _measure(*student, most)
    return {
        "reward_teacher": reward_teacher,
        "reward_student": reward_student,
        "ms_teacher": ms_teacher,
        "ms_student": ms_student,
        "speedup": ms_teacher / max(ms_student, 1e-9),
    }


def _measure(environment: Environment, policy: Policy, most: int) -> tuple[float, float]:
    """Mean reward of greedy chains on validation cases, and milliseconds a chain."""
    examples = evenly_spaced(environment.of_split("validation"), most)
    start = time.perf_counter()
    reward = evaluate_policy(environment, policy, examples, WEIGHTS)["reward"] if examples else 0.0
    return reward, 1000 * (time.perf_counter() - start) / max(1, len(examples))
