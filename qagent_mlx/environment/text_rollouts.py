"""A policy's chains in any `TextEnvironment`, decoded together as those of a shop are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ..agent.episode import random_stream
from ..agent.rollout import RolloutRunner
from ..agent.sequences import DecodingSequence
from ..agent.types import Rollout
from ..policy.policy import Policy
from ..types import Case, Split
from .text_environment import Step, TextEnvironment

MOST_TURNS = 64  # of an episode, where the environment does not end it sooner


@dataclass(frozen=True)
class TextExample:
    """A case of a text environment, as `train.grpo` takes examples."""

    case: Case

    @property
    def task(self) -> int:
        """What a chain is given: the case's number."""
        return self.case.case_id


@dataclass(frozen=True, slots=True)
class TextRollout(Rollout):
    """A chain with the step that ended it."""

    step: Step = field(default_factory=lambda: Step(""))


def examples_of(environment: TextEnvironment, split: Split) -> list[TextExample]:
    """The cases of a split."""
    return [
        TextExample(Case(number, "", datetime.min, "", "", (), 0, split))
        for number in environment.cases(split)
    ]


class TextEpisode:
    """One episode in tokens, in place of an `agent.episode.Episode`.

    An environment that has not ended it after so many ``turns`` is asked to give up.
    """

    request = None  # an environment answers by itself

    def __init__(
        self,
        policy: Policy,
        environment: TextEnvironment,
        case: int,
        member: int,
        stream: Any,
        turns: int = MOST_TURNS,
    ) -> None:
        self._policy, self._environment, self._turns = policy, environment, turns
        self.case, self.member = case, member
        messages = environment.reset(case)
        self.sequence = DecodingSequence(
            tokens=policy.codec.conversation(messages),
            stopper=policy.stopper(),
            stream=stream,
            turn_limit=policy.info.agent.turn_tokens,
            tag=self,
        )
        self._prompt_length = len(self.sequence.tokens)
        self._last = Step("")

    def act(self) -> bool:
        """Take the turn that was just decoded; returns whether the episode goes on."""
        self._last = self._environment.step(self._policy.codec.decode(self.sequence.turn))
        self._turns -= 1
        if self._turns <= 0 and not self._last.done:
            self._last = self._environment.give_up()
            return False
        return not self._last.done

    def observe(self, _result: None) -> None:
        """Insert what the environment answered."""
        self.sequence.insert(self._policy.codec.observation(self._last.observation))

    def rollout(self, position: int) -> TextRollout:
        """The chain, of the case at a position of its batch."""
        return TextRollout(
            case=position,
            member=self.member,
            tokens=tuple(self.sequence.tokens),
            prompt_length=self._prompt_length,
            sampled=tuple(self.sequence.sampled),
            logprobs=tuple(self.sequence.logprobs),
            finish="recommended",
            step=self._last,
        )


class _NoTools:
    catalog: Any = None  # no shop's words are to be written

    def run(self, requests: Sequence[Any]) -> list[Any]:
        """Nobody asks."""
        return [None for _ in requests]


class TextRunner(RolloutRunner):
    """Runs a policy's chains in a text environment, each of at most ``turns`` turns."""

    def __init__(
        self, policy: Policy, environment: TextEnvironment, turns: int = MOST_TURNS
    ) -> None:
        agent = replace(policy.info.agent, writes=False)
        super().__init__(policy, _NoTools(), agent)  # type: ignore[arg-type]
        self._environment, self._turns = environment, turns

    def run(  # type: ignore[override]
        self,
        tasks: Sequence[int],
        group: int,
        seed: Sequence[int] | None,
        numbers: Sequence[int] | None = None,
    ) -> list[TextRollout]:
        """Run ``group`` chains for each case; see `RolloutRunner.run`."""
        self.decoder.refresh()
        positions = range(len(tasks)) if numbers is None else numbers
        placed, episodes = [], []
        for case, position in zip(tasks, positions, strict=True):
            for member in range(group):
                stream = random_stream(seed, position, member)
                forked = self._environment.fork()
                episodes.append(TextEpisode(self.policy, forked, case, member, stream, self._turns))
                placed.append(position)
        self.complete(episodes)
        return [e.rollout(at) for e, at in zip(episodes, placed, strict=True)]
