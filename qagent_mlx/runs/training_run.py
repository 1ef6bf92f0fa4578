"""Start and resume recorded training runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..distributed.world import World
from ..errors import QAgentError
from ..policy.lora import LoraConfig
from ..policy.policy import Policy
from ..policy.registry import derive, resolve
from ..protocol.config import AgentConfig
from ..shop.shop import Shop
from ..utils.settings import SettingError, merge
from . import checkpoint
from .loop import TrainingLoop
from .records import Alert, LoopResult, TrainingReport
from .run import Run, SilentRun, free_name, run_lock, run_names

Report = TypeVar("Report", bound=TrainingReport)


@dataclass(frozen=True)
class TrainingRun(Generic[Report]):
    """A recorded run of one algorithm.

    Attributes:
        shop: Where the run and the policy are stored.
        kind: The kind of training, such as ``grpo``.
        settings: All settings of the training, a dataclass.
        loop: Takes the steps.
        report: Makes the training's report of how the loop ended.
    """

    shop: Shop
    kind: str
    settings: Any
    loop: TrainingLoop
    report: Callable[[LoopResult], Report]

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""
        return self.loop.algorithm.policy

    def start(
        self,
        name: str | None,
        parent: str,
        about: dict[str, Any],
        save_inputs: Callable[[Path], None],
        alerts: Sequence[Alert] = (),
    ) -> Report:
        """Make a new run, train, and save the policy.

        Args:
            name: Of the run; the policy's name, with a number when that is taken, by default.
            parent: The policy that training begins from, as the user names it.
            about: More entries of the run's config.
            save_inputs: Writes what the run is trained on into its folder; the shop's database
                is not needed afterwards and is closed.
            alerts: What fired before the first step.
        """
        algorithm, workers, info = self.loop.algorithm, self.loop.world, self.policy.info
        workers.assert_equal(f"policies {parent}", info.base_fingerprint)
        if not workers.is_main_process:
            return self._run(_announced(workers, self.shop), algorithm.begin())
        name = name or free_name(info.name, run_names(self.shop))
        config = {
            "kind": self.kind,
            "policy": info.name,
            "base": _lasting_name(self.shop, parent),
            "base_fingerprint": info.base_fingerprint,
            "train": asdict(self.settings),
            "agent": asdict(info.agent),
            "catalog_version": self.shop.catalog_version,
            **about,
        }
        with run_lock(self.shop, name):
            record = Run.prepare(self.shop, name, config)
            save_inputs(record.folder)
            self.shop.close()
            _announce(workers, record)
            state = algorithm.begin()
            folder = record.folder / "checkpoints"
            checkpoint.save(folder, 0, self.policy, algorithm.optimizer, state)
            record.commit()
            record.append("alarms", map(asdict, alerts))
            return self._run(record, state)

    def resume(self, record: Run) -> Report:
        """Go on from a run's last checkpoint, exactly as if it had never stopped.

        Raises:
            QAgentError: there is no checkpoint, or the workers have different ones.
        """
        workers = self.loop.world
        if not workers.is_main_process:
            silent = _announced(workers, self.shop)
            state = self._restore(silent.folder)
            workers.assert_equal("checkpoints", checkpoint.identity(state, self.policy))
            return self._run(silent, state or {})
        with run_lock(self.shop, record.name):
            state = self._restore(record.folder)
            if state is None:
                raise QAgentError(f"the run {record.name} has no checkpoint left; start a new one")
            step, steps = state["step"], self.loop.config.steps
            if steps < step:
                raise SettingError(
                    "steps", f"cannot be {steps}: the run {record.name} has {step} steps already"
                )
            record.rewind(step, asdict(self.settings))
            _announce(workers, record, step)
            workers.assert_equal("checkpoints", checkpoint.identity(state, self.policy))
            return self._run(record, state)

    def _restore(self, folder: Path) -> dict[str, Any] | None:
        optimizer = self.loop.algorithm.optimizer
        return checkpoint.restore(folder / "checkpoints", self.policy, optimizer)

    def _run(self, record: Run | SilentRun, state: dict[str, Any]) -> Report:
        result = replace(self.loop, record=record).run(state)
        policy = self.policy
        policy.info.trained.append(
            {
                "stage": self.kind,
                "run": record.name,
                "config": asdict(self.settings),
                "step": result.kept_step,
            }
        )
        report = self.report(result)
        if self.loop.world.is_main_process:
            policy.save(self.shop.folder("policies", policy.info.name))
            record.finish(report.to_dict())
        return report


def open_to_resume(shop: Shop, name: str, kind: str) -> Run:
    """The run of that name, if it is of a kind and has all that it needs to go on.

    Raises:
        QAgentError: it is not, or there is none.
    """
    record = Run.open(shop, name)
    if record.config.get("kind") != kind or "catalog_version" not in record.config:
        raise QAgentError(
            f"the run {name} is no {kind.upper()} run that can go on; start a new one"
        )
    return record


def policy_to_resume(shop: Shop, record: Run, lora: LoraConfig, seed: int) -> Policy:
    """The policy of a run, as it was before its first step.

    Raises:
        QAgentError: the policy that the run began from has changed since.
    """
    config = record.config
    policy = derive(shop, config["base"], config["policy"], lora, seed)
    record.require_base(policy.info.base_fingerprint)
    policy.info.agent = merge(AgentConfig(), config["agent"], f"the run {record.name}")
    return policy


def _lasting_name(shop: Shop, policy: str) -> str:
    """A policy's name, or its path made absolute: it leads to the policy from any folder."""
    folder = resolve(shop, policy)
    return str(folder) if folder == Path(policy).expanduser().resolve() else policy


def _announce(workers: World, record: Run, step: int = 0) -> None:
    """Tell the other workers which run begins, or goes on after which step."""
    if workers.size > 1:
        workers.all_gather_texts(json.dumps([record.name, step]))


def _announced(workers: World, shop: Shop) -> SilentRun:
    """The run that the main process announces; returns when it does."""
    name, step = json.loads(workers.all_gather_texts("")[0])
    return SilentRun(shop.folder("runs", name), step)
