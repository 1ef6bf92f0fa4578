"""What a user has named: no shop, run or policy from others chooses what is run or reached.

A shop's settings may name a Python function as its encoder, a search engine's address and the
environment variables that are sent to it; a run names the files of its rewards. Each is taken only
if this user has named it before, on a command line or in a call. What they have named is kept in
their configuration (``trusted.json``), outside of every shop: a file by its path, with the hash of
its content; an address by its text, with the variables that may be sent there.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from pathlib import Path

from ..errors import QAgentError
from .atomic_files import hash_file, read_json, require_plain_file, write_json
from .text import clean

COMMAND = "qagent trust"


def _record_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "qagent" / "trusted.json"


def _read_record() -> dict[str, str | list[str]]:
    path = _record_path()
    stored = read_json(path, "the record of what you trust") if path.exists() else {}
    return stored if isinstance(stored, dict) else {}


def _write_record(record: dict[str, str | list[str]]) -> None:
    _record_path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(_record_path(), record)


def trusted_files() -> dict[str, str]:
    """The trusted Python files, each with the hash that its content had."""
    return {path: value for path, value in _read_record().items() if isinstance(value, str)}


def trusted_addresses() -> dict[str, list[str]]:
    """The trusted addresses, each with the environment variables that may be sent there."""
    return {
        address: [variable for variable in value if isinstance(variable, str)]
        for address, value in _read_record().items()
        if isinstance(value, list)
    }


def trust_file(path: Path) -> None:
    """Trust a Python file as it is now: its user has just named it."""
    record, key = _read_record(), str(path.resolve())
    if record.get(key) != hash_file(path):
        _write_record({**record, key: hash_file(path)})


def require_file(path: Path, owner: str, remedy: str) -> None:
    """Refuse a Python file that its user has not named, or that has changed since.

    ``owner`` names it in the message; ``remedy`` says how to do without.
    """
    require_plain_file(path, owner)
    if trusted_files().get(str(path.resolve())) != hash_file(path):
        raise QAgentError(
            clean(
                f"{owner} would run {path}, which you have not named as it is now; read it, then "
                f"run: {COMMAND} {shlex.quote(str(path))}; or {remedy}"
            )
        )


def trust_address(address: str, variables: Collection[str] = ()) -> None:
    """Trust an address, and let the values of environment variables be sent there.

    Variables that were named for it before stay.
    """
    record = _read_record()
    known = trusted_addresses().get(address)
    named = sorted({*(known or ()), *variables})
    if known != named:
        _write_record({**record, address: named})


def require_address(address: str, variables: Collection[str], owner: str, remedy: str) -> None:
    """Refuse an address, or variables that would be sent there, which its user has not named.

    ``owner`` names who asks for it in the message; ``remedy`` says how to do without.
    """
    known = trusted_addresses().get(address)
    if known is not None and set(variables) <= set(known):
        return
    sends = f" and send it the variable {' and '.join(variables)}" if variables else ""
    command = shlex.join([*COMMAND.split(), address, *variables])
    raise QAgentError(
        clean(
            f"{owner} would connect to {address}{sends}, which you have not named; "
            f"if you know that place, run: {command}; else {remedy}"
        )
    )


def distrust(name: str) -> None:
    """Trust a file or an address no longer.

    Raises:
        QAgentError: it was not trusted.
    """
    record = _read_record()
    key = name if name in record else str(Path(name).resolve())
    if key not in record:
        raise QAgentError(f"{name} is not trusted; {COMMAND} lists what is")
    _write_record({other: value for other, value in record.items() if other != key})
