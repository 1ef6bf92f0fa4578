"""Runs as files: what was trained, how, and everything that happened on the way.

    config.json       kind, policy names, all settings
    cases.parquet     the cases with their profiles; clicks.parquet, the click log
    metrics.jsonl     one line a step
    rollouts.jsonl    sampled chains with rewards by component and advantage
    checkpoints/      see `checkpoint`
    summary.json      written when the run has ended

DuckDB reads the JSON lines and Parquet files back with SQL.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..files import read_json, replacing, write_json
from ..shop import Shop

RUN_FORMAT = 1


class Run:
    """One run's folder."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @classmethod
    def create(cls, shop: Shop, name: str, config: dict[str, Any]) -> Run:
        """A new run; its config is written at once.

        Raises:
            QAgentError: a run of that name exists, or the folder cannot be written.
        """
        folder = shop.folder("runs", name)
        if (folder / "config.json").exists():
            raise QAgentError(
                f"the run {name} exists; choose another --run name, or go on with --resume"
            )
        config = {
            "format": RUN_FORMAT,
            "name": name,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **config,
        }
        write_json(folder / "config.json", config)
        return cls(folder, config)

    @classmethod
    def open(cls, shop: Shop, name: str) -> Run:
        """An existing run.

        Raises:
            QAgentError: there is none of that name, or it is damaged.
        """
        folder = shop.folder("runs", name)
        if not (folder / "config.json").exists():
            known = ", ".join(run_names(shop)) or "none yet"
            raise QAgentError(f"there is no run {name} in {shop.path}; runs: {known}")
        config = read_json(folder / "config.json", f"the run {name}")
        if not isinstance(config, dict) or config.get("format") != RUN_FORMAT:
            raise QAgentError(f"the run {name} is of another format; train again")
        return cls(folder, config)

    # ------------------------------------------------------------ lines

    def append(self, what: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows to ``metrics`` or ``rollouts``, on disk when this returns."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = self.folder / f"{what}.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise QAgentError(
                f"cannot write {path}: {error.strerror}; free some space, then go on with --resume"
            ) from error

    def rows(self, what: str) -> Iterator[dict[str, Any]]:
        """The rows of ``metrics`` or ``rollouts``; a torn last line is left out."""
        path = self.folder / f"{what}.jsonl"
        if not path.exists():
            return
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def rewind(self, step: int) -> None:
        """Forget rows of steps after ``step``: a resumed run writes them again."""
        for what in ("metrics", "rollouts"):
            path = self.folder / f"{what}.jsonl"
            if path.exists():
                kept = [row for row in self.rows(what) if row["step"] <= step]
                with replacing(path) as temporary:
                    temporary.write_text(
                        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept),
                        encoding="utf-8",
                    )

    def finish(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``."""
        write_json(self.folder / "summary.json", summary)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the run has not ended."""
        if not (self.folder / "summary.json").exists():
            return None
        value: dict[str, Any] = read_json(self.folder / "summary.json", f"the run {self.name}")
        return value


def run_names(shop: Shop) -> list[str]:
    """The shop's runs, oldest first."""
    return [n for n in shop.names("runs") if (shop.path / "runs" / n / "config.json").exists()]


def free_name(shop: Shop, wanted: str) -> str:
    """``wanted``, or ``wanted-2``, ``wanted-3`` … when that is taken."""
    taken = set(run_names(shop))
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name
