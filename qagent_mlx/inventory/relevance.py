"""The relevance floor: how like a query a product must be that vectors alone find.

Vectors have a nearest product for any text. What shares a word with a query, or was chosen under
it before, is found whatever its vector; of the rest only what is as like the query as products that
people choose. "As like" is a logistic curve of two numbers: the cosine of query and product, and
the length that the query's vector had before it was scaled to 1, which tells how much of the query
the encoder has ever seen (of a misspelt word some, of random letters hardly anything).

It is learned when the index is built, from clicks before its ``clicks_until``:

- clicked pairs of query and product, as they are and with the query misspelt until no word of it
  is known, so that vectors alone could find the product, against
- unclicked ones: for the same queries the nearest product of a category that nobody chose under
  them and that shares no word with them, and the nearest product to words that nobody means
  anything by: random letters, syllables and digits. Of these it cuts `NOISE_CUT`, counted among
  those that vectors find anything for: a small catalog has n-grams in common with few of them.

An index that was built before there was a floor is used without one.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bm25 import BM25Index
from .catalog import Catalog
from .encoders.encoder import Encoder
from .encoders.subword import ClickedQuery, SubwordEncoder
from .vector_index import VectorIndex

VERSION = 1
MIN_PAIRS = 50  # clicked, from which on a floor is learned
MAX_PAIRS, MAX_SLOW_PAIRS = 600, 150  # the latter of encoders that take long
DEPTH = 50  # nearest products that are looked through for an unclicked one
FOUND = 10  # nearest products among which a clicked one counts as found
NOISE = 2000  # words of it, as its tail says where the floor lies
NOISE_CUT = 0.97  # of the nearest products to noise
LEAST_KEPT = (
    0.99  # of clicked pairs as they were typed, by words or by vectors, before anything else
)
PRIOR = 1.0  # strength of the prior of each weight, in pairs
LEAST_LENGTH = 1e-3
LEAST_COSINE = 1.0  # weight, so that of a query that is hardly known only the nearest are found
_MAIL = re.compile(r"\S+@\S+\.\S+")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VOWELS = "aeiou"
_DIGITS = "0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelevanceFloor:
    """A curve of cosine and ln(length): what it puts below 0 is not found by vectors alone.

    Attributes:
        version: What the numbers mean; a floor of another version is not used.
        cosine: The weight of the cosine.
        length: The weight of ln(length of the query's vector).
        intercept: What is added.
        pairs: Clicked pairs that it was learned from.
        kept: The share of pairs like these that it keeps.
        cut: The share of unclicked ones that it cuts.
    """

    version: int = VERSION
    cosine: float
    length: float
    intercept: float
    pairs: int
    kept: float
    cut: float

    def keeps(self, cosines: np.ndarray, length: float | np.ndarray) -> np.ndarray:
        """Which products are like enough, by their cosines to queries of these lengths."""
        logs = np.log(np.maximum(length, LEAST_LENGTH))
        kept: np.ndarray = self.cosine * cosines + self.length * logs + self.intercept >= 0
        return kept


# Where the curve begins: that of the sample shop.
PRIOR_WEIGHTS = np.array([10.0, 1.5, -4.5])


def is_address(query: str) -> bool:
    """Whether a query is a mail address, which no product is found by, whatever words it holds."""
    return _MAIL.fullmatch(query.strip()) is not None


def learn_floor(
    encoder: Encoder,
    lexical: BM25Index,
    vectors: VectorIndex,
    catalog: Catalog,
    clicked: Sequence[ClickedQuery],
) -> RelevanceFloor | None:
    """Learn the floor of an index.

    Returns:
        None where fewer than `MIN_PAIRS` are known, or vectors find none of them: then nobody
        knows what is like enough.
    """
    if len(clicked) < MIN_PAIRS:
        return None
    draw = random.Random(0)
    most = MAX_PAIRS if encoder.is_fast else MAX_SLOW_PAIRS
    pairs = draw.sample(list(clicked), min(most, len(clicked)))
    leaves: dict[str, set[str]] = defaultdict(set)  # that were chosen under each query
    for pair in clicked:
        leaves[pair.query].add(catalog.leaf(pair.row))
    typed = [pair.query for pair in pairs]
    unknown = [_misspelt(query, lexical, draw) for query in typed]
    products = encoder.encode([catalog.text(pair.row) for pair in pairs])
    by_words = np.array([_score(pair.query, pair.row, lexical) > 0 for pair in pairs])
    relevant, irrelevant = [], []
    for queries in (typed, unknown):
        encoded, lengths = encode_queries(encoder, queries)
        nearest = vectors.search(encoded, DEPTH)
        cosine = (encoded * products).sum(axis=1)
        lists = (ranking.rows[:FOUND] for ranking in nearest)
        is_found = np.array([p.row in rows for p, rows in zip(pairs, lists, strict=True)])
        features = _features(cosine, lengths)
        if queries is typed:
            alone = features[is_found & ~by_words]
        relevant.append(features[is_found])  # what vectors do not find at all cannot be kept
        cosines = [
            _best_other(ranking.rows, ranking.scores, query, leaves[original], lexical, catalog)
            for query, original, ranking in zip(queries, typed, nearest, strict=True)
        ]
        irrelevant.append(_known(np.array(cosines), lengths))
    noise = [noise_word(draw) for _ in range(NOISE if encoder.is_fast else MAX_SLOW_PAIRS)]
    encoded, lengths = encode_queries(encoder, noise)
    best = [float(r.scores[0]) if len(r) else np.nan for r in vectors.search(encoded, 1)]
    irrelevant.append(_known(np.array(best), lengths))
    if not any(map(len, relevant)):
        return None
    return _fit(relevant, irrelevant, alone, len(pairs))


def encode_queries(encoder: Encoder, queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of queries, and their lengths before: 1 where an encoder does not tell."""
    if isinstance(encoder, SubwordEncoder):
        return encoder.encode_with_lengths(queries)
    return encoder.encode(queries, queries=True), np.ones(len(queries))


def noise_word(draw: random.Random) -> str:
    """A word that nobody means anything by, of random letters, syllables or digits."""
    length = draw.randint(4, 12)
    kinds = ((_LETTERS, _LETTERS), (_LETTERS, _VOWELS), (_DIGITS, _DIGITS))
    odd, even = draw.choices(kinds, (2, 2, 1))[0]
    return "".join(draw.choice(even if at % 2 else odd) for at in range(length))


def misspell(query: str, draw: random.Random) -> str:
    """The query with one letter left out, changed, added, or swapped with the next."""
    at = draw.randrange(max(len(query), 1))
    letter, rest = draw.choice(_LETTERS), query[at + 1 :]
    return draw.choice(
        [
            query[:at] + rest,
            query[:at] + letter + rest,
            query[:at] + letter + query[at:],
            query[:at] + rest[:1] + query[at : at + 1] + rest[1:],
        ]
    )


def _misspelt(query: str, lexical: BM25Index, draw: random.Random) -> str:
    """The query with as many slips as it takes until no word of it is known; four at most."""
    for _ in range(4):
        query = misspell(query, draw)
        if not lexical.query_terms(query):
            break
    return query


def _best_other(
    rows: np.ndarray,
    cosines: np.ndarray,
    query: str,
    chosen: set[str],
    lexical: BM25Index,
    catalog: Catalog,
) -> float:
    """The cosine of the nearest product of another category that shares no word; NaN for none."""
    terms = lexical.query_terms(query)
    scores = lexical.scores(terms)[rows] if terms else np.zeros(len(rows))
    for row, cosine, score in zip(rows.tolist(), cosines.tolist(), scores.tolist(), strict=True):
        leaf = catalog.leaf(row)
        if score == 0 and leaf and leaf not in chosen:
            return float(cosine)
    return float("nan")


def _features(cosines: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows of cosine and ln(length): (pairs, 2)."""
    return np.stack([cosines, np.log(np.maximum(lengths, LEAST_LENGTH))], axis=1)


def _known(cosines: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The features of the pairs that have a cosine."""
    return _features(cosines, lengths)[~np.isnan(cosines)]


def _score(query: str, row: int, lexical: BM25Index) -> float:
    """The BM25 score of a product under a query."""
    return float(lexical.scores(lexical.query_terms(query))[row])


def _fit(
    relevant: Sequence[np.ndarray], irrelevant: Sequence[np.ndarray], alone: np.ndarray, pairs: int
) -> RelevanceFloor:
    """The curve that parts the two best, each kind of pair counting alike.

    How high it lies is said by noise, the last of ``irrelevant``; but of ``pairs`` as they were
    typed no more may be lost than `LEAST_KEPT` says, of those that vectors ``alone`` find.
    """
    from scipy.optimize import minimize  # half a second that only learning needs

    # A kind may have no pair: slips that vectors never see through.
    wanted, unwanted = ([part for part in kinds if len(part)] for kinds in (relevant, irrelevant))
    parts = [*wanted, *unwanted]
    x = np.concatenate([np.column_stack([part, np.ones(len(part))]) for part in parts])
    y = np.repeat([i < len(wanted) for i, _ in enumerate(parts)], [len(p) for p in parts])
    share = np.where(y, 1 / len(wanted), 1 / max(1, len(unwanted)))
    weight = pairs * share / np.repeat([len(p) for p in parts], [len(p) for p in parts])
    scale = np.array([0.1, 1.0, 0.1])  # a weight of ten cosines is nothing special

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log-posterior and its gradient."""
        logits, distance = x @ theta, (theta - PRIOR_WEIGHTS) * scale
        value = (weight * (np.logaddexp(0, logits) - y * logits)).sum()
        gradient = x.T @ (weight * (1 / (1 + np.exp(-logits)) - y)) + PRIOR * distance * scale
        return float(value + 0.5 * PRIOR * distance @ distance), gradient

    # What is more alike or better known is never the less relevant: a few n-grams in common make
    # the cosines of noise as high as those of misspelt words.
    bounds = ((LEAST_COSINE, None), (0, None), (None, None))
    theta = minimize(loss, PRIOR_WEIGHTS, jac=True, method="L-BFGS-B", bounds=bounds).x
    noise = np.quantile(irrelevant[-1] @ theta[:2], NOISE_CUT) if len(irrelevant[-1]) else -np.inf
    scores, lost = np.sort(alone @ theta[:2]), round((1 - LEAST_KEPT) * pairs)
    typed = scores[lost] if lost < len(scores) else np.inf
    theta[2] = -min(max(noise, -theta[2]), typed)
    above = x @ theta >= 0
    return RelevanceFloor(
        cosine=float(theta[0]),
        length=float(theta[1]),
        intercept=float(theta[2]),
        pairs=pairs,
        kept=float(np.average(above[y], weights=weight[y])),
        cut=float(np.average(~above[~y], weights=weight[~y])) if (~y).any() else 0.0,
    )
