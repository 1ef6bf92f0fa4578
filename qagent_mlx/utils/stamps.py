"""Who and when, as what is stored notes it."""

from __future__ import annotations

import getpass
from datetime import datetime, timezone


def utc_now() -> datetime:
    """The time of day, in UTC without a zone."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


def user_name() -> str:
    """The user of this machine; ``unknown`` in a container whose user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
