from dataclasses import replace
from datetime import datetime

import pytest

from qagent_mlx.agent.rollout import RolloutRunner
from qagent_mlx.agent.types import Rollout, Turn
from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Example
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.registry import by_age, open_policy, resolve
from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.train.distill import DistillConfig, distill, retell, student_agent
from qagent_mlx.types import Case, Line, Profile

NOW = datetime(2026, 2, 1)
SPLIT = SplitConfig(test_share=0.2, validation_share=0.1)
SMALL = DistillConfig(cases=10, group=2, steps=2, batch_size=4, vocab_size=512, measured=2)


def example(*queries):
    lines = tuple(Line("latest", q, 0.1, query=q) for q in queries)
    profile = Profile("u", NOW, "", lines, tuple(queries))
    return Example(Case(0, "u", NOW, "", "", (), 1, "train"), profile)


def nothing(query, example):
    """What a student can write that only points."""
    return False


def rollout(*searched, query, **changes):
    found = (Turn("search", q, products=("p000",)) for q in searched)
    turns = (Turn("fetch"), *found, Turn("recommend", query))
    recommended = Rollout(0, 0, (), 0, (), (), turns=turns, query=query, finish="recommended")
    return replace(recommended, **changes)


def test_a_teachers_chain_is_told_in_the_lines_that_the_student_reads():
    own = example("phone case", "USB cable", "desk lamp")
    lesson = retell(own, rollout("usb-cable", "desk lamp", query="usb cable"), nothing)
    assert (lesson.searches, lesson.recommended) == ([1, 2], 1)


def test_what_the_student_has_no_line_for_it_writes_if_it_can():
    own = example("phone case", "USB cable")
    chain = rollout("usb cable", "red lamp", query="red lamp")
    lesson = retell(own, chain, lambda query, _: query == "red lamp")
    assert (lesson.searches, lesson.recommended) == ([1, "red lamp"], "red lamp")


@pytest.mark.parametrize(
    "chain",
    [
        rollout("coffee", query="coffee"),  # not in the student's memory
        rollout("usb cable", query="usb cable", repeated=1),
        rollout("usb cable", query="usb cable", refused=1),
        rollout("usb cable", query="usb cable", turns=(Turn("search", "usb cable"),)),
    ],
)
def test_what_a_student_could_not_do_is_not_told(chain):
    assert retell(example("usb cable"), chain, nothing) is None


@pytest.fixture
def shop(own_shop, new_nano):
    policy, tokenizer, config = new_nano()
    save_base(policy, tokenizer, config, own_shop.folder("policies", "big"))
    return own_shop


@pytest.fixture
def scripted_teacher(monkeypatch):
    """A teacher that searches its first line and then its second, and recommends that one.

    With the first case it comes to no end, and with the second it recommends what it never searched.
    """
    run = RolloutRunner.run

    def play(self, tasks, group, seed, progress=None):
        if seed is None:  # the measuring at the end is real
            return run(self, tasks, group, seed, progress)
        chains = []
        for number, task in enumerate(tasks):
            for member in range(group):
                chosen = list(task.profile.references[:2])
                query = "never searched" if number == 1 else chosen[-1] if chosen else ""
                end = {"finish": "length"} if number == 0 else {}
                chains.append(rollout(*chosen, query=query, case=number, member=member, **end))
        return chains

    monkeypatch.setattr(RolloutRunner, "run", play)


@pytest.mark.usefixtures("scripted_teacher")
def test_a_student_learns_the_teachers_chains_and_is_a_policy(shop):
    steps = []
    report = distill(shop, "big", "nano", "own", SMALL, SPLIT, on_step=steps.append)
    assert report.chains == 20
    assert 0 < report.kept <= report.validated <= 16
    assert len(steps) == 2
    assert report.ms_teacher > 0
    policy = open_policy(shop, "own")
    assert policy.info.trained[-1]["teacher"] == "big@1"
    assert policy.info.agent == student_agent(open_policy(shop, "big").info.agent)


@pytest.mark.usefixtures("scripted_teacher")
def test_a_student_that_exists_gets_an_adapter(shop):
    distill(shop, "big", "big", "own", SMALL, SPLIT)
    assert (resolve(shop, "own") / "adapters.safetensors").exists()
    assert open_policy(shop, "own").lora is not None


def test_a_teacher_without_a_valid_chain_is_told(shop):
    with pytest.raises(QAgentError, match="only 0 can be learned from"):
        distill(shop, "big", "nano", "own", SMALL, SPLIT)
    assert not (shop.folder("policies", "own")).exists()


@pytest.mark.usefixtures("scripted_teacher")
def test_a_student_of_a_name_that_is_taken_is_its_next_version(shop):
    report = distill(shop, "big", "nano", "big", SMALL, SPLIT)
    assert report.reference == "big@2" and report.teacher == "big@1"
    assert [*by_age(shop)] == ["big@1", "big@2"]
