"""The base of all configurations: frozen dataclasses that nest, check themselves and round-trip through JSON.

    @dataclass(frozen=True)
    class MyConfig(Config):
        '''What it configures.'''

        shots: int = 1024
        '''Shots per circuit.'''
        policy: PolicyConfig = field(default_factory=PolicyConfig)
        '''Policy to train.'''

The string below a field documents it: the command line, its help and the tables of reports are made from the fields.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import os
import sys
import textwrap
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from qhw_diffusion.errors import InvalidInputError, QhwError, UnknownNameError


@dataclass(frozen=True)
class Config:
    """A configuration. Unknown entries are refused when it is read, so that a typo never becomes a default."""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types: nested configurations become dictionaries, tuples become lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Args:
            values: entries by field name; fields that are left out take their defaults.

        Raises:
            UnknownNameError: an entry that is no field.
            InvalidInputError: `values` is no mapping, or a value does not fit its field.
        """
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"{cls.__name__} is read from a mapping, not from {type(values).__name__}")
        hints = field_hints(cls)
        names = [f.name for f in dataclasses.fields(cls)]
        given: dict[str, Any] = {}
        for name, value in values.items():
            if name not in names:
                raise UnknownNameError.of(f"{cls.__name__} setting", str(name), names)
            nested = _nested(hints[name])
            if nested is not None and isinstance(value, Mapping):
                value = nested.from_dict(value)
            given[name] = _tuples(value)
        trouble: Exception | None = None
        try:
            made = cls(**given)
        except QhwError:
            raise
        # the third: a whole number that no float can be; the last: a value of another kind, which is looked for below
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            trouble = error
        for name, value in given.items():
            if wanted := _unlike(value, hints[name]):
                raise InvalidInputError(f"{cls.__name__}.{name} is {_short(value)}; wanted: {wanted}") from trouble
        if trouble is not None:
            raise InvalidInputError(f"{cls.__name__} does not take these values: {trouble}") from trouble
        return made

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


def field_hints(cls: type) -> dict[str, Any]:
    """Types of the fields of a dataclass."""
    return dict(_hints(cls))


@lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def field_docs(cls: type) -> dict[str, str]:
    """Documentation of each field of a dataclass: the string below it, or its entry under "Attributes:".

    Fields of base classes come first.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and base is not Config:
            docs.update(_own_docs(base))
    return docs


def require(condition: bool, message: str) -> None:
    """Raise InvalidInputError with this message unless the condition holds."""
    if not condition:
        raise InvalidInputError(message)


def check_whole(config: Any, *names: str, least: int = 1) -> None:
    """Raise InvalidInputError unless each of these fields is a whole number from `least`."""
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole and value >= least, f"{name} must be at least {least}, a whole number, got {value!r}")


def check_finite(config: Any) -> None:
    """Raise InvalidInputError if a field of a dataclass is an infinite number or NaN, or holds one."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        held = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else (value,)
        finite = all(not isinstance(one, float) or math.isfinite(one) for one in held)
        require(finite, f"{f.name} must be finite, got {value}")


def _own_docs(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    body = _class_body(cls)
    for line, following in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[line.target.id] = " ".join(str(following.value.value).split())
    current: list[str] = []
    _, _, attributes = ((cls.__doc__ and inspect.cleandoc(cls.__doc__)) or "").partition("Attributes:\n")
    for text in attributes.split("\n"):
        if not text.strip():
            break
        names, colon, rest = text.strip().partition(":")
        # a new entry is indented once; its continuation lines deeper
        if colon and not text.startswith("        "):
            current = [name.strip() for name in names.split(",")]
            docs.update(dict.fromkeys(current, rest.strip()))
        else:
            docs.update({name: f"{docs[name]} {text.strip()}" for name in current})
    return docs


def _class_body(cls: type) -> ast.ClassDef:
    """The class as written; a module is parsed once, which `inspect.getsource` does anew for every class of it."""
    module = sys.modules.get(cls.__module__)
    if module is not None and getattr(module, "__file__", None) is not None:
        found = _classes(inspect.getsource(module)).get(cls.__qualname__)
        if found is not None:
            return found
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    return body


@lru_cache(maxsize=64)
def _classes(source: str) -> dict[str, ast.ClassDef]:
    """The classes at the top of a module's source."""
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _nested(hint: Any) -> type[Config] | None:
    """The configuration class a field holds, also where the field may be None."""
    options = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    return next((o for o in options if isinstance(o, type) and hasattr(o, "from_dict")), None)


def _unlike(value: Any, hint: Any) -> str:
    """What a field of texts or of a configuration wants, where the value is of another kind; empty where it fits.

    Numbers are left to the checks of the configurations themselves, which know their ranges.
    """
    options = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    words = [get_origin(o) is Literal and all(isinstance(one, str) for one in get_args(o)) for o in options]
    kinds = [str if word else get_origin(o) or o for o, word in zip(options, words, strict=True)]
    named = [kind for kind in kinds if kind is str or (isinstance(kind, type) and hasattr(kind, "from_dict"))]
    if len(named) + (types.NoneType in kinds) < len(kinds) or (value is None and types.NoneType in kinds):
        return ""
    if isinstance(value, tuple(named)):
        return ""
    return " or ".join("a text" if kind is str else f"settings of {kind.__name__}" for kind in named)


def _short(value: Any) -> str:
    """The value as it is written in Python, cut where it is long."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a whole number of more than 20 digits"  # Python itself writes no more than some thousand digits
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def threads_asked() -> int | None:
    """Threads that the environment variable QHW_NUM_THREADS gives the simulation (`execution.cores`); None without it.

    Raises:
        InvalidInputError: it is no whole number from 1.
    """
    text = os.environ.get("QHW_NUM_THREADS")
    if text is None:
        return None
    if not is_thread_count(text):
        raise InvalidInputError(
            f"the environment variable QHW_NUM_THREADS is {text!r}; allowed: whole numbers from 1 to 99999. Unset it "
            "to use as many threads as torch (torch.set_num_threads, OMP_NUM_THREADS)"
        )
    return int(text)


def is_thread_count(text: str) -> bool:
    """Whether a text is a whole number from 1 to 99999."""
    return text.isascii() and text.isdecimal() and len(text) < 6 and int(text) >= 1
