"""All presets, in the order in which they are recognised."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import QAgentError
from . import (
    algolia,
    amazon,
    elasticdump,
    ga4,
    matomo,
    merchant,
    public_logs,
    public_queries,
    research,
    segment,
    shopify,
    ubi,
    woocommerce,
)
from .preset import Preset
from .raw_files import RawFile

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        ubi.PRESET,
        ga4.PRESET,
        segment.PRESET,
        algolia.PRESET,
        matomo.PRESET,
        shopify.PRESET,
        woocommerce.PRESET,
        merchant.PRESET,
        *public_logs.PRESETS,
        *public_queries.PRESETS,
        elasticdump.PRESET,
        amazon.PRESET,
        *research.PRESETS,
    )
}


def find_preset(name: str) -> Preset:
    """The preset of a name; raises QAgentError where there is none."""
    if name not in PRESETS:
        raise QAgentError(f"there is no preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]


def recognise(file: RawFile) -> tuple[Preset, str] | None:
    """The preset whose format a file has, and the file's role in it."""
    for preset in PRESETS.values():
        role = preset.recognise(file)
        if role is not None:
            return preset, role
    return None


def recognise_all(files: Iterable[RawFile]) -> dict[str, list[tuple[str, RawFile]]]:
    """The files by preset, each with its role; those of no preset are left out."""
    by_preset: dict[str, list[tuple[str, RawFile]]] = {}
    for file in files:
        found = recognise(file)
        if found is not None:
            preset, role = found
            by_preset.setdefault(preset.name, []).append((role, file))
    return by_preset
