"""Start and resume recorded training runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..distributed.world import World
from ..errors import QAgentError
from ..models.fingerprint import fingerprint
from ..policy.calibration import Calibration
from ..policy.files import read_info
from ..policy.lora import LoraConfig
from ..policy.policy import Policy, PolicyInfo
from ..policy.registry import derive, lasting_name
from ..protocol.config import AgentConfig
from ..shop.policy_folders import (
    Reservation,
    parse_reference,
    reserve,
    save_version,
    version_folders,
)
from ..shop.shop import Shop
from ..utils.settings import SettingError, merge
from . import checkpoint
from .loop import TrainingLoop
from .records import Alert, LoopResult, TrainingReport
from .run import Run, free_name, run_lock, run_names

Report = TypeVar("Report", bound=TrainingReport)


@dataclass(frozen=True)
class TrainingRun(Generic[Report]):
    """A recorded run of one algorithm."""

    shop: Shop  # where the run and the policy are stored
    kind: str  # of training, such as ``grpo``
    settings: Any  # all settings of the training, a dataclass
    loop: TrainingLoop
    report: Callable[[LoopResult], Report]  # of how the loop ended
    calibrate: Callable[[], Calibration | None]  # what the trained policy's votes are worth

    def start(
        self,
        name: str | None,
        parent: str,
        about: dict[str, Any],
        save_inputs: Callable[[Path], None],
        alerts: Sequence[Alert] = (),
    ) -> Report:
        """Make a new run, train, and save the policy.

        The run has the policy's name by default, with a number when that is taken. ``parent`` is
        the policy that training begins from, as the user names it; ``about`` more entries of the
        run's config. ``save_inputs`` writes what the run is trained on into its folder: the shop's
        database is closed then. ``alerts`` are those that fired before the first step.
        """
        algorithm, workers, info = self.loop.algorithm, self.loop.world, self._policy.info
        workers.assert_equal(f"policies {parent}", info.base_fingerprint)
        snapshot = self.shop.lake_snapshot
        if len(set(workers.all_gather_texts(str(snapshot)))) > 1:
            raise QAgentError(
                "the workers read different snapshots of the lake, as something came in meanwhile; "
                "give each machine a shop of one snapshot (qagent init --store ADDRESS --snapshot "
                f"{snapshot}), and train in these"
            )
        if not workers.is_main_process:
            return self._run(_announced(workers, self.shop), algorithm.begin())
        name = name or free_name(info.name, run_names(self.shop))
        config = {
            "kind": self.kind,
            "policy": info.name,
            "base": lasting_name(self.shop, parent),
            "base_fingerprint": info.base_fingerprint,
            "train": asdict(self.settings),
            "agent": asdict(info.agent),
            "catalog_version": self.shop.catalog_version,
            "snapshot": snapshot,
            **about,
        }
        with run_lock(self.shop, name):
            record = Run.prepare(self.shop, name, config)
            save_inputs(record.folder)
            self.shop.close()
            _announce(workers, record)
            state = algorithm.begin()
            checkpoint.save(record.checkpoints, 0, self._policy, algorithm.optimizer, state)
            self._reserve(record)
            record.append("alarms", map(asdict, alerts))
            return self._run(record, state)

    def resume(self, record: Run) -> Report:
        """Go on from a run's last checkpoint, exactly as if it had never stopped."""
        workers = self.loop.world
        if not workers.is_main_process:
            record = _announced(workers, self.shop)
            return self._go_on(record, self._restore(record))
        with run_lock(self.shop, record.name):
            state = self._restore(record)
            if not state:
                raise QAgentError(f"the run {record.name} has no checkpoint left; start a new one")
            step, steps = state["step"], self.loop.config.steps
            if steps < step:
                raise SettingError(
                    "steps", f"cannot be {steps}: the run {record.name} has {step} steps already"
                )
            record.rewind(step, asdict(self.settings))
            if "version" not in record.config:  # of before policies had versions
                self._reserve(record)
            _announce(workers, record)
            return self._go_on(record, state)

    def _restore(self, record: Run) -> dict[str, Any]:
        """Put the last checkpoint in place; returns its state, empty where there is none."""
        optimizer = self.loop.algorithm.optimizer
        return checkpoint.restore(record.checkpoints, self._policy, optimizer) or {}

    def _go_on(self, record: Run, state: dict[str, Any]) -> Report:
        identity = checkpoint.identity(state, self._policy)
        self.loop.world.assert_equal("checkpoints", identity)
        return self._run(record, state)

    def _run(self, record: Run, state: dict[str, Any]) -> Report:
        result = replace(self.loop, record=record).run(state)
        policy = self._policy
        policy.info = policy.info.with_stage(
            stage=self.kind,
            run=record.name,
            config=asdict(self.settings),
            step=result.kept_step,
            validation=result.validation.get("reward"),
        )
        report = self.report(result)
        if record.writable:
            policy.calibration = self.calibrate()
            report = replace(report, version=self._save(record))
        record.finish(report.to_dict())
        return report

    def _reserve(self, record: Run) -> Reservation:
        """Take the number of the version that the run will save, and note it with the run."""
        base = record.config["base"]
        reservation = reserve(
            self.shop.path / "policies",
            self._policy.info.name,
            base if parse_reference(base)[1] else "",
            record.name,
        )
        record.config["version"] = reservation.number
        record.commit()
        return reservation

    def _save(self, record: Run) -> int:
        """Save the version that the run reserved, or a new one where that has other weights.

        Returns its number. A run that was trained longer leaves what it saved before as it is.
        """
        policies, policy = self.shop.path / "policies", self._policy
        number: int = record.config["version"]
        saved = version_folders(policies, policy.info.name).get(number)
        info = read_info(saved) if saved else None
        if saved and info and _is_same_training(info, policy.info):
            policy.folder = saved  # a kill came after it was saved
            return number
        base = record.config["base"] if parse_reference(record.config["base"])[1] else ""
        reservation = Reservation(policy.info.name, number, base, record.name)
        if saved:
            reservation = self._reserve(record)
        reservation = save_version(policies, reservation, policy.save)
        policy.folder = policies / reservation.name / str(reservation.number)
        if reservation.number != record.config["version"]:
            record.config["version"] = reservation.number
            record.commit()
        return reservation.number

    @property
    def _policy(self) -> Policy:
        return self.loop.algorithm.policy


def open_to_resume(shop: Shop, name: str, kind: str) -> Run:
    """The run of that name, if it is of a kind and has all that it needs to go on."""
    record = Run.open(shop, name)
    if record.config.get("kind") != kind or "catalog_version" not in record.config:
        raise QAgentError(
            f"the run {name} is no {kind.upper()} run that can go on; start a new one"
        )
    return record


def policy_to_resume(shop: Shop, record: Run, lora: LoraConfig, seed: int) -> Policy:
    """The policy of a run, as it was before its first step; refuses one that has changed since."""
    config = record.config
    policy = derive(shop, _base(shop, config), config["policy"], lora, seed)
    fingerprint = config.get("base_fingerprint")
    if fingerprint and fingerprint != policy.info.base_fingerprint:
        raise QAgentError(
            f"the policy {config['base']} has changed since the run {record.name} began from it, "
            "so it cannot go on exactly; put the old one back, or start a new run"
        )
    agent = merge(AgentConfig(), config["agent"], f"the run {record.name}")
    policy.info = replace(policy.info, agent=agent)
    return policy


def _base(shop: Shop, config: dict[str, Any]) -> str:
    """What a run started from; runs of before policies had versions name none."""
    name: str = config["base"]
    if Path(name).is_absolute():
        return name
    for number, folder in version_folders(shop.path / "policies", name).items():
        if fingerprint(folder) == config.get("base_fingerprint"):
            return f"{name}@{number}"
    return name


def _is_same_training(first: PolicyInfo, second: PolicyInfo) -> bool:
    """Whether two policies have the weights of the same step of the same run."""
    stages = [json.loads(json.dumps(info.trained[-1])) for info in (first, second)]
    return all(stages[0].get(key) == stages[1].get(key) for key in ("run", "config", "step"))


def _announce(workers: World, record: Run) -> None:
    """Tell the other workers which run begins or goes on."""
    if workers.size > 1:
        workers.all_gather_texts(record.name)


def _announced(workers: World, shop: Shop) -> Run:
    """The run that the main process announces, not to be written; returns when it does."""
    name = workers.all_gather_texts("")[0].rstrip()
    return Run(shop.folder("runs", name), {}, writable=False)
