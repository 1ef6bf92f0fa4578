import json
from dataclasses import asdict

import pytest

from qagent_mlx.environment.custom_rewards import components_of, reward_files, reward_specs
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.train.config_files import PRESETS, Settings, read_settings, with_preset
from qagent_mlx.train.grpo_config import GrpoConfig, with_weights
from qagent_mlx.train.sft import SftConfig
from qagent_mlx.utils.settings import merge

FILE = """
policy = "mine"
preset = "query-only"
rewards = ["rewards.py:short"]
[train]
steps = 7
clip_high = 0.3
[train.weights]
format = 0.5
[train.curriculum]
query = [[1, 0], [11, 1.0]]
[train.lora]
rank = 4
[train.alarms]
kl = "warn"
[agent]
max_searches = 2
[split]
test_share = 0.3
"""


def read(tmp_path, text, train=None):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return read_settings(path, Settings(train or GrpoConfig()))


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    settings = read(tmp_path, FILE)
    train = settings.train
    assert (settings.policy, settings.preset, train.steps) == ("mine", "query-only", 7)
    assert train.clip == (0.2, 0.3)
    assert train.lora.rank == 4 and train.lora.scale == GrpoConfig().lora.scale
    assert train.alarms.kl == "warn" and train.alarms.format == "stop"
    assert train.group == GrpoConfig().group
    # The preset's weights, then the file's, on top of the defaults.
    assert train.weights == {**GrpoConfig().weights, "item": 0, "consistency": 0, "format": 0.5}
    assert settings.agent == {"max_searches": 2}
    assert settings.split.test_share == 0.3
    assert settings.rewards == (str(tmp_path / "rewards.py:short"),)


def test_a_weight_moves_along_its_curriculum(tmp_path):
    config = read(tmp_path, FILE).train
    assert [config.weights_at(n)["query"] for n in (0, 5, 10, 99)] == pytest.approx([0, 0.5, 1, 1])
    assert config.weights_at(3)["format"] == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nstep = 3", "run.toml: train: unknown setting 'step'; did you mean steps?"),
        ("[train.lora]\nranks = 3", "did you mean rank?"),
        ("[train.alarms]\nkl_celing = 3", "did you mean kl_ceiling?"),
        ("polcy = 'x'", "did you mean policy?"),
        ("[agent]\nmax_search = 1", "did you mean max_searches?"),
        ("[agent]\nmax_searches = 9", "max_searches must be a whole number of at most 8"),
        ("[agent]\nturn_tokens = 0", "turn_tokens must be a whole number of at least 1"),
        ("[train]\nsteps = 2.5", "steps must be a whole number, not 2.5"),
        ("[train]\nsteps = true", "steps must be a whole number"),
        ("[train]\nsolvable = 1", "solvable must be true or false"),
        ("[train.weights]\nquery = 'high'", "weights must hold a number"),
        ("[train.curriculum]\nquery = [[1]]", "list of length 2"),
        ("preset = 'queryonly'", "did you mean query-only?"),
        ("steps = ", "is no TOML"),
    ],
)
def test_what_is_unknown_or_wrong_in_a_file_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(QAgentError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(QAgentError, match="No such file"):
        read_settings(tmp_path / "none.toml", Settings(GrpoConfig()))


@pytest.mark.parametrize("config", [GrpoConfig(curriculum={"item": ((1.0, 0.0),)}), SftConfig()])
def test_settings_that_were_saved_come_back_the_same(config):
    saved = json.loads(json.dumps(asdict(config)))
    assert merge(type(config)(), saved, "the run") == config


def test_settings_of_earlier_versions_still_load():
    saved = {
        "steps": 3,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "logged_groups": 2,
        "lora": {"rank": 4, "keys": []},
    }
    config = merge(GrpoConfig(), saved, "the run")
    assert config.clip == (0.2, 0.28) and config.lora.keys == () and config.loss == "dapo"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_train(name):
    with_preset(Settings(GrpoConfig()), name).train.check()


def test_a_file_may_change_what_a_preset_says_of_cases(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('preset = "typed"\n')
    assert read_settings(path, Settings(GrpoConfig())).split.learn_from == "searches"
    path.write_text('preset = "typed"\n[split]\nlearn_from = "successes"\nmin_history = 3\n')
    settings = read_settings(path, Settings(GrpoConfig()))
    assert (settings.split.learn_from, settings.split.min_history) == ("successes", 3)
    assert settings.train.weights["consistency"] == 0


def test_a_preset_is_for_grpo_only():
    with pytest.raises(QAgentError, match="SFT has none"):
        with_preset(Settings(SftConfig()), "query-only")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "ppo"}, "loss must be one of grpo"),
        ({"clip_low": 1.5}, "clip_low must be a number below 1"),
        ({"stop_after": 2}, "stop_after needs eval_every"),
        ({"row": 9}, "row must be at most group, which is 8"),
        ({"best_by": "fun"}, "best_by must be one of reward"),
        (
            {"overlong_tokens": 4, "overlong_cache": 0},
            "overlong_cache must be a whole number of at least 1",
        ),
        ({"curriculum": {"item": ((5.0, 1.0), (2.0, 1.0))}}, "rising steps"),
        ({"save_every": 0}, "save_every must be a whole number of at least 1"),
        ({"measured": 0}, "measured must be a whole number of at least 1"),
        ({"token_budget": -1}, "token_budget must be a whole number of at least 1"),
        ({"eval_every": -1}, "eval_every must be a whole number of at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"beta": float("nan")}, "beta must be a number of at least 0"),
        ({"weights": {"item": -1.0}}, "weights must hold a number of at least 0"),
        ({"lora": LoraConfig(rank=0)}, "rank must be a whole number of at least 1"),
        ({"lora": LoraConfig(blocks=0)}, "blocks must be at least 1"),
        ({"lora": LoraConfig(dropout=1.0)}, "dropout must be a number below 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, words):
    with pytest.raises(QAgentError, match=words):
        GrpoConfig(**changes).check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compare": 1.5}, "compare must be a number of at most 1"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number"),
        ({"lora": LoraConfig(rank=-2)}, "rank must be a whole number of at least 1"),
    ],
)
def test_settings_of_sft_that_mean_nothing_are_refused(changes, words):
    with pytest.raises(QAgentError, match=words):
        SftConfig(**changes).check()


def test_weights_of_flags(tmp_path):
    config = with_weights(GrpoConfig(), None, assignments=["item=0.5", "consistency=0@1,2@20"])
    assert config.weights["item"] == 0.5
    assert config.curriculum == {"consistency": ((1.0, 0.0), (20.0, 2.0))}
    for pair, words in (
        ("items=1", "no reward 'items'"),
        ("item=-1", "from 0 on"),
        ("item=1@", "write it as"),
        ("item", "write it as"),
    ):
        with pytest.raises(QAgentError, match=words):
            with_weights(GrpoConfig(), None, assignments=[pair])
    with pytest.raises(QAgentError, match="must not be 0 for all rewards"):
        with_weights(GrpoConfig(), None, assignments=[f"{n}=0" for n in GrpoConfig().weights])


def test_a_run_goes_on_with_the_very_rewards_that_it_began_with(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def short(outcome):\n    return 1.0\n")
    spec = f"{path}:short"
    components = components_of([spec])
    assert with_weights(GrpoConfig(), components, [spec]).weights["short"] == 1
    kept = json.loads(json.dumps(reward_files([spec])))
    assert reward_specs(kept) == [spec]
    path.write_text("def short(outcome):\n    return 0.0\n")
    with pytest.raises(QAgentError, match="has changed"):
        reward_specs(kept)
    with pytest.raises(QAgentError, match="is taken"):
        components_of([spec, spec])
