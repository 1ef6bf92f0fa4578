import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.agent.protocol import parse_action
from qagent_mlx.train.demonstrations import DemoConfig, Demonstrator
from qagent_mlx.train.disguise import MARKS, Disguise
from qagent_mlx.train.environment import Environment

TEXTS = ("Acme Desk Lamp, black", "Office > Lamps", "usb cable", "gears of war 3", "surely")


@pytest.fixture
def made(own_shop, new_nano):
    policy, _, _ = new_nano()
    environment = Environment.of_shop(own_shop, policy.codec, policy.info.agent)

    def demonstrator(**settings):
        return Demonstrator(environment, policy, policy.info.agent, DemoConfig(**settings))

    return policy, environment, demonstrator


def test_how_many_lines_a_chain_searches_says_nothing_of_the_right_one(made):
    _, environment, demonstrator = made
    lessons = demonstrator(looks=(1, 2, 3, 4)).lessons(environment.examples)
    full = [x for x in lessons if len(x.example.profile.references) >= 4]
    by_right = {right: Counter(x.looks for x in full if x.right == right) for right in range(4)}
    cases = {r: len({x.example.case.case_id for x in full if x.right == r}) for r in range(4)}
    assert cases[0] and cases[1]
    for right, counts in by_right.items():
        assert counts == {
            n: n * cases[right] for n in range(right + 1, 5) if cases[right]
        }, "every right line that a chain of n searches meets, as often as any other"


def test_a_chain_searches_the_first_lines_in_order_and_recommends_the_right_one(made):
    policy, environment, demonstrator = made
    teacher = demonstrator()
    lessons = teacher.lessons(environment.examples)
    for lesson in lessons[:: max(1, len(lessons) // 25)]:
        chain = teacher.chain(lesson, np.random.default_rng(0), 0)
        text = policy.codec.decode(chain.tokens)
        searched = re.findall(r"<search><(r\d+)></search>", text)
        assert searched == [f"r{i}" for i in range(lesson.looks)]
        (said,) = re.findall(r"<recommend>.*</recommend>", text)
        assert parse_action(said).reference == f"s{lesson.right + 1}"


def test_lines_that_are_left_out_never_take_the_right_one_along(made):
    policy, environment, demonstrator = made
    teacher = demonstrator(drop_lines=0.9)
    for lesson in teacher.lessons(environment.examples)[:40]:
        text = policy.codec.decode(teacher.chain(lesson, np.random.default_rng(1), 0).tokens)
        profile = text.partition("</profile>")[0]
        place = int(re.search(r"<recommend><s(\d+)>", text)[1]) - 1
        line = next(x for x in profile.split("\n") if f"<r{place}>" in x)
        assert lesson.example.profile.references[lesson.right].lower() in line.lower()


def test_a_disguised_chain_keeps_its_marks_and_its_actions(made):
    policy, environment, demonstrator = made
    plain, other = demonstrator(), demonstrator(disguise=1.0)
    changed = 0
    for lesson in plain.lessons(environment.examples)[:40]:
        texts = [
            policy.codec.decode(d.chain(lesson, np.random.default_rng(2), 0).tokens)
            for d in (plain, other)
        ]
        actions = [re.findall(r"<(?:search|recommend)><\w+>", t) for t in texts]
        assert actions[0] == actions[1]
        marks = [[w for w in re.findall(r"\w+", t) if w in MARKS] for t in texts]
        assert marks[0] == marks[1]
        changed += texts[0] != texts[1]
    assert changed > 30


@given(st.integers(0, 1000))
def test_a_word_is_the_same_other_word_wherever_it_comes(seed):
    worded = Disguise(TEXTS).draw(np.random.default_rng(seed))
    line, title = worded("usb desk lamp bought <r3>"), worded("1 Acme Desk Lamp $$ chosen")
    assert line.split()[1:3] == [w.lower() for w in title.split()[2:4]]
    assert line.endswith("bought <r3>") and title.endswith("$$ chosen") and title[:2] == "1 "
    known = {w.lower() for text in TEXTS for w in re.findall(r"[^\s,>]+", text)} - MARKS
    assert set(line.split()[:3]) <= known
    assert worded("never heard") == "never heard"
