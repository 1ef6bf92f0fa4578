"""SFT cold start: a LoRA adapter learns the protocol from demonstration chains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from shlex import quote
from typing import Any

import mlx.optimizers as optim
import numpy as np

from ..distributed import world
from ..distributed.stop_signal import Stopped, StopRequested, StopSignal
from ..environment.cases import SplitConfig
from ..environment.environment import Environment, Example, evaluate_policy
from ..environment.rewards import WEIGHTS
from ..errors import QAgentError
from ..policy.lora import LoraConfig
from ..policy.policy import Policy
from ..policy.registry import derive
from ..protocol.codec import ChatCodec
from ..protocol.config import AgentConfig
from ..runs import checkpoint
from ..runs.run import Run, free_name, policy_origin, run_lock, run_names
from ..shop.shop import Shop
from .config_files import merged
from .demonstrations import DemoConfig, Demonstrator
from .fit import FitConfig, fit

# A case told more often is known by its words. On half of Best Buy's users (some 150 cases that can
# be told) GRPO from such a start stayed below the memory's first line: cons@1 7.4 instead of 10.5.
PASSES = 2


@dataclass(frozen=True)
class SftConfig:
    """How the cold start is done."""

    steps: int = 60
    batch_size: int = 32
    learning_rate: float = 5e-4
    compare: float = 0.1
    # Share of chains in other words, see `disguise`; None: as the base was pretrained, and all of
    # them where there are so few cases that each is told more than `PASSES` times.
    disguise: float | None = None
    words: bool | None = None  # learn to write queries too; None: as the base was pretrained
    seed: int = 0
    save_every: int = 25
    keep: int = 2  # the last checkpoints that stay
    measured: int = 100  # validation cases for the reward before and after
    lora: LoraConfig = field(default_factory=LoraConfig)

    def check(self) -> None:
        """Refuse settings that cannot train anything.

        Raises:
            QAgentError: names the setting and what it may be.
        """
        for name in ("steps", "batch_size", "save_every", "keep", "measured"):
            if getattr(self, name) < 1:
                raise QAgentError(f"{name} must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise QAgentError("learning_rate must be above 0")
        for name in ("compare", "disguise"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise QAgentError(f"{name} is a share of the chains, from 0 to 1")
        if self.seed < 0:
            raise QAgentError("seed must be a number from 0 on")
        self.lora.check()


def train_sft(
    shop: Shop,
    policy: str = "base",
    name: str = "sft",
    config: SftConfig | None = None,
    agent: AgentConfig | None = None,
    split: SplitConfig | None = None,
    run: str | None = None,
    environment: Environment | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train an adapter on demonstrations and save it as ``policies/<name>``.

    The shop's database is only read at the start; afterwards it may be written to.

    Args:
        shop: With an index.
        policy: What to start from: a policy of the shop or a model folder.
        name: What the new policy is called; an older one of that name is replaced.
        config: Length and speed of training.
        agent: How chains run; by default as the base policy's.
        split: Which cases are trained on.
        environment: Cases that are at hand already; made from the shop by default.
        run: Name of the run; ``name`` by default.
        on_step: Called after each step with its numbers.

    Returns:
        run, policy, steps, reward_first, reward_last (mean greedy reward of validation
        cases before and after), seconds, tokens_per_s.

    Raises:
        QAgentError: a setting or the data do not serve; `Stopped` when SIGTERM or Ctrl-C
            ended the run, after a checkpoint was written.
    """
    config = config or SftConfig()
    config.check()
    trained = derive(shop, policy, name, config.lora, config.seed)
    agent = agent or trained.info.agent
    trained.info.agent = agent
    environment = environment or Environment.shared(
        shop, lambda: Environment.of_shop(shop, trained.codec, agent, split)
    )
    demonstrations = _demonstrations(environment, trained, config)
    workers = world.current_world()
    workers.assert_equal(f"policies {policy}", trained.info.base_fingerprint)
    if not workers.is_main_process:
        silent, optimizer = workers.silent_run(shop), _optimizer(trained, config)
        before = _reward(environment, trained, config)
        return _run(
            shop,
            silent,
            trained,
            environment,
            demonstrations,
            config,
            optimizer,
            0,
            before,
            on_step,
        )
    run = run or free_name(name, run_names(shop))
    with run_lock(shop, run):
        record = Run.prepare(
            shop,
            run,
            {
                "kind": "sft",
                "policy": name,
                **policy_origin(shop, policy, trained),
                "train": asdict(config),
                "agent": asdict(agent),
                "split": asdict(split or SplitConfig()),
                "catalog_version": shop.catalog_version,
                "cases": len(environment.of_split("train")),
            },
        )
        environment.save(record.folder)
        shop.close()
        workers.announce(record)
        optimizer = _optimizer(trained, config)
        before = _reward(environment, trained, config)
        state = {"reward_first": before}
        checkpoint.save(record.folder / "checkpoints", 0, trained, optimizer, state)
        record.commit()
        return _run(
            shop,
            record,
            trained,
            environment,
            demonstrations,
            config,
            optimizer,
            0,
            before,
            on_step,
        )


def resume_sft(
    shop: Shop, run: str, on_step: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Go on with a run from its last checkpoint, exactly as if it had never stopped.

    Args:
        shop: The run's shop; its database is not needed.
        run: The run's name.
        on_step: Called after each step with its numbers.
    """
    record = Run.open(shop, run)
    stored = record.config
    if stored.get("kind") != "sft" or "catalog_version" not in stored:
        raise QAgentError(f"the run {run} is no SFT run that can go on; start a new one")
    config: SftConfig = merged(SftConfig(), stored["train"], f"the run {run}")
    trained = derive(shop, stored["base"], stored["policy"], config.lora, config.seed)
    record.require_base(trained)
    trained.info.agent = merged(AgentConfig(), stored["agent"], f"the run {run}")
    environment = Environment.resume(shop, record.folder, stored["catalog_version"])
    demonstrations = _demonstrations(environment, trained, config)
    optimizer = _optimizer(trained, config)
    workers = world.current_world()
    if not workers.is_main_process:
        silent = workers.silent_run(shop)
        state = checkpoint.restore(silent.folder / "checkpoints", trained, optimizer)
        workers.assert_equal("checkpoints", checkpoint.identity(state, trained))
        assert state is not None
        return _run(
            shop,
            silent,
            trained,
            environment,
            demonstrations,
            config,
            optimizer,
            silent.step,
            state["reward_first"],
            on_step,
        )
    with run_lock(shop, run):
        state = checkpoint.restore(record.folder / "checkpoints", trained, optimizer)
        if state is None:
            raise QAgentError(f"the run {run} has no checkpoint left; start a new one")
        record.go_on(state["step"], asdict(config))
        workers.announce(record, state["step"])
        workers.assert_equal("checkpoints", checkpoint.identity(state, trained))
        return _run(
            shop,
            record,
            trained,
            environment,
            demonstrations,
            config,
            optimizer,
            state["step"],
            state["reward_first"],
            on_step,
        )


def _demonstrations(
    environment: Environment, policy: Policy, config: SftConfig
) -> tuple[Demonstrator, list[tuple[Example, int]]]:
    stages = policy.info.trained
    base: dict[str, Any] = next((s["config"] for s in stages if s.get("stage") == "pretrain"), {})
    demonstrator = Demonstrator(
        environment,
        policy,
        policy.info.agent,
        DemoConfig(
            compare=config.compare,
            noise=0.0,
            reachable=True,
            disguise=base.get("disguise", 0.0) if config.disguise is None else config.disguise,
            words=base.get("words", False) if config.words is None else config.words,
        ),
    )
    usable = demonstrator.usable(environment.of_split("train"))
    if not usable:
        raise QAgentError(
            "no training case has a line in memory that was right; ingest a longer log"
        )
    told = config.steps * min(config.batch_size, len(usable)) / len(usable)
    demos = demonstrator.config
    # What a policy is to write is told in its own words: those alone would say: write.
    if config.disguise is None and demos.disguise and not demos.words and told > PASSES:
        demonstrator.config = replace(demos, disguise=1.0)
    return demonstrator, usable


def _optimizer(policy: Policy, config: SftConfig) -> optim.Optimizer:
    optimizer = optim.AdamW(learning_rate=config.learning_rate, weight_decay=FitConfig.weight_decay)
    optimizer.init(policy.model.trainable_parameters())
    return optimizer


def _reward(environment: Environment, policy: Policy, config: SftConfig) -> float:
    policy.model.eval()
    validation = environment.of_split("validation")[: config.measured]
    return evaluate_policy(environment, policy, validation, WEIGHTS)["reward"]


def _run(
    shop: Shop,
    record: Run | world.SilentRun,
    policy: Policy,
    environment: Environment,
    demonstrations: tuple[Demonstrator, list[tuple[Example, int]]],
    config: SftConfig,
    optimizer: optim.Optimizer,
    first: int,
    before: float,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    start = time.perf_counter()
    places = record.folder / "checkpoints"
    workers = world.current_world()
    if workers.is_main_process:
        checkpoint.clear(places)
    demonstrator, usable = demonstrations
    done = first
    rows = list(record.rows("metrics"))
    workers.barrier()  # from here on the first worker adds rows and checkpoints

    def save() -> None:
        if workers.is_main_process:
            state = {"reward_first": before}
            checkpoint.save(places, done, policy, optimizer, state, config.keep)

    def note(row: dict[str, float]) -> None:
        nonlocal done
        done += 1
        rows.append(row)
        record.append("metrics", [row])
        if done % config.save_every == 0 or done == config.steps:
            save()
        if on_step is not None:
            on_step({**row, "steps": config.steps})

    # A chat model's instructions are long and the same for all: one group computes them once.
    together = isinstance(policy.codec, ChatCodec)
    with StopSignal() as stop:
        try:
            report = fit(
                policy,
                lambda i, step: demonstrator.chain(
                    *usable[i], np.random.default_rng([config.seed, step, i]), 0 if together else i
                ),
                len(usable),
                FitConfig(
                    config.steps,
                    min(config.batch_size, len(usable)),
                    config.learning_rate,
                    warmup=10,
                    seed=config.seed,
                ),
                note,
                optimizer,
                first,
                lambda: stop.check(workers),
                int(rows[-1]["tokens"]) if rows else 0,
            )
        except StopRequested:
            save()
            raise Stopped(
                f"stopped by {stop.name} after step {done}, which is saved; go on with: qagent "
                f"train sft --resume --run {record.name} --shop {quote(str(shop.path))}",
                stop.number,
            ) from None
    after = _reward(environment, policy, config)
    if not workers.is_main_process:
        return {}
    policy.info.trained.append({"stage": "sft", "run": record.name, "config": asdict(config)})
    policy.save(shop.folder("policies", policy.info.name))
    losses = [row["loss"] for row in rows]
    tenth = max(1, len(losses) // 10)
    spent = sum(row["seconds"] for row in rows)
    summary = {
        "run": record.name,
        "policy": policy.info.name,
        "steps": len(rows),
        "reward_first": before,
        "reward_last": after,
        "loss_first": float(np.mean(losses[:tenth])),
        "loss_last": float(np.mean(losses[-tenth:])),
        "seconds": round(time.perf_counter() - start, 1),
        "tokens_per_s": round(report["tokens"] / max(spent, 1e-9)),
    }
    record.finish(summary)
    return summary
