"""Strategies from text, which `execution.engine_of` takes behind a ``+``: ``noisy+readout+zne:linear:1,3,5``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Engine
from qhw_diffusion.execution.engine_text import engine_of, wrap_with
from qhw_diffusion.mitigation.decoupling import DynamicalDecoupling
from qhw_diffusion.mitigation.mitigated import Mitigated
from qhw_diffusion.mitigation.mitiq_text import MITIQ_GRAMMAR, MITIQ_STRATEGIES
from qhw_diffusion.mitigation.readout import Readout
from qhw_diffusion.mitigation.strategy import Strategy
from qhw_diffusion.mitigation.twirling import PauliTwirling
from qhw_diffusion.mitigation.zne import ZNE

Number = TypeVar("Number", int, float)
GRAMMAR = (
    "ENGINE+STRATEGY+…, with the strategies readout[:snapshot|measured|correlated], "
    "zne[:EXTRAPOLATION[:FACTOR,FACTOR,…[:local|global]]], twirling[:COUNT[:SEED]], decoupling[:xx|xy4], "
    f"{MITIQ_GRAMMAR}; "
    "for example noisy+readout+zne:linear:1,3,5"
)


def strategies_of(text: str) -> list[Strategy]:
    """The strategies of ``readout+zne``, the one next to the engine first; none of empty text.

    Raises:
        UnknownNameError, InvalidInputError: as `strategy_of`.
    """
    return [strategy_of(each) for each in text.split("+")] if text else []


def strategy_of(text: str) -> Strategy:
    """The strategy of a text as its `spec` writes it, for example ``"zne:exponential:1,2,3"``.

    Raises:
        UnknownNameError: no such strategy, or no such name among its arguments.
        InvalidInputError: an argument that is no number where one is needed, or too many of them.
    """
    name, *arguments = text.strip().split(":")
    if name not in STRATEGIES:
        raise UnknownNameError.of("mitigation strategy", name, STRATEGIES)
    make, most = STRATEGIES[name]
    if len(arguments) > most:
        raise InvalidInputError(f"strategy {text!r} has {len(arguments)} arguments, {name} takes {most}: {GRAMMAR}")
    return make(*arguments)


def _zne(extrapolation: str = "linear", factors: str = "1,3,5", folding: str = "local") -> Strategy:
    numbers = [_number(each, float, "a scale factor of zne") for each in factors.split(",")]
    return ZNE(numbers, extrapolation, folding)  # type: ignore[arg-type]  # ZNE refuses another folding


def _twirling(count: str = "8", seed: str = "0") -> Strategy:
    return PauliTwirling(_number(count, int, "the count of twirling"), _number(seed, int, "the seed of twirling"))


def _number(text: str, kind: Callable[[str], Number], what: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise InvalidInputError(f"{what} is {text!r}, which is no number: {GRAMMAR}") from None


# name → (maker, number of arguments it takes at most)
STRATEGIES: dict[str, tuple[Callable[..., Strategy], int]] = {
    "readout": (Readout, 1),
    "zne": (_zne, 3),
    "twirling": (_twirling, 2),
    "decoupling": (DynamicalDecoupling, 1),
    **MITIQ_STRATEGIES,
}


def _wrap(engine: Engine, texts: Sequence[str]) -> Engine:
    return Mitigated(engine, [strategy_of(text) for text in texts])


wrap_with(_wrap)

__all__ = ["GRAMMAR", "STRATEGIES", "engine_of", "strategies_of", "strategy_of"]
