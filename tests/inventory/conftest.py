import pytest

from qagent_mlx.utils.database import fetch_dicts


@pytest.fixture
def products(tiny_shop):
    """The small shop's products as dicts."""
    return fetch_dicts(
        tiny_shop.connection.execute(
            "SELECT product_id, title, brand, category, price, in_stock FROM products"
        )
    )
