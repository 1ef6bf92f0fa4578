"""Alarms: what goes wrong in reinforcement learning, noticed while it happens.

An alarm looks at the metrics of the last steps and nothing else, so a resumed run that replays
its old metrics stands exactly where it stood. Each alarm stops the run, warns, or is off by
configuration; a run that is stopped has saved a checkpoint first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx

from ..errors import QAgentError
from ..policy.policy import Policy
from ..runs.records import Alert, Metrics
from ..utils import settings
from .config import AlarmConfig
from .grpo_config import GrpoConfig

AT_ONCE = ("gradient", "ratio")  # alarms that do not wait for more steps like it
DRIFT = 0.05  # log-probability by which sampler and scorer may differ in the first update
ROUNDED_DRIFT = 1.0  # the same in half precision, where single unlikely tokens differ much


def _last_of(
    recent: Sequence[Metrics], name: str, is_wrong: Callable[[float], bool]
) -> float | None:
    """The last value of a metric that was wrong in all recent steps; else None."""
    values = [metrics.get(name) for metrics in recent]
    return values[-1] if all(v is not None and is_wrong(v) for v in values) else None


def _format_collapses(recent: Sequence[Metrics], config: AlarmConfig) -> str:
    share = _last_of(recent, "recommended", lambda v: v < config.format_floor)
    if share is None:
        return ""
    return (
        f"format collapse: only {share:.0%} of the chains end in a recommendation (floor "
        f"{config.format_floor:.0%}); lower learning_rate, raise beta or the weight of format, or "
        "start from a better SFT policy"
    )


def _entropy_collapses(recent: Sequence[Metrics], config: AlarmConfig) -> str:
    # A step that updates nothing knows the surprise of what it sampled, which is the same in mean.
    steps = [{"entropy": m.get("entropy", m.get("surprise"))} for m in recent]
    entropy = _last_of(steps, "entropy", lambda v: v < config.entropy_floor)
    if entropy is None:
        return ""
    return (
        f"entropy collapse: {entropy:.4f} nats a token (floor {config.entropy_floor:g}), the "
        "chains of a group are all alike; lower learning_rate, raise clip_high or beta, or stop "
        "here"
    )


def _searches_collapse(recent: Sequence[Metrics], config: AlarmConfig) -> str:
    share = _last_of(recent, "first_line", lambda v: v > config.first_line_ceiling)
    if share is None:
        return ""
    return (
        f"search collapse: {share:.1%} of the chains search the first line of memory and nothing "
        f"else (ceiling {config.first_line_ceiling:.0%}), which needs no policy; lower "
        "learning_rate, raise beta, or start again from an earlier checkpoint"
    )


def _writes_nothing(recent: Sequence[Metrics], config: AlarmConfig) -> str:
    share = _last_of(recent, "words", lambda v: v < config.words_floor)
    if share is None:
        return ""
    return (
        f"nothing is written: {share:.1%} of the searches are in words (floor "
        f"{config.words_floor:.0%}), the others point at a line of memory; that is right where the "
        "lines hold what is wanted, else set row, raise beta, or lower learning_rate"
    )


def _recommends_the_same(recent: Sequence[Metrics], config: AlarmConfig) -> str:
    # Of one or two groups all may rightly be told the same.
    if any(metrics["groups"] < 4 for metrics in recent):
        return ""
    distinct = _last_of(recent, "distinct", lambda v: v < config.distinct_floor)
    if distinct is None:
        return ""
    return (
        f"the same for everybody: {distinct:.2f} distinct recommendations for each group (floor "
        f"{config.distinct_floor:g}); check the reward weights and what memory says, or lower "
        "learning_rate"
    )


def _kl_runs_away(recent: Sequence[Metrics], config: AlarmConfig) -> str:
    kl = _last_of(recent, "kl", lambda v: not v <= config.kl_ceiling)
    if kl is None:
        return ""
    return (
        f"KL runaway: {kl:.2f} nats a token from the reference (ceiling {config.kl_ceiling:g}); "
        "lower learning_rate or raise beta"
    )


def _gradient_explodes(recent: Sequence[Metrics], config: AlarmConfig) -> str:
    # At the norm of usual steps a run learns; a policy that is about to fall apart shows it here
    # some steps before its chains do.
    norm = _last_of(recent[-1:], "grad_norm", lambda v: not v <= config.gradient_ceiling)
    if norm is None:
        return ""
    return (
        f"gradient explosion: a norm of {norm:.3g} before it was clipped (ceiling "
        f"{config.gradient_ceiling:g}); lower learning_rate or max_grad_norm, or raise beta"
    )


def _all_groups_dropped(recent: Sequence[Metrics], _config: AlarmConfig) -> str:
    if any(metrics["dropped_groups"] < metrics["groups"] for metrics in recent):
        return ""
    return (
        "all groups dropped: the chains of every group scored the same, so nothing was learned; if "
        "the policy has not settled yet, raise group or cases_per_step, try dynamic_sampling, or "
        "check the reward weights"
    )


def _ratio_is_not_one(recent: Sequence[Metrics], config: AlarmConfig) -> str:
    ceiling = DRIFT if config.ratio_ceiling is None else config.ratio_ceiling
    drift = _last_of(recent[-1:], "ratio_drift", lambda v: not v <= ceiling)
    if drift is None:
        return ""
    return (
        "the first ratio is not 1: the policy scores its own samples differently (log-probability "
        f"off by {drift:.3f}, ceiling {ceiling:g}); use float32, or report this with "
        "the model's name"
    )


_CHECKS: dict[str, Callable[[Sequence[Metrics], AlarmConfig], str]] = {
    "format": _format_collapses,
    "entropy": _entropy_collapses,
    "searches": _searches_collapse,
    "words": _writes_nothing,
    "distinct": _recommends_the_same,
    "kl": _kl_runs_away,
    "gradient": _gradient_explodes,
    "dropped": _all_groups_dropped,
    "ratio": _ratio_is_not_one,
}


@dataclass
class AlarmMonitor:
    """Looks at each step's metrics.

    An alarm that warns fires once, and again only after a step at which all was well.
    """

    config: AlarmConfig
    _recent: list[Metrics] = field(default_factory=list)
    _firing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        settings.check(self.config)

    def replay(self, history: Sequence[Metrics]) -> None:
        """Take the steps of a run that is resumed; nothing fires."""
        for metrics in history:
            self.observe(metrics)
        # What stopped the run and was then allowed or put right may fire again.
        self._firing = {name for name in self._firing if getattr(self.config, name) == "warn"}

    def observe(self, metrics: Metrics) -> list[Alert]:
        """The alarms that fire at this step, those that stop the run first."""
        self._recent = [*self._recent, metrics][-self.config.patience :]
        alerts = []
        for name, check in _CHECKS.items():
            action = getattr(self.config, name)
            enough = name in AT_ONCE or len(self._recent) == self.config.patience
            reason = check(self._recent, self.config) if action != "off" and enough else ""
            if reason and name not in self._firing:
                alerts.append(Alert(name, action, int(metrics["step"]), reason))
            (self._firing.add if reason else self._firing.discard)(name)
        return sorted(alerts, key=lambda alert: alert.action != "stop")


class FirstUpdateCheck:
    """Refuses a run whose first update teaches nothing: all later ones would neither."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        # The weights before the first update; None after it.
        self._before: dict[str, mx.array] | None = {
            name: mx.array(value) for name, value in policy.adapter().items()
        }

    def replay(self, history: Sequence[Metrics]) -> None:
        """Take the steps of a run that is resumed."""
        if any("grad_norm" in metrics for metrics in history):
            self._before = None

    def observe(self, metrics: Metrics) -> list[Alert]:
        """Look at the first step that updates the policy; nothing fires.

        Raises:
            QAgentError: it changed nothing, or the policy does not score its own samples as it
                sampled them.
        """
        if self._before is None or "grad_norm" not in metrics:
            return []
        drift = metrics["ratio_drift"]
        if drift > most_drift(self._policy):
            raise QAgentError(
                f"the policy scores its own samples differently (log-probability off by "
                f"{drift:.3f}); train it in float32, or report this with the model's name"
            )
        if metrics["grad_norm"] == 0.0:
            raise QAgentError(
                "the first gradient is zero: nothing would be learned; check the adapter's "
                "layers (lora.blocks) and the reward weights"
            )
        after = self._policy.adapter()
        if all(bool(mx.array_equal(value, after[name])) for name, value in self._before.items()):
            raise QAgentError(
                "the first update changed no weight: nothing would be learned; raise the learning "
                "rate"
            )
        self._before = None
        return []


def most_drift(policy: Policy) -> float:
    """By how much sampler and scorer may differ, in nats: more where either rounds."""
    return DRIFT if policy.precise else ROUNDED_DRIFT


def alarms_for(config: AlarmConfig, policy: Policy) -> AlarmConfig:
    """The alarms as they make sense for a policy: its precision, and what its agent may do."""
    agent = policy.info.agent
    ceiling = config.ratio_ceiling
    return replace(
        config,
        ratio_ceiling=most_drift(policy) if ceiling is None else ceiling,
        searches=config.searches if agent.search and agent.max_searches > 1 else "off",
        words=config.words if agent.search and agent.writes else "off",
    )


class StretchedSchedule:
    """Says that the learning rate jumps where a resumed run plans other steps than before.

    Args:
        before: What the run was started with.
        now: What it goes on with.
    """

    def __init__(self, before: GrpoConfig, now: GrpoConfig) -> None:
        self._before, self._now, self._said = before, now, False

    def replay(self, history: Sequence[Metrics]) -> None:
        """Take the steps of the run; nothing fires."""

    def observe(self, metrics: Metrics) -> list[Alert]:
        """A warning at the first step, if it is taken at another rate."""
        number = int(metrics["step"]) - 1
        rates = [config.learning_rate_at(number) for config in (self._before, self._now)]
        if self._said or rates[0] == rates[1]:
            return []
        self._said = True
        reason = (
            f"the learning rate goes on at {rates[1]:.2g} instead of {rates[0]:.2g}: the cosine "
            f"schedule is now spread over {self._now.steps} steps, not {self._before.steps}; for "
            "an even course start a new run with as many steps"
        )
        return [Alert("schedule", "warn", number + 1, reason)]


def with_actions(config: AlarmConfig, assignments: Iterable[str]) -> AlarmConfig:
    """The configuration with ``NAME=ACTION`` or ``THRESHOLD=NUMBER`` assignments put in."""
    values: dict[str, str | float] = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        try:
            values[name] = int(text) if text.isdecimal() else float(text)
        except ValueError:
            values[name] = text
    return settings.merge(config, values, "alarms")
