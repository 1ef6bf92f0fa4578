import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.utils import trusted_code


def test_only_what_its_user_named_is_run_and_only_as_it_was(tmp_path):
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    mine.write_text("x = 1")
    other.write_text("x = 1")
    trusted_code.trust(mine)
    trusted_code.require(mine, "the shop", "do without")
    with pytest.raises(QAgentError, match=r"other\.py.*do without"):
        trusted_code.require(other, "the shop", "do without")
    mine.write_text("x = 2")
    with pytest.raises(QAgentError, match="as it is now"):
        trusted_code.require(mine, "the shop", "do without")
    trusted_code.trust(mine)
    trusted_code.require(mine, "the shop", "do without")
