"""Encoders and rerankers that are models, on tiny random ones of the Qwen3 family."""

import json
import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, models, pre_tokenizers

from qagent_mlx.errors import QAgentError
from qagent_mlx.inventory.encoders.language_model import ModelEncoder, TextReader
from qagent_mlx.inventory.encoders.registry import EncoderSpec, PythonEncoder
from qagent_mlx.inventory.index import open_index
from qagent_mlx.inventory.rerank import Reranker
from qagent_mlx.inventory.search import open_search
from qagent_mlx.inventory.stored_index import load_index
from qagent_mlx.inventory.updates import refresh_index, set_encoder
from qagent_mlx.shop.config import SearchConfig

TEXTS = ["acme usb cable", "lamp", "a red running shoe of borealis", "phone case"]


def make_model(folder, *, shell=True, seed=0):
    """A random Qwen3 decoder with a byte tokenizer; without its shell as embedders are published."""
    from mlx_lm.models import qwen3

    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "qwen3",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "vocab_size": tokenizer.get_vocab_size(),
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(seed)
    weights = dict(tree_flatten(qwen3.Model(qwen3.ModelArgs.from_dict(config)).parameters()))
    if not shell:
        weights = {name.removeprefix("model."): value for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "tiny-embedding")


def by_hand(folder, text):
    """The last hidden state of one text, closed by the end token, read alone."""
    reader = TextReader(folder)
    ids = [*reader.ids(text), reader.token("<|endoftext|>")]
    vector = np.array(reader.model.model(mx.array([ids]))[0, -1].astype(mx.float32))
    return vector / np.linalg.norm(vector)


def test_vectors_are_last_hidden_states_whatever_the_batch(folder):
    encoder = ModelEncoder(folder, 4096, "")
    encoder.batch_size = 3
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (4, 32) and encoder.dimensions == 32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert vector == pytest.approx(by_hand(folder, text), abs=1e-4)


def test_queries_carry_the_instruction_and_products_do_not(folder):
    encoder = ModelEncoder(folder, 32, "Find products")
    query = encoder.encode(["lamp"], queries=True)[0]
    assert query == pytest.approx(by_hand(folder, "Instruct: Find products\nQuery:lamp"), abs=1e-4)
    assert encoder.encode(["lamp"])[0] == pytest.approx(by_hand(folder, "lamp"), abs=1e-4)


def test_vectors_are_cut_and_scaled_again(folder):
    whole, cut = (ModelEncoder(folder, n, "").encode(TEXTS) for n in (32, 8))
    assert cut == pytest.approx(
        whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1)[:, None], abs=1e-5
    )
    assert not ModelEncoder(folder, 8, "").encode(["", " "]).any()


def test_a_model_published_without_its_shell_is_the_same(folder, tmp_path):
    bare = make_model(tmp_path / "bare", shell=False)
    assert ModelEncoder(bare, 32, "").encode(TEXTS) == pytest.approx(
        ModelEncoder(folder, 32, "").encode(TEXTS), abs=1e-5
    )


@pytest.mark.parametrize("most", [1, 7, 24, 1000])
def test_a_batch_computes_no_more_tokens_than_it_may(folder, monkeypatch, most):
    """Padding included; a text alone may be longer."""
    monkeypatch.setattr("qagent_mlx.inventory.encoders.language_model._BATCH_TOKENS", most)
    lengths = np.random.default_rng(most).integers(1, 12, 17)
    sequences = [[1] * int(length) for length in lengths]
    batches = [numbers for numbers, _ in TextReader(folder)._last_states(sequences, 5)]
    assert sorted(number for batch in batches for number in batch) == list(range(17))
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        cost = len(batch) * max(len(sequences[i]) for i in batch)
        assert len(batch) <= 5
        assert len(batch) == 1 or cost <= most
        if following and len(batch) < 5:  # and no fewer
            assert (len(batch) + 1) * len(sequences[following[0]]) > most


def test_text_cannot_form_a_special_token(folder):
    reader = TextReader(folder)
    special = reader.token("<|im_end|>")
    assert special not in reader.ids("lamp <|im_end|> yes")
    assert special in reader.ids("<|im_end|>", markup=True)


def test_a_model_without_the_words_of_an_answer_is_no_reranker(tmp_path):
    folder = make_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "yes"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(QAgentError, match="has no token 'yes': it is no reranking model"):
        Reranker(folder, "Find products").score([("lamp", "Desk Lamp")])


def test_on_a_processor_a_model_computes_in_full_precision(folder, tmp_path, monkeypatch):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    weights = mx.load(str(half / "model.safetensors"))
    rounded = {name: value.astype(mx.bfloat16) for name, value in weights.items()}
    mx.save_safetensors(str(half / "model.safetensors"), rounded)
    for on_cpu, dtype in ((True, mx.float32), (False, mx.bfloat16)):
        monkeypatch.setattr("qagent_mlx.models.backend.on_cpu", lambda on_cpu=on_cpu: on_cpu)
        weights = dict(tree_flatten(TextReader(half).model.parameters()))
        assert {value.dtype for value in weights.values()} == {dtype}


def test_a_shop_is_indexed_by_a_model_and_notices_another(own_shop, folder, tmp_path):
    before = own_shop.config
    set_encoder(own_shop, str(folder), 16)
    assert refresh_index(own_shop).changes.added == 40
    index = load_index(own_shop.path / "inventory")
    assert index.vectors.dimensions == 16 and index.manifest.encoder.name == "tiny-embedding"
    assert open_search(own_shop, index).search(["usb cable"], 3)[0]
    generation = index.manifest.generation
    assert open_index(own_shop).manifest.generation == generation
    other = make_model(tmp_path / "other", seed=1)
    set_encoder(own_shop, str(other), 16)
    assert open_index(own_shop).manifest.generation == generation + 1
    with pytest.raises(QAgentError, match="neither 'subword', nor a model folder"):
        set_encoder(own_shop, str(tmp_path / "nosuch"))
    assert own_shop.config != before and own_shop.config.search.encoder == str(other)


def test_an_own_function_is_an_encoder(own_shop, tmp_path):
    source = tmp_path / "mine.py"
    source.write_text(
        "import numpy as np\n"
        "def letters(texts, queries=False):\n"
        "    return np.array([[t.lower().count(c) for c in 'abcdefghij'] for t in texts]) + queries\n"
        "def broken(texts):\n    return [1, 2]\n"
    )
    place = f"{source}:letters"
    encoder = PythonEncoder(place)
    assert encoder.dimensions == 10
    assert encoder.encode(["abba"])[0, :2] == pytest.approx([0.5**0.5] * 2)
    assert not np.array_equal(encoder.encode(["abba"]), encoder.encode(["abba"], queries=True))
    set_encoder(own_shop, place)
    spec = EncoderSpec.of(own_shop.config.search)
    assert (
        refresh_index(own_shop).changes.added == 40 and open_search(own_shop).search(["usb"], 1)[0]
    )
    source.write_text(source.read_text() + "\n# another version\n")
    assert EncoderSpec.of(own_shop.config.search) != spec
    with pytest.raises(QAgentError, match="named as it is now"):  # nobody said that this may run
        refresh_index(own_shop)
    for name, says in (("broken", "returned an array"), ("nosuch", "no function nosuch")):
        with pytest.raises(QAgentError, match=says):
            PythonEncoder(f"{source}:{name}").encode(["a", "b"])


def test_answers_are_the_probability_of_yes_against_no(folder):
    reranker = Reranker(folder, "Find products")
    reranker.batch_size = 2
    pairs = [("lamp", "Desk Lamp"), ("lamp", "Phone Case, black"), ("usb cable", "x")]
    together = reranker.score(pairs)
    assert ((together > 0) & (together < 1)).all()
    for pair, answer in zip(pairs, together, strict=True):
        assert reranker.score([pair])[0] == pytest.approx(answer, abs=1e-5)
    reader = TextReader(folder)
    text = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n<Instruct>: Find products\n<Query>: lamp\n<Document>: Desk Lamp"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    logits = np.array(reader.model(mx.array([reader.ids(text, markup=True)]))[0, -1])
    chances = np.exp(logits[[reader.token("yes"), reader.token("no")]])
    assert together[0] == pytest.approx(chances[0] / chances.sum(), abs=1e-4)


def test_the_best_hits_are_put_in_the_order_of_the_answers(own_shop, folder):
    plain = open_search(own_shop)
    config = replace(own_shop.config.search, reranker=str(folder), rerank_depth=5)
    own_shop.config = replace(own_shop.config, search=config)
    search = open_search(own_shop)
    before, after = (s.search(["usb cable", "lamp"], 8) for s in (plain, search))
    for query, old, new in zip(("usb cable", "lamp"), before, after, strict=True):
        assert {h.product_id for h in old[:5]} == {h.product_id for h in new[:5]}
        assert old[5:] == new[5:]
        rows = search.catalog.row_of
        pairs = [(query, search.catalog.text(rows[h.product_id])) for h in new[:5]]
        answers = search.reranker.score(pairs)
        assert (np.diff(answers) <= 1e-6).all()
        assert [h.score for h in new[:5]] == pytest.approx(1 + answers, abs=1e-5)
    # Whoever wants one hit gets the best of the five that are judged, not the judged best.
    best = [hits[0] for (hits,) in (search.search([query], 1) for query in ("usb cable", "lamp"))]
    assert best == [hits[0] for hits in after]
    assert [hit.product_id for hit in best] != [hits[0].product_id for hits in before]
    own_shop.config = replace(own_shop.config, search=replace(config, reranker="nosuch"))
    with pytest.raises(QAgentError, match="reranker nosuch is no model folder"):
        open_search(own_shop)


def test_a_folder_that_is_no_model_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "hidden_size": 8}')
    with pytest.raises(QAgentError, match="download"):
        ModelEncoder(tmp_path, 8, "").encode(["a"])
    with pytest.raises(QAgentError, match="neither 'subword'"):
        EncoderSpec.of(SearchConfig(encoder="nosuch"))
