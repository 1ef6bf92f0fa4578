import zlib

import numpy as np
import pytest
from scipy import sparse

from qagent_mlx.errors import QAgentError
from qagent_mlx.inventory.encoders.registry import load_function
from qagent_mlx.inventory.encoders.subword import (
    BUCKETS,
    ClickedQuery,
    SubwordEncoder,
    _term_features,
    _truncated_svd,
    hashed_features,
)

# That people who type "office light" want a lamp is known from clicks only.
CLICKED = [ClickedQuery(row, "office light", 3.0) for row in (3, 7, 11)]
TEXTS = [
    f"{brand} {thing}"
    for brand in ("acme", "brio", "coda")
    for thing in ("usb cable", "phone case", "coffee beans", "desk lamp")
]


@pytest.fixture(scope="module")
def encoder():
    return SubwordEncoder.fit(TEXTS, CLICKED)


def near(encoder, one, other):
    a, b = encoder.encode([one, other])
    return float(a @ b)


def test_vectors_have_length_one_and_unknown_text_length_zero(encoder):
    length = np.linalg.norm(encoder.encode([*TEXTS, "cofee", "", "!!"]), axis=1)
    assert length == pytest.approx([1] * 13 + [0, 0], abs=1e-5)
    assert encoder.encode([]).shape == (0, encoder.dimensions)


def nearest(encoder, query, k=3):
    order = np.argsort(-(encoder.encode(TEXTS) @ encoder.encode([query])[0]))
    return {TEXTS[i].partition(" ")[2] for i in order[:k]}


def test_typos_stay_near(encoder):
    assert nearest(encoder, "cofee beens") == {"coffee beans"}
    assert nearest(encoder, "fone caes") == {"phone case"}
    assert near(encoder, "cofee beens", "coffee beans") > 0.3
    assert abs(near(encoder, "cofee beens", "phone case")) < 0.2


def test_queries_that_led_to_clicks_come_near_their_products(encoder):
    assert nearest(encoder, "office light") == {"desk lamp"}
    assert nearest(SubwordEncoder.fit(TEXTS), "office light") != {"desk lamp"}


def test_fitting_again_gives_the_same(encoder):
    again = SubwordEncoder.fit(TEXTS, CLICKED)
    assert np.array_equal(again.components, encoder.components)
    plain, other = SubwordEncoder.fit(TEXTS), SubwordEncoder.fit(TEXTS, seed=1)
    same = [near(e, TEXTS[0], TEXTS[1]) for e in (plain, other)]
    assert same[0] == pytest.approx(same[1], abs=0.05)


def test_a_stored_encoder_is_the_same_to_the_bit(encoder, tmp_path):
    encoder.save(tmp_path / "encoder.npz")
    loaded = SubwordEncoder.load(tmp_path / "encoder.npz")
    assert loaded.dimensions == encoder.dimensions
    assert np.array_equal(loaded.encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped", "empty", "other"])
def test_a_damaged_file_is_named(encoder, tmp_path, damage):
    path = tmp_path / "encoder.npz"
    encoder.save(path)
    content = path.read_bytes()
    if damage == "other":
        np.savez(path, something=np.zeros(3))
    else:
        path.write_bytes(
            {
                "cut": content[:-40],
                "garbage": b"x" * 999,
                "empty": b"",
                "flipped": content[:300]
                + bytes(b ^ 0xFF for b in content[300:400])
                + content[400:],
            }[damage]
        )
    with pytest.raises(QAgentError, match=r"encoder\.npz is damaged; run: qagent index"):
        SubwordEncoder.load(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "texts", [["lamp"], ["lamp", "lamp"], ["!!", "??"], ["lamp", "!!"], ["lamp"] * 30 + ["desk"]]
)
def test_small_and_repetitive_catalogs_have_no_bad_numbers(texts):
    encoder = SubwordEncoder.fit(texts)
    assert np.isfinite(encoder.components).all()
    vectors = encoder.encode([*texts, "lamps", "zebra"])
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=1) < 1.001).all()


def test_directions_of_noise_are_left_out():
    """Thirty products with three titles span three directions at most."""
    encoder = SubwordEncoder.fit(["usb cable", "phone case", "desk lamp"] * 10)
    assert encoder.dimensions <= 3


def test_directions_are_those_of_a_singular_value_decomposition():
    random = np.random.default_rng(0)
    # 60 products in 90 buckets; strengths fall off as those of texts do.
    left, right = (np.linalg.qr(random.normal(size=(n, 40)))[0] for n in (60, 90))
    dense = (left * 0.7 ** np.arange(40)) @ right.T
    buckets = np.sort(random.choice(BUCKETS, 90, replace=False))
    matrix = sparse.lil_matrix((60, BUCKETS))
    matrix[:, buckets] = dense
    strength, directions = _truncated_svd(matrix.tocsr(), 12, np.random.default_rng(1))
    assert strength == pytest.approx(0.7 ** np.arange(12), rel=1e-3)
    assert np.abs((directions[:, buckets] * right.T[:12]).sum(axis=1)) == pytest.approx(1, abs=1e-2)
    assert not directions[:, np.setdiff1d(np.arange(BUCKETS), buckets)].any()


def test_there_are_fewer_directions_than_products_and_than_buckets():
    few = sparse.csr_matrix(np.eye(5, BUCKETS))
    assert len(_truncated_svd(few, 64, np.random.default_rng(0))[0]) == 4


def test_a_term_is_itself_and_its_runs_of_three_and_four_letters():
    def bucket(kind, text):
        return zlib.crc32(kind + text.encode()) % BUCKETS

    whole, *grams = _term_features("abc")
    assert whole == (bucket(b"w", "abc"), 1.0)
    expected = {bucket(b"g", text) for text in ("#ab", "abc", "bc#", "#abc", "abc#")}
    assert {number for number, _ in grams} == expected and len(grams) == 5
    assert sum(weight**2 for _, weight in grams) == pytest.approx(1)


def test_parts_of_compound_words_are_found():
    titles = [
        "Kuppelzelt 4 Personen",
        "Zeltplane grün",
        "Regenjacke",
        "Winterjacke Damen",
        "Wanderschuhe Herren",
        "Gaskocher klein",
    ]
    encoder = SubwordEncoder.fit(titles)
    products = encoder.encode(titles)
    for query, wanted in (("zelt", {0, 1}), ("jacke", {2, 3}), ("kocher", {5})):
        near = products @ encoder.encode([query], queries=True)[0]
        assert set(near.argsort()[-len(wanted) :].tolist()) == wanted


def test_a_function_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "mine.py"
    for place in (f"{path}:encode", "no place"):
        with pytest.raises(QAgentError, match=r"the encoder .* is not there; write it as FILE.py"):
            load_function(place, "encoder")
    path.write_text("def encode(texts): return 7")
    assert load_function(f"{path}:encode", "encoder")([]) == 7


def test_a_text_counts_each_word_once_and_its_letters_as_much_as_their_root():
    """The sums are of words and their 3- and 4-grams, those of equal hash together."""
    one = sum(weight for _, weight in _term_features("usb"))
    assert one == pytest.approx(1 + 5**0.5)  # "#us", "usb", "sb#", "#usb" and "usb#"
    two = sum(weight for _, weight in _term_features("lamp"))
    table = hashed_features(["usb", "usb usb", "usb lamp", ""])
    assert pytest.approx([one, 2 * one, one + two, 0], rel=1e-6) == table.sum(axis=1).A1
