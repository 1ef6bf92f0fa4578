import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from qagent_mlx.errors import QAgentError
from qagent_mlx.protocol.actions import FETCH, RECOMMEND_END, SEARCH_END
from qagent_mlx.protocol.codec import EOS, ShopCodec, load_codec, tokenizer_files


def save_tokenizer(tokenizer, folder):
    for name, write in tokenizer_files(tokenizer).items():
        write(folder / name)


def test_every_tag_and_reference_is_one_token(tiny_tokenizer):
    codec = ShopCodec(tiny_tokenizer)
    for text in ("<task>", "<fetch_memory/>", "<search>", "</results>", "<r0>", "<r31>", "<s8>"):
        assert len(codec.encode(text)) == 1, text
    chain = "<search><r3></search>"
    assert codec.decode(codec.encode(chain)) == chain


def test_a_saved_tokenizer_is_the_same(tiny_tokenizer, tmp_path):
    save_tokenizer(tiny_tokenizer, tmp_path)
    text = "<profile>Acme usb cable <r0></profile>"
    assert load_codec(tmp_path).encode(text) == ShopCodec(tiny_tokenizer).encode(text)


def test_a_damaged_tokenizer_is_one_clear_line(tiny_tokenizer, tmp_path):
    save_tokenizer(tiny_tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3')
    with pytest.raises(QAgentError, match="damaged"):
        load_codec(tmp_path)


def test_code_in_a_model_folder_is_never_run(tiny_tokenizer, tmp_path, monkeypatch):
    save_tokenizer(tiny_tokenizer, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}})
    )
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    try:
        load_codec(tmp_path)
    except QAgentError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists()


PLAIN = st.lists(
    st.sampled_from(
        [
            "usb",
            "cable",
            "Acme's",
            "don't",
            "3.5mm",
            "a",
            " ",
            " ",
            " ",
            "  ",
            "\n",
            "<r1>",
            "<s2>",
            "</profile>",
            "<unknown>",
            "<",
            ">",
            "\t",
            "\r",
            "\x1c",
            "ü",
            "e\u0301",
            "\u0130",
            "¨",
            "“x”",
            "中",
        ]
    )
    | st.text(max_size=4)
).map("".join)


@given(texts=st.lists(PLAIN, max_size=6))
def test_texts_are_counted_as_they_are_encoded(tiny_tokenizer, texts):
    codec = ShopCodec(tiny_tokenizer)
    assert codec.count(texts) == [len(codec.encode(text)) for text in texts]


@pytest.mark.parametrize("left_out", [FETCH, SEARCH_END, RECOMMEND_END, EOS])
def test_a_tokenizer_without_a_tag_is_of_another_protocol(left_out):
    tags = [tag for tag in (EOS, FETCH, SEARCH_END, RECOMMEND_END) if tag != left_out]
    tokenizer = Tokenizer(WordLevel({tag: i for i, tag in enumerate(tags)}))
    with pytest.raises(QAgentError, match="has no token .*run qagent pretrain again") as error:
        ShopCodec(tokenizer)
    assert left_out in str(error.value)
