import pytest

from qagent_mlx.evaluate.simulator import SimulatorConfig, write_sample
from qagent_mlx.files import read_json
from qagent_mlx.ingest import ingest
from qagent_mlx.sample import refresh
from qagent_mlx.shop import Shop, ShopConfig


@pytest.fixture(scope="session")
def simulated_folder(tmp_path_factory):
    """A small simulated shop on disk, with its index; closed."""
    files = tmp_path_factory.mktemp("simulated-files")
    write_sample(files, SimulatorConfig(users=60, days=40, products_per_pair=2.0))
    path = tmp_path_factory.mktemp("simulated") / "shop"
    config = ShopConfig(simulated=read_json(files / "simulator.json", "the sample"))
    with Shop.create(path, config) as shop:
        for kind in ("products", "events"):
            assert ingest(shop, kind, [files / f"{kind}.parquet"]).rejected == 0
        refresh(shop)
    return path


@pytest.fixture(scope="session")
def simulated_shop(simulated_folder):
    """The small simulated shop, open for reading."""
    with Shop.open(simulated_folder) as shop:
        yield shop
