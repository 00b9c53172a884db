"""Strategies and text: the settings of a class or function, read from text by their annotations and written back."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qhw_diffusion.errors import InvalidInputError, QhwError
from qhw_diffusion.extensions import is_extension, raised_text

_PACKAGE = __name__.split(".")[0]
_NO_YES = ("no", "yes")


def made_from_text(make: Callable[..., Any], settings: Sequence[str], name: str) -> Any:
    """What a class or function makes of settings in text, each read as the annotation of its parameter says.

    Args:
        make: takes whole numbers, numbers, words, yes or no, and sequences of these (joined by commas).
        settings: texts, in the order of the parameters (`Strategy.text_order` of a strategy that has one).
        name: what messages call it.

    Raises:
        InvalidInputError: too many settings or too few, one that is no such value, a parameter that no text describes,
            or whatever `make` raises that is no error of this package.
    """
    hints = _parameters(make)
    if len(settings) > len(hints):
        raise InvalidInputError(
            f"mitigation strategy {':'.join([name, *settings])!r} has {len(settings)} settings, {name} takes "
            f"{len(hints)}: {grammar_of(make, name)}"
        )
    given = {
        parameter: _value(text, hint, _words(make, parameter), f"{parameter} of {name}")
        for (parameter, hint), text in zip(hints.items(), settings, strict=False)
    }
    try:
        return make(**given)
    except QhwError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"mitigation strategy {name} cannot be made of {', '.join(settings) or 'no settings'}: {raised_text(error)}"
        ) from error


def grammar_of(make: Callable[..., Any], name: str) -> str:
    """What a text may state: ``zne[:EXTRAPOLATION[:SCALE_FACTOR,SCALE_FACTOR,…[:local|global]]]``."""
    shown = [_shape(parameter, hint, _words(make, parameter)) for parameter, hint in _parameters(make).items()]
    return f"{name}{''.join(f'[:{each}' for each in shown)}{']' * len(shown)}"


def settings_of(strategy: Any) -> list[str] | None:
    """The settings of a dataclass as text, defaults at the end left out; None where text does not hold them."""
    kind = type(strategy)
    if not is_dataclass(strategy):
        return [] if kind.__init__ is object.__init__ else None
    described = {f.name: f for f in fields(strategy) if f.init}
    names = kind.text_order or tuple(described)
    values = [getattr(strategy, name) for name in names]
    stated = len(names)
    while stated > kind.text_least and _same(described[names[stated - 1]].default, values[stated - 1]):
        stated -= 1
    texts = [_text(value, _words(kind, name)) for name, value in zip(names[:stated], values, strict=False)]
    known = [text for text in texts if text is not None]
    return known if len(known) == len(texts) else None


def reference_of(kind: type) -> str | None:
    """What texts call a class: its name if it is built in, else ``module:Class`` or ``file.py:Class``; None if neither.

    Files are called by their path from the current folder where they lie below it.
    """
    place = kind.__module__
    if place.split(".")[0] == _PACKAGE:
        return str(kind.name)  # type: ignore[attr-defined]
    if place == "__main__" or place.startswith("qhw_extension_"):
        file, here = Path(getattr(sys.modules.get(place), "__file__", None) or "").resolve(), Path(os.getcwd())
        place = str(file.relative_to(here) if file.is_relative_to(here) else file)
    text = f"{place}:{kind.__qualname__}"
    return text if is_extension(text) and "+" not in text and ":" not in place else None


def number_text(number: float) -> str:
    """The shortest text that gives this very number again, without the ``+`` that separates strategies."""
    short = f"{number:g}"
    return (short if float(short) == number else repr(float(number))).replace("e+", "e")


def _parameters(make: Callable[..., Any]) -> dict[str, Any]:
    """Parameters that a text can state and their annotations, in the text's order."""
    parameters = inspect.signature(make).parameters.values()
    try:
        hints = _hints(make)
    except NameError as error:
        raise InvalidInputError(f"the annotations of {make!r} cannot be read: {error}") from error
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return {name: hints.get(name, str) for name in getattr(make, "text_order", ()) or names}


@lru_cache(maxsize=256)
def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(make.__init__ if isinstance(make, type) and not is_dataclass(make) else make)  # type: ignore[misc]


def _words(make: Any, parameter: str) -> tuple[str, str]:
    """What a text says for False and for True."""
    words: tuple[str, str] = getattr(make, "text_words", {}).get(parameter, _NO_YES)
    return words


def _same(default: Any, value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return isinstance(default, (tuple, list)) and list(default) == list(value)
    return type(default) is type(value) and bool(default == value)


def _text(value: Any, words: tuple[str, str]) -> str | None:
    """A setting as text; None where `_value` would not read it again."""
    if isinstance(value, bool):
        return words[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, str):
        return None if any(sign in value for sign in ":+,") or value != value.strip() else value
    if isinstance(value, (tuple, list)) and value:
        texts = [_text(each, words) or "" for each in value]
        return ",".join(texts) if all(texts) else None
    return None


def _value(text: str, hint: Any, words: tuple[str, str], what: str) -> Any:
    if get_origin(hint) in (Union, UnionType):
        hint = next(option for option in get_args(hint) if option is not NoneType)
    if hint is bool:
        if text not in words:
            raise InvalidInputError(f"{what} is {text!r}; allowed: {words[0]}, {words[1]}")
        return text == words[1]
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            kind = "whole number" if hint is int else "number"
            raise InvalidInputError(f"{what} is {text!r}, which is no {kind}") from None
    if _is_sequence(hint):
        return tuple(_value(each, (*get_args(hint), str)[0], words, what) for each in text.split(","))
    if hint is str or get_origin(hint) is Literal:
        return text
    raise InvalidInputError(f"{what} is a {hint}, which no text describes; leave it out")


def _shape(name: str, hint: Any, words: tuple[str, str]) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if hint is bool:
        return "|".join(words)
    if _is_sequence(hint):
        single = name.upper().removesuffix("S")
        return f"{single},{single},…"
    return name.upper()


def _is_sequence(hint: Any) -> bool:
    return hint in (tuple, list) or get_origin(hint) in (tuple, list, Sequence)
