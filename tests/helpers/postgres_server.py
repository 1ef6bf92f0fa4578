"""A PostgreSQL of a test's own, where it is installed."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


def binaries():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = shutil.which("initdb")
    return found[-1].parent if found else Path(path).parent if path else None


@contextlib.contextmanager
def running_postgres(addresses=()):
    """Run a server on a socket in a temporary folder, and on addresses; gives the folder."""
    pytest.importorskip("psycopg")
    programs = binaries()
    if programs is None or sys.platform == "win32":
        pytest.skip("PostgreSQL is not installed")
    # Socket paths have to be short, and PostgreSQL does not run as root.
    folder = Path(tempfile.mkdtemp(prefix="qa-pg-"))
    lead = []
    if os.getuid() == 0:
        if not shutil.which("runuser"):
            pytest.skip("PostgreSQL does not run as root")
        try:
            shutil.chown(folder, "postgres", "postgres")
        except LookupError:
            pytest.skip("there is no user postgres to run it")
        lead = ["runuser", "-u", "postgres", "--"]

    def run(program, *arguments):
        command = [*lead, str(programs / program), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    data = folder / "data"
    run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
    if addresses:  # of networks that nobody else is in
        lines = "".join(f"host all all {address}/24 trust\n" for address in addresses)
        with (data / "pg_hba.conf").open("a") as file:
            file.write(lines)
    options = f"-k {folder} -c listen_addresses='{','.join(addresses)}' -c fsync=off"
    run("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
    try:
        yield folder
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
