"""Chains of retrieval on a terminal."""

from __future__ import annotations

import re
from typing import Any

from .common import shown

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
_LABELS = {"profile": "", "results": "", "think": "think", "fetch": "fetch memory"}


def chain_lines(text: str, memory: bool = True) -> list[Any]:
    """A decoded chain as lines: actions in bold, what tools answered dimmed below them.

    Args:
        text: The chain with its tags.
        memory: Also show the lines of the profile.
    """
    lines: list[Any] = []
    end = 0
    for match in _PART.finditer(text):
        between = text[end : match.start()].replace("<task>", "").strip()
        if between:
            lines.append(shown(f"  {between}", "red"))
        end = match.end()
        kind = str(match.lastgroup)
        body = match[kind]
        if kind in ("profile", "results"):
            if kind == "results" or memory:
                body = _BREAK.sub("\n", body)
                lines += [shown_indented(line) for line in body.splitlines() if line.strip()]
            continue
        label = _LABELS.get(kind, kind)
        lines.append(
            shown(label if kind == "fetch" else f"{label} {body.strip()}", _STYLES.get(kind, "dim"))
        )
    rest = text[end:].replace("<task>", "").strip()
    if rest:
        lines.append(shown(f"breaks off: {rest}", "red"))
    return lines


def shown_indented(line: str) -> Any:
    """An answer's line, four columns in."""
    from rich.text import Text

    return Text.assemble("    ", shown(line.replace("<r", " <r").replace("  <r", " <r"), "dim"))
