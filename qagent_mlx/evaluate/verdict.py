"""An evaluation in words: who is ahead of whom, and whether that is beyond chance."""

from __future__ import annotations

from .comparisons import FIRST_LINE, OF_MEMORY, Comparison
from .report import EvaluationReport

MEANING = {
    "cons@1": "the first query is the user's next one and its top product one that the user then "
    "engages with",
    "i_hit@1": "the top product of the first query is one that the user then engages with",
}


def verdict_sentences(report: EvaluationReport) -> list[str]:
    """Sentences, the most important one first: is the agent ahead of memory's first line?

    Empty where there is one system only, or none that could be compared.
    """
    agents = [system.name for system in report.systems if system.calibration]
    said = [_sentence(report, comparison, i) for i, comparison in enumerate(report.verdict)]
    if agents and not any(FIRST_LINE in (c.a, c.b) for c in report.verdict):
        said.insert(
            0,
            f"Whether {agents[0]} is ahead of memory's first line, which needs no agent, is open: "
            f"the baseline {FIRST_LINE} was not evaluated; add it.",
        )
    if report.verdict:
        count = len(report.verdict)
        corrected = f", corrected for these {count} comparisons" if count > 1 else ""
        said.append(f"Intervals are of 95 %; p is that of a sign-flip test{corrected}.")
    return said


def _sentence(report: EvaluationReport, found: Comparison, place: int) -> str:
    """One comparison; the first one of a verdict explains the metric."""
    a, b = (100 * report.system(name).metrics[found.metric].mean for name in (found.a, found.b))
    first, second = (_named(name) for name in (found.a, found.b))
    if found.a in OF_MEMORY:
        first = first[0].upper() + first[1:]
    p = "p < 0.001" if found.p_holm < 0.001 else f"p = {found.p_holm:.3f}"
    points = f"{100 * found.diff:+.1f} points [{100 * found.lo:+.1f}, {100 * found.hi:+.1f}], {p}"
    meaning = f"{found.metric} (share of cases in which {MEANING[found.metric]}), " * (not place)
    shares = f"{meaning}{a:.1f} against {b:.1f} %"
    if not found.is_beyond_chance:
        return (
            f"{first} and {second} cannot be told apart: {shares}, and a difference of {points} "
            "may be chance."
        )
    side = "ahead of" if found.diff > 0 else "behind"
    return f"{first} is {side} {second}, beyond chance: {shares}, {points}."


def _named(name: str) -> str:
    return f"{OF_MEMORY[name]} ({name})" if name in OF_MEMORY else name
