"""Codecs: what the protocol needs of a tokenizer.

A codec maps a chain's text to token ids and back. `ShopCodec` wraps a tokenizer that was trained
on a shop's own text, where each tag is one token; `ChatCodec` wraps the tokenizer of a ready-made
chat model, where a tag is several tokens and each tool's answer is a turn of a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from ..errors import QAgentError
from ..utils.atomic_files import json_text, read_json
from .actions import (
    ACTION_TAGS,
    FETCH,
    INSTRUCTIONS,
    OBSERVATION_TAGS,
    RECOMMEND_END,
    REFERENCES,
    REQUEST,
    SEARCH_END,
    SLOTS,
    TASK,
    WORKED_EXAMPLE,
    WRITING_EXAMPLE,
    WRITING_INSTRUCTIONS,
)
from .grammar import Grammar

PAD, EOS = "<pad>", "<eos>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE on a shop's text, with every tag and reference as one token.

    Text is lower-cased: queries are compared that way, and the vocabulary stays small.
    Tags and line breaks swallow the spaces around them, so that a word is the same token
    wherever it stands.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(name, special=True, normalized=False, lstrip=True, rstrip=True)
        for name in (PAD, EOS, "\n", *OBSERVATION_TAGS, *ACTION_TAGS, *REFERENCES, *SLOTS)
    ]
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, Callable[[Path], Any]]:
    """Writers of ``tokenizer.json`` and of what mlx-lm's loader wants beside it, by name."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "qagent_protocol": "tags",
    }
    return {
        "tokenizer.json": lambda path: tokenizer.save(str(path)),
        "tokenizer_config.json": lambda path: path.write_text(json_text(config), "utf-8"),
    }


class ShopCodec:
    """The codec of a tokenizer made by `train_tokenizer`: one token for each tag.

    Attributes:
        eos_ids: Ids that end a generation.
        single_stops: Ids that end an action.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        tags = (EOS, FETCH, SEARCH_END, RECOMMEND_END)
        ids = {t: i for t in tags if (i := tokenizer.token_to_id(t)) is not None}
        missing = [tag for tag in tags if tag not in ids]
        if missing:
            raise QAgentError(
                f"the tokenizer has no token {', '.join(missing)}; it was made for another "
                "protocol: run qagent pretrain again"
            )
        self.eos_ids = frozenset({ids.pop(EOS)})
        self.single_stops: frozenset[int] | None = frozenset(ids.values())

    ending: tuple[int, ...] = ()  # a policy made for the protocol ends with an action's own tag

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that may hold tags."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, tags included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def observation(self, text: str) -> list[int]:
        """Token ids of a tool's answer, up to where the next action begins."""
        return self.encode(text)

    def grammar(self) -> Grammar | None:
        """None: a policy made for the protocol is never guided."""
        return None

    def conversation(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of what an environment says first, up to where the first action begins.

        A policy made for the protocol reads the task's tag: it needs no words for what to do.
        """
        return self.prompt()

    def prompt(self, writes: bool = False) -> list[int]:
        """Token ids of the task's tag; a policy made for the protocol needs no instructions."""
        return self.encode(TASK)


class ChatCodec:
    """The codec of a ready-made tokenizer, as mlx-lm loads it.

    A chain is a conversation in the model's own template: its actions are the assistant's
    turns, tools' answers are the user's. The text between turns comes from the template
    itself; so does the system message's place. Thinking is off where the template knows it.
    A model without a template reads the same conversation as plain lines.

    Attributes:
        eos_ids: Ids that end a generation.
        single_stops: None, as no single id ends an action.
    """

    single_stops: frozenset[int] | None = None

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self.eos_ids = frozenset(int(i) for i in wrapper.eos_token_ids)
        self._template = bool(getattr(wrapper, "has_chat_template", False))
        self._grammar: Grammar | None = None
        self._before, self._after = self._between_turns()
        stops = [i for i, token in enumerate(self._before, 1) if token in self.eos_ids]
        # Ids that end an answer in the model's template: what comes before a tool's answer, up to
        # the first id that ends a generation.
        self.ending = tuple(self._before[: stops[0]]) if stops else ()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that may hold tags, and in which nothing is special."""
        ids = self._wrapper.encode(text, add_special_tokens=False, split_special_tokens=True)
        return list(ids)

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text."""
        return [len(self.encode(text)) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, tags included."""
        return str(self._wrapper.decode(list(ids)))

    def observation(self, text: str) -> list[int]:
        """Token ids of a tool's answer as the user's turn, up to where the next action begins."""
        return [*self._before, *self.encode(text), *self._after]

    def grammar(self) -> Grammar | None:
        """The grammar that says which tokens may come next where chains are served."""
        if self._grammar is None:
            special = set(self._wrapper.all_special_ids) | self.eos_ids
            texts = self._wrapper.batch_decode([[i] for i in range(len(self._wrapper))])
            self._grammar = Grammar(["" if i in special else t for i, t in enumerate(texts)])
        return self._grammar

    def conversation(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of what an environment says first, up to where the first action begins."""
        system = "\n".join(m["content"] for m in messages if m["role"] == "system")
        turns = [(m["role"], m["content"]) for m in messages if m["role"] != "system"]
        if not self._template:
            return self.encode("\n".join([system, *(text for _, text in turns), ""]).lstrip("\n"))
        return self._special(self._render(system, turns))

    def prompt(self, writes: bool = False) -> list[int]:
        """Token ids of the instructions, a worked example, and the request.

        ``writes``: both tell how a query of one's own is written.
        """
        instructions = WRITING_INSTRUCTIONS if writes else INSTRUCTIONS
        turns = [*(WRITING_EXAMPLE if writes else WORKED_EXAMPLE), ("user", REQUEST)]
        if not self._template:
            return self.encode("\n".join([instructions, "", *(t for _, t in turns), ""]))
        return self._special(self._render(instructions, turns))

    def _special(self, text: str) -> list[int]:
        """Token ids of a rendered template, whose control tokens are meant."""
        return list(self._wrapper.encode(text, add_special_tokens=False))

    def _render(self, system: str, turns: Sequence[tuple[str, str]]) -> str:
        from jinja2 import TemplateError

        messages = [{"role": who, "content": text} for who, text in turns]
        whole = [{"role": "system", "content": system}, *messages]
        options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
        try:
            return str(self._wrapper.apply_chat_template(whole, **options))
        except TemplateError:
            # Templates without a system role raise; the first user turn takes its words.
            first = {"role": "user", "content": f"{system}\n\n{turns[0][1]}"}
            return str(self._wrapper.apply_chat_template([first, *messages[1:]], **options))

    def _between_turns(self) -> tuple[list[int], list[int]]:
        """Token ids that the template puts before a user's turn after an answer, and behind it."""
        if not self._template:
            return self.encode("\n"), self.encode("\n")
        action, observation = "qa0said", "qa1answered"
        text = self._render("s", [("user", "u"), ("assistant", action), ("user", observation)])
        _, has_action, rest = text.partition(action)
        before, has_observation, after = rest.partition(observation)
        if not has_action or not has_observation:
            raise QAgentError(
                "the model's chat template drops turns of a conversation; use another model"
            )
        return self._special(before), self._special(after)


AnyCodec = ShopCodec | ChatCodec


def is_shop_tokenizer(folder: Path) -> bool:
    """Whether a model folder's tokenizer was made by `train_tokenizer`."""
    path = folder / "tokenizer_config.json"
    config = read_json(path, f"the model {folder}") if path.exists() else {}
    return isinstance(config, dict) and config.get("qagent_protocol") == "tags"


def load_codec(folder: Path, eos_token_ids: Any = None) -> AnyCodec:
    """The codec of a model folder.

    Raises:
        QAgentError: the folder has no usable tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise QAgentError(f"{folder} has no tokenizer.json; is it an mlx-lm model folder?")
    if is_shop_tokenizer(folder):
        try:
            return ShopCodec(Tokenizer.from_file(str(path)))
        except (QAgentError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # tokenizers raises bare Exception, and Rust's panic is none
            raise QAgentError(f"{path} is damaged: {str(error)[:500]}") from error
    from mlx_lm.utils import load_tokenizer

    try:
        # Code that a model folder brings is never run, nor is anybody asked whether to.
        options = {"trust_remote_code": False}
        return ChatCodec(load_tokenizer(folder, options, eos_token_ids=eos_token_ids))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # transformers and tokenizers raise anything at all
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise QAgentError(f"{folder}: its tokenizer cannot be read: {line}") from error
