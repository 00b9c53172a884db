"""The built-in strategies and the grammar of texts, which `execution.engine_of` takes behind a ``+``.

A text is ``shots:4096+readout+zne:linear:1,3,5``: an engine, then strategies, the one next to the engine first. A
strategy of a user's own is ``module:name`` or ``file.py:name``, with its settings behind it as the built-in ones have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qhw_diffusion.errors import InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.execution import Engine
from qhw_diffusion.execution.engines import engine_of, wrap_with
from qhw_diffusion.extensions import is_extension, load_extension
from qhw_diffusion.mitigation.decoupling import DynamicalDecoupling
from qhw_diffusion.mitigation.mitigated import Mitigated
from qhw_diffusion.mitigation.mitiq_cdr import MitiqCDR
from qhw_diffusion.mitigation.mitiq_pec import MitiqPEC
from qhw_diffusion.mitigation.mitiq_weighted import MitiqDDD, MitiqLRE, MitiqTwirling, MitiqZNE
from qhw_diffusion.mitigation.readout import Readout
from qhw_diffusion.mitigation.strategy import Strategy
from qhw_diffusion.mitigation.strategy_text import made_from_text
from qhw_diffusion.mitigation.twirling import PauliTwirling
from qhw_diffusion.mitigation.zne import ZNE

_BUILT_IN: tuple[type[Strategy], ...] = (
    Readout, ZNE, PauliTwirling, DynamicalDecoupling, MitiqZNE, MitiqLRE, MitiqCDR, MitiqPEC, MitiqDDD, MitiqTwirling
)  # fmt: skip
STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in _BUILT_IN}
GRAMMAR = (
    f"ENGINE+STRATEGY+…, with the strategies {', '.join(kind.grammar() for kind in _BUILT_IN)}; module:name or "
    "file.py:name for a strategy of your own; for example "
    "noisy+readout+zne:linear:1,3,5"
)


def strategies_of(text: str) -> list[Strategy]:
    """The strategies of ``readout+zne``, the one next to the engine first; none of empty text.

    Raises:
        UnknownNameError, InvalidInputError: as `strategy_of`.
    """
    return [strategy_of(each) for each in text.split("+")] if text else []


def strategy_of(text: str) -> Strategy:
    """The strategy of a text as its `spec` writes it, for example ``"zne:exponential:1,2,3"``.

    Built-in names come first. ``module:name`` and ``file.py:name`` are a `Strategy`, a subclass of it, or a function
    that returns one; class and function are given the settings behind.

    Raises:
        UnknownNameError: no such strategy, or no such name among its settings.
        InvalidInputError: a setting that is no number where one is needed, or too many of them; an extension that
            cannot be loaded or is no strategy.
    """
    name, *settings = text.strip().split(":")
    if name in STRATEGIES:
        return STRATEGIES[name].from_settings(settings)
    reference = ":".join([name, *settings[:1]])
    if not is_extension(reference):
        raise _unknown(name)
    return _own(reference, settings[1:])


def _own(reference: str, settings: Sequence[str]) -> Strategy:
    """The strategy that a user's object is or makes."""
    try:
        given: Any = load_extension(reference, what="mitigation strategy")
    except InvalidInputError as error:
        place = reference.rpartition(":")[0]
        absent = error.__cause__
        if isinstance(absent, ModuleNotFoundError) and place.split(".")[0] == absent.name:  # mistyped, most likely
            raise _unknown(place, f", and there is no module {absent.name}") from error
        raise
    if isinstance(given, Strategy) and settings:
        raise InvalidInputError(
            f"mitigation strategy {reference!r} is made already and takes no settings; given {', '.join(settings)}"
        )
    made: Any = given
    if isinstance(given, type) and issubclass(given, Strategy):
        made = _from_settings(given, settings, reference)
    elif callable(given) and not isinstance(given, (Strategy, type)):
        made = made_from_text(given, settings, reference)
    if not isinstance(made, Strategy):
        raise InvalidInputError(
            f"mitigation strategy {reference!r} is a {type(made).__name__}; wanted: a Strategy of "
            "qhw_diffusion.mitigation, a subclass of it, or a function that returns one"
        )
    return made


def _from_settings(kind: type[Strategy], settings: Sequence[str], reference: str) -> Strategy:
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise InvalidInputError(f"mitigation strategy {reference!r} does not define {' and '.join(missing)}")
    try:
        return kind.from_settings(settings)
    except QhwError as error:
        if reference in str(error):
            raise
        raise type(error)(f"mitigation strategy {reference!r}: {error}") from error


def _unknown(name: str, more: str = "") -> UnknownNameError:
    return UnknownNameError(f"{UnknownNameError.of('mitigation strategy', name, STRATEGIES, own=True)}{more}")


def _wrap(engine: Engine, texts: Sequence[str]) -> Engine:
    return Mitigated(engine, [strategy_of(text) for text in texts])


wrap_with(_wrap)

__all__ = ["GRAMMAR", "STRATEGIES", "engine_of", "strategies_of", "strategy_of"]
