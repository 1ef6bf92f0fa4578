"""Makes the small shop that is kept of a released version:

    python tests/reliability/shops/make.py tests/reliability/shops/0.1.0.tar.xz

Run it once when a version is released, with that version; later ones must open what it made.
Beside shop, index, policy (weights of zero, so that it packs small) and run, ``expected.json``
says what a search and a profile said then.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import mlx.core as mx
from mlx.utils import tree_map

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.inventory.index import build_index
from qagent_mlx.inventory.product_search import search_products
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive
from qagent_mlx.policy.shop_memory import inspect_memory
from qagent_mlx.policy.small_llama import new_policy, save_base
from qagent_mlx.protocol.codec import train_tokenizer
from qagent_mlx.runs.run import Run
from qagent_mlx.shop.shop import Shop

PRODUCTS = (("lamp", "Desk Lamp, Acme"), ("cable", "USB Cable 2 m"), ("shoes", "Running Shoes"))
START = datetime(2026, 1, 5, 12)
QUERY, USER = "usb cable", "ann"


def said(shop: Shop) -> dict:
    """What a search and a profile say; what a later version must be able to say something to."""
    found = search_products(shop, QUERY, 3)
    view = inspect_memory(shop, USER)
    return {
        "version": qagent_mlx.__version__,
        "counts": shop.counts(),
        "first": found[0].product_id,
        "events": view.events,
        "text": view.text,
    }


def main(out: Path) -> None:
    """Make it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop"
        products = Path(folder) / "products.jsonl"
        products.write_text(
            "\n".join(
                json.dumps(
                    {
                        "product_id": p,
                        "title": t,
                        "brand": "Acme",
                        "category": f"Things > {p}",
                        "price": 9 + n,
                    }
                )
                for n, (p, t) in enumerate(PRODUCTS)
            )
        )
        events = []
        for day in range(6):
            for user, product, query in (
                (USER, "lamp", "desk lamp"),
                ("bo", "cable", QUERY),
                ("cy", "cable", QUERY),
            ):
                at = START + timedelta(days=day)
                events += [
                    {"user_id": user, "time": at, "type": "search", "query": query},
                    {
                        "user_id": user,
                        "time": at + timedelta(seconds=9),
                        "type": "click",
                        "query": query,
                        "product_id": product,
                    },
                ]
        with Shop.create(path) as shop:
            assert ingest_files(shop, "products", [products]).accepted == len(PRODUCTS)
            assert append_events(shop, events).accepted == len(events)
            build_index(shop)
            with shop.transaction() as connection:
                MemoryStore(connection, shop.config.memory).build()
            tokenizer = train_tokenizer([t for _, t in PRODUCTS], 400)
            policy, config = new_policy(tokenizer, "nano", "base", 0)
            policy.model.update(tree_map(mx.zeros_like, policy.model.parameters()))
            save_base(policy, tokenizer, config, path / "policies" / "base")
            adapted = derive(shop, "base", "tuned", LoraConfig(rank=2))
            adapted.model.update(tree_map(mx.zeros_like, adapted.model.trainable_parameters()))
            adapted.save(path / "policies" / "tuned")
            run = Run.create(
                shop,
                "tuned",
                {"kind": "sft", "policy": "tuned", "base": "base", "train": {"steps": 1}},
            )
            run.append("metrics", [{"step": 1, "loss": 1.0, "seconds": 0.1}])
            run.finish({"run": "tuned", "policy": "tuned", "steps": 1, "seconds": 0.1})
            (path / "expected.json").write_text(json.dumps(said(shop), indent=2))
        with tarfile.open(out, "w:xz", preset=9) as archive:
            archive.add(path, "shop")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
