"""A process that is started beside this one runs nothing of the folder that it is started in."""

import subprocess

from qagent_cli.options import PROGRAM

from qagent_mlx.serve.decode_process import WorkerProcess
from qagent_mlx.utils.child_process import module_command

PLANTED = ("qagent_mlx", "qagent_cli", "json", "pip", "venv", "runpy", "numpy", "mlx", "duckdb")


def plant(folder, monkeypatch):
    for name in PLANTED:
        text = f"open({str(folder / 'run.txt')!r}, 'a').write({name!r})\n"
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)


def test_no_command_runs_files_of_the_folder_it_is_started_in(tmp_path, monkeypatch):
    plant(tmp_path, monkeypatch)
    for command in ([*PROGRAM, "--help"], [*module_command("venv"), "--help"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "usage" in done.stdout.lower()
    assert not (tmp_path / "run.txt").exists()


def test_nor_does_a_process_that_decodes(tmp_path, monkeypatch):
    plant(tmp_path, monkeypatch)
    process = WorkerProcess(tmp_path / "shop", tmp_path / "policy", "")
    try:
        error = process.ready.exception(60)
    finally:
        process.kill()
    assert "there is no shop in" in str(error)
    assert not (tmp_path / "run.txt").exists()
