"""BM25 over product terms, in a form that can be updated in place and mapped into memory.

Scores are those of Lucene's BM25, computed when the index is built, as in bm25s
(arXiv:2407.03618). Unlike there, term frequencies are stored: products are added, changed and
removed without reading the others again, with the same result as a build from scratch, to the
bit. A document is a product; its number is the product's row in the catalog.

A query term that no product holds is looked up in two more ways: as the initials of a title
("mw3" for Modern Warfare 3), and as a word with one letter changed, missing, added or swapped.

The simulator and the BM25 baseline have postings of their own, in float64: the sample data must
not change with this module, and the baseline's documents grow from case to case.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain

import numpy as np

from ..utils.sparse import sparse
from .analyzer import INITIALISM, initialisms, product_terms
from .spelling import SpellingIndex
from .types import MatchedWord, MatchKind, Ranking

K1, B = 1.2, 0.4
SPELLING_WEIGHT = 0.8  # of a corrected word; measured, see search_quality
STORED_ARRAYS = ("counts", "rows", "starts", "lengths", "impacts", "vocabulary")


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """A term of a query, and the index terms that it may stand for; the best of them counts."""

    typed: str
    index_terms: tuple[str, ...]
    weight: float
    how: MatchKind


class BM25Index:
    """An inverted index in compressed columns: which documents hold a term, and how often."""

    def __init__(
        self,
        terms: Sequence[str],
        frequencies: np.ndarray,  # uint16, (postings,): occurrences of the term in the document
        documents: np.ndarray,  # int32, (postings,), ascending within a term
        offsets: np.ndarray,  # int64, (terms + 1,): where a term's postings begin
        lengths: np.ndarray,  # int32, (documents,): terms of a document, without initialisms
        impacts: np.ndarray | None = None,  # float32, (postings,): what a posting adds to a score
    ) -> None:
        self.terms = terms
        self._frequencies, self._documents = frequencies, documents
        self._offsets, self._lengths = offsets, lengths
        self._column = {term: i for i, term in enumerate(terms)}
        self._impacts = self._compute_impacts() if impacts is None else impacts
        self._query_term = lru_cache(maxsize=100_000)(self._look_up)

    def __len__(self) -> int:
        return len(self._lengths)

    @classmethod
    def build(cls, texts: Sequence[str], titles: Sequence[str]) -> BM25Index:
        """Index one text per document; initialisms are taken from the titles alone."""
        empty = cls(
            [],
            np.empty(0, dtype=np.uint16),
            np.empty(0, dtype=np.int32),
            np.zeros(1, dtype=np.int64),
            np.empty(0, dtype=np.int32),
        )
        return empty.updated(np.full(len(texts), -1, dtype=np.int64), texts, titles)

    def updated(self, source: np.ndarray, texts: Sequence[str], titles: Sequence[str]) -> BM25Index:
        """The index of a changed catalog.

        ``source`` holds for each document its number in this index, or -1 if its text is new,
        (documents,); ``texts`` and ``titles`` are those of the new ones, in order.
        """
        unchanged, fresh = source >= 0, np.flatnonzero(source < 0)
        moved_to = np.full(len(self), -1, dtype=np.int64)
        moved_to[source[unchanged]] = np.flatnonzero(unchanged)
        documents = moved_to[self._documents]
        staying = documents >= 0
        staying_columns = np.repeat(np.arange(len(self.terms)), np.diff(self._offsets))[staying]
        column = dict(self._column)
        fresh_columns, fresh_sizes = array("q"), list[int]()
        for terms in chain(map(product_terms, texts), map(initialisms, titles)):
            fresh_columns.extend([column.setdefault(term, len(column)) for term in terms])
            fresh_sizes.append(len(terms))
        fresh_documents = np.repeat(np.concatenate([fresh, fresh]), fresh_sizes)
        counts = np.concatenate(
            [self._frequencies[staying].astype(np.int32), np.ones(len(fresh_columns), np.int32)]
        )
        rows = np.concatenate([documents[staying], fresh_documents])
        columns = np.concatenate([staying_columns, np.array(fresh_columns, dtype=np.int64)])
        shape = (len(source), len(column))
        matrix = sparse.coo_matrix((counts, (rows, columns)), shape).tocsc()  # adds up duplicates
        matrix.sort_indices()
        sizes = np.diff(matrix.indptr)
        names = list(column)
        lengths = np.empty(len(source), dtype=np.int32)
        lengths[unchanged] = self._lengths[source[unchanged]]
        lengths[fresh] = fresh_sizes[: len(texts)]
        return BM25Index(
            [names[i] for i in np.flatnonzero(sizes).tolist()],
            np.minimum(matrix.data, 65535).astype(np.uint16),
            matrix.indices.astype(np.int32),
            np.concatenate([[0], np.cumsum(sizes[sizes > 0])]).astype(np.int64),
            lengths,
        )

    def _compute_impacts(self) -> np.ndarray:
        document_frequencies = np.diff(self._offsets)
        missing = len(self) - document_frequencies
        idf = np.log(1 + (missing + 0.5) / (document_frequencies + 0.5)).astype(np.float32)
        mean_length = max(self._lengths.mean() if len(self) else 1.0, 1e-9)
        norm = K1 * (1 - B + B * self._lengths / mean_length)
        frequencies = self._frequencies.astype(np.float32)
        damped = frequencies / (norm[self._documents] + frequencies)
        return (np.repeat(idf, document_frequencies) * damped).astype(np.float32)

    def query_terms(self, query: str) -> list[QueryTerm]:
        """The query's terms that match something in this index."""
        return [known for term in product_terms(query) if (known := self._query_term(term))]

    def _look_up(self, term: str) -> QueryTerm | None:
        if term in self._column:
            return QueryTerm(term, (term,), 1.0, "word")
        if INITIALISM + term in self._column:
            return QueryTerm(term, (INITIALISM + term,), 1.0, "initials")
        corrections = self._spelling.corrections(term)
        return QueryTerm(term, corrections, SPELLING_WEIGHT, "spelling") if corrections else None

    @cached_property
    def _spelling(self) -> SpellingIndex:
        return SpellingIndex(term for term in self.terms if term.isalpha())

    def postings(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """The documents that hold an index term, ascending, and what it adds to each score."""
        column = self._column[term]
        span = slice(self._offsets[column], self._offsets[column + 1])
        return self._documents[span], self._impacts[span]

    def scores(self, terms: Sequence[QueryTerm]) -> np.ndarray:
        """The score of every document, float32 (documents,)."""
        total = np.zeros(len(self), dtype=np.float32)
        for term in terms:
            if len(term.index_terms) == 1:
                documents, impacts = self.postings(term.index_terms[0])
                weighted = impacts if term.weight == 1.0 else np.float32(term.weight) * impacts
                total[documents] += weighted
                continue
            best = np.zeros(len(total), dtype=np.float32)
            for name in term.index_terms:
                documents, impacts = self.postings(name)
                best[documents] = np.maximum(best[documents], impacts)
            total += np.float32(term.weight) * best
        return total

    def search(
        self, queries: Sequence[Sequence[QueryTerm]], k: int, allowed: np.ndarray | None = None
    ) -> list[Ranking]:
        """Rank the ``k`` best documents of each query; hundreds of queries at once are fast.

        ``allowed`` masks the documents that may be returned, bool (documents,).
        """
        # A product of sparse matrices adds the impacts in the order of a query's terms. It
        # cannot take the best of several index terms, as corrected words need.
        direct = [all(len(term.index_terms) == 1 for term in terms) for terms in queries]
        columns: list[int] = []
        weights: list[float] = []
        offsets = [0]
        for terms, is_direct in zip(queries, direct, strict=True):
            if is_direct:
                columns += [self._column[term.index_terms[0]] for term in terms]
                weights += [term.weight for term in terms]
            offsets.append(len(columns))
        matrix = sparse.csr_matrix(
            (np.array(weights, dtype=np.float32), np.array(columns, dtype=np.int32), offsets),
            shape=(len(queries), len(self.terms)),
        )
        product = matrix @ self._matrix
        bounds = product.indptr.tolist()
        rankings = []
        for number, (terms, is_direct) in enumerate(zip(queries, direct, strict=True)):
            if is_direct:
                span = slice(bounds[number], bounds[number + 1])
                documents, scores = product.indices[span], product.data[span]
            else:
                scores = self.scores(terms)
                documents = np.flatnonzero(scores)
                scores = scores[documents]
            if allowed is not None:
                passes = allowed[documents]
                documents, scores = documents[passes], scores[passes]
            best = _top(documents, scores, k)
            rankings.append(Ranking(documents[best].astype(np.int64), scores[best]))
        return rankings

    @cached_property
    def _matrix(self) -> sparse.csr_matrix:
        """Impacts, (terms, documents)."""
        return sparse.csr_matrix(
            (self._impacts, self._documents, self._offsets), (len(self.terms), len(self))
        )

    def explain(self, terms: Sequence[QueryTerm], document: int) -> list[MatchedWord]:
        """The part of a document's score that each query term adds, the largest first."""
        matched = []
        for term in terms:
            best, name = 0.0, ""
            for candidate in term.index_terms:
                documents, impacts = self.postings(candidate)
                at = int(np.searchsorted(documents, document))
                if at < len(documents) and documents[at] == document and impacts[at] > best:
                    best, name = float(impacts[at]), candidate.removeprefix(INITIALISM)
            if best > 0:
                matched.append(MatchedWord(term.typed, name, term.how, term.weight * best))
        return sorted(matched, key=lambda word: (-word.score, word.matched))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays to store, by the names of `STORED_ARRAYS`."""
        vocabulary = np.frombuffer("\n".join(self.terms).encode(), dtype=np.uint8)
        parts = (self._frequencies, self._documents, self._offsets, self._lengths, self._impacts)
        return dict(zip(STORED_ARRAYS, (*parts, vocabulary), strict=True))

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> BM25Index:
        """The index that `arrays` describes; raises ValueError where they do not fit together."""
        text = arrays["vocabulary"].tobytes().decode()
        terms = text.split("\n") if text else []
        parts = [arrays[name] for name in STORED_ARRAYS[:-1]]
        frequencies, documents, offsets, _, impacts = parts
        if not (
            len(offsets) == len(terms) + 1
            and offsets[-1] == len(documents) == len(frequencies) == len(impacts)
        ):
            raise ValueError("the lexical index does not fit its vocabulary")
        return cls(terms, *parts)


def _top(documents: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the ``k`` best scores above zero, rounded to five decimals; ties by document."""
    positions: np.ndarray = np.arange(len(scores))
    if len(scores) > k:
        # Rounding keeps the order, so the best and what may tie with them are among these.
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        positions = np.flatnonzero(scores >= threshold - 2e-5)
    rounded = np.round(scores[positions], 5)
    positions, rounded = positions[rounded > 0], rounded[rounded > 0]
    return positions[np.lexsort((documents[positions], -rounded))][:k]
