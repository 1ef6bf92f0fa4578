"""A chat model that is asked for queries in one prompt: no tools, no training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import QAgentError
from ...models.load import load_model_folder
from ...utils.text import clean, query_key
from ..metrics import Ranking

if TYPE_CHECKING:
    from ...environment.environment import Example

TOKENS = 80
_NUMBER = re.compile(r"^\s*(?:[-*•]|\d+[.):])\s*")

PROMPT = """You recommend search queries to a shopper of an online shop. What is known of them \
(their last queries, interests, what people like them search, what is trending):

{profile}

Which {k} queries will they most likely search next? Write {k} short queries, the likeliest \
first, one a line, nothing else."""


class PromptedModel:
    """Any mlx-lm model folder, decoded greedily; it reads the same profile as the agent."""

    def __init__(self, folder: str) -> None:
        path = Path(folder).expanduser()
        if not (path / "config.json").exists():
            raise QAgentError(f"--prompted {folder}: there is no mlx-lm model folder of that name")
        self.name = f"prompted {path.resolve().name}"
        self._path = path
        self._loaded: tuple[Any, Any] | None = None

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        from mlx_lm.generate import generate
        from mlx_lm.tokenizer_utils import load as load_tokenizer

        if self._loaded is None:
            model, _ = load_model_folder(self._path)
            self._loaded = model, load_tokenizer(self._path)
        model, tokenizer = self._loaded
        made = []
        for example in examples:
            text = PROMPT.format(profile=_plain(example.profile.text), k=k)
            prompt: Any = text
            if getattr(tokenizer, "chat_template", None):
                prompt = tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], add_generation_prompt=True
                )
            said = generate(model, tokenizer, prompt, max_tokens=TOKENS)
            made.append(Ranking(parse(said, k), tokens=float(len(said.split()))))
        return made


def parse(said: str, k: int) -> tuple[str, ...]:
    """The distinct queries in a model's lines; numbers, bullets and quotes go."""
    found: dict[str, str] = {}
    for line in said.splitlines():
        query = clean(_NUMBER.sub("", line)).strip("\"'`* ")
        if query_key(query) and len(query) <= 80:
            found.setdefault(query_key(query), query)
    return tuple(found.values())[:k]


def _plain(profile: str) -> str:
    return re.sub(r" ?<r\d+>", "", profile) or "(nothing is known)"
