from collections import Counter

import msgspec
import pytest
from histories import history

from qagent_mlx.memory.state_builder import MAX_ENGAGED, MAX_PRODUCTS, MAX_SOURCES, user_state
from qagent_mlx.memory.user_state import (
    Activity,
    EngagedProduct,
    Interest,
    OwnQuery,
    RecentProduct,
    Source,
    UserState,
)
from qagent_mlx.shop.config import MemoryConfig


def state():
    return UserState(
        queries=[OwnQuery("tent", "Tent", 2, 3, 1, 1.0)],
        sources=[Source("q:tent", 0.4, 1.0)],
        bought={"Tent": 2.0},
        engaged={"b:Tent": 2.0},
        engaged_products=[EngagedProduct("p", True, 2.0)],
        recent_products=[RecentProduct("p", "A tent", 2.0, bought=True)],
        wording={"plain": 1.0},
        interests=[Interest("brand", "Acme", 8.0, 1.0)],
        activity=Activity(5, 2, 1, 1.0, None, 0),
    )


def test_ages_grow_and_weights_halve_each_half_life():
    later = state().advance(days=14.0, half_life=7.0)
    assert later.queries[0].age == later.sources[0].age == later.activity.days_away == 15.0
    assert later.engaged_products[0].age == later.recent_products[0].age == 16.0
    assert later.bought == {"Tent": 16.0} and later.engaged == {"b:Tent": 16.0}
    assert later.interests == [Interest("brand", "Acme", 2.0, 1.0)]
    assert later.wording == {"plain": 1.0}


@pytest.mark.parametrize("before", [state(), UserState()])
def test_a_state_is_stored_as_json(before):
    packed = msgspec.json.encode(before)
    assert msgspec.json.decode(packed, type=UserState) == before
    assert b'"queries":[["tent","Tent",2,3,1,1.0]]' in packed or before == UserState()


def test_of_what_a_user_saw_and_took_the_last_is_kept():
    count = MAX_ENGAGED + 2
    seen = [(day, (f"q{day}", f"p{day}")) for day in range(count)]
    found = user_state(history(*seen), MemoryConfig())
    latest = [f"p{day}" for day in reversed(range(count))]
    assert [p.product_id for p in found.recent_products] == latest[:MAX_PRODUCTS]
    assert [p.product_id for p in found.engaged_products] == latest[:MAX_ENGAGED]
    kinds = Counter(source.key[0] for source in found.sources)
    assert kinds == dict.fromkeys("cqp", MAX_SOURCES)


def test_who_never_searched_is_known_by_what_the_last_sessions_led_to():
    count = MAX_SOURCES + 2
    found = user_state(history(*((day, (None, f"p{day}")) for day in range(count))), MemoryConfig())
    latest = {f"{kind}p{day}" for day in range(2, count) for kind in ("p:", "c:of ")}
    assert {source.key for source in found.sources} == latest
