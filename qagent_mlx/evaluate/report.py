"""Evaluate systems side by side on the cases of a split, and the report of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from ..environment.cases import evenly_spaced
from ..environment.environment import Environment, Example
from ..errors import QAgentError
from ..shop.config import ShopConfig
from ..utils.settings import check
from ..utils.text import query_key
from .baselines.search_log import SearchLog, moment_of
from .comparisons import COMPARED, Comparison, chosen_pairs, compare, verdict
from .config import EvaluationConfig
from .metrics import METRICS, Calibration, Confidence, Ranking, System, calibration, score_case
from .significance import Interval, bootstrap
from .slices import is_line, slice_cases

T = TypeVar("T")
MAIN = ("q_em", "q_hit@5", "i_hit@1", "i_hit@10", "cons@1")
ROWS = ("row_hit@10", "own_words")  # of the row of queries, beside the main ones
SLICED = (*MAIN, "row_hit@10")

Progress = Callable[[str, int], None]  # a system's name; 0 when it begins, then its cases


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system's metrics, and how far what it says of its queries can be trusted.

    ``calibration`` is that of first queries, by the chance that the policy has learned to give
    them, else by its votes; ``row_calibration`` that of the chances of whole rows.
    """

    name: str
    metrics: dict[str, Interval]
    latency_ms: float  # of a case
    distinct: int  # different first queries
    calibration: Calibration | None = None
    row_calibration: Calibration | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of reports."""
        values = asdict(self)
        for name in ("calibration", "row_calibration"):
            found: Calibration | None = getattr(self, name)
            values[name] = None if found is None else found.to_dict()
        return values


@dataclass(frozen=True, slots=True)
class SliceMetrics:
    """A system's main metrics on a slice of the cases."""

    name: str
    metrics: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class SliceResult:
    """All systems on one slice, such as the cases of new users."""

    by: str
    slice: str
    cases: int
    systems: tuple[SliceMetrics, ...]


@dataclass(frozen=True, slots=True)
class AnswerRecall:
    """The shares of cases whose answer, the query typed next, is where it could be taken from.

    None where nothing was typed, or where nobody looked.
    """

    lines: Interval | None = None  # one of the profile's lines
    candidates: Interval | None = None  # among those that memory chose the lines from
    typed: Interval | None = None  # searched by anybody before the case


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system recommended for a case, and the main metrics of that."""

    queries: tuple[str, ...]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class CaseDetail:
    """A case with the answers of all systems, for the examples of an HTML report."""

    example: Example
    answers: dict[str, Answer]


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The result of an evaluation; `tables` and `html_report` show it."""

    split: str
    cases: int
    systems: tuple[SystemResult, ...]
    verdict: tuple[Comparison, ...] = ()  # what a reader asks first, see `comparisons.verdict`
    comparisons: tuple[Comparison, ...] = ()
    slices: tuple[SliceResult, ...] = ()
    details: tuple[CaseDetail, ...] = ()
    derived: str | None = None  # how the shop's queries were derived, where nobody typed them
    simulated: bool = False  # whether the shop is
    shop: str = ""
    snapshot: int | None = None  # of the lake that the shop is in, or was made of
    scenario: str = "full"  # see `environment.scenarios`
    answers: AnswerRecall = AnswerRecall()
    examples: tuple[Example, ...] = ()  # the cases, in order
    rankings: Mapping[str, Sequence[Ranking]] = field(default_factory=dict)  # of each, by system

    def system(self, name: str) -> SystemResult:
        """The result of the system of a name."""
        return next(result for result in self.systems if result.name == name)

    def best_first(self) -> EvaluationReport:
        """This report with the best system first, by ``cons@1``, then by ``i_hit@1``."""

        def worth(metrics: Mapping[str, Interval]) -> tuple[float, float]:
            return -metrics["cons@1"].mean, -metrics["i_hit@1"].mean

        order = sorted(range(len(self.systems)), key=lambda i: worth(self.systems[i].metrics))
        return replace(
            self,
            systems=tuple(self.systems[i] for i in order),
            slices=tuple(
                replace(part, systems=tuple(part.systems[i] for i in order)) for part in self.slices
            ),
        )

    def with_shop(self, config: ShopConfig) -> EvaluationReport:
        """This report with what it says about the shop."""
        return replace(
            self, derived=config.derived_queries, simulated=bool(config.simulated), shop=config.name
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, without single cases."""
        values = asdict(replace(self, details=(), examples=(), rankings={}))
        for name in ("details", "examples", "rankings"):
            del values[name]
        values["systems"] = [result.to_dict() for result in self.systems]
        return values


@dataclass(frozen=True, slots=True)
class _Measurement:
    """A system's rankings, and each metric for every case, (cases,)."""

    name: str
    rankings: list[Ranking]
    scores: dict[str, np.ndarray]
    latency_ms: float
    wanted: list[str]  # the key of the user's next query, for every case

    def intervals(
        self, seed: int, metrics: Sequence[str] = (), cases: Any = slice(None)
    ) -> dict[str, Interval]:
        """Means of some metrics (all by default) over some cases, with their intervals."""
        return {name: bootstrap(self.scores[name][cases], seed) for name in metrics or self.scores}

    def result(self, seed: int) -> SystemResult:
        """The system's part of the report."""
        distinct = {query_key(r.queries[0]) for r in self.rankings if r.queries}
        has_chances = any(ranking.chances for ranking in self.rankings)
        return SystemResult(
            self.name,
            self.intervals(seed),
            self.latency_ms,
            len(distinct),
            self._calibration("chance" if has_chances else "votes", 1),
            self._calibration("chance"),
        )

    def _calibration(self, of: Confidence, first: int | None = None) -> Calibration | None:
        """How well a confidence in the ``first`` queries of each row, or in all, predicts hits."""
        said: list[float] = []
        hits: list[bool] = []
        for ranking, wanted in zip(self.rankings, self.wanted, strict=True):
            values = (ranking.chances if of == "chance" else ranking.scores)[:first]
            said += values
            hits += [query_key(query) == wanted for query in ranking.queries[: len(values)]]
        return calibration(np.array(said), np.array(hits, dtype=float), of) if said else None

    def answer(self, case: int) -> Answer:
        """What the system recommended for one case."""
        values = {name: float(self.scores[name][case]) for name in SLICED}
        return Answer(self.rankings[case].queries, values)


def evaluate(
    environment: Environment,
    systems: Sequence[System],
    config: EvaluationConfig | None = None,
    *,
    log: SearchLog | None = None,
    found: Mapping[int, bool] | None = None,
    on_progress: Progress | None = None,
) -> EvaluationReport:
    """Let every system rank every case, and score the rankings.

    Slices need the ``log`` of the shop's searches, and so does the metric ``popularity``: the
    share of all earlier searches that were the first query. ``found`` says, by case id, whether
    the query typed next was among memory's candidates. ``on_progress`` is called when a system
    begins and when it has ended.
    """
    config = config or EvaluationConfig()
    check(config)
    on_progress = on_progress or (lambda system, cases: None)
    names = [system.name for system in systems]
    _check_names(names)
    pairs = chosen_pairs(config.compare, names)
    examples = evaluated_cases(environment.of_split(config.split), config)
    measurements = {
        system.name: _measure(environment, system, examples, config.k, log, on_progress)
        for system in systems
    }
    results = tuple(m.result(config.seed) for m in measurements.values())
    scores = {name: m.scores for name, m in measurements.items()}
    agents = [result.name for result in results if result.calibration is not None]
    return EvaluationReport(
        split=config.split,
        cases=len(examples),
        systems=results,
        verdict=verdict(scores, agents, config.seed),
        comparisons=compare(scores, pairs, COMPARED, config.seed),
        slices=_slices(measurements, examples, config, log),
        details=tuple(
            CaseDetail(example, {name: m.answer(i) for name, m in measurements.items()})
            for i, example in enumerate(examples[: config.details])
        ),
        answers=_answers(examples, config.seed, log, found),
        examples=tuple(examples),
        rankings={name: m.rankings for name, m in measurements.items()},
    )


def _answers(
    examples: Sequence[Example], seed: int, log: SearchLog | None, found: Mapping[int, bool] | None
) -> AnswerRecall:
    """Where the answers could be taken from, over the cases in which something was typed."""
    typed = [example for example in examples if example.case.query_key]
    if not typed:
        return AnswerRecall()

    def share(values: Sequence[bool]) -> Interval:
        return bootstrap(np.array(values, dtype=float), seed)

    return AnswerRecall(
        share([is_line(example) for example in typed]),
        share([found[e.case.case_id] for e in typed]) if found is not None else None,
        share([log.count(e.case.query, moment_of(e.case.as_of)) > 0 for e in typed])
        if log is not None
        else None,
    )


def _measure(
    environment: Environment,
    system: System,
    examples: Sequence[Example],
    k: int,
    log: SearchLog | None,
    on_progress: Progress,
) -> _Measurement:
    on_progress(system.name, 0)
    start = perf_counter()
    rankings = system.rank(examples, k)
    seconds = perf_counter() - start
    metrics = [
        score_case(environment, example.case, ranking, _lines(example, ranking))
        for example, ranking in zip(examples, rankings, strict=True)
    ]
    scores = {name: np.array([values[name] for values in metrics]) for name in METRICS}
    if log is not None:
        scores["popularity"] = _popularity(log, examples, rankings)
    on_progress(system.name, len(examples))
    wanted = [example.case.query_key for example in examples]
    return _Measurement(system.name, rankings, scores, 1000 * seconds / len(examples), wanted)


def _lines(example: Example, ranking: Ranking) -> tuple[str, ...]:
    """The queries that the system's profile pointed at."""
    return example.profile.references if ranking.lines is None else ranking.lines


def _popularity(
    log: SearchLog, examples: Sequence[Example], rankings: Sequence[Ranking]
) -> np.ndarray:
    """The share of all earlier searches that were the first query, for every case."""
    shares = np.zeros(len(examples))
    for i, (example, ranking) in enumerate(zip(examples, rankings, strict=True)):
        if ranking.queries:
            moment = moment_of(example.case.as_of)
            shares[i] = log.count(ranking.queries[0], moment) / max(log.before(moment), 1)
    return shares


def _slices(
    measurements: Mapping[str, _Measurement],
    examples: Sequence[Example],
    config: EvaluationConfig,
    log: SearchLog | None,
) -> tuple[SliceResult, ...]:
    if not config.by:
        return ()
    if log is None:
        raise ValueError("slices need the shop's searches")
    return tuple(
        SliceResult(
            cut,
            name,
            len(cases),
            tuple(
                SliceMetrics(m.name, m.intervals(config.seed, SLICED, cases))
                for m in measurements.values()
            ),
        )
        for cut in config.by
        for name, cases in slice_cases(cut, examples, log).items()
    )


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise QAgentError("there is nothing to evaluate; name a policy or ask for the baselines")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise QAgentError(f"two systems are called {repeated[0]}; give each a name of its own")


def evaluated_cases(examples: Sequence[T], config: EvaluationConfig) -> Sequence[T]:
    """As many of a split's cases as are evaluated, spread over it.

    Raises:
        QAgentError: there is none.
    """
    if not examples:
        raise QAgentError(
            f"there is no case in the split {config.split!r}; use train, validation or test"
        )
    return evenly_spaced(examples, len(examples) if config.limit is None else config.limit)
