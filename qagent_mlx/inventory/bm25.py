"""BM25 over product terms, in a form that can be updated in place and mapped into memory.

The scores are those of Lucene's BM25 (Kamphuis et al., 2020), computed when the index is made,
as in bm25s (arXiv:2407.03618); a test holds the two together. Unlike there, term counts are
kept, so that products can be added, changed and removed without reading the others again, and
the result is what a build from scratch gives, to the bit.

A query's word that no product has is looked for in two more ways: as the initials of a title
("mw3" for Modern Warfare 3), and as a word with one letter changed, missing, added, or two
swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from scipy import sparse

from .analyzer import INITIALISM, initialisms, is_word, product_terms
from .spelling import Spelling

K1, B = 1.2, 0.4
FUZZY_WEIGHT = 0.8  # of a word that was found by its spelling only; measured, see search_quality
ARRAYS = ("counts", "rows", "starts", "lengths", "impacts", "vocabulary")


@dataclass(frozen=True, slots=True)
class TermGroup:
    """Index terms that one term of a query may stand for; the best of them counts."""

    typed: str
    terms: tuple[str, ...]
    weight: float
    how: str  # word, initials, spelling


class BM25Index:
    """Terms by rows in columns (CSC): which rows hold a term, how often, and what it is worth."""

    def __init__(
        self,
        vocabulary: Sequence[str],
        counts: np.ndarray,  # uint16, (entries,)
        rows: np.ndarray,  # int32, (entries,), ascending within a term
        starts: np.ndarray,  # int64, (terms + 1,)
        lengths: np.ndarray,  # int32, (rows,): terms of a row, aliases left out
        impacts: np.ndarray | None = None,  # float32, (entries,)
    ) -> None:
        self.terms = vocabulary
        self._counts, self._rows, self._starts, self._lengths = counts, rows, starts, lengths
        self._column = {term: i for i, term in enumerate(vocabulary)}
        self._impacts = self._weigh() if impacts is None else impacts
        self._spelling: Spelling | None = None
        self._groups: dict[str, TermGroup | None] = {}

    def __len__(self) -> int:
        return len(self._lengths)

    def __contains__(self, term: str) -> bool:
        return term in self._column

    @classmethod
    def build(cls, texts: Sequence[str], titles: Sequence[str]) -> BM25Index:
        """Of one text a row; initials come from the titles alone."""
        empty = cls([], *_empty())
        return empty.rearranged(np.full(len(texts), -1, dtype=np.int64), texts, titles)

    def rearranged(
        self, source: np.ndarray, texts: Sequence[str], titles: Sequence[str]
    ) -> BM25Index:
        """The index of a changed catalog.

        Args:
            source: For each new row the old row that it is, or -1 for a new text, (rows,).
            texts: The texts of the new rows, in order of row.
            titles: Their titles.
        """
        fresh = np.flatnonzero(source < 0)
        target = np.full(len(self._lengths), -1, dtype=np.int64)
        target[source[source >= 0]] = np.flatnonzero(source >= 0)
        old_rows = target[self._rows]
        old_columns = np.repeat(np.arange(len(self.terms)), np.diff(self._starts))
        kept = old_rows >= 0
        column = dict(self._column)
        found = [product_terms(text) for text in texts]
        also = [initialisms(title) for title in titles]
        ids = [column.setdefault(t, len(column)) for t in chain.from_iterable(found)]
        more = [column.setdefault(t, len(column)) for t in chain.from_iterable(also)]
        sizes = np.array([len(terms) for terms in found], dtype=np.int64)
        matrix = sparse.coo_matrix(
            (
                np.concatenate(
                    [
                        self._counts[kept].astype(np.int32),
                        np.ones(len(ids) + len(more), dtype=np.int32),
                    ]
                ),
                (
                    np.concatenate(
                        [
                            old_rows[kept],
                            np.repeat(fresh, sizes),
                            np.repeat(fresh, [len(terms) for terms in also]),
                        ]
                    ),
                    np.concatenate([old_columns[kept], np.array(ids + more, dtype=np.int64)]),
                ),
            ),
            shape=(len(source), len(column)),
        ).tocsc()
        matrix.sort_indices()
        used = np.flatnonzero(np.diff(matrix.indptr))
        starts = np.concatenate([[0], np.cumsum(np.diff(matrix.indptr)[used])])
        names = list(column)
        lengths = np.empty(len(source), dtype=np.int32)
        lengths[source >= 0] = self._lengths[source[source >= 0]]
        lengths[fresh] = sizes
        return BM25Index(
            [names[i] for i in used.tolist()],
            np.minimum(matrix.data, 65535).astype(np.uint16),
            matrix.indices.astype(np.int32),
            starts.astype(np.int64),
            lengths,
        )

    def _weigh(self) -> np.ndarray:
        """What each entry adds to a score, float32: idf times damped count."""
        size = len(self._lengths)
        held = np.diff(self._starts)
        idf = np.log(1 + (size - held + 0.5) / (held + 0.5)).astype(np.float32)
        mean = self._lengths.mean() if size else 1.0
        norm = K1 * (1 - B + B * self._lengths / max(mean, 1e-9))
        counts = self._counts.astype(np.float32)
        damped = counts / (norm[self._rows] + counts)
        return (np.repeat(idf, held) * damped).astype(np.float32)

    # ------------------------------------------------------------ queries

    def groups(self, query: str) -> list[TermGroup]:
        """What the query's terms stand for in this index; what stands for nothing is left out."""
        made = []
        for term in product_terms(query):
            if term not in self._groups:
                if len(self._groups) > 100_000:
                    self._groups.clear()
                self._groups[term] = self._group(term)
            group = self._groups[term]
            if group is not None:
                made.append(group)
        return made

    def _group(self, term: str) -> TermGroup | None:
        if term in self._column:
            return TermGroup(term, (term,), 1.0, "word")
        if INITIALISM + term in self._column:
            return TermGroup(term, (INITIALISM + term,), 1.0, "initials")
        if self._spelling is None:
            self._spelling = Spelling(t for t in self.terms if is_word(t))
        near = self._spelling.near(term)
        return TermGroup(term, near, FUZZY_WEIGHT, "spelling") if near else None

    def postings(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows that hold an index term, ascending, and what each adds to a score."""
        at = self._column[term]
        place = slice(self._starts[at], self._starts[at + 1])
        return self._rows[place], self._impacts[place]

    def scores(self, groups: Sequence[TermGroup]) -> np.ndarray:
        """The score of every row, float32 (rows,)."""
        total = np.zeros(len(self._lengths), dtype=np.float32)
        for group in groups:
            if len(group.terms) == 1:
                rows, values = self.postings(group.terms[0])
                total[rows] += values if group.weight == 1.0 else np.float32(group.weight) * values
                continue
            best = np.zeros(len(total), dtype=np.float32)
            for term in group.terms:
                rows, values = self.postings(term)
                best[rows] = np.maximum(best[rows], values)
            total += np.float32(group.weight) * best
        return total

    def found(self, asked: Sequence[Sequence[TermGroup]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query's groups the rows that hold a term, in any order, and their scores.

        The same scores as `scores`, for hundreds of queries at once.
        """
        simple = [all(len(group.terms) == 1 for group in groups) for groups in asked]
        terms: list[int] = []
        weights: list[float] = []
        starts = [0]
        for groups, plain in zip(asked, simple, strict=True):
            if plain:
                terms += [self._column[group.terms[0]] for group in groups]
                weights += [group.weight for group in groups]
            starts.append(len(terms))
        # A product of sparse matrices adds what a row's terms are worth in their order.
        queries = sparse.csr_matrix(
            (np.array(weights, dtype=np.float32), np.array(terms, dtype=np.int32), starts),
            shape=(len(asked), len(self.terms)),
        )
        total = queries @ self._matrix
        edges = total.indptr.tolist()
        made = []
        for number, (groups, plain) in enumerate(zip(asked, simple, strict=True)):
            if plain:
                at = slice(edges[number], edges[number + 1])
                made.append((total.indices[at], total.data[at]))
            else:
                scores = self.scores(groups)
                rows = np.flatnonzero(scores)
                made.append((rows, scores[rows]))
        return made

    @cached_property
    def _matrix(self) -> sparse.csr_matrix:
        """What each row (columns) is worth to each term (rows)."""
        return sparse.csr_matrix(
            (self._impacts, self._rows, self._starts), (len(self.terms), len(self._lengths))
        )

    def why(self, groups: Sequence[TermGroup], row: int) -> list[tuple[TermGroup, str, float]]:
        """What a row's score is made of: (group, index term, what it adds), the most first."""
        made = []
        for group in groups:
            best = ("", 0.0)
            for term in group.terms:
                rows, values = self.postings(term)
                at = int(np.searchsorted(rows, row))
                if at < len(rows) and rows[at] == row and values[at] > best[1]:
                    best = (term, float(values[at]))
            if best[1] > 0:
                made.append((group, best[0].removeprefix(INITIALISM), group.weight * best[1]))
        return sorted(made, key=lambda item: (-item[2], item[1]))

    # ------------------------------------------------------------ files

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored, by name."""
        text = "\n".join(self.terms).encode()
        return {
            "counts": self._counts,
            "rows": self._rows,
            "starts": self._starts,
            "lengths": self._lengths,
            "impacts": self._impacts,
            "vocabulary": np.frombuffer(text, dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> BM25Index:
        """What `arrays` gave; raises ValueError where the parts don't fit."""
        text = arrays["vocabulary"].tobytes().decode()
        terms = text.split("\n") if text else []
        starts, rows = arrays["starts"], arrays["rows"]
        if not (
            len(starts) == len(terms) + 1
            and starts[-1] == len(rows) == len(arrays["counts"]) == len(arrays["impacts"])
        ):
            raise ValueError("the lexical index does not fit its vocabulary")
        return cls(terms, arrays["counts"], rows, starts, arrays["lengths"], arrays["impacts"])


def _empty() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.empty(0, dtype=np.uint16),
        np.empty(0, dtype=np.int32),
        np.zeros(1, dtype=np.int64),
        np.empty(0, dtype=np.int32),
    )
