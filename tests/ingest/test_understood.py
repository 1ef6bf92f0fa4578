"""What a file was understood to hold is said, and is what was stored."""

import csv
import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.columns import FIELDS, parse_mapping
from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.shop.shop import Shop

CATALOG = [
    {"product_id": "p1", "title": "Lamp", "brand": "Acme", "category": "A > B", "price": "10"},
    {"product_id": "p2", "title": "Mat", "brand": "Zip", "category": "A > C", "price": "20"},
]


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        ingest_files(shop, "products", [write(tmp_path / "catalog.csv", CATALOG)])
        yield shop


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def load(shop, kind, rows, **options):
    path = write(shop.path.parent / "x.csv", rows)
    report = ingest_files(shop, kind, [path], ReadOptions(**options))
    (understood,) = report.understood
    return report, understood


def times(shop):
    rows = shop.connection.execute("SELECT ts::VARCHAR FROM events ORDER BY ts").fetchall()
    return [ts for (ts,) in rows]


def event(**fields):
    return {"user_id": "u1", "time": "2026-01-05T10:00:00Z", "type": "search", **fields}


# ---------------------------------------------------------------- columns


def test_every_usual_name_serves_one_field():
    for fields in FIELDS.values():
        names = [n for f, text in fields.items() if f != "time_of_day" for n in text.split()]
        assert len(names) == len(set(names))


def test_columns_and_contents_are_said(shop):
    rows = [
        event(query="lamp", colour="red"),
        event(time="2026-01-06T10:00:00Z", type="view", product_id="p1"),
    ]
    rows[0] |= {"product_id": ""}
    rows[1] |= {"query": "", "colour": ""}
    report, understood = load(shop, "events", rows)
    assert understood.columns["query"] == "query" and understood.unused == ("colour",)
    assert (understood.types, understood.users) == ({"search": 1, "view": 1}, 1)
    assert (understood.rows, understood.products) == (2, 1)
    document = report.to_dict()["understood"][0]
    assert (document["first"], document["last"]) == ("2026-01-05T10:00:00", "2026-01-06T10:00:00")
    assert report.notes == ()


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ("Regular price", "price"),
        ("Brands", "brand"),
        ("In stock?", "stock"),
        ("Vendor", "brand"),
        ("Artikelnummer", "product_id"),
        ("Verfügbarkeit", "stock"),
        ("Catégorie", "category"),
    ],
)
def test_columns_have_the_names_of_real_exports(shop, header, field):
    row = {"id": "p1", header: "p1" if field == "product_id" else "1"}
    _, understood = load(shop, "products", [row | {"title": "Lamp"}])
    assert understood.columns[field] == header


def test_a_store_is_no_brand(shop):
    _, understood = load(shop, "products", [{"id": "p1", "title": "L", "store": "Store 12"}])
    assert "brand" not in understood.columns and understood.unused == ("store",)
    _, understood = load(
        shop, "products", [{"id": "p1", "store": "S"}], mapping=(("brand", "store"),)
    )
    assert understood.columns["brand"] == "store"


def test_a_column_without_values_does_not_hide_another(shop):
    rows = [{"user_id": "", "visitor_id": "v", "time": "2026-01-05", "query": "lamp"}]
    _, understood = load(shop, "events", rows)
    assert understood.columns["user_id"] == "visitor_id"
    assert "user_id is read from 'visitor_id', as 'user_id' is empty" in understood.choices


def test_several_columns_for_a_field_are_said(shop):
    _, understood = load(shop, "products", [{"id": "p1", "sku": "p2", "price": "5"}])
    assert understood.choices == ("product_id is read from 'sku', not from 'id'",)


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("columns", "moment"),
    [
        ({"date": "2026-01-05", "created_at": "2026-01-05T18:57:35Z"}, "2026-01-05 18:57:35"),
        ({"timestamp": "2026-01-05", "date": "2026-01-05T18:57:35Z"}, "2026-01-05 18:57:35"),
        ({"date": "2026-01-05", "time": "18:57:35"}, "2026-01-05 18:57:35"),
        ({"time": "18:57", "date": "2026-01-05"}, "2026-01-05 18:57:00"),
        ({"date": "2026-01-05 00:00:00", "hour": "7"}, "2026-01-05 07:00:00"),
        ({"Datum": "2026-01-05", "Uhrzeit": "18:57:35"}, "2026-01-05 18:57:35"),
        ({"date": "2026-01-05", "time": "6:57 PM"}, "2026-01-05 18:57:00"),
        ({"date": "2026-01-05", "amount": "7"}, "2026-01-05 00:00:00"),
    ],
)
def test_the_time_of_day_is_found(shop, columns, moment):
    load(shop, "events", [{"user_id": "u", **columns, "query": "lamp"}])
    assert times(shop) == [moment]


def test_a_date_and_a_time_of_day_in_a_form_of_their_own_are_joined(shop):
    rows = [{"user_id": "u", "tag": "05.01.2026", "um": "18:57", "query": "lamp"}]
    mapping = (("time", "tag"), ("time_of_day", "um"))
    load(shop, "events", rows, mapping=mapping, time_format="%d.%m.%Y %H:%M")
    assert times(shop) == ["2026-01-05 18:57:00"]


@pytest.mark.parametrize(
    ("time", "said"),
    [
        ("2026-01-05 10:00:00", True),
        ("2026-01-05", True),
        ("2026-01-05T10:00:00+01:00", False),
        ("2026-01-05 10:00:00 +0100", False),
        ("1767607200", False),
    ],
)
def test_times_without_a_zone_are_said_to_be_utc(shop, time, said):
    report, _ = load(shop, "events", [event(time=time, query="lamp")])
    assert report.notes == (("times without a zone are taken as UTC",) if said else ())


def test_an_event_of_the_future_moves_nothing(shop):
    rows = [event(query="lamp"), event(query="mat", time="2099-01-01T00:00:00Z")]
    report, _ = load(shop, "events", rows)
    assert report.reasons == {"time in the future": 1}
    assert shop.end_of_log().year == 2026
    report, _ = load(shop, "events", rows, allow_future=True)
    assert report.accepted == 1 and shop.end_of_log().year == 2099


def test_events_far_from_the_others_are_named(shop):
    rows = [event(query=f"lamp {n}", time=f"2026-01-{n:02}T10:00:00Z") for n in range(1, 29)]
    _, understood = load(shop, "events", [*rows, event(query="old", time="2003-01-01T00:00:00Z")])
    (warning,) = understood.warnings
    assert warning.startswith("1 of 29 events lie far from the others, such as row 29: 2003-01-01")
    _, understood = load(shop, "events", rows)
    assert understood.warnings == ()


def test_a_file_far_from_the_log_is_named(shop):
    def rows(year):
        days = range(1, 29)
        return [event(query=f"q{n}", time=f"{year}-01-{n:02}T10:00:00Z") for n in days]

    load(shop, "events", rows(2026))
    _, understood = load(shop, "events", rows(2001))
    (warning,) = understood.warnings
    assert "before the log begins" in warning


# ---------------------------------------------------------------- nobody and nothing


NOBODY = ["NA", "null", "(not set)", "undefined", "", " None ", "0", "-1", "guest", "NaN"]


@pytest.mark.parametrize("user", [*NOBODY, "Anonymous", "00000000-0000-0000-0000-000000000000"])
def test_nobody_is_no_user(shop, user):
    report, _ = load(shop, "events", [event(query="lamp"), event(query="mat", user_id=user)])
    assert report.reasons == {"no user": 1}


def test_nobody_is_no_user_of_an_appended_event(shop):
    assert append_events(shop, [event(query="mat", user_id="(not set)")]).accepted == 0


def test_what_stands_for_nothing_is_nothing(shop):
    rows = [
        {"product_id": "p1", "title": "NA", "brand": "null", "category": "(none)", "price": "nan"}
    ]
    clear = ("brand", "category", "price")
    assert load(shop, "products", rows, clear=clear)[0].accepted == 1
    assert shop.connection.execute(
        "SELECT title, brand, category, price FROM products WHERE product_id = 'p1'"
    ).fetchall() == [("Lamp", None, None, None)]
    report, _ = load(shop, "events", [event(query="lamp"), event(query="(not set)")])
    assert report.reasons == {"search without a query": 1}


def test_a_user_with_an_implausible_share_is_named(shop):
    rows = [event(query=f"q{n}", user_id="shop-1") for n in range(150)]
    rows += [event(query=f"q{n}", user_id=f"u{n}") for n in range(100)]
    _, understood = load(shop, "events", rows)
    assert understood.warnings[0].startswith("the user 'shop-1' has 150 of 250 events")


# ---------------------------------------------------------------- ids that became floats


def test_ids_that_became_floats_are_the_catalogs(shop):
    load(shop, "products", [{"product_id": "1289", "title": "Chair"}])
    rows = [event(user_id=f"{u}.0", type="view", product_id="1289.0") for u in (17, 18)]
    report, _ = load(shop, "events", rows)
    assert report.accepted == 2
    assert shop.connection.execute(
        "SELECT DISTINCT product_id FROM events UNION SELECT user_id FROM events ORDER BY 1"
    ).fetchall() == [("1289",), ("17",), ("18",)]
    assert "product_id 1289.0 is read as 1289, and so are all others" in report.notes


def test_ids_that_end_so_in_the_catalog_stay(shop):
    rows = [{"product_id": product, "title": "Chair"} for product in ("1.0", "x")]
    load(shop, "products", rows)
    load(shop, "events", [event(type="view", product_id="1.0")])
    assert shop.connection.execute("SELECT product_id FROM events").fetchall() == [("1.0",)]


# ---------------------------------------------------------------- loads that fail


def counts(shop):
    return {**shop.counts(), "version": shop.catalog_version}


def test_a_load_that_rejects_everything_stores_nothing(shop):
    before = counts(shop)
    with pytest.raises(QAgentError) as error:
        load(shop, "events", [event(type="view", product_id=f"x{n}") for n in range(3)])
    assert str(error.value) == (
        "x.csv: all 3 rows are rejected, and nothing of it is stored; row 1: unknown product 'x0' "
        "(3 rows); ingest its products first, then this file again"
    )
    with pytest.raises(QAgentError, match="all 3 rows"):
        rows = [event(type="view", product_id=f"x{n}") for n in range(3)]
        load(shop, "events", rows, max_rejects=1)
    assert counts(shop) == before


def test_a_load_may_reject_a_share_of_its_rows(shop):
    rows = [event(query="lamp"), *(event(query="!", time=f"2026-01-0{n}") for n in range(1, 4))]
    before = counts(shop)
    with pytest.raises(QAgentError, match=r"max_rejects 0.5 is exceeded: x.csv: 3 of 4 rows"):
        load(shop, "events", rows)
    assert counts(shop) == before
    assert load(shop, "events", rows, max_rejects=0.75)[0].rejected == 3


def test_a_dry_run_says_all_and_stores_nothing(shop):
    before = counts(shop)
    rows = [event(query="lamp"), event(query="")]
    report, understood = load(shop, "events", rows, dry_run=True)
    assert (report.accepted, report.rejected) == (1, 1)
    assert understood.types == {"search": 1}
    assert counts(shop) == before


def test_searches_without_a_column_of_queries_say_so(shop):
    rows = [{"user_id": "u", "time": "2026-01-05", "type": kind, "sku": "p1"} for kind in KINDS]
    report, _ = load(shop, "events", rows)
    (example,) = report.examples
    assert "no column of the file is a query: map it (`mapping` query=COLUMN)" in example


KINDS = ("search", "view", "click")


# ---------------------------------------------------------------- what a file does not name


STATE = ("title", "brand", "category", "price", "in_stock", "attributes")
CELLS = {
    "title": ("Desk", "Desk"),
    "brand": ("Zeta", "Zeta"),
    "category": ("X > Y", "X > Y"),
    "price": ("33.5", 33.5),
    "stock": ("0", False),
    "attributes": ('{"size": "XL"}', '{"size": "XL"}'),
}
COLUMNS = {"stock": "in_stock"}
NUMBERS = itertools.count()


def state(shop, product):
    (row,) = shop.connection.execute(
        f"SELECT {', '.join(STATE)} FROM products WHERE product_id = ?", [product]
    ).fetchall()
    return dict(zip(STATE, row, strict=True))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    fields=st.sets(st.sampled_from(sorted(CELLS)), min_size=1),
    extra=st.sets(st.sampled_from(["store", "colour", "note", "weight (kg)", "1"])),
    order=st.randoms(use_true_random=False),
    timed=st.booleans(),
)
def test_no_field_changes_that_the_file_does_not_name(shop, fields, extra, order, timed):
    product = f"q{next(NUMBERS)}"
    before = {
        "product_id": product,
        "title": "Lamp",
        "brand": "Acme",
        "category": "A > B",
        "price": "10",
        "stock": "5",
        "attributes": '{"size": "S"}',
    }
    load(shop, "products", [before])
    old, other = state(shop, product), state(shop, "p1")
    row = {"product_id": product, **{f: CELLS[f][0] for f in fields}, **dict.fromkeys(extra, "7")}
    if timed:
        row["time"] = "2026-02-01"
    names = list(row)
    order.shuffle(names)
    _, understood = load(shop, "products", [{name: row[name] for name in names}])
    expected = old | {COLUMNS.get(f, f): CELLS[f][1] for f in fields}
    assert state(shop, product) == expected
    assert state(shop, "p1") == other
    # What was understood is what was stored.
    assert set(understood.columns) == {"product_id", *fields, *(["time"] if timed else [])}
    assert set(understood.unused) == extra
    assert understood.columns == {name: name for name in understood.columns}


def test_a_feed_of_prices_and_stock_updates_what_is_there(shop):
    rows = [{"id": "p1", "price": "9"}, {"id": "new", "price": "5"}]
    report, _ = load(shop, "products", rows)
    assert report.accepted == 1
    assert "without a title a row can only change a product that the shop has" in report.examples[0]
    assert state(shop, "p1")["price"] == 9 and state(shop, "p1")["brand"] == "Acme"
    load(shop, "products", [{"id": "p1", "stock": "0"}])
    assert state(shop, "p1")["in_stock"] is False
    load(shop, "products", [{"id": "p1", "title": "Lamp", "price": "8"}])
    assert state(shop, "p1")["in_stock"] is False


OPTIONAL = ("brand", "category", "price", "stock", "attributes", "aliases")
FULL = {
    "id": "p3",
    "title": "Desk",
    "brand": "Zeta",
    "category": "X > Y",
    "price": "33.5",
    "stock": "0",
    "attributes": '{"size": "XL"}',
    "aliases": "d3|e3",
}


def everything(shop):
    aliases = shop.connection.execute(
        "SELECT list(alias ORDER BY alias) FROM product_aliases WHERE product_id = 'p3'"
    ).fetchall()
    return state(shop, "p3") | {"aliases": aliases[0][0]}


@pytest.mark.parametrize("blank", ["", " ", "NA", "null", "-"])
@pytest.mark.parametrize("field", ["title", *OPTIONAL])
def test_a_blank_cell_leaves_every_field_as_it_was(shop, field, blank):
    load(shop, "products", [FULL])
    before = everything(shop)
    report, _ = load(shop, "products", [{"id": "p3", "title": "Desk", field: blank}])
    assert everything(shop) == before and report.accepted == 0


@pytest.mark.parametrize("field", OPTIONAL)
def test_a_field_is_cleared_by_a_blank_cell_where_that_is_said(shop, field):
    load(shop, "products", [FULL])
    before = everything(shop)
    rows = [{"id": "p3", **dict.fromkeys(OPTIONAL, "")}]
    report, _ = load(shop, "products", rows, clear=(field,))
    empty = {"in_stock": True} if field == "stock" else {field: None}
    assert everything(shop) == before | empty and report.accepted == 1


def test_only_columns_that_are_there_are_cleared(shop):
    load(shop, "products", [FULL])
    before = everything(shop)
    load(shop, "products", [{"id": "p3", "title": "Desk"}], clear=OPTIONAL)
    assert everything(shop) == before


def test_rows_of_one_product_add_up_and_contradictions_are_counted(shop):
    rows = [
        {"id": "p3", "title": "Desk", "brand": "Zeta", "price": ""},
        {"id": "p3", "title": "Desk", "brand": "", "price": "5"},
    ]
    report, _ = load(shop, "products", rows)
    assert state(shop, "p3")["brand"] == "Zeta" and state(shop, "p3")["price"] == 5
    assert (report.accepted, report.duplicates, report.ignored) == (1, 1, {})
    rows = [{"id": "p3", "price": price} for price in ("6", "7", "7")]
    report, _ = load(shop, "products", rows)
    assert state(shop, "p3")["price"] == 7
    assert (report.accepted, report.duplicates) == (1, 0)
    assert report.ignored == {"contradicted by a later row": 2}
    assert "rows of one product say different things (such as p3)" in report.notes[0]


def test_a_blank_price_at_a_time_is_the_one_before(shop):
    rows = [
        {"id": "p3", "title": "Desk", "time": "2026-01-01", "price": "5", "stock": "1"},
        {"id": "p3", "title": "Desk", "time": "2026-01-03", "price": "", "stock": "0"},
    ]
    load(shop, "products", rows)
    assert state(shop, "p3")["price"] == 5 and state(shop, "p3")["in_stock"] is False
    load(shop, "products", [{"id": "p3", "time": "2026-01-02", "price": "6"}])
    rows = [{"id": "p3", "time": "2026-01-01", "price": "4", "stock": ""}]
    load(shop, "products", [*rows, {"id": "p3", "time": "2026-01-04", "price": "", "stock": "1"}])
    history = shop.connection.execute(
        "SELECT price, in_stock FROM product_history WHERE product_id = 'p3' ORDER BY ts"
    ).fetchall()
    assert history == [(4, True), (6, True), (5, False), (5, True)]


def test_a_price_at_a_time_keeps_the_stock_of_that_time(shop):
    load(shop, "products", [{"id": "p1", "time": "2026-01-01", "price": "1", "stock": "1"}])
    load(shop, "products", [{"id": "p1", "time": "2026-01-03", "price": "3", "stock": "0"}])
    load(shop, "products", [{"id": "p1", "time": "2026-01-02", "price": "2"}])
    load(shop, "products", [{"id": "p1", "time": "2026-01-04", "price": "4"}])
    history = shop.connection.execute(
        """SELECT day(ts), price, in_stock FROM product_history
        WHERE product_id = 'p1' AND ts > '2025-01-01' ORDER BY ts"""
    ).fetchall()
    assert history == [(1, 1, True), (2, 2, True), (3, 3, False), (4, 4, False)]
    assert state(shop, "p1")["price"] == 4 and state(shop, "p1")["in_stock"] is False


def test_a_mapped_attribute_leaves_the_others(shop):
    load(shop, "products", [{"id": "p1", "attributes": '{"size": "S", "colour": "red"}'}])
    rows = [{"id": "p1", "Farbe": "blue"}]
    load(shop, "products", rows, mapping=(("attributes.colour", "Farbe"),))
    assert state(shop, "p1")["attributes"] == '{"colour": "blue", "size": "S"}'


@pytest.mark.parametrize(
    ("text", "is_in_stock"),
    [
        ("ja", True),
        ("Nein", False),
        ("oui", True),
        ("non", False),
        ("sí", True),
        ("in_stock", True),
        ("In Stock", True),
        ("https://schema.org/OutOfStock", False),
        ("preorder", True),
        ("on-backorder", True),
        ("nicht verfügbar", False),
        ("auf Lager", True),
        ("épuisé", False),
        ("-1", False),
        ("3,0", True),
        ("12 Stück", True),
    ],
)
def test_stock_is_read_as_shops_write_it(shop, text, is_in_stock):
    load(shop, "products", [{"id": "p1", "stock": text}])
    assert state(shop, "p1")["in_stock"] is is_in_stock


@pytest.mark.parametrize("name", ["Preis (EUR)", "price in €", "VK-Preis [chf]", "Price USD"])
def test_a_price_is_found_behind_its_currency(shop, name):
    load(shop, "products", [{"sku": "p9", "title": "Rug", name: "12.5"}])
    (price,) = shop.connection.execute(
        "SELECT price FROM products WHERE product_id = 'p9'"
    ).fetchone()
    assert price == 12.5


def test_prices_in_two_currencies_are_not_chosen_between(shop):
    rows = [{"sku": "p9", "title": "Rug", "Preis (EUR)": "12.5", "Preis (CHF)": "11.9"}]
    load(shop, "products", rows)
    (price,) = shop.connection.execute(
        "SELECT price FROM products WHERE product_id = 'p9'"
    ).fetchone()
    assert price is None


# ---------------------------------------------------------------- objects where a text belongs


def test_objects_are_no_titles_and_no_ids(shop, tmp_path):
    """They went in as JSON text, and an event's product was said to be unknown."""
    shown = [
        {"id": f"p{n}", "title": {"en": f"Tea {n}", "de": f"Tee {n}"}, "price": {"amount": n}}
        for n in range(3)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, shown)))
    with pytest.raises(QAgentError) as refused:
        ingest_files(shop, "products", [tmp_path / "p.jsonl"])
    assert "title and price are objects" in str(refused.value)
    assert "title=title.en, price=price.amount" in str(refused.value)
    paths = ("title=title.en", "price=price.amount")
    options = ReadOptions(mapping=parse_mapping(paths, "products"))
    assert ingest_files(shop, "products", [tmp_path / "p.jsonl"], options).accepted == 3
    event = {"user": {"mail": "x", "id": 7}, "time": 1767225600, "type": "click", "product": {}}
    events = [{**event, "product": {"name": "Tea", "id": f"p{n}"}} for n in range(3)]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, events)))
    with pytest.raises(QAgentError, match=r"user_id=user\.id, product_id=product\.id"):
        ingest_files(shop, "events", [tmp_path / "e.jsonl"])


def test_a_query_that_looks_like_an_object_is_a_query(shop, tmp_path):
    queries = ["shoes", "boots", '{"a": 1}', "{limited} tee", "{"]
    rows = [
        json.dumps({"user_id": "u", "time": 1767225600 + n, "type": "search", "query": query})
        for n, query in enumerate(queries)
    ]
    (tmp_path / "e.jsonl").write_text("\n".join(rows))
    assert ingest_files(shop, "events", [tmp_path / "e.jsonl"]).accepted == 4  # "{" has no letter
