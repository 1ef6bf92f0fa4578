from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request

import click
import duckdb
import pytest
from qagent_cli.examples import read_examples
from qagent_cli.main import cli as root

from qagent_mlx.policy.small_llama import save_base

EXAMPLES = read_examples()


@pytest.fixture(scope="module")
def folder(tiny_folder, new_nano, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli-served") / "shop"
    shutil.copytree(tiny_folder, path)
    save_base(*new_nano(), path / "policies" / "nano")
    return path


def test_bulk_writes_a_file_and_reports_it(cli, folder, tmp_path):
    out = tmp_path / "all.parquet"
    options = ("--shop", folder, "--group", 1, "-k", 2)
    report = cli.json("recommend", "--all", "--out", out, *options)
    assert report["users"] == 30 and report["users_per_s"] > 0
    counted = duckdb.sql(f"SELECT count(*), count(DISTINCT user_id) FROM '{out}'").fetchall()[0]
    assert counted == (report["recommendations"], 30 - report["empty"])
    ids = tmp_path / "ids.txt"
    ids.write_text("u01\nsomebody new\n")
    shard = cli.run("recommend", "--users", ids, "--out", out, "--shard", "2/2", *options)
    assert "for 1 users" in shard.stdout
    assert duckdb.sql(f"SELECT DISTINCT user_id FROM '{out}'").fetchall() == [("somebody new",)]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("u01", "--all"),
        ("--all",),
        ("u01", "--out", "x.parquet"),
        ("u01", "--shard", "1/2"),
        ("--all", "--out", "x.parquet", "--shard", "3/2"),
        ("--all", "--out", "x", "--chains"),
    ],
)
def test_bulk_options_that_make_no_sense_are_wrong_usage(cli, folder, options):
    cli.run("recommend", *options, "--shop", folder, code=2)


def test_serve_refuses_the_world_without_a_token(cli, folder):
    assert "token" in cli.error("serve", "--host", "0.0.0.0", "--shop", folder)


def test_a_server_process_answers_and_stops_cleanly(folder):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "qagent_mlx",
            "serve",
            "--shop",
            str(folder),
            "--port",
            "0",
            "--read-only",
            "--chains",
            "1",
            "--deadline",
            "30000",
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        said = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", said)[0]
        request = urllib.request.Request(
            f"{address}/recommend",
            json.dumps({"user": "u01"}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["policy"] == "nano"
        process.send_signal(signal.SIGHUP)
        with urllib.request.urlopen(f"{address}/healthz", timeout=60) as answer:
            assert json.load(answer)["status"] == "ok"
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
    assert "Traceback" not in rest
    assert "route=/recommend status=200" in rest


def test_the_module_is_the_command(folder):
    done = subprocess.run(
        [sys.executable, "-m", "qagent_mlx", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("qagent ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_each_shell(cli, shell):
    script = cli.run("completion", shell).stdout
    assert "_QAGENT_COMPLETE" in script and "qagent" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def offered(line, **variables):
    """What Tab offers for the last word of a command line."""
    environment = {
        **os.environ,
        "_QAGENT_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-m", "qagent_mlx"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return [item.removeprefix("plain,") for item in done.stdout.split()]


def test_the_shell_is_offered_commands():
    assert offered("qagent se") == ["search", "serve"]


def test_the_shell_is_offered_the_names_that_a_shop_has(tmp_path):
    files = ("grpo/1/policy.json", "old/policy.json", "torn/1/x", "grpo/.2.json")
    for name in (*(f"policies/{file}" for file in files), "runs/first/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert offered(f"qagent recommend --shop {tmp_path} --policy ") == [
        *("grpo", "grpo@1", "old", "old@1", "promoted", "sample")
    ]
    assert offered("qagent runs show ", QAGENT_SHOP=str(tmp_path)) == ["first"]
    assert offered("qagent runs show ") == []
    assert offered(f"qagent abtest --shop {tmp_path} --control g") == ["grpo", "grpo@1"]
    assert "swing" in offered("qagent evaluate --baseline s")


def commands(group, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_every_command_has_examples_in_its_help_and_no_other_has():
    found = {" ".join(path): command for path, command in commands(root)}
    assert set(EXAMPLES) == set(found)
    for path, command in found.items():
        text = click.Context(command).get_help() if command else ""
        for line in EXAMPLES[path]:
            assert line in text, path


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_the_options_of_every_example_exist(line):
    if "qagent " not in line or "$(" in line.split("qagent ")[0] + "qagent":
        return
    words = shlex.split(line.split("qagent ", 1)[1], comments=True)
    words = words[: words.index(">")] if ">" in words else words
    command, name = root, "qagent"
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        if command.name == "memory" and words and words[0] not in command.commands:
            words = ["show", *words]
        name = words.pop(0)
        command = command.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group) and not words:
            return
    command.make_parser(click.Context(command)).parse_args(list(words))


def test_a_policy_that_learned_chances_is_not_said_to_lack_them_of_a_new_user():
    from cli.recommend import _about_chances

    unknown, known = {"chance": None}, {"chance": 0.2}
    assert "no chance was learned for this policy" in _about_chances([unknown], False)
    assert "users with a history" in _about_chances([unknown, unknown], True)
    assert _about_chances([unknown, known], True).startswith("chance: ")
