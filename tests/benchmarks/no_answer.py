"""What an agent that writes is worth where the log has no answer, over several seeds.

    python tests/benchmarks/no_answer.py SHOP --scenario no_query_log --out no_query_log.json
    python tests/benchmarks/no_answer.py SHOP --scenario no_query_log --out no_query_log.json --report

Pretrains a policy that writes on the part of the log that the scenario leaves (once), trains it by
SFT and GRPO with each seed, does the same with a policy that points at memory's lines (``--points``:
one that was pretrained before), and evaluates all of them beside the baselines on the same cases.
What was trained stays in the shop, and each trained system is written to ``--out`` at once, so a
study that was ended goes on where it stopped.

The table gives means over seeds with a 95 % t interval over seeds, and the paired difference of the
agent that writes from each other system with a 95 % bootstrap interval over cases (each case's mean
over seeds is what is paired). No test runs this in full.
"""

from __future__ import annotations

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from study import interval

from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.evaluate.metrics import score_case
from qagent_mlx.evaluate.report import evaluated_cases
from qagent_mlx.evaluate.significance import paired_difference
from qagent_mlx.evaluate.suite import evaluation_suite
from qagent_mlx.policy.registry import policy_names
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.config import PretrainConfig, SftConfig
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.grpo_run import train_grpo
from qagent_mlx.train.pretrain import pretrain
from qagent_mlx.train.sft import train_sft
from qagent_mlx.utils.atomic_files import write_json

METRICS = ("row_hit@10", "q_hit@5", "i_hit@10", "q_em", "own_words", "searches")
BASELINES = ("top-line", "in-stock", "brand-lines", "mixed", "item-cf-title", "brand-category")
BASELINES += ("last-viewed", "next-category", "category")
WRITES, POINTS = "writes", "points"
Scores = dict[str, list[float]]  # metric -> one number a case


def trained(shop: Shop, given: argparse.Namespace, arm: str, seed: int) -> str:
    """The name of an arm's GRPO policy of a seed, trained where it is not there yet."""
    split = SplitConfig(scenario=given.scenario, test_from=given.test_from)
    base = given.points if arm == POINTS else f"{given.scenario}-base"
    if base not in policy_names(shop):
        steps = PretrainConfig(steps=given.pretrain)
        pretrain(shop, base, steps, agent=AgentConfig(writes=True), split=split)
    start = POINTS if arm == POINTS else WRITES
    sft, grpo = f"{given.scenario}-{start}-sft-{seed}", f"{given.scenario}-{arm}-grpo-{seed}"
    if sft not in policy_names(shop):
        train_sft(shop, base, sft, SftConfig(steps=given.sft, seed=seed), split=split)
    if grpo not in policy_names(shop):
        changes = json.loads(given.set) | json.loads(dict(given.variant).get(arm, "{}"))
        config = GrpoConfig(steps=given.grpo, seed=seed, **changes)
        train_grpo(shop, sft, grpo, config, split=split)
    return grpo


def scores(
    shop: Shop, given: argparse.Namespace, policies: list[str], baselines: tuple[str, ...] = ()
) -> dict[str, Scores]:
    """Every system's metrics, case by case."""
    split = SplitConfig(scenario=given.scenario, test_from=given.test_from)
    config = EvaluationConfig(limit=given.limit, group=given.group, baselines=baselines)
    suite = evaluation_suite(shop, policies, config, split)
    environment = suite.environment
    examples = evaluated_cases(environment.of_split("test"), config)
    found: dict[str, Scores] = {}
    for system in suite.systems:
        rows = [
            score_case(environment, e.case, r, e.profile.references)
            for e, r in zip(examples, system.rank(examples, config.k), strict=True)
        ]
        found[system.name] = {metric: [row[metric] for row in rows] for metric in METRICS}
    return found


def table(results: list[dict[str, Any]]) -> str:
    """The study as a Markdown table, the best ``row_hit@10`` first."""
    arms: dict[str, list[Scores]] = {}
    for result in results:
        arms.setdefault(result["arm"], []).append(result["scores"])
    means = {
        arm: {m: np.mean([s[m] for s in runs], axis=0) for m in METRICS}
        for arm, runs in arms.items()
    }
    cases = len(next(iter(means.values()))["row_hit@10"])
    lines = [
        f"{cases} test cases; percent; mean over seeds [95 % t interval]; last: {WRITES} minus the "
        "system, row_hit@10 [95 % bootstrap over cases]",
        "",
        "| system | seeds | " + " | ".join(METRICS) + f" | {WRITES} ahead by |",
        "|---|--:|" + "--:|" * (len(METRICS) + 1),
    ]
    for arm in sorted(means, key=lambda arm: -means[arm]["row_hit@10"].mean()):
        runs = arms[arm]
        cells = [
            interval([float(np.mean(s[m])) for s in runs])
            if m != "searches"
            else f"{means[arm][m].mean():.2f}"
            for m in METRICS
        ]
        ahead = ""
        if arm != WRITES and WRITES in means:
            d = paired_difference(means[WRITES]["row_hit@10"], means[arm]["row_hit@10"])
            ratio = means[WRITES]["row_hit@10"].mean() / max(means[arm]["row_hit@10"].mean(), 1e-9)
            ahead = f"{100 * d.diff:+.1f} [{100 * d.lo:+.1f}, {100 * d.hi:+.1f}], {ratio:.2f}x"
        lines.append(f"| {arm} | {len(runs)} | " + " | ".join(cells) + f" | {ahead} |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shop", type=Path)
    parser.add_argument("--scenario", default="no_query_log")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--points", default="sample", help="A base that points at lines.")
    parser.add_argument("--arms", nargs="+", default=[WRITES, POINTS])
    parser.add_argument("--pretrain", type=int, default=250, help="Steps of pretraining.")
    parser.add_argument("--sft", type=int, default=40, help="Steps of SFT.")
    parser.add_argument("--grpo", type=int, default=90, help="Steps of GRPO.")
    parser.add_argument("--set", default="{}", help="Further settings of GRPO, as JSON.")
    parser.add_argument(
        "--variant",
        nargs=2,
        action="append",
        default=[],
        metavar=("ARM", "JSON"),
        help=f"One more arm: GRPO from the SFT policy of {WRITES} with these settings beside --set.",
    )
    parser.add_argument("--test-from", default="", help="First day of the test cases.")
    parser.add_argument("--limit", type=int, help="Only so many test cases.")
    parser.add_argument("--group", type=int, default=8, help="Chains a case when measured.")
    parser.add_argument("--report", action="store_true", help="Train nothing, print the table.")
    parser.add_argument("--out", type=Path, default=Path("no_answer.json"))
    given = parser.parse_args()
    results = json.loads(given.out.read_text()) if given.out.exists() else []
    with Shop.open(given.shop) as shop:
        for seed in [] if given.report else given.seeds:
            for arm in given.arms + [name for name, _ in given.variant]:
                if any((r["arm"], r["seed"]) == (arm, seed) for r in results):
                    continue
                name = trained(shop, given, arm, seed)
                has_log = given.scenario != "no_query_log"
                rules = () if results else BASELINES + (("repeat-last",) if has_log else ())
                found = scores(shop, given, [name], rules)
                for system, values in found.items():
                    which = arm if system == name else system
                    results.append({"arm": which, "seed": seed, "scores": values})
                write_json(given.out, results)
                hits = np.mean(found[name]["row_hit@10"])
                print(f"{arm}, seed {seed}: row_hit@10 {100 * hits:.1f}", file=sys.stderr)
    if results:
        print(table(results))


if __name__ == "__main__":
    main()
