"""What an environment is to anybody who trains or evaluates a language model: text and tools.

    messages = environment.reset(case)              # what the model reads first
    step = environment.step(action)                 # what it reads next, its reward, and whether
                                                    # the episode is over
An action is a turn of the model's text, or the call of one of the `tools`. `ShopEnvironment` is one
such environment; `train.text_grpo` trains a policy in any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

Message: TypeAlias = dict[str, Any]
"""``role`` and ``content``, as chat templates and OpenAI's interface have them."""
Tool: TypeAlias = dict[str, Any]
"""A function with a JSON schema of its parameters, as OpenAI's interface has it."""
ToolCall: TypeAlias = Mapping[str, Any]
"""``name`` and ``arguments``, a mapping."""


@dataclass(frozen=True, slots=True)
class Step:
    """What an action led to; rewards come with the last step of an episode.

    ``rewards`` has each component in [0, 1], and ``reward`` is their weighted mean.
    """

    observation: str
    reward: float = 0.0
    done: bool = False
    rewards: Mapping[str, float] = field(default_factory=dict)


class TextEnvironment(Protocol):
    """Episodes in text; equal actions in an equal case lead to equal steps.

    An object holds one episode at a time, and `fork` gives another one on the same data.
    """

    @property
    def tools(self) -> Sequence[Tool]:
        """What may be called in a step."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each reward component, by name."""
        ...

    def cases(self, split: str) -> Sequence[int]:
        """The cases of ``train``, ``validation`` or ``test``, whose numbers `reset` takes."""
        ...

    def reset(self, case: int) -> list[Message]:
        """Begin an episode; what the model reads first."""
        ...

    def step(self, action: str | ToolCall) -> Step:
        """Take an action; refused when no episode runs."""
        ...

    def give_up(self) -> Step:
        """End the episode as it is: for those who stop a model that acts no more."""
        ...

    def fork(self) -> TextEnvironment:
        """An environment for another episode at the same time, on the same data."""
        ...
