import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.runs.run import Run, free_name
from qagent_mlx.runs.training_run import open_to_resume
from qagent_mlx.shop.shop import Shop


def test_only_a_run_of_the_kind_with_all_it_needs_is_resumed(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        Run.create(shop, "old", {"kind": "sft"})
        Run.create(shop, "new", {"kind": "sft", "catalog_version": 1})
        assert open_to_resume(shop, "new", "sft").name == "new"
        for name, kind in (("old", "sft"), ("new", "grpo")):
            with pytest.raises(QAgentError, match=f"the run {name} is no {kind.upper()} run"):
                open_to_resume(shop, name, kind)


def test_a_free_name_is_the_first_that_is_not_taken():
    assert free_name("grpo", []) == "grpo"
    assert free_name("grpo", ["grpo", "grpo-2"]) == "grpo-3"
