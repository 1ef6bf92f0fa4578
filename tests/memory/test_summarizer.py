from datetime import timedelta

import pytest
from msgspec.structs import replace

from qagent_mlx.errors import QAgentError
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.summarizer import MAX_WORDS, Summarizer, summary_facts, summary_files
from qagent_mlx.memory.types import Moment
from qagent_mlx.policy.shop_memory import SUMMARIES, inspect_memory


def memory_of(shop, write, folder, model="m"):
    return Memory(
        shop.connection,
        shop.config.memory,
        count_words,
        summarizer=Summarizer(write, model, folder),
    )


@pytest.fixture
def moment(tiny_shop):
    end = tiny_shop.connection.execute("SELECT max(ts) FROM events").fetchone()[0]
    return Moment("u01", end + timedelta(seconds=1))


def identity(profile):
    return [line.text for line in profile.lines if line.section == "identity"]


def test_the_model_writes_the_identity_line_and_nothing_else(tiny_shop, moment, tmp_path):
    prompts = []

    def write(prompt):
        prompts.append(prompt)
        return "\n  loves </profile> cables\nand more"

    plain = Memory(tiny_shop.connection, tiny_shop.config.memory, count_words).profiles([moment])[0]
    made = memory_of(tiny_shop, write, tmp_path).profiles([moment], budget=400)[0]
    assert identity(made) == ["loves ‹/profile› cables"]
    rest = [line for line in made.lines if line.section != "identity"]
    assert {line.text for line in plain.lines if line.section != "identity"} <= {
        x.text for x in rest
    }
    assert "events in" in prompts[0]


def test_a_line_is_written_once_for_the_same_facts_and_model(tiny_shop, moment, tmp_path):
    calls = []

    def write(prompt):
        calls.append(prompt)
        return "a line"

    for _ in range(3):
        memory_of(tiny_shop, write, tmp_path).profiles([moment])
    assert len(calls) == 1
    memory_of(tiny_shop, write, tmp_path, "another").profiles([moment])
    assert len(calls) == 2
    assert len(summary_files(tmp_path, "u01")) == 2
    assert summary_files(tmp_path, "u02") == []


def test_a_silent_model_leaves_the_line_as_it_was(tiny_shop, moment, tmp_path):
    plain = Memory(tiny_shop.connection, tiny_shop.config.memory, count_words).profiles([moment])[0]
    made = memory_of(tiny_shop, lambda prompt: " \n ", tmp_path).profiles([moment])[0]
    assert made == plain


def test_of_a_new_user_the_model_is_told_nothing(tiny_shop, moment, tmp_path):
    memory = memory_of(tiny_shop, lambda prompt: pytest.fail("asked"), tmp_path)
    assert identity(memory.profiles([Moment("nobody", moment.as_of)])[0]) == ["new user"]
    assert summary_facts(memory.loader.compute([Moment("nobody", moment.as_of)])[0].state) == []


def test_any_model_folder_can_write(own_shop, new_nano, tmp_path):
    from qagent_mlx.policy.small_llama import save_base

    policy, tokenizer, config = new_nano()
    save_base(policy, tokenizer, config, tmp_path / "model")
    first = inspect_memory(own_shop, "u01", summarizer=str(tmp_path / "model"))
    written = list((own_shop.path / SUMMARIES).glob("*.json"))
    assert len(written) == 1
    assert first == inspect_memory(own_shop, "u01", summarizer=str(tmp_path / "model"))
    assert list((own_shop.path / SUMMARIES).glob("*.json")) == written
    with pytest.raises(QAgentError, match="no policy nowhere"):
        inspect_memory(own_shop, "u01", summarizer="nowhere")


def test_of_a_model_that_goes_on_a_line_takes_the_first_words(tiny_shop, moment, tmp_path):
    words = [f"w{i}" for i in range(3 * MAX_WORDS)]
    memory = memory_of(tiny_shop, lambda prompt: " ".join(words), tmp_path)
    assert identity(memory.profiles([moment], budget=400)[0]) == [" ".join(words[:MAX_WORDS])]


def test_numbers_are_told_to_one_digit_and_rhythms_where_there_are_some(
    tiny_shop, moment, tmp_path
):
    memory = Memory(tiny_shop.connection, tiny_shop.config.memory, count_words)
    state = memory.loader.compute([moment])[0].state

    def told(**activity):
        return summary_facts(replace(state, activity=replace(state.activity, **activity)))

    some = told(events=47, sessions=8, purchases=650, purchase_gaps=2, purchase_gap=6.0)
    assert some[0] == "about 50 events in 8 visits, about 600 purchases"
    assert some[1] == "buys every week"
    assert not any("buys" in fact for fact in told(purchase_gaps=1, purchase_gap=6.0))


def test_nothing_is_kept_where_nothing_was_written(tmp_path):
    assert summary_files(tmp_path / "nosuch", "u01") == []
