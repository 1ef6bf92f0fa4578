"""The agent's protocol: the only place that knows how a chain of retrieval is written.

A chain is one growing token sequence. The policy writes actions, the environment inserts
observations after them, and nothing is ever decoded and encoded again:

    <task>
    <fetch_memory/>  <profile>…</profile>
    <search><r3></search>  <results><s1>…</results>    refinement, up to max_searches
    <search><r5></search>  <results><s2>…</results>
    <recommend><s1></recommend>

``<r3>`` stands for the query of the profile's line 3, ``<s1>`` for the query of the chain's
first search; free text may stand there instead, and text may hold one reference: with the line
``stove <r3>``, ``<search>nipper <r3></search>`` searches *nipper stove*. One-token references let
a small model decide where copying a query token by token is beyond it.
``<think>…</think>`` may come before any action. Text from data (titles, queries) is
escaped, so it can never form a tag.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..types import Profile
from .escape import safe
from .marks import Mark

PROTOCOL_VERSION = 2
MAX_REFERENCES = 32
MAX_SEARCHES = 8

FETCH = "<fetch_memory/>"
SEARCH, SEARCH_END = "<search>", "</search>"
RECOMMEND, RECOMMEND_END = "<recommend>", "</recommend>"
THINK, THINK_END = "<think>", "</think>"
PROFILE, PROFILE_END = "<profile>", "</profile>"
RESULTS, RESULTS_END = "<results>", "</results>"
TASK = "<task>"
REFERENCES = tuple(f"<r{i}>" for i in range(MAX_REFERENCES))
SLOTS = tuple(f"<s{i}>" for i in range(1, MAX_SEARCHES + 1))

ACTION_TAGS = (FETCH, SEARCH, SEARCH_END, RECOMMEND, RECOMMEND_END, THINK, THINK_END)
OBSERVATION_TAGS = (TASK, PROFILE, PROFILE_END, RESULTS, RESULTS_END)
STOPS = (FETCH, SEARCH_END, RECOMMEND_END)
_LONGEST = max(map(len, (*STOPS, *OBSERVATION_TAGS)))

_ACTION = re.compile(
    r"\s*(?:<think>(?P<think>[^<]*)</think>\s*)?"
    r"(?:(?P<fetch><fetch_memory/>)"
    r"|<search>(?P<search>[^<]*(?:<[rs]\d{1,3}>[^<]*)?)</search>"
    r"|<recommend>(?P<recommend>[^<]*(?:<[rs]\d{1,3}>[^<]*)?)</recommend>)"
    r"(?P<rest>.*)",
    re.DOTALL,
)
_REFERENCE = re.compile(r"\s*<([rs]\d{1,3})>\s*")
_PART = re.compile(r"<([rs])(\d{1,3})>")

_ACTIONS = """\
You suggest one search query to a shopper before they type. Answer with one action at a time:
<fetch_memory/> reads the shopper's memory. Its lines with <r0>, <r1>, ... are queries, the \
likeliest first.
<search><r0></search> looks up the query of memory line 0; <search>running shoes</search> \
looks up these words.
<recommend><s1></recommend> recommends the query of your first search and ends your work.
If a search finds only products that are out or too dear, """

INSTRUCTIONS = f"{_ACTIONS}search another line."

WRITING_INSTRUCTIONS = f"""{_ACTIONS}or memory has no line that fits, write \
a query of your own: a kind of product, with a brand or a size that you have read."""

REQUEST = "A shopper is here. What should they search for?"

# A whole chain, shown to chat models before their own: (who, text), of another kind of shop.
# It is the shortest one: small models copy what they are shown, and this is the safest habit.
WORKED_EXAMPLE: tuple[tuple[Literal["user", "assistant"], str], ...] = (
    ("user", REQUEST),
    ("assistant", FETCH),
    (
        "user",
        f"{PROFILE}likes espresso cup, northmill, $$\nground coffee now likely <r0>\n"
        f"northmill espresso cup maybe <r1>{PROFILE_END}",
    ),
    ("assistant", f"{SEARCH}<r0>{SEARCH_END}"),
    (
        "user",
        f"{RESULTS}<s1>1 castelo ground coffee dark $$ fits\n"
        f"2 arbor ground coffee mild $$$ out{RESULTS_END}",
    ),
    ("assistant", f"{RECOMMEND}<s1>{RECOMMEND_END}"),
)

# The same for models that write: the first search is sold out, so the second is composed from what
# it showed.
WRITING_EXAMPLE: tuple[tuple[Literal["user", "assistant"], str], ...] = (
    *WORKED_EXAMPLE[:4],
    (
        "user",
        f"{RESULTS}<s1>1 castelo ground coffee dark $$ out\n"
        f"2 arbor ground coffee mild $$ out{RESULTS_END}",
    ),
    ("assistant", f"{SEARCH}castelo coffee beans{SEARCH_END}"),
    (
        "user",
        f"{RESULTS}<s2>1 castelo coffee beans dark $$ fits\n"
        f"2 castelo coffee beans mild $$$ brand{RESULTS_END}",
    ),
    ("assistant", f"{RECOMMEND}<s2>{RECOMMEND_END}"),
)


class Codec(Protocol):
    """What the protocol needs of a tokenizer.

    Attributes:
        eos_ids: Ids that end a generation.
    """

    eos_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that may hold tags."""
        ...

    def observation(self, text: str) -> list[int]:
        """Token ids of a tool's answer, up to where the next action begins."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, tags included."""
        ...


Kind = Literal["fetch", "search", "recommend", "invalid"]


@dataclass(frozen=True, slots=True)
class Action:
    """What the policy did in one turn.

    ``reference`` is set when it pointed: ``r3`` at a line of memory, ``s1`` at a search.
    """

    kind: Kind
    text: str = ""
    reference: str = ""
    think: str = ""


def parse_action(text: str) -> Action:
    """Read one turn; anything that is not exactly one action is ``invalid``."""
    match = _ACTION.fullmatch(text)
    if match is None or match["rest"].strip():
        return Action("invalid", text)
    think = (match["think"] or "").strip()
    if match["fetch"]:
        return Action("fetch", think=think)
    kind: Kind = "search" if match["search"] is not None else "recommend"
    body = match["search"] if kind == "search" else match["recommend"]
    reference = _REFERENCE.fullmatch(body)
    if reference:
        return Action(kind, reference=reference[1], think=think)
    return Action(kind, text=body.strip(), think=think)


def expand(action: Action, references: Sequence[str], searched: Sequence[str]) -> str | None:
    """The query that a search or recommendation means; None when it means nothing.

    Args:
        action: A search or recommendation.
        references: The queries of the profile's lines.
        searched: The queries that the chain has searched, in order.
    """
    if action.reference:
        return _referred(action.reference[0], int(action.reference[1:]), references, searched)
    text, match = action.text, _PART.search(action.text)
    if match is not None:
        query = _referred(match[1], int(match[2]), references, searched)
        if query is None:
            return None
        text = f"{text[: match.start()]} {query} {text[match.end() :]}"
    text = " ".join(text.replace("‹", "<").replace("›", ">").split())
    return text or None


def _referred(
    kind: str, number: int, references: Sequence[str], searched: Sequence[str]
) -> str | None:
    if kind == "r":
        return references[number] if number < len(references) else None
    return searched[number - 1] if 1 <= number <= len(searched) else None


def profile_text(profile: Profile) -> str:
    """The observation that answers ``<fetch_memory/>``."""
    body = profile.text if profile.lines else Mark.NOTHING_KNOWN
    return f"{PROFILE}{body}{PROFILE_END}"


def results_text(number: int, lines: Sequence[str]) -> str:
    """The observation that answers a chain's search ``number``: a product a line, or ``none``."""
    body = "\n".join(lines) if lines else Mark.NONE
    return f"{RESULTS}{SLOTS[number - 1]}{body}{RESULTS_END}"


def refusal_text() -> str:
    """The observation that answers a search beyond the limit."""
    return f"{RESULTS}no more searches{RESULTS_END}"


def product_line(number: int, title: str, marks: Sequence[str]) -> str:
    """One result as the agent sees it."""
    return " ".join([str(number), safe(title), *marks])


class Stopper:
    """Watches one row's tokens for the end of an action, for any tokenizer.

    A tag may span several tokens and a token may reach past a tag, so the tail of the
    turn's text is what counts. For tokenizers with one token a tag, the ids alone decide.
    """

    def __init__(self, codec: Codec, single: frozenset[int] | None) -> None:
        self._codec = codec
        self._single = single
        self._turn: list[int] = []

    def feed(self, token: int) -> bool:
        """Take one sampled token; true when it completes an action (or ends the answer)."""
        self._turn.append(token)
        if token in self._codec.eos_ids:
            return True
        if self._single is not None:
            return token in self._single
        # A token is at least a character, so these cover the longest tag and what follows it.
        tail = self._codec.decode(self._turn[-(_LONGEST + 8) :])
        if ">" not in tail:
            return False
        # Only a tool may write its tags: a policy that begins one is stopped there, and what
        # it said is no action.
        return any(stop in tail for stop in (*STOPS, *OBSERVATION_TAGS))

    def reset(self) -> None:
        """A new turn begins."""
        self._turn.clear()
