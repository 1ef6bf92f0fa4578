"""The documents agree with the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import click
import pytest
from qagent_cli.options import SettingOption

from qagent_mlx.utils.settings import describe

ROOT = Path(__file__).parents[1]
GENERATOR = runpy.run_path(str(ROOT / "docs" / "reference" / "generate.py"))


@pytest.mark.parametrize(
    ("page", "script"),
    [("settings", "generate"), ("commands", "commands_page"), ("http", "http_page")],
)
def test_the_reference_pages_are_up_to_date(page, script):
    folder = ROOT / "docs" / "reference"
    written = (folder / f"{page}.md").read_text(encoding="utf-8")
    reference = runpy.run_path(str(folder / f"{script}.py"))["reference"]
    assert written == reference(), "run: make reference"


@pytest.mark.parametrize("path", [path for _, _, path in GENERATOR["SECTIONS"]])
def test_every_setting_says_what_it_is_in_a_sentence(path):
    for setting in describe(GENERATOR["settings_class"](path)):
        assert setting.description.endswith("."), f"{path}: {setting.name}"
        assert setting.description[0].isupper(), f"{path}: {setting.name}"


def test_the_classes_of_all_options_are_on_the_reference_page():
    on_page = {GENERATOR["settings_class"](path) for _, _, path in GENERATOR["SECTIONS"]}
    for command in GENERATOR["commands"]():
        for option in command.params:
            if isinstance(option, SettingOption) and option.settings is not None:
                ours = option.settings.__module__.startswith("qagent_mlx")
                assert option.settings in on_page or not ours, option.settings


def test_every_option_has_a_help_that_stands_alone():
    options = [
        (command.name, option)
        for command in GENERATOR["commands"]()
        for option in command.params
        if isinstance(option, click.Option)
    ]
    assert len(options) > 200
    for name, option in options:
        text = (option.help or "").split("  [")[0]
        assert text.endswith(".") and text[0].isupper(), f"{name} {option.opts[0]}: {text!r}"


def test_the_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:[\w.]+/)+[\w.]*|[\w]+\.(?:py|toml))`", text)
    assert len(paths) > 30
    for path in paths:
        places = (ROOT / path, ROOT / "qagent_mlx" / path)
        assert any(place.exists() for place in places), path


def test_the_names_that_contributing_gives_are_in_the_code():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = ("qagent_mlx", "cli")
    code = "\n".join(p.read_text("utf-8") for f in folders for p in (ROOT / f).rglob("*.py"))
    names = re.findall(r"`([A-Z][A-Za-z_]+|_\w+|[a-z]\w*_\w+)`", text)
    assert len(names) > 20
    for name in names:
        assert name in code or (ROOT / name).exists(), name


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<!\[)`(?!T/)((?:[\w.]+/)*\w+\.py)`", text):
        folders = (ROOT, ROOT / "qagent_mlx", ROOT / "tests" / "benchmarks", ROOT / "tests")
        assert any((folder / path).exists() for folder in folders), f"{page.name}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_the_tests_that_the_page_on_faults_names_exist():
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"(?<=[` ])T/([\w/.]+?\.py)", text)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / "tests" / path).exists()] == []


def test_the_first_page_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900


def numbers(text):
    """The numbers that a text claims: in prose and tables, not in code, links or names (u0495)."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`|\]\([^)]*\)", "", text, flags=re.S | re.M)
    return re.findall(r"(?<![\w.:/-])\d(?:[\d,.]*\d)?(?!\w)", text)


def test_what_counts_as_a_number():
    text = (
        "[1.5 of 1,240](x#3) in `u04 7`, u05, 2,000, GA4, 20%.\n```bash\nseq 8\n```\n| 4.5 [3, 6] |"
    )
    assert numbers(text) == ["1.5", "1,240", "2,000", "20", "4.5", "3", "6"]


def test_the_first_page_has_few_numbers():
    assert len(numbers((ROOT / "README.md").read_text(encoding="utf-8"))) <= 40


def heading_anchor(title):
    """The anchor that GitHub and the site give a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def test_each_page_of_results_answers_a_question_that_the_first_one_lists():
    folder = ROOT / "docs" / "results"
    index = (folder / "index.md").read_text(encoding="utf-8")
    for page in folder.glob("*.md"):
        if page.name != "index.md":
            text = page.read_text(encoding="utf-8")
            title, answer = text.split("\n\n")[:2]
            assert re.fullmatch(r"# .+\?", title), page.name
            assert answer.startswith("**") and len(answer.split()) <= 110, page.name
            assert f"[{title[2:]}]({page.name})" in index
            assert re.search(r"20\d\d-\d\d-\d\d", text), f"{page.name} says no day"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            there = (page.parent / target).read_text(encoding="utf-8") if target else text
            titles = re.findall(r"^#{1,6} (.+)$", there, re.M)
            assert anchor in map(heading_anchor, titles), f"{page.name}: {target}#{anchor}"


def test_every_page_has_a_place_in_the_site():
    named = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M))
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert named == pages


def test_every_decision_says_what_why_and_when_to_look_again():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "index.md").read_text(encoding="utf-8")
    for page in folder.glob("*.md"):
        if page.name != "index.md":
            assert f"({page.name})" in index
            text = page.read_text(encoding="utf-8")
            for part in ("**Decided", "**Why", "**Look again"):
                assert part in text, f"{page.name}: {part}"
            assert len(text.split()) <= 700, page.name


def test_the_changelog_is_one_that_tools_read():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.+)$", text, re.M)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", v) for v in versions[1:])
    for part in re.split(r"^## .+$", text, flags=re.M)[1:]:
        kinds = re.findall(r"^### (.+)$", part, re.M)
        assert len(kinds) == len(set(kinds))
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_python_of_the_first_page_uses_public_names():
    import qagent_mlx

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    compile(code, "README.md", "exec")
    for name in re.findall(r"\bqa\.(\w+)", code):
        assert name in dir(qagent_mlx), name


def test_numbers_of_the_first_page_are_compared_with_what_was_measured():
    check = runpy.run_path(str(ROOT / "docs" / "check_readme.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    systems = []
    for label, name in check["SYSTEMS"].items():
        (row,) = re.findall(rf"^\| {re.escape(label)}.*$", text, re.M)
        metrics = {}
        for metric, cell in zip(check["METRICS"], row.strip("|").split("|")[1:], strict=True):
            mean, low, high = (float(number) / 100 for number in re.findall(r"[\d.]+", cell))
            metrics[metric] = {"mean": mean, "lo": low, "hi": high}
        systems.append({"name": name, "metrics": metrics})
    report = {"cases": 1240, "systems": systems}
    assert check["differences"](text, report) == []
    systems[0]["metrics"]["q_em"]["mean"] += 0.001
    assert len(check["differences"](text, report)) == 1


def test_every_list_of_commands_says_whole_sentences():
    for command in GENERATOR["commands"]():
        if isinstance(command, click.Group):
            text = command.get_help(click.Context(command, info_name=command.name))
            assert "..." not in text.split("Commands:")[-1].split("Presets:")[0], command.name
            assert "Commands:" in text
