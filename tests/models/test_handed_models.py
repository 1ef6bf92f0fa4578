"""A stranger's model folder: no code is run, and no pipe is waited for."""

from __future__ import annotations

import json
import os

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.inventory.encoders.language_model import ModelEncoder
from qagent_mlx.models.fingerprint import fingerprint
from qagent_mlx.models.loading import load_model_folder


def as_encoder(folder):
    ModelEncoder(folder, 8, "").encode(["a"])


@pytest.fixture
def model(tmp_path):
    """A folder that says it is a model."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def configure(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("load", [load_model_folder, as_encoder])
def test_code_that_a_model_brings_is_never_run(model, load):
    (model / "evil.py").write_text(f"open({str(model / 'ran')!r}, 'w')")
    for name in ("evil.py", ""):
        configure(model, model_file=name)
        with pytest.raises(QAgentError, match="never run"):
            load(model)
    assert not (model / "ran").exists()


@pytest.mark.parametrize("load", [load_model_folder, as_encoder])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pipe_in_place_of_a_file_is_refused_before_it_is_opened(model, load, name):
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(QAgentError, match="is no file"):
        load(model)
    if name == "model.safetensors":
        with pytest.raises(QAgentError, match="is no file"):
            fingerprint(model)


@pytest.mark.parametrize("load", [load_model_folder, as_encoder])
@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": None},
        {"hidden_size": 10**12},
        {"vocab_size": -1},
    ],
)
def test_absurd_sizes_are_refused_in_one_line(model, load, values):
    configure(model, **values)
    with pytest.raises(QAgentError) as error:
        load(model)
    assert str(error.value).isprintable()
