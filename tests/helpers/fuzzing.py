"""The shop that the fuzzer spoils: small, with a policy, an index and two short runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from crashes import COMPONENTS, GRPO, SFT, SPLIT, small_shop

from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo_run import train_grpo
from qagent_mlx.train.sft import train_sft


def trained(shop: Path) -> Path:
    """The shop after two short runs."""
    with Shop.open(shop) as opened:
        train_grpo(
            opened, "base", "grpo", replace(GRPO, steps=2), split=SPLIT, components=COMPONENTS
        )
        train_sft(opened, "base", "sft", replace(SFT, steps=2), split=SPLIT)
    return shop


def shop_with_run(folder: Path) -> Path:
    """A shop made of the tests' small shop."""
    from conftest import tiny_events, tiny_products

    for kind, rows in (("products", tiny_products()), ("events", tiny_events())):
        (folder / f"{kind}.jsonl").write_text(
            "\n".join(json.dumps(row, default=str) for row in rows)
        )
    return trained(small_shop(folder / "shop", folder / "products.jsonl", folder / "events.jsonl"))
