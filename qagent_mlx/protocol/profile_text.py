"""Render a profile's lines as the text that the agent reads."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Line


def render(lines: Sequence[Line]) -> str:
    """The profile's text: one line each; a line with a query ends in its reference.

    The reference comes last so that, when a model reads left to right, the token that it
    may copy is also the one that has seen the whole line.
    """
    written, number = [], 0
    for line in lines:
        written.append(written_line(line, number))
        number += line.query is not None
    return "\n".join(written)


def written_line(line: Line, number: int) -> str:
    """A line as the policy reads it, with the reference to its query where it has one."""
    return line.text if line.query is None else f"{line.text} <r{number}>"
