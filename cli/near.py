"""Commands whose names are near to a word that is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

from .examples import read_examples


def unknown_command(word: str, commands: Iterable[str], ctx: click.Context) -> click.UsageError:
    """The error for a word that is no command, with what may have been meant."""
    text = f"No such command {word!r}."
    if near := near_commands(word, commands, nested=ctx.parent is None):
        text += f" Did you mean {' or '.join(repr(name) for name in near)}?"
    return click.UsageError(text, ctx)


def near_commands(word: str, commands: Iterable[str], *, nested: bool = False) -> list[str]:
    """The commands that a word may have meant, the nearest first.

    ``nested`` finds subcommands that were typed without their group too, such as ``promote``.
    """
    inside = [name for name in read_examples() if " " in name] if nested else []
    last = [name.rpartition(" ")[2] for name in inside]
    exact = [name for name, end in zip(inside, last, strict=True) if end == word]
    if exact:
        return exact
    known = list(commands)
    near = difflib.get_close_matches(word.lower(), known, 3)
    near = near or [name for name in known if len(word) > 2 and name.startswith(word.lower())]
    if not near:
        words = difflib.get_close_matches(word.lower(), last, 1, 0.8)
        near = [name for name, end in zip(inside, last, strict=True) if end in words]
    return near
