"""Candidates written by hand."""

from qagent_mlx.memory.candidates import Candidates


def rows(*lines):
    """Candidates of some lines, of which all that is not named is unknown."""
    table = Candidates.unknown(len(lines))
    table.success[:] = 0.5
    table.coverage[:] = table.return_rate[:] = 1.0
    table.focus[:] = table.wording[:] = table.taste[:] = table.typed[:] = 0.0
    table.query_key[:] = table.query[:] = "a"
    table.kind[:] = "plain"
    for i, line in enumerate(lines):
        for name, value in line.items():
            getattr(table, name)[i] = value
    return table


OWN = {"searches": 2, "last_outcome": 3, "age": 5.0, "recency_rank": 2}
TREND = {"trend_share": 0.1, "longer_share": 0.05, "short_share": 0.01}
NEXT = {"neighbour_score": 0.01, "source": "q:b", "timing": 0.0, "bought_age": 0.05}
