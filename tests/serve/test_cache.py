from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.serve.cache import UserCache

STEP = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(0, 2), st.integers()),
    st.tuples(st.just("forget"), st.sampled_from("abc")),
    st.tuples(st.just("wait"), st.integers(1, 6)),
)


@given(st.lists(STEP, max_size=40))
def test_a_value_is_there_until_its_time_or_its_users_next_act(steps):
    now = [0.0]
    cache = UserCache(5.0, 10, clock=lambda: now[0])
    model = {}
    for kind, *rest in steps:
        if kind == "put":
            user, key, value = rest
            cache.put(user, key, value)
            model[user, key] = (now[0] + 5, value)
        elif kind == "forget":
            cache.forget(rest[0])
            model = {k: v for k, v in model.items() if k[0] != rest[0]}
        else:
            now[0] += rest[0]
        for user in "abc":
            for key in range(3):
                end, value = model.get((user, key), (0, None))
                assert cache.get(user, key) == (value if now[0] < end else None)


@given(st.lists(st.integers(0, 30), max_size=60))
def test_it_never_holds_more_users_than_it_may(users):
    cache = UserCache(60.0, 5)
    for user in users:
        cache.put(str(user), 0, user)
        assert len(cache) <= 5
        assert cache.get(str(user), 0) == user


def test_without_time_nothing_is_kept():
    cache = UserCache(0.0, 5)
    cache.put("a", 0, 1)
    assert cache.get("a", 0) is None
