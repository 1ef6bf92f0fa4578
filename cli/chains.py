"""Draw chains of retrieval, and what came of them, on a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .console import safe

if TYPE_CHECKING:
    from rich.text import Text

_PART = re.compile(
    r"<profile>(?P<profile>.*?)</profile>|<results>(?P<results>.*?)</results>"
    r"|<think>(?P<think>.*?)</think>|(?P<fetch><fetch_memory/>)"
    r"|<search>(?P<search>.*?)</search>|<recommend>(?P<recommend>.*?)</recommend>",
    re.DOTALL,
)
# Tokenizers drop line breaks beside the protocol's tags; a profile's line ends in <r0>, <r1> …,
# results begin with <s1>, <s2> …
_BREAK = re.compile(r"(?<=>)(?<!\n)\s*(?=[^\s<])")
_STYLES = {"search": "bold cyan", "recommend": "bold green", "fetch": "bold"}


def chain_lines(text: str, memory: bool = True) -> list[Text]:
    """A decoded chain as lines: actions in bold, the tools' results dimmed below them.

    The lines of the profile are among them unless ``memory`` is false.
    """
    lines: list[Text] = []
    end = 0
    for match in _PART.finditer(text):
        if between := text[end : match.start()].replace("<task>", "").strip():
            lines.append(safe(f"  {between}", "red"))
        end = match.end()
        kind = str(match.lastgroup)
        body = match[kind]
        if kind in ("profile", "results"):
            if kind == "results" or memory:
                body = _BREAK.sub("\n", body)
                lines += [_indented(line) for line in body.splitlines() if line.strip()]
            continue
        label = "fetch memory" if kind == "fetch" else f"{kind} {body.strip()}"
        lines.append(safe(label, _STYLES.get(kind, "dim")))
    if rest := text[end:].replace("<task>", "").strip():
        lines.append(safe(f"breaks off: {rest}", "red"))
    return lines


def _indented(line: str) -> Text:
    """A line of a result, four columns in, with a space before each reference."""
    from rich.text import Text

    return Text.assemble("    ", safe(line.replace("<r", " <r").replace("  <r", " <r"), "dim"))


def chance_text(chance: float | None) -> str:
    """A chance as people read it; a dash where none is known."""
    if chance is None:
        return "-"
    return f"{chance:.0%}" if chance >= 0.095 else f"{chance:.1%}" if chance >= 0.001 else "<0.1%"


def votes_text(votes: int, score: float) -> str:
    """How many chains agree; what fills up the row has no vote, which says nothing against it."""
    return f"{votes} of {round(votes / score)}" if votes and score else "fills up"
