"""Presets on the command line; each remedy that a message names is run."""

import json
import re
import shlex

PRODUCTS = (
    "Handle,Title,Vendor,Variant SKU,Variant Price,Option1 Value,Status\n"
    "shirt,Shirt,Acme,sh-S,20.00,S,active\nshirt,,,sh-M,25.00,M,\n"
)
ORDERS = (
    "Name,Email,Financial Status,Created at,Lineitem name,Lineitem sku\n"
    "#1,a@b.c,paid,2026-01-06 10:30:45 +0200,Shirt - S,sh-S\n"
)
EVENT = {
    "event_name": "view_item",
    "event_timestamp": "1767639455000000",
    "event_params": [],
    "user_id": None,
    "user_pseudo_id": "c1",
    "items": [{"item_id": "p1", "item_name": "Tent"}],
}


def run_remedy(cli, text, shop):
    """Run the command in a message, as the user would."""
    (command,) = re.findall(r"qagent (ingest --preset .*)$", text.strip())
    return cli.json(*shlex.split(command), "--shop", shop)


def test_a_folder_is_recognised_and_the_report_names_all(cli, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "products_export.csv").write_text(PRODUCTS)
    (folder / "orders_export.csv").write_text(ORDERS)
    shop = tmp_path / "shop"
    cli.run("init", "--shop", shop)
    text = cli.run("ingest", "--from", folder, "--shop", shop).stdout
    assert "recognised: shopify" in text
    assert "products: 1 accepted" in text and "events: 1 accepted" in text
    report = cli.json("ingest", "--preset", "shopify", "--from", folder, "--shop", shop)
    assert (report["accepted"], report["duplicates"]) == (0, 2)
    assert report["preset"] == "shopify" and report["ignored"] == {}
    (note,) = report["notes"] or [re.findall("note: (.*)", text)[0]]
    assert note.endswith("qagent ingest derive")
    assert cli.json("ingest", "derive", "--shop", shop)["accepted"] == 1


def test_the_help_lists_presets_a_line_each(cli):
    text = cli.run("ingest", "--help").stdout
    assert re.search(r"\n  ubi  +OpenSearch User Behavior Insights", text)
    assert re.search(r"\n  bestbuy-big  +Best Buy, big set\n", text)


def test_the_error_of_a_known_formats_file_has_the_command_that_reads_it(cli, tmp_path):
    path = tmp_path / "my events 20260105.json"
    path.write_text(f"{json.dumps(EVENT)}\n{json.dumps({**EVENT, 'event_name': 'scroll'})}\n")
    shop = tmp_path / "shop"
    cli.run("init", "--shop", shop)
    text = cli.error("ingest", "products", path, "--shop", shop)
    assert "its format is known: qagent ingest --preset ga4 --from" in text
    assert run_remedy(cli, text, shop)["events"]["accepted"] == 1


def test_a_known_formats_file_that_goes_in_by_its_columns_has_a_note(cli, tmp_path):
    path = tmp_path / "feed.csv"
    path.write_text(
        "id,title,link,image_link,availability,price\np1,Tent,https://x,https://y,in stock,9 EUR\n"
    )
    shop = tmp_path / "shop"
    cli.run("init", "--shop", shop)
    report = cli.json("ingest", "products", path, "--shop", shop)
    (note,) = [note for note in report["notes"] if "qagent ingest" in note]
    assert report["accepted"] == 1
    assert run_remedy(cli, note, shop)["rejected"] == 0


def test_products_that_are_missing_are_named_with_what_to_do(cli, tmp_path):
    event = {
        "action_name": "click",
        "query_id": "q",
        "client_id": "u",
        "event_attributes": {"object": {"object_id": "p1"}},
        "timestamp": "2026-01-05T10:00:00Z",
    }
    events, products = tmp_path / "events.json", tmp_path / "products.csv"
    events.write_text(
        json.dumps(event)
        + "\n"
        + json.dumps({**event, "event_attributes": {"object": {"object_id": "p9"}}})
        + "\n"
    )
    products.write_text("product_id,title\np9,Stove\n")
    shop = tmp_path / "shop"
    cli.run("init", "--shop", shop)
    cli.run("ingest", "products", products, "--shop", shop)
    report = cli.json("ingest", "--preset", "ubi", "--from", events, "--shop", shop)
    assert report["reasons"] == {"unknown product": 1}
    products.write_text("product_id,title\np1,Tent\n")
    cli.run("ingest", "products", products, "--shop", shop)
    assert cli.json("ingest", "retry", "--shop", shop)["accepted"] == 1


def test_a_dry_run_says_all_and_stores_nothing(cli, tmp_path):
    path = tmp_path / "e.json"
    lines = [EVENT, {**EVENT, "event_name": "share"}, {**EVENT, "event_name": "scroll"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shop = tmp_path / "shop"
    cli.run("init", "--shop", shop)
    asked = ("ingest", "--from", path, "--value", "type:share=cart", "--shop", shop)
    text = cli.run(*asked, "--dry-run").stdout
    assert "view 1, cart 1; 1 users, 1 products" in text and "ignored: scroll 1" in text
    assert "from 2026-01-05 18:57:35 to 2026-01-05 18:57:35" in text
    assert "nothing is stored" in text
    assert cli.json(*asked)["events"]["accepted"] == 2
    assert "types only" in cli.error(
        "ingest", "--from", path, "--value", "query:a=b", "--shop", shop
    )


def test_a_file_of_parts_of_products_is_refused_with_the_command_that_reads_it(cli, tmp_path):
    path = tmp_path / "wc export.csv"
    path.write_text(
        "ID,Type,SKU,Name,In stock?,Regular price,Parent\n"
        "1,variable,w,Shirt,1,,\n2,variation,w-s,Shirt - S,1,20,id:1\n"
    )
    shop = tmp_path / "shop"
    cli.run("init", "--shop", shop)
    for kind in ("products", "events"):
        text = cli.error("ingest", kind, path, "--shop", shop)
        assert "WooCommerce" in text and "nothing is stored" in text
    assert run_remedy(cli, text, shop)["products"]["accepted"] == 1
    asked = ("ingest", "products", path, "--map", "title=Name", "--shop", shop)
    assert cli.json(*asked)["accepted"] == 2  # who maps columns knows what the rows are
