"""The identity line written by a language model, for shops that want prose instead of marks.

Off by default. Any mlx-lm model will do. The model reads facts of the user's state (never the log
itself) and writes one line, which is kept in a file by the hash of model and facts: a profile costs
a generation only when the facts have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..protocol.escape import safe
from ..protocol.marks import AGES, OUTCOMES
from ..utils.atomic_files import read_json, write_json
from .user_state import UserState

MAX_WORDS = 16  # of a line
PROMPT = """\
Facts about a shopper:
{facts}
Describe the shopper in one short line of at most twelve words, without a name.
Line:"""


@dataclass(frozen=True)
class Summarizer:
    """Writes one line about a user from facts."""

    write: Callable[[str], str]  # the same prompt must give the same text
    model: str  # fingerprint of the model that writes; another model writes anew
    folder: Path  # keeps the lines: one file each, named by the hash

    def line(self, user: str, state: UserState) -> str:
        """The line; empty where the model wrote nothing or nothing is known of the user."""
        facts = summary_facts(state)
        if not facts:
            return ""
        prompt = PROMPT.format(facts="\n".join(f"- {fact}" for fact in facts))
        digest = hashlib.sha256(json.dumps([self.model, user, prompt]).encode()).hexdigest()[:32]
        path = self.folder / f"{digest}.json"
        if path.exists():
            return str(read_json(path, "a kept summary")["line"])
        # A model may go on: only its first line counts, and it can form no tag.
        written = next((x for x in self.write(prompt).splitlines() if x.strip()), "")
        line = " ".join(safe(written).split()[:MAX_WORDS])
        write_json(path, {"user": user, "model": self.model, "line": line})
        return line


def summary_facts(state: UserState) -> list[str]:
    """What the model reads: coarse, so that it does not change from hour to hour."""
    activity = state.activity
    if activity is None:
        return []
    facts = [
        f"{_about(activity.events)} events in {_about(activity.sessions)} visits, "
        f"{_about(activity.purchases)} purchases"
    ]
    if activity.purchase_gaps >= 2:
        facts.append(f"buys every {AGES.word(activity.purchase_gap or 0.0)}")
    facts.append(f"last seen: {AGES.word(activity.days_away)}")
    for kind in ("category", "brand", "attribute", "price"):
        liked = [i for i in state.interests if i.kind == kind and i.share >= 0.2][:3]
        if liked:
            shares = ", ".join(f"{safe(i.name)} {round(i.share, 1):.0%}" for i in liked)
            facts.append(f"{kind}: {shares}")
    for query in state.queries[:4]:
        facts.append(f"searched {safe(query.text)}: {OUTCOMES[query.last_outcome]}")
    return facts


def _about(number: int) -> str:
    """A number to one digit: 3, about 40, about 700."""
    digits = len(str(number)) - 1
    return str(number) if not digits else f"about {round(number, -digits)}"


def summary_files(folder: Path, user: str) -> list[Path]:
    """The files of kept lines about a user."""
    if not folder.exists():
        return []
    paths = sorted(folder.glob("*.json"))
    return [path for path in paths if read_json(path, "a kept summary").get("user") == user]
