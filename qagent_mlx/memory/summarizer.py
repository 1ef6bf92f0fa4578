"""The identity line written by a language model, for shops that want prose instead of marks.

Off by default. Any mlx-lm model will do. The model is told facts from the user's rows (never
the log itself) and writes one line; what it wrote is kept by the hash of model and facts, so
a profile costs a generation only when the facts have changed.
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
from .types import UserMemory

WORDS = 16  # a line is cut after so many
PROMPT = """\
Facts about a shopper:
{facts}
Describe the shopper in one short line of at most twelve words, without a name.
Line:"""


@dataclass(frozen=True)
class Summarizer:
    """Writes one line about a user from facts.

    Args:
        write: Turns a prompt into text; the same prompt must give the same text.
        model: Which model writes: its fingerprint, so that another one writes anew.
        folder: Where lines are kept: one file each, named by the hash.
    """

    write: Callable[[str], str]
    model: str
    folder: Path

    def line(self, user: str, rows: UserMemory) -> str:
        """The line, or an empty text where the model wrote nothing or nothing is known."""
        facts = summary_facts(rows)
        if not facts:
            return ""
        prompt = PROMPT.format(facts="\n".join(f"- {fact}" for fact in facts))
        digest = hashlib.sha256(json.dumps([self.model, user, prompt]).encode()).hexdigest()[:32]
        path = self.folder / f"{digest}.json"
        if path.exists():
            return str(read_json(path, "a kept summary")["line"])
        # A model may go on: only its first line counts, and it can form no tag.
        written = next((x for x in self.write(prompt).splitlines() if x.strip()), "")
        line = " ".join(safe(written).split()[:WORDS])
        write_json(path, {"user": user, "model": self.model, "line": line})
        return line


def summary_facts(rows: UserMemory) -> list[str]:
    """What the model is told: coarse, so that it does not change from hour to hour."""
    if not rows.state.identity:
        return []
    events, sessions, purchases, away, gap, gaps = rows.state.identity[0]
    facts = [f"{_about(events)} events in {_about(sessions)} visits, {_about(purchases)} purchases"]
    if gaps >= 2:
        facts.append(f"buys every {AGES.word(gap)}")
    facts.append(f"last seen: {AGES.word(away)}")
    for kind in ("category", "brand", "attribute", "price"):
        liked = [(n, s) for k, n, _, s in rows.state.nodes if k == kind and s >= 0.2][:3]
        if liked:
            shares = ", ".join(f"{safe(node)} {round(share, 1):.0%}" for node, share in liked)
            facts.append(f"{kind}: {shares}")
    for _, query, _, _, last, _ in rows.state.own[:4]:
        facts.append(f"searched {safe(query)}: {OUTCOMES[last]}")
    return facts


def _about(number: int) -> str:
    """A number to one digit: 3, about 40, about 700."""
    digits = len(str(number)) - 1
    return str(number) if not digits else f"about {round(number, -digits)}"


def summary_files(folder: Path, user: str) -> list[Path]:
    """The files of kept lines about a user."""
    if not folder.exists():
        return []
    return [
        path
        for path in sorted(folder.glob("*.json"))
        if read_json(path, "a kept summary").get("user") == user
    ]
