"""Which policy of a shop is promoted, and which ones were: a history that only grows.

It lies in ``policies/.promotions.json`` and is replaced as a whole, so a reader sees a promotion
or does not; whoever watches it looks at `stamp`.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.atomic_files import read_json, write_json
from ..utils.stamps import user_name

FORMAT = 1
PROMOTIONS = ".promotions.json"  # the file's name


@dataclass(frozen=True, slots=True)
class Promotion:
    """A change of the promoted policy.

    Attributes:
        policy: The promoted one from then on, as ``NAME@N``; empty for none.
        previous: The one before.
        action: ``remove`` where the promoted policy itself was removed.
        at: When, in UTC.
        by: Who, as user@machine.
    """

    policy: str
    previous: str
    action: Literal["promote", "rollback", "remove"]
    at: str
    by: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def promotions(shop: Shop) -> list[Promotion]:
    """All changes of the promoted policy, oldest first.

    Raises:
        QAgentError: the file is damaged.
    """
    path = shop.path / "policies" / PROMOTIONS
    if not path.exists():
        return []
    values = read_json(path, "the list of promotions")
    try:
        if values["format"] != FORMAT:
            raise QAgentError(
                f"{path} was written by a newer version; run: pip install --upgrade qagent-mlx"
            )
        return msgspec.convert(values["promotions"], list[Promotion])
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise QAgentError(
            f"{path} is damaged ({error}); delete it, then promote a policy again"
        ) from error


def promoted(shop: Shop) -> str:
    """The promoted policy as ``NAME@N``; empty where none is."""
    history = promotions(shop)
    return history[-1].policy if history else ""


def before_promoted(shop: Shop) -> list[str]:
    """The policies promoted before the present one that were not rolled back, latest first."""
    stack: list[str] = []
    for change in promotions(shop):
        if change.action == "promote":
            stack.append(change.policy)
            continue
        stack.pop()
        # Others than the promoted one may have been removed in between: they are passed over.
        while stack and stack[-1] != change.policy:
            stack.pop()
    return stack[-2::-1]


def record(shop: Shop, policy: str, action: Literal["promote", "rollback", "remove"]) -> Promotion:
    """Add a change to the history, under the lock of the policies."""
    history = promotions(shop)
    previous = history[-1].policy if history else ""
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    change = Promotion(policy, previous, action, at, _who())
    values = [entry.to_dict() for entry in (*history, change)]
    path = shop.path / "policies" / PROMOTIONS
    write_json(path, {"format": FORMAT, "promotions": values})
    return change


def stamp(shop: Shop) -> tuple[int, int] | None:
    """Differs after a change of the promoted policy; None before the first."""
    try:
        status = (shop.path / "policies" / PROMOTIONS).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _who() -> str:
    return f"{user_name()}@{platform.node()}"
