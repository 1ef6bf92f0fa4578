"""Tries every architecture of the installed mlx-lm and writes docs/reference/architectures.md.

python tests/benchmarks/architectures.py [NAME…]

Each is a tiny model with random weights that acts in a small shop, is trained by SFT and GRPO, and
is fused (`helpers/try_architecture.py`). With names, only their rows are written anew. Takes some
ten minutes on a quiet machine.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import mlx.core as mx
from architectures import NOT_TRIED, names
from try_architecture import STAGES, Report, try_architecture

from qagent_mlx.build import build_shop
from qagent_mlx.environment.environment import Environment
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.protocol.codec import train_tokenizer
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.shop.config import ShopConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.simulator.sample_files import write_sample
from qagent_mlx.simulator.world import SimulatorConfig
from qagent_mlx.utils.atomic_files import read_json

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"
HEADER = """# Which architectures work

Written by `python tests/benchmarks/architectures.py` with mlx-lm {mlx_lm}: every architecture that
it has, as a tiny model with random weights. *Zero-shot*: chains that search, wait and part are
scored as the model's own forward pass scores them. *SFT*: likelier after six steps, and still
scored so. *GRPO*: two steps, the first with a ratio of 1. *Fuse*: the same numbers here and in
mlx-lm. A model is checked in the same way, on a few tokens, each time it is loaded; what does not
agree is refused there.

*Runs as*: its **blocks** one by one, the fastest; its **body** and its own head, on trained
positions only; or the **whole** model, whose head runs on all positions. *One by one* decodes a
context at a time, because mlx-lm's caches for batches do not serve it: right, and slow. *Alone*
scores each chain from its first token, as it cannot share a group's prefix.

| architecture | runs as | zero-shot | SFT | GRPO | fuse | notes |
|---|---|---|---|---|---|---|
"""


def small_shop(place: Path) -> Shop:
    """A simulated shop of 60 users."""
    files = place / "files"
    write_sample(files, SimulatorConfig(users=60, days=40, products_per_pair=2.0))
    simulated = read_json(files / "simulator.json", "the sample")
    with Shop.create(place / "shop", ShopConfig(simulated=simulated)) as shop:
        for kind in ("products", "events"):
            ingest_files(shop, kind, [files / f"{kind}.parquet"])
        build_shop(shop)
    return Shop.open(place / "shop", read_only=False)


def row(report: Report) -> str:
    """A line of the table."""
    assert report.stages is not None
    marks = ["yes" if not report.stages[s] else "no" for s in STAGES]
    notes = ["one by one"] * report.one_by_one
    if report.runs_as and not report.stages["sft"] and not report.shares:
        notes.append("alone")
    reason = next((text for text in report.stages.values() if text), "")
    if reason:
        reason = reason.split(": ", 1)[-1] if "/" in reason else reason
        notes.append(reason.split("; ")[0][:160].replace("|", "/"))
    cells = [f"`{report.name}`", report.runs_as or "–", *marks, "; ".join(notes)]
    return f"| {' | '.join(cells)} |"


def main(wanted: list[str]) -> None:
    """Try them one after another."""
    from importlib.metadata import version

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        with small_shop(place) as shop:
            texts = shop.connection.execute("SELECT title FROM products").fetchall()
            queries = shop.connection.execute(
                "SELECT query FROM events WHERE query IS NOT NULL"
            ).fetchall()
            tokenizer = train_tokenizer([t for (t,) in texts + queries], 512)
            environments: dict[str, Environment] = {}

            def environment_of(codec: object) -> Environment:
                if not environments:
                    environments["one"] = Environment.of_shop(shop, codec, AgentConfig())  # type: ignore[arg-type]
                return environments["one"]

            for name in wanted or names():
                report = try_architecture(name, tokenizer, environment_of, shop, place / "models")
                rows.append(row(report))
                print(rows[-1], flush=True)
                mx.clear_cache()
    kept = {_name(line): line for line in _page_rows()} if wanted else {}
    kept |= {f"`{n}`": f"| `{n}` | – | – | – | – | – | not tried: {why} |" for n, why in NOT_TRIED}
    kept |= {_name(line): line for line in rows}
    header = HEADER.format(mlx_lm=version("mlx-lm"))
    PAGE.write_text(
        header + "\n".join(kept[n] for n in sorted(kept, key=str.lower)) + "\n", "utf-8"
    )


def _page_rows() -> list[str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    return [line for line in lines if line.startswith("| `")]


def _name(line: str) -> str:
    return line.split(" | ", 1)[0].removeprefix("| ")


if __name__ == "__main__":
    main(sys.argv[1:])
