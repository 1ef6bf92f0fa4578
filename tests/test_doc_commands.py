"""What the pages tell people to type is there: commands, options, files, targets and routes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from qagent_cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "sample_data/README.md"])
SHELL = ("bash", "sh", "shell", "console")
OF_SYSTEM = {
    "export",
    "pip",
    "python3",
    "git",
    ".",
    "cat",
    "ssh",
    "scp",
    "mlx.launch",
    "for",
    "done",
}


def blocks(page, languages):
    text = page.read_text(encoding="utf-8")
    return [
        code
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M)
        if language in languages
    ]


def commands(code):
    """The commands of a block, each as its words; comments and pipes are cut off."""
    quotes = re.compile(r"'[^']*'")  # a quoted text may go over several lines
    for line in quotes.sub(
        lambda m: m[0].replace("\n", " "), code.replace("\\\n", " ")
    ).splitlines():
        for part in re.split(r"&&|\|(?!\|)|;", strip_comment(line)):
            words = shlex.split(part)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words


def strip_comment(line):
    quoted = ""
    for place, sign in enumerate(line):
        if sign == quoted:
            quoted = ""
        elif not quoted and sign in "'\"":
            quoted = sign
        elif not quoted and sign == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line


TYPED = sorted(
    {
        (page.relative_to(ROOT).as_posix(), tuple(words))
        for page in PAGES
        for code in blocks(page, SHELL)
        for words in commands(code)
    }
)


def parse(words):
    """Let click read a command as it would, without running it."""
    words = [word for word in words if word not in ("…", "...")]
    context = cli.make_context("qagent", words)
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return  # what the group does by itself
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


OURS = [(page, words) for page, words in TYPED if words[0] == "qagent"]


@pytest.mark.parametrize(
    ("page", "words"), OURS, ids=lambda v: v if isinstance(v, str) else " ".join(v)
)
def test_a_command_on_a_page_is_one_that_qagent_reads(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in words:  # files that a reader would have
        name = word.rpartition("=")[2]
        if re.fullmatch(r"[\w./-]+\.(csv|jsonl|parquet|toml|txt|py|gguf|gz)", name):
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    try:
        parse(words[1:])
    except click.UsageError as error:
        if "does not exist" not in error.format_message():
            raise AssertionError(
                f"{page}: {shlex.join(words)}: {error.format_message()}"
            ) from error


def test_the_pages_show_many_commands():
    assert len(OURS) > 60


@pytest.mark.parametrize(("page", "words"), [t for t in TYPED if t[1][0] in ("python", "make")])
def test_scripts_and_targets_on_a_page_exist(page, words):
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
        assert {w for w in words[1:] if "=" not in w} <= set(targets), page
    else:
        script = next((w for w in words[1:] if w.endswith(".py")), None)
        assert script is None or (ROOT / script).exists(), page


def test_whatever_else_is_typed_is_a_program_that_people_have():
    known = {"qagent", "python", "make", "curl", *OF_SYSTEM}
    assert {words[0] for _, words in TYPED} <= known


@pytest.mark.parametrize(("page", "words"), [t for t in TYPED if t[1][0] == "curl"])
def test_routes_on_a_page_are_served(page, words):
    from qagent_mlx.serve.http import ENDPOINTS

    (path,) = [
        re.sub(r"^[\w:/.]*?:\d+", "", w) for w in words if re.match(r"(http://)?[\w.]+:\d+/", w)
    ]
    routes = {re.sub(r"\{\w+(:\w+)?\}", "[^/]+", str(e.path)) for e in ENDPOINTS}
    assert any(re.fullmatch(r, path.split("?")[0]) for r in routes), f"{page}: {path}"


def test_the_shop_of_the_page_on_environments_answers(simulated_folder, tmp_path, monkeypatch):
    shutil.copytree(simulated_folder, tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    code = blocks(ROOT / "docs" / "environments.md", ("python",))[0]
    names: dict[str, object] = {}
    exec(compile(code, "environments.md", "exec"), names)
    assert names["step"].done and 0 <= names["step"].reward <= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_compiles_and_imports_what_is_there(page):
    for code in blocks(page, ("python",)):
        compile(code, page.name, "exec")
        imports = re.findall(r"^(?:from qagent_mlx|import qagent_mlx).*$", code, re.M)
        exec("\n".join(imports), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_on_a_page_is_json(page):
    import json

    for code in blocks(page, ("json",)):
        json.loads(code if code.lstrip().startswith(("{", "[")) else f"{{{code}}}")
