"""Settings of LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import QAgentError


@dataclass(frozen=True)
class LoraConfig:
    """Which layers get an adapter, and how large it is."""

    rank: int = 16
    scale: float = 2.0
    dropout: float = 0.0
    blocks: int = -1  # the last so many blocks; -1 for all
    keys: tuple[str, ...] = ()  # module names inside a block; empty for all linear ones
    dtype: str = ""  # of the weights below the adapter, one of DTYPES; 4bit makes it QLoRA

    def check(self) -> None:
        """Refuse an adapter that cannot be made.

        Raises:
            QAgentError: names the setting and what it may be.
        """
        if self.rank < 1:
            raise QAgentError("lora: rank must be at least 1")
        if self.blocks != -1 and self.blocks < 1:
            raise QAgentError("lora: blocks must be at least 1, or -1 for all")
        if not 0 <= self.dropout < 1:
            raise QAgentError("lora: dropout must be from 0 to below 1")
        if not 0 < abs(self.scale) < float("inf"):
            raise QAgentError("lora: scale must be a number other than 0")
