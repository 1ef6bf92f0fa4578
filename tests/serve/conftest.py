from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.http import create_app


@pytest.fixture(scope="session")
def served_folder(tiny_folder, new_nano, tmp_path_factory):
    """The small shop with two random policies, ``a`` and ``b``. Copy it to write to it."""
    path = tmp_path_factory.mktemp("served") / "shop"
    shutil.copytree(tiny_folder, path)
    for seed, name in enumerate(("a", "b")):
        policy, tokenizer, config = new_nano(seed)
        policy.info = replace(policy.info, name=name)
        save_base(policy, tokenizer, config, path / "policies" / name)
    return path


@pytest.fixture
def own_folder(served_folder, tmp_path):
    return shutil.copytree(served_folder, tmp_path / "shop")


@pytest.fixture
def serving(own_folder):
    """Makes clients of servers of the test's own copy of the shop, one at a time."""
    clients = []

    def make(**settings):
        settings = {"policy": "a", "chains": 2, "deadline_ms": 30_000.0, **settings}
        client = TestClient(
            create_app(own_folder, ServeConfig(**settings)), base_url="http://127.0.0.1"
        )
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)
