"""Examples at the end of every command's help, from ``examples.txt``."""

from __future__ import annotations

from pathlib import Path

import click


def read_examples() -> dict[str, list[str]]:
    """The words of each command, and its examples: the indented lines below them."""
    examples: dict[str, list[str]] = {}
    name = ""
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            examples[name].append(line[2:])
        else:
            name = line
            examples[name] = []
    return examples


def with_examples(name: str, command: click.Command) -> click.Command:
    """The command with its examples, and those of its subcommands, at the end of the help."""
    examples = read_examples()

    def add(name: str, command: click.Command) -> None:
        if name in examples and command.epilog is None:
            lines = "\n".join(f"  {line}" for line in examples[name])
            command.epilog = f"\b\nExamples:\n{lines}"
        if isinstance(command, click.Group):
            for word, subcommand in command.commands.items():
                add(f"{name} {word}", subcommand)

    add(name, command)
    return command
