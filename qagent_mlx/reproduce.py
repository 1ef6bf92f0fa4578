"""From raw data to the full table in one go, stage by stage, each done once.

    OUT/manifest.json   settings, versions, seeds, hashes, and what each stage made
    OUT/shop/           the shop with its policies and runs
    OUT/report.json     every metric of every system
    OUT/report.html     the same to look at
    OUT/table.md        the main table
    OUT/abtest.json     the simulated A/B tests, by control (simulated shops only)

A stage that the manifest calls done is not done again; a GRPO run that was cut off goes on from
its last checkpoint to the same weights. So the same command after a crash goes on.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .build import build_shop, create_sample_shop
from .environment.cases import SplitConfig
from .errors import QAgentError
from .evaluate.abtest import RATES, AbConfig, abtest
from .evaluate.baselines.popularity import SLOW
from .evaluate.baselines.search_log import SearchLog
from .evaluate.html_report import curves, write_page
from .evaluate.report import evaluate, markdown
from .evaluate.suite import evaluation_suite
from .ingest.datasets import load_preset
from .models.fingerprint import fingerprint
from .policy.lora import LoraConfig
from .policy.registry import SAMPLE, policy_names, resolve
from .runs.run import Run, run_names
from .shop.config import ShopConfig
from .shop.sample import sample_data_folder
from .shop.shop import Shop
from .train.config_files import Settings, agent_of, with_preset
from .train.grpo import resume_grpo, train_grpo
from .train.grpo_config import GrpoConfig
from .train.pretrain import PretrainConfig, pretrain
from .train.sft import SftConfig, train_sft
from .utils.atomic_files import read_json, replacing, write_json

FORMAT = 2
PACKAGES = (
    "qagent-mlx",
    "mlx",
    "mlx-lm",
    "numpy",
    "duckdb",
    "usearch",
    "bm25s",
    "scipy",
    "tokenizers",
)
ABLATIONS = (
    "no search",
    "no memory",
    "no refinement",
    "no latest",
    "no graph",
    "no identity",
    "no neighbours",
    "no trending",
)
# Presets of GRPO that are trained beside the method itself, with the first seed.
ARMS = {
    "query-only": "GRPO with the query reward only (ablation)",
    "typed": "GRPO with the query reward only, on what people typed (ablation)",
    "single-turn": "GRPO without search (single-turn RL)",
    "no-memory": "GRPO that knows nothing of the user (ablation)",
}
CONTROLS = ("query-only", "typed")  # of the simulated A/B test; the method is the treatment
EXAMPLES = 200


@dataclass(frozen=True)
class ReproduceConfig:
    """What is trained and measured; None means the default of the stage."""

    preset: str = "generic"
    seeds: tuple[int, ...] = (0, 1, 2)
    pretrain_steps: int | None = None
    size: str = "tiny"
    sft_steps: int | None = None
    grpo_steps: int | None = None
    cases: int | None = None  # test cases; all by default
    users: int = 500  # of the A/B test
    group: int = 8
    quick: bool = False  # everything very small: shows that it runs, nothing else
    min_history: int = 1
    test_from: str = ""


class Reproduction:
    """Runs the stages that are left.

    Args:
        source: ``sample``, or the folder of raw files that the preset reads.
        out: Where everything goes; an earlier reproduction there goes on.
        config: Settings; those of an earlier reproduction must be the same.
        on_stage: Called with what begins.
        on_step: Called after each training step with its numbers.
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
        self._say = on_stage or (lambda stage: None)
        self._on_step = on_step
        if not self.config.seeds or len(set(self.config.seeds)) < len(self.config.seeds):
            raise QAgentError("give at least one seed, and each once")
        self._split = SplitConfig(
            min_history=self.config.min_history, test_from=self.config.test_from
        )
        self._manifest = self._opened()

    @property
    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` holds."""
        return self._manifest

    def run(self) -> dict[str, Any]:
        """Do the stages that are left, and return the manifest.

        Raises:
            QAgentError: raw files are missing or have changed, or training has no signal.
        """
        first = self.config.seeds[0]
        self._stage("shop", "reading the raw data", self._shop)
        self._stage("base", "making the base policy", self._base)
        for seed in self.config.seeds:
            self._stage(f"sft-{seed}", f"SFT, seed {seed}", partial(self._sft, seed))
            self._stage(f"grpo-{seed}", f"GRPO, seed {seed}", partial(self._grpo, seed))
        for arm, title in ARMS.items():
            self._stage(f"{arm}-{first}", title, partial(self._grpo, first, arm))
        self._stage("evaluate", "evaluating", self._evaluate)
        with self._opened_shop() as shop:
            simulated = bool(shop.config.simulated)
        if simulated:
            self._stage("abtest", "simulated A/B test", self._abtest)
        return self._manifest

    # ------------------------------------------------------------ the manifest

    def _opened(self) -> dict[str, Any]:
        path = self.out / "manifest.json"
        fresh = {
            "format": FORMAT,
            "source": self.source if self.source == SAMPLE else str(Path(self.source).resolve()),
            "inputs": _inputs(self.source),
            "settings": {**asdict(self.config), "seeds": list(self.config.seeds)},
            "versions": _versions(),
            "stages": {},
        }
        if not path.exists():
            if self.out.exists() and any(self.out.iterdir()):
                raise QAgentError(
                    f"{self.out} holds something else; choose a new or empty folder for --out"
                )
            write_json(path, fresh)
            return fresh
        known: dict[str, Any] = read_json(path, f"the reproduction {self.out}")
        if not isinstance(known, dict) or known.get("format") != FORMAT:
            raise QAgentError(f"{path} is of another format; choose a new folder for --out")
        for key in ("source", "inputs", "settings", "versions"):
            if known.get(key) != fresh[key]:
                raise QAgentError(
                    f"{self.out} was begun with other {key}, so its numbers would not belong "
                    "together; choose a new folder for --out"
                )
        return known

    def _stage(self, name: str, title: str, do: Callable[[], dict[str, Any]]) -> None:
        if name in self._manifest["stages"]:
            self._say(f"{title}: done before")
            return
        self._say(title)
        start = time.perf_counter()
        made = do()
        self._manifest["stages"][name] = {**made, "seconds": round(time.perf_counter() - start, 1)}
        write_json(self.out / "manifest.json", self._manifest)

    # ------------------------------------------------------------ the stages

    def _opened_shop(self, *, write: bool = False) -> Shop:
        return Shop.open(self.out / "shop", read_only=not write)

    def _shop(self) -> dict[str, Any]:
        path = self.out / "shop"
        shutil.rmtree(path, ignore_errors=True)  # a stage that was cut off
        if self.source == SAMPLE:
            create_sample_shop(path)
        else:
            with Shop.create(path, ShopConfig(name=Path(self.source).resolve().name)) as shop:
                load_preset(shop, self.config.preset, self.source)
                build_shop(shop)
        with self._opened_shop() as shop:
            return {**shop.counts(), "derived": shop.config.derived_queries}

    def _base(self) -> dict[str, Any]:
        if self.source == SAMPLE:
            return {"policy": SAMPLE, "weights": fingerprint(resolve(None, SAMPLE))}
        with self._opened_shop() as shop:
            if "base" not in policy_names(shop):
                shutil.rmtree(shop.folder("policies", "base"), ignore_errors=True)
                small = (
                    {
                        "size": "nano",
                        "vocab_size": 512,
                        "steps": 12,
                        "batch_size": 8,
                        "learning_rate": 3e-3,
                    }
                    if self.config.quick
                    else {}
                )
                settings: dict[str, Any] = {"size": self.config.size, **small}
                if self.config.pretrain_steps is not None:
                    settings["steps"] = self.config.pretrain_steps
                pretrain(
                    shop,
                    "base",
                    PretrainConfig(**settings),
                    split=self._split,
                    on_step=self._on_step,
                )
            return self._weights(shop, "base")

    def _sft(self, seed: int) -> dict[str, Any]:
        name = f"sft-{seed}"
        settings: dict[str, Any] = {"seed": seed}
        if self.config.quick:
            settings |= {"steps": 3, "batch_size": 8, "measured": 4, "lora": LoraConfig(rank=4)}
        if self.config.sft_steps is not None:
            settings["steps"] = self.config.sft_steps
        with self._opened_shop() as shop:
            if name not in policy_names(shop):
                train_sft(
                    shop,
                    self._manifest["stages"]["base"]["policy"],
                    name,
                    SftConfig(**settings),
                    split=self._split,
                    on_step=self._on_step,
                )
            return self._weights(shop, name)

    def _grpo(self, seed: int, kind: str = "grpo") -> dict[str, Any]:
        name, parent = f"{kind}-{seed}", f"sft-{seed}"
        chosen = Settings(GrpoConfig(), split=self._split)
        if kind in ARMS:
            chosen = with_preset(chosen, kind)
        settings: dict[str, Any] = {"seed": seed}
        if self.config.quick:
            settings |= {
                "steps": 2,
                "cases_per_step": 8,
                "group": 4,
                "save_every": 1,
                "measured": 4,
                "lora": LoraConfig(rank=4),
            }
        if self.config.grpo_steps is not None:
            settings["steps"] = self.config.grpo_steps
        with self._opened_shop() as shop:
            if name not in policy_names(shop):
                if name in run_names(shop) and any(
                    (Run.open(shop, name).folder / "checkpoints").glob("*")
                ):
                    self._say(f"going on with the run {name}")
                    resume_grpo(shop, name, on_step=self._on_step)
                else:
                    shutil.rmtree(shop.folder("runs", name), ignore_errors=True)
                    train_grpo(
                        shop,
                        parent,
                        name,
                        replace(chosen.train, **settings),
                        agent=agent_of(shop, parent, chosen.agent),
                        split=chosen.split,
                        run=name,
                        on_step=self._on_step,
                        about={"preset": chosen.preset},
                    )
            return self._weights(shop, name)

    def _weights(self, shop: Shop, name: str) -> dict[str, Any]:
        return {"policy": name, "weights": fingerprint(shop.folder("policies", name))}

    def _evaluate(self) -> dict[str, Any]:
        first, quick = self.config.seeds[0], self.config.quick
        policies = [f"{kind}-{s}" for s in self.config.seeds for kind in ("sft", "grpo")]
        with self._opened_shop() as shop:
            environment, systems = evaluation_suite(
                shop,
                [f"grpo-{first}"],
                ablations=ABLATIONS[:2] if quick else ABLATIONS,
                with_baselines=True,
                extra=() if quick else SLOW,
                split=self._split,
                only="test",
                group=self.config.group,
                seed=first,
                keep=EXAMPLES,
            )
            others, more = evaluation_suite(
                shop,
                [*(p for p in policies if p != f"grpo-{first}"), *(f"{a}-{first}" for a in ARMS)],
                split=self._split,
                only="test",
                group=self.config.group,
                seed=first,
            )
            del others  # the same cases; who reads other profiles keeps them
            log, runs = SearchLog.of_shop(shop), curves(shop)
            about = {
                "derived": shop.config.derived_queries,
                "shop": shop.config.name,
                "simulated": bool(shop.config.simulated),
            }
        chains = {
            s.name: s.kept
            for s in systems
            if getattr(s, "name", "") == f"grpo-{first}" and hasattr(s, "kept")
        }
        mine = f"grpo-{first}"
        # Seed by seed, each SFT before its GRPO; then arms, ablations and baselines.
        order = {name: place for place, name in enumerate(policies)}
        systems = sorted([*more, *systems], key=lambda s: order.get(s.name, len(order)))
        limit = self.config.cases or (12 if quick else None)
        report = evaluate(
            environment,
            systems,
            "test",
            5,
            limit,
            seed=first,
            compare=[(mine, s.name) for s in systems if s.name != mine],
            log=log,
            by=("history", "tail", "own"),
            details=EXAMPLES,
            on_progress=lambda name, done: None if done else self._say(f"evaluating {name}"),
        )
        report |= about
        write_page(self.out / "report.html", report, environment.search.catalog, chains, runs)
        details = report.pop("details")
        write_json(self.out / "report.json", report)
        with replacing(self.out / "table.md") as path:
            path.write_text(markdown(report), encoding="utf-8")
        return {
            "cases": report["cases"],
            "systems": len(systems),
            "examples": len(details),
            "report": _hash(self.out / "report.json"),
        }

    def _abtest(self) -> dict[str, Any]:
        first = self.config.seeds[0]
        settings = AbConfig(
            users=6 if self.config.quick else self.config.users,
            draws=2 if self.config.quick else AbConfig.draws,
            seed=first,
        )
        with self._opened_shop() as shop:
            reports = {
                control: abtest(
                    shop,
                    f"{control}-{first}",
                    f"grpo-{first}",
                    settings,
                    group=self.config.group,
                    on_stage=self._say,
                )
                for control in CONTROLS
            }
        write_json(self.out / "abtest.json", reports)
        return {
            control: {rate: report[rate] for rate in RATES} for control, report in reports.items()
        }


def _inputs(source: str) -> dict[str, str]:
    """Name -> hash of every raw file."""
    folder = sample_data_folder() if source == SAMPLE else Path(source)
    if not folder.is_dir():
        raise QAgentError(f"{folder} is no folder; name one with raw files, or: sample")
    files = sorted(p for p in folder.iterdir() if p.is_file())
    if source == SAMPLE:
        files = [p for p in files if p.suffix in {".parquet", ".json"}]
    return {path.name: _hash(path) for path in files}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )


def _versions() -> dict[str, str]:
    made = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
    }
    for name in PACKAGES:
        try:
            made[name] = version(name)
        except PackageNotFoundError:
            made[name] = "unknown"
    return made
