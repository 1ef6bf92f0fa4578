from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, Literal

import click
import pytest
from click.testing import CliRunner
from msgspec import Meta
from qagent_cli import options
from qagent_cli.options import Output, json_option, opened, setting_options, with_flags

from qagent_mlx.shop.journal import JournalWriter
from qagent_mlx.utils.settings import SettingError, merge


@dataclass(frozen=True)
class Inner:
    rank: Annotated[int, Meta(ge=1, description="Rank of the adapter.")] = 16


@dataclass(frozen=True)
class Settings:
    steps: Annotated[int, Meta(ge=1, description="Training steps.")] = 100
    k: Annotated[int, Meta(ge=1, le=9, description="Queries.")] = 5
    age: Annotated[float, Meta(gt=0, description="Age.", extra={"unit": "days"})] = 2.0
    kind: Annotated[Literal["a", "b"], Meta(description="Kind of loss.")] = "a"
    clip_low: Annotated[Annotated[float, Meta(ge=0)] | None, Meta(description="Clip.")] = None
    names: Annotated[tuple[str, ...], Meta(description="Names.")] = ()
    watch: Annotated[bool, Meta(description="Whether to watch.")] = True
    fast: Annotated[bool, Meta(description="Whether to hurry.")] = False
    inner: Inner = field(default_factory=Inner)


def command_with(got, **attributes):
    """A command with these options, which appends what it gets to a list."""

    @click.command()
    @setting_options(Settings, into="given", **attributes)
    def command(given):
        got.append(given)

    return command


def run(*arguments, **attributes):
    """What such a command gets, or else what it prints."""
    got = []
    result = CliRunner().invoke(command_with(got, **attributes), arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return got[0] if got else result.output


def test_only_what_was_given_is_a_change_and_nested_settings_are_tables():
    assert run() == {}
    changes = run("--steps", "100", "-k", "3", "--rank", "4", "--names", "x", "--names", "y")
    assert changes == {"steps": 100, "k": 3, "inner": {"rank": 4}, "names": ("x", "y")}
    assert merge(Settings(), changes).inner.rank == 4


def test_a_flag_switches_a_setting_from_its_default():
    attributes = {"watch": {"flags": ("--no-watch",)}}
    assert run("--no-watch", "--fast", **attributes) == {"watch": False, "fast": True}


@dataclass(frozen=True)
class Plain:
    loud: Annotated[bool, Meta(description="Loud.")] = True
    n: Annotated[int, Meta(ge=1, description="Number.")] = 4


def test_an_instance_can_be_built():
    got = []

    @click.command()
    @setting_options(Plain, into="plain", build=True, loud={"flags": ("--quiet",)})
    def command(plain):
        got.append(plain)

    for arguments in ([], ["--quiet", "-n", "2"]):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert got == [Plain(), Plain(loud=False, n=2)]


def test_the_help_has_description_range_choices_default_and_unit():
    text = " ".join(run("--help").split())
    assert "--steps INTEGER RANGE Training steps. [default: 100; x>=1]" in text
    assert "-k INTEGER RANGE Queries. [default: 5; 1<=x<=9]" in text
    assert "--age DAYS Age. [default: 2.0; x>0]" in text
    assert "--kind [a|b] Kind of loss. [default: a]" in text
    assert "--clip-low FLOAT RANGE Clip. [x>=0]" in text
    assert "--names TEXT Names. --watch" in text  # an empty default is not shown


@pytest.mark.parametrize("arguments", [("--steps", "0"), ("--age", "0"), ("--kind", "c")])
def test_what_a_setting_cannot_be_is_wrong_usage(arguments):
    assert "Invalid value for" in run(*arguments)


@pytest.mark.parametrize(
    ("setting", "reason", "where", "line"),
    [
        ("clip_low", "must be below 1", "", "--clip-low must be below 1"),
        ("k", "needs clip_low, steps and zip_it", "", "-k needs --clip-low, steps and zip_it"),
        ("inner.rank", "must be odd", "", "--rank must be odd"),
        ("rank", "must be odd", "", "--rank must be odd"),
        ("other", "must be odd", "", "other must be odd"),
        ("steps", "must be odd", "file.toml", "file.toml: steps must be odd"),
    ],
)
def test_an_error_names_the_flags_that_set_the_settings(setting, reason, where, line):
    error = SettingError(setting, reason, where)
    assert str(with_flags(error, command_with([]))) == line


def test_an_output_is_a_document_or_drawn():
    @click.command()
    @json_option
    def command():
        return Output({"a": 1}, lambda: click.echo("drawn"))

    assert CliRunner().invoke(command, ["--json"]).output == '{\n  "a": 1\n}\n'
    assert CliRunner().invoke(command, []).output == "drawn\n"


@pytest.mark.parametrize("how", [{"write": True}, {"snapshot": True}])
def test_a_command_that_takes_long_lets_a_server_go_first(own_shop, monkeypatch, capsys, how):
    given = []
    monkeypatch.setattr(options.os, "getpriority", lambda *_: 0)
    monkeypatch.setattr(options.os, "setpriority", lambda *words: given.append(words[-1]))
    path = own_shop.path
    own_shop.close()
    with opened(path, **how):
        assert not given  # nobody serves it
    with closing(JournalWriter(path)) as writer:
        writer.append([])
        with opened(path):
            assert not given  # what reads for a moment
        with opened(path, **how):
            assert given == [options.NICENESS]
        line = f"a server of {path} goes first: this command has lowered its own priority\n"
        assert capsys.readouterr() == ("", line)

        @click.command()
        @json_option
        def command():
            with opened(path, **how):
                return Output({}, lambda: None)

        assert CliRunner().invoke(command, ["--json"]).output == "{}\n"
        assert CliRunner().invoke(command, []).output == line
