"""What the chain, the reward and the memory are worth: arms of one study, several seeds.

    python tests/benchmarks/study.py SHOP --policy sft --seeds 0 1 2 --steps 50 \\
        --arms consistency query-only typed single-turn no-memory --out study.json
    python tests/benchmarks/study.py SHOP --out study.json --report     # the table again

Every arm is a preset of ``qagent train grpo``, trained from the same SFT policy with the same
steps, cases, group and seeds, and measured on the same test cases in the way that it was
trained (its preset's agent). ``--set NAME:key=value`` makes further arms, for example
``--arms gdpo --set gdpo:advantage=gdpo``, or with the changes of a preset and with settings of the
agent, ``--set blind:preset=typed --set blind:agent.search=false``. Each trained arm is written to
``--out`` at once, so a study that was ended goes on where it stopped.

The arm ``shuffled`` is a control: every group's rewards are dealt to its chains at random, so that
nothing can be learned; what it gains over the policy that it began with is no merit of the reward.

The table gives the mean over seeds with a 95 % t interval over seeds, and the paired difference
from the first arm with a 95 % bootstrap interval over users' cases (each case's mean over seeds
is what is paired). ``--abtest`` adds what simulated shoppers do (``qagent abtest``) with the
first arm's policy of the same seed against each. No test runs this in full.
"""

from __future__ import annotations

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import argparse
import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from qagent_mlx.environment.environment import Environment, Example
from qagent_mlx.evaluate.abtest import RATES
from qagent_mlx.evaluate.metrics import Ranking, score_case
from qagent_mlx.evaluate.policy_system import PolicySystem
from qagent_mlx.evaluate.significance import paired_difference
from qagent_mlx.policy.registry import open_policy, policy_names
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.config_files import PRESETS, Settings, agent_with_changes, with_preset
from qagent_mlx.train.groups import Groups
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.grpo_run import train_grpo
from qagent_mlx.train.run_options import RunOptions
from qagent_mlx.utils.atomic_files import write_json
from qagent_mlx.utils.settings import merge

KEPT = ("q_em", "i_hit@1", "cons@1", "q_hit@5", "searches", "valid")
SHOWN = ("cons@1", "q_em", "i_hit@1")
# Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class ShuffledRewards(GrpoTrainer):
    """GRPO with every group's rewards dealt to its chains at random."""

    def rollouts(self, cases: Sequence[int], seed: tuple[int, ...]) -> Groups:
        """A group of chains for each case, each chain with the rewards of some chain of it."""
        groups = super().rollouts(cases, seed)
        random = np.random.default_rng([*seed, 1])
        dealt = [rewards[random.permutation(len(rewards))] for rewards in groups.rewards]
        return replace(groups, rewards=np.stack(dealt))


def settings_of(arm: str, changes: list[str], steps: int, seed: int, measured: int) -> Settings:
    """An arm's settings: its preset if it names one, then its ``--set`` changes."""
    preset, agent = arm if arm in PRESETS else "", {}
    values: dict[str, Any] = {"steps": steps, "seed": seed, "measured": measured}
    for change in changes:
        owner, _, pair = change.partition(":")
        if owner == arm:
            key, _, text = pair.partition("=")
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = text
            if key == "preset":
                preset = value
            elif key.startswith("agent."):
                agent[key.removeprefix("agent.")] = value
            else:
                values[key] = value
    settings = Settings(GrpoConfig())
    if preset:
        settings = with_preset(settings, preset)
    train = merge(settings.train, values, arm)
    return replace(settings, train=train, agent={**settings.agent, **agent})


def run_arm(
    path: Path,
    parent: str,
    arm: str,
    settings: Settings,
    limit: int | None,
    group: int,
    environments: dict[Any, Environment],
) -> dict[str, Any]:
    """Train one arm with one seed and measure it on the test cases."""
    name = f"study-{arm}-{settings.train.seed}"
    with Shop.open(path) as shop:
        start = open_policy(shop, parent)
        agent = agent_with_changes(shop, parent, settings.agent) or start.info.agent
        # Arms whose agents read the same memory at the same moments share its profiles; the
        # test cases are the same in all.
        key = (agent.sections, agent.profile_budget, settings.split)
        if key not in environments:
            environments[key] = Environment.of_shop(shop, start.codec, agent, settings.split)
        environment = environments[key]
        report = {}
        if name not in policy_names(shop):
            options = RunOptions(
                agent=agent, environment=environment, about={"preset": settings.preset}
            )
            with (
                mock.patch("qagent_mlx.train.grpo_run.GrpoTrainer", ShuffledRewards)
                if arm == "shuffled"
                else contextlib.nullcontext()
            ):
                report = train_grpo(
                    shop, parent, name, settings.train, split=settings.split, options=options
                ).to_dict()
        policy = open_policy(shop, name)
        examples = environment.of_split("test")[:limit]
        rankings = PolicySystem(name, policy, environment, group=group).rank(examples, 5)
    return {
        "arm": arm,
        "seed": settings.train.seed,
        "policy": name,
        "report": report,
        "scores": scores_of(environment, examples, rankings),
    }


def scores_of(
    environment: Environment, examples: Sequence[Example], rankings: Sequence[Ranking]
) -> dict[str, list[float]]:
    """Metric -> one number a case, of `KEPT`."""
    rows = [score_case(environment, e.case, r) for e, r in zip(examples, rankings, strict=True)]
    return {metric: [row[metric] for row in rows] for metric in KEPT}


def abtest(path: Path, control: str, treatment: str, group: int, k: int) -> dict[str, Any]:
    """What ``qagent abtest`` says of two policies: its `RATES`."""
    done = subprocess.run(
        [
            Path(sys.executable).parent / "qagent",
            "abtest",
            "--control",
            control,
            "--treatment",
            treatment,
            "--shop",
            path,
            "--group",
            str(group),
            "-k",
            str(k),
            "--json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return {rate: found[rate] for rate in RATES}


def interval(values: list[float]) -> str:
    """Mean and 95 % t interval over seeds, in percent."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return f"{100 * mean:.1f}"
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = T95[min(n - 2, len(T95) - 1)] * spread / math.sqrt(n)
    return f"{100 * mean:.1f} [{100 * (mean - half):.1f}, {100 * (mean + half):.1f}]"


def table(results: list[dict[str, Any]]) -> str:
    """The study as a Markdown table."""
    arms = list(dict.fromkeys(r["arm"] for r in results))
    cases = {len(r["scores"]["cons@1"]) for r in results}
    if len(cases) != 1:
        raise SystemExit("the arms were measured on different cases; use another --out")
    first = arms[0]
    lines = [
        f"{cases.pop()} test cases; percent; mean over seeds [95 % t interval]; in brackets "
        f"behind it the paired difference from {first} [95 % bootstrap over cases]",
        "",
        "| arm | seeds | " + " | ".join(SHOWN) + " | searches |",
        "|---|--:|" + "--:|" * (len(SHOWN) + 1),
    ]
    for arm in arms:
        mine = [r for r in results if r["arm"] == arm]
        shared = {r["seed"] for r in mine} & {r["seed"] for r in results if r["arm"] == first}
        cells = []
        for metric in SHOWN:
            cell = interval([float(np.mean(r["scores"][metric])) for r in mine])
            if arm != first and shared:
                sides = [
                    np.mean(
                        [
                            r["scores"][metric]
                            for r in results
                            if r["arm"] == one and r["seed"] in shared
                        ],
                        axis=0,
                    )
                    for one in (arm, first)
                ]
                d = paired_difference(*sides)
                cell += f" ({100 * d.diff:+.1f} [{100 * d.lo:+.1f}, {100 * d.hi:+.1f}])"
            cells.append(cell)
        searches = np.mean([np.mean(r["scores"]["searches"]) for r in mine])
        lines.append(f"| {arm} | {len(mine)} | " + " | ".join(cells) + f" | {searches:.2f} |")
        for r in mine:
            if "abtest" in r:
                ab = r["abtest"]
                lines.append(
                    f"| {arm}, seed {r['seed']}: {first} against it | | "
                    + ", ".join(
                        f"{k} {100 * ab[k]['lift']:+.1f} % [{100 * ab[k]['lo']:+.1f}, "
                        f"{100 * ab[k]['hi']:+.1f}], p {ab[k]['p']:.3f}"
                        for k in RATES
                    )
                    + " |" * len(SHOWN)
                )
    return "\n".join(lines)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shop", type=Path)
    parser.add_argument("--policy", default="sft")
    parser.add_argument("--arms", nargs="+", default=list(PRESETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--limit", type=int, help="Only so many test cases.")
    parser.add_argument("--set", action="append", default=[], metavar="ARM:KEY=VALUE")
    parser.add_argument("--group", type=int, default=1, help="Chains a case when measured.")
    parser.add_argument("--shown", type=int, default=1, help="Queries a row of the A/B test.")
    parser.add_argument("--abtest", action="store_true")
    parser.add_argument("--report", action="store_true", help="Train nothing, print the table.")
    parser.add_argument("--out", type=Path, default=Path("study.json"))
    given = parser.parse_args()
    results = json.loads(given.out.read_text()) if given.out.exists() else []
    environments: dict[Any, Environment] = {}
    for seed in [] if given.report else given.seeds:
        for arm in given.arms:
            found = next((r for r in results if (r["arm"], r["seed"]) == (arm, seed)), None)
            if found is None:
                settings = settings_of(arm, given.set, given.steps, seed, 50)
                found = run_arm(
                    given.shop, given.policy, arm, settings, given.limit, given.group, environments
                )
                results.append(found)
                write_json(given.out, results)
            if given.abtest and arm != given.arms[0] and "abtest" not in found:
                first = f"study-{given.arms[0]}-{seed}"
                found["abtest"] = abtest(
                    given.shop, found["policy"], first, given.group, given.shown
                )
                write_json(given.out, results)
            cons = found["scores"]["cons@1"]
            print(f"{arm}, seed {seed}: cons@1 {100 * sum(cons) / len(cons):.1f}", file=sys.stderr)
    if results:
        results.sort(key=lambda r: given.arms.index(r["arm"]) if r["arm"] in given.arms else 99)
        print(table(results))


if __name__ == "__main__":
    main()
