import json
import shlex
import stat

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.utils import trust


def test_only_what_its_user_named_is_run_and_only_as_it_was(tmp_path):
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    mine.write_text("x = 1")
    other.write_text("x = 1")
    trust.trust_file(mine)
    trust.require_file(mine, "the shop", "do without")
    with pytest.raises(QAgentError, match=r"other\.py.*do without"):
        trust.require_file(other, "the shop", "do without")
    mine.write_text("x = 2")
    with pytest.raises(QAgentError, match="as it is now"):
        trust.require_file(mine, "the shop", "do without")
    trust.trust_file(mine)
    trust.require_file(mine, "the shop", "do without")


def test_an_address_gets_only_the_variables_that_were_named_for_it():
    place, other = "https://search.internal:9200", "https://elsewhere:9200"

    def refusal(address, *variables):
        with pytest.raises(QAgentError) as error:
            trust.require_address(address, variables, "the shop", "remove it")
        return str(error.value)

    assert shlex.quote(place) in refusal(place)
    trust.trust_address(place, ["KEY"])
    trust.trust_address(other)
    trust.require_address(place, [], "the shop", "remove it")
    trust.require_address(place, ["KEY"], "the shop", "remove it")
    assert "KEY" in refusal(other, "KEY") and "TOKEN" in refusal(place, "KEY", "TOKEN")
    trust.trust_address(place, ["TOKEN"])  # what was named before stays
    trust.require_address(place, ["KEY", "TOKEN"], "the shop", "remove it")
    trust.distrust(place)
    refusal(place)
    with pytest.raises(QAgentError, match="is not trusted"):
        trust.distrust(place)


def test_the_command_of_a_refusal_trusts_exactly_that_and_runs_nothing_else():
    address = "host=db dbname='a; rm -rf ~' \x1b[31m"
    with pytest.raises(QAgentError) as error:
        trust.require_address(address, ["KEY"], "the shop", "remove it")
    message = str(error.value)
    assert "\x1b" not in message and "\n" not in message
    command = message.partition("run: ")[2].partition("; else")[0]
    assert shlex.split(command)[:2] == ["qagent", "trust"] and len(shlex.split(command)) == 4


def test_a_record_of_an_older_version_is_read_and_kept_to_its_user(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("x = 1")
    trust.trust_file(file)
    record = trust._record_path()
    assert json.loads(record.read_text()) == trust.trusted_files()  # as 0.1.0 wrote it
    trust.trust_address("https://a", ["B"])
    trust.require_file(file, "the shop", "do without")
    assert trust.trusted_addresses() == {"https://a": ["B"]}
    assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700
