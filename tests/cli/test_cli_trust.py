from __future__ import annotations

import json
import shutil
import socket
import threading
from types import SimpleNamespace

import pytest


@pytest.fixture
def listener():
    """A place that counts who connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        place = SimpleNamespace(address=f"http://127.0.0.1:{server.getsockname()[1]}", connected=0)
        ended = threading.Event()

        def count():
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                place.connected += 1
                connection.close()

        thread = threading.Thread(target=count)
        thread.start()
        yield place
        ended.set()
        thread.join()


def test_no_command_reaches_what_a_handed_shop_asks_for_before_it_is_named(
    cli, built, tmp_path, listener, monkeypatch
):
    shop_path = shutil.copytree(built, tmp_path / "handed")
    monkeypatch.setenv("SECRET", "s3cret-value")
    monkeypatch.setenv("no_proxy", "*")
    settings = json.loads((shop_path / "shop.json").read_text())
    settings["search"]["engine"] = {
        "kind": "opensearch",
        "url": listener.address,
        "api_key_variable": "SECRET",
    }
    (shop_path / "shop.json").write_text(json.dumps(settings))
    here = ("--shop", shop_path)
    for command in (("search", "tent"), ("recommend", "ann"), ("serve", "--port", "0")):
        line = cli.error(*command, *here)
        assert f"run: qagent trust {listener.address} SECRET; else remove it" in line
        assert "s3cret-value" not in line
    assert listener.connected == 0
    assert cli.json("trust") == {"files": {}, "addresses": {}}
    named = cli.json("trust", listener.address, "SECRET")
    assert named["addresses"] == {listener.address: ["SECRET"]}
    assert "does not answer" in cli.error("search", "tent", *here)  # it only counts
    assert listener.connected == 1
    assert cli.json("trust", listener.address, "--forget")["addresses"] == {}
    assert "have not named" in cli.error("search", "tent", *here)


def test_files_are_trusted_by_name_too(cli, tmp_path):
    file = tmp_path / "encoder.py"
    assert "there is no file" in cli.error("trust", file)
    file.write_text("x = 1")
    assert list(cli.json("trust", file)["files"]) == [str(file.resolve())]
    assert "encoder.py" in cli.run("trust").stdout.replace("\n", "")
    cli.run("trust", file, "SECRET", code=2)
    cli.run("trust", "--forget", code=2)
    assert "not trusted" in cli.error("trust", "https://a", "--forget")
