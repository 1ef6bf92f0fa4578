import gzip
import json
import shutil
from datetime import timedelta

import duckdb
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.forgetting import forget_events
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory import shop_tables
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.policy.shop_memory import SUMMARIES, inspect_memory
from qagent_mlx.privacy import erase_user, export_user
from qagent_mlx.runs.run import Run
from qagent_mlx.shop.shop import Shop
from qagent_mlx.shop.traces import note_export
from qagent_mlx.utils.atomic_files import write_json

WHO = "Zaphod-Beeblebrox-42"


@pytest.fixture
def shop(own_shop):
    """The small shop with one more user, a rejected row of theirs, a run and two policies."""
    MemoryStore(own_shop.connection, own_shop.config.memory).build()
    start = own_shop.end_of_log() - timedelta(days=1)
    rows = [
        {
            "user_id": WHO,
            "time": start + timedelta(minutes=i),
            "type": kind,
            "query": "usb cable",
            "product_id": "p001" if kind == "click" else None,
        }
        for i, kind in enumerate(["search", "click"] * 3)
    ]
    append_events(own_shop, [*rows, {"user_id": WHO, "time": start, "type": "dance"}])
    for name, user in (("saw", WHO), ("other", "u01")):
        run = Run.create(own_shop, name, {"kind": "grpo"})
        with duckdb.connect() as connection:
            connection.execute(
                f"""COPY (SELECT 1 AS case_id, '{user}' AS user_id, 'train' AS split
                UNION ALL SELECT 2, 'u02', 'train' UNION ALL SELECT 3, '{user}', 'test')
                TO '{run.folder}/cases.parquet' (FORMAT parquet)"""
            )
        run.append("rollouts", [{"step": 1, "user": user}, {"step": 1, "user": "u02"}])
        info = {"name": name, "base": "", "trained": [{"stage": "grpo", "run": name}]}
        write_json(own_shop.path / "policies" / name / "policy.json", info)
    child = {"name": "child", "base": "saw", "trained": []}
    write_json(own_shop.path / "policies" / "child" / "policy.json", child)
    return own_shop


def test_an_export_holds_all_that_is_known(shop):
    held = export_user(shop, WHO)
    json.dumps(held.to_dict(), default=str)
    assert len(held.events) == 6
    assert len(held.rejects) == 1
    assert held.memory.events == 6
    assert held.stored["user_id"] == WHO
    assert [c["case_id"] for c in held.cases["saw"]] == [1, 3]
    assert len(held.rollouts["saw"]) == 1
    assert "other" not in held.cases


def test_forgetting_names_the_policies_that_saw_the_user(shop):
    policies = erase_user(shop, WHO).policies
    assert [(p.policy, p.cases, p.certain, p.through) for p in policies] == [
        ("saw@1", 1, True, ""),
        ("child@1", 1, True, "saw@1"),
    ]


def test_what_is_forgotten_is_in_no_file_of_the_shop(shop):
    path = shop.path
    holding = [p for p in path.rglob("*") if p.is_file() and WHO.encode() in p.read_bytes()]
    shop.connection.execute("CHECKPOINT")
    assert holding
    report = erase_user(shop, WHO)
    assert (report.events, report.rejects) == (6, 1)
    assert (report.cases, report.rollouts) == ({"saw": 2}, {"saw": 1})
    shop.close()
    assert [p for p in path.rglob("*") if p.is_file() and WHO.encode() in p.read_bytes()] == []


ONLY_THEIRS = "Xyzzy-Quux lämp"


def type_alone(shop):
    """The user types queries that nobody else does: one of odd words, one of a catalog's word."""
    end = shop.end_of_log()
    rows = [
        {"user_id": WHO, "time": end + timedelta(seconds=n), "type": "search", "query": query}
        for n, query in enumerate((ONLY_THEIRS, "beans", "xyzzyquux LÄMP"))
    ]
    assert append_events(shop, rows).accepted == 3


def holding(folder, *texts):
    """The files that hold a text in any of its letters' cases, Parquet as what it says."""
    found = set()
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        said = path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            said = str(duckdb.sql(f"FROM '{path}'").fetchall())
        if any(text.lower() in said.lower() for text in texts):
            found.add(path.relative_to(folder).as_posix())
    return found


def test_a_query_that_only_they_typed_is_in_no_file_of_the_shop(shop, tmp_path):
    type_alone(shop)
    path, traces = shop.path, (WHO, "xyzzy", "lämp")
    moment = shop.end_of_log()
    with shop.transaction() as connection:  # another user was shown it
        connection.execute(
            """INSERT INTO recommendations (recommendation_id, user_id, ts, position, query,
            query_key, propensity, source, policy) VALUES ('r1', 'u02', ?, 1, ?, 'xyzzyquuxlämp',
            1, 'trending', 'a'), ('r1', 'u02', ?, 2, 'usb cable', 'usbcable', 1, 'agent', 'a')""",
            [moment, ONLY_THEIRS, moment],
        )
    run = Run.open(shop, "other")
    run.append(
        "rollouts",
        [
            {"step": 2, "user": "u02", "chain": f"<search>{ONLY_THEIRS}</search>"},
            {"step": 2, "user": "u02", "chain": "<search>coffee beans</search>"},
        ],
    )
    profile = json.dumps({"lines": [{"query": ONLY_THEIRS}]})  # with the letter as an escape
    for file, user in ((run.folder / "clicks.parquet", "u02"), (path / "recs.parquet", WHO)):
        duckdb.sql(
            f"""COPY (SELECT '{user}' AS user_id, 'lamp' AS query, ['p1'] AS products
            UNION ALL SELECT 'u02', '{ONLY_THEIRS}', [] UNION ALL SELECT 'u02', '{profile}', []
            UNION ALL SELECT 'u03', 'coffee beans', ['ripe beans', 'p2'])
            TO '{file}' (FORMAT parquet)"""
        )
    (path / "mine.csv").write_text(f'user,query\nu02,"{ONLY_THEIRS}"\nu02,"a, b"\n')
    (path / "policies" / "saw" / "tokenizer.json").write_text('{"vocab": {"xyzzy-quux lämp": 5}}')
    note_export(path, tmp_path / "elsewhere.csv")
    note_export(path, tmp_path / "gone.csv")
    (tmp_path / "elsewhere.csv").write_text("")
    shop.connection.execute("CHECKPOINT")
    assert {"shop.duckdb", "runs/other/rollouts.jsonl", "recs.parquet"} <= holding(path, *traces)
    report = erase_user(shop, WHO)
    shop.close()
    (left,) = holding(path, *traces)
    assert left.startswith("policies/saw/") and left.endswith("tokenizer.json")
    assert report.queries == 2
    assert report.files == {"mine.csv": 1, "recs.parquet": 3}
    assert [p.rpartition("/")[2] for p in report.remains] == ["tokenizer.json", "elsewhere.csv"]
    kept = duckdb.sql(f"FROM '{path}/recs.parquet'").fetchall()
    assert kept == [("u03", "coffee beans", ["ripe beans", "p2"])]
    assert (path / "mine.csv").read_text() == 'user,query\nu02,"a, b"\n'
    with Shop.open(path) as again:
        shown = again.connection.execute("SELECT query FROM recommendations").fetchall()
        chains = [row.get("chain") for row in Run.open(again, "other").rows("rollouts")]
    assert shown == [("usb cable",)] and chains[-1] == "<search>coffee beans</search>"


def test_files_of_other_forms_are_cleaned_or_named(shop):
    extra = shop.path / "extra"
    extra.mkdir()
    forms = {
        "struct": f"{{'who': '{WHO}', 'n': 1}} AS s",
        "map": f"map {{'{WHO}': 1}} AS m",
        "list": f"[{{'who': '{WHO}'}}] AS l",
        "blob": f"'{WHO}'::BLOB AS b",
        "kept": "{'who': 'u02', 'n': 1.5::DECIMAL(4, 2)} AS s, 3.5::DECIMAL(4, 2) AS d, NULL AS o",
    }
    for name, columns in forms.items():
        duckdb.sql(f"COPY (SELECT {columns}) TO '{extra / name}.parquet' (FORMAT parquet)")
    (extra / "long.csv").write_text(f"user,text\nu02,{'y' * 200_000}\n{WHO},x\n")
    shutil.copy(shop.path / "shop.duckdb", extra / "backup.duckdb")
    (extra / "march.jsonl.gz").write_bytes(gzip.compress(WHO.encode()))
    report = erase_user(shop, WHO)
    erased = [*(f"extra/{name}.parquet" for name in forms if name != "kept"), "extra/long.csv"]
    assert report.files == dict.fromkeys(erased, 1)
    assert {"extra/backup.duckdb", "extra/march.jsonl.gz"} <= set(report.remains)
    assert "shop.duckdb" not in report.remains


def test_a_query_that_others_typed_too_stays_with_them(shop):
    type_alone(shop)
    row = {"user_id": "u02", "time": shop.end_of_log(), "type": "search", "query": ONLY_THEIRS}
    append_events(shop, [row])
    assert erase_user(shop, WHO).queries == 1
    assert "xyzzyquux" in str(shop.connection.execute("FROM query_kinds").fetchall())


def test_a_part_that_is_forgotten_is_in_no_file_either(shop):
    type_alone(shop)
    shop.connection.execute("CHECKPOINT")
    path = shop.path
    assert forget_events(shop, WHO, ONLY_THEIRS) == 2
    shop.close()
    assert holding(path, "xyzzy") == set()


def test_what_killed_processes_left_of_the_user_is_forgotten_too(shop):
    path = shop.path
    (path / "runs" / "saw" / ".0123456789ab-rollouts.jsonl").write_text(WHO)
    (path / "runs" / "never-began").mkdir()
    (path / "runs" / "never-began" / "cases.parquet").write_text(WHO)
    (path / SUMMARIES).mkdir(parents=True, exist_ok=True)
    (path / SUMMARIES / ".0123456789ab-0.json").write_text(WHO)
    shop.close()
    (path / ".0123456789ab-shop.duckdb").write_text(WHO)
    with Shop.open(path, read_only=False) as again:
        erase_user(again, WHO)
    assert [p for p in path.rglob("*") if p.is_file() and WHO.encode() in p.read_bytes()] == []
    assert not list(path.rglob(".0123*"))


def test_the_shop_is_as_if_the_user_had_never_come(shop):
    append_events(
        shop, [{"user_id": "last", "time": shop.end_of_log(), "type": "search", "query": "x"}]
    )
    erase_user(shop, WHO)
    kept = {
        t: shop.connection.execute(f"FROM {t} ORDER BY ALL").fetchall()
        for t in shop_tables.SHOP_TABLES
    }
    users = {u for (u,) in shop.connection.execute("SELECT user_id FROM profiles").fetchall()}
    assert WHO not in users
    assert len(users) == shop.counts()["users"]
    views = [inspect_memory(shop, user) for user in ("u01", WHO)]
    MemoryStore(shop.connection, shop.config.memory).build()
    again = {
        t: shop.connection.execute(f"FROM {t} ORDER BY ALL").fetchall()
        for t in shop_tables.SHOP_TABLES
    }
    assert kept == again
    assert views == [inspect_memory(shop, user) for user in ("u01", WHO)]
    assert views[1].events == 0


def test_the_shop_can_be_used_and_written_after_forgetting(shop):
    erase_user(shop, WHO)
    report = append_events(
        shop, [{"user_id": WHO, "time": shop.end_of_log(), "type": "search", "query": "desk lamp"}]
    )
    assert report.accepted == 1
    assert inspect_memory(shop, WHO).events == 1
    ids = shop.connection.execute(
        "SELECT count(*), count(DISTINCT event_id) FROM events"
    ).fetchone()
    assert ids[0] == ids[1]


def test_other_users_keep_their_cases_and_chains(shop):
    erase_user(shop, WHO)
    assert len(list(Run.open(shop, "saw").rows("rollouts"))) == 1
    assert export_user(shop, "u02").cases.keys() == {"saw", "other"}


def test_a_user_of_whom_nothing_is_held_is_an_error(shop):
    with pytest.raises(QAgentError, match="nothing is held of nobody"):
        erase_user(shop, "nobody")


def test_a_shop_whose_memory_is_not_stored_forgets_too(shop):
    MemoryStore(shop.connection, shop.config.memory).discard()
    erase_user(shop, WHO)
    path = shop.path
    shop.close()
    assert [p for p in path.rglob("*") if p.is_file() and WHO.encode() in p.read_bytes()] == []
    with Shop.open(path) as again:
        assert inspect_memory(again, "u01").events > 0
