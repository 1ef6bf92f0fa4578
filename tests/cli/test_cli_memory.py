import shutil


def test_a_user_comes_first_and_commands_are_words(cli, built):
    assert cli.json("memory", "ann", "--shop", built) == cli.json(
        "memory", "show", "ann", "--shop", built
    )
    assert cli.json("memory", "--shop", built, "ann")["user"] == "ann"
    assert "export" in cli.run("memory", "--help").stdout


def test_a_user_may_be_called_like_a_command(cli, built):
    assert cli.json("memory", "show", "forget", "--shop", built)["user"] == "forget"


def test_the_graph_can_be_written_as_a_page(cli, built, tmp_path):
    page = tmp_path / "ann.html"
    result = cli.run("memory", "ann", "--html", page, "--shop", built)
    assert "wrote" in result.stderr
    assert "ann" in page.read_text()
    assert (
        cli.json("memory", "ann", "--html", page, "--as-of", "2026-01-05", "--shop", built)[
            "events"
        ]
        == 8
    )


def test_export_and_forget(cli, built, tmp_path):
    path = tmp_path / "own"
    shutil.copytree(built, path)
    assert len(cli.json("memory", "export", "ann", "--shop", path)["events"]) == 40
    report = cli.json("memory", "forget", "ann", "--shop", path)
    assert (report["user"], report["events"], report["policies"]) == ("ann", 40, [])
    assert cli.json("memory", "ann", "--shop", path)["events"] == 0
    assert cli.json("memory", "export", "ann", "--shop", path)["events"] == []
    assert "nothing is held of ann" in cli.error("memory", "forget", "ann", "--shop", path)
    assert "40 events" in cli.run("memory", "forget", "bob", "--shop", path).stdout


def test_memory_is_built_by_itself(cli, built, tmp_path):
    path = shutil.copytree(built, tmp_path / "own")
    report = cli.json("memory", "build", "--shop", path)
    assert report["users"] == report["computed"] == 2
    assert cli.json("memory", "ann", "--shop", path)["events"] == 40


def test_kinds_of_products_that_were_taken_from_titles_are_said(cli, tmp_path):
    titles = {"a": "Acme Gel Pen", "b": "Lexo Gel Pen", "c": "Orbi Copy Paper", "d": "Copy Paper"}
    rows = [f"{p},{t},{t.split()[0] if p < 'd' else ''}" for p, t in titles.items()]
    (tmp_path / "products.csv").write_text("\n".join(["product_id,title,brand", *rows]))
    days = [f"ann,2026-01-0{day} 10:00:00,purchase,{p}" for day, p in enumerate("abcd", 1)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,time,type,product_id", *days]))
    path = tmp_path / "shop"
    cli.run("init", "--shop", path)
    for kind in ("products", "events"):
        cli.run("ingest", kind, tmp_path / f"{kind}.csv", "--shop", path)
    told = "4 products without a category are named by 2 kinds from words of their titles"
    for command in (("memory", "build"), ("index",)):
        assert told in " ".join(cli.run(*command, "--shop", path).stdout.split())
        assert cli.json(*command, "--shop", path)["title_kinds"] == {
            "products": 4,
            "from_titles": 4,
            "kinds": 2,
            "examples": ["copy paper", "gel pen"],
        }


def test_two_users_are_wrong_usage(cli, built):
    cli.run("memory", "ann", "bob", "--shop", built, code=2)
