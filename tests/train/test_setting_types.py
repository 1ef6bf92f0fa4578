"""Every setting of a training is described where it is defined."""

import pytest

from qagent_mlx.train.distill import DistillConfig
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.pretrain import PretrainConfig
from qagent_mlx.train.sft import SftConfig
from qagent_mlx.utils.settings import check, describe


@pytest.mark.parametrize("config", [GrpoConfig, SftConfig, PretrainConfig, DistillConfig])
def test_every_setting_has_a_sentence_and_a_default_that_passes(config):
    check(config())
    for setting in describe(config):
        if not setting.name.startswith("lora."):  # described in policy/lora.py
            assert setting.description.endswith("."), setting.name
