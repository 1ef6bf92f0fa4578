from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from qagent_mlx.environment.cases import SPLITS, build_cases, of_split
from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Environment
from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.inventory.stored_index import load_index
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.settings import SettingError
from qagent_mlx.utils.text import query_key


@pytest.fixture(scope="module")
def cases(tiny_shop):
    return build_cases(tiny_shop.connection)


def sessions_of(shop):
    """(user, start) -> (history, its first search with an engagement, what was engaged with)."""
    rows = shop.connection.execute(
        "SELECT event_id, user_id, ts, type, query, product_id, session_id, search_id "
        "FROM events ORDER BY ts, event_id"
    ).fetchall()
    level = {"click": 1, "cart": 2, "purchase": 3}
    made = {}
    for session in {row[6] for row in rows}:
        mine = [row for row in rows if row[6] == session]
        user, start = mine[0][1], mine[0][2]
        led = [
            r
            for r in mine
            if r[3] == "search" and any(e[7] == r[0] and e[3] in level for e in mine)
        ]
        if led:
            best = {}
            for row in mine:
                if row[7] == led[0][0] and row[3] in level:
                    was, first = best.get(row[5], (0, row[2]))
                    best[row[5]] = (max(was, level[row[3]]), first)
            products = sorted(best, key=lambda p: (-best[p][0], best[p][1], p))
            history = sum(row[1] == user and row[2] < start for row in rows)
            made[user, start] = (history, led[0][4], tuple(products))
    return made


def test_cases_are_the_sessions_in_which_a_search_led_to_an_engagement(tiny_shop, cases):
    expected = {k: v for k, v in sessions_of(tiny_shop).items() if v[0] >= 1}
    found = {(c.user_id, c.as_of): (c.history, c.query, c.products) for c in cases}
    assert found == expected
    assert len(cases) == len(found) > 80
    assert all(c.query_key == query_key(c.query) for c in cases)


def test_splits_follow_time(cases):
    assert [c.case_id for c in cases] == list(range(len(cases)))
    assert [c.as_of for c in cases] == sorted(c.as_of for c in cases)
    order = [SPLITS.index(c.split) for c in cases]
    assert order == sorted(order)
    assert len(of_split(cases, "test")) == round(len(cases) * 0.2)
    assert len(of_split(cases, "validation")) == round(len(cases) * 0.05)
    assert sum(len(of_split(cases, split)) for split in SPLITS) == len(cases)


def test_the_test_split_may_begin_at_a_moment(tiny_shop, cases):
    for moment in ("2026-03-20", "2026-03-20T12:30", cases[50].as_of.isoformat()):
        found = build_cases(tiny_shop.connection, SplitConfig(test_from=moment))
        cut = datetime.fromisoformat(moment)
        assert all((c.split == "test") == (c.as_of >= cut) for c in found)
        assert of_split(found, "validation") and of_split(found, "train")


def test_the_last_cases_of_a_split_are_the_latest(tiny_shop, tiny_folder, nano_policy):
    kept = {"validation": 2, "test": 3}
    environment = Environment.of_shop(tiny_shop, nano_policy.codec, last=kept)
    cases = build_cases(
        tiny_shop.connection, after=load_index(tiny_folder / "inventory").clicks_until
    )
    expected = [*of_split(cases, "validation")[-2:], *of_split(cases, "test")[-3:]]
    assert [e.case for e in environment.examples] == expected


def test_new_users_are_let_in_on_request(tiny_shop, cases):
    found = build_cases(tiny_shop.connection, SplitConfig(min_history=0))
    assert {c.history for c in found} > {c.history for c in cases}
    assert min(c.history for c in found) == 0 < min(c.history for c in cases)
    veterans = build_cases(tiny_shop.connection, SplitConfig(min_history=10))
    assert min(c.history for c in veterans) >= 10


def test_no_case_lies_in_what_the_index_learned_from(tiny_shop, tiny_folder, cases):
    cut = load_index(tiny_folder / "inventory").clicks_until
    found = build_cases(tiny_shop.connection, after=cut)
    assert [c.as_of for c in found] == [c.as_of for c in cases if c.as_of >= cut]
    assert 0 < len(found) < len(cases)


def test_what_comes_later_changes_no_case_but_its_split(own_shop):
    """Invariant 8."""
    before = build_cases(own_shop.connection)
    last = own_shop.connection.execute("SELECT max(ts) FROM events").fetchone()[0]
    rows = []
    for i in range(20):
        row = {"user_id": "u00", "time": last + timedelta(hours=1 + i), "query": f"new {i}"}
        rows += [{**row, "type": "search"}, {**row, "type": "click", "product_id": "p000"}]
    append_events(own_shop, rows)
    after = build_cases(own_shop.connection)
    assert [(c.user_id, c.as_of, c.query, c.products, c.history) for c in before] == [
        (c.user_id, c.as_of, c.query, c.products, c.history) for c in after[: len(before)]
    ]


def test_training_may_ask_for_what_people_type_first(tiny_shop, cases):
    """The test cases stay, and nothing after the first of them is learned from."""
    found = build_cases(tiny_shop.connection, SplitConfig(learn_from="searches"))
    assert [c.case_id for c in found] == list(range(len(found)))
    assert [replace(c, case_id=0) for c in of_split(found, "test")] == [
        replace(c, case_id=0) for c in of_split(cases, "test")
    ]
    cut, middle = of_split(cases, "test")[0].as_of, of_split(cases, "validation")[0].as_of
    learned = [c for c in found if c.split != "test"]
    assert [c.as_of for c in learned] == sorted(c.as_of for c in learned)
    assert all((c.split == "validation") == (c.as_of >= middle) for c in learned)
    rows = tiny_shop.connection.execute(
        "SELECT session_id, type, query, user_id, ts, event_id FROM events ORDER BY ts, event_id"
    ).fetchall()
    expected = {}
    for session in {row[0] for row in rows}:
        mine = [row for row in rows if row[0] == session]
        typed = [row[2] for row in mine if row[1] == "search"]
        user, start = mine[0][3:5]
        if typed and start < cut and any(r[3] == user and r[4] < start for r in rows):
            expected[user, start] = typed[0]
    assert {(c.user_id, c.as_of): c.query for c in learned} == expected
    # Some led to nothing; who succeeded at first asks for the same as ever.
    assert any(not c.products for c in learned)
    usual = {(c.user_id, c.as_of): c for c in cases}
    same = [c for c in learned if c.products]
    assert all(usual[c.user_id, c.as_of].query == c.query for c in same)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (SplitConfig(min_history=10_000), "the log holds no case"),
        (SplitConfig(test_from="soon"), "test_from 'soon': write it as 2011-10-12"),
        (SplitConfig(test_from="2030-01-01"), "leaves no case to test .* from 2026-.* to 2026-"),
        (SplitConfig(test_from="2020-01-01"), "or to train on"),
        (SplitConfig(test_share=0.9, validation_share=0.2), "too few"),
        (SplitConfig(test_share=1.0), "test_share must be a number of at most 0.9, not 1.0"),
        (SplitConfig(validation_share=0.9), "too few"),
        (
            SplitConfig(learn_from="clicks"),
            "learn_from must be one of successes, searches, not 'clicks'",
        ),
    ],
)
def test_splits_that_cannot_be_are_refused(tiny_shop, config, says):
    with pytest.raises(QAgentError, match=says) as error:
        build_cases(tiny_shop.connection, config)
    assert "\n" not in str(error.value)


def test_a_log_without_success_says_what_is_missing(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        append_events(shop, [{"user_id": "u", "time": "2026-01-01", "query": "x"}])
        with pytest.raises(QAgentError, match="no search by a known user led to a click"):
            build_cases(shop.connection)


def test_a_log_of_new_users_is_told_the_setting_that_lets_them_in(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        rows = [
            {"user_id": f"u{n}", "time": f"2026-01-01T10:{n:02}:{s:02}", "query": "x", **fields}
            for n in range(30)
            for s, fields in ((0, {}), (9, {"type": "click", "product_id": "p1"}))
        ]
        (tmp_path / "p.csv").write_text("product_id,title\np1,Lamp\n")
        ingest_files(shop, "products", [tmp_path / "p.csv"])
        append_events(shop, rows)
        with pytest.raises(SettingError, match="min_history 0 lets its 30 sessions") as error:
            build_cases(shop.connection)
        assert error.value.setting == "min_history"
        assert len(build_cases(shop.connection, SplitConfig(min_history=0))) == 30


def test_three_cases_are_enough_for_three_splits(tmp_path):
    found = {}
    for count in (2, 3):
        with Shop.create(tmp_path / f"shop{count}") as shop:
            (tmp_path / "p.csv").write_text("product_id,title\np1,Lamp\n")
            ingest_files(shop, "products", [tmp_path / "p.csv"])
            asked = [
                {"user_id": "u", "time": f"2026-01-{day:02}T10:00:{s:02}", "query": "x", **fields}
                for day in range(1, count + 1)
                for s, fields in ((0, {}), (9, {"type": "click", "product_id": "p1"}))
            ]
            append_events(shop, asked)
            try:
                made = build_cases(shop.connection, SplitConfig(min_history=0))
                found[count] = [case.split for case in made]
            except QAgentError as error:
                found[count] = str(error)
    assert found[3] == list(SPLITS)
    assert "too few" in found[2]


def test_a_log_without_clicks_is_told_how_views_become_clicks(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        (tmp_path / "p.csv").write_text("product_id,title\np1,Lamp\n")
        ingest_files(shop, "products", [tmp_path / "p.csv"])
        lines = ["user_id,time,type,query,product_id"]
        for day in range(1, 29):
            lines += [
                f"u,2026-01-{day:02}T10:00:00,search,x,",
                f"u,2026-01-{day:02}T10:00:09,view,,p1",
            ]
        (tmp_path / "e.csv").write_text("\n".join(lines))
        ingest_files(shop, "events", [tmp_path / "e.csv"])
        with pytest.raises(QAgentError, match="--value type:view=click"):
            build_cases(shop.connection)
        values = (("type", "view", "click"),)
        ingest_files(shop, "events", [tmp_path / "e.csv"], ReadOptions(values=values))
        assert build_cases(shop.connection)
