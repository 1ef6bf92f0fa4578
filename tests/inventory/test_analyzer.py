import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.inventory.analyzer import has_outdated_terms, initialisms, product_terms
from qagent_mlx.inventory.bm25 import BM25Index


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("Gears of War 3", "gears of war3", {"war", "3", "war3"}),
        ("64 GB Memory Cards", "64gb memory card", {"64", "gb", "64gb", "memory", "card"}),
        ("Watches", "watch", {"watch"}),
        ("Batteries", "battery", {"battery"}),
        ("Boxes", "box", {"box"}),
        ("Dresses", "dress", {"dress"}),
        ("usb-c", "USB C", {"usb", "c"}),
    ],
)
def test_ways_of_writing_a_thing_share_its_terms(one, other, shared):
    assert shared <= set(product_terms(one)) & set(product_terms(other))


@pytest.mark.parametrize("word", ["bus", "glass", "tennis", "gas"])
def test_words_that_only_look_like_plurals_stay(word):
    assert product_terms(word) == [word]


@given(st.text(max_size=40))
def test_terms_do_not_depend_on_case(text):
    assert product_terms(text.casefold()) == product_terms(text)
    assert all(term for term in product_terms(text))


@pytest.mark.parametrize(
    ("title", "query", "shared"),
    [
        ("户外折叠帐篷4人", "帐篷", {"帐篷", "帐", "篷"}),
        ("户外折叠帐篷4人", "4人帐篷", {"帐篷", "4", "人"}),
        ("苹果iPhone15手机壳", "iphone 15 手机壳", {"iphone", "15", "iphone15", "手机", "机壳"}),
        ("キャンプ用テント", "テント", {"テン", "ント"}),
        ("ｷｬﾝﾌﾟ ﾃﾝﾄ", "テント", {"テン", "ント"}),  # half width
        ("เต็นท์แคมป์ปิ้ง", "เต็นท์", {"เต็", "ต็น", "นท์"}),
        ("캠핑용텐트", "텐트", {"텐트"}),
        ("आउटडोर टेंट", "टेंट", {"टेंट"}),
    ],
)
def test_a_word_is_found_within_a_title_without_spaces(title, query, shared):
    assert shared <= set(product_terms(title)) & set(product_terms(query))


def test_signs_on_letters_belong_to_their_words():
    assert product_terms("किताब") == ["किताब"]
    assert product_terms("Crème brûlée") == product_terms("Cre\u0300me bru\u0302le\u0301e")


@given(
    st.text(alphabet=st.characters(codec="latin-1"), max_size=40),
    st.text("折叠帐篷テント텐트", min_size=1),
)
def test_a_run_without_spaces_changes_nothing_of_what_stands_around_it(text, run):
    assert product_terms(f"{text} {run}") == product_terms(text) + product_terms(run)


def test_initials_are_taken_only_where_words_begin():
    assert initialisms("折叠 帐篷") == []
    assert initialisms("Modern Warfare 折叠 3") == ["~mw"]


def test_one_word_has_no_initials_with_its_number_or_without():
    assert initialisms("Halo 3") == initialisms("Halo") == []
    assert initialisms("Modern Warfare 3") == ["~mw", "~mw3"]


def test_terms_of_an_older_version_are_known():
    assert has_outdated_terms(["tent", "折叠帐篷"]) and has_outdated_terms(["क", "टेंट"])
    assert not has_outdated_terms(["tent", "crème", "~mw3", "палатка", "σκηνη"])


def test_the_fitting_titles_come_first_in_chinese_and_japanese():
    titles = [
        "户外双人折叠帐篷",
        "双人床四件套",
        "便携折叠椅",
        "テント用ポール",
        "折りたたみ椅子 軽量",
        "充電式ランタン",
    ]
    lexical = BM25Index.build(titles, titles)

    def found(query):
        ranking = lexical.search([lexical.query_terms(query)], len(titles))[0]
        return [titles[row] for row in ranking.rows]

    assert found("帐篷") == ["户外双人折叠帐篷"]
    assert found("双人帐篷")[:2] == ["户外双人折叠帐篷", "双人床四件套"]
    assert found("折叠椅")[0] == "便携折叠椅"
    assert found("テント") == ["テント用ポール"]
    assert found("椅子")[0] == "折りたたみ椅子 軽量"
