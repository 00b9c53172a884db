"""The strategies of Mitiq from text, for `parse.STRATEGIES`; Mitiq is loaded when one of them makes circuits."""

from __future__ import annotations

from collections.abc import Callable

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.mitigation.mitiq_cdr import MitiqCDR
from qhw_diffusion.mitigation.mitiq_ddd import MitiqDDD
from qhw_diffusion.mitigation.mitiq_lre import MitiqLRE
from qhw_diffusion.mitigation.mitiq_pec import MitiqPEC
from qhw_diffusion.mitigation.mitiq_twirling import MitiqTwirling
from qhw_diffusion.mitigation.mitiq_zne import MitiqZNE
from qhw_diffusion.mitigation.strategy import Strategy

MITIQ_GRAMMAR = (
    "mitiq-zne[:linear|polynomial2|richardson[:FACTOR,FACTOR,…[:global|all|random|two_qubit[:SEED]]]], "
    "mitiq-lre[:DEGREE[:CHUNKS[:FOLD_MULTIPLIER]]], mitiq-cdr[:CIRCUITS[:FRACTION[:shared|rows[:SEED]]]], "
    "mitiq-pec[:SAMPLES[:SEED]], mitiq-ddd[:xx|yy|xyxy], mitiq-twirling[:CIRCUITS[:SEED]]"
)


def _numbers(kind: Callable, texts: tuple[str, ...]) -> list:
    try:
        return [kind(text) for text in texts]
    except ValueError:
        raise InvalidInputError(f"{', '.join(texts)}: not all of these are numbers: {MITIQ_GRAMMAR}") from None


def _zne(extrapolation: str = "linear", factors: str = "1,3,5", folding: str = "global", seed: str = "0") -> Strategy:
    return MitiqZNE(_numbers(float, tuple(factors.split(","))), extrapolation, folding, *_numbers(int, (seed,)))


def _cdr(circuits: str = "24", fraction: str = "0.5", scope: str = "shared", seed: str = "0") -> Strategy:
    if scope not in ("shared", "rows"):
        raise UnknownNameError.of("training set of mitiq-cdr", scope, ("shared", "rows"))
    [number, drawn] = _numbers(int, (circuits, seed))
    [share] = _numbers(float, (fraction,))
    return MitiqCDR(number, share, scope == "rows", drawn)


# name → (maker, number of arguments it takes at most)
MITIQ_STRATEGIES: dict[str, tuple[Callable[..., Strategy], int]] = {
    "mitiq-zne": (_zne, 4),
    "mitiq-lre": (lambda *texts: MitiqLRE(*_numbers(int, texts)), 3),
    "mitiq-cdr": (_cdr, 4),
    "mitiq-pec": (lambda *texts: MitiqPEC(*_numbers(int, texts)), 2),
    "mitiq-ddd": (MitiqDDD, 1),
    "mitiq-twirling": (lambda *texts: MitiqTwirling(*_numbers(int, texts)), 2),
}
