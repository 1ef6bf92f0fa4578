from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import pytest
from msgspec import Meta

from qagent_mlx.errors import QAgentError
from qagent_mlx.utils.settings import SettingError, check, describe, merge, requirement


@dataclass(frozen=True)
class Inner:
    rank: Annotated[int, Meta(ge=1, description="Rank of the adapter.")] = 16


@dataclass(frozen=True)
class Outer:
    steps: Annotated[int, Meta(ge=1, description="Training steps.")] = 100
    age: Annotated[float, Meta(gt=0, description="Age.", extra={"unit": "days"})] = 2.0
    late: Annotated[
        Annotated[float, Meta(lt=9, extra={"unit": "days"})], Meta(description="L.")
    ] = 1.0
    kind: Annotated[Literal["a", "b"], Meta(description="Which one.")] = "a"
    clip: Annotated[Annotated[float, Meta(ge=0, lt=1)] | None, Meta(description="Clip.")] = None
    weights: dict[str, Annotated[float, Meta(ge=0)]] = field(default_factory=lambda: {"x": 1.0})
    points: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    anything: dict[str, object] = field(default_factory=dict)
    names: tuple[str, ...] = ("one",)
    kinds: tuple[Literal["a", "b"], ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_values_take_the_place_of_defaults_also_inside():
    merged = merge(
        Outer(),
        {
            "steps": 3,
            "age": 4,
            "weights": {"y": 2},
            "names": ["a", "b"],
            "inner": {"rank": 2},
            "points": {"x": [[1, 0.5]]},
        },
    )
    assert merged == Outer(
        steps=3,
        age=4.0,
        weights={"x": 1.0, "y": 2.0},
        names=("a", "b"),
        inner=Inner(2),
        points={"x": ((1.0, 0.5),)},
    )
    assert isinstance(merged.age, float)
    assert merge(Outer(), {}) == Outer()


@pytest.mark.parametrize(
    ("values", "setting", "reason"),
    [
        ({"steps": 0}, "steps", "must be a whole number of at least 1, not 0"),
        ({"kinds": ["a", "c"]}, "kinds", "must hold only a, b, not "),
        ({"steps": True}, "steps", "must be a whole number, not True"),
        ({"steps": 2.0}, "steps", "must be a whole number, not 2.0"),
        ({"age": float("nan")}, "age", "must be a number above 0, not nan"),
        ({"age": float("inf")}, "age", "must be a finite number, not inf"),
        ({"age": 10**400}, "age", "out of range"),
        ({"kind": "c"}, "kind", "must be one of a, b, not 'c'"),
        ({"clip": 1.0}, "clip", "must be a number below 1, not 1.0"),
        ({"clip": "x"}, "clip", "must be a number or nothing, not 'x'"),
        ({"weights": {"x": -1}}, "weights", "must hold a number of at least 0"),
        ({"points": {"x": [[1, "y"]]}}, "points", "must hold a number"),
        ({"inner": {"rank": 0}}, "inner.rank", "must be a whole number of at least 1, not 0"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_settings_name(values, setting, reason):
    with pytest.raises(SettingError, match=reason.replace("(", r"\(")) as error:
        merge(Outer(), values, "file.toml")
    assert error.value.setting == setting
    assert str(error.value).startswith(f"file.toml: {setting} ")


def test_a_name_that_does_not_exist_is_answered_with_the_near_one():
    with pytest.raises(QAgentError, match=r"x: unknown setting 'stepz'; did you mean steps\?"):
        merge(Outer(), {"stepz": 1}, "x")
    with pytest.raises(QAgentError, match=r"x: inner: unknown setting 'zz'; known are rank"):
        merge(Outer(), {"inner": {"zz": 1}}, "x")
    with pytest.raises(QAgentError, match="x: inner must be a table of settings, not int"):
        merge(Outer(), {"inner": 3}, "x")


def test_values_that_are_nested_too_deeply_are_refused():
    deep: object = 1
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(QAgentError, match="x: the values are nested too deeply"):
        merge(Outer(), {"anything": deep}, "x")


def test_what_was_made_in_python_is_checked_too():
    check(Outer())
    with pytest.raises(SettingError, match="steps must be a whole number of at least 1"):
        check(replace(Outer(), steps=0))


@pytest.mark.parametrize(
    ("message", "name", "must"),
    [
        ("Expected `int` >= 1 - at `$.lora.rank`", "lora.rank", "must be a whole number of at"),
        ("Expected `str` of length >= 1 - at `$.q`", "q", "must be text of at least 1 characters"),
        ("Expected `array` of length <= 5 - at `$.q`", "q", "must be a list of at most 5 items"),
        ("Object missing required field `user`", "user", "must be given"),
        ("Object missing required field `user` - at `$.a`", "a.user", "must be given"),
    ],
)
def test_a_validation_error_is_told_in_plain_words(message, name, must):
    assert requirement(message)[0] == name
    assert requirement(message)[1].startswith(must)


def test_settings_are_described_by_their_annotations():
    settings = {s.name: s for s in describe(Outer)}
    assert list(settings)[-1] == "inner.rank"
    assert settings["steps"].description == "Training steps."
    assert settings["steps"].bounds == {"ge": 1} and settings["steps"].default == 100
    assert settings["age"].unit == "days" and settings["age"].kind is float
    late = settings["late"]
    assert (late.description, late.unit, late.bounds) == ("L.", "days", {"lt": 9})
    assert settings["kind"].choices == settings["kinds"].choices == ("a", "b")
    assert settings["clip"].kind is float and settings["clip"].default is None
    assert settings["clip"].bounds == {"ge": 0, "lt": 1}
    assert settings["clip"].description == "Clip."
