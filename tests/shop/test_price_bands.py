import math

import pytest

from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.inventory.catalog import read_catalog
from qagent_mlx.memory.event_log import EventLog
from qagent_mlx.memory.shop_tables import create_shop_tables
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.shop.price_bands import price_band
from qagent_mlx.shop.shop import Shop


def test_a_price_at_a_limit_is_in_the_lower_band():
    assert [price_band(price, 10.0, 20.0) for price in (10, 10.01, 20, 20.01)] == [
        "$",
        "$$",
        "$$",
        "$$$",
    ]


@pytest.mark.parametrize("missing", [None, math.nan])
def test_without_a_price_or_limits_there_is_no_band(missing):
    assert price_band(missing, 10.0, 20.0) == price_band(10.0, missing, missing) == ""


def test_memory_and_the_search_tool_see_the_same_bands(tmp_path):
    rows = [f"c{i},t,A,{10 * i},2026-01-01" for i in range(1, 7)]
    rows += ["c1,t,A,500,2026-02-01", "n1,t,,3,2026-01-01", "n2,t,,4,2026-01-01", "x,t,A,,"]
    (tmp_path / "p.csv").write_text("\n".join(["product_id,title,category,price,time", *rows]))
    with Shop.create(tmp_path / "shop") as shop:
        ingest_files(shop, "products", [tmp_path / "p.csv"])
        catalog = read_catalog(shop)
        create_shop_tables(shop.connection, "TEMP TABLE", MemoryConfig())
        log = EventLog(shop.connection)
        log._read_products(set(catalog.ids))
    bands = {}
    for product, row in catalog.row_of.items():
        for price in (3.0, 4.0, 20.0, 35.0, 60.0, 500.0):
            facts = log.products[product]
            band = catalog.price_band(row, price)
            assert band == price_band(price, facts.low, facts.high)
            bands[product, price] = band
    # Of the first prices: what c1 costs since moves no limit.
    assert [bands["c1", price] for price in (20.0, 35.0, 60.0)] == ["$", "$$", "$$$"]
    assert [bands["n1", price] for price in (3.0, 4.0)] == ["$", "$$$"]
