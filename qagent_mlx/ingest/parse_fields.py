"""Parse single fields of files, as shops and exporters write them, to what is stored."""

from __future__ import annotations

import ast
import html
import json
import re
import unicodedata

from ..utils.database import literal
from ..utils.text import clean

MAX_ID, MAX_TITLE, MAX_QUERY = 256, 2000, 300  # characters
BAD_ATTRIBUTES = "\0bad"  # no text holds it
FUTURE = "time in the future"
OUT_OF_RANGE = "ts < TIMESTAMP '1990-01-01' OR ts >= TIMESTAMP '2100-01-01'"  # SQL

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Those that only shape text; whatever else stands in angle brackets is somebody's text.
_MARKUP = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|i|li|ol|p|small|span|strong|sub|sup|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
# A currency before or after the number: a sign, or a few letters such as EUR, zł or Rs.
_SIGN = r"(?:[^\W\d_]{1,4}\.?\s?)?[$¢£¤¥\u058f\u0e3f\u20a0-\u20cf]?"
_PRICE = re.compile(
    rf"{_SIGN}\s?(?P<number>\d[\d.,'’ ]*?)(?:[.,][-–]{{1,2}})?\s?{_SIGN}(?:[^\W\d_]{{1,4}}\.?)?"
)
_GROUPS = re.compile(r"[1-9]\d{0,2}(?:[ '’,.]\d{2,3})*[ '’,.]\d{3}")  # 1,234,567 and 12,34,567


def plain(text: str) -> str:
    """Text without HTML: ``"Tom &amp; <b>Jerry</b>"`` to ``"Tom & Jerry"``."""
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return _MARKUP.sub(" ", text) if "<" in text else text


def price(text: str, comma: bool = False) -> float | None:
    """The number in a price such as ``"$1,299.50"``, ``"1.299,50 €"`` or ``"CHF 12.-"``.

    ``comma`` says that the other prices of the file have a comma before the cents, so that a
    point before three digits separates thousands. None where it is no price, or may be read in
    two ways.
    """
    match = _PRICE.fullmatch(" ".join(unicodedata.normalize("NFKC", text).split()))
    if match is None:
        return None
    number = match["number"].strip()
    last = max(number.rfind(","), number.rfind("."))
    whole, cents = number, ""
    if last >= 0:
        mark, digits = number[last], number[last + 1 :]
        thousands = number.count(mark) > 1 or (
            len(digits) == 3 and (mark == "," or comma) and number[0] != "0"
        )
        if not thousands or (number.count(mark) == 1 and (set(",.") - {mark}) & set(number[:last])):
            whole, cents = number[:last], digits
    separators = set(whole) - set("0123456789")
    if len(separators) > 1 or (cents and not cents.isdigit()):
        return None
    if separators and not _GROUPS.fullmatch(whole):
        return None
    return float("".join(c for c in whole if c.isdigit()) + "." + (cents or "0"))


def attributes(text: str | None) -> str | None:
    """A JSON object of texts, from JSON or ``k=v; k=v``; raises ValueError on other text."""
    if text is None or text.strip() in {"", "{}", "null"}:
        return None
    text = text.strip()
    try:
        if text.startswith("{"):
            values = json.loads(text)
        else:
            values = dict(pair.split("=", 1) for pair in text.split(";") if pair.strip())
    except RecursionError:
        raise ValueError("too deep") from None
    texts = {}
    for name, value in values.items():
        if value is not None and not isinstance(value, (dict, list)):
            key, shown = clean(str(name))[:60], clean(str(value))[:120]
            if key and shown:
                texts[key] = shown
    return json.dumps(texts, ensure_ascii=False, sort_keys=True) if texts else None


def attributes_or_mark(text: str) -> str:
    """`attributes` for SQL: empty for none, and `BAD_ATTRIBUTES` for text that is none."""
    try:
        return attributes(text) or ""
    except (ValueError, AttributeError):
        return BAD_ATTRIBUTES


def category(text: str) -> str:
    """A path of levels, ``Camping > Tents``, from a list, or from text with ``>`` or ``|``.

    Of a list of paths the first one counts.
    """
    text = text.strip()
    levels = _parse_list(text) if text.startswith("[") else None
    if levels is None:
        levels = text.replace("|", ">").split(">")
    return " > ".join(level for level in map(clean, levels) if level)[:MAX_TITLE]


def _parse_list(text: str) -> list[str] | None:
    """The texts of a list as JSON or Python write it, or of the first list inside it."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > MAX_TITLE or "\\" in text:  # deep ones, and escapes that Python warns of
            return None
        try:
            values = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None
    if isinstance(values, list) and values and isinstance(values[0], list):
        values = values[0]
    return [str(value) for value in values] if isinstance(values, list) else None


# What exports write where there is no value; and in place of a user whom nobody knows.
_NOTHING = (
    *("", "na", "n/a", "nan", "null", "none", "undefined", "not set", "-", "<na>", "<null>"),
    *("(not set)", "(none)", "(null)", "(data deleted)", "(other)", "<other>", "nat", "\\n"),
)
_NOBODY = ("0", "-1", "0.0", "-1.0", "00000000-0000-0000-0000-000000000000", "anonymous", "guest")
_LONGEST = max(map(len, (*_NOTHING, *_NOBODY)))


def text_or_null(column: str, *, person: bool = False) -> str:
    """SQL: the trimmed text of a column, NULL where it says that there is no value.

    Args:
        column: SQL of the text.
        person: Whether it is a user's id, for which `0` or `guest` is no value either.
    """
    nothing = ", ".join(map(literal, (*_NOTHING, *_NOBODY) if person else _NOTHING))
    return (
        f"CASE WHEN length({column}) > {_LONGEST} OR lower(trim({column})) NOT IN ({nothing}) "
        f"THEN trim({column}) END"
    )


def user_or_null(column: str) -> str:
    """SQL: `text_or_null` of a user's id."""
    return text_or_null(column, person=True)


def clean_id(column: str) -> str:
    """SQL: an id as the catalog has it. Plain ones, nearly all, need no Python for that."""
    return (
        f"CASE WHEN regexp_full_match({column}, '[!-~]+') THEN {column} "
        f"ELSE nullif(qa_clean({column}), '') END"
    )


# Words of stock without spaces, dashes and accents: English, German, French, Spanish, and those of
# merchants' feeds, where what can be ordered is in stock.
_IN_STOCK = """true t yes y instock available onbackorder backorder preorder availablefororder
    limitedavailability onlineonly instoreonly lowstock presale wahr ja j auflager verfugbar
    verfuegbar vorratig vorraetig lieferbar sofortlieferbar vorbestellbar vrai oui o enstock
    disponible precommande si verdadero endisponibilidad conexistencias""".split()  # noqa: SIM905
_SOLD_OUT = """false f no n outofstock unavailable soldout discontinued notavailable falsch nein
    ausverkauft nichtauflager nichtverfugbar nichtverfuegbar nichtlieferbar nichtvorratig
    vergriffen faux non rupture rupturedestock enrupture horsstock indisponible epuise nondisponible
    falso agotado sinexistencias nodisponible sinstock""".split()  # noqa: SIM905


def in_stock(text: str) -> str:
    """SQL: whether a text of stock, a number or a word, says that there is some; NULL if neither.

    The words are those of shops' exports in English, German, French and Spanish.
    """
    bare = (
        f"regexp_replace(strip_accents(regexp_replace(lower({text}), '^https?://schema.org/', '')),"
        " '[\\s_-]+', '', 'g')"
    )
    yes, no = (", ".join(map(literal, words)) for words in (_IN_STOCK, _SOLD_OUT))
    number = f"try_cast(replace({text}, ',', '.') AS DOUBLE)"
    counted = f"regexp_extract({bare}, '^(\\d+)(instock|available|pcs|units?|stuck|stk)$', 1)"
    return f"""CASE WHEN isfinite({number}) THEN {number} > 0
        WHEN {bare} IN ({yes}) THEN true WHEN {bare} IN ({no}) THEN false
        WHEN {counted} <> '' THEN try_cast({counted} AS DOUBLE) > 0 END"""


def normal_type(column: str) -> str:
    """SQL: the name of an event type as `columns.TYPE_NAMES` writes it."""
    return f"regexp_replace(lower({column}), '[ _-]+', '_', 'g')"


def is_in_future(column: str, *, allowed: bool) -> str:
    """SQL: whether a timestamp lies more than a day after the clock, which no log can know."""
    if allowed:
        return "false"
    return f"{column} > (current_timestamp AT TIME ZONE 'UTC') + INTERVAL 1 DAY"


def moment_text(stage: str) -> str:
    """SQL: the text of a row's time, with the time of day from a column of its own if it has one.

    The time of day may be `18:57:35`, `18:57`, `6:57 PM` or an hour.
    """
    day, hour = text_or_null(f"{stage}.time"), text_or_null(f"{stage}.time_of_day")
    day_only = f"regexp_replace({day}, '[ T]00:00(:00(\\.0+)?)?$', '')"
    twelve = " , ".join(
        f"try_strptime(upper({hour}), '{form}')" for form in ("%I:%M %p", "%I:%M:%S %p", "%I %p")
    )
    return f"""CASE WHEN {stage}.time_of_day IS NULL THEN {day}
        WHEN {hour} IS NULL THEN {day}
        WHEN regexp_full_match({hour}, '\\d{{1,2}}(\\.0)?')
        THEN {day_only} || ' ' || lpad(split_part({hour}, '.', 1), 2, '0') || ':00:00'
        WHEN regexp_full_match({hour}, '(?i).*[ap]m')
        THEN {day_only} || ' ' || coalesce(strftime(coalesce({twelve}), '%H:%M:%S'), {hour})
        ELSE {day_only} || ' ' || {hour} END"""


def moment(stage: str, text: str, time_format: str | None) -> str:
    """SQL: a row's moment in UTC, or NULL.

    A format may be that of the day alone, or of the day and the time of day as the file has them.

    Args:
        stage: Has the columns ``time`` and ``time_of_day``.
        text: SQL of its `moment_text`.
    """
    if not time_format:
        return timestamp(text)
    day, hour = text_or_null(f"{stage}.time"), text_or_null(f"{stage}.time_of_day")
    # The text's time of day is written with 24 hours and begins behind the day.
    rest = f"try_cast(substr({text}, length({day}) + 2) AS TIME)"
    form = literal(time_format)
    return f"""CASE WHEN {hour} IS NULL THEN {timestamp(text, time_format)}
        ELSE coalesce({timestamp(text, time_format)},
            try_strptime({day} || ' ' || {hour}, {form})::TIMESTAMP,
            try_strptime({day}, {form})::DATE + {rest}) END"""


def timestamp(column: str, time_format: str | None = None) -> str:
    """SQL: a text column as a UTC timestamp, or NULL.

    Without a format it is ISO 8601, with or without a zone, or an epoch number.
    """
    if time_format:
        return f"try_strptime({column}, {literal(time_format)})::TIMESTAMP"
    number = f"try_cast({column} AS DOUBLE)"
    # Some put a space before the zone: "2026-03-01 12:00:00 +0100".
    zoned = f"regexp_replace({column}, '\\s+([+-]\\d\\d:?\\d\\d)$', '\\1')"
    # Before 2.0, DuckDB reads a zone behind seconds only.
    whole = f"regexp_replace({zoned}, '([T ]\\d\\d:\\d\\d)(Z|[+-]\\d\\d:?\\d\\d)$', '\\1:00\\2')"
    return f"""CASE WHEN NOT isfinite({number}) THEN NULL
        WHEN {number} IS NULL THEN coalesce(
            try_cast({zoned} AS TIMESTAMPTZ), try_cast({whole} AS TIMESTAMPTZ)) AT TIME ZONE 'UTC'
        WHEN abs({number}) < 1e11 THEN make_timestamp(({number} * 1000000)::BIGINT)
        WHEN abs({number}) < 1e14 THEN make_timestamp(({number} * 1000)::BIGINT)
        WHEN abs({number}) < 1e17 THEN make_timestamp({number}::BIGINT) END"""
