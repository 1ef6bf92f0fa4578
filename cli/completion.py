"""``qagent completion``."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what a shell needs to complete qagent's commands, options and policies on Tab."""
    from click.shell_completion import get_completion_class

    from .main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, "qagent", "_QAGENT_COMPLETE")
    click.echo(script.source_template % script.source_vars())
