"""An evaluation as one HTML file: plots as inline SVG, no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..agent.types import Rollout
from ..inventory.catalog import Catalog
from ..runs.run import Run, run_names
from ..shop.shop import Shop
from ..utils.atomic_files import write_with
from .metrics import METRICS
from .report import COMPARED, MAIN, SURE, compared_pairs

Report = dict[str, Any]
SHOWN = 4  # example chains of each kind
PERCENT = {"searches", "tokens"}  # metrics that are no shares
EXPLAINED = {
    "q_em": "the first query is the user's next one",
    "q_hit@5": "one of the first five is",
    "i_hit@1": "the first product of the first query is one the user then engaged with",
    "i_hit@10": "one of its first ten products is",
    "cons@1": "q_em and i_hit@1 at once",
}

CSS = """
:root { --ink: #1c2733; --soft: #5b6b7a; --line: #d9e0e6; --own: #0b6e99; --other: #9aa8b4;
  --good: #1f7a45; --bad: #b3402e; --paper: #fff; --panel: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 18px 0 6px; }
p { margin: 4px 0 12px; max-width: 76ch; } .soft { color: var(--soft); }
.mark { background: #fdf1d7; border-left: 4px solid #d9a13a; padding: 8px 12px; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(470px, 1fr)); gap: 20px; }
figure { margin: 0; background: var(--panel); border-radius: 8px; padding: 12px 14px; }
figcaption { font-weight: 600; } figcaption span { font-weight: 400; color: var(--soft); }
svg { display: block; width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td.text, th.text { text-align: left; }
th { font-weight: 600; color: var(--soft); } tr.own td:first-child { font-weight: 600; }
.chain { background: var(--panel); border-radius: 8px; padding: 12px 16px; margin: 10px 0; }
.chain ol { margin: 6px 0 0; padding-left: 22px; } .chain .tag { color: var(--soft); }
pre { margin: 6px 0; padding: 8px 10px; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; font-size: 12.5px; white-space: pre-wrap; overflow-wrap: anywhere; }
.hit { color: var(--good); font-weight: 600; } .miss { color: var(--bad); font-weight: 600; }
"""


def curves(shop: Shop) -> list[Report]:
    """The reward curve of each GRPO run of a shop: ``run``, ``steps``, ``reward``."""
    made = []
    for name in run_names(shop):
        rows = [r for r in Run.open(shop, name).rows("metrics") if "reward" in r and "step" in r]
        if len(rows) > 1:
            made.append(
                {
                    "run": name,
                    "steps": [r["step"] for r in rows],
                    "reward": [r["reward"] for r in rows],
                }
            )
    return made


def write_page(
    path: Path,
    report: Report,
    catalog: Catalog,
    chains: Mapping[str, Mapping[int, Sequence[Rollout]]] | None = None,
    runs: Sequence[Report] = (),
) -> None:
    """Write the page.

    Args:
        path: Replaced when it is there.
        report: As `report.evaluate` makes it, with ``details``.
        catalog: Names products.
        chains: System -> case id -> its chains, for the examples.
        runs: Reward curves, see `curves`.
    """
    text = page(report, dict(zip(catalog.ids, catalog.titles, strict=True)), chains or {}, runs)
    write_with(path, lambda place: Path(place).write_text(text, encoding="utf-8"))


def page(
    report: Report,
    titles: Mapping[str, str],
    chains: Mapping[str, Mapping[int, Sequence[Rollout]]],
    runs: Sequence[Report] = (),
) -> str:
    """The whole page; all text from data is escaped."""
    own = {s["name"] for s in report["systems"] if s.get("calibration")}
    title = f"Evaluation of {report.get('shop') or 'a shop'}"
    parts = [f"<h1>{escape(title)}</h1>", _about(report)]
    parts += ["<h2>Metrics</h2>", _legend(), '<div class="plots">']
    parts += [_bars(report, name, own) for name in MAIN]
    parts += ["</div>", "<h2>All metrics</h2>", _metrics_table(report, own)]
    if report["comparisons"]:
        parts += ["<h2>Comparisons</h2>", _comparisons(report)]
    if report["slices"]:
        parts += ["<h2>Slices: cons@1</h2>", _slices(report, own)]
    known = [s for s in report["systems"] if s.get("calibration")]
    if known:
        parts += ["<h2>Calibration</h2>", _calibration_text(), '<div class="plots">']
        parts += [_calibration(system) for system in known]
        parts += ["</div>"]
    if runs:
        parts += ["<h2>Training</h2>", '<div class="plots">']
        parts += [_curve(run) for run in runs]
        parts += ["</div>"]
    for system, kept in chains.items():
        good, bad = _examples(report, system, kept)
        for heading, cases in (("Example chains", good), ("Failures", bad)):
            if cases:
                parts.append(f"<h2>{heading}: {escape(system)}</h2>")
                parts += [_chain(d, kept[d["case"]], system, titles) for d in cases]
        break  # those of the first policy; the table says the rest
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _about(report: Report) -> str:
    lines = [
        f'<p class="soft">Split {escape(report["split"])}, {report["cases"]:,} cases, '
        f"{len(report['systems'])} systems. Nothing at or after a case's moment was seen.</p>"
    ]
    if report.get("derived"):
        lines.append(
            f'<p class="mark">The queries of this log are derived '
            f"({escape(report['derived'])}): nobody typed them.</p>"
        )
    if report.get("simulated"):
        lines.append(
            '<p class="mark">This shop is simulated: its numbers show what the method does, not '
            "what people would do.</p>"
        )
    return "\n".join(lines)


def _legend() -> str:
    return (
        '<p class="soft">Percent of cases, with 95 % bootstrap intervals. Systems with chains '
        "are blue.</p>"
    )


def _bars(report: Report, metric: str, own: set[str]) -> str:
    """Points with intervals, a system a row."""
    rows = report["systems"]
    left, width, row, top = 170, 480, 22, 6
    highest = max([s["metrics"][metric]["hi"] for s in rows] + [0.01])
    scale = (width - left - 60) / highest
    height = top + row * len(rows) + 22
    svg = []
    for tick in _ticks(highest):
        x = left + tick * scale
        svg.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 20}" stroke="#d9e0e6"/>'
            f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{100 * tick:g}</text>'
        )
    for i, system in enumerate(rows):
        value = system["metrics"][metric]
        y = top + row * i + row / 2
        colour = "#0b6e99" if system["name"] in own else "#7b8a97"
        lo, mean, hi = (left + value[k] * scale for k in ("lo", "mean", "hi"))
        svg.append(
            f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(_short(system['name']))}</text>"
            f'<line x1="{lo:.1f}" x2="{hi:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" '
            f'stroke-width="3" stroke-linecap="round" opacity="0.45"/>'
            f'<circle cx="{mean:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
            f'<text x="{hi + 9:.1f}" y="{y + 4:.1f}">{100 * value["mean"]:.1f}</text>'
        )
    label = f"{metric} of each system, percent"
    return (
        f"<figure><figcaption>{metric} <span>{escape(EXPLAINED[metric])}</span></figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(svg)}</svg></figure>"
    )


def _ticks(highest: float) -> list[float]:
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if highest / s <= 5.5)
    return [i * step for i in range(int(highest / step) + 1)]


def _metrics_table(report: Report, own: set[str]) -> str:
    names = [*METRICS, *(["popularity"] if "popularity" in report["systems"][0]["metrics"] else [])]
    head = "".join(f"<th>{escape(n)}</th>" for n in ("system", *names, "distinct", "ms"))
    rows = []
    for system in report["systems"]:
        cells = [f"<td>{escape(system['name'])}</td>"]
        for name in names:
            value = system["metrics"][name]
            shown = [value[k] if name in PERCENT else 100 * value[k] for k in ("mean", "lo", "hi")]
            cells.append(
                f'<td title="95 %: {shown[1]:.2f} to {shown[2]:.2f}">'
                f"{shown[0]:.{2 if name in PERCENT else 1}f}</td>"
            )
        cells.append(f"<td>{system.get('distinct', 0):,}</td>")
        cells.append(f"<td>{system['latency_ms']:.1f}</td>")
        mark = ' class="own"' if system["name"] in own else ""
        rows.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
        '<p class="soft">Percent, but searches and tokens a chain, distinct first queries, and '
        "milliseconds a case. popularity: the share of all earlier searches that were the first "
        "query. diversity: 1 minus the words that two recommended queries share.</p>"
    )


def _comparisons(report: Report) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("a", "b", *COMPARED))
    rows = []
    for a, b, found in compared_pairs(report):
        cells = ""
        for row in found:
            kind = ("hit" if row["diff"] > 0 else "miss") if row["p_holm"] < SURE else ""
            cells += (
                f'<td title="p {row["p"]:.4f}, corrected {row["p_holm"]:.4f}">'
                f'<span class="{kind}">{100 * row["diff"]:+.1f}</span> <span class="soft">'
                f"[{100 * row['lo']:+.1f}, {100 * row['hi']:+.1f}]</span></td>"
            )
        rows.append(f"<tr><td>{escape(a)}</td><td class=text>{escape(b)}</td>{cells}</tr>")
    return (
        '<p class="soft">a - b, paired by case, in points with 95 % intervals. Coloured where the '
        f"sign-flip p, corrected for all comparisons here (Holm), stays below {SURE}; point at a "
        "number to read both.</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def _slices(report: Report, own: set[str]) -> str:
    head = "".join(
        f"<th>{escape(n)}</th>" for n in ("slice", "cases", *(s["name"] for s in report["systems"]))
    )
    rows = []
    for row in report["slices"]:
        values = [s["metrics"]["cons@1"] for s in row["systems"]]
        best = max(v["mean"] for v in values)
        cells = "".join(
            f"<td{' class=hit' if v['mean'] == best > 0 else ''} "
            f'title="95 %: {100 * v["lo"]:.1f} to {100 * v["hi"]:.1f}">{100 * v["mean"]:.1f}</td>'
            for v in values
        )
        rows.append(
            f"<tr><td>{escape(row['by'])}: {escape(row['slice'])}</td>"
            f"<td>{row['cases']:,}</td>{cells}</tr>"
        )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _calibration_text() -> str:
    return (
        '<p class="soft">How sure a system says that it is of its first query (for a policy: the '
        "share of its chains that voted for it) against how often that is the query. On the "
        "diagonal it could be taken at its word.</p>"
    )


def _calibration(system: Report) -> str:
    size, pad = 240, 34
    span = size - 2 * pad
    most = max(b["cases"] for b in system["calibration"]["bins"])
    svg = [
        f'<rect x="{pad}" y="{pad}" width="{span}" height="{span}" fill="#fff" stroke="#d9e0e6"/>',
        f'<line x1="{pad}" y1="{size - pad}" x2="{size - pad}" y2="{pad}" stroke="#9aa8b4" '
        'stroke-dasharray="4 4"/>',
        f'<text x="{size / 2}" y="{size - 8}" text-anchor="middle">said</text>',
        f'<text x="4" y="{pad - 10}">came true</text>',
        f'<text x="{pad - 6}" y="{size - pad}" text-anchor="end">0</text>',
        f'<text x="{pad - 6}" y="{pad + 4}" text-anchor="end">1</text>',
    ]
    for one in system["calibration"]["bins"]:
        x, y = pad + one["said"] * span, size - pad - one["true"] * span
        radius = 3 + 7 * (one["cases"] / most) ** 0.5
        svg.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#0b6e99" opacity="0.7">'
            f"<title>said {one['said']:.2f}, came true {one['true']:.2f}, "
            f"{one['cases']} cases</title></circle>"
        )
    found = system["calibration"]
    return (
        f"<figure><figcaption>{escape(system['name'])} <span>calibration error "
        f"{found['ece']:.3f}, Brier {found['brier']:.3f}</span></figcaption>"
        f'<svg viewBox="0 0 {size * 2} {size}" role="img" aria-label="calibration of '
        f'{escape(system["name"])}"><g transform="translate({size / 2} 0)">{"".join(svg)}</g>'
        "</svg></figure>"
    )


def _curve(run: Report) -> str:
    width, height, left, low = 480, 170, 40, 24
    steps, reward = run["steps"], run["reward"]
    bottom, top = min(reward), max(reward)
    span = (top - bottom) or 1.0

    def at(step: float, value: float) -> str:
        x = left + (step - steps[0]) / ((steps[-1] - steps[0]) or 1) * (width - left - 12)
        y = 10 + (1 - (value - bottom) / span) * (height - low - 16)
        return f"{x:.1f},{y:.1f}"

    window = max(1, len(reward) // 10)
    smooth = [
        sum(reward[max(0, i - window) : i + 1]) / len(reward[max(0, i - window) : i + 1])
        for i in range(len(reward))
    ]
    thin, thick = (
        " ".join(at(s, v) for s, v in zip(steps, values, strict=True))
        for values in (reward, smooth)
    )
    return (
        f"<figure><figcaption>{escape(run['run'])} <span>reward a step, and smoothed</span>"
        f'</figcaption><svg viewBox="0 0 {width} {height}" role="img" aria-label="reward curve">'
        f'<text x="{left - 6}" y="16" text-anchor="end">{top:.2f}</text>'
        f'<text x="{left - 6}" y="{height - low}" text-anchor="end">{bottom:.2f}</text>'
        f'<text x="{width - 12}" y="{height - 4}" text-anchor="end">step {steps[-1]}</text>'
        f'<polyline points="{thin}" fill="none" stroke="#9aa8b4"/>'
        f'<polyline points="{thick}" fill="none" stroke="#0b6e99" stroke-width="2.5"/>'
        "</svg></figure>"
    )


def _examples(
    report: Report, system: str, kept: Mapping[int, Sequence[Rollout]]
) -> tuple[list[Report], list[Report]]:
    """Cases that came out well, with a chain that looked further first; and ones that did not."""
    known = [d for d in report["details"] if d["case"] in kept and system in d["systems"]]

    def searches(detail: Report) -> int:
        return max(chain.searches for chain in kept[detail["case"]])

    good = [d for d in known if d["systems"][system]["cons@1"]]
    bad = [d for d in known if not d["systems"][system]["q_em"]]
    good.sort(key=lambda d: (-searches(d), d["case"]))
    # Failures are spread over the time of the split.
    return good[:SHOWN], bad[:: max(1, len(bad) // SHOWN)][:SHOWN]


def _chain(
    detail: Report, chains: Sequence[Rollout], system: str, titles: Mapping[str, str]
) -> str:
    answer = detail["systems"][system]
    top = answer["queries"][0] if answer["queries"] else ""
    # The chain that ends in what was recommended, the longest of those.
    shown = max(chains, key=lambda c: (c.query == top, len(c.turns)))
    steps = []
    for turn in shown.turns:
        if turn.kind == "fetch":
            steps.append(f"read memory<pre>{escape(detail['profile'])}</pre>")
        elif turn.kind == "search":
            found = [escape(titles.get(p, p)) for p in turn.products[:3]]
            steps.append(f"searched <b>{escape(turn.query)}</b>: {'; '.join(found) or 'nothing'}")
        elif turn.kind == "recommend":
            steps.append(f"recommended <b>{escape(turn.query)}</b>")
        else:
            steps.append(f"{escape(turn.kind)} {escape(turn.query)}")
    if shown.finish != "recommended":
        steps.append(f"broke off ({escape(shown.finish)})")
    wanted = "; ".join(escape(titles.get(p, p)) for p in detail["products"][:3])

    def verdict(name: str) -> str:
        kind, word = ("hit", "yes") if answer[name] else ("miss", "no")
        return f'{name} <span class="{kind}">{word}</span>'

    queries = ", ".join(escape(q) for q in answer["queries"]) or "nothing"
    return (
        f'<div class="chain"><b>{escape(detail["user"])}</b> '
        f'<span class="tag">at {escape(detail["as_of"][:16].replace("T", " "))}</span>: '
        f"{verdict('q_em')}, {verdict('i_hit@1')}"
        f"<ol>{''.join(f'<li>{step}</li>' for step in steps)}</ol>"
        f'<p><span class="tag">shown:</span> {queries}<br>'
        f'<span class="tag">the user searched</span> <b>{escape(detail["query"])}</b> '
        f'<span class="tag">and chose</span> {wanted or "nothing of the catalog"}</p></div>'
    )


def _short(name: str, width: int = 24) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
