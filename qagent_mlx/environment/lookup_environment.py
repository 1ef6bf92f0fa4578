"""A small environment that is no shop: find the box that holds a thing, by looking into boxes.

The corpus is generated from a seed, every question has one exact answer, and no box says by its
name what it holds: whoever answers without looking is right once in `boxes` times. Reading the
question lists the boxes, a search opens one, and the answer names one that was opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import QAgentError
from ..protocol.actions import (
    PROFILE,
    PROFILE_END,
    RESULTS,
    RESULTS_END,
    SLOTS,
    Action,
    parse_action,
)
from .rewards import weighted_reward
from .text_environment import Message, Step, Tool, ToolCall

THINGS = ("lamp", "cable", "shoes", "coffee", "phone", "kettle", "book", "watch")
COLOURS = ("black", "red", "white", "blue")
SPLITS = {"train": (0, 200), "validation": (200, 240), "test": (240, 300)}  # numbers of the cases
TURNS = 8  # after which an episode breaks off
WEIGHTS = {"format": 0.2, "found": 0.3, "exact": 1.0}

_QUERY = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "<r0> opens the first box."}},
    "required": ["query"],
}


@dataclass
class _Episode:
    wanted: str
    contents: list[str]  # of each box
    opened: list[int]
    turns: int = 0
    read: bool = False


class LookupEnvironment:
    """See `text_environment.TextEnvironment`.

    Args:
        boxes: Boxes of a question.
        seed: Of the corpus.
    """

    def __init__(self, boxes: int = 4, seed: int = 0) -> None:
        self._boxes, self._seed = boxes, seed
        self._episode: _Episode | None = None

    @property
    def tools(self) -> Sequence[Tool]:
        """Reading the question, opening a box, and answering."""
        schemas = {"fetch_memory": {"type": "object", "properties": {}}, "search": _QUERY}
        schemas["recommend"] = _QUERY
        return [
            {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in schemas.items()
        ]

    @property
    def weights(self) -> Mapping[str, float]:
        """An answer at all, the right box opened, and the right answer."""
        return WEIGHTS

    def cases(self, split: str) -> list[int]:
        """The questions of a split."""
        return list(range(*SPLITS[split]))

    def fork(self) -> LookupEnvironment:
        """An environment for another episode."""
        return type(self)(self._boxes, self._seed)

    def reset(self, case: int) -> list[Message]:
        """Begin an episode: the question is read with the first action."""
        random = np.random.default_rng([self._seed, case])
        kinds = random.permutation(len(THINGS) * len(COLOURS))[: self._boxes]
        contents = [f"{COLOURS[k % len(COLOURS)]} {THINGS[k // len(COLOURS)]}" for k in kinds]
        self._episode = _Episode(contents[int(random.integers(self._boxes))], contents, [])
        return [{"role": "user", "content": "In which box is it?"}]

    def step(self, action: str | ToolCall) -> Step:
        """Read the question, open a box, or answer."""
        episode = self._running()
        episode.turns += 1
        act = parse_action(action) if isinstance(action, str) else _called(action)
        if act.kind == "fetch":
            episode.read = True
            lines = "\n".join(f"box <r{i}>" for i in range(self._boxes))
            return self._go_on(f"{PROFILE}likes {episode.wanted}\n{lines}{PROFILE_END}")
        sign, number = act.reference[:1], int(act.reference[1:] or -1)
        if act.kind == "search" and sign == "r" and episode.read and number < self._boxes:
            episode.opened.append(number)
            fits = "fits" if episode.contents[number] == episode.wanted else "out"
            slot = SLOTS[min(len(episode.opened), len(SLOTS)) - 1]
            return self._go_on(f"{RESULTS}{slot}1 {episode.contents[number]} {fits}{RESULTS_END}")
        answer = -1
        if act.kind == "recommend" and sign == "s" and 1 <= number <= len(episode.opened):
            answer = episode.opened[number - 1]
        return self._end(answer)

    def give_up(self) -> Step:
        """End the episode without an answer."""
        self._running()
        return self._end(-1)

    def _running(self) -> _Episode:
        if self._episode is None:
            raise QAgentError("no episode runs; begin one with reset(case)")
        return self._episode

    def _go_on(self, observation: str) -> Step:
        return self._end(-1) if self._running().turns >= TURNS else Step(observation)

    def _end(self, answer: int) -> Step:
        episode = self._running()
        self._episode = None
        rewards = {
            "format": float(answer >= 0),
            "found": float(any(episode.contents[i] == episode.wanted for i in episode.opened)),
            "exact": float(answer >= 0 and episode.contents[answer] == episode.wanted),
        }
        return Step("", weighted_reward(rewards, WEIGHTS), True, rewards)


def _called(call: ToolCall) -> Action:
    name, arguments = call.get("name"), call.get("arguments")
    query: Any = arguments.get("query", "") if isinstance(arguments, Mapping) else ""
    if name == "fetch_memory":
        return Action("fetch")
    if name in ("search", "recommend"):
        return parse_action(f"<{name}>{query}</{name}>")
    return Action("invalid")
