"""The ``qagent`` command: subcommands load when they are called, so that help comes at once."""

from __future__ import annotations

import functools
import sys
from importlib import import_module
from typing import Any

import click

from .examples import with_examples

# name -> where the command is, and its line in the help
COMMANDS = {
    "demo": ("demo", "Show the whole story on the sample shop, then a session."),
    "init": ("init", "Make a shop, empty or with the sample data."),
    "ingest": ("ingest", "Load products and events from files."),
    "move": ("move", "Keep the shop's rows in a lake for several machines, or in its file."),
    "index": ("inventory", "Build or refresh the inventory index."),
    "memory": ("memory", "Show, export or forget what is known of a user."),
    "search": ("inventory", "Search the inventory."),
    "models": ("models", "List, fetch, show and export base models and policies."),
    "policies": ("policies", "List, promote, roll back and remove versions of policies."),
    "pretrain": ("train", "Train a small policy from scratch on this shop."),
    "train": ("train", "Train a policy: on demonstrations (SFT), then by rewards (GRPO)."),
    "distil": ("train", "Train a small policy on a large one's chains."),
    "recommend": ("recommend", "Recommend queries to users."),
    "export": ("export", "Write products, events or recommendations to a file."),
    "suggest": ("suggest", "Complete what a user types."),
    "serve": ("serve", "Serve recommendations over HTTP."),
    "rules": ("rules", "What is never recommended, and what always."),
    "experiment": ("experiment", "Two systems share the users; see which one serves them better."),
    "offpolicy": ("offpolicy", "Estimate what a policy that was not shown would have earned."),
    "impressions": ("impressions", "What users were shown, and what came of it."),
    "evaluate": ("evaluate", "Measure policies on what users did next."),
    "abtest": ("abtest", "Ask fresh simulated shoppers which of two systems they prefer."),
    "reproduce": ("reproduce", "From raw data to the full table, in one command."),
    "runs": ("runs", "Look into training runs."),
    "bench": ("bench", "Measure speed, alone or beside other trainers."),
    "trust": ("trust", "Name the files and addresses that a shop may use."),
    "completion": ("completion", "Print a shell's completion of commands."),
    "doctor": ("doctor", "Check the environment and its speed."),
}


class QAgentGroup(click.Group):
    """Load a command's module when the command is called; end errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; its module is imported now."""
        if cmd_name not in COMMANDS:
            return None
        return _command(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names, or else what may have been meant."""
        word = args[0]
        if word not in COMMANDS and not word.startswith("-") and not ctx.resilient_parsing:
            from .near import unknown_command

            raise unknown_command(word, COMMANDS, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help's list, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error that a user can put right ends in one line and exit code 1."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                # A terminal that lacks a character shows a stand-in instead of an error.
                stream.reconfigure(errors="backslashreplace")
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
            return value
        except BrokenPipeError:
            raise  # click leaves quietly, with exit code 1
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted.", err=True)
            ctx.exit(130)
        except _user_errors() as error:
            if type(error).__name__ == "InterruptException":  # Ctrl-C inside a DuckDB query
                click.echo("Interrupted.", err=True)
                ctx.exit(130)
            raise click.ClickException(_message(error)) from error


@functools.cache
def _command(name: str) -> click.Command:
    """Import a command."""
    module = import_module(f"{__package__}.{COMMANDS[name][0]}")
    return _prepared(with_examples(name, getattr(module, name)))


def _prepared(command: click.Command) -> click.Command:
    """The command, which configures this process when it runs; its help does without.

    An error in a setting is shown with the flag that sets it.
    """
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            _prepared(subcommand)
    callback = command.callback
    if callback is None:
        return command

    @functools.wraps(callback)
    def prepared(*args: Any, **options: Any) -> Any:
        import qagent_mlx
        from qagent_mlx.errors import QAgentError
        from qagent_mlx.utils.settings import SettingError

        from .options import in_flags, with_flags

        context = click.get_current_context()
        if context.invoked_subcommand is None:
            qagent_mlx.configure()
        try:
            return callback(*args, **options)
        except SettingError as error:
            raise with_flags(error, context.command) from error
        except QAgentError as error:
            if "`" in str(error):
                raise QAgentError(in_flags(str(error), context.command)) from error
            raise

    command.callback = prepared
    return command


def _user_errors() -> tuple[type[BaseException], ...]:
    """The errors that a user can put right, of the modules that are loaded."""
    errors: list[type[BaseException]] = [OSError, ModuleNotFoundError, MemoryError]
    for module, name in (("qagent_mlx.errors", "QAgentError"), ("duckdb", "Error")):
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


def _message(error: BaseException) -> str:
    """One line that says what is wrong and what to do."""
    from qagent_mlx.errors import QAgentError
    from qagent_mlx.utils.text import clean

    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; run: pip install qagent-mlx"
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or give smaller batches, groups or files"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return clean(f"{place}{error.strerror or error}; check the path, its rights and the disk")
    if type(error).__name__ == "OutOfMemoryException":  # DuckDB's, which is imported late
        from qagent_mlx.utils.database import more_memory

        return f"the database needs more memory; {more_memory()}"
    text = str(error)
    # DuckDB adds lines with the place in the SQL, which says nothing to a user.
    line = clean(text if isinstance(error, QAgentError) else text.splitlines()[0])
    return line if len(line) < 2000 else f"{line[:2000]} …"


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"qagent {version('qagent-mlx')}")
        ctx.exit()


@click.group(cls=QAgentGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Query recommendation by a search agent that learns from what its queries retrieve.

    First steps: qagent demo, or qagent init --sample and then qagent recommend USER.
    """
