from qagent_mlx.models.known_models import KNOWN_MODELS
from qagent_mlx.policy.summary import memory_here


def test_what_does_not_fit_is_told(monkeypatch):
    entry = KNOWN_MODELS["qwen3-1.7b"]
    monkeypatch.setattr("qagent_mlx.utils.runtime.total_memory", lambda: 4 * 10**9)
    assert memory_here(entry.parameters, entry.shape).serving_fits is False
    monkeypatch.setattr("qagent_mlx.utils.runtime.total_memory", lambda: 10**12)
    assert memory_here(entry.parameters, entry.shape).training_fits is True
