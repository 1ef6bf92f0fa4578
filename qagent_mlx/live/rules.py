"""A merchant's rules: which queries are never recommended, and which always.

The table ``rules`` keeps them, with who made and withdrew each and when; `ShopRules` is what
holds at a moment.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, get_args

import duckdb
import msgspec

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import fetch_dicts, open_duckdb
from ..utils.stamps import user_name, utc_now
from ..utils.text import clean, query_key, words

ENTRY = "rules"  # kind of entries of the journal
MAX_TEXT = 300  # characters of a query, word or pattern
MAX_PINS = 20  # that hold at a time

RuleKind = Literal[
    "block", "block-word", "block-pattern", "exclude-category", "hide-product", "pin"
]
_TEXTS = {"block": "query", "block-word": "word", "block-pattern": "pattern", "pin": "query"}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        kind: ``block`` a query (in any spelling of `query_key`), a word or phrase anywhere in one,
            or a pattern (of RE2, in any case); ``exclude-category`` leaves out queries whose first
            product lies in it; ``hide-product`` takes a product out of what a query shows, or of
            all; ``pin`` puts a query at a position.
        text: The query, word or pattern.
        category: Of an exclusion. Of a pin: only where the answer leads into it anyway.
        position: Of a pin, from 1 on.
        starts: From when on it holds (UTC); None for always.
        ends: Before when it holds; None for always.
        author: Who made it.
    """

    rule_id: str
    kind: RuleKind
    text: str | None = None
    product_id: str | None = None
    category: str | None = None
    position: int | None = None
    starts: datetime | None = None
    ends: datetime | None = None
    author: str = ""
    created: datetime | None = None
    removed: datetime | None = None
    removed_by: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    def holds(self, moment: datetime) -> bool:
        """Whether it holds at a moment."""
        return (
            self.removed is None
            and (self.starts is None or self.starts <= moment)
            and (self.ends is None or moment < self.ends)
        )


_FIELDS = tuple(field.name for field in fields(Rule))
_TIMES = ("starts", "ends", "created", "removed")


def new_rule(kind: str, author: str = "", **values: Any) -> Rule:
    """A rule that can be stored, with an id of its own.

    Args:
        kind: A `RuleKind`.
        author: Who makes it; by default the user of this machine.
        values: Further fields of `Rule`.

    Raises:
        QAgentError: something is missing, or can never match.
    """
    if kind not in get_args(RuleKind):
        raise QAgentError(f"there is no rule {kind!r}; use one of {', '.join(get_args(RuleKind))}")
    for name in ("text", "product_id", "category"):
        if values.get(name) is not None:
            values[name] = clean(values[name]) or None
    text = values.get("text")
    if kind in _TEXTS:
        if not text or len(text) > MAX_TEXT or (kind != "block-pattern" and not query_key(text)):
            noun = _TEXTS[kind]
            raise QAgentError(f"a {kind} needs a {noun} of letters or digits, at most {MAX_TEXT}")
        if kind == "block-pattern":
            _check_pattern(text)
    if kind == "exclude-category" and not values.get("category"):
        raise QAgentError("an exclude-category needs a category, such as Camping > Tents")
    if kind == "hide-product" and not values.get("product_id"):
        raise QAgentError("a hide-product needs the product's id")
    if kind == "pin":
        values["position"] = values.get("position") or 1
    starts, ends = values.get("starts"), values.get("ends")
    if starts is not None and ends is not None and ends <= starts:
        raise QAgentError("a rule must end after it starts")
    author = clean(author)[:100] or user_name()
    values = {name: value for name, value in values.items() if value is not None}
    return Rule(secrets.token_hex(4), kind, author=author, created=utc_now(), **values)  # type: ignore[arg-type]


def blocked_words(lines: Iterable[str], author: str = "") -> list[Rule]:
    """Rules for a list of words or phrases, one a line; empty lines and ``#`` are left out."""
    texts = dict.fromkeys(clean(line) for line in lines)
    kept = (text for text in texts if query_key(text) and not text.startswith("#"))
    return [new_rule("block-word", author, text=text) for text in kept]


def rules_of(shop: Shop, *, everything: bool = False) -> list[Rule]:
    """The rules of a shop, the oldest first; ``everything`` also those that were withdrawn."""
    if not shop.has_table("rules"):
        return []
    where = "" if everything else "WHERE removed IS NULL"
    rows = fetch_dicts(
        shop.connection.execute(
            f"SELECT {', '.join(_FIELDS)} FROM rules {where} ORDER BY created, rule_id"
        )
    )
    return [Rule(**row) for row in rows]


def withdrawn(shop: Shop, rule_ids: Sequence[str], author: str = "") -> list[Rule]:
    """The rules of these ids, as they are once they are withdrawn.

    Raises:
        QAgentError: there is none of an id.
    """
    known = {rule.rule_id: rule for rule in rules_of(shop)}
    missing = [rule_id for rule_id in rule_ids if rule_id not in known]
    if missing:
        raise QAgentError(f"there is no rule {missing[0]}; list them with: qagent rules list")
    now, by = utc_now(), clean(author)[:100] or user_name()
    return [replace(known[r], removed=now, removed_by=by) for r in rule_ids]


def rules_entry(rules: Sequence[Rule]) -> dict[str, Any]:
    """An entry of the journal that adds rules or withdraws them."""
    return {ENTRY: [rule.to_dict() for rule in rules]}


def store_rules(shop: Shop, values: Sequence[Mapping[str, Any]]) -> int:
    """Store the rules of entries, in a transaction; returns their number."""
    rules = [rule for rule in map(_rule, values) if rule is not None]
    for rule in rules:
        shop.connection.execute("DELETE FROM rules WHERE rule_id = ?", [rule.rule_id])
        shop.connection.execute(
            f"INSERT INTO rules ({', '.join(_FIELDS)}) VALUES ({', '.join('?' for _ in _FIELDS)})",
            [getattr(rule, name) for name in _FIELDS],
        )
    return len(rules)


def change_rules(shop: Shop, rules: Sequence[Rule]) -> None:
    """Store rules of a shop that is open for writing; servers take them up within seconds."""
    with shop.transaction():
        store_rules(shop, rules_entry(rules)[ENTRY])


def _rule(value: Mapping[str, Any]) -> Rule | None:
    """The rule of an entry; None for what nobody of us has written."""
    try:
        times = {name: datetime.fromisoformat(value[name]) for name in _TIMES if value.get(name)}
        rule = Rule(**{**value, **times})
    except (TypeError, ValueError):
        return None
    return rule if rule.kind in get_args(RuleKind) and isinstance(rule.rule_id, str) else None


@dataclass(frozen=True, slots=True)
class Pin:
    """A query that is shown at a position, in answers that lead into a category if it has one."""

    query: str
    position: int
    category: str | None


@dataclass(frozen=True, slots=True)
class ShopRules:
    """The rules that hold at a moment, ready to be asked. It can be sent to other processes."""

    keys: frozenset[str] = frozenset()
    phrases: frozenset[tuple[str, ...]] = frozenset()
    patterns: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    hidden: frozenset[tuple[str, str]] = frozenset()  # of query_key (empty for all) and product
    pins: tuple[Pin, ...] = ()

    @classmethod
    def at(cls, rules: Iterable[Rule], moment: datetime) -> ShopRules:
        """Those of the rules that hold at a moment."""
        by_kind: dict[str, list[Rule]] = {kind: [] for kind in get_args(RuleKind)}
        for rule in rules:
            if rule.holds(moment):
                by_kind[rule.kind].append(rule)

        def texts(kind: RuleKind) -> list[str]:
            return [rule.text or "" for rule in by_kind[kind]]

        pins = sorted(by_kind["pin"], key=lambda rule: (rule.position, rule.created))[:MAX_PINS]
        return cls(
            frozenset(map(query_key, texts("block"))),
            frozenset(tuple(words(text)) for text in texts("block-word")),
            tuple(texts("block-pattern")),
            tuple(rule.category or "" for rule in by_kind["exclude-category"]),
            frozenset(
                (query_key(rule.text or ""), rule.product_id or "")
                for rule in by_kind["hide-product"]
            ),
            tuple(Pin(r.text or "", r.position or 1, r.category) for r in pins),
        )

    def allows(self, query: str) -> bool:
        """Whether a query may be recommended."""
        if self.keys and query_key(query) in self.keys:
            return False
        if self.phrases and self._has_phrase(words(query)):
            return False
        return not (self.patterns and _matches(self.patterns, query))

    def allows_category(self, path: str) -> bool:
        """Whether a query may be recommended whose first product lies in a category."""
        return not any(is_within(path, category) for category in self.categories)

    def shows(self, query: str, product: str) -> bool:
        """Whether a query may show a product."""
        return not self.hidden or (
            ("", product) not in self.hidden and (query_key(query), product) not in self.hidden
        )

    def _has_phrase(self, given: Sequence[str]) -> bool:
        longest = _longest(self.phrases)
        return any(
            tuple(given[start:end]) in self.phrases
            for start in range(len(given))
            for end in range(start + 1, min(len(given), start + longest) + 1)
        )


NO_RULES = ShopRules()


@lru_cache(maxsize=16)
def _longest(phrases: frozenset[tuple[str, ...]]) -> int:
    """Words of the longest phrase: of a list of thousands, which each query is held against."""
    return max(map(len, phrases))


def is_within(path: str, category: str) -> bool:
    """Whether a category's path is that of another one, or below it; in any case."""
    path, category = path.lower(), category.lower()
    return path == category or path.startswith(f"{category} > ")


_LOCAL = threading.local()  # a connection for each thread, to match patterns with


def _engine() -> duckdb.DuckDBPyConnection:
    """DuckDB's regular expressions are RE2's, which no pattern can keep busy for long."""
    if not hasattr(_LOCAL, "connection"):
        _LOCAL.connection = open_duckdb()
    connection: duckdb.DuckDBPyConnection = _LOCAL.connection
    return connection


@lru_cache(maxsize=50_000)
def _matches(patterns: tuple[str, ...], query: str) -> bool:
    ((found,),) = (
        _engine()
        .execute(
            "SELECT coalesce(bool_or(regexp_matches($query, p, 'i')), false) "
            "FROM (SELECT unnest($patterns) AS p)",
            {"query": query, "patterns": list(patterns)},
        )
        .fetchall()
    )
    return bool(found)


def _check_pattern(pattern: str) -> None:
    try:
        _engine().execute("SELECT regexp_matches('', $pattern)", {"pattern": pattern}).fetchall()
        is_all = _matches((pattern,), "")
    except duckdb.Error as error:
        line = str(error).splitlines()[0].removeprefix("Invalid Input Error: ")
        raise QAgentError(f"{pattern!r} is no pattern of RE2: {line}") from error
    if is_all:
        raise QAgentError(f"{pattern!r} matches every query; name something that it must hold")
