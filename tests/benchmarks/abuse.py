"""Who sees what a few people put into a shop's log, under several settings of memory.

    python tests/benchmarks/abuse.py SHOP [STRANGERS]

On a copy in memory: one id that searches 500 times, eight new ids within an hour, half words, and
personal data and one phrase typed by one, three and five regulars. Then the profiles of strangers,
three and twenty-seven hours later: how many hold any of it, and how many in their first three lines.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.ranker import MemoryRanker
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import query_key

SAFE = {"least_users": 2, "new_user_hours": 24.0, "trends_by": "users"}
CARDS = {1: "4111 1111 1111 1111", 3: "5500 0000 0000 0004", 5: "3400 0000 0000 009"}
SETTINGS = {
    "as it was": {"hide_personal": False},
    "default": {},
    "safe": SAFE,
    "own only": {**SAFE, "own_only": True},
}


def main(path: Path, count: int) -> None:
    """Print a table."""
    shop = Shop.snapshot(path)
    base = shop.config.memory
    rows = shop.connection.execute(
        "SELECT user_id FROM events GROUP BY 1 HAVING count(*) > 9 ORDER BY hash(user_id)"
    ).fetchall()
    users = [user for (user,) in rows]
    ((product,),) = shop.connection.execute("SELECT min(product_id) FROM products").fetchall()
    now = shop.end_of_log()
    events, attacks = [], {}

    def typed(name: str, user: str, query: str, after: float) -> None:
        attacks[query_key(query)] = name
        at = now + timedelta(seconds=after)
        for kind, time in (("search", at), ("click", at + timedelta(seconds=5))):
            event = {"user_id": user, "type": kind, "query": query, "time": time}
            events.append({**event, "product_id": product if kind == "click" else None})

    for n in range(500):
        typed("one id, 500 times", "bot", "cheap followers here", 7 * n)
    for n in range(8):
        typed("8 new ids in an hour", f"seller{n}", "zorbal brand lamp", 400 * n)
    for people in (1, 3, 5):
        for n, user in enumerate(users[:people]):
            at = 600 + 60 * n
            typed(f"mail by {people}", user, f"jo{people}.doe@example.org", at)
            typed(f"phone by {people}", user, f"0171 55{people} 1234", at + 10)
            typed(f"card by {people}", user, CARDS[people], at + 20)
            typed(f"phrase by {people}", user, f"grobian wort {people}", at + 30)
    strangers = ["nobody", *users[10 : count + 10]]
    append_events(shop, events)
    names = sorted(set(attacks.values()))
    for setting, changes in SETTINGS.items():
        config = replace(base, **changes, budget=4000, references=32)
        assert isinstance(config, MemoryConfig)
        memory = Memory(shop.connection, config, count_words, MemoryRanker.of_shop(shop))
        seen = dict.fromkeys(names, 0)
        first = 0
        for hours in (3, 27):
            moment = now + timedelta(hours=hours)
            for profile in memory.profiles([Moment(user, moment) for user in strangers]):
                keys = [query_key(q) for q in profile.references]
                for name in {attacks[key] for key in keys if key in attacks}:
                    seen[name] += 1
                first += any(key in attacks for key in keys[:3])
        total = 2 * len(strangers)
        found = ", ".join(f"{name} {n}" for name, n in seen.items() if n) or "nothing"
        print(
            f"{setting}: of {total} profiles, in the first three lines {first}; {found}", flush=True
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100)
