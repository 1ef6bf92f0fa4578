from __future__ import annotations

import io
import json
import subprocess
import sys

import click
import pytest
from qagent_cli.main import COMMANDS
from qagent_cli.main import cli as root

HEAVY = ("mlx", "duckdb", "numpy", "rich")


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from qagent_cli.main import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {(*HEAVY, 'qagent_mlx')!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(name):
    code = (
        "import sys\n"
        "from qagent_cli.main import cli\n"
        f"try:\n    cli([{name!r}, '--help'])\nexcept SystemExit as end:\n    print(end.code)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"]


def test_every_command_has_the_help_that_the_list_promises():
    context = click.Context(root)
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None and command.name == name
        assert command.help


def test_version(cli):
    assert cli.run("--version").stdout.startswith("qagent ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("search",),
        ("search", "tent", "-k", "0"),
        ("memory", "ann", "--as-of", "soon"),
        ("ingest", "products"),
        ("train", "grpo", "--advantage", "ppo"),
    ],
)
def test_wrong_usage_exits_with_2(cli, arguments):
    result = cli.run(*arguments, code=2)
    assert result.stdout == ""
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("recomend", "ann"), "'recommend'"),
        (("rec",), "'recommend'"),
        (("promote", "grpo"), "'policies promote'"),
        (("rollouts",), "'runs rollouts'"),
        (("policies", "promot"), "'promote'"),
        (("memory", "forgt", "ann"), "'forget'"),
        (("recommend", "ann", "--polcy", "sft"), "'--policy'"),
    ],
)
def test_a_mistyped_word_is_told_what_may_have_been_meant(cli, words, meant):
    result = cli.run(*words, code=2)
    assert f"Did you mean {meant}?" in result.stderr and result.stdout == ""


def test_a_word_that_is_near_to_nothing_gets_no_guess(cli):
    assert cli.run("xyzzy", code=2).stderr.splitlines()[-1] == "Error: No such command 'xyzzy'."


def test_interrupt_exits_with_130_and_one_line(cli, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("qagent_mlx.utils.doctor.examine_environment", interrupt)
    result = cli.run("doctor", code=130)
    assert (result.stdout, result.stderr) == ("", "Interrupted.\n")


def test_database_and_file_errors_are_one_line(cli, monkeypatch):
    import duckdb

    for raised, expected in (
        (duckdb.InvalidInputException("Invalid Input Error: first\nLINE 1: second"), "first"),
        (
            duckdb.OutOfMemoryException("Out of Memory Error: failed to pin block\nsecond"),
            "the database needs more memory; set QAGENT_DATABASE_MEMORY, which is 1GB, to more",
        ),
        (PermissionError(13, "Permission denied", "/some/\x1b[31mfile"), "/some/ [31mfile"),
        (ModuleNotFoundError("No module named 'mlx'", name="mlx"), "mlx is not installed"),
    ):

        def fail(error=raised):
            raise error

        monkeypatch.setattr("qagent_mlx.utils.doctor.examine_environment", fail)
        line = cli.error("doctor")
        assert expected in line and "second" not in line and "\x1b" not in line


def test_a_closed_pipe_ends_quietly(built):
    command = (
        f"{sys.executable} -c 'from qagent_cli.main import cli; cli()' search tent --json "
        f"--shop {built} | true"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_doctor_has_its_keys(cli, monkeypatch):
    monkeypatch.setattr("qagent_mlx.utils.doctor.gemm_gflops", lambda: (100.0, 110.0))
    report = cli.json("doctor")
    assert {"device", "blas", "gemm_gflops", "numpy_gemm_gflops", "mlx", "mlx_lm", "ok"} <= set(
        report
    )
    assert json.dumps(report)
    assert "matrix products" in cli.run("doctor").stdout


def test_nothing_moves_in_a_notebooks_cell(monkeypatch):
    from qagent_cli import console

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    for jupyter in ("", "1"):
        if jupyter:
            monkeypatch.setenv("JPY_PARENT_PID", jupyter)
        else:
            monkeypatch.delenv("JPY_PARENT_PID", raising=False)
        assert console.err().is_terminal != bool(jupyter)
        with console.waiting("reading"):
            pass
        assert ("reading" in sys.stderr.getvalue()) != bool(jupyter)
        sys.stderr.truncate(0)
