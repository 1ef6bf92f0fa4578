"""Our SASRec beside RecBole's, on the same sequences, split and cases.

    python -m venv recbole && recbole/bin/pip install torch "numpy<2" "scipy<1.13" "pandas<2.2" recbole
    python tests/benchmarks/sasrec_peer.py SHOP --python recbole/bin/python [--limit 200]

RecBole wants an older numpy than this project, so it runs in an environment of its own, from
`sasrec_recbole.py`. Both learn from the same pairs of a user's last searches and the query that
begins the next session, all before the first case, at the same size (width 64, two blocks, two
heads, 24 searches, 12 passes); the rest is each one's own: RecBole's dropout of 0.5, Adam at 1e-3
and initialisation. Both rank all queries known before the first case, for the same cases.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import numpy as np
from rich.console import Console

from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Example
from qagent_mlx.evaluate.baselines.sasrec import SasRec
from qagent_mlx.evaluate.baselines.search_log import SearchLog, moment_of
from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.evaluate.suite import evaluation_suite
from qagent_mlx.evaluate.tables import comparison_table, table
from qagent_mlx.shop.shop import Shop

PEER = Path(__file__).with_name("sasrec_recbole.py")


class RecBoleSasRec(SasRec):
    """RecBole's model in place of ours; what it learns from and is asked stays the same."""

    name = "sasrec of RecBole"

    def __init__(self, log: SearchLog, python: Path, seed: int) -> None:
        super().__init__(log)
        self._python, self._seed = python, seed

    def _start(self, examples: Sequence[Example]) -> None:
        log, length = self.log, self._config.length
        until = log.before(min(moment_of(e.case.as_of) for e in examples))
        self._known = np.unique(log.queries[:until])
        self._ids = np.zeros(len(log.spellings), dtype=np.int64)
        self._ids[self._known] = np.arange(1, len(self._known) + 1)
        histories, wanted = [], []
        for row, targets in zip(*self._sequences(until), strict=True):
            for place in np.flatnonzero(targets):
                histories.append(row[: place + 1][row[: place + 1] > 0])
                wanted.append(targets[place])
        asked = []
        for example in examples:
            own = log.of_user(example.case.user_id, moment_of(example.case.as_of))
            ids = self._ids[log.queries[own]]
            asked.append(ids[ids > 0][-length:])
        scores = self._ask(histories, np.array(wanted), asked)
        has_history = np.array([len(ids) > 0 for ids in asked])[:, None]
        self._scores_of_cases = np.where(has_history, scores, 0.0)

    def _ask(
        self, histories: Sequence[np.ndarray], wanted: np.ndarray, asked: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Scores of all known queries, (cases, queries), by RecBole in its own process."""
        with tempfile.TemporaryDirectory() as folder:
            given, answer = Path(folder) / "given.npz", Path(folder) / "scores.npy"
            np.savez(
                given,
                known=len(self._known),
                length=self._config.length,
                wanted=wanted,
                histories=np.stack([_padded(x, self._config.length) for x in histories]),
                asked=np.stack([_padded(x, self._config.length) for x in asked]),
            )
            command = [self._python, PEER, given, answer, "--seed", str(self._seed)]
            subprocess.run([*map(str, command)], check=True, cwd=folder)
            return np.load(answer)


def _padded(ids: np.ndarray, length: int) -> np.ndarray:
    """The last ids from the left, zeros behind, as RecBole reads them."""
    return np.pad(ids[-length:], (0, length - len(ids[-length:])))


def main() -> None:
    """Evaluate both, and compare them case by case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shop", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="that has RecBole")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--test-from")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pair = ("sasrec", RecBoleSasRec.name)
    config = EvaluationConfig(limit=given.limit, baselines=("sasrec",))
    split = SplitConfig(test_from=given.test_from) if given.test_from else None
    with Shop.open(given.shop) as shop:
        suite = evaluation_suite(shop, (), config, split)
        peer = RecBoleSasRec(suite.log, given.python.absolute(), given.seed)
        config = replace(config, compare=(pair,))
        report = replace(suite, systems=[*suite.systems, peer], config=config).evaluate()
    console = Console(width=100)
    console.print(table(report), comparison_table(report))


if __name__ == "__main__":
    main()
