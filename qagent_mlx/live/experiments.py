"""Experiments: two systems share the users of a server, each user one system for the whole time.

Or they share each answer (``interleave``, see `interleaving`), which takes fewer users.

An arm is ``agent`` (the policy that recommends), ``memory`` (the user's memory without a chain),
or a policy of the shop. Who gets which follows from the user's id and the experiment's salt, so a
restart, or another process, changes nobody's arm.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import fetch_dicts
from ..utils.stamps import user_name

AGENT, MEMORY = "agent", "memory"
Arm = Literal["control", "treatment"]
Kind = Literal["split", "interleave"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


@dataclass(frozen=True, slots=True)
class Experiment:
    """Two systems, and the share of users that gets the second one."""

    name: str
    control: str
    treatment: str
    share: float  # of the users, who get the treatment
    salt: str
    started: datetime  # in the shop's time, see `limits.shop_time`
    stopped: datetime | None = None
    author: str = ""
    kind: Kind = "split"

    def arm(self, user: str) -> Arm:
        """The arm of a user."""
        digest = hashlib.sha256(f"{self.salt}\n{user}".encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        return "treatment" if place < self.share else "control"

    def systems(self, user: str) -> tuple[str, ...]:
        """The system that a user gets; control and treatment where both share each answer."""
        if self.kind == "interleave":
            return (self.control, self.treatment)
        return (self.treatment if self.arm(user) == "treatment" else self.control,)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them; without the salt, which would tell everybody's arm."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        del values["salt"]
        return values


def experiments(shop: Shop) -> list[Experiment]:
    """The experiments of a shop, the oldest first."""
    if not shop.has_table("experiments"):
        return []
    rows = fetch_dicts(shop.connection.execute("SELECT * FROM experiments ORDER BY started, name"))
    return [Experiment(**{**row, "kind": row.get("kind") or "split"}) for row in rows]


def running(shop: Shop) -> Experiment | None:
    """The experiment that runs now; None where none does."""
    return next((e for e in experiments(shop) if e.stopped is None), None)


def find_experiment(shop: Shop, name: str | None) -> Experiment:
    """An experiment by its name; by default the one that runs, else the last one.

    Raises:
        QAgentError: there is none.
    """
    known = experiments(shop)
    if name is None and known:
        return running(shop) or known[-1]
    for experiment in known:
        if experiment.name == name:
            return experiment
    names = ", ".join(e.name for e in known) or "none"
    raise QAgentError(
        f"there is no experiment{f' {name}' if name else ''} (known: {names}); begin one with: "
        "qagent experiment start NAME"
    )


def start_experiment(
    shop: Shop,
    name: str,
    control: str,
    treatment: str,
    share: float,
    now: datetime,
    kind: Kind = "split",
) -> Experiment:
    """Let two systems share the users from now on; ``shop`` is open for writing.

    Raises:
        QAgentError: another one runs, the name is taken, or nothing would be compared.
    """
    if control == treatment:
        raise QAgentError("control and treatment are the same; name two different systems")
    other = running(shop)
    if other is not None:
        raise QAgentError(
            f"the experiment {other.name} runs; stop it first: qagent experiment stop"
        )
    if not _NAME.fullmatch(name):
        raise QAgentError(f"{name!r} cannot name an experiment; use letters, digits, - and _")
    if any(experiment.name == name for experiment in experiments(shop)):
        raise QAgentError(f"there was an experiment {name} already; choose another name")
    if not 0 < share < 1:
        raise QAgentError("the share must lie between 0 and 1")
    author = user_name()
    salt = secrets.token_hex(8)
    made = Experiment(name, control, treatment, share, salt, now, author=author, kind=kind)
    with shop.transaction() as connection:
        connection.execute(
            """INSERT INTO experiments
            (name, control, treatment, share, salt, started, author, kind)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
            [name, control, treatment, share, salt, made.started, author, kind],
        )
    return made


def stop_experiment(shop: Shop, now: datetime) -> Experiment:
    """End the experiment that runs; everybody gets the serving system again.

    Raises:
        QAgentError: none runs.
    """
    experiment = running(shop)
    if experiment is None:
        raise QAgentError("no experiment runs; see the last one with: qagent experiment report")
    with shop.transaction() as connection:
        connection.execute(
            "UPDATE experiments SET stopped = ? WHERE name = ?", [now, experiment.name]
        )
    return find_experiment(shop, experiment.name)
