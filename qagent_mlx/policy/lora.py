"""Settings of LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from ..utils.settings import SettingError, check

Dtype = Literal["", "float32", "bfloat16", "float16", "4bit", "stored"]


@dataclass(frozen=True)
class LoraConfig:
    """Which layers get an adapter, and how large it is (arXiv:2106.09685)."""

    rank: Annotated[int, Meta(ge=1, le=4096, description="Rank of each adapter.")] = 16
    scale: Annotated[float, Meta(description="Factor of an adapter's output, other than 0.")] = 2.0
    dropout: Annotated[
        float, Meta(ge=0, lt=1, description="Share of an adapter's inputs dropped in training.")
    ] = 0.0
    blocks: Annotated[
        int, Meta(ge=-1, description="Number of last blocks that get an adapter; -1 for all.")
    ] = -1
    keys: Annotated[
        tuple[str, ...],
        Meta(description="Names of the modules of a block that get one; empty for all linear."),
    ] = ()
    dtype: Annotated[
        Dtype,
        Meta(
            description="Precision of the frozen weights: 4bit makes it QLoRA; by default float32 "
            "on a CPU and as stored on a GPU."
        ),
    ] = ""

    def check(self) -> None:
        """Validate the settings.

        Raises:
            SettingError: names the first setting that has a value it cannot have.
        """
        check(self)
        if self.blocks == 0:
            raise SettingError("blocks", "must be at least 1, or -1 for all, not 0", "lora")
        if self.scale == 0:
            raise SettingError("scale", "must be a number other than 0", "lora")
