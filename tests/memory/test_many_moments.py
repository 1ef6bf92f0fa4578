"""Many moments at once say what each says alone, and what plain code says of it."""

import math
import random
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_memory import jaccard, plain_candidates, plain_state

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.memory.candidates import COLUMNS, TEXTS
from qagent_mlx.memory.event_log import EventLog
from qagent_mlx.memory.loader import MemoryLoader
from qagent_mlx.memory.state_builder import StateBuilder
from qagent_mlx.memory.types import Moment
from qagent_mlx.memory.word_echoes import echoes
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.shop.shop import Shop

START = datetime(2026, 1, 10)
WORDS = ("red thing", "thing x", "acme thing", "blue y", "zork", "thing", "y", "zork y")


def write_log(r, days=12, users=7):
    """Sessions of users of whom one never searches; some go on beyond midnight."""
    made = []
    for user in range(users):
        for _ in range(r.randrange(3, 9)):
            clock = START + timedelta(days=r.randrange(days), minutes=r.choice([0, 9, 600, 1430]))
            for _ in range(r.randrange(1, 9)):
                row = {"user_id": f"u{user}", "time": clock, "type": "search"}
                row["query"] = r.choice(WORDS)
                if user == 0 or r.random() < 0.5:
                    row["type"] = r.choice(["view", "click", "cart", "purchase"])
                    row["query"] = None if user == 0 else r.choice([None, row["query"]])
                    row["product_id"] = f"p{r.randrange(7)}"  # the last is in no catalog
                made.append(row)
                clock += timedelta(minutes=r.choice([0, 1, 5, 29]))
    return sorted(made, key=lambda row: row["time"])


@pytest.fixture(scope="module", params=range(3))
def shop(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    (folder / "products.csv").write_text(
        "product_id,title,brand,category,price,attributes\n"
        + "".join(
            f"p{i},thing {i},{('acme', 'Zork', '')[i % 3]},{('A > x', 'A > y', '')[i % 3]},"
            f'{5 + i},"{{""colour"": ""{("red", "blue")[i % 2]}""}}"\n'
            for i in range(6)
        )
    )
    with Shop.create(folder / "shop") as shop:
        ingest_files(shop, "products", [folder / "products.csv"])
        append_events(shop, write_log(random.Random(request.param)))
        yield shop


def moments_of(seed):
    r = random.Random(seed)
    users = [f"u{r.randrange(8)}" for _ in range(40)]  # one of them did nothing
    return [Moment(u, START + timedelta(hours=r.randrange(24 * 14))) for u in users]


def assert_same(found, wanted, what):
    if isinstance(wanted, float) and math.isnan(wanted):
        assert math.isnan(found), what
    elif isinstance(wanted, str) or wanted is None:
        assert found == wanted, what
    else:
        assert found == pytest.approx(float(wanted), rel=1e-6, abs=1e-9), what


@pytest.mark.parametrize("half_life", [14.0, 0.001])
def test_a_state_on_the_way_is_that_of_the_history_until_then(shop, half_life):
    config = MemoryConfig(half_life_days=half_life)
    MemoryLoader(shop.connection, config).prepare()
    log = EventLog(shop.connection)
    histories = log.read([f"u{n}" for n in range(7)])
    log.read_wordings(histories.values())
    for user, history in histories.items():
        builder = StateBuilder(log, config)
        for number, event in enumerate(history.events):
            builder.add(event)
            if number + 1 < len(history.events) and history.events[number + 1].at == event.at:
                continue
            at = event.at + 3_600_000_000
            state, plain = builder.state(at), plain_state(history.before(event.at + 1), config)
            shift = 1 / 24 - 1e-6 / 86400
            assert [q.key for q in state.queries] == [q[0] for q in plain["queries"]]
            for query, (_, *values) in zip(state.queries, plain["queries"], strict=True):
                numbers = [query.searches, query.best_outcome, query.last_outcome, query.age]
                assert query.text == values[0]
                assert numbers == pytest.approx([*values[1:4], values[4] + shift])
            sources = {s.key: (s.weight, s.age - shift) for s in state.sources}
            assert sources.keys() == plain["sources"].keys(), user
            for key, pair in sources.items():
                assert pair == pytest.approx(plain["sources"][key])
            for name in ("engaged_products", "recent_products"):
                ages = {p.product_id: p.age - shift for p in getattr(state, name)}
                assert ages == pytest.approx(plain[name]), name
            ages = {leaf: age - shift for leaf, age in state.bought.items()}
            assert ages == pytest.approx(plain["bought"])
            assert state.wording == pytest.approx(plain["wording"])
            assert state.typed == pytest.approx(plain["typed"])
            if half_life > 1:
                shares = {(i.kind, i.name): i.share for i in state.interests}
                assert shares == pytest.approx(plain["interests"])
            activity = (state.activity.events, state.activity.sessions, state.activity.purchases)
            assert activity == plain["activity"]
            lean = builder.state(at, whole=False)
            assert (lean.queries, lean.taste) == (state.queries, state.taste)


def test_candidates_are_those_that_plain_code_finds(shop):
    loader, moments = MemoryLoader(shop.connection, MemoryConfig(least_users=1)), moments_of(5)
    known = loader.statistics
    for moment, memory in zip(moments, loader.compute(moments), strict=True):
        (trends,) = known.trends([moment.as_of])
        day = known.day(moment.as_of)
        wanted = plain_candidates(memory.state, day, trends, known.vocabulary)
        table = memory.candidates
        assert table.query_key.tolist() == list(wanted), moment
        for row, columns in enumerate(wanted.values()):
            for name in set(COLUMNS) & columns.keys():
                assert_same(getattr(table, name)[row], columns[name], (moment, name))
            if "neighbour_score" not in columns:
                assert math.isnan(table.neighbour_score[row]) and table.source[row] is None


def test_each_moment_says_the_same_alone_and_among_others(shop, monkeypatch):
    moments = moments_of(6)
    config = MemoryConfig(least_users=1)
    together = MemoryLoader(shop.connection, config).compute(moments)
    alone = [MemoryLoader(shop.connection, config).compute([m])[0] for m in moments]
    monkeypatch.setattr("qagent_mlx.memory.loader.BLOCK", 3)
    for numbers, table, starts in MemoryLoader(shop.connection, config).candidates(moments):
        for number, start, end in zip(numbers, starts[:-1], starts[1:], strict=True):
            part = table[start:end]
            for name in COLUMNS:
                a = getattr(together[number].candidates, name)
                for other in (part, alone[number].candidates):
                    b = getattr(other, name)
                    if name in TEXTS:
                        assert a.tolist() == b.tolist(), name
                    else:
                        np.testing.assert_allclose(a, b, rtol=1e-9, err_msg=name)
    assert [m.needed for m in together] == [pytest.approx(m.needed) for m in alone]
    assert [m.just_bought for m in together] == [m.just_bought for m in alone]


@settings(max_examples=60, deadline=None)
@given(
    terms=st.lists(st.frozensets(st.sampled_from("abcde"), max_size=4), min_size=1, max_size=6),
    data=st.data(),
)
def test_echoes_are_the_similarity_of_words(terms, data):
    pairs = st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, len(terms) - 1)), max_size=9, unique=True
    )
    queries, said = data.draw(pairs), sorted(data.draw(pairs), key=lambda pair: pair[0])
    columns = [np.array(p, np.int64).reshape(-1, 2).T for p in (queries, said)]
    last, most = echoes(tuple(columns[0]), tuple(columns[1]), terms)
    for row, (moment, query) in enumerate(queries):
        heard = [
            jaccard(terms[query], terms[other]) if query != other else 0.0
            for at, other in said
            if at == moment
        ]
        assert last[row] == pytest.approx(heard[0] if heard else 0.0)
        assert most[row] == pytest.approx(max(heard, default=0.0))
