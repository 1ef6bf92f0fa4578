"""Write ``docs/reference/commands.md``: every command with its options (`make reference`)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
from qagent_cli.examples import read_examples
from qagent_cli.main import cli

EXAMPLES = read_examples()
_HEAD = """# Commands

Generated from the commands themselves by `make reference`; do not edit. `--help`
behind any of them says the same in a terminal. Every command that reports takes `--json`; those
that use a shop take `--shop PATH` or the variable `QAGENT_SHOP`.
"""
_AS_TYPED = "\b"  # click's mark of a paragraph that keeps its lines
_EVERYWHERE = ("--help", "--json", "--shop")  # left out: the head says it


def reference() -> str:
    """The page, as Markdown."""
    lines = [_HEAD]
    for context in commands(click.Context(cli, info_name="qagent")):
        lines += _section(context)
    return "\n".join(lines)


def commands(parent: click.Context) -> Iterator[click.Context]:
    """A context of each command below a group's, in the order of the help."""
    assert isinstance(parent.command, click.Group)
    for name in parent.command.list_commands(parent):
        command = parent.command.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent, terminal_width=88)
        yield context
        if isinstance(command, click.Group):
            yield from commands(context)


def _section(context: click.Context) -> list[str]:
    command = context.command
    depth = "###" if context.parent and context.parent.parent else "##"
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"{depth} {context.command_path}\n"]
    if not isinstance(command, click.Group):
        lines.append(f"`{context.command_path} {usage}`\n")
    lines += [_paragraph(text) for text in inspect.cleandoc(command.help or "").split("\n\n")]
    records = (p.get_help_record(context) for p in command.params if isinstance(p, click.Option))
    rows = [_row(*record) for record in records if record and not _is_everywhere(record[0])]
    if rows:
        lines += ["| option | what it is |", "|---|---|", *rows, ""]
    if examples := EXAMPLES.get(context.command_path.removeprefix("qagent ")):
        lines += ["```bash", *examples, "```", ""]
    return lines


def _paragraph(text: str) -> str:
    """A paragraph of a help; one that keeps its lines becomes a list of them."""
    if text.startswith(_AS_TYPED):
        typed = text.removeprefix(_AS_TYPED).strip().splitlines()
        return "\n".join(f"- {_plain(line)}" for line in typed) + "\n"
    return " ".join(_plain(text.replace("``", "`")).split()) + "\n"


def _row(flags: str, text: str) -> str:
    """A row; bars would end a cell, and separate alternatives."""
    return f"| `{flags.replace('|', ', ')}` | {_plain(text).replace('|', ', ')} |"


def _plain(text: str) -> str:
    """Text whose brackets and stars Markdown leaves alone."""
    return re.sub(r"(?<!`)([<*\[\]])", r"\\\1", " ".join(text.split()))


def _is_everywhere(flags: str) -> bool:
    return any(flag in _EVERYWHERE for flag in re.split(r"[ ,]+", flags))


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(reference(), encoding="utf-8")
