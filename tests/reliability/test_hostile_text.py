"""Text from data stays text: in prompts, on terminals, in pages, in SQL and over HTTP."""

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chat_model import chat_folder
from click.testing import CliRunner
from crashes import small_shop
from fuzzing import trained
from hostile import CANARIES, TERMINAL
from hypothesis import given, settings
from hypothesis import strategies as st
from open_memory import OPEN_MEMORY
from qagent_cli.main import cli
from targets import Place, protocol, texts

from qagent_mlx.agent.recommend import Recommender
from qagent_mlx.agent.tools import SearchProducts, SearchRequest
from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.evaluate.html_report import page as evaluate_page
from qagent_mlx.evaluate.suite import evaluation_suite
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.search import open_search
from qagent_mlx.memory.inspect import page as memory_page
from qagent_mlx.policy.registry import open_policy
from qagent_mlx.policy.shop_memory import inspect_memory
from qagent_mlx.protocol.actions import OBSERVATION_TAGS, profile_text, results_text
from qagent_mlx.protocol.codec import load_codec
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.runs.html_report import page as run_page
from qagent_mlx.runs.run import Run
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import clean

START = datetime(2026, 3, 1)
# Everything but line breaks that could move a cursor, colour, or turn a line around.
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def write_hostile(folder: Path):
    """A shop whose every field holds a canary: 40 products, a user for each who comes back."""
    products, events = [], []
    for n, canary in enumerate(CANARIES):
        product = f"h{n} {canary}"
        products.append(
            {
                "product_id": product,
                "title": f"{canary} lamp {canary} {n}",
                "brand": canary,
                "category": f"{canary} > lamps",
                "price": 5 + n,
                "stock": True,
                "attributes": json.dumps({canary or "x": canary}),
                "time": str(START),
            }
        )
        for visit in range(4):
            at = START + timedelta(days=5 * visit + 1, minutes=7 * n)
            row = {"user_id": f"user {canary} {n}", "query": f"lamp {canary} {n % 7}"}
            events += [
                {**row, "time": str(at), "type": "search"},
                {
                    **row,
                    "time": str(at + timedelta(seconds=9)),
                    "type": "click",
                    "product_id": product,
                },
                {
                    **row,
                    "time": str(at + timedelta(seconds=30)),
                    "type": "purchase",
                    "product_id": product,
                },
            ]
    for kind, rows in (("products", products), ("events", events)):
        (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return small_shop(folder / "shop", folder / "products.jsonl", folder / "events.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(write_hostile(tmp_path_factory.mktemp("hostile")))


@pytest.fixture(scope="module")
def shop(folder):
    with Shop.open(folder) as shop:
        yield shop


@pytest.fixture(scope="module")
def users(shop):
    rows = shop.connection.execute("SELECT DISTINCT user_id FROM events ORDER BY 1").fetchall()
    return [user for (user,) in rows]


def test_sql_in_text_is_stored_and_runs_nowhere(shop, users):
    counts = shop.counts()
    assert counts["products"] == len(CANARIES) and counts["events"] == 12 * len(CANARIES)
    assert counts["rejects"] == 0 and len(users) == len(CANARIES)
    search = open_search(shop)
    search.search([q for canary in CANARIES for q in (canary, f"lamp {canary}")], 5)
    for user in users[::8]:
        assert inspect_memory(shop, user).events == 12
    assert shop.counts() == counts


def observations(shop, users):
    recommender = Recommender(shop, open_policy(shop, "base"), group=1)
    profiles = recommender.profiles(users, START + timedelta(days=30))
    tool = SearchProducts(recommender.search, AgentConfig())
    for number, profile in enumerate(profiles):
        yield profile_text(profile), ["<profile>", "</profile>"], len(profile.references)
        query = CANARIES[number] or "lamp"
        (found,) = tool.run([SearchRequest(f"lamp {query}", None, profile.context)])
        yield results_text(1, found.lines), ["<results>", "<s1>", "</results>"], 0


def test_no_observation_holds_a_tag_that_data_wrote(shop, users):
    for text, ours, references in observations(shop, users):
        found = re.findall(r"<[^>\n]*>?|>", text)
        assert sorted(t for t in found if not re.fullmatch(r"<r\d+>", t)) == sorted(ours)
        assert sum(bool(re.fullmatch(r"<r\d+>", t)) for t in found) == references


def test_no_token_of_data_is_special_in_a_shops_or_a_chat_models_tokenizer(shop, users, tmp_path):
    own = load_codec(shop.path / "policies" / "base")
    chat = load_codec(chat_folder(tmp_path / "chat"))
    special = set(chat._wrapper.all_special_ids) | chat.eos_ids
    tags = {tag: own.encode(tag)[0] for tag in OBSERVATION_TAGS}
    for text, ours, _ in observations(shop, users):
        ids = Counter(own.observation(text))
        assert all(ids[number] == (tag in ours) for tag, number in tags.items())
        assert not ids.keys() & own.eos_ids
        assert not special & set(chat.encode(text))


@settings(max_examples=40)
@given(st.randoms())
def test_reading_and_writing_any_text_keeps_the_protocol(base_folder, tmp_path_factory, draw):
    place = _place(base_folder, tmp_path_factory)
    protocol(draw, place)
    texts(draw, place)


_places = {}


def _place(base_folder, factory):
    if base_folder not in _places:
        _places[base_folder] = Place(base_folder, factory.mktemp("place"))
    return _places[base_folder]


# ---------------------------------------------------------------- people


def test_what_one_person_did_is_in_nobody_elses_profile(base_folder, tmp_path):
    import shutil

    shutil.copytree(base_folder, tmp_path / "shop")
    with Shop.open(tmp_path / "shop", read_only=False) as shop:
        memory = replace(OPEN_MEMORY, least_users=2, least_users_unknown=2)
        shop.config = replace(shop.config, memory=memory)
        rows = []
        for person in ("alice", "carol"):
            for n in range(3):
                at = datetime(2026, 3, 30, 15 + n)
                query = f"{person}canary lamp {n}"
                rows += [
                    {"user_id": person, "time": at, "type": "search", "query": query},
                    {
                        "user_id": person,
                        "time": at,
                        "type": "purchase",
                        "query": query,
                        "product_id": "p400",
                    },
                ]
                rows += [
                    {
                        "user_id": person,
                        "time": at + timedelta(seconds=m),
                        "type": kind,
                        "query": "sharedcanary lamp",
                        "product_id": None if kind == "search" else "p400",
                    }
                    for m in range(1, 20)
                    for kind in ("search", "click")
                ]
        # Trends are those of whole hours, so somebody comes later.
        rows.append(
            {"user_id": "u05", "time": datetime(2026, 3, 30, 20), "type": "search", "query": "lamp"}
        )
        assert append_events(shop, rows).rejected == 0
        seen = {
            u: json.dumps(inspect_memory(shop, u).to_dict())
            for u in ("alice", "carol", "u01", "u05", "new")
        }
        recommender = Recommender(shop, open_policy(shop, "base"), group=2)
        decode = recommender.policy.codec.decode
        for found in recommender.recommend(["alice", "carol", "u01", "new"]):
            mine = " ".join(decode(c.tokens) for c in found.chains)
            seen[found.user_id] += mine + json.dumps([r.query for r in found.recommendations])
    for user, text in seen.items():
        for person in ("alice", "carol"):
            assert (f"{person}canary" in text) == (user == person), (user, person)
    assert "sharedcanary" in seen["new"]


# ---------------------------------------------------------------- terminals


def run(folder, *words, code=0):
    result = CliRunner().invoke(cli, [*words, "--shop", str(folder)])
    assert result.exit_code == code, (words, result.output, result.exception)
    return result.output


def test_a_terminal_shows_text_and_obeys_none_of_it(folder, users):
    shown = []
    for canary in (*TERMINAL, CANARIES[0], "\u202e"):
        n = CANARIES.index(canary)
        shown.append(run(folder, "memory", clean(f"user {canary} {n}")))
        shown.append(run(folder, "search", f"lamp {canary}", "--explain", "-k", "3"))
    shown.append(run(folder, "recommend", *users[:6], "--policy", "base", "--chains"))
    shown.append(run(folder, "memory", "export", users[3]))
    shown += [
        run(folder, "runs", *words)
        for words in (
            ("list",),
            ("show", "grpo"),
            ("rollouts", "grpo", "-n", "40"),
            ("diff", "grpo", "sft"),
        )
    ]
    for text in shown:
        assert not UNSAFE.search(text), text
    whole = "".join(shown)
    assert "[bold red]rich[/bold red]" in whole and ":skull:" in whole


@pytest.mark.parametrize(
    "words",
    [
        ("memory", "forget", "{}", "--yes"),
        ("recommend", "u", "--policy", "{}"),
        ("runs", "show", "{}"),
        ("train", "sft", "--policy", "{}"),
        ("ingest", "events", "{}.csv"),
        ("index", "--encoder", "{}"),
    ],
)
def test_an_error_repeats_what_was_typed_and_obeys_none_of_it(folder, words):
    for canary in ("\x1b[31mred", "\x9b31m", "[bold red]x[/]", "\u202eabc"):
        output = run(folder, *(w.format(canary) for w in words), code=1)
        assert not UNSAFE.search(output), output
        assert output.splitlines()[-1].startswith("Error: ")


# ---------------------------------------------------------------- pages


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.handlers = Counter(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.handlers += [
            n for n, v in attrs if n.startswith("on") or str(v).startswith("javascript")
        ]


def pages(shop, users):
    """name → HTML, as the commands write them."""
    wanted = [u for n, u in enumerate(users) if n % 5 == 0 or "script" in u or "onload" in u]
    made = {f"memory {u}": memory_page(inspect_memory(shop, u)) for u in wanted}
    for name in ("grpo", "sft"):
        made[f"run {name}"] = run_page(Run.open(shop, name))
    config = EvaluationConfig(
        baselines=("popular", "repeat-last"),
        group=1,
        limit=12,
        details=9,
        by=("history",),
        compare=(("base", "popular"),),
    )
    suite = evaluation_suite(shop, ["base"], config)
    report = replace(suite.evaluate(), shop=CANARIES[20], derived=None, simulated=False)
    catalog = suite.environment.search.catalog
    titles = dict(zip(catalog.ids, catalog.titles, strict=True))
    made["evaluate"] = evaluate_page(report, titles, suite.rollouts(), [])
    return made


def test_pages_hold_no_element_that_data_wrote(shop, users):
    made = pages(shop, users)
    plain = Elements(memory_page(inspect_memory(shop, "nobody")))
    for name, text in made.items():
        found = Elements(text)
        assert not found.handlers, name
        assert not found.tags.keys() & {"img", "iframe", "object", "base", "form", "embed"}
        if name.startswith("memory"):
            assert found.tags == plain.tags, name
        else:
            assert found.tags["script"] == 0, name


# ---------------------------------------------------------------- HTTP


def test_the_server_answers_in_json_that_no_browser_runs(folder, users):
    from starlette.testclient import TestClient

    from qagent_mlx.serve.config import ServeConfig
    from qagent_mlx.serve.http import create_app

    config = ServeConfig(policy="base", chains=1, read_only=True, deadline_ms=30_000.0)
    with TestClient(create_app(folder, config), base_url="http://127.0.0.1") as client:
        for n, canary in enumerate(CANARIES[::2]):
            answers = (
                [
                    client.get("/search", params={"q": f"lamp {canary}"}),
                    client.post(
                        "/recommend", json={"user": f"user {clean(canary)} {2 * n}", "k": 1}
                    ),
                    client.post("/recommend", json={"user": "u", canary: 1}),
                    client.post("/policy", json={"policy": canary or "x"}),
                    client.get(
                        f"/users/{json.dumps(canary)}/memory".replace("\\", "").replace("\n", "")
                    ),
                ]
                if n % 4 == 0
                else [client.get("/search", params={"q": f"lamp {canary}"})]
            )
            for answer in answers:
                assert answer.status_code < 500, answer.text
                assert (
                    answer.headers["content-type"].startswith("application/json")
                    or answer.status_code == 404
                )
                assert answer.headers["x-content-type-options"] == "nosniff"
        metrics = client.get("/metrics").text
    assert "lamp" not in metrics and "user " not in metrics
