import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports
from qagent_cli.main import cli

ROOT = Path(__file__).parents[1]
# A whole command in a message: of qagent, of mlx-lm's tools, or of pip.
COMMAND = re.compile(r"(?:qagent [a-z]|mlx_lm\.|mlx\.launch|pip install)[^;\n]*")


def test_imports_go_down_the_floors_and_in_no_circle(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # the contracts are in pyproject.toml
    status = lint_imports(no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_below_the_command_line_no_text_speaks_of_its_flags():
    flags = set(_flags(cli, click.Context(cli)))
    assert {"--shop", "--overwrite", "--learning-rate"} <= flags
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / "qagent_mlx").rglob("*.py"))
        for line, text in _texts(ast.parse(path.read_text(encoding="utf-8")))
        if flags & set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", COMMAND.sub("", text)))
    ]
    assert not found, "name the setting (SettingError), the command line names the flag:\n" + (
        "\n".join(found)
    )


def _flags(command: click.Command, context: click.Context) -> Iterator[str]:
    """The flags of a command and of all its subcommands."""
    for parameter in command.params:
        yield from (flag for flag in parameter.opts if flag.startswith("--"))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from _flags(subcommand, context)


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The string literals of a module that are no docstrings, with X for what is filled in."""
    parts = {id(p) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for p in n.values}
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = (v.value if isinstance(v, ast.Constant) else "X" for v in node.values)
            yield node.lineno, "".join(map(str, values))
        elif isinstance(node, ast.Constant) and id(node) not in documentation | parts:
            yield node.lineno, str(node.value)
