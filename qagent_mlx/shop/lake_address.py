"""Addresses of lakes.

    ducklake:sqlite:PATH                 its catalog for several processes of one machine
    ducklake:postgres:host=… dbname=…    the same for several machines

A password is never part of an address, which stands in ``shop.json``: PostgreSQL's client takes it
from ``PGPASSWORD`` or ``~/.pgpass``.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import QAgentError
from ..utils.trust import trust_address

PASSWORD = "PGPASSWORD"

_ADDRESS = re.compile(r"ducklake:(sqlite|postgres):(.+)", re.DOTALL)
_SECRET = re.compile(r"(?i)\bpassword\s*=|://[^/@\s]*:[^/@\s]*@")


def parse_address(text: str) -> tuple[str, str]:
    """The kind of a lake's catalog, ``sqlite`` or ``postgres``, and where it is.

    Raises:
        QAgentError: the text is no address, or holds a password.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if not match:
        raise QAgentError(
            f"{text!r} names no lake; write ducklake:sqlite:FILE, or "
            "ducklake:postgres:host=HOST dbname=NAME user=USER"
        )
    if _SECRET.search(match[2]):
        raise QAgentError(
            "a lake's address is written into shop.json, so it may hold no password; leave it "
            f"out and set {PASSWORD}, or write it into ~/.pgpass"
        )
    return match[1], match[2]


def normal_address(text: str) -> str:
    """The address as ``shop.json`` holds it: a file by its whole path."""
    kind, place = parse_address(text)
    return f"ducklake:{kind}:{Path(place).expanduser().resolve() if kind == 'sqlite' else place}"


def name_lake(address: str) -> None:
    """Trust a lake's address, and the password for it: its user has just named it."""
    trust_address(address, [PASSWORD] if parse_address(address)[0] == "postgres" else [])
