"""Start Python beside this process, so that it imports from where this process does."""

from __future__ import annotations

import sys


def python_command(program: str) -> list[str]:
    """The beginning of a command that runs a program (statements) in this Python.

    ``python -c`` and ``python -m`` look into the folder in which they are started before all other
    places: in a folder from somebody else, a file called ``json.py`` would be run. Behind this
    command arguments may follow, which the program finds in ``sys.argv[1:]``.
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}"]


def module_command(name: str) -> list[str]:
    """`python_command` of a module that is a program, as ``python -m`` runs it."""
    run = f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return python_command(f"import runpy; {run}")
