"""The base of configurations: nesting, round trips, documentation of fields, refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from qhw_diffusion.config import Config, check_finite, check_whole, field_docs
from qhw_diffusion.errors import InvalidInputError, UnknownNameError


@dataclass(frozen=True)
class Inner(Config):
    """Inner."""

    shots: int = 8
    """Shots per circuit."""
    scales: tuple[float, ...] = (1.0, 3.0)
    """Scale factors."""

    def __post_init__(self) -> None:
        check_whole(self, "shots")


@dataclass(frozen=True)
class Outer(Config):
    """Outer.

    Attributes:
        name: a name that
            goes on.
        rate: a rate.
    """

    name: str = "a"
    rate: float = 0.5
    inner: Inner = field(default_factory=Inner)
    """The inner one."""
    perhaps: Inner | None = None
    """Another, or none."""

    def __post_init__(self) -> None:
        check_finite(self)


def test_nested_configurations_come_back_from_json() -> None:
    config = Outer(inner=Inner(shots=3, scales=(2.0,)), perhaps=Inner())
    assert Outer.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Outer.from_dict({}) == Outer()


def test_every_field_is_documented_by_the_string_below_it_or_under_attributes() -> None:
    assert field_docs(Outer) == {
        "name": "a name that goes on.",
        "rate": "a rate.",
        "inner": "The inner one.",
        "perhaps": "Another, or none.",
    }


@dataclass(frozen=True)
class Heir(Inner):
    """Heir."""

    more: int = 1
    """More."""


def test_fields_of_base_classes_come_first() -> None:
    assert list(field_docs(Heir)) == ["shots", "scales", "more"]


@pytest.mark.parametrize(
    ("values", "error", "word"),
    [
        ({"nmae": "b"}, UnknownNameError, "nmae"),
        ({"inner": {"shot": 3}}, UnknownNameError, "shot"),
        ({"inner": {"shots": 0}}, InvalidInputError, "shots must be at least 1"),
        ({"inner": {"shots": True}}, InvalidInputError, "whole number"),
        ({"rate": float("nan")}, InvalidInputError, "rate must be finite"),
        ([], InvalidInputError, "Outer is read from a mapping, not from list"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values: object, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        Outer.from_dict(values)  # type: ignore[arg-type]
