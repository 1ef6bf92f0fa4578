import copy
from itertools import pairwise

import numpy as np
import pytest

from qagent_mlx.simulator.click_model import (
    CURIOSITY,
    LATER_DEMAND,
    SECOND_DEMAND,
    QueryInterpreter,
    Visit,
)
from qagent_mlx.simulator.shopper import Need, Shopper
from qagent_mlx.simulator.world import SimulatedShop, SimulatorConfig

CONFIG = SimulatorConfig(users=12, days=40, products_per_pair=2.0)


@pytest.fixture(scope="module")
def world():
    return SimulatedShop(CONFIG)


@pytest.fixture(scope="module")
def interpreter(world):
    return QueryInterpreter(world)


@pytest.fixture(scope="module")
def visits(world):
    """The third visit of 25 shoppers."""
    made = []
    for number in range(25):
        shopper = Shopper(world, f"u{number}", (7, 5, 0, number))
        for count, (day, events) in enumerate(shopper.visits()):
            if count == 2:
                made.append(Visit.of(shopper, day, (7, number)))
                break
            list(events)
    return made


def top_type(visit):
    return visit.shopper.due_needs(visit.day)[0].type_index


def test_stopping_before_a_visit_changes_nothing_of_what_comes_later(world):
    plain = list(Shopper(world, "u", (7, 2, 3)).events())
    watched, shopper = [], Shopper(world, "u", (7, 2, 3))
    for day, events in shopper.visits():
        visit = Visit.of(shopper, day, (1, 2))
        visit.outcomes(QueryInterpreter(world), ["laptop", "tent"], world.engine.search, 3)
        watched += list(events)
    assert watched == plain


def test_what_a_shopper_does_later_does_not_change_the_visit(world, interpreter):
    shopper = Shopper(world, "u", (7, 2, 3))
    visits = shopper.visits()
    day, events = next(visits)
    visit = Visit.of(shopper, day, (1, 2))
    queries = [p.text for p in world.phrases[top_type(visit)]][:5]
    before = visit.outcomes(interpreter, queries, world.engine.search, 20)
    list(events)
    next(visits)
    shopper.failed_searches[0] = 9
    assert visit.outcomes(interpreter, queries, world.engine.search, 20) == before


def test_every_phrase_of_the_world_means_its_type(world, interpreter):
    for t, phrases in enumerate(world.phrases):
        for phrase in phrases:
            assert interpreter.meanings(phrase.text.upper()) == {t: phrase}
    assert interpreter.meanings("qwertz uiop") == {}
    slip = world.phrases[3][0].text + "s"
    assert set(interpreter.meanings(slip).values()) <= {None}  # a free wording


def test_who_needs_either_meaning_of_a_name_taps_it():
    world = SimulatedShop(SimulatorConfig(users=1, products_per_pair=2.0, homonyms=0.5))
    names = [kind.name for kind in world.types]
    named = next(t for t, name in enumerate(names) if names.count(name) > 1)
    twin = next(t for t in range(named + 1, len(names)) if names[t] == names[named])
    interpreter = QueryInterpreter(world)
    assert set(interpreter.meanings(names[named])) == {named, twin}
    for wanted in (named, twin):
        shopper = Shopper(world, "u1", (1, 2, 3))
        shopper.needs = [Need(wanted, 1.0)]
        visit = Visit.of(shopper, 1.0, (1, 2))
        found = visit.outcomes(interpreter, [names[named]], world.engine.search, 20)
        assert visit.tap_probability(interpreter, names[named]) > 0
        assert any(outcome.tapped for outcome in found)


def test_what_the_visit_is_for_is_wanted_most(world, visits):
    for visit in visits:
        first, *rest = visit.shopper.due_needs(visit.day)
        assert visit.demand(first.type_index) == (1.0, first)
        kinds = {n.type_index for n in visit.shopper.needs}
        for need in rest:
            if need.type_index != first.type_index:
                assert visit.demand(need.type_index)[0] == SECOND_DEMAND
        for t in set(range(len(world.types))) - kinds:
            want, need = visit.demand(t)
            assert need is None and want in (0.0, CURIOSITY)


def test_a_need_that_comes_later_is_wanted_less_the_later_it_comes(visits):
    visit = visits[0]
    shopper = copy.copy(visit.shopper)
    t = next(t for t in range(80) if t not in {n.type_index for n in shopper.needs})
    wants = []
    for days in (2, 6, 20):
        shopper.needs = [*visit.shopper.needs, Need(t, visit.day + days)]
        wants.append(Visit(shopper, visit.day, visit.seed).demand(t)[0])
    assert LATER_DEMAND > wants[0] > wants[1] > wants[2] > 0


def test_own_wording_appeals_most_and_other_things_do_not(world, interpreter, visits):
    for visit in visits:
        t = top_type(visit)
        chances = [visit.tap_probability(interpreter, p.text) for p in world.phrases[t]]
        assert max(chances) == pytest.approx(1.0) and min(chances) >= 0
        weights = visit.shopper.phrase_weights(t, visit.day)
        need = visit.shopper.due_needs(visit.day)[0]
        if need.phrase is None:
            assert np.argmax(chances) == np.argmax(weights)
        assert visit.tap_probability(interpreter, "qwertz uiop") == 0.0


def test_taps_come_as_often_as_their_chance(world, interpreter, visits):
    visit = visits[1]
    phrases = world.phrases[top_type(visit)]
    chances = [visit.tap_probability(interpreter, p.text) for p in phrases]
    query = phrases[int(np.argmin(np.abs(np.array(chances) - 0.5)))].text
    answers = visit.outcomes(interpreter, [query], world.engine.search, 2000)
    rate = np.mean([a.tapped for a in answers])
    assert rate == pytest.approx(visit.tap_probability(interpreter, query), abs=0.04)


def test_the_first_place_is_looked_at_most(world, interpreter, visits):
    taps = np.zeros(5)
    for visit in visits:
        phrase = world.phrases[top_type(visit)][0].text
        for position in range(5):
            row = ["qwertz uiop"] * 5
            row[position] = phrase
            found = visit.outcomes(interpreter, row, world.engine.search, 40)
            taps[position] += sum(a.tapped for a in found)
            assert {a.position for a in found} <= {-1, position}
    assert all(a > b for a, b in pairwise(taps))


def test_a_row_that_differs_only_behind_the_tapped_query_has_the_same_answer(
    world, interpreter, visits
):
    same = 0
    for visit in visits:
        phrases = [p.text for p in world.phrases[top_type(visit)]]
        a = visit.outcomes(interpreter, phrases[:4], world.engine.search, 20)
        b = visit.outcomes(interpreter, [*phrases[:2], *phrases[6:8]], world.engine.search, 20)
        for one, two in zip(a, b, strict=True):
            if one.position in (0, 1) or two.position in (0, 1):
                assert one == two
                same += 1
    assert same > 50


def test_nothing_sold_out_owned_or_of_another_type_is_bought(world, interpreter, visits):
    bought = 0
    for visit in visits:
        t = top_type(visit)
        query = world.phrases[t][0].text
        wrong = np.array(
            [
                i
                for i, p in enumerate(world.products)
                if p.type_index != t or not world.in_stock(i, visit.day) or i in visit.shopper.owned
            ]
        )
        answers = visit.outcomes(interpreter, [query], lambda q, w=wrong: w[:200], 20)
        assert not any(a.bought or a.clicks for a in answers)
        good = np.argsort(-visit.shopper.affinity)[:400]
        good = good[[world.products[i].type_index == t for i in good]]
        answers = visit.outcomes(interpreter, [query], lambda q, g=good: g, 20)
        bought += sum(a.bought for a in answers)
        assert all(a.tapped and a.revenue > 0 for a in answers if a.bought)
    assert bought > 20


def test_the_better_the_products_the_more_is_bought(world, interpreter, visits):
    sold = {"best": 0, "worst": 0}
    for visit in visits:
        t = top_type(visit)
        mine = sorted(world.of_type[t].tolist(), key=lambda i: -visit.shopper.appeal(i, visit.day))
        for name, rows in (("best", mine[:10]), ("worst", mine[::-1][:10])):
            found = visit.outcomes(
                interpreter, [world.phrases[t][0].text], lambda q, r=rows: np.array(r), 20
            )
            sold[name] += sum(a.bought for a in found)
    assert sold["best"] > 2 * sold["worst"]


def test_curiosity_looks_and_does_not_buy(world, interpreter, visits):
    for visit in visits:
        kinds = {n.type_index for n in visit.shopper.needs}
        idle = [t for t in range(len(world.types)) if t not in kinds and visit.demand(t)[0]]
        for t in idle[:3]:
            found = visit.outcomes(
                interpreter, [world.phrases[t][0].text], world.engine.search, 100
            )
            assert not any(a.bought for a in found)


def test_nothing_shown_is_nothing_tapped(world, interpreter, visits):
    answers = visits[0].outcomes(interpreter, [], world.engine.search, 3)
    assert [a.tapped for a in answers] == [False] * 3
