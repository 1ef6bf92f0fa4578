import pytest
from source_files import put

from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.shop.shop import Shop


@pytest.fixture
def shop(tmp_path):
    """A shop without anything."""
    with Shop.create(tmp_path / "shop") as shop:
        yield shop


@pytest.fixture
def stocked(shop, tmp_path):
    """A shop with two products."""
    ingest_files(shop, "products", [put(tmp_path / "known.csv", "id,title\np1,Lamp\np2,Tent\n")])
    return shop
