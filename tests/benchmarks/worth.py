"""What an abstracted memory is worth: a policy that reads profiles against one that reads the log.

    python tests/benchmarks/worth.py SHOP --test-from 2011-10-12 --steps 200 --seeds 0
    python tests/benchmarks/worth.py SHOP --out worth.json --report      # the table again

Each arm is a policy of its own: a tokenizer and a tiny model made from nothing (``pretrain``), then
SFT, with the same sizes, steps, cases, seeds and budget of tokens for memory.

- ``profile`` reads all sections of the abstracted memory.
- ``raw`` (another with ``--sections``) reads the newest events of the user's log, cut to the same
  budget. It may name a past query by its reference, as the other does with lines.
- ``raw, own words`` is trained to write queries, too: a case whose query is no line of the history
  is demonstrated in its own words, so all training cases teach it something.

Both are measured on the same test cases. The five queries of an answer are those that its group of
chains recommends, then those that they searched, then the other queries of what was read, in their
order (`agent.slate`, the same for all). As raw history seldom holds five queries, any
answer is then filled up with what the shop searched most in the last two days (the baseline
``trending``): a raw answer so gets for nothing the best that is not personal. ``q_hit@5`` is after,
``unfilled`` before that.

The intervals are 95 % bootstrap intervals over cases (each case's mean over seeds), differences
paired by case, p by sign flips with Holm's correction. Each trained arm is written to ``--out`` at
once, so that a study that was ended goes on where it stopped. No test runs this in full.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import numpy as np
from study import scores_of

from qagent_mlx.agent.recommend import GROUP
from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Environment
from qagent_mlx.evaluate.baselines.popularity import Trending
from qagent_mlx.evaluate.baselines.search_log import SearchLog
from qagent_mlx.evaluate.metrics import Ranking
from qagent_mlx.evaluate.policy_system import PolicySystem
from qagent_mlx.evaluate.significance import bootstrap, holm, paired_difference
from qagent_mlx.memory.profile import SECTIONS
from qagent_mlx.policy.registry import open_policy, policy_names
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.pretrain import PretrainConfig, pretrain
from qagent_mlx.train.run_options import RunOptions
from qagent_mlx.train.sft import SftConfig, train_sft
from qagent_mlx.utils.atomic_files import write_json
from qagent_mlx.utils.text import query_key

PROFILE, WORDS = "profile", ", own words"
SHOWN = ("cons@1", "q_em", "i_hit@1", "q_hit@5", "unfilled")
COMPARED = ("cons@1", "q_hit@5", "unfilled")


def told(name: str, step: int, steps: int, start: float) -> None:
    """A line of progress, now and then."""
    if step % 20 == 0 or step == steps:
        print(f"{name}: step {step}/{steps}, {time.time() - start:.0f} s", file=sys.stderr)


def run_arm(path: Path, arm: str, agent: AgentConfig, seed: int, given: Any) -> dict[str, Any]:
    """Train one arm with one seed from nothing and measure it on the test cases."""
    split = SplitConfig(test_from=given.test_from)
    name = f"worth-{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    base = f"{name}-base"
    words = arm.endswith(WORDS)
    start = time.time()
    with Shop.open(path) as shop:
        trending = Trending(SearchLog.of_shop(shop))
        if base not in policy_names(shop):
            config = PretrainConfig(size=given.size, steps=given.steps, seed=seed, words=words)
            count = iter(range(1, config.steps + 1))
            pretrain(
                shop,
                base,
                config,
                agent,
                split,
                on_step=lambda row: told(base, next(count), given.steps, start),
            )
        policy = open_policy(shop, base)
        environment = Environment.of_shop(shop, policy.codec, agent, split)
        if name not in policy_names(shop):
            train_sft(
                shop,
                base,
                name,
                SftConfig(steps=given.sft_steps, seed=seed),
                split=split,
                options=RunOptions(environment=environment),
            )
        policy = open_policy(shop, name)
    seconds = time.time() - start
    examples = environment.of_split("test")
    examples = examples[:: max(1, len(examples) // given.limit)][: given.limit]
    found = PolicySystem(name, policy, environment, group=given.group).rank(examples, 5)
    filled = [
        fill(mine, most.queries)
        for mine, most in zip(found, trending.rank(examples, 10), strict=True)
    ]
    scores = scores_of(environment, examples, filled)
    scores["unfilled"] = scores_of(environment, examples, found)["q_hit@5"]
    return {
        "arm": arm,
        "seed": seed,
        "policy": name,
        "seconds": seconds,
        "scores": scores,
        "steps": given.steps,
        "sft_steps": given.sft_steps,
        "cases": len(environment.of_split("train")),
        "tokens": float(np.mean([e.profile.tokens for e in examples])),
        "lines": float(np.mean([len(e.profile.references) for e in examples])),
        # Whether the answer is among the queries that it could name by a reference.
        "within": float(
            np.mean([e.case.query_key in map(query_key, e.profile.references) for e in examples])
        ),
    }


def fill(mine: Ranking, most: Sequence[str]) -> Ranking:
    """An answer filled up to five queries with the shop's most searched ones."""
    known = {query_key(q) for q in mine.queries}
    more = [q for q in most if query_key(q) not in known]
    return replace(mine, queries=(*mine.queries, *more)[:5], scores=())


def percent(mean: float, lo: float, hi: float, sign: str = "") -> str:
    """A share with its interval."""
    return f"{100 * mean:{sign}.1f} [{100 * lo:{sign}.1f}, {100 * hi:{sign}.1f}]"


def table(results: list[dict[str, Any]]) -> str:
    """The arms, and how much better the first is than each other one, in Markdown."""
    arms = list(dict.fromkeys(r["arm"] for r in results))
    if len({len(r["scores"]["cons@1"]) for r in results}) != 1:
        raise SystemExit("the arms were measured on different cases; use another --out")
    mine = {arm: [r for r in results if r["arm"] == arm] for arm in arms}

    def values(arm: str, metric: str, seeds: set[int]) -> np.ndarray:
        rows = [r["scores"][metric] for r in mine[arm] if r["seed"] in seeds]
        return np.mean(rows, axis=0)

    seeds = {arm: {r["seed"] for r in mine[arm]} for arm in arms}
    first = results[0]
    lines = [
        f"{len(first['scores']['cons@1'])} test cases, {first['cases']} training cases, "
        f"{first['steps']} steps of pretraining and {first['sft_steps']} of SFT each; percent "
        "[95 % bootstrap over cases]",
        "",
        "| memory | seeds | tokens | queries in it | the answer among them | "
        + " | ".join(SHOWN)
        + " |",
        "|---|--:|--:|--:|--:|" + "--:|" * len(SHOWN),
    ]
    for arm in arms:
        facts = [float(np.mean([r[n] for r in mine[arm]])) for n in ("tokens", "lines", "within")]
        cells = [percent(*astuple(bootstrap(values(arm, metric, seeds[arm])))) for metric in SHOWN]
        lines.append(
            f"| {arm} | {len(seeds[arm])} | {facts[0]:.0f} | {facts[1]:.1f} | "
            f"{100 * facts[2]:.1f} | " + " | ".join(cells) + " |"
        )
    rows = []
    for arm in arms[1:]:
        if shared := seeds[arm] & seeds[arms[0]]:
            for metric in COMPARED:
                d = paired_difference(values(arms[0], metric, shared), values(arm, metric, shared))
                rows.append((f"{arms[0]} - {arm}, {metric}", d))
    if rows:
        lines += ["", "| difference, points | | p | p after Holm |", "|---|--:|--:|--:|"]
        for (what, d), p in zip(rows, holm([d.p for _, d in rows]), strict=True):
            cell = percent(d.diff, d.lo, d.hi, "+")
            lines.append(f"| {what} | {cell} | {d.p:.4f} | {p:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shop", type=Path, help="Policies called worth-… are added to it.")
    parser.add_argument("--test-from", default="", metavar="T")
    parser.add_argument("--sections", nargs="+", default=["raw"], help="What the other arms read.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=PretrainConfig.steps, help="Of pretraining.")
    parser.add_argument("--sft-steps", type=int, default=SftConfig.steps)
    parser.add_argument("--size", default=PretrainConfig.size)
    parser.add_argument("--group", type=int, default=GROUP, help="Chains a case when measured.")
    parser.add_argument("--limit", type=int, default=10**9, help="Only so many test cases.")
    parser.add_argument("--no-words", action="store_true", help="Leave the arm in words out.")
    parser.add_argument("--report", action="store_true", help="Train nothing, print the table.")
    parser.add_argument("--out", type=Path, default=Path("worth.json"))
    given = parser.parse_args()
    results = json.loads(given.out.read_text()) if given.out.exists() else []
    done = {(r["arm"], r["seed"]) for r in results}
    other = " ".join(given.sections)
    arms = {PROFILE: SECTIONS, other: tuple(given.sections)}
    if not given.no_words:
        arms[other + WORDS] = tuple(given.sections)
    for seed in [] if given.report else given.seeds:
        for arm, sections in arms.items():
            if (arm, seed) not in done:
                agent = AgentConfig(sections=sections)
                results.append(run_arm(given.shop, arm, agent, seed, given))
                write_json(given.out, results)
    if results:
        results.sort(key=lambda r: list(arms).index(r["arm"]) if r["arm"] in arms else 99)
        print(table(results))


if __name__ == "__main__":
    main()
