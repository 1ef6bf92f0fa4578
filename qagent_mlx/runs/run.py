"""A training run's folder: what was trained, how, and everything that happened on the way.

    config.json       kind, policy names, all settings; written last when a run is made
    cases.parquet     the cases with their profiles; clicks.parquet, the click log
    metrics.jsonl     one line a step
    rollouts.jsonl    sampled chains with rewards by component and advantage
    alarms.jsonl      alarms that fired
    checkpoints/      see `checkpoint`
    summary.json      the report, written when the run has ended

DuckDB reads the JSON lines and Parquet files back with SQL.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.atomic_files import clear_leftovers, locked, read_json, write_json, write_text

RUN_FORMAT = 1
LOGS = ("metrics", "rollouts", "alarms")  # the files of JSON lines
_TEXTS = ("name", "kind", "policy", "base", "created")  # of config.json
_TABLES = ("train", "agent", "split")
_NUMBERS = (  # of summary.json
    "steps",
    "reward_first",
    "reward_last",
    "seconds",
    "validation_reward",
    "best_step",
    "best_value",
)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that fits into a float."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63)


class Run:
    """One run's folder, whose name is the run's, and what its ``config.json`` holds.

    Of several workers only the main one has a run that is ``writable``.
    """

    def __init__(self, folder: Path, config: dict[str, Any], writable: bool = True) -> None:
        self.folder, self.config, self.writable = folder, config, writable

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    @classmethod
    def create(cls, shop: Shop, name: str, config: dict[str, Any]) -> Run:
        """Make a new run and write its config at once; see `prepare`."""
        run = cls.prepare(shop, name, config)
        run.commit()
        return run

    @classmethod
    def prepare(cls, shop: Shop, name: str, config: dict[str, Any]) -> Run:
        """Make the empty folder of a new run.

        It becomes a run with `commit`, so that a run that exists has all it needs to resume.
        """
        folder = shop.folder("runs", name)
        if (folder / "config.json").exists():
            raise QAgentError(
                f"the run {name} exists; choose another name for the run, or resume it"
            )
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            # What a start that was killed left behind is no part of this run.
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        except OSError as error:
            raise QAgentError(
                f"cannot write the run's folder {folder}: {error.strerror}; choose a shop folder "
                "you may write to, or free some space"
            ) from error
        return cls(folder, {"format": RUN_FORMAT, "name": name, "created": created, **config})

    def commit(self) -> None:
        """Write ``config.json``: from here on the run exists."""
        write_json(self.folder / "config.json", self.config)

    @classmethod
    def open(cls, shop: Shop, name: str) -> Run:
        """Open an existing run."""
        folder = shop.folder("runs", name)
        if not (folder / "config.json").exists():
            known = ", ".join(run_names(shop)) or "none yet"
            raise QAgentError(f"there is no run {name} in {shop.path}; runs: {known}")
        config = read_json(folder / "config.json", f"the run {name}")
        if not isinstance(config, dict) or config.get("format") != RUN_FORMAT:
            raise QAgentError(f"the run {name} is of another format; train again")
        wrong = [key for key in _TEXTS if not isinstance(config.get(key, ""), str)]
        wrong += [key for key in _TABLES if not isinstance(config.get(key, {}), dict)]
        if wrong:
            raise QAgentError(
                f"the run {name} is damaged: {folder}/config.json: {', '.join(wrong)}; train again"
            )
        return cls(folder, config)

    def append(self, log: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows to one of `LOGS`; they are on disk when this returns."""
        if not self.writable:
            return
        path = self.folder / f"{log}.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json_lines(rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise QAgentError(
                f"cannot write {path}: {error.strerror}; free some space, then resume the run"
            ) from error

    def rows(self, log: str) -> Iterator[dict[str, Any]]:
        """The rows of one of `LOGS`; a torn last line is left out."""
        path = self.folder / f"{log}.jsonl"
        if not path.exists():
            return
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def rewind(self, step: int, train: dict[str, Any]) -> None:
        """Forget what happened after a step, and store the settings to go on with.

        A kill from now on changes nothing of what was asked for.
        """
        if self.config["train"] != json.loads(json.dumps(train)):
            self.config["train"] = train
            self.commit()
        if step < train["steps"]:
            (self.folder / "summary.json").unlink(missing_ok=True)  # it has not ended any more
        for log in LOGS:
            path = self.folder / f"{log}.jsonl"
            if path.exists():
                rows = [row for row in self.rows(log) if row["step"] <= step]
                write_text(path, json_lines(rows))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``."""
        if self.writable:
            write_json(self.folder / "summary.json", summary)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the run has not ended."""
        if not (self.folder / "summary.json").exists():
            return None
        value: Any = read_json(self.folder / "summary.json", f"the run {self.name}")
        numbers = [value.get(k) for k in _NUMBERS] if isinstance(value, dict) else [""]
        if not all(number is None or is_number(number) for number in numbers):
            raise QAgentError(
                f"the run {self.name} is damaged: {self.folder}/summary.json; delete that file, "
                "then resume the run"
            )
        return dict(value)


@contextmanager
def run_lock(shop: Shop, name: str) -> Iterator[None]:
    """Inside the block no other process makes or trains the run of that name."""
    folder = shop.folder("runs", name)
    path = folder.parent / f".{name}.lock"
    refusal = (
        f"the run {name} is being trained by {{}}; wait for it, end it, or choose another "
        "name for the run"
    )
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path, refusal))
        except OSError as error:
            raise QAgentError(
                f"cannot write {path.parent}: {error.strerror}; "
                "choose a shop folder you may write to"
            ) from error
        clear_leftovers(folder)
        yield


def run_names(shop: Shop) -> list[str]:
    """The shop's runs, oldest first."""
    return [n for n in shop.names("runs") if (shop.path / "runs" / n / "config.json").exists()]


def free_name(name: str, taken: Sequence[str]) -> str:
    """``name``, or ``name-2``, ``name-3`` … when that is taken."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
