"""A pytest plugin that makes the folders of costly shared fixtures once for many runs of tests."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COSTLY = 1.0  # seconds of the process


class KeptFolders:
    """Gives a fixture's folder from the last time, as a copy that the tests may write to.

    ``changed`` names the fixtures that run what is different in this run: they are made anew, and
    so is what takes them. A folder knows nothing of where it lies, as `qagent` shops do.
    """

    def __init__(self, place: Path, changed: set[str]) -> None:
        self.place, self.changed = place, changed

    def folder(self, name: str, base: str) -> Path:
        """Where the folder of a fixture is kept, for the tests below ``base``."""
        return self.place / f"{name}@{base.replace('/', '+')}"

    def _kept(self, fixturedef: Any) -> Path | None:
        """Where the fixture's folder is or would be kept; none if it has to be made anew."""
        if fixturedef.scope == "function" or fixturedef.params:
            return None
        if self.changed & {fixturedef.argname, *fixturedef.argnames}:
            return None
        return self.folder(fixturedef.argname, fixturedef.baseid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Path | None:
        kept = self._kept(fixturedef)
        if kept is None or not kept.exists():
            return None
        factory = request.getfixturevalue("tmp_path_factory")
        path: Path = factory.mktemp("kept") / "folder"
        shutil.copytree(kept, path)
        fixturedef.cached_result = (path, fixturedef.cache_key(request), None)
        return path

    @pytest.hookimpl(wrapper=True, specname="pytest_fixture_setup")
    def keep(self, fixturedef: Any) -> Iterator[None]:
        began = time.process_time()
        made = yield
        kept = self._kept(fixturedef)
        costly = time.process_time() - began > COSTLY
        if costly and kept and not kept.exists() and isinstance(made, Path) and made.is_dir():
            beside = kept.with_name(kept.name + ".part")
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(made, beside)
            beside.rename(kept)
        return made
