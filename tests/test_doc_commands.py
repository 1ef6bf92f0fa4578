"""What the pages tell people to type is there: commands, options, files, targets and routes."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import click
import msgspec
import pytest
from click.testing import CliRunner
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
    "eval",
    "printf",
    "gzip",
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
        line = re.sub(r"\$\([^)]*\)", "text", strip_comment(line))
        for part in re.split(r"&&|\|(?!\|)|;", line):
            words = shlex.split(part)
            if ">" in words:  # the shell's
                words = words[: words.index(">")]
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
def test_a_request_on_a_page_is_one_that_the_server_takes(page, words):
    from qagent_mlx.serve.http import ENDPOINTS

    (path,) = [
        re.sub(r"^[\w:/.]*?:\d+", "", w) for w in words if re.match(r"(http://)?[\w.]+:\d+/", w)
    ]
    served = [
        e
        for e in ENDPOINTS
        if re.fullmatch(re.sub(r"\{\w+(:\w+)?\}", "[^/]+", str(e.path)), path.split("?")[0])
    ]
    assert served, f"{page}: {path}"
    if "-d" in words:
        body = msgspec.json.decode(words[words.index("-d") + 1])
        kinds = [kind for endpoint in served for kind in endpoint.body]
        assert any(is_of(kind, body) for kind in kinds), f"{page}: {path}: {body}"


def is_of(kind, body):
    try:
        msgspec.convert(body, kind)
    except msgspec.ValidationError:
        return False
    return True


INLINE = sorted(
    {
        (page.relative_to(ROOT).as_posix(), " ".join(code.split()))
        for page in PAGES
        for code in re.findall(
            r"(?<!`)`((?:qagent|python|make) [^`]+)`(?!`)", page.read_text(encoding="utf-8")
        )
    }
)
MISTYPED = {"qagent recomend", "qagent promote"}  # the changelog says what they are answered


@pytest.mark.parametrize(("page", "text"), INLINE)
def test_a_command_in_running_text_is_there(page, text):
    """It may be cut short, so its names and options are looked at, not what they lack."""
    program, *words = text.replace("…", "").split()
    if text in MISTYPED:
        return
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
        assert words[0] in targets, page
    elif program == "python":
        scripts = [ROOT / word for word in words if word.endswith(".py")]
        for script in scripts:
            source = script.read_text(encoding="utf-8")
            given = re.findall(r"--[a-z][\w-]*", text)
            assert not [option for option in given if f'"{option}"' not in source], page
    else:
        for command, options in named_commands(words):
            known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
            assert not set(options) - known - {"--help", "--version"}, f"{page}: {text}"


def named_commands(words):
    """Each command that the words name, ``start|stop`` being two, with the options they give it."""
    options = [re.split(r"[=|\]]", w)[0] for w in words if re.match(r"-{1,2}[a-z]", w)]
    commands = [cli]
    context = click.Context(cli)
    for word in words:
        groups = [c for c in commands if isinstance(c, click.Group)]
        if word.startswith("-") or not groups:
            break
        if not word.islower():  # an argument, such as USER of `qagent memory USER`
            commands = [group.get_command(context, "show") for group in groups]
            break
        commands = [
            group.get_command(context, name) for group in groups for name in word.split("|")
        ]
        assert None not in commands, f"no command {word}"
    return [(command, options) for command in commands]


def test_the_pages_name_many_commands_in_running_text():
    assert len(INLINE) > 80


@pytest.mark.parametrize("line", blocks(ROOT / "docs/operate.md", ("crontab",))[0].splitlines())
def test_a_line_of_the_crontab_is_one_of_cron(line):
    if re.match(r"[A-Z_]+=", line):
        return
    *moment, command = line.split(maxsplit=5)
    assert all(re.fullmatch(r"\*|\d+", part) for part in moment)
    # cron takes a bare % for the end of the line
    assert not re.search(r"(?<!\\)%", command)
    for words in commands(re.sub(r"\$\([^)]*\)", "day", command)):
        words = words[1:] if words[0] == "nice" else words
        if words[0] == "qagent":
            _, options = named_commands(words[1:])[0]
            assert options == [] and "|" not in line


def test_every_block_of_code_says_its_language():
    """A block without one is a drawing; `test_layers` and readers look at those."""
    bare = {}
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)
        languages = fences[::2]
        assert set(languages) <= {"", "text", "csv", "json", "python", "toml", "crontab", *SHELL}, (
            page
        )
        bare[page.relative_to(ROOT).as_posix()] = languages.count("")
    drawings = {"README.md": 2, "CONTRIBUTING.md": 1}
    assert {name: count for name, count in bare.items() if count} == drawings


def test_the_shop_of_the_page_on_environments_answers(simulated_folder, tmp_path, monkeypatch):
    shutil.copytree(simulated_folder, tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    code = blocks(ROOT / "docs" / "environments.md", ("python",))[0]
    names: dict[str, object] = {}
    exec(compile(code, "environments.md", "exec"), names)
    assert names["step"].done and 0 <= names["step"].reward <= 1


def test_the_python_of_the_first_page_runs(simulated_folder, tmp_path, monkeypatch, capsys):
    """As it stands, but for the shop, which is small, and for the number of steps."""
    import qagent_mlx
    from qagent_mlx.shop.shop import Shop
    from qagent_mlx.train.grpo_config import GrpoConfig
    from qagent_mlx.train.sft import SftConfig

    def small_shop(path):
        shutil.copytree(simulated_folder, tmp_path / path)
        return Shop.open(tmp_path / path, read_only=False)

    sft, grpo = qagent_mlx.train_sft, qagent_mlx.train_grpo
    short = SftConfig(steps=1, measured=2)
    steps = GrpoConfig(steps=1, cases_per_step=2, group=2, measured=2)
    monkeypatch.setattr(qagent_mlx, "sample_shop", small_shop)
    monkeypatch.setattr(qagent_mlx, "train_sft", lambda *names: sft(*names, short))
    monkeypatch.setattr(qagent_mlx, "train_grpo", lambda *names: grpo(*names, steps))
    (code,) = blocks(ROOT / "README.md", ("python",))
    exec(compile(code, "README.md", "exec"), {})
    (row,) = capsys.readouterr().out.strip().splitlines()
    assert row.count("(") == 5  # a query and its first product, five times


@pytest.fixture
def guess():
    """The environment of one's own that the page on environments writes."""
    page = blocks(ROOT / "docs" / "environments.md", ("python",))
    (code,) = (block for block in page if "class Guess" in block)
    names: dict[str, object] = {}
    exec(compile(code, "environments.md", "exec"), names)
    return names["Guess"]()


def test_the_environment_that_the_page_writes_is_won_by_halving(guess):
    cases = {split: guess.cases(split) for split in ("train", "validation", "test")}
    assert sorted(case for part in cases.values() for case in part) == list(range(100))
    for case in cases["test"]:
        guess.reset(case)
        low, high = 1, 100
        step = guess.step(f"{(low + high) // 2}.")
        while not step.done:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if step.observation == "higher" else (low, middle - 1)
            step = guess.step(str((low + high) // 2))
        assert step.rewards["found"] == 1.0 and 0.7 < step.reward <= 1.0
    guess.reset(0)
    assert guess.fork().reset(1) and guess.step("no idea").reward == 0.0


def test_the_environment_that_the_page_writes_can_be_trained_in(guess, new_nano, tmp_path):
    from qagent_mlx.policy.small_llama import save_base
    from qagent_mlx.train.grpo_config import GrpoConfig
    from qagent_mlx.train.text_grpo import train_in_text, trainable

    made, tokenizer, config = new_nano()
    save_base(made, tokenizer, config, tmp_path / "base")
    settings = GrpoConfig(steps=1, cases_per_step=2, group=2, measured=2)
    result = train_in_text(trainable(tmp_path / "base"), guess, settings)
    assert result.validation.keys() == {"reward", *guess.weights}


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


def test_the_tutorials_exports_go_in_as_it_says(tmp_path, monkeypatch):
    """What it types, from the empty shop to the events, says what it shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAGENT_SHOP", "laden")
    page = ROOT / "docs" / "tutorial.md"
    make = runpy.run_path(str(ROOT / "docs" / "examples" / "make_exports.py"))
    make["write_exports"](Path("exporte"), 3000)
    typed = [words for code in blocks(page, SHELL) for words in commands(code)]
    shown = [re.sub(r"\s+", " ", block).strip() for block in blocks(page, ("text",))]
    said = []
    for words in typed:
        if words[:2] in (["qagent", "init"], ["qagent", "ingest"]):
            result = CliRunner().invoke(cli, words[1:])
            said.append(re.sub(r"\s+", " ", result.output))
    assert len(said) == 4 and len(shown) == 3
    for expected, output in zip(shown, said[1:], strict=True):
        assert expected in output
    ((header, row),) = [block.splitlines() for block in blocks(page, ("csv",))]
    lines = Path("exporte/artikel.csv").read_text(encoding="cp1252").splitlines()
    assert lines[:2] == [header, row]


def test_the_parts_of_ones_own_fit(tmp_path, monkeypatch):
    """The page's rewards judge a chain, its encoder encodes, its engines are settings."""
    from qagent_mlx.agent.types import Rollout
    from qagent_mlx.environment.custom_rewards import components_of
    from qagent_mlx.environment.rewards import Outcome
    from qagent_mlx.inventory.encoders.registry import PythonEncoder
    from qagent_mlx.inventory.product_search import ENGINES
    from qagent_mlx.shop.config import ShopConfig
    from qagent_mlx.types import Case
    from qagent_mlx.utils.settings import merge

    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "extend.md"
    rewards, encoder = blocks(page, ("python",))
    Path("rewards.py").write_text(rewards, encoding="utf-8")
    Path("mine.py").write_text(encoder, encoding="utf-8")
    components = components_of(["rewards.py:choice", "rewards.py:brief"])
    rollout = SimpleNamespace(query="desk lamp")
    outcome = SimpleNamespace(rollout=rollout, products=("p1", "p2"))
    assert components["choice"](outcome) == 0.2 and components["brief"](outcome) == 0.5
    held = page.read_text("utf-8").split("What an outcome holds:")[1].split("The reward is")[0]
    for name in re.findall(r"`(\w+)`", held):
        assert any(hasattr(kind, name) for kind in (Outcome, Rollout, Case)), name
    vectors = PythonEncoder("mine.py:encode").encode(["lamp", "a"], queries=True)
    assert vectors.shape == (2, 256)
    for code in blocks(page, ("json",)):
        engine = merge(ShopConfig(), json.loads(code)).search.engine
        settings, _ = ENGINES[engine.pop("kind")]
        assert merge(settings(), engine) != settings()
