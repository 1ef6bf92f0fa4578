"""The stages of a reproduction, in order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..build import build_shop, create_sample_shop
from ..environment.config import SplitConfig
from ..evaluate.abtest import abtest
from ..evaluate.baselines.registry import BASELINES
from ..evaluate.config import AbConfig, EvaluationConfig
from ..evaluate.html_report import reward_curves, write_page
from ..evaluate.suite import ABLATIONS, EvaluationSuite, evaluation_suite
from ..evaluate.tables import markdown
from ..ingest.presets.loading import load_preset
from ..models.fingerprint import fingerprint
from ..policy.registry import SAMPLE, policy_names, resolve
from ..runs.run import Run, run_names
from ..shop.config import ShopConfig
from ..shop.shop import Shop
from ..train.config_files import Settings, agent_with_changes, with_preset
from ..train.grpo_config import GrpoConfig
from ..train.grpo_run import resume_grpo, train_grpo
from ..train.pretrain import PretrainConfig, pretrain
from ..train.run_options import RunOptions
from ..train.sft import SftConfig, train_sft
from ..utils.atomic_files import hash_file, read_json, write_json, write_text
from ..utils.settings import SettingError, check, merge
from .config import ReproduceConfig
from .manifest import Manifest

SHOWN_ABLATIONS = tuple(name for name in ABLATIONS if name != "no marks")
# Presets of GRPO that are trained beside the method itself, with the first seed.
ARMS = {
    "query-only": "GRPO with the query reward only (ablation)",
    "typed": "GRPO with the query reward only, on what people typed (ablation)",
    "single-turn": "GRPO without search (single-turn RL)",
    "no-memory": "GRPO that knows nothing of the user (ablation)",
}
CONTROLS = ("query-only", "typed")  # of the simulated A/B tests; the method is the treatment
EXAMPLES = 200  # cases that the page's example chains are chosen from
QUICK_CASES = 12


class Reproduction:
    """Runs the stages that are not done yet.

    ``source`` is ``sample``, or the folder of raw files that the preset reads. A reproduction that
    the folder ``out`` holds goes on, if it was begun with the same settings. ``on_stage`` is called
    with what begins, ``on_step`` after each training step with its metrics.
    """

    def __init__(
        self,
        source: str,
        out: str | Path,
        config: ReproduceConfig | None = None,
        on_stage: Callable[[str], None] | None = None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.source, self.out = source, Path(out)
        self.config = config or ReproduceConfig()
        self._report_stage = on_stage or (lambda stage: None)
        self._on_step = on_step
        check(self.config)
        if len(set(self.config.seeds)) < len(self.config.seeds):
            raise SettingError("seeds", "must name each seed once")
        self._split = SplitConfig(
            min_history=self.config.min_history, test_from=self.config.test_from
        )
        self._manifest = Manifest(self.out, source, self.config)

    def run(self) -> dict[str, Any]:
        """Do the stages that are left, and return the manifest."""
        first = self.config.seeds[0]
        self._stage("shop", "reading the raw data", self._shop)
        self._stage("base", "making the base policy", self._base)
        for seed in self.config.seeds:
            self._stage(f"sft-{seed}", f"SFT, seed {seed}", partial(self._sft, seed))
            self._stage(f"grpo-{seed}", f"GRPO, seed {seed}", partial(self._grpo, seed))
        for arm, title in ARMS.items():
            self._stage(f"{arm}-{first}", title, partial(self._grpo, first, arm))
        self._stage("evaluate", "evaluating", self._evaluate)
        with self._open_shop() as shop:
            simulated = bool(shop.config.simulated)
        if simulated:
            self._stage("abtest", "simulated A/B test", self._abtest)
        return self._manifest.values

    def _stage(self, name: str, title: str, action: Callable[[], dict[str, Any]]) -> None:
        if name in self._manifest.stages:
            self._report_stage(f"{title}: done before")
            return
        self._report_stage(title)
        self._manifest.run_stage(name, action)

    def _open_shop(self) -> Shop:
        return Shop.open(self.out / "shop", read_only=True)

    def _settings(self, stage: str, steps: int | None = None) -> dict[str, Any]:
        """The settings of a stage that are not its defaults; ``steps`` win over a quick run's."""
        path = Path(__file__).with_name("quick.json")
        settings = read_json(path, "the package")[stage] if self.config.quick else {}
        return settings if steps is None else {**settings, "steps": steps}

    def _shop(self) -> dict[str, Any]:
        path = self.out / "shop"
        shutil.rmtree(path, ignore_errors=True)  # a stage that was interrupted
        if self.source == SAMPLE:
            create_sample_shop(path)
        else:
            with Shop.create(path, ShopConfig(name=Path(self.source).resolve().name)) as shop:
                load_preset(shop, self.config.preset, self.source)
                build_shop(shop)
        with self._open_shop() as shop:
            return {**shop.counts(), "derived": shop.config.derived_queries}

    def _base(self) -> dict[str, Any]:
        if self.source == SAMPLE:
            return {"policy": SAMPLE, "weights": fingerprint(resolve(None, SAMPLE))}
        with self._open_shop() as shop:
            if "base" not in policy_names(shop):
                settings = self._settings("pretrain", self.config.pretrain_steps)
                config = merge(PretrainConfig(), {"size": self.config.size, **settings})
                pretrain(shop, "base", config, split=self._split, on_step=self._on_step)
            return self._weights(shop, "base")

    def _sft(self, seed: int) -> dict[str, Any]:
        name, parent = f"sft-{seed}", self._manifest.stages["base"]["policy"]
        config = merge(SftConfig(seed=seed), self._settings("sft", self.config.sft_steps))
        with self._open_shop() as shop:
            if name not in policy_names(shop):
                train_sft(shop, parent, name, config, split=self._split, on_step=self._on_step)
            return self._weights(shop, name)

    def _grpo(self, seed: int, arm: str = "grpo") -> dict[str, Any]:
        name, parent = f"{arm}-{seed}", f"sft-{seed}"
        chosen = Settings(GrpoConfig(), split=self._split)
        if arm in ARMS:
            chosen = with_preset(chosen, arm)
        settings = self._settings("grpo", self.config.grpo_steps)
        with self._open_shop() as shop:
            if name in policy_names(shop):
                pass
            elif name in run_names(shop) and any(
                (Run.open(shop, name).folder / "checkpoints").glob("*")
            ):
                self._report_stage(f"going on with the run {name}")
                resume_grpo(shop, name, on_step=self._on_step)
            else:
                shutil.rmtree(shop.folder("runs", name), ignore_errors=True)
                train_grpo(
                    shop,
                    parent,
                    name,
                    merge(replace(chosen.train, seed=seed), settings),
                    split=chosen.split,
                    options=RunOptions(
                        run=name,
                        agent=agent_with_changes(shop, parent, chosen.agent),
                        about={"preset": chosen.preset},
                    ),
                    on_step=self._on_step,
                )
            return self._weights(shop, name)

    def _weights(self, shop: Shop, name: str) -> dict[str, Any]:
        return {"policy": name, "weights": fingerprint(resolve(shop, name))}

    def _evaluate(self) -> dict[str, Any]:
        with self._open_shop() as shop:
            suite, curves = self._suite(shop), reward_curves(shop)
        report = suite.evaluate(
            lambda name, done: None if done else self._report_stage(f"evaluating {name}")
        )
        catalog = suite.environment.search.catalog
        write_page(self.out / "report.html", report, catalog, suite.rollouts(), curves)
        write_json(self.out / "report.json", report.to_dict())
        write_text(self.out / "table.md", markdown(report))
        return {
            "cases": report.cases,
            "systems": len(report.systems),
            "examples": len(report.details),
            "report": hash_file(self.out / "report.json"),
        }

    def _suite(self, shop: Shop) -> EvaluationSuite:
        """All systems: seed by seed SFT and GRPO, then arms, then ablations and baselines."""
        first, quick = self.config.seeds[0], self.config.quick
        method = f"grpo-{first}"
        config = EvaluationConfig(
            limit=self.config.cases or (QUICK_CASES if quick else None),
            group=self.config.group,
            seed=first,
            with_baselines=True,
            baselines=() if quick else tuple(BASELINES),
            ablations=SHOWN_ABLATIONS[:2] if quick else SHOWN_ABLATIONS,
            compare=((method, "*"),),
            by=("history", "tail", "own", "line"),
            details=EXAMPLES,
        )
        suite = evaluation_suite(shop, [method], config, self._split)
        policies = [f"{kind}-{seed}" for seed in self.config.seeds for kind in ("sft", "grpo")]
        # The same cases; policies that read other profiles keep their own.
        others = evaluation_suite(
            shop,
            [*(p for p in policies if p != method), *(f"{arm}-{first}" for arm in ARMS)],
            EvaluationConfig(group=self.config.group, seed=first),
            self._split,
        )
        order = {name: place for place, name in enumerate(policies)}
        systems = [*others.systems, *suite.systems]
        systems.sort(key=lambda system: order.get(system.name, len(order)))
        return replace(suite, systems=systems)

    def _abtest(self) -> dict[str, Any]:
        first = self.config.seeds[0]
        config = merge(AbConfig(users=self.config.users, seed=first), self._settings("abtest"))
        with self._open_shop() as shop:
            reports = {
                control: abtest(
                    shop,
                    f"{control}-{first}",
                    f"grpo-{first}",
                    config,
                    group=self.config.group,
                    on_stage=self._report_stage,
                )
                for control in CONTROLS
            }
        write_json(self.out / "abtest.json", {c: r.to_dict() for c, r in reports.items()})
        return {
            control: {name: asdict(rate) for name, rate in report.rates.items()}
            for control, report in reports.items()
        }
