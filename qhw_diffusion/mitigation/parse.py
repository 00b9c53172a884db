"""Engines and strategies from one line of text: ``noisy+readout+zne:linear:1,3,5``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Engine
from qhw_diffusion.execution import engine_of as plain_engine_of
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


def engine_of(engine: str | Engine) -> Engine:
    """The engine of that text, mitigated where strategies follow its name after ``+``, or the engine given.

    Strategies are separated by ``+``, the one next to the engine first; what follows a colon are a strategy's
    arguments, in order. `Engine.spec` writes these texts.

    Raises:
        UnknownNameError: no such engine or strategy, or no such name among its arguments.
        InvalidInputError: an argument that is no number where one is needed, too many of them, or empty text.
    """
    if isinstance(engine, Engine):
        return engine
    name, *texts = str(engine).split("+")
    base = plain_engine_of(name.strip())
    return Mitigated(base, [strategy_of(text) for text in texts]) if texts else base


def strategy_of(text: str) -> Strategy:
    """The strategy of a text as its `spec` writes it, for example ``"zne:exponential:1,2,3"``.

    Raises:
        UnknownNameError, InvalidInputError: as `engine_of`.
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
