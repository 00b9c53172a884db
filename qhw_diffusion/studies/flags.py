"""Command-line flags made from settings classes: every field a documented flag, so the two cannot drift apart."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from qhw_diffusion.config import field_docs


def add_flags(
    parser: argparse.ArgumentParser,
    cls: type,
    *,
    title: str,
    prefix: str = "",
    skip: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    defaults: Any = None,
) -> None:
    """One flag per field of a settings dataclass, in an argument group of its own.

    A flag that is not given leaves nothing in the namespace (`given_flags` collects the others). defaults: an instance
    whose values the help shows; without it the class's own defaults.
    """
    group = parser.add_argument_group(title)
    docs, hints, names = field_docs(cls), get_type_hints(cls), rename or {}
    shown = defaults if defaults is not None else cls()
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        flag = "--" + (prefix + names.get(field.name, field.name)).replace("_", "-")
        options: dict[str, Any] = {
            "dest": _destination(cls, field.name),
            "default": argparse.SUPPRESS,
            "help": _help(docs.get(field.name, ""), getattr(shown, field.name)),
        }
        group.add_argument(flag, **options, **_kind(hints[field.name], flag))


def given_flags(namespace: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The fields of `cls` that were given on the command line."""
    start = _destination(cls, "")
    return {name.removeprefix(start): value for name, value in vars(namespace).items() if name.startswith(start)}


def _destination(cls: type, name: str) -> str:
    return f"{cls.__name__}.{name}"


def _help(text: str, default: Any) -> str:
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    told = "" if shown is None or shown == "" else f" [{shown}]"
    return (text + told).replace("%", "%%")


def _kind(hint: Any, flag: str) -> dict[str, Any]:
    """argparse options for a type: bool, int, float, str, these or None, and tuples of them (comma-separated)."""
    if get_origin(hint) in (types.UnionType, Union):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    metavar = flag.strip("-").rsplit("-", 1)[-1].upper()
    if get_origin(hint) is tuple:
        return {"type": _comma_separated(get_args(hint)[0]), "metavar": f"{metavar},…"}
    return {"type": hint, "metavar": metavar}


def _comma_separated(kind: type) -> Any:
    def read(text: str) -> tuple[Any, ...]:
        words = [word.strip() for word in text.split(",") if word.strip()]
        if kind is bool:
            return tuple(word.lower() in ("1", "true", "yes") for word in words)
        return tuple(kind(word) for word in words)

    read.__name__ = f"list of {kind.__name__}"
    return read
