import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.inventory.analyzer import initialisms, product_terms
from qagent_mlx.inventory.bm25 import SPELLING_WEIGHT, BM25Index, _top
from qagent_mlx.inventory.spelling import MAX_CORRECTIONS, SpellingIndex

TITLES = [
    "Call of Duty: Modern Warfare 3 - Xbox 360",
    "Call of Duty: Black Ops",
    "WWE '12 - Xbox 360",
    "Gears of War 3",
    "Assassin's Creed II",
    "Wireless Controller",
    "Coffee Filter 100 pack",
    "Coffee Grinder",
]
WORDS = ("usb", "cable", "64gb", "card", "cards", "coffee", "filter", "war3", "war", "3")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=7)


def same(one, other):
    a, b = one.arrays(), other.arrays()
    terms = [bytes(x["vocabulary"]).decode().split("\n") for x in (a, b)]
    assert sorted(terms[0]) == sorted(terms[1])
    assert np.array_equal(a["lengths"], b["lengths"])
    for term in terms[0]:
        for x, y in zip(one.postings(term), other.postings(term), strict=True) if term else ():
            assert np.array_equal(x, y)


def test_scores_are_those_of_bm25s():
    lexical = BM25Index.build(TITLES, TITLES)
    oracle = bm25s.BM25(k1=1.2, b=0.4)
    oracle.index([product_terms(t) for t in TITLES], show_progress=False)
    for query in ("gears of war 3", "coffee", "xbox 360 controller", "of of war", "64 gb"):
        wanted = oracle.get_scores_from_ids(oracle.get_tokens_ids(product_terms(query)))
        got = lexical.scores(lexical.query_terms(query))
        if all(term.how == "word" for term in lexical.query_terms(query)):
            assert got == pytest.approx(wanted, abs=2e-6), query


@given(before=TEXTS, after=TEXTS, data=st.data())
def test_an_update_gives_what_a_build_from_scratch_gives(before, after, data):
    old = BM25Index.build(before, before)
    source = np.full(len(after), -1, dtype=np.int64)
    free = list(range(len(before)))
    for row in range(len(after)):
        if free and data.draw(st.booleans()):
            source[row] = free.pop(data.draw(st.integers(0, len(free) - 1)))
            after[row] = before[source[row]]
    fresh = [after[row] for row in np.flatnonzero(source < 0)]
    same(old.updated(source, fresh, fresh), BM25Index.build(after, after))


@given(TEXTS)
def test_a_stored_index_is_the_same(texts):
    lexical = BM25Index.build(texts, texts)
    same(BM25Index.from_arrays(lexical.arrays()), lexical)


@pytest.mark.parametrize(
    ("query", "title", "how"),
    [
        ("mw3", 0, "initials"),
        ("codmw3", 0, None),
        ("cod", 1, "initials"),
        ("wwe12", 2, "word"),
        ("gow3", 3, "initials"),
        ("gears of war3", 3, "word"),
        ("ac", 4, "initials"),
        ("controler", 5, "spelling"),
        ("cofee fliter", 6, "spelling"),
        ("grindr", 7, "spelling"),
    ],
)
def test_what_is_typed_finds_its_title(query, title, how):
    lexical = BM25Index.build(TITLES, TITLES)
    terms = lexical.query_terms(query)
    if how is None:
        assert not any(term.how == "initials" for term in terms)
        return
    assert int(lexical.scores(terms).argmax()) == title
    matched = lexical.explain(terms, title)
    assert how in {word.how for word in matched}
    total = sum(word.score for word in matched)
    assert total == pytest.approx(lexical.scores(terms)[title], abs=1e-5)


def test_what_is_told_of_a_title_begins_with_the_word_that_counts_most():
    lexical = BM25Index.build(TITLES, TITLES)
    for query in ("coffee grinder", "grinder coffee"):
        terms = lexical.query_terms(query)
        words = [word.matched for word in lexical.explain(terms, TITLES.index("Coffee Grinder"))]
        assert words == ["grinder", "coffee"], "two titles have coffee"


def test_queries_asked_together_are_ranked_as_each_is_scored_alone():
    texts = ["lamp oil", "lamb", "desk lamp", "limb", "oil desk"]
    lexical = BM25Index.build(texts, texts)
    queries = [lexical.query_terms(q) for q in ("lamp", "lamq", "lamc desk", "oil desk", "zzzz")]
    assert {len(term.index_terms) for terms in queries for term in terms} >= {1, 2}
    for terms, ranking in zip(queries, lexical.search(queries, 9), strict=True):
        scores = lexical.scores(terms)
        expected = sorted(np.flatnonzero(scores), key=lambda d: (-scores[d], d))
        assert ranking.rows.tolist() == expected
        assert ranking.scores == pytest.approx(scores[expected])


def test_a_word_that_is_known_is_not_corrected():
    lexical = BM25Index.build(["cable", "table"], ["cable", "table"])
    assert lexical.scores(lexical.query_terms("cable"))[1] == 0
    near = lexical.scores(lexical.query_terms("xable"))
    exact = lexical.scores(lexical.query_terms("cable"))
    assert near == pytest.approx([SPELLING_WEIGHT * exact[0]] * 2)


def distance(a, b):
    """Optimal string alignment, from its definition."""
    d = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            d[i, j] = min(
                d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            )
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a), len(b)]


SHORT = st.text("abé", min_size=3, max_size=7)


@given(st.lists(SHORT, unique=True, max_size=12), SHORT)
def test_spelling_finds_exactly_the_words_that_are_one_edit_away(words, typed):
    near = SpellingIndex(words).corrections(typed)
    wanted = sorted(w for w in words if len(w) > 3 and len(typed) > 3 and distance(w, typed) == 1)
    assert list(near) == wanted[:MAX_CORRECTIONS]


def test_numbers_are_not_corrected():
    assert SpellingIndex(["war2", "1080p"]).corrections("war3") == ()


def test_initials_come_from_the_parts_of_a_title():
    assert initialisms("Call of Duty: Modern Warfare 3") == ["~co", "~cod", "~mw", "~mw3"]
    assert initialisms("Halo") == []


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 12), st.randoms())
def test_the_best_are_those_of_a_sort_with_ties_by_document(levels, k, random):
    """Scores a hair apart are ties, whichever of them is above the k-th."""
    documents = random.sample(range(1000), len(levels))
    scores = np.array([level / 3 + random.choice((0.0, 1e-6)) for level in levels])
    order = sorted(range(len(levels)), key=lambda i: (-round(scores[i], 5), documents[i]))
    expected = [i for i in order if round(scores[i], 5) > 0][:k]
    assert _top(np.array(documents), scores, k).tolist() == expected
