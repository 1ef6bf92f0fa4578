from __future__ import annotations

import pytest
from crashes import small_shop


@pytest.fixture(scope="session")
def base_folder(tiny_files, tmp_path_factory):
    """The small shop, its memory stored, with a random policy. Copy it to write to it."""
    place = tmp_path_factory.mktemp("reliable") / "shop"
    return small_shop(place, tiny_files / "products.csv", tiny_files / "events.jsonl")
