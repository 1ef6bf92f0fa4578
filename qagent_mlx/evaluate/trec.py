"""TREC files of an evaluation, for every tool that reads them (trec_eval, ir-measures, ranx).

Two tasks for each case, whose number is the topic: the queries that a system recommends, of which
the one that the user typed next is relevant, and the products that the first of them retrieves,
of which those that the user engaged with are. In the folder lie

    queries.qrels  SYSTEM.queries.run      reciprocal rank is `mrr`, success at 5 is `q_hit@5`
    items.qrels    SYSTEM.items.run        nDCG at 10 is `i_ndcg@10`, success at 10 `i_hit@10`

Documents are product ids and normalised queries; white space and % in them are percent-encoded,
because TREC's columns are separated by spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from ..environment.environment import Environment
from ..errors import QAgentError
from ..utils.atomic_files import replacing_files
from ..utils.text import query_key
from .metrics import Ranking
from .report import EvaluationReport

RETRIEVED = 10  # products of a query, as many as are scored

Topic = tuple[str, Sequence[str]]  # a case's number, and documents: relevant ones or the best first


def write_trec(folder: Path, environment: Environment, report: EvaluationReport) -> list[Path]:
    """Write run and qrels files of all systems of a report; returns them.

    Args:
        folder: It is made where it is missing; files of the same names are replaced.
        environment: Of the evaluation.
        report: Of the evaluation.

    Raises:
        QAgentError: the folder cannot be written.
    """
    cases = [example.case for example in report.examples]
    topics = [str(case.case_id) for case in cases]
    texts = {
        "queries.qrels": _qrels(zip(topics, ([c.query_key] for c in cases), strict=True)),
        "items.qrels": _qrels(zip(topics, (c.products for c in cases), strict=True)),
    }
    for name, rankings in report.rankings.items():
        queries = [_queries(ranking) for ranking in rankings]
        items = [
            environment.retrieve(r.queries[0], case.as_of)[:RETRIEVED]
            if r.queries and query_key(r.queries[0])
            else ()
            for r, case in zip(rankings, cases, strict=True)
        ]
        tag = re.sub(r"[^\w.@+-]+", "-", name).strip("-")
        texts[f"{tag}.queries.run"] = _run(zip(topics, queries, strict=True), tag)
        texts[f"{tag}.items.run"] = _run(zip(topics, items, strict=True), tag)
    paths = [folder / name for name in texts]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing_files(paths) as temporary:
            for path, text in zip(temporary, texts.values(), strict=True):
                path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QAgentError(
            f"cannot write {folder}: {error.strerror or error}; choose a folder you may write to"
        ) from error
    return paths


def _queries(ranking: Ranking) -> list[str]:
    """The normalised queries of a ranking; one that says nothing, or nothing new, as ``-RANK``."""
    keys = [query_key(query) for query in ranking.queries]
    return [key if key and key not in keys[:i] else f"-{i + 1}" for i, key in enumerate(keys)]


def _qrels(topics: Iterable[Topic]) -> str:
    lines = [
        f"{topic} 0 {_id(d)} 1\n" for topic, documents in topics for d in dict.fromkeys(documents)
    ]
    return "".join(lines)


def _run(topics: Iterable[Topic], tag: str) -> str:
    # Tools sort by the score, not by the rank.
    return "".join(
        f"{topic} Q0 {_id(document)} {rank} {1 / rank:.6f} {tag}\n"
        for topic, documents in topics
        for rank, document in enumerate(documents, 1)
    )


def _id(document: str) -> str:
    return re.sub(r"[\s%]", lambda match: quote(match[0], safe=""), document)
