"""Work that is killed at random moments, and what must hold afterwards.

Each `Work` runs in a process of its own and tells what it has begun and what was accepted.
`kill_and_check` ends it with SIGKILL in the middle of something and then looks at the shop
from outside, as the next command would. tests/reliability does this a few times;
``python tests/benchmarks/kills.py`` a few hundred times.
"""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map

from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.inventory.bm25 import BM25Index
from qagent_mlx.inventory.catalog import read_catalog
from qagent_mlx.inventory.index import build_index, open_index
from qagent_mlx.inventory.index_files import MANIFEST, leftovers
from qagent_mlx.inventory.stored_index import load_index
from qagent_mlx.inventory.updates import refresh_index, remove_products
from qagent_mlx.inventory.vector_index import to_half_precision
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.types import Moment
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.promotions import promoted
from qagent_mlx.policy.registry import derive, save_next
from qagent_mlx.policy.small_llama import new_policy, save_base
from qagent_mlx.policy.versions import policies, promote, remove, rollback
from qagent_mlx.protocol.codec import train_tokenizer
from qagent_mlx.runs import checkpoint
from qagent_mlx.runs.loop import Stopped
from qagent_mlx.runs.run import Run
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.server import run as serve
from qagent_mlx.shop.policy_folders import parse_reference
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.grpo_run import resume_grpo, train_grpo
from qagent_mlx.train.monitors import AlarmConfig
from qagent_mlx.train.sft import SftConfig, resume_sft, train_sft

START = datetime(2026, 4, 1)
QUERIES = ("usb cable", "running shoes", "desk lamp", "acme coffee beans", "phone case")
PATIENCE = 600.0  # seconds in which a process must have told something
_context = multiprocessing.get_context("forkserver")
# Children are forked from a process that has imported all this and started nothing.
_context.set_forkserver_preload(["crashes"])


def at_once(path: Path) -> Path:
    """A copy of a shop beside it, to look into without touching what was left behind."""
    copy = Path(tempfile.mkdtemp(dir=path.parent)) / "shop"
    shutil.copytree(path, copy)
    return copy


@dataclass
class Tally:
    """What was done and found."""

    kills: int = 0
    operations: int = 0  # that had been acknowledged
    events: int = 0  # accepted ones that were looked for
    undone: int = 0  # operations in work when the kill came, that left nothing
    done: int = 0  # the same, that were whole all the same
    seconds: float = 0.0


@dataclass
class Work:
    """Something that a process does over and over in a shop of its own.

    Args:
        folder: The shop.
        seed: Of all random choices.
    """

    folder: Path
    seed: int = 0
    tally: Tally = field(default_factory=Tally)
    round: int = 0
    deep: bool = True  # whether this round's check also compares memory, which takes a second
    words: ClassVar[int] = 6  # a kill comes after at most so many
    name: ClassVar[str] = ""

    def begin(self) -> None:
        """Before the first round."""

    def run(self, tell: Any) -> None:
        """Work for ever, in the process that is killed; tell what begins and what is done."""
        raise NotImplementedError

    def meanwhile(self, told: list[Any], stop: threading.Event) -> None:
        """In the process that kills, from the first word on."""

    def check(self, told: list[Any]) -> None:
        """After a kill: nothing accepted is lost, nothing doubled, all goes on."""
        raise NotImplementedError


def _child(work: Work, out: Any) -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    logging.disable(logging.CRITICAL)
    lock = threading.Lock()

    def tell(*words: Any) -> None:
        with lock:
            out.send(words)

    work.run(tell)


def kill_and_check(work: Work, kills: int, on_round: Any = None) -> Tally:
    """Kill the work so many times at random moments, and check the shop each time."""
    draw = random.Random(work.seed)
    work.begin()
    began = time.monotonic()
    for work.round in range(1, kills + 1):
        reader, writer = _context.Pipe(duplex=False)
        process = _context.Process(target=_child, args=(work, writer), daemon=True)
        process.start()
        writer.close()
        told: list[Any] = []
        stop = threading.Event()
        helper = threading.Thread(target=work.meanwhile, args=(told, stop))
        # Some words after the start, and then a moment between two words.
        words, last, gap = draw.randint(1, work.words), time.monotonic(), 0.1
        until = last + PATIENCE
        seen = 0
        while len(told) < words:
            assert time.monotonic() < until, f"{work.name}: silent after {told[-3:]}"
            if reader.poll(0.02):
                try:
                    told.append(reader.recv())
                except EOFError:
                    raise AssertionError(
                        f"{work.name}: ended by itself after {told[-3:]}"
                    ) from None
            if len(told) > seen:
                if not seen:
                    helper.start()
                now = time.monotonic()
                seen, gap, last, until = len(told), now - last, now, now + PATIENCE
        time.sleep(draw.uniform(0.0, 1.2) * min(gap, 2.0))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        stop.set()
        helper.join()
        while reader.poll():
            try:
                told.append(reader.recv())
            except EOFError:
                break
        reader.close()
        work.tally.kills += 1
        work.deep = work.round == kills or work.round % 5 == 0
        work.check(told)
        if on_round is not None:
            on_round(work)
    work.tally.seconds = time.monotonic() - began
    return work.tally


def small_shop(path: Path, products: Path, events: Path) -> Path:
    """A shop from two files, with its index, its stored memory and a random policy, ``base``."""
    with Shop.create(path) as shop:
        for kind, file in (("products", products), ("events", events)):
            assert ingest_files(shop, kind, [file]).rejected == 0
        build_index(shop)
        texts = (
            "SELECT title FROM products UNION ALL SELECT query FROM events WHERE query IS NOT NULL"
        )
        rows = shop.connection.execute(f"{texts} ORDER BY ALL").fetchall()
        tokenizer = train_tokenizer([text for (text,) in rows], 512)
        policy, config = new_policy(tokenizer, "nano", "base", 0)
        save_base(policy, tokenizer, config, path / "policies" / "base")
        with shop.transaction() as connection:
            MemoryStore(connection, shop.config.memory).build()
    return path


# ---------------------------------------------------------------- what must agree


def events_agree(shop: Shop) -> None:
    """No event is there twice, and each has its session."""
    ((total, once, lost),) = shop.connection.execute(
        """SELECT count(*), count(DISTINCT (user_id, ts, type, query_key, product_id)),
                  count(*) FILTER (session_id IS NULL) FROM events"""
    ).fetchall()
    assert total == once, f"{total - once} events are there twice"
    assert not lost, f"{lost} events belong to no session"


def memory_agrees(shop: Shop, users: list[str]) -> None:
    """What is stored of users says the same as what the log says."""
    ((end,),) = shop.connection.execute("SELECT max(ts) FROM events").fetchall()
    moments = [Moment(user, end + timedelta(seconds=1)) for user in users]

    def texts() -> list[str]:
        memory = Memory(shop.connection, shop.config.memory, count_words)
        return [profile.text for profile in memory.profiles(moments)]

    if not MemoryStore(shop.connection, shop.config.memory).is_current():
        # A new product moved the price bands, which puts the store off until `qagent index`.
        with shop.transaction():
            MemoryStore(shop.connection, shop.config.memory).build()
    stored = texts()
    MemoryStore(shop.connection, shop.config.memory).discard()
    assert texts() == stored


def memory_of_copy_agrees(path: Path, users: list[str]) -> None:
    """The same of a shop that must stay as it is."""
    copy = at_once(path)
    with Shop.open(copy, read_only=False) as shop:
        memory_agrees(shop, users)
    shutil.rmtree(copy.parent)


def index_matches(index: Any, shop: Shop) -> bool:
    """The index holds the catalog as it is, and answers as one built from it would."""
    catalog = read_catalog(shop)
    for name in ("ids", "titles", "brands", "categories", "attributes"):
        assert getattr(index.catalog, name) == getattr(catalog, name)
    assert np.array_equal(index.catalog.prices, catalog.prices, equal_nan=True)
    assert np.array_equal(index.catalog.in_stock, catalog.in_stock)
    assert index.manifest.catalog_version == shop.catalog_version
    texts = catalog.texts()
    lexical = BM25Index.build(texts, catalog.titles)
    for query in (
        "acme usb cable",
        "red running shoes",
        "zebra carpet",
        "desk lamp",
        "cofee beens",
    ):
        wanted = lexical.scores(lexical.query_terms(query))
        assert np.array_equal(index.lexical.scores(index.lexical.query_terms(query)), wanted)
    vectors = to_half_precision(index.encoder.encode(texts))
    assert np.allclose(index.vectors.get(np.arange(len(catalog))), vectors, atol=2e-3)
    return True


# ---------------------------------------------------------------- ingest


def _rows(draw: random.Random, stem: str, count: int) -> list[dict[str, Any]]:
    made = []
    for number in range(count):
        time_ = START + timedelta(seconds=draw.randrange(20 * 86400), milliseconds=number)
        row = {
            "user_id": f"{stem}u{draw.randrange(4)}",
            "time": time_.isoformat(),
            "type": "search",
            "query": draw.choice(QUERIES),
            "product_id": "",
        }
        if draw.random() < 0.3:
            row |= {"type": "click", "product_id": f"p{draw.randrange(5)}{draw.randrange(4)}0"}
        made.append(row)
    return made


class Ingest(Work):
    """Files of events and of products, one after the other."""

    name = "ingest"

    def run(self, tell: Any) -> None:
        """Ingest new files."""
        draw = random.Random(f"{self.seed}-{self.round}")
        place = self.folder.parent / "files"
        place.mkdir(exist_ok=True)
        tell("ready")
        number = 0
        while True:
            number += 1
            stem = f"r{self.round}f{number}"
            with Shop.open(self.folder, read_only=False) as shop:
                if number % 4 == 0:
                    file = place / f"{stem}.csv"
                    price = draw.randint(1, 99)
                    file.write_text(
                        f"product_id,title,price\np000,Acme Usb Cable,{price}\n"
                        f"{stem},Kite {stem},{price}\n"
                    )
                    tell("products", file.name, 2)
                    ingest_files(shop, "products", [file])
                    tell("stored", file.name)
                    continue
                rows = _rows(draw, stem, draw.randint(1, 300))
                text = "\n".join(json.dumps(row) for row in rows)
                file = place / f"{stem}.jsonl{draw.choice(['', '.gz'])}"
                file.write_bytes(
                    gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode()
                )
                tell("events", file.name, len(rows))
                report = ingest_files(shop, "events", [file])
                assert (report.accepted, report.rejected) == (len(rows), 0), report
                tell("stored", file.name)

    def check(self, told: list[Any]) -> None:
        """Each file is in whole or not at all, in whole where it was acknowledged."""
        stored = {word[1] for word in told if word[0] == "stored"}
        begun = [word for word in told if word[0] in ("events", "products")]
        files = self.folder.parent / "files"
        with Shop.open(self.folder) as shop:  # as the next reader finds it
            shop.counts()
        with Shop.open(self.folder, read_only=False) as shop:
            users = []
            for kind, name, count in begun:
                stem = name.partition(".")[0]
                table = (
                    "events WHERE user_id LIKE ?"
                    if kind == "events"
                    else "products WHERE product_id LIKE ?"
                )
                whole = count if kind == "events" else 1

                def there(table: str = table, stem: str = stem) -> int:
                    like = f"{stem}u%" if "events" in table else stem
                    ((n,),) = shop.connection.execute(
                        f"SELECT count(*) FROM {table}", [like]
                    ).fetchall()
                    return int(n)

                now = there()
                assert now in (0, whole), f"{name}: {now} of {whole} rows"
                if name in stored:
                    assert now == whole, f"{name} was accepted and is lost"
                    self.tally.operations += 1
                    self.tally.events += count if kind == "events" else 0
                else:
                    self.tally.done += now == whole
                    self.tally.undone += now != whole
                    ingest_files(
                        shop, kind, [files / name]
                    )  # whoever does it again doubles nothing
                    assert there() == whole
                users += [f"{stem}u0"] * (kind == "events")
            events_agree(shop)
        shutil.rmtree(files)
        if self.deep:
            memory_of_copy_agrees(self.folder, [*users[-3:], "u01", "u07"])


# ---------------------------------------------------------------- the index


class Index(Work):
    """Products that come, change and go, and the index that follows."""

    name = "index update"

    def run(self, tell: Any) -> None:
        """Change the catalog and update the index."""
        file = self.folder.parent / "more.csv"
        tell("ready")
        number = 0
        while True:
            number += 1
            with Shop.open(self.folder, read_only=False) as shop:
                kite = f"k{self.round}{number % 7}"
                file.write_text(
                    f"product_id,title,price\n{kite},Kite number {number},{number}\n"
                    f"p000,Acme USB Cable,{self.round}.{number}\n"
                )
                ingest_files(shop, "products", [file])
                tell("changed", shop.catalog_version)
                if number % 3 == 0:
                    remove_products(shop, [kite])
                    tell("removed", kite)
                refresh_index(shop)
                tell("indexed", shop.catalog_version)

    def check(self, told: list[Any]) -> None:
        """The index opens, and after the update that any search makes it matches the catalog."""
        changed = max((w[1] for w in told if w[0] in ("changed", "indexed")), default=0)
        indexed = max((w[1] for w in told if w[0] == "indexed"), default=0)
        self.tally.operations += sum(w[0] != "ready" for w in told)
        assert (self.folder / "inventory" / MANIFEST).exists()
        before = load_index(self.folder / "inventory")  # whole, if perhaps older than the catalog
        assert before.manifest.catalog_version >= indexed
        with Shop.open(self.folder) as shop:
            assert shop.catalog_version >= changed
            late = before.manifest.catalog_version != shop.catalog_version
            self.tally.undone += late
            self.tally.done += not late
            index = open_index(shop)
            assert index_matches(index, shop)
            assert leftovers(index.folder, index.manifest) == []


# ---------------------------------------------------------------- training

SPLIT = SplitConfig(test_share=0.2, validation_share=0.1)
LORA = LoraConfig(rank=2)
QUIET = AlarmConfig(format="off", dropped="off", entropy="off", kl="off")
ENDLESS = 1_000_000


def lively(outcome: Any) -> float:
    """Spread that a policy which knows nothing gets: the parity of its first token."""
    tokens = outcome.rollout.tokens[outcome.rollout.prompt_length :]
    return float(tokens[0] % 2)


COMPONENTS = {"lively": lively}
GRPO = GrpoConfig(
    steps=ENDLESS,
    cases_per_step=2,
    group=3,
    save_every=2,
    measured=2,
    lora=LORA,
    learning_rate=1e-3,
    solvable=False,
    alarms=QUIET,
    weights={"lively": 1.0},
)
SFT = SftConfig(steps=ENDLESS, batch_size=4, save_every=2, measured=2, lora=LORA)


class Grpo(Work):
    """A run that is started once and resumed ever after; its twin is never killed."""

    name = "training (GRPO) and resume"
    kind = "grpo"

    def train(self, shop: Shop, on_step: Any) -> None:
        """Start the run, or go on with it."""
        if (shop.path / "runs" / self.kind / "config.json").exists():
            resume_grpo(shop, self.kind, None, COMPONENTS, on_step)
        else:
            train_grpo(
                shop, "base", self.kind, GRPO, split=SPLIT, components=COMPONENTS, on_step=on_step
            )

    def train_until(self, shop: Shop, step: int) -> None:
        """Go on until a step was done, and stop as Ctrl-C does."""

        def on_step(row: dict[str, Any]) -> None:
            if row["step"] == step:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            self.train(shop, on_step)
        except Stopped:
            return
        raise AssertionError("it did not stop")

    def begin(self) -> None:
        """Make the twin."""
        self.twin = self.folder.with_name("twin")
        shutil.copytree(self.folder, self.twin)

    def run(self, tell: Any) -> None:
        """Train for ever."""
        with Shop.open(self.folder) as shop:
            self.train(shop, lambda row: tell("step", row["step"]))

    def check(self, told: list[Any]) -> None:
        """The run goes on to the same bits as one that nobody killed."""
        last = max(word[1] for word in told)
        self.tally.operations += len(told)
        with Shop.open(self.folder) as shop:
            record = Run.open(shop, self.kind)
            rows = list(record.rows("metrics"))
            assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
            assert len(rows) >= last, "a step that was reported is lost"
            places = checkpoint.saved(record.folder / "checkpoints")
            at = int(places[-1].name.partition("-")[2])
            assert at >= last - last % GRPO.save_every - GRPO.save_every
            self.tally.undone += len(rows) - at  # steps that are done again
            self.train_until(shop, len(rows) + 1)
            assert not list((record.folder / "checkpoints").glob(".*writing*"))
        with Shop.open(self.twin) as shop:
            self.train_until(shop, len(rows) + 1)
        same_run(self.folder, self.twin, self.kind)


class Sft(Grpo):
    """The same with SFT."""

    name = "training (SFT) and resume"
    kind = "sft"

    def train(self, shop: Shop, on_step: Any) -> None:
        """Start the run, or go on with it."""
        if (shop.path / "runs" / self.kind / "config.json").exists():
            resume_sft(shop, self.kind, on_step)
        else:
            train_sft(shop, "base", self.kind, SFT, split=SPLIT, on_step=on_step)


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if "seconds" not in k and not k.endswith("_per_s")}


def same_run(one: Path, other: Path, name: str) -> None:
    """Two shops hold the same run: weights and metrics to the bit."""
    with Shop.open(one) as a, Shop.open(other) as b:
        left, right = ([_timeless(r) for r in Run.open(s, name).rows("metrics")] for s in (a, b))
        assert len(left) == len(right)
        assert left == right
    places = [checkpoint.saved(p / "runs" / name / "checkpoints")[-1] for p in (one, other)]
    assert places[0].name == places[1].name
    for file in ("adapters.safetensors", "optimizer.safetensors"):
        left, right = (mx.load(str(place / file)) for place in places)
        assert left.keys() == right.keys()
        for key in left:
            assert np.array_equal(np.array(left[key]), np.array(right[key])), key


class Checkpoints(Work):
    """Checkpoints and policies that are saved one after the other, with known weights."""

    name = "checkpointing"

    def run(self, tell: Any) -> None:
        """Save and save again."""
        with Shop.open(self.folder) as shop:
            policy = derive(shop, "base", "saved", LORA)
        optimizer = optim.AdamW(learning_rate=1e-3)
        optimizer.init(policy.model.trainable_parameters())
        places = self.folder / "saved-here"
        checkpoint.clear(places)
        found = checkpoint.saved(places)
        number = int(found[-1].name.partition("-")[2]) if found else 0
        tell("ready")
        while True:
            number += 1
            weights = tree_map(
                lambda w, n=number: mx.full(w.shape, float(n)), policy.model.trainable_parameters()
            )
            policy.model.update(weights)
            optimizer.state["step"] = mx.array(number, mx.uint64)
            checkpoint.save(places, number, policy, optimizer, {"value": -abs(number - 7)}, keep=2)
            tell("checkpoint", number)
            policy.info = replace(policy.info, trained=({"stage": "grpo", "step": number},))
            policy.save(self.folder / "policies" / "saved")
            tell("policy", number)

    def check(self, told: list[Any]) -> None:
        """The newest checkpoint is one that was saved, whole; so is the policy."""
        last = {
            kind: max((w[1] for w in told if w[0] == kind), default=0)
            for kind in ("checkpoint", "policy")
        }
        self.tally.operations += len(told) - 1
        places = self.folder / "saved-here"
        found = checkpoint.saved(places) if places.exists() else []
        if last["checkpoint"]:
            assert found, "no checkpoint is left"
        for place in found:
            weights = mx.load(str(place / "adapters.safetensors"))
            stored = mx.load(str(place / "optimizer.safetensors"))
            step = int(place.name.partition("-")[2])
            values = {float(v) for w in weights.values() for v in np.unique(np.array(w))}
            assert values == {float(step)}
            assert int(stored["step"].item()) == step
        if found:
            newest = int(found[-1].name.partition("-")[2])
            assert newest >= last["checkpoint"]
            self.tally.done += newest > last["checkpoint"]
            self.tally.undone += newest == last["checkpoint"]
            best = checkpoint.best(places)
            assert best is not None
            if newest > 9:
                assert best.name == "step-000007", "the best checkpoint is lost"
        folder = self.folder / "policies" / "saved"
        if not (folder / "policy.json").exists():
            assert not last["policy"]
            return
        policy = load_policy(folder)
        step = policy.info.trained[0]["step"]
        assert step >= last["policy"]
        values = {
            float(v) for _, w in tree_flatten(policy.adapter()) for v in np.unique(np.array(w))
        }
        assert values == {float(step)}, "weights and policy.json are of different saves"


class Versions(Work):
    """Versions of a policy that are saved, promoted, rolled back and removed."""

    name = "saving and promoting versions"
    words = 12

    def run(self, tell: Any) -> None:
        """Save and promote, and remove what is old."""
        with Shop.open(self.folder, read_only=False) as shop:
            policy = derive(shop, "base", "saved", LORA)
            tell("ready")
            while True:
                number = save_next(shop, policy)  # the weights say which version was before
                tell("saved", number)
                weights = tree_map(
                    lambda w, n=number: mx.full(w.shape, float(n)),
                    policy.model.trainable_parameters(),
                )
                policy.model.update(weights)
                policy.info = replace(policy.info, trained=({"stage": "grpo", "step": number},))
                promote(shop, f"saved@{number}")
                tell("promoted", number)
                if number % 3 == 0:
                    tell("rolled back", parse_reference(rollback(shop).policy)[1])
                old = [v for v in policies(shop)[:-4] if v.name == "saved" and not v.promoted]
                tell("removing", *(v.version for v in old))
                if old:
                    remove(shop, [v.policy for v in old])

    def check(self, told: list[Any]) -> None:
        """Every version is whole, none is lost, and the promoted one is there."""
        self.tally.operations += len(told) - 1
        with Shop.open(self.folder) as shop:
            versions = {v.policy: v for v in policies(shop)}
            assert not [v.problem for v in versions.values() if v.problem]
            now = promoted(shop)
            assert not now or now in versions
            removed = {f"saved@{n}" for t in told if t[0] == "removing" for n in t[1:]}
            for word in told:
                if word[0] == "saved":
                    reference = f"saved@{word[1]}"
                    assert (reference in versions) or reference in removed
            changes = [t for t in told if t[0] in ("promoted", "rolled back")]
            if changes and not [t for t in told[told.index(changes[-1]) :] if t[0] == "saved"]:
                self.tally.undone += now == f"saved@{changes[-1][1]}"
            for version in versions.values():
                if version.name != "saved":
                    continue
                policy = load_policy(Path(version.folder))
                values = {
                    float(v)
                    for key, w in tree_flatten(policy.adapter())
                    if key.endswith("lora_b")
                    for v in np.unique(np.array(w))
                }
                before = policy.info.trained[0]["step"] if policy.info.trained else 0
                assert values == {float(before)}, "weights and policy.json are of different saves"
                assert before < version.version


# ---------------------------------------------------------------- serving


class Serving(Work):
    """A server, clients who ask, who change products, and who post events, again if need be.

    Another process reads the shop meanwhile, and so stores the journal too.
    """

    name = "serving with events coming in"

    def run(self, tell: Any) -> None:
        """Serve."""
        config = ServeConfig(port=0, policy="base", chains=2, rate=0.0, deadline_ms=20_000.0)
        serve(
            self.folder,
            config,
            lambda line: tell("ready", line.split("http://127.0.0.1:")[1].split()[0]),
        )

    def begin(self) -> None:
        """Nobody has posted anything."""
        self.accepted: list[tuple[str, int]] = []
        self.unknown: list[tuple[str, int]] = []
        self.products: dict[str, float | None] = {}  # prices; None after a removal

    def __getstate__(self) -> dict[str, Any]:
        """The process that serves needs none of the client's lists."""
        return {
            k: v for k, v in self.__dict__.items() if k not in ("accepted", "unknown", "products")
        }

    def meanwhile(self, told: list[Any], stop: threading.Event) -> None:
        """Post from three threads and ask from one, until the server is gone."""
        port = int(told[0][1])
        again, self.unknown = self.unknown, []
        lock = threading.Lock()

        def post(client: int) -> None:
            draw = random.Random(f"{self.seed}-{self.round}-{client}")
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            number = 0
            while not stop.is_set():
                number += 1
                with lock:
                    batch = (
                        again.pop()
                        if again
                        else (f"s{self.round}c{client}n{number}", draw.randint(1, 5))
                    )
                try:
                    answer = send(connection, "/events", {"events": posted(*batch)})
                    assert answer["accepted"] + answer["duplicates"] == batch[1], answer
                    self.accepted.append(batch)
                    told.append(("accepted", *batch))
                except (OSError, http.client.HTTPException, ValueError):
                    self.unknown.append(batch)
                    break
            self.unknown.extend(again[client::3] if stop.is_set() else [])

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while not stop.is_set():
                try:
                    send(connection, "/recommend", {"user_id": "u01", "k": 2})
                except (OSError, http.client.HTTPException, ValueError):
                    return

        def change() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            number = 0
            while not stop.is_set():
                number += 1
                name = f"kite{self.round}-{number // 3}"
                body: dict[str, Any] = {"product_id": name, "price": float(number)}
                if number % 3 == 0:
                    body["title"] = f"Kite {number}"
                before = self.products.pop(name, None)
                try:
                    if number % 3 == 2 and number % 2:
                        connection.request("DELETE", f"/products/{name}")
                        answer = connection.getresponse()
                        answer.read()
                        if before is not None:
                            assert answer.status == 200
                            self.products[name] = None
                        continue
                    stored = "error" not in send(connection, "/products", body)
                    if stored and (before is not None or "title" in body):
                        self.products[name] = float(number)
                except (OSError, http.client.HTTPException, ValueError):
                    return

        def look() -> None:
            while not stop.wait(0.5):
                with suppress(QAgentError), Shop.open(self.folder) as shop:
                    shop.counts()

        threads = [threading.Thread(target=post, args=(n,)) for n in range(3)]
        threads += [threading.Thread(target=work) for work in (ask, change, look)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def check(self, told: list[Any]) -> None:
        """What was answered is there once; what was not is there once or not at all."""
        with Shop.open(self.folder, read_only=False) as shop:
            events_agree(shop)
            counts = dict(
                shop.connection.execute(
                    "SELECT user_id, count(*) FROM events WHERE user_id LIKE 's%' GROUP BY 1"
                ).fetchall()
            )
            prices = dict(
                shop.connection.execute(
                    "SELECT product_id, price FROM products WHERE product_id LIKE 'kite%'"
                ).fetchall()
            )
            wrong = {n: (p, prices.get(n)) for n, p in self.products.items() if p != prices.get(n)}
            assert not wrong, f"acknowledged changes of products are lost: {wrong}"
            if self.deep:
                assert index_matches(open_index(shop), shop)
            assert not list((self.folder / "journal").glob("*.log")), "the journal was not stored"
        for user, count in self.accepted:
            assert counts.get(user, 0) == count, f"{user}: {counts.get(user, 0)} of {count} events"
        for user, count in self.unknown:
            assert counts.get(user, 0) in (0, count)
            self.tally.done += user in counts
            self.tally.undone += user not in counts
        mine = [batch for batch in self.accepted if batch[0].startswith(f"s{self.round}c")]
        self.tally.operations += len(mine)
        self.tally.events = sum(count for _, count in self.accepted)
        if self.deep:
            memory_of_copy_agrees(self.folder, [user for user, _ in mine[-3:]] + ["u01"])


def posted(user: str, count: int) -> list[dict[str, Any]]:
    """The events of a batch: the same for the same user, so that posting again is no new event."""
    return [
        {
            "user_id": user,
            "type": "search",
            "query": QUERIES[n % len(QUERIES)],
            "time": (START + timedelta(seconds=n)).isoformat(),
        }
        for n in range(count)
    ]


def send(connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
    """POST JSON; the answer."""
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return json.loads(connection.getresponse().read())


WORKS = (Ingest, Index, Checkpoints, Versions, Grpo, Sft, Serving)
