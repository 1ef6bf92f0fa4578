"""Alarms: what goes wrong in reinforcement learning, noticed while it happens.

An alarm looks at the metrics of the last steps and nothing else, so a resumed run that reads
its old metrics again stands exactly where it stood. Each alarm stops the run, warns, or is off
by configuration; a run that is stopped has saved a checkpoint first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import QAgentError

ACTIONS = ("stop", "warn", "off")
Metrics = dict[str, Any]


@dataclass(frozen=True)
class AlarmConfig:
    """What each alarm does (``stop``, ``warn`` or ``off``) and from where on."""

    format: str = "stop"  # chains no longer end in a recommendation
    format_floor: float = 0.2  # share of chains that do
    entropy: str = "warn"  # the policy samples the same chain again and again
    entropy_floor: float = 0.005  # nats a token
    kl: str = "stop"  # the policy runs away from its reference
    kl_ceiling: float = 5.0  # nats a token
    dropped: str = "warn"  # no group has any spread in its rewards: nothing is learned any more
    ratio: str = "warn"  # the policy scores its own samples differently
    ratio_ceiling: float = 0.05  # log-probability
    memory: str = "stop"  # the estimate before the first step exceeds what there is
    memory_share: float = 0.9  # of the memory that this process may use
    patience: int = 5  # steps in a row before an alarm rings; ratio rings at once

    def check(self) -> None:
        """Refuse actions and thresholds that mean nothing.

        Raises:
            QAgentError: names the alarm and what it may be.
        """
        for name in NAMES:
            if getattr(self, name) not in ACTIONS:
                raise QAgentError(
                    f"alarm {name}: {getattr(self, name)!r} is none of {', '.join(ACTIONS)}"
                )
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise QAgentError(f"alarm setting {one.name} must be a number from 0 on")
        if self.patience < 1:
            raise QAgentError("alarm setting patience must be at least 1")


NAMES = tuple(f.name for f in fields(AlarmConfig) if isinstance(f.default, str))


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that rang."""

    name: str
    action: str
    step: int
    reason: str


class AlarmStop(QAgentError):
    """An alarm stopped the run; everything up to its step is saved."""


def _seldom_format(rows: list[Metrics], config: AlarmConfig) -> str:
    values = [row.get("recommended") for row in rows]
    if all(v is not None and v < config.format_floor for v in values):
        return (
            f"format collapse: only {values[-1]:.0%} of the chains end in a recommendation "
            f"(floor {config.format_floor:.0%}); lower --learning-rate, raise --beta or the "
            "weight of format, or start from a better SFT policy"
        )
    return ""


def _little_entropy(rows: list[Metrics], config: AlarmConfig) -> str:
    values = [row.get("entropy") for row in rows]
    if all(v is not None and v < config.entropy_floor for v in values):
        return (
            f"entropy collapse: {values[-1]:.4f} nats a token (floor {config.entropy_floor:g}), "
            "the chains of a group are all alike; lower --learning-rate, raise --clip-high or "
            "--beta, or stop here"
        )
    return ""


def _kl_runs_away(rows: list[Metrics], config: AlarmConfig) -> str:
    values = [row.get("kl") for row in rows]
    if all(v is not None and not v <= config.kl_ceiling for v in values):
        return (
            f"KL runaway: {values[-1]:.2f} nats a token from the reference (ceiling "
            f"{config.kl_ceiling:g}); lower --learning-rate or raise --beta"
        )
    return ""


def _all_dropped(rows: list[Metrics], config: AlarmConfig) -> str:
    if all(row["dropped_groups"] >= row["groups"] for row in rows):
        return (
            "all groups dropped: the chains of every group scored the same, so nothing was "
            "learned; if the policy has not settled yet, raise --group or --cases-per-step, try "
            "--dynamic-sampling, or check the reward weights"
        )
    return ""


def _ratio_off(rows: list[Metrics], config: AlarmConfig) -> str:
    drift = rows[-1].get("ratio_drift")
    if drift is not None and not drift <= config.ratio_ceiling:
        return (
            f"the first ratio is not 1: the policy scores its own samples differently "
            f"(log-probability off by {drift:.3f}, ceiling {config.ratio_ceiling:g}); use "
            "float32, or report this with the model's name"
        )
    return ""


_CHECKS: dict[str, Callable[[list[Metrics], AlarmConfig], str]] = {
    "format": _seldom_format,
    "entropy": _little_entropy,
    "kl": _kl_runs_away,
    "dropped": _all_dropped,
    "ratio": _ratio_off,
}


@dataclass
class Monitor:
    """Looks at each step's metrics.

    An alarm that warns rings once, and again only after it has been quiet for a step.
    """

    config: AlarmConfig
    _rows: deque[Metrics] = field(init=False)
    _ringing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.config.check()
        self._rows = deque(maxlen=self.config.patience)

    def replay(self, rows: Iterable[Metrics]) -> None:
        """Take the steps of a run that goes on; nothing rings."""
        for row in rows:
            self.look(row)
        # What stopped the run and was then allowed or put right may ring anew.
        self._ringing = {n for n in self._ringing if getattr(self.config, n) == "warn"}

    def look(self, row: Metrics) -> list[Alarm]:
        """The alarms that ring at this step, those that stop the run first."""
        self._rows.append(row)
        rang = []
        for name, check in _CHECKS.items():
            action = getattr(self.config, name)
            recent = list(self._rows)
            enough = name == "ratio" or len(recent) == self.config.patience
            reason = check(recent, self.config) if action != "off" and enough else ""
            if reason and name not in self._ringing:
                rang.append(Alarm(name, action, int(row["step"]), reason))
            if reason:
                self._ringing.add(name)
            else:
                self._ringing.discard(name)
        return sorted(rang, key=lambda alarm: alarm.action != "stop")


def with_actions(config: AlarmConfig, pairs: Iterable[str]) -> AlarmConfig:
    """The configuration with ``NAME=ACTION`` or ``THRESHOLD=NUMBER`` pairs put in.

    Raises:
        QAgentError: a name or value is unknown; says which are known.
    """
    values: dict[str, Any] = {}
    known = {f.name: f for f in fields(AlarmConfig)}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or name not in known:
            raise QAgentError(
                f"--alarm {pair}: write NAME=stop|warn|off with NAME one of {', '.join(NAMES)}, "
                f"or THRESHOLD=NUMBER with one of {', '.join(n for n in known if n not in NAMES)}"
            )
        default = known[name].default
        if isinstance(default, str):
            values[name] = text
            continue
        try:
            values[name] = int(text) if isinstance(default, int) else float(text)
        except ValueError:
            raise QAgentError(f"--alarm {pair}: {name} must be a number") from None
    made = replace(config, **values)
    made.check()
    return made
