import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports
from qagent_cli.main import cli

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_PARAMETERS = 60, 8
# A whole command in a message: of qagent, of mlx-lm's tools, or of pip.
COMMAND = re.compile(r"(?:qagent [a-z]|mlx_lm\.|mlx\.launch|pip install)[^;\n]*")


def test_imports_go_down_the_floors_and_in_no_circle(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # the contracts are in pyproject.toml
    # It would switch off the loggers that other tests read.
    monkeypatch.setattr("logging.config.dictConfig", lambda _config: None)
    status = lint_imports(no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


# Modules of ours that are imported by a name, which the contracts do not see: what they name must be
# in the same room, or they are above all rooms.
BY_NAME = {
    "qagent_mlx/__init__.py": "the public names, above all rooms",
    "qagent_mlx/environment/__init__.py": "the public names of its own room",
    "qagent_mlx/utils/callable_module.py": "a room's function, as the room itself names it",
    "qagent_mlx/runs/loggers.py": "other packages, which the user may lack",
    "cli/main.py": "the commands of its own room",
}


def test_no_import_by_name_hides_an_arrow_up():
    found = {
        str(path.relative_to(ROOT))
        for path in _modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _imports_one_of_ours(node)
    }
    assert found == set(BY_NAME)


def _imports_one_of_ours(call: ast.Call) -> bool:
    """Whether it imports by a name, unless that is plainly one of another package."""
    if ast.unparse(call.func).rpartition(".")[2] not in ("import_module", "__import__"):
        return False
    name = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else ""
    return not name or str(name).startswith((".", "qagent_mlx", "qagent_cli"))


def test_functions_are_short_and_what_is_public_is_documented():
    """At most 60 lines and 8 parameters; click's commands have one for each of their options."""
    long, wide, bare = [], [], []
    for path in _modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(ROOT)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                where = f"{name}:{node.lineno} {node.name}"
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MOST_LINES:
                    long.append(f"{where}: {length} lines")
                a = node.args
                named = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
                count = len([n for n in named if n not in ("self", "cls")])
                if count > MOST_PARAMETERS and not _is_command(node):
                    wide.append(f"{where}: {count} parameters")
        bare += [f"{name} {public}" for public in _undocumented(tree.body)]
    assert not long and not wide and not bare, "\n".join((*long, *wide, *bare))


def _modules() -> list[Path]:
    return sorted(p for place in ("qagent_mlx", "cli") for p in (ROOT / place).rglob("*.py"))


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether click calls it, an argument for each option."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def _undocumented(body: list[ast.stmt]) -> Iterator[str]:
    """Public classes, methods and functions without a docstring."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                yield node.name
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{method}" for method in _undocumented(node.body))


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
