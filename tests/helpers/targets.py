"""What is fuzzed: each target takes a random generator and a workplace, and gives one input.

A target returns when the input was taken or refused in one clear line; whatever else happens
is a fault: another exception, a hang, a dead process, memory that grows. tests/reliability
runs each a few hundred times under hypothesis; ``python tests/benchmarks/fuzz.py`` as often as
it is told.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import hostile
import mlx.core as mx
from starlette.exceptions import HTTPException
from starlette.requests import Request

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest import parse_fields
from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.ingest.report import IngestReport
from qagent_mlx.inventory.stored_index import load_index
from qagent_mlx.policy.files import load_policy, read_info
from qagent_mlx.protocol.actions import SLOTS, expand, parse_action, product_line, results_text
from qagent_mlx.protocol.codec import load_codec
from qagent_mlx.protocol.escape import safe
from qagent_mlx.runs.html_report import page as run_page
from qagent_mlx.runs.reader import overview
from qagent_mlx.runs.run import Run, run_names
from qagent_mlx.serve import http
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.config_files import Settings, read_settings
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.utils import text as text_module


class Place:
    """A workplace: a small shop with a policy, a finished run, and what is read from it once."""

    def __init__(self, shop: Path, scratch: Path) -> None:
        self.shop, self.scratch = shop, scratch
        scratch.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def own(self) -> Path:
        """A copy of the shop whose files are replaced by broken ones."""
        return Path(shutil.copytree(self.shop, self.scratch / "own"))

    @functools.cached_property
    def codec(self) -> Any:
        """The policy's tokenizer."""
        return load_codec(self.shop / "policies" / "base")

    @functools.cached_property
    def good(self) -> dict[str, bytes]:
        """The files of the shop as they were."""
        return {
            str(p.relative_to(self.shop)): p.read_bytes()
            for p in self.shop.rglob("*")
            if p.is_file()
        }

    @functools.cached_property
    def open_shop(self) -> Shop:
        """A copy of the shop, open for writing."""
        return Shop.open(shutil.copytree(self.shop, self.scratch / "rows"), read_only=False)

    @functools.cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where requests run."""
        return asyncio.new_event_loop()

    def spoil(self, draw: random.Random, name: str) -> Path:
        """Break one file of the copy; `heal` puts it back."""
        path = self.own / name
        good = self.good[name]
        if name.endswith(".json"):
            path.write_bytes(hostile.document(draw, json.loads(good)))
        else:
            path.write_bytes(hostile.broken(draw, good))
        return path

    def heal(self, name: str) -> None:
        """Put a file back as it was."""
        (self.own / name).write_bytes(self.good[name])


def clear_line(error: QAgentError) -> None:
    """What a user is told is one line of bearable length. (The CLI strips control characters.)"""
    line = text_module.clean(str(error))
    assert line, "an error without words"
    assert len(line) < 5_000, f"an error of {len(line)} characters"


def refusing(run: Callable[[], Any]) -> Any:
    """Run something that may refuse clearly."""
    try:
        return run()
    except QAgentError as error:
        clear_line(error)
        return None


# ---------------------------------------------------------------- targets


def protocol(draw: random.Random, place: Place) -> None:
    """What a model wrote, and what data would write into its context."""
    action = parse_action(hostile.text(draw))
    if action.kind in ("search", "recommend"):
        expand(action, ("a", "b"), ("a",))
    title, query = hostile.text(draw), hostile.text(draw)
    results = results_text(1, [product_line(1, title, ["$", "fits"]), product_line(2, query, [])])
    inner = results.removeprefix(f"<results>{SLOTS[0]}").removesuffix("</results>")
    assert "<" not in inner and ">" not in inner and inner.count("\n") == 1
    ids = place.codec.observation(results)
    assert [i for i in ids if i in _tags(place.codec)] == [
        i
        for i in place.codec.observation(results_text(1, ["1 a $ fits", "2 b"]))
        if i in _tags(place.codec)
    ]


@functools.cache
def _tags(codec: Any) -> frozenset[int]:
    return frozenset(i for tag in hostile.TAGS if len(ids := codec.encode(tag)) == 1 for i in ids)


def texts(draw: random.Random, place: Place) -> None:
    """The functions that every text from data goes through."""
    one, other = hostile.text(draw), hostile.text(draw)
    cleaned = text_module.clean(one)
    assert text_module.clean(cleaned) == cleaned
    assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in cleaned)
    key = text_module.query_key(one)
    assert text_module.query_key(key) == key
    assert 0.0 <= text_module.rouge_l(one[:300], other[:300]) <= 1.0
    assert "<" not in safe(one) and "\n" not in safe(one)
    attributes = draw.choice(
        (one, json.dumps(hostile.value(draw)), "{" + one, f"{one}={other};a=b")
    )
    made = parse_fields.attributes_or_mark(attributes)
    if made and made != "\0bad":
        made.encode()
        assert isinstance(json.loads(made), dict)
    parse_fields.category(attributes).encode()


class _Worker:
    """Takes what the routes would hand to the computing thread, and computes nothing."""

    def __init__(self) -> None:
        recommender = SimpleNamespace(search=SimpleNamespace(), policy=None)
        self.responder = SimpleNamespace(shop=None, chains=2, recommender=recommender)

    def post(self, rows: Any) -> Future[IngestReport]:
        """As `Worker.post`."""
        for row in rows:
            for name in ("user_id", "query", "product_id", "type"):
                assert row.get(name) is None or row[name].encode() is not None
        done: Future[IngestReport] = Future()
        done.set_result(IngestReport(accepted=len(rows)))
        return done

    def call(self, run: Any) -> Future[Any]:
        """As `Worker.call`."""
        done: Future[Any] = Future()
        code = getattr(run, "__code__", None)
        changes_catalog = code is not None and "change_catalog" in code.co_names
        done.set_result(IngestReport(accepted=1) if changes_catalog else [])
        return done


class _Service:
    def __init__(self) -> None:
        self.config, self.worker = ServeConfig(), _Worker()

    async def recommend(self, user: str, k: int, chains: int, deadline: float, as_of: Any) -> Any:
        user.encode()
        assert 1 <= k <= 100 and 1 <= chains <= 8 and deadline >= 1
        return {"user": user}


_GOOD_BODIES = (
    (
        "recommend",
        {"user_id": "u1", "k": 5, "chains": 2, "deadline_ms": 100, "as_of": "2026-03-01T12:00:00Z"},
    ),
    (
        "events",
        {
            "events": [
                {
                    "user_id": "u",
                    "type": "click",
                    "query": "a",
                    "product_id": "p",
                    "time": "2026-03-01",
                }
            ]
        },
    ),
    ("events", {"user_id": "u", "type": "search", "query": "a"}),
    ("policy", {"policy": "a"}),
    (
        "products",
        {
            "products": [
                {
                    "product_id": "p",
                    "title": "Lamp",
                    "category": ["a", "b"],
                    "price": 3.5,
                    "stock": 2,
                    "attributes": {"colour": "red"},
                    "time": "2026-03-01",
                }
            ]
        },
    ),
)


def bodies(draw: random.Random, place: Place) -> None:
    """Requests to the server's routes."""
    name, good = draw.choice(_GOOD_BODIES)
    body = hostile.document(draw, good)
    chunks = [body[: len(body) // 2], body[len(body) // 2 :]]
    query = "&".join(
        f"{k}={hostile.text(draw)}" for k in ("query", "q", "k", "min_price") if draw.random() < 0.8
    )

    async def receive() -> dict[str, Any]:
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": query.encode("utf-8", "replace"),
        "headers": [(b"content-type", b"application/json")],
        "path_params": {"user_id": hostile.text(draw), "product_id": hostile.text(draw)},
    }
    route = getattr(http, name) if draw.random() < 0.8 else http.search
    try:
        response = place.loop.run_until_complete(route(_Service(), Request(scope, receive)))
        json.loads(response.body)
    except HTTPException as error:
        assert 400 <= error.status_code < 500 and 0 < len(error.detail) < 500
        json.dumps({"error": error.detail}).encode()
    except QAgentError as error:
        clear_line(error)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return '""' if value is None else json.dumps(value)


_SETTINGS = b'policy = "a"\n[train]\nsteps = 3\nweights = {a = 1.0}\n[agent]\nmax_searches = 2\n'
_TRAIN = json.loads(json.dumps(asdict(GrpoConfig())))


def configs(draw: random.Random, place: Place) -> None:
    """Settings of a training (TOML) and of a shop (JSON)."""
    if draw.random() < 0.5:
        good = {
            "policy": "a",
            "train": _TRAIN,
            "agent": {"max_searches": 2},
            "split": {"test_share": 0.2},
        }
        made = hostile.changed(draw, good)
        if isinstance(made, dict) and draw.random() < 0.7:
            data = "\n".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in made.items()).encode()
        else:
            data = hostile.broken(draw, _SETTINGS)
        path = place.scratch / "settings.toml"
        path.write_bytes(data)
        found = refusing(lambda: read_settings(path, Settings(train=GrpoConfig())))
        if found is not None:
            refusing(found.train.check)
        return
    place.spoil(draw, "shop.json")
    opened = refusing(lambda: Shop.open(place.own))
    if opened is not None:
        opened.close()
    place.heal("shop.json")


_FIELDS = {
    "events": ("user_id", "time", "type", "query", "product_id"),
    "products": (
        "product_id",
        "title",
        "brand",
        "category",
        "price",
        "stock",
        "attributes",
        "time",
    ),
}
ROWS = 200  # of one file: each is an input


def rows(draw: random.Random, place: Place) -> None:
    """A file of `ROWS` rows, or such a list posted to the server."""
    kind = draw.choice(("events", "products"))
    form = (
        draw.choice(("jsonl", "csv", "posted"))
        if kind == "events"
        else draw.choice(("jsonl", "csv"))
    )
    made = [_row(draw, kind) for _ in range(ROWS)]
    shop = place.open_shop
    before = shop.counts()
    if form == "posted":
        report = append_events(shop, made)
    else:
        path = place.scratch / f"rows.{form}"
        if form == "jsonl":
            lines = [json.dumps(r, ensure_ascii=False).encode("utf-8", "replace") for r in made]
        else:
            cells = [
                ",".join('"' + str(v).replace('"', '""') + '"' for v in r.values()) for r in made
            ]
            lines = [
                ",".join(_FIELDS[kind]).encode(),
                *(c.encode("utf-8", "replace") for c in cells),
            ]
        if draw.random() < 0.3:  # some lines are torn
            at = draw.randrange(1, len(lines))
            lines[at] = hostile.broken(draw, lines[at])
        path.write_bytes(b"\n".join(lines))
        report = refusing(lambda: ingest_files(shop, kind, [path]))
        if report is None:
            assert shop.counts() == before, "a file that was refused left something"
            return
    assert min(report.accepted, report.rejected, report.duplicates) >= 0
    assert all(len(text_module.clean(line)) < 1000 for line in report.examples)


def _row(draw: random.Random, kind: str) -> dict[str, Any]:
    good = {
        "events": {
            "user_id": f"u{draw.randrange(9)}",
            "time": f"2026-04-{draw.randint(1, 28):02} 10:00:00",
            "type": "search",
            "query": "usb cable",
            "product_id": "",
        },
        "products": {
            "product_id": f"p{draw.randrange(999)}",
            "title": "Acme thing",
            "brand": "Acme",
            "category": "A > b",
            "price": "9.5",
            "stock": "1",
            "attributes": "",
            "time": "",
        },
    }[kind]
    for _ in range(draw.choice((0, 0, 1, 1, 2, 5))):
        name = draw.choice(list(good))
        good[name] = draw.choice((hostile.text(draw), draw.choice(hostile.TIMES + hostile.NUMBERS)))
        if draw.random() < 0.05:
            good[name] = "x" * 10_000
    return good


def models(draw: random.Random, place: Place) -> None:
    """A model folder from a stranger: one of its files is broken."""
    folder = "policies/base/"
    name = folder + draw.choice(
        (
            "policy.json",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
        )
    )
    path = place.spoil(draw, name)
    if name.endswith("safetensors"):  # its header is what is read first
        good = place.good[name]
        size = int.from_bytes(good[:8], "little")
        header = hostile.broken(draw, good[8 : 8 + size])
        length = (
            len(header) if draw.random() < 0.8 else draw.choice((0, 1, 2**31, 2**62, 2**64 - 1))
        )
        path.write_bytes(length.to_bytes(8, "little") + header + good[8 + size :])
    place.heal("policies/base/policy.json") if not name.endswith("policy.json") else None
    if "policy" not in name and draw.random() < 0.5:
        (place.own / folder / "policy.json").unlink()  # a plain model folder
    target = place.own / folder
    if name.endswith("tokenizer.json") and draw.random() < 0.5:
        refusing(lambda: load_codec(target))
    elif name.endswith("policy.json"):
        refusing(lambda: read_info(target))
    else:
        refusing(lambda: load_policy(target))
        mx.clear_cache()
    place.heal(name)
    place.heal(folder + "policy.json")


def runs(draw: random.Random, place: Place) -> None:
    """A training run from a stranger: one of its files is broken."""
    names = [
        n
        for n in place.good
        if n.startswith("runs/")
        and n.endswith((".json", ".jsonl"))
        and "checkpoints" not in n
        and "_" not in n.rpartition("/")[2]
    ]
    name = draw.choice(names)
    place.spoil(draw, name)
    lines = place.good[name].splitlines()
    if name.endswith("jsonl") and lines and draw.random() < 0.7:
        at = draw.randrange(len(lines))
        lines[at] = hostile.document(draw, json.loads(lines[at])).replace(b"\n", b" ")
        (place.own / name).write_bytes(b"\n".join(lines) + b"\n")
    with Shop.open(place.own) as shop:
        for run in refusing(lambda: run_names(shop)) or ():
            record = refusing(lambda run=run: Run.open(shop, run))
            if record is not None:
                refusing(lambda record=record: overview(record))
                refusing(lambda record=record: run_page(record))
    place.heal(name)


def indexes(draw: random.Random, place: Place) -> None:
    """A search index from a stranger: one of its files is broken."""
    name = draw.choice(
        [n for n in place.good if n.startswith("inventory/") and not n.endswith(".lock")]
    )
    place.spoil(draw, name)
    if not name.endswith(".json") and draw.random() < 0.7:
        # With sizes and checksums that fit, as whoever makes a trap would see to.
        manifest = json.loads(place.good["inventory/manifest.json"])
        from qagent_mlx.inventory.index_files import checksum

        path = place.own / name
        manifest["files"][path.name] = [path.stat().st_size, checksum(path)]
        (place.own / "inventory" / "manifest.json").write_text(json.dumps(manifest))
    refusing(lambda: load_index(place.own / "inventory"))
    place.heal(name)
    place.heal("inventory/manifest.json")


TARGETS: dict[str, tuple[Callable[[random.Random, Place], None], int, float]] = {
    # name -> target, inputs of one call, share of the inputs of a long run
    "protocol": (protocol, 1, 0.30),
    "texts": (texts, 1, 0.20),
    "HTTP bodies": (bodies, 1, 0.25),
    "config files": (configs, 1, 0.08),
    "ingested rows": (rows, ROWS, 0.15),
    "model folders": (models, 1, 0.005),
    "run folders": (runs, 1, 0.01),
    "indexes": (indexes, 1, 0.005),
}
