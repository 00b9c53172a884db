"""Frozen dataclasses of settings, back from the JSON they were saved as."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from ..errors import InvalidInputError, QhwError

T = TypeVar("T")


def settings_from_dict(cls: type[T], data: Any, what: str) -> T:
    """The dataclass `cls` from what `dataclasses.asdict` wrote, lists as tuples; `what` it is, for messages.

    Raises:
        InvalidInputError: no dictionary, or entries that `cls` does not have or cannot take. What `cls` itself raises
            of the package's errors passes through.
    """
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(data, dict) or set(data) - known:
        raise InvalidInputError(f"not {what}: allowed entries are {', '.join(sorted(known))}")
    try:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})
    except QhwError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"not {what}: {error}") from error
