"""Public data sets in small files of their forms."""

import gzip
import io
import json
import tarfile

import duckdb

from qagent_mlx.ingest.presets.loading import load_preset
from qagent_mlx.shop.shop import Shop

NOON = 1767614400  # 2026-01-05 12:00:00, a Monday


def short(stored):
    return [(user, time[8:], kind, query, product) for user, time, kind, query, product in stored]


def test_retailrocket(shop, raw, stored, products, write_csv):
    write_csv(
        "events.csv",
        ("timestamp", "visitorid", "event", "itemid", "transactionid"),
        (NOON * 1000, 7, "view", 11, ""),
        (NOON * 1000 + 1000, 7, "addtocart", 11, ""),
        (NOON * 1000 + 2000, 7, "transaction", 12, "213.0"),
    )
    write_csv(
        "item_properties_part1.csv",
        ("timestamp", "itemid", "property", "value"),
        (1, 11, "categoryid", 5),
        (2, 11, "categoryid", 6),
        (1, 11, "available", 0),
        (1, 11, "790", "n15360.000"),
        (1, 11, "888", "hash hash"),
    )
    write_csv("category_tree.csv", ("categoryid", "parentid"), (6, "1.0"), (1, ""))
    report = load_preset(shop, "auto", raw)
    assert report.preset == "retailrocket" and report.derived == "from category paths"
    assert products() == {
        "11": ("item 11 of category 6", None, "1 > 6", 15360.0, False, {}),
        "12": ("item 12", None, None, None, True, {}),
    }
    assert [event for event in short(stored()) if event[2] != "search"] == [
        ("7", "05 12:00:00", "view", None, "11"),
        ("7", "05 12:00:01", "cart", "6", "11"),
        ("7", "05 12:00:02", "purchase", None, "12"),
    ]


def test_otto(shop, raw, stored, products, write_json):
    events = [
        {"aid": 0, "ts": NOON * 1000, "type": "clicks"},
        {"aid": 5, "ts": NOON * 1000 + 1000, "type": "carts"},
        {"aid": 5, "ts": NOON * 1000 + 2000, "type": "orders"},
    ]
    write_json("train.jsonl", {"session": 42, "events": events})
    report = load_preset(shop, "auto", raw)
    assert short(stored()) == [
        ("42", "05 12:00:00", "view", None, "0"),
        ("42", "05 12:00:01", "cart", None, "5"),
        ("42", "05 12:00:02", "purchase", None, "5"),
    ]
    assert set(products()) == {"0", "5"}
    (note,) = report.total.notes
    assert "no queries can be derived" in note


def test_user_0_is_somebody_in_sets_that_number_their_users(
    shop, tmp_path, stored, write_csv, write_json
):
    log = write_csv(
        "events.csv",
        ("timestamp", "visitorid", "event", "itemid", "transactionid"),
        *((NOON * 1000 + user, user, "addtocart", 11, "") for user in (0, 1)),
    )
    view = {"aid": 1, "ts": NOON * 1000, "type": "clicks"}
    sessions = write_json("train.jsonl", *({"session": n, "events": [view]} for n in (0, 1)))
    assert load_preset(shop, "retailrocket", log).total.rejected == 0
    assert {user for user, *_ in stored()} == {"0", "1"}
    with Shop.create(tmp_path / "other") as other:
        report = load_preset(other, "otto", sessions)
        users = other.connection.execute("SELECT user_id FROM events ORDER BY 1").fetchall()
    assert users == [("0",), ("1",)] and report.total.rejected == 0


def test_hm(shop, raw, stored, products, write_csv):
    write_csv(
        "articles.csv",
        (
            "article_id",
            "prod_name",
            "product_type_name",
            "product_group_name",
            "index_group_name",
            "colour_group_name",
            "graphical_appearance_name",
            "section_name",
        ),
        ("663713001", "Atlanta Push", "Bra", "Underwear", "Ladieswear", "Black", "Solid", "Lace"),
    )
    write_csv(
        "transactions_train.csv",
        ("t_dat", "customer_id", "article_id", "price", "sales_channel_id"),
        ("2018-09-20", "c1", "0663713001", "0.05", 2),
    )
    report = load_preset(shop, "auto", raw)
    assert report.preset == "hm" and report.derived == "from category paths"
    assert products()["0663713001"] == (
        "Atlanta Push, Black",
        None,
        "Ladieswear > Underwear > Bra",
        None,
        True,
        {"colour": "Black", "appearance": "Solid", "section": "Lace"},
    )
    assert [kind for _, _, kind, *_ in stored()] == ["search", "purchase"]


def test_diginetica(shop, raw, stored, products, write_csv):
    def write(name, header, *rows):
        write_csv(name, header.split(), *rows, delimiter=";")

    write(
        "train-queries.csv",
        "queryId sessionId userId timeframe duration eventdate searchstring.tokens categoryId "
        "items is.test",
        (1, 9, "NA", 1000, 10, "2016-05-09", "12,7", 0, "21,22", "FALSE"),
        (2, 9, "NA", 2000, 10, "2016-05-09", "", 5, "21", "FALSE"),
        (3, 9, "NA", 3000, 10, "2016-05-09", "1", 5, "22,21", "TRUE"),
    )
    write("train-clicks.csv", "queryId timeframe itemId", (1, 1500, 21), (3, 3500, 22))
    acts = "sessionId userId itemId timeframe eventdate"
    write("train-item-views.csv", acts, (9, 3, 22, 5000, "2016-05-09"))
    write(
        "train-purchases.csv",
        "sessionId userId timeframe eventdate ordernumber itemId",
        (9, "NA", 6000, "2016-05-09", 77, 22),
    )
    write("products.csv", "itemId pricelog2 product.name.tokens", (21, 3, "12,40"), (22, 0, "7"))
    write("product-categories.csv", "itemId categoryId", (21, 5))
    report = load_preset(shop, "auto", raw)
    assert report.preset == "diginetica"
    assert short(stored()) == [
        ("s9", "09 00:00:01", "search", "t12 t7", None),
        ("s9", "09 00:00:01.500000", "click", "t12 t7", "21"),
        ("3", "09 00:00:05", "view", None, "22"),
        ("s9", "09 00:00:06", "purchase", None, "22"),
    ]
    assert products() == {
        "21": ("t12 t40", None, "5", 7.0, True, {}),
        "22": ("t7", None, None, None, True, {}),
    }
    assert report.total.ignored == {"query of the test part": 1, "list of a category": 1}


def test_mercadolibre(shop, raw, stored, products):
    def write(name, *objects):
        lines = "".join(json.dumps(value) + "\n" for value in objects)
        (raw / name).write_bytes(gzip.compress(lines.encode()))

    def act(kind, info, second):
        time = f"2019-10-01T20:13:{second:02}.202-0400"
        return {"event_info": info, "event_timestamp": time, "event_type": kind}

    history = [
        act("search", "COTONETE FINO", 11),
        act("search", "cotonete fino", 15),
        act("view", 359634, 20),
    ]
    write("train_dataset.jl.gz", {"user_history": history, "item_bought": 359634})
    write("test_dataset.jl.gz", {"user_history": history[:1]})
    item = {
        "item_id": 359634,
        "title": "Cotonete",
        "domain_id": "MLB-COTTON_SWABS",
        "price": "64.99",
        "category_id": "MLB117639",
        "condition": "new",
    }
    write("item_data.jl.gz", item)
    report = load_preset(shop, "auto", raw)
    assert report.preset == "mercadolibre"
    assert sorted(short(stored())) == [
        ("test-1", "02 00:13:11.202000", "search", "COTONETE FINO", None),
        ("train-1", "02 00:13:11.202000", "search", "COTONETE FINO", None),
        ("train-1", "02 00:13:20.202000", "view", None, "359634"),
        ("train-1", "02 00:13:21.202000", "purchase", None, "359634"),
    ]
    facts = {"condition": "new", "site": "MLB"}
    assert products() == {"359634": ("Cotonete", None, "COTTON SWABS", 64.99, True, facts)}
    assert report.total.ignored == {"repeated search": 1}


ITEM = {
    "item_id": 3,
    "item_title": "红鞋",
    "brand_name": "UNKNOWN",
    "category_level1_name": "鞋",
    "category_level2_name": "UNKNOWN",
    "category_level3_name": "UNKNOWN",
}


def test_kuaisearch(shop, raw, stored, products, write_json):
    write_json("items.jsonl", ITEM)
    write_json(
        "recall.jsonl",
        {
            "user_id": 1,
            "session_id": 2,
            "time_index": 60,
            "query": "红鞋",
            "impressed_item_ids": [3, 4],
            "clicked_item_ids": [3],
            "purchased_item_ids": [3],
        },
    )
    report = load_preset(shop, "auto", raw)
    assert report.preset == "kuaisearch"
    assert [(user, kind, query, product) for user, _, kind, query, product in stored()] == [
        ("1", "search", "红鞋", None),
        ("1", "click", "红鞋", "3"),
        ("1", "purchase", "红鞋", "3"),
    ]
    assert products() == {"3": ("红鞋", None, "鞋", None, True, {})}


def test_the_rank_form_of_kuaisearch_is_one_search_of_many_rows(shop, raw, stored, write_json):
    row = {"user_id": 1, "session_id": 2, "time_index": 60, "query": "红鞋"}
    write_json("items.jsonl", ITEM)
    write_json(
        "rank.jsonl",
        {**row, "target_item_id": 3, "is_clicked": 1, "is_purchased": 0},
        {**row, "target_item_id": 4, "is_clicked": 0, "is_purchased": 0},
    )
    load_preset(shop, "kuaisearch", raw)
    assert [(kind, product) for _, _, kind, _, product in stored()] == [
        ("search", None),
        ("click", "3"),
    ]


def test_amazonqac(shop, raw, stored):
    duckdb.execute(
        f"""COPY (SELECT 'q1' AS query_id, 's1' AS session_id, ['sh'] AS prefixes,
            'shoes' AS final_search_term, '2023-09-04 20:46:14' AS search_time,
            [['red', '2023-09-04 20:40:00.123']] AS past_search_terms)
        TO '{raw}/part-0.snappy.parquet'"""
    )
    report = load_preset(shop, "auto", raw)
    assert short(stored()) == [
        ("s1", "04 20:40:00.123000", "search", "red", None),
        ("s1", "04 20:46:14", "search", "shoes", None),
    ]
    assert "no cases can be built" in report.total.notes[0]


def test_trivago(shop, raw, stored, products, write_csv):
    header = (
        "user_id",
        "session_id",
        "timestamp",
        "step",
        "action_type",
        "reference",
        "platform",
        "city",
        "device",
        "current_filters",
        "impressions",
        "prices",
    )
    rows = [
        (1, "search for destination", "Paris, France", "", ""),
        (2, "interaction item image", "11", "", ""),
        (3, "search for item", "unknown", "", ""),
        (4, "filter selection", "Hotel", "", ""),
        (5, "clickout item", "11", "12|11", "80|95"),
        (6, "clickout item", "", "12", "70"),
    ]
    write_csv(
        "train.csv",
        header,
        *(
            ("u", "s", NOON, n, kind, reference, "FR", "Paris", "mobile", "", shown, prices)
            for n, kind, reference, shown, prices in rows
        ),
    )
    write_csv("item_metadata.csv", ("item_id", "properties"), (11, "Satellite TV|3 Star|Hotel"))
    report = load_preset(shop, "auto", raw)
    assert report.preset == "trivago"
    assert [(kind, query, product) for _, _, kind, query, product in stored()] == [
        ("search", "Paris, France", None),
        ("view", None, "11"),
        ("click", None, "11"),
    ]
    assert products() == {
        "11": ("Hotel 11 3 Star, Hotel", None, None, 95.0, True, {}),
        "12": ("Hotel 12", None, None, 70.0, True, {}),
    }
    assert report.total.ignored == {"clickout item": 1, "filter selection": 1, "search for item": 1}


PRODUCTS = b"""<?xml version="1.0"?>
<products><product><sku>1</sku><name>Halo</name><manufacturer>Bungie</manufacturer>
<categoryPath><category><id>a</id><name>Best Buy</name></category>
<category><id>b</id><name>Games</name></category></categoryPath>
<regularPrice>59.99</regularPrice><salePrice>49.99</salePrice><color>Green</color>
<onlineAvailability>false</onlineAvailability><inStoreAvailability>true</inStoreAvailability>
</product><product><sku>2</sku><name>Not clicked</name></product></products>
"""


def test_bestbuy_big(shop, raw, stored, products, write_csv):
    write_csv(
        "train.csv",
        ("user", "sku", "category", "query", "click_time", "query_time"),
        ("u", "1", "abcat1", "Halo", "2011-09-01 23:44:52.533", "2011-09-01 23:43:59"),
        ("u", "1", "abcat1", "Halo", "2011-09-01 23:45:00", "2011-09-01 23:43:59"),
    )
    with tarfile.open(raw / "product_data.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("product_data/products/products_0001.xml")
        member.size = len(PRODUCTS)
        archive.addfile(member, io.BytesIO(PRODUCTS))
    report = load_preset(shop, "auto", raw)
    assert report.preset == "bestbuy-big"
    assert short(stored()) == [
        ("u", "01 23:43:59", "search", "Halo", None),
        ("u", "01 23:44:52.533000", "click", "Halo", "1"),
        ("u", "01 23:45:00", "click", "Halo", "1"),
    ]
    assert products() == {"1": ("Halo", "Bungie", "Games", 49.99, True, {"color": "Green"})}
