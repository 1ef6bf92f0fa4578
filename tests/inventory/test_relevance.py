"""A search that matches nothing finds nothing; one that is misspelt still finds."""

import json
import math
import random
import string
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import OSA
from scipy.optimize import minimize_scalar

from qagent_mlx.inventory import relevance
from qagent_mlx.inventory.bm25 import BM25Index
from qagent_mlx.inventory.catalog import Catalog
from qagent_mlx.inventory.click_log import ClickLog
from qagent_mlx.inventory.encoders.registry import EncoderSpec
from qagent_mlx.inventory.encoders.subword import ClickedQuery, SubwordEncoder
from qagent_mlx.inventory.index_files import MANIFEST, IndexWriter, Manifest, read_manifest
from qagent_mlx.inventory.relevance import (
    LEAST_COSINE,
    LEAST_KEPT,
    MIN_PAIRS,
    PRIOR,
    PRIOR_WEIGHTS,
    VERSION,
    RelevanceFloor,
    _fit,
    _misspelt,
    is_address,
    learn_floor,
    misspell,
    noise_word,
)
from qagent_mlx.inventory.relevance_effect import floor_effect
from qagent_mlx.inventory.search import HybridSearch
from qagent_mlx.inventory.stored_index import InventoryIndex
from qagent_mlx.inventory.types import EMPTY_RANKING
from qagent_mlx.inventory.vector_index import VectorIndex
from qagent_mlx.shop.config import SearchConfig
from qagent_mlx.utils.text import query_key

KINDS = (
    *("camping stove", "mountain bike", "coffee grinder", "wireless headphones", "garden hose"),
    *("office chair", "running shoes", "baby stroller", "phone charger", "desk lamp"),
)
BRANDS = ("Aldivar", "Borealis", "Castellan", "Dunmore", "Elmora", "Fonteyn")
CLICKED = [
    ClickedQuery(6 * k + b, query, 1.0)
    for k, kind in enumerate(KINDS)
    for b, brand in enumerate(BRANDS)
    for query in (kind, f"{brand.lower()} {kind}")
]


def make_index(clicked, categories=True):
    titles = [f"{brand} {kind.title()}" for kind in KINDS for brand in BRANDS]
    size = len(titles)
    leaves = [f"All > {kind.title()}" if categories else None for kind in KINDS for _ in BRANDS]
    catalog = Catalog(
        [f"p{i}" for i in range(size)],
        titles,
        [None] * size,
        leaves,
        np.ones(size),
        np.ones(size, bool),
        [None] * size,
    )
    texts = catalog.texts()
    encoder = SubwordEncoder.fit(texts, clicked, 64)
    lexical, vectors = BM25Index.build(texts, titles), VectorIndex.build(encoder.encode(texts))
    manifest = Manifest(
        generation=1,
        catalog_version=1,
        products=size,
        encoder=EncoderSpec(place="subword", dimensions=64),
        clicks_until=None,
        dimensions=vectors.dimensions,
        relevance=learn_floor(encoder, lexical, vectors, catalog, clicked),
    )
    return InventoryIndex(None, manifest, catalog, lexical, vectors, encoder)


@pytest.fixture(scope="module")
def index():
    return make_index(CLICKED)


@pytest.fixture(scope="module")
def search(index):
    return HybridSearch(index, None, SearchConfig())


@pytest.fixture(scope="module")
def noise(index):
    """Noise for which vectors find something, as it shares a few letters with products."""
    draw = random.Random(3)
    words = [noise_word(draw) for _ in range(1000)]
    without = HybridSearch(index, None, SearchConfig(relevance_floor=False))
    found = [word for word, hits in zip(words, without.search(words, 5), strict=True) if hits]
    assert len(found) > 50
    return found


def test_a_mail_address_and_noise_find_nothing(search, noise):
    assert np.mean([not hits for hits in search.search(noise, 5)]) > 0.9
    assert search.search(["ann.lee@mail.example", "ann.lee@coffee.example"], 5) == [[], []]


def test_what_was_typed_finds_the_same_and_slips_still_find(search):
    without = HybridSearch(search.index, None, SearchConfig(relevance_floor=False))
    queries = sorted({pair.query for pair in CLICKED})
    for query, hits, all_hits in zip(
        queries, search.search(queries, 6), without.search(queries, 6), strict=True
    ):
        assert hits == all_hits, query
    draw = random.Random(0)
    slips = [misspell(misspell(query, draw), draw) for query in queries]
    assert np.mean([not hits for hits in search.search(slips, 5)]) < 0.1


@given(st.text(string.ascii_lowercase + " ", min_size=1, max_size=20), st.integers(0, 2**32))
def test_a_slip_is_one_letter_left_out_changed_added_or_swapped(query, seed):
    slip = misspell(query, random.Random(seed))
    assert OSA.distance(query, slip) <= 1 and abs(len(query) - len(slip)) <= 1


def test_slips_are_of_four_kinds():
    word = "lamp"
    slips = [misspell(word, random.Random(seed)) for seed in range(200)]
    letters = [sorted(slip) == sorted(word) and slip != word for slip in slips]  # swapped
    assert any(letters) and {len(slip) for slip in slips} == {3, 4, 5}
    assert any(len(slip) == 4 and sorted(slip) != sorted(word) for slip in slips)


def test_noise_is_of_letters_syllables_or_digits():
    draw = random.Random(0)
    words = [noise_word(draw) for _ in range(300)]
    assert {len(word) for word in words} == set(range(4, 13))
    vowels = set("aeiou")
    kinds = {
        "digits": [word for word in words if word.isdigit()],
        "syllables": [w for w in words if w.isalpha() and set(w[1::2]) <= vowels],
    }
    kinds["letters"] = [w for w in words if w.isalpha() and w not in kinds["syllables"]]
    assert sum(map(len, kinds.values())) == len(words)
    assert all(len(found) > 30 for found in kinds.values())
    assert np.mean([w[0] in vowels for w in kinds["syllables"]]) < 0.5


def test_what_is_like_a_query_without_being_meant_shares_no_word_and_no_category(index):
    catalog, lexical = index.catalog, index.lexical
    leaves = [catalog.leaf(row) for row in range(len(catalog))]
    stove, bike, hose = (
        leaves.index(kind) for kind in ("Camping Stove", "Mountain Bike", "Garden Hose")
    )
    rows, cosines = np.array([stove, hose, bike]), np.array([0.9, 0.8, 0.7])

    def best(query, *chosen):
        return relevance._best_other(rows, cosines, query, set(chosen), lexical, catalog)

    assert best("nothing known") == 0.9
    assert best("stove") == 0.8  # the first has the word
    assert best("stove", "Garden Hose") == 0.7
    assert math.isnan(best("stove", "Garden Hose", "Mountain Bike"))


def test_slips_go_on_until_no_word_is_known_and_no_further(index):
    known = index.lexical.query_terms
    words = [query.split()[0] for query in KINDS]
    assert all(map(known, words))
    taken = set()
    for seed, word in enumerate(words * 5):
        draw, chain = random.Random(seed), [word]
        while known(chain[-1]) and len(chain) <= 4:  # the search itself forgives some slips
            chain.append(misspell(chain[-1], draw))
        assert _misspelt(word, index.lexical, random.Random(seed)) == chain[-1]
        taken.add(len(chain) - 1)
    assert taken >= {1, 2, 3}


def test_a_query_of_a_category_that_is_gone_finds_nothing_else(index):
    """Its words are known to the encoder, and no product is like it any more."""
    texts = [t for t in index.catalog.texts() if "Garden Hose" not in t]
    rows = [i for i, t in enumerate(index.catalog.texts()) if "Garden Hose" not in t]
    kept = Catalog(*([column[i] for i in rows] for column in _columns(index.catalog)))
    kept.in_stock, kept.prices = np.ones(len(rows), bool), np.ones(len(rows))
    left = replace(
        index,
        catalog=kept,
        lexical=BM25Index.build(texts, kept.titles),
        vectors=VectorIndex.build(index.encoder.encode(texts)),
    )
    search = HybridSearch(left, None, SearchConfig())
    assert search.search(["garden hose", "aldivar"], 5)[0] == []
    assert search.left_out("garden hose") > 0
    assert search.search(["office chair"], 5)[0]


def _columns(catalog):
    columns = (catalog.ids, catalog.titles, catalog.brands, catalog.categories)
    return (*columns, catalog.prices, catalog.in_stock, catalog.attributes)


def test_what_was_chosen_under_a_query_is_found_whatever_its_vector(index):
    query, row = "qwertyuiop", 7  # no product is like it
    columns = {
        "query_key": np.array([query_key(query)], object),
        "query": np.array([query], object),
        "product_id": np.array([index.catalog.ids[row]], object),
        "ts": np.array([1e9]),
        "weight": np.array([3.0]),
    }
    clicks = ClickLog(columns, index.catalog.row_of, 30.0)
    hits = HybridSearch(index, clicks, SearchConfig()).search([query], 5)[0]
    assert [hit.product_id for hit in hits] == [index.catalog.ids[row]]


def test_few_clicks_teach_no_floor_and_no_categories_teach_one(noise):
    few = make_index(CLICKED[: MIN_PAIRS - 1])
    assert few.manifest.relevance is None
    assert any(HybridSearch(few, None, SearchConfig()).search(noise, 5))
    assert HybridSearch(few, None, SearchConfig()).search(["a@b.example"], 5) == [[]]
    assert make_index(CLICKED, categories=False).manifest.relevance is not None


def test_the_effect_is_measured(index):
    effect = floor_effect(index, SearchConfig(), CLICKED)
    assert effect.ndcg == pytest.approx(effect.ndcg_without) and effect.nothing_typed == 0
    assert effect.nothing_noise > 0.9 and effect.nothing_misspelt < 0.2
    assert floor_effect(index, SearchConfig(relevance_floor=False), CLICKED) is None


@pytest.mark.parametrize("seed", range(3))
def test_whatever_was_clicked_neither_likeness_nor_being_known_counts_against(seed):
    """Clicks at random: noise is then more like its nearest product than what was chosen is."""
    draw = random.Random(seed)
    clicked = [pair._replace(row=draw.randrange(60)) for pair in CLICKED]
    floor = make_index(clicked, categories=False).manifest.relevance
    assert floor.cosine >= LEAST_COSINE and floor.length >= 0


def test_noise_that_is_like_everything_cuts_what_may_be_lost_of_what_was_typed_and_no_more():
    pairs = 400
    typed = np.column_stack([np.linspace(0.2, 0.8, pairs), np.full(pairs, 2.0)])
    noise = np.full((50, 2), (0.95, 2.0))
    floor = _fit([typed], [noise], typed, pairs)
    found = typed @ (floor.cosine, floor.length) + floor.intercept >= -1e-9
    assert (~found).sum() == round((1 - LEAST_KEPT) * pairs) > 0


def test_a_floor_is_the_likeliest_curve_under_its_prior():
    """Against the definition: each kind of pair weighs alike, and weights stay near the prior."""
    random = np.random.default_rng(0)
    kinds = [
        np.column_stack([random.normal(cosine, 0.2, count), random.normal(length, 0.5, count)])
        for cosine, length, count in ((0.6, 2.0, 30), (0.5, 1.0, 20), (0.3, 1.5, 25), (0.2, 1, 10))
    ]
    pairs, relevant, irrelevant = 30, kinds[:2], kinds[2:]
    floor = _fit(relevant, irrelevant, kinds[0], pairs)

    def badness(cosine, length):
        def of(intercept):
            theta = np.array([cosine, length, intercept])
            logits = [kind @ theta[:2] + intercept for kind in kinds]
            signs = (-1, -1, 1, 1)
            losses = [np.logaddexp(0, s * v).mean() for s, v in zip(signs, logits, strict=True)]
            distance = (theta - PRIOR_WEIGHTS) ** 2 * (0.01, 1.0, 0.01)
            return pairs * sum(losses) / 2 + 0.5 * PRIOR * distance.sum()

        return minimize_scalar(of, bounds=(-60, 60), method="bounded").fun

    best = badness(floor.cosine, floor.length)
    for factors in ((0.97, 1), (1.03, 1), (1, 0.97), (1, 1.03)):
        assert badness(floor.cosine * factors[0], floor.length * factors[1]) > best


def test_a_kind_without_a_pair_changes_nothing():
    """Such as slips, where vectors see through none: what is irrelevant stays so."""
    random = np.random.default_rng(0)
    typed, others, noise = (
        np.column_stack([random.normal(cosine, 0.1, 40), random.normal(1.5, 0.3, 40)])
        for cosine in (0.7, 0.3, 0.2)
    )
    none = np.empty((0, 2))
    alone = _fit([typed], [others, noise], typed, 40)
    assert _fit([typed, none], [others, noise], typed, 40) == alone
    assert _fit([typed], [others, none, noise], typed, 40) == alone
    assert alone.cut > 0.5


def test_vectors_that_find_nothing_teach_no_floor(index):
    blind = SimpleNamespace(search=lambda queries, k: [EMPTY_RANKING] * len(queries))
    assert learn_floor(index.encoder, index.lexical, blind, index.catalog, CLICKED) is None


def test_what_words_find_anyway_does_not_hold_the_floor_down(monkeypatch):
    """Only what vectors find alone can be lost by a floor."""
    given = []
    fit = relevance._fit
    monkeypatch.setattr(relevance, "_fit", lambda *a: given.append(a[2]) or fit(*a))
    make_index(CLICKED)  # each query is made of words of its product
    lamps = len(KINDS) - 1
    unlike = [ClickedQuery(6 * lamps + b, "evening light", 3.0) for b in range(6)]
    make_index([*CLICKED, *unlike])
    assert len(given[0]) == 0 and len(given[1]) == 6


def test_an_index_without_a_floor_or_with_a_newer_one_still_opens(index, tmp_path):
    def stored(change):
        manifest = IndexWriter(tmp_path).commit(index.manifest, {})
        assert read_manifest(tmp_path) == manifest
        path = tmp_path / MANIFEST
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))
        return read_manifest(tmp_path).relevance

    assert stored(lambda values: None) == index.manifest.relevance != None  # noqa: E711
    assert stored(lambda values: values.pop("relevance")) is None
    assert stored(lambda values: values["relevance"].update(version=VERSION + 1)) is None


@given(
    st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    st.tuples(st.floats(0, 3), st.floats(0, 3)),
    st.tuples(st.floats(0, 30), st.floats(0, 5), st.floats(-20, 20)),
)
def test_what_is_more_alike_and_better_known_is_never_cut_alone(cosines, lengths, weights):
    cosine, length, intercept = weights
    floor = RelevanceFloor(
        cosine=cosine, length=length, intercept=intercept, pairs=1, kept=1.0, cut=1.0
    )
    less, more = (
        bool(floor.keeps(np.array([c]), n)[0])
        for c, n in zip(sorted(cosines), sorted(lengths), strict=True)
    )
    assert more or not less


@given(st.text(string.ascii_letters + " @.", max_size=20))
def test_only_an_address_is_one(text):
    assert is_address(f" {text.replace(' ', '').replace('@', '') or 'x'}@shop.example ")
    if "@" not in text:
        assert not is_address(text)
