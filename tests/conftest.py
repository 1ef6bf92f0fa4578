from __future__ import annotations

import csv
import json
import os
import random
import shutil
import socket
from datetime import datetime, timedelta

import pytest
from hypothesis import settings

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from open_memory import OPEN_SHOP  # noqa: E402

from qagent_mlx.ingest.ingest import ingest_files  # noqa: E402
from qagent_mlx.shop.shop import Shop  # noqa: E402

# The same examples each time: a test that fails for one of us fails for all.
settings.register_profile("qagent", deadline=None, derandomize=True, database=None)
settings.load_profile("qagent")


@pytest.fixture(autouse=True)
def own_place(tmp_path_factory, monkeypatch):
    """No test sees the shop, the settings or the caches of the machine that it runs on."""
    for name in [n for n in os.environ if n.startswith("QAGENT_")]:
        monkeypatch.delenv(name)
    place = tmp_path_factory.mktemp("place")
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(place))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(place)


@pytest.fixture(autouse=True, scope="session")
def no_network():
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert address[0] in ("127.0.0.1", "::1", "localhost"), (
                f"tests use no network: {address}"
            )
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


# ---------------------------------------------------------------- a small shop

START = datetime(2026, 3, 1)
DAYS = 30
TYPES = (
    ("usb cable", "Computers > Cables", 10),
    ("phone case", "Phones > Cases", 20),
    ("coffee beans", "Kitchen > Coffee", 15),
    ("running shoes", "Sports > Shoes", 90),
    ("desk lamp", "Office > Lamps", 40),
)
BRANDS = ("Acme", "Borealis", "Castor", "Dune")
COLOURS = ("black", "red")


def tiny_products():
    """40 products: 5 types by 4 brands in 2 colours, some with a sale or sold out for a while."""
    made = []
    for t, (name, category, price) in enumerate(TYPES):
        for b, brand in enumerate(BRANDS):
            for c, colour in enumerate(COLOURS):
                row = {
                    "product_id": f"p{t}{b}{c}",
                    "time": START - timedelta(days=1),
                    "title": f"{brand} {name.title()}, {colour}",
                    "brand": brand,
                    "category": category,
                    "price": round(price * (1 + 0.5 * b) - 0.01, 2),
                    "stock": "true",
                    "attributes": json.dumps({"colour": colour}),
                }
                made.append(row)
                if (b + c) % 3 == 0:
                    later = START + timedelta(days=5 + 2 * t)
                    made.append({**row, "time": later, "price": round(row["price"] / 2, 2)})
                    made.append({**row, "time": later + timedelta(days=4), "stock": "false"})
    return made


def tiny_events():
    """30 users for 30 days: each has a brand, two interests and a way of wording queries."""
    random_ = random.Random(7)
    made = []
    for u in range(30):
        user, brand = f"u{u:02}", random_.randrange(len(BRANDS))
        interests = random_.sample(range(len(TYPES)), 2)
        names_brand = random_.random() < 0.5

        def add(time, kind, query=None, product=None, user=user):
            made.append(
                {"user_id": user, "time": time, "type": kind, "query": query, "product_id": product}
            )

        for _ in range(random_.randint(3, 8)):
            clock = START + timedelta(minutes=random_.randrange(DAYS * 24 * 60))
            if random_.random() < 0.3:
                add(clock, "view", product=f"p{random_.choice(interests)}{brand}0")
                clock += timedelta(minutes=2)
            for attempt in range(2):
                t = random_.choice(interests)
                query = TYPES[t][0]
                if names_brand != (random_.random() < 0.2):
                    query = f"{BRANDS[brand]} {query}"
                add(clock, "search", query=query)
                if random_.random() < 0.25:
                    clock += timedelta(minutes=1)
                    continue
                chosen = brand if random_.random() < 0.8 else random_.randrange(len(BRANDS))
                product = f"p{t}{chosen}{random_.randrange(2)}"
                clock += timedelta(seconds=20)
                add(clock, "click", query=query, product=product)
                if random_.random() < 0.5:
                    add(clock + timedelta(seconds=30), "cart", product=product)
                    add(clock + timedelta(seconds=60), "purchase", product=product)
                if attempt or random_.random() < 0.8:
                    break
                clock += timedelta(minutes=3)
    return sorted(made, key=lambda e: (e["time"], e["user_id"]))


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    """``products.csv`` and ``events.jsonl`` of the small shop."""
    folder = tmp_path_factory.mktemp("tiny-files")
    products = tiny_products()
    with (folder / "products.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(products[0]))
        writer.writeheader()
        writer.writerows(products)
    lines = [json.dumps(event, default=str) for event in tiny_events()]
    (folder / "events.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tiny_files, tmp_path_factory):
    """The small shop on disk, with its index; closed. Copy it to write to it."""
    from qagent_mlx.inventory.index import build_index

    path = tmp_path_factory.mktemp("tiny") / "shop"
    with Shop.create(path, OPEN_SHOP) as shop:
        for kind, name in (("products", "products.csv"), ("events", "events.jsonl")):
            report = ingest_files(shop, kind, [tiny_files / name])
            assert report.rejected == report.duplicates == 0, report
        build_index(shop)
    return path


@pytest.fixture(scope="session")
def tiny_shop(tiny_folder):
    """The small shop, open for reading."""
    with Shop.open(tiny_folder) as shop:
        yield shop


@pytest.fixture
def own_shop(tiny_folder, tmp_path):
    """A copy of the small shop, open for writing."""
    # Other tests of the session may have exported what it holds; this shop has not.
    ignored = shutil.ignore_patterns("exports.jsonl")
    shutil.copytree(tiny_folder, tmp_path / "own", ignore=ignored)
    with Shop.open(tmp_path / "own", read_only=False) as shop:
        yield shop


@pytest.fixture(scope="session")
def tiny_search(tiny_shop):
    """The small shop's search."""
    from qagent_mlx.inventory.search import open_search

    return open_search(tiny_shop)


# ---------------------------------------------------------------- a small simulated shop


@pytest.fixture(scope="session")
def simulated_folder(tmp_path_factory):
    """A small simulated shop on disk, with its index; closed."""
    from qagent_mlx.build import build_shop
    from qagent_mlx.shop.config import ShopConfig
    from qagent_mlx.simulator.sample_files import write_sample
    from qagent_mlx.simulator.world import SimulatorConfig
    from qagent_mlx.utils.atomic_files import read_json

    files = tmp_path_factory.mktemp("simulated-files")
    write_sample(files, SimulatorConfig(users=60, days=40, products_per_pair=2.0))
    path = tmp_path_factory.mktemp("simulated") / "shop"
    config = ShopConfig(simulated=read_json(files / "simulator.json", "the sample"))
    with Shop.create(path, config) as shop:
        for kind in ("products", "events"):
            assert ingest_files(shop, kind, [files / f"{kind}.parquet"]).rejected == 0
        build_shop(shop)
    return path


@pytest.fixture(scope="session")
def simulated_shop(simulated_folder):
    """The small simulated shop, open for reading."""
    with Shop.open(simulated_folder) as shop:
        yield shop


# ---------------------------------------------------------------- a small policy


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from qagent_mlx.protocol.codec import train_tokenizer

    titles = [product["title"] for product in tiny_products()]
    return train_tokenizer([*titles, *(e["query"] or "" for e in tiny_events())], 512)


@pytest.fixture(scope="session")
def new_nano(tiny_tokenizer):
    """Makes a policy with random weights: (policy, tokenizer, config)."""
    from qagent_mlx.policy.small_llama import new_policy

    def make(seed=0):
        policy, config = new_policy(tiny_tokenizer, "nano", "nano", seed)
        return policy, tiny_tokenizer, config

    return make


@pytest.fixture(scope="session")
def nano_policy(new_nano):
    """One policy with random weights that tests do not change."""
    return new_nano()[0]
