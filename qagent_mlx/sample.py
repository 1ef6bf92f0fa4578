"""The sample shop: simulated data that comes with the package."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import QAgentError
from .files import read_json
from .ingest import ingest
from .inventory.index import build
from .memory.worth import learn
from .shop import Shop, ShopConfig


def sample_data() -> Path:
    """The folder of products.parquet, events.parquet and simulator.json."""
    import qagent_sample  # type: ignore[import-not-found, unused-ignore]

    return Path(qagent_sample.__path__[0])


def create_sample(
    path: str | Path, on_stage: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Make the sample shop in a new or empty folder, with its index: it is ready to use.

    A shop that could not be finished is deleted again.

    Args:
        path: The new shop's folder.
        on_stage: Called with what begins.

    Returns:
        shop, what `Shop.counts` says, ``learned_from`` (moments that memory learned the
        worth of its lines from), and ``seconds``.

    Raises:
        QAgentError: the folder holds something else, or cannot be written.
    """
    say = on_stage or (lambda stage: None)
    source = sample_data()
    simulated = read_json(source / "simulator.json", "the sample data")
    start = time.perf_counter()
    shop = Shop.create(path, ShopConfig(name="sample", simulated=simulated))
    try:
        for kind in ("products", "events"):
            say(f"ingesting {kind}")
            report = ingest(shop, kind, [source / f"{kind}.parquet"])
            if report.rejected:
                raise QAgentError(
                    f"the sample data is damaged ({report.examples[0]}); install qagent-mlx again"
                )
        learned = refresh(shop, say)
        return {
            "shop": str(shop.path),
            **shop.counts(),
            "learned_from": learned["learned_from"],
            "seconds": round(time.perf_counter() - start, 1),
        }
    except BaseException:
        shop.remove()
        raise
    finally:
        shop.close()


def refresh(shop: Shop, on_stage: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Build the index and learn what lines of memory are worth.

    Args:
        shop: Open for writing.
        on_stage: Called with what begins.

    Returns:
        products, clicks_until, clicked_pairs, learned_from, seconds.
    """
    say = on_stage or (lambda stage: None)
    start = time.perf_counter()
    say("building the index")
    index = build(shop)
    say("learning what lines of memory are worth")
    worth = learn(shop, index.clicks_until)
    return {
        "products": len(index.catalog),
        "clicks_until": index.manifest["clicks_until"],
        "clicked_pairs": index.manifest["clicked_pairs"],
        "learned_from": worth.moments,
        "seconds": round(time.perf_counter() - start, 1),
    }


def remove_sample(path: str | Path) -> None:
    """Delete a shop if it is a simulated one.

    Raises:
        QAgentError: the folder holds anything else.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    settings: Any = None
    if (path / "shop.json").exists():
        try:
            settings = json.loads((path / "shop.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            settings = None
    if not isinstance(settings, dict) or not settings.get("simulated"):
        raise QAgentError(
            f"{path} holds something that the demo did not make; choose another --shop folder"
        )
    Shop(path, replace(ShopConfig(), name=path.name), read_only=True).remove()
