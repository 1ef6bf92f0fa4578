from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_imports_go_down_the_floors_and_in_no_circle(monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1])  # the contracts are in pyproject.toml
    status = lint_imports(no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out
