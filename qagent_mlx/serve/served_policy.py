"""Which policy a server recommends with now, and whether another one should take its place."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import QAgentError
from ..models.download import shipped_name
from ..shop.policy_folders import parse_reference, reference_of
from .metrics import Metrics
from .policy_choice import PolicyChoice, SavedPolicy, saved_at

log = logging.getLogger("qagent.serve")


class ServedPolicy:
    """The policy that recommends. For one thread.

    Args:
        choice: Says which one should recommend.
        first: The one that recommends first.
        metrics: Names the policy, and counts those that were taken up.

    Attributes:
        name: Its name.
        version: Its version; None for one that has none.
        problem: Why a policy was not taken up that should be; empty where none was refused.
    """

    name: str
    version: int | None
    problem: str
    _current: tuple[Path, int | None]
    _refused: tuple[Path, int | None] | None

    def __init__(self, choice: PolicyChoice, first: SavedPolicy, metrics: Metrics) -> None:
        self.choice, self._metrics = choice, metrics
        self._set(first)

    def to_load(self) -> Path | None:
        """The folder of a policy that should recommend and does not; None where there is none."""
        try:
            folder = self.choice.folder()
        except QAgentError as error:  # it was removed by hand
            self._note_problem(str(error))
            return None
        wanted = (folder, saved_at(folder))
        if wanted == self._current:
            self._refused, self.problem = None, ""
        is_known = wanted in (self._current, self._refused) or wanted[1] is None
        return None if is_known else folder

    def take_up(self, loaded: SavedPolicy) -> None:
        """Another one recommends now."""
        self._set(loaded)
        self._metrics.policies.labels("taken").inc()
        log.info("policy %s taken up", reference_of(loaded.folder))

    def refuse(self, folder: Path, error: BaseException) -> None:
        """Go on with the old policy; the other one is not tried again until it changes."""
        self._refused = (folder, saved_at(folder))
        self._note_problem(f"{reference_of(folder)} was not taken up: {error}")
        self._metrics.policies.labels("refused").inc()

    def _set(self, loaded: SavedPolicy) -> None:
        name, self.version = parse_reference(reference_of(loaded.folder))
        self.name = shipped_name(loaded.folder) or name
        self.problem = ""
        self._current, self._refused = (loaded.folder, loaded.saved_at), None
        self._metrics.name_policy(self.name, self.version)

    def _note_problem(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s; going on with %s", problem, reference_of(self._current[0]))
        self.problem = problem
