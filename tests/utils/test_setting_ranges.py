"""Every annotated setting refuses what it cannot mean, in one line, wherever the value comes from."""

from __future__ import annotations

import math
import runpy
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.inventory.external_engines import OpenSearchSettings, PostgresSettings
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.simulator.world import SimulatorConfig
from qagent_mlx.utils.settings import LARGEST, describe, merge

GENERATOR = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "reference" / "generate.py"))
CLASSES = [
    *(GENERATOR["settings_class"](path) for _, _, path in GENERATOR["SECTIONS"]),
    *(AgentConfig, SimulatorConfig, OpenSearchSettings, PostgresSettings),
]
DEEP = []
for _ in range(3000):
    DEEP = [DEEP]
EXTREMES = [
    *(math.nan, math.inf, -math.inf, 1e300, -1e300, 5e-324, -0.0, -1, 0, 2**63, -(2**63), 10**400),
    *("", "x" * 100_000, "\0\x1b[31m\n", "nan", True, None, [], [None], {}, {"a": math.nan}, DEEP),
]


def numbers(value):
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from numbers(getattr(value, field.name))
    elif isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from numbers(inner)


@pytest.mark.parametrize("settings", CLASSES, ids=lambda c: c.__name__)
def test_whatever_a_setting_is_given_is_taken_within_its_range_or_refused_in_one_line(settings):
    taken = 0
    for setting in describe(settings):
        for value in EXTREMES:
            nested = value
            for name in reversed(setting.name.split(".")):
                nested = {name: nested}
            try:
                merged = merge(settings(), nested, "shop.json")
            except QAgentError as error:
                message = str(error)
                assert message.isprintable() and len(message) < 400, message
                assert setting.name.partition(".")[0] in message
                continue
            taken += 1
            given = merged
            for name in setting.name.split("."):
                given = getattr(given, name)
            for number in numbers(given):
                assert math.isfinite(number) and abs(number) <= LARGEST, setting.name
                if isinstance(given, (int, float)):
                    assert number >= setting.bounds.get("ge", number)
                    assert number <= setting.bounds.get("le", number)
                    assert number > setting.bounds.get("gt", -math.inf)
    assert taken


def test_what_costs_memory_by_its_size_has_a_limit_that_a_machine_bears():
    """A stranger's shop, run or policy says these numbers, and something is made so large."""
    limits = {
        (c.__name__, s.name): s.bounds.get("le") for c in CLASSES for s in describe(c) if s.bounds
    }
    for name, most in (
        (("ShopConfig", "search.dimensions"), 10_000),
        (("ShopConfig", "search.pool"), 10**6),
        (("ShopConfig", "memory.budget"), 10**6),
        (("AgentConfig", "turn_tokens"), 10**6),
        (("AgentConfig", "results_shown"), 10**4),
        (("SimulatorConfig", "users"), 10**7),
        (("SimulatorConfig", "days"), 10**5),
        (("LoraConfig", "rank"), 10**4),
    ):
        assert limits[name] is not None and limits[name] <= most, name
