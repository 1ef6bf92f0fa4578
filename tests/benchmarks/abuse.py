"""What a few people can put before strangers, under several settings of memory.

    python tests/benchmarks/abuse.py SHOP [--users N] [--strangers N]

On a copy in memory, of a part of the users perhaps. Typed, each with a click: mail addresses, phone
and card numbers, insults, advertisements and half words, by one, three, five and eight regulars of
the shop, and by eight new ids within an hour. Looked for: in the profiles of strangers three and
twenty-seven hours later, and in what is suggested to a stranger behind the first letters. Then one
id, and eight new ones, search a rare query of the shop 500 times in ten days: how many strangers
have it in their first five lines, of those who had it not.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()

from qagent_mlx.agent.suggest import Completer
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.product_search import open_shop_search
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.ranker import MemoryRanker
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import query_key, vocabulary

OPEN = {
    "least_users": 1,
    "least_users_unknown": 1,
    "new_user_hours": 0.0,
    "trends_by": "searches",
    "hide_personal": False,
}
# Shops keep the settings that they were made with: these are today's.
DEFAULT = {name: getattr(MemoryConfig(), name) for name in OPEN}
SETTINGS = {"open": OPEN, "default": DEFAULT, "own only": {**DEFAULT, "own_only": True}}
CARDS = {1: "4111 1111 1111 1111", 3: "5500 0000 0000 0004", 5: "3400 0000 0000 009"}
CARDS |= {8: "4012 8888 8888 1881", 0: "6011 1111 1111 1117"}
GROUPS = (1, 3, 5, 8, 0)  # people who type it; 0: eight new ids
PUSHES = 500
LETTERS = (2, 4, 6)


def attacks(people: int, half: str) -> dict[str, str]:
    """What a group types; the texts of two groups differ."""
    letter = "abcdefghi"[people]
    return {
        "mail": f"jo{letter}.doe@example.org",
        "phone": f"0171 55{people} 1234",
        "card": CARDS[people],
        "insult": f"grobian wort{letter}",
        "ad": f"cheap followers at sho{letter}zy",
        "half word": half[: 3 + GROUPS.index(people)],
    }


def half_typed(shop: Shop) -> str:
    """A word that many search and of which no beginning is a word of the catalog."""
    titles = shop.connection.execute("SELECT title, brand, category FROM products").fetchall()
    known = {word for texts in titles for text in texts for word in vocabulary(text or "")}
    queries = shop.connection.execute(
        """SELECT mode(query) FROM events WHERE type = 'search' GROUP BY query_key
        ORDER BY count(*) DESC, query_key"""
    ).fetchall()
    for (query,) in queries:
        for word in vocabulary(query):
            heads = {word[:n] for n in range(3, 3 + len(GROUPS))}
            is_long = len(heads) == len(GROUPS) and word not in heads
            if word in known and is_long and known.isdisjoint({*heads, *(f"{h}s" for h in heads)}):
                return word
    raise SystemExit("the shop has no long words")


class Drill:
    """A shop that is abused.

    Args:
        shop: A copy in memory; it is changed.
        strangers: How many look.
    """

    def __init__(self, shop: Shop, strangers: int) -> None:
        self.shop, self.now = shop, shop.end_of_log()
        users = shop.connection.execute(
            "SELECT user_id FROM events GROUP BY 1 HAVING count(*) > 3 ORDER BY hash(user_id)"
        ).fetchall()
        regulars = [user for (user,) in users]
        self.people, self.strangers = regulars[:8], ["nobody", *regulars[8 : strangers + 8]]
        ((self.product,),) = shop.connection.execute(
            "SELECT min(product_id) FROM products"
        ).fetchall()
        self.half = half_typed(shop)
        ((self.rare,),) = shop.connection.execute(
            """SELECT mode(query) FROM events WHERE type = 'search' GROUP BY query_key
            HAVING count(DISTINCT user_id) >= 3 ORDER BY count(*), query_key LIMIT 1"""
        ).fetchall()
        self.events: list[dict[str, object]] = []
        self.named: dict[str, str] = {}

    def type_all(self) -> None:
        """Store the searches of all groups."""
        for people in GROUPS:
            ids = self.people[:people] or [f"seller{n}" for n in range(8)]
            for place, (kind, text) in enumerate(attacks(people, self.half).items()):
                self.named[query_key(text)] = f"{kind} by {people or '8 new ids'}"
                for n, user in enumerate(ids):
                    self._typed(user, text, timedelta(seconds=400 * n + 40 * place))
        self._store()

    def push(self, users: list[str]) -> None:
        """Have a query searched and clicked `PUSHES` times within the last ten days."""
        for n in range(PUSHES):
            back = timedelta(days=10) * (1 - n / PUSHES)
            self._typed(users[n % len(users)], self.rare, -back)
        self._store()

    def _typed(self, user: str, query: str, after: timedelta) -> None:
        event = {"user_id": user, "query": query, "time": self.now + after}
        self.events.append({**event, "type": "search", "product_id": None})
        click = {"type": "click", "product_id": self.product}
        self.events.append({**event, **click, "time": self.now + after + timedelta(seconds=5)})

    def _store(self) -> None:
        append_events(self.shop, self.events)
        self.events = []

    def memory(self, changes: dict[str, object]) -> Memory:
        """The shop's memory, with other settings."""
        config = replace(self.shop.config.memory, **changes, budget=4000, references=32)
        assert isinstance(config, MemoryConfig)
        return Memory(self.shop.connection, config, count_words, MemoryRanker.of_shop(self.shop))

    def lines(self, memory: Memory, moment: datetime) -> list[list[str]]:
        """The keys of the queries in each stranger's profile."""
        profiles = memory.profiles([Moment(user, moment) for user in self.strangers])
        return [[query_key(query) for query in profile.references] for profile in profiles]

    def seen(self, memory: Memory) -> tuple[Counter[str], int]:
        """What strangers have in their profiles, and in how many first three lines it is."""
        seen: Counter[str] = Counter()
        first = 0
        for hours in (3, 27):
            for keys in self.lines(memory, self.now + timedelta(hours=hours)):
                seen.update({self.named[key] for key in keys if key in self.named})
                first += any(key in self.named for key in keys[:3])
        return seen, first

    def suggested(self, memory: Memory) -> set[str]:
        """What is suggested to a stranger behind the first letters of it."""
        search = open_shop_search(self.shop)
        completer = Completer.of_shop(memory, search, self.now + timedelta(hours=27))
        texts = [text for people in GROUPS for text in attacks(people, self.half).values()]
        shown = {s.query for text in texts for n in LETTERS for s in completer.complete(text[:n])}
        return {self.named[key] for query in shown if (key := query_key(query)) in self.named}


def opened(path: Path, users: int | None, strangers: int) -> Drill:
    """A copy of a shop, of some of its users perhaps, with its memory stored."""
    shop = Shop.snapshot(path)
    if users is not None:
        shop.connection.execute(
            f"""DELETE FROM events WHERE user_id NOT IN (
            SELECT user_id FROM events GROUP BY 1 ORDER BY count(*) DESC, user_id LIMIT {users})"""
        )
    shop.config = replace(shop.config, memory=replace(shop.config.memory, **DEFAULT))
    MemoryStore(shop.connection, shop.config.memory).build()
    return Drill(shop, strangers)


def main(path: Path, users: int | None, strangers: int) -> None:
    """Print what is seen under each setting, and what pushing a query does."""

    def drill() -> Drill:
        return opened(path, users, strangers)

    abused = drill()
    abused.type_all()
    for name, changes in SETTINGS.items():
        memory = abused.memory(changes)
        seen, first = abused.seen(memory)
        total = 2 * len(abused.strangers)
        found = ", ".join(f"{what} {n}" for what, n in sorted(seen.items())) or "nothing"
        print(f"{name}: of {total} profiles, in the first three lines {first}; {found}", flush=True)
        suggested = ", ".join(sorted(abused.suggested(memory))) or "nothing"
        print(f"{name}: suggested to a stranger: {suggested}", flush=True)
    pushes: dict[str, Callable[[Drill], list[str]]] = {
        "nobody": lambda _: [],
        "one id": lambda d: d.people[:1],
        "eight new ids": lambda _: [f"seller{n}" for n in range(8)],
    }
    for name, ids in pushes.items():
        pushed = drill()
        if who := ids(pushed):
            pushed.push(who)
        for setting in ("open", "default"):
            lines = pushed.lines(pushed.memory(SETTINGS[setting]), pushed.now + timedelta(hours=3))
            had = sum(query_key(pushed.rare) in keys[:5] for keys in lines)
            print(f"{setting}: {pushed.rare!r} pushed by {name}: first five of {had}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shop", type=Path)
    parser.add_argument("--users", type=int, help="the most active ones alone")
    parser.add_argument("--strangers", type=int, default=100)
    arguments = parser.parse_args()
    main(arguments.shop, arguments.users, arguments.strangers)
