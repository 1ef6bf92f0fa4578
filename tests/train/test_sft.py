"""What SFT demonstrates follows from how its parent was trained, unless a setting says otherwise."""

from types import SimpleNamespace

import pytest

from qagent_mlx.train.sft import SftConfig, demonstration_config


def demonstrated(trained, **settings):
    policy = SimpleNamespace(info=SimpleNamespace(trained=trained))
    config = demonstration_config(policy, SftConfig(**settings))
    return config.words, config.disguise


@pytest.mark.parametrize(
    ("trained", "settings", "expected"),
    [
        ([], {}, (False, 0.0)),
        ([{"stage": "pretrain", "config": {"words": True, "disguise": 0.3}}], {}, (True, 0.3)),
        (
            [{"stage": "pretrain", "config": {"words": True, "disguise": 0.3}}],
            {"words": False, "disguise": 0.0},
            (False, 0.0),
        ),
        ([{"stage": "sft", "config": {"words": True, "disguise": 0.3}}], {}, (False, 0.0)),
        ([{"stage": "pretrain", "config": {}}], {"words": True, "disguise": 0.5}, (True, 0.5)),
    ],
)
def test_a_base_is_shown_what_it_was_pretrained_on_unless_told(trained, settings, expected):
    assert demonstrated(trained, **settings) == expected
