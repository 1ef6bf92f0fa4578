"""A chat model that is asked for queries in one prompt: no tools, no training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...environment.environment import Example
from ...errors import QAgentError
from ...models.loading import load_model_folder
from ...utils.text import clean, query_key
from ..metrics import Ranking

MAX_TOKENS = 80
_LIST_MARKER = re.compile(r"^\s*(?:[-*•]|\d+[.):])\s*")

PROMPT = """You recommend search queries to a shopper of an online shop. What is known of them \
(their last queries, interests, what people like them search, what is trending):

{profile}

Which {k} queries will they most likely search next? Write {k} short queries, the likeliest \
first, one a line, nothing else."""


class PromptedModel:
    """Any mlx-lm model folder, decoded greedily; it reads the same profile as the agent."""

    def __init__(self, folder: str) -> None:
        self._path = Path(folder).expanduser()
        if not (self._path / "config.json").exists():
            raise QAgentError(f"prompted model {folder}: there is no mlx-lm model folder there")
        self.name = f"prompted {self._path.resolve().name}"
        self._loaded: tuple[Any, Any] | None = None  # model and tokenizer

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        from mlx_lm.generate import generate
        from mlx_lm.tokenizer_utils import load as load_tokenizer

        if self._loaded is None:
            model, _ = load_model_folder(self._path)
            self._loaded = model, load_tokenizer(self._path)
        model, tokenizer = self._loaded
        rankings = []
        for example in examples:
            profile = re.sub(r" ?<r\d+>", "", example.profile.text) or "(nothing is known)"
            prompt: Any = PROMPT.format(profile=profile, k=k)
            if getattr(tokenizer, "chat_template", None):
                prompt = tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], add_generation_prompt=True
                )
            text = generate(model, tokenizer, prompt, max_tokens=MAX_TOKENS)
            rankings.append(Ranking(parse_queries(text, k), tokens=float(len(text.split()))))
        return rankings


def parse_queries(text: str, k: int) -> tuple[str, ...]:
    """The distinct queries in a model's lines, without numbers, bullets and quotes."""
    queries: dict[str, str] = {}
    for line in text.splitlines():
        query = clean(_LIST_MARKER.sub("", line)).strip("\"'`* ")
        if query_key(query) and len(query) <= 80:
            queries.setdefault(query_key(query), query)
    return tuple(queries.values())[:k]
