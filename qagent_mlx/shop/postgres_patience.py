"""How long a lake's PostgreSQL and the machines that use it wait for each other.

A machine without power, or behind a cable that is cut, tells nobody: it counts as gone after
`SILENT_SECONDS` without an answer and `ASK_TIMES` questions, one each `ASK_SECONDS`.
"""

from __future__ import annotations

import re

SILENT_SECONDS, ASK_SECONDS, ASK_TIMES = 10, 5, 3
CONNECT_SECONDS = 10  # until a server must have answered


def patient(place: str) -> str:
    """A PostgreSQL's place, which is given up when it does not answer for some time.

    What the place says of its own accord holds.
    """
    waits = {"connect_timeout": CONNECT_SECONDS, **_waits()}
    missing = [f"{k}={v}" for k, v in waits.items() if not re.search(rf"\b{k}\s*=", place)]
    if "://" not in place:
        return " ".join([place, *missing])
    joint = "&" if "?" in place else "?"
    return f"{place}{joint}{'&'.join(missing)}" if missing else place


def session_settings() -> dict[str, int]:
    """Settings with which PostgreSQL ends a session, and its locks, whose client is gone."""
    return {
        name if name.startswith("tcp_") else f"tcp_{name}": value
        for name, value in _waits().items()
    }


def _waits() -> dict[str, int]:
    """By the names of PostgreSQL's client; its server's begin with ``tcp_``."""
    return {
        "keepalives_idle": SILENT_SECONDS,
        "keepalives_interval": ASK_SECONDS,
        "keepalives_count": ASK_TIMES,
        # Nobody is asked while an answer is on its way to who is gone.
        "tcp_user_timeout": 1000 * (SILENT_SECONDS + ASK_SECONDS * ASK_TIMES),
    }
