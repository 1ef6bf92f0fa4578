from __future__ import annotations

import shutil

import duckdb
import pytest


def tiny_sample(files, folder):
    with duckdb.connect() as connection:
        for name in ("products", "events"):
            connection.execute(
                f"COPY (SELECT * FROM '{files}/{name}.csv') TO '{folder}/{name}.parquet'"
            )
    (folder / "simulator.json").write_text('{"seed": 7}')
    return folder


def test_init_makes_an_empty_shop_once(cli):
    assert cli.json("init", "--shop", "new")["products"] == 0
    assert "already holds a shop" in cli.error("init", "--shop", "new")


def test_init_sample_is_ready_to_use(cli, files, tmp_path, monkeypatch):
    folder = tiny_sample(files, tmp_path)
    monkeypatch.setattr("qagent_mlx.build.sample_data_folder", lambda: folder)
    report = cli.json("init", "--sample", "--shop", "new")
    assert (report["products"], report["users"]) == (4, 2)
    assert cli.json("search", "stove", "--shop", "new")["results"][0]["product_id"] == "p3"
    from qagent_mlx.shop.shop import Shop

    with Shop.open("new") as shop:
        assert shop.config.simulated == {"seed": 7}
        assert shop.meta("line_worth")


def test_init_sample_leaves_nothing_behind_when_it_fails(cli, tmp_path, monkeypatch):
    (tmp_path / "simulator.json").write_text("{}")
    monkeypatch.setattr("qagent_mlx.build.sample_data_folder", lambda: tmp_path)
    cli.error("init", "--sample", "--shop", "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "tent"),
        ("memory", "ann"),
        ("index",),
        ("recommend", "ann"),
        ("runs", "list"),
        ("evaluate",),
        ("train", "sft"),
        ("train", "grpo"),
        ("pretrain",),
        ("ingest", "retry"),
        ("ingest", "products", "x.csv"),
        ("models", "show", "base", "--shop", "none"),
    ],
)
def test_without_a_shop_the_line_says_to_make_one(cli, arguments):
    where = () if "--shop" in arguments else ("--shop", "none")
    assert "qagent init" in cli.error(*arguments, *where)


def test_the_shop_can_be_named_by_environment(cli, built, monkeypatch):
    monkeypatch.setenv("QAGENT_SHOP", str(built))
    assert cli.json("search", "stove")["query"] == "stove"


def test_ingest_counts_and_explains(cli, tmp_path):
    cli.run("init", "--shop", "new")
    path = tmp_path / "some.csv"
    path.write_text("sku,label,price\na,Tent,12\nb,,\nc,Mat,x\nd,Bag,\n")
    arguments = ("ingest", "products", path, "--map", "title=label", "--shop", "new")
    report = cli.json(*arguments)
    assert report["accepted"] == 2 and report["rejected"] == 2 and report["duplicates"] == 0
    assert report["reasons"] == {"no title": 1, "bad price": 1}
    assert cli.json(*arguments)["duplicates"] == 2
    shown = cli.run(*arguments).stdout
    assert "some.csv row 2: no title; every product needs a title" in shown


def test_ingest_errors_name_the_remedy(cli, files, tmp_path):
    cli.run("init", "--shop", "new")
    assert "no such file" in cli.error("ingest", "products", "gone.csv", "--shop", "new")
    line = cli.error("ingest", "products", files / "events.csv", "--shop", "new")
    assert line.startswith("Error: --map title=COLUMN is missing: ")
    line = cli.error("ingest", "products", files / "products.csv", "--map", "x", "--shop", "new")
    assert "field=column" in line


def test_ingest_reads_paths_values_joins_and_queries(cli, tmp_path, monkeypatch):
    cli.run("init", "--shop", "new")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.json").write_text(
        '[{"id": 1, "title": "Tent"}, {"id": 2, "title": "Mat"}]'
    )
    assert cli.json("ingest", "products", tmp_path / "p", "--shop", "new")["accepted"] == 2
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"q": 5, "user": {"id": "u"}, "time": "2026-01-05", "kind": "find", "query": "a"}\n'
    )
    (tmp_path / "clicks.csv").write_text("ref,time,items\n5,2026-01-06,'[1]'\n".replace("'", '"'))
    report = cli.json(
        *("ingest", "events", log, "--join", tmp_path / "clicks.csv", "--on", "q=ref"),
        *("--map", "user_id=user.id", "--map", "type=kind", "--map", "product_id=items[]"),
        *("--value", "type:find=search", "--shop", "new"),
    )
    assert (report["accepted"], report["rejected"]) == (2, 0)
    query = "SELECT 'v' AS user_id, DATE '2026-01-07' AS time, 'view' AS type, 1 AS product_id"
    assert cli.json("ingest", "events", "--sql", query, "--shop", "new")["accepted"] == 1
    line = cli.error("ingest", "events", log, "--join", log, "--map", "user_id=x", "--shop", "new")
    assert "--on must name the column" in line
    line = cli.error("ingest", "events", log, "--value", "type:find=serch", "--shop", "new")
    assert line.startswith("Error: --value 'type:find=serch'")


def test_rejected_events_come_in_after_their_products(cli, files):
    cli.run("init", "--shop", "new")
    report = cli.json("ingest", "events", files / "events.csv", "--shop", "new")
    assert report["reasons"] == {"unknown product": 40}
    cli.run("ingest", "products", files / "products.csv", "--shop", "new")
    assert cli.json("ingest", "retry", "--shop", "new")["accepted"] == 40


def test_index_reports(cli, built):
    report = cli.json("index", "--shop", built)
    assert report["products"] == 4 and "seconds" in report and "learned_from" in report
    again = cli.json("index", "--anew", "--shop", built)
    assert {**again, "seconds": 0} == {**report, "seconds": 0}
    refused = cli.run("index", "--anew", "--update", "--shop", built, code=2)
    assert "without --update" in refused.stderr


def test_search_has_its_keys_and_filters(cli, built):
    found = cli.json("search", "tent", "-k", "2", "--shop", built)
    assert found["query"] == "tent"
    assert {"product_id", "title", "score", "price", "in_stock"} <= set(found["results"][0])
    only = cli.json("search", "tent", "--in-stock", "--max-price", "150", "--shop", built)
    assert {p["product_id"] for p in only["results"]} <= {"p1", "p3", "p4"}
    assert "no letters or digits" in cli.error("search", "?!", "--shop", built)


def test_search_says_why(cli, built):
    found = cli.json("search", "tents", "--explain", "--shop", built)["results"]
    why = found[0]["why"]
    assert {"words", "vectors"} <= set(why["sides"]) and why["words"][0]["matched"] == "tent"
    adds = sum(side["adds"] for side in why["sides"].values())
    assert adds == pytest.approx(found[0]["score"], abs=1e-5)
    shown = cli.run("search", "tents", "--explain", "--shop", built).stdout
    assert "BM25" in shown and "cosine" in shown and "matched" in shown
    assert "why" not in cli.json("search", "tents", "--shop", built)["results"][0]


def test_index_follows_the_catalog(cli, built, tmp_path):
    built = shutil.copytree(built, tmp_path / "own")
    (tmp_path / "more.csv").write_text("product_id,title\nz9,Zebra Carpet\n")
    cli.run("ingest", "products", tmp_path / "more.csv", "--shop", built)
    report = cli.json("index", "--update", "--shop", built)
    assert (report["added"], report["changed"], report["removed"]) == (1, 0, 0)
    assert cli.json("search", "zebra", "--shop", built)["results"][0]["product_id"] == "z9"
    assert cli.json("index", "--remove", "z9", "--shop", built)["removed"] == 1
    found = cli.json("search", "zebra", "--shop", built)["results"]
    assert "z9" not in {product["product_id"] for product in found}
    assert "has no product z9" in cli.error("index", "--remove", "z9", "--shop", built)
    assert "neither 'subword'" in cli.error("index", "--encoder", "nosuch", "--shop", built)


def test_titles_are_printed_as_they_are(cli, built):
    shown = cli.run("search", "tent", "--shop", built).stdout
    assert "[red]Acme[/red]" in shown and ":smile:" in shown


def test_memory_has_its_keys(cli, built):
    view = cli.json("memory", "ann", "--shop", built)
    assert {"user", "as_of", "tokens", "raw_tokens", "text", "sections", "graph"} <= set(view)
    assert view["tokens"] < view["raw_tokens"]
    assert {n["kind"] for n in view["graph"]["nodes"]} >= {"category", "brand", "term"}
    shown = cli.run("memory", "ann", "--shop", built).stdout
    assert "interest graph" in shown and "Tent" in shown


def test_memory_of_nobody_is_that_of_a_new_user(cli, built):
    view = cli.json("memory", "\x1b[31mnobody", "--shop", built)
    assert view["events"] == 0 and "new user" in view["text"]
    assert "\x1b" not in cli.run("memory", "\x1b[31mnobody", "--shop", built).stdout


def test_memory_sees_nothing_at_or_after_its_moment(cli, built):
    view = cli.json("memory", "ann", "--as-of", "2026-01-01T10:00:00", "--shop", built)
    assert view["events"] == 0 and view["graph"]["nodes"] == []
    zoned = cli.json("memory", "ann", "--as-of", "2026-01-01T12:00:00+02:00", "--shop", built)
    assert zoned["as_of"] == "2026-01-01T10:00:00"


def test_names_that_are_no_names(cli, built):
    for arguments in (
        ("recommend", "ann", "--policy", "nosuch"),
        ("evaluate", "--policy", "nosuch"),
        ("train", "sft", "--policy", "nosuch"),
        ("models", "show", "nosuch"),
    ):
        assert "there is no policy nosuch" in cli.error(*arguments, "--shop", built)


def test_rewards_and_weights_are_checked(cli, built, tmp_path):
    (tmp_path / "mine.py").write_text("def brief(outcome):\n    return 1.0\n")
    for options, expected in (
        (("--weight", "nosuch=1"), "known are format"),
        (("--weight", "query=nan"), "query=0.5"),
        (("--reward", "gone.py:brief"), "no file"),
        (("--reward", "mine.py:nosuch"), "no function nosuch"),
        (
            tuple(
                x
                for n in ("format", "tool", "query", "item", "consistency")
                for x in ("--weight", f"{n}=0")
            ),
            "must not be 0 for all rewards",
        ),
    ):
        assert expected in cli.error("train", "grpo", *options, "--shop", built)


def test_the_demo_removes_only_what_it_made(cli, built, tmp_path):
    folder = tmp_path / "things"
    folder.mkdir()
    (folder / "thing").write_text("mine")
    assert "choose another folder" in cli.error("demo", "--shop", folder, "--yes")
    assert (folder / "thing").read_text() == "mine"


def test_the_demo_plays_on_a_copy_of_somebody_elses_shop(cli, built, monkeypatch):
    before = {p.name: p.stat().st_size for p in built.iterdir()}
    played = []
    monkeypatch.setattr("qagent_cli.demo._play", lambda shop, *_: played.append(shop.path))
    result = cli.run("demo", "--shop", built, "--yes")
    assert "copy" in result.stderr
    assert played and played[0] != built and not played[0].exists()
    assert {p.name: p.stat().st_size for p in built.iterdir()} == before
    cli.run("demo", "--shop", built, "--keep")
    assert played[1] == built


def test_a_log_of_purchases_gets_queries_and_then_has_cases(cli, files, tmp_path):
    rows = [f"u{n % 3},2026-01-{n % 28 + 1:02},p{n % 3 + 1}" for n in range(60)]
    (tmp_path / "bought.csv").write_text("customer_id,t_dat,article_id\n" + "\n".join(rows))
    cli.run("init", "--shop", "s")
    cli.run("ingest", "products", files / "products.csv", "--shop", "s")
    cli.run("ingest", "events", tmp_path / "bought.csv", "--type", "purchase", "--shop", "s")
    cli.run("index", "--shop", "s")
    assert "qagent ingest derive" in cli.error("evaluate", "--baselines", "--shop", "s")
    assert cli.json("ingest", "derive", "--shop", "s")["derived"] == "from category paths"
    report = cli.json("evaluate", "--baseline", "popular", "--shop", "s")
    assert report["derived"] == "from category paths" and report["cases"] > 0


def test_ingest_says_what_it_understood_and_a_dry_run_stores_nothing(cli, files):
    cli.run("init", "--shop", "new")
    shown = cli.run("ingest", "products", files / "products.csv", "--dry-run", "--shop", "new")
    assert "columns: product_id = product_id" in shown.stdout
    assert "nothing was stored; run it again without --dry-run" in shown.stdout
    report = cli.json("ingest", "products", files / "products.csv", "--shop", "new")
    (understood,) = report["understood"]
    assert understood["columns"]["title"] == "title" and report["duplicates"] == 0


def test_a_load_that_rejects_everything_ends_in_an_error(cli, tmp_path):
    cli.run("init", "--shop", "new")
    path = tmp_path / "e.csv"
    path.write_text("user_id,time,type,product_id\nu,2026-01-01,view,p9\n")
    line = cli.error("ingest", "events", path, "--shop", "new")
    assert "nothing of it is stored; row 1: unknown product 'p9'; ingest its products" in line
    path.write_text("id,title,price\n1,A,2\n2,B,x\n3,C,x\n")
    line = cli.error("ingest", "products", path, "--shop", "new")
    assert line.startswith("Error: --max-rejects 0.5 is exceeded: e.csv: 2 of 3 rows")
    cli.run("ingest", "products", path, "--max-rejects", "0.7", "--shop", "new")
    assert cli.json("ingest", "rejects", "--shop", "new")["rows"] == 2


def test_loads_are_listed_and_undone_and_rejects_are_written(cli, tmp_path):
    cli.run("init", "--shop", "new")
    path = tmp_path / "p.csv"
    path.write_text("id,title,price\n1,A,2\n2,B,x\n3,C,3\n")
    cli.run("ingest", "products", path, "--shop", "new")
    assert "p.csv" in cli.run("ingest", "history", "--shop", "new").stdout
    out = tmp_path / "rejects.csv"
    assert "bad price" in cli.run("ingest", "rejects", "--out", out, "--shop", "new").stdout
    assert "bad price" in out.read_text()
    assert cli.json("ingest", "undo", "1", "--shop", "new")["products_removed"] == 2
    assert "was undone at" in cli.error("ingest", "undo", "1", "--shop", "new")
    (load,) = cli.json("ingest", "history", "--shop", "new")["ingests"]
    assert load["undone"] and load["accepted"] == 2
    assert cli.json("ingest", "rejects", "--clear", "--shop", "new")["rows"] == 0


def test_recommendations_are_written_in_the_form_of_the_name(cli, built, tmp_path):
    line = cli.error("recommend", "--all", "--out", tmp_path / "x.xls", "--shop", built)
    assert "end it in .csv, .jsonl, .parquet" in line
