"""A run as one HTML file: settings, curves as inline SVG, chains. No script, nothing loaded.

Everything that comes from data is escaped, and a content policy forbids what could run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from ..utils.text import clean
from .reader import curves, flatten_settings, overview, read_alerts, read_metrics, read_rollouts
from .records import RolloutRecord, first_and_last_mean
from .run import Run

WIDTH, HEIGHT, LEFT, BELOW = 360, 130, 46, 18
CHAINS = 12  # of the best, worst and latest each

STYLE = """
:root{color-scheme:light dark;--line:#3467c8;--faint:#8885;--ink:#1d2433;--paper:#fff}
@media(prefers-color-scheme:dark){:root{--line:#7ea6ff;--ink:#e6e9ef;--paper:#14171d}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.facts{opacity:.75;margin:.2rem 0 1rem}.alarm{border-left:4px solid #c33;padding:.3rem .8rem}
.plots{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}
figcaption{font-weight:600;font-size:.9rem}figcaption span{font-weight:400;opacity:.7}
svg text{font:10px system-ui,sans-serif;fill:currentColor;opacity:.75}
table{border-collapse:collapse;font-size:.88rem}td,th{padding:.15rem .8rem .15rem 0;
text-align:left;vertical-align:top;border-bottom:1px solid var(--faint)}
td.n{text-align:right;font-variant-numeric:tabular-nums}
details{margin:.4rem 0;border:1px solid var(--faint);border-radius:6px;padding:.3rem .8rem}
summary{cursor:pointer}pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.82rem}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(run: Run) -> str:
    """The report of a run as an HTML document."""
    facts = overview(run)
    metrics, chains = read_metrics(run), read_rollouts(run)
    parts = [
        f"<h1>{_text(run.name)}</h1>",
        f"<p class=facts>{_text(facts.kind.upper())}, {_text(facts.base)} → "
        f"{_text(facts.policy)}, {facts.steps}/{facts.planned} steps, "
        f"{_text(facts.state)}, started {_text(facts.created)}, "
        f"{facts.seconds:.0f} s</p>",
    ]
    parts += [
        f"<p class=alarm>step {alert.step}, {_text(alert.action)}: {_text(alert.reason)}</p>"
        for alert in read_alerts(run)
    ]
    if run.summary:
        parts += ["<h2>Result</h2>", _table(flatten_settings(run.summary))]
    if metrics:
        parts.append("<h2>Curves</h2><div class=plots>")
        parts += [_plot(name, points) for name, points in curves(metrics).items() if points]
        parts.append("</div>")
    if chains:
        ranked = sorted(chains, key=lambda chain: (-chain.reward, chain.step))
        parts.append(f"<h2>Chains</h2><p class=facts>{len(chains):,} were kept.</p>")
        for title, some in (
            ("Latest", chains[-CHAINS:]),
            ("Best", ranked[:CHAINS]),
            ("Worst", ranked[-CHAINS:]),
        ):
            parts.append(f"<h2>{title}</h2>")
            parts += [_chain(record) for record in some]
    parts += ["<h2>Settings</h2>", _table(flatten_settings(run.config))]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        '<link rel=icon href="data:,">'
        f"<title>{_text(run.name)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _text(value: Any) -> str:
    return escape(clean(str(value)))


def _table(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_text(name.replace('_', ' '))}</td><td>{_text(_short(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _plot(name: str, points: Sequence[tuple[int, float]]) -> str:
    """One curve; what is not finite is left out."""
    drawn = [(s, v) for s, v in points if math.isfinite(v)]
    title = _text(name.replace("_", " "))
    if not drawn:
        return f"<figure><figcaption>{title}</figcaption>nothing finite</figure>"
    first, last = first_and_last_mean([v for _, v in drawn])
    low, high = min(v for _, v in drawn), max(v for _, v in drawn)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    start, end = drawn[0][0], max(drawn[-1][0], drawn[0][0] + 1)

    def place(step: int, value: float) -> str:
        x = LEFT + (step - start) / (end - start) * (WIDTH - LEFT - 6)
        y = 6 + (high - value) / (high - low) * (HEIGHT - BELOW - 12)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(s, v) for s, v in drawn)
    dots = (
        "".join(
            f'<circle cx="{x}" cy="{y}" r="2" fill="var(--line)"/>'
            for x, y in (place(s, v).split(",") for s, v in drawn)
        )
        if len(drawn) <= 30
        else ""
    )
    floor = HEIGHT - BELOW
    return (
        f"<figure><figcaption>{title} <span>{first:.4g} → {last:.4g}</span></figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}: {first:.4g} to {last:.4g}">'
        f'<path d="M{LEFT},4V{floor}H{WIDTH}" fill="none" stroke="var(--faint)"/>'
        f'<text x="{LEFT - 4}" y="12" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 4}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">{start}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">step {drawn[-1][0]}</text>'
        f'<polyline points="{line}" fill="none" stroke="var(--line)" stroke-width="1.6"/>'
        f"{dots}</svg></figure>"
    )


def _chain(record: RolloutRecord) -> str:
    parts = ", ".join(f"{_text(n)} {v:.2f}" for n, v in record.rewards.items())
    chain = escape("\n".join(clean(line) for line in record.chain.splitlines()))
    return (
        f"<details><summary>step {record.step}, case {record.case_id}: "
        f"{_text(record.recommended or '-')} <small>(wanted {_text(record.wanted)}; reward "
        f"{record.reward:.3f}, advantage {record.advantage:+.2f})</small></summary>"
        f"<p class=facts>{parts}; {record.sampled_tokens} of {record.tokens} tokens "
        f"sampled; {_text(record.finish)}; user {_text(record.user)}, chain "
        f"{record.member + 1}</p><pre>{chain}</pre></details>"
    )
