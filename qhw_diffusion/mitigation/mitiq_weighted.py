"""Mitiq's methods whose result is a weighted sum over circuits: ZNE, LRE, DDD and twirling."""

from __future__ import annotations

import math
import random
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, UnknownNameError, UnsupportedCircuitError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment
from qhw_diffusion.mitigation.mitiq_bridge import bridge, check_basis
from qhw_diffusion.mitigation.rewriting import kept, without_delays
from qhw_diffusion.mitigation.strategy import MOST_CIRCUITS, Need, Strategy, numbered, require_mitiq
from qhw_diffusion.mitigation.strategy_text import number_text

EXTRAPOLATIONS = ("linear", "polynomial2", "richardson")
FOLDINGS = ("global", "all", "random", "two_qubit")
RULES = ("xx", "yy", "xyxy")


@dataclass(frozen=True)
class Family:
    """The circuits a method makes of one circuit.

    Attributes:
        circuits: C circuits with the parameters of their parent.
        weights: [C] of their expectation values in the result.
        draws: how often each was drawn, 0 for one whose weight is exact; None where nothing is left to chance.
    """

    circuits: tuple[CompiledCircuit, ...]
    weights: Tensor
    draws: tuple[int, ...] | None = None


class Weighted(Strategy):
    """Σ w_c ⟨O⟩_c over the circuits of a `Family`, which is made once for each circuit.

    The standard errors are those of the engine, propagated, and those of the drawing where circuits are drawn.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.MITIQ})
    text_least: ClassVar[int] = 9  # a text states them all

    @abstractmethod
    def make(self, compiled: CompiledCircuit) -> Family:
        """Circuits and weights for `compiled`."""

    def family(self, compiled: CompiledCircuit) -> Family:
        """The family of `compiled`, made once."""
        store = kept(compiled)
        if self not in store:
            store[self] = self.make(compiled)
        family: Family = store[self]
        return family

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise UnsupportedCircuitError for gates that Mitiq is not given, MissingDependencyError without Mitiq."""
        require_mitiq()
        check_basis(without_delays(compiled))

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """The family's circuits, all at the same rows."""
        return [(circuit, rows) for circuit in self.family(compiled).circuits]

    def combine(
        self,
        estimates: Sequence[Estimate],
        compiled: CompiledCircuit,
        rows: Tensor,
        calibration: Sequence[Estimate] = (),
    ) -> Estimate:
        """The weighted sum."""
        family = self.family(compiled)
        values = torch.stack([e.values for e in estimates])  # [C, B, M]
        errors = torch.stack([e.std_errors for e in estimates])
        weights = family.weights.to(values)[:, None, None]
        variance = (weights**2 * errors**2).sum(0)
        if family.draws is not None:
            variance = variance + _drawing_variance(values.detach(), errors, weights, family.draws)
        return Estimate((weights * values).sum(0), variance.sqrt())


def _drawing_variance(values: Tensor, errors: Tensor, weights: Tensor, draws: tuple[int, ...]) -> Tensor:
    """[B, M] variance of the mean over N draws, less what the engine's own errors contribute to their scatter."""
    drawn = [c for c, count in enumerate(draws) if count]
    values, errors, weights = values[drawn], errors[drawn], weights[drawn]
    counts = torch.tensor([draws[c] for c in drawn]).to(values)[:, None, None]
    n = counts.sum()
    scale = weights * n / counts  # what one draw of this circuit stands for
    single, share = scale * values, counts / n
    scatter = (share * (single - (share * single).sum(0)) ** 2).sum(0) - (share * scale**2 * errors**2).sum(0)
    return scatter.clamp(min=0) / (n - 1).clamp(min=1)


def check_number(name: str, given: object, low: int, most: int | None = None) -> None:
    """Raise InvalidInputError unless `given` is an integer ≥ low, and ≤ most if there is such a limit."""
    if isinstance(given, bool) or not isinstance(given, int) or given < low or (most is not None and given > most):
        limit = "" if most is None else f" and ≤ {most:,}"
        raise InvalidInputError(f"{name} is {given!r}; it must be an integer ≥ {low}{limit}")


@dataclass(frozen=True)
class MitiqZNE(Weighted):
    """Fold the circuit to larger noise with Mitiq, evaluate, extrapolate to none.

    The folded circuits keep the parameters: all rows go out in one broadcast per scale. The extrapolations are those of
    Mitiq that are linear in the values: their weights are asked of Mitiq once, so that a gradient goes through. Its
    exponential ones are left out: where noise makes a value grow or change its sign they return numbers near 0 without
    a word. `ZNE` has one that does not.

    Args:
        scale_factors: noise scale factors ≥ 1, ascending, at least two.
        extrapolation: ``"linear"``, ``"polynomial2"`` (least squares), ``"richardson"`` (through all points).
        folding: ``"global"`` (the whole circuit), ``"all"`` (every gate), ``"random"`` (gates drawn at random where the
            scale is no odd integer) or ``"two_qubit"`` (every two-qubit gate).
        seed: of the random folding.

    Raises:
        InvalidInputError: scale factors that are too few, below 1 or not ascending, or that ``"all"`` and
            ``"two_qubit"`` cannot reach (they fold to odd integers).
        UnknownNameError: another extrapolation or folding.
    """

    scale_factors: Sequence[float] = (1, 3, 5)
    extrapolation: str = "linear"
    folding: str = "global"
    seed: int = 0
    name: ClassVar[str] = "mitiq-zne"
    text_order: ClassVar[tuple[str, ...]] = ("extrapolation", "scale_factors", "folding", "seed")

    def __post_init__(self) -> None:
        if self.extrapolation not in EXTRAPOLATIONS:
            raise UnknownNameError.of("extrapolation", str(self.extrapolation), EXTRAPOLATIONS)
        if self.folding not in FOLDINGS:
            raise UnknownNameError.of("folding", str(self.folding), FOLDINGS)
        scales = tuple(float(s) for s in self.scale_factors)
        needed = 3 if self.extrapolation == "polynomial2" else 2
        if len(scales) < needed or scales != tuple(sorted(set(scales))) or not all(1 <= s < math.inf for s in scales):
            raise InvalidInputError(
                f"scale_factors are {self.scale_factors!r}; give at least {needed} ascending numbers ≥ 1, for example "
                "(1, 3, 5)"
            )
        if self.folding in ("all", "two_qubit") and any(s % 2 != 1 for s in scales):
            raise InvalidInputError(
                f"scale_factors are {self.scale_factors!r}; folding={self.folding!r} reaches odd integers only, use "
                "'global' or 'random'"
            )
        object.__setattr__(self, "scale_factors", scales)

    @property
    def label(self) -> str:
        """``"Mitiq ZNE linear 1, 3, 5, global"``."""
        return f"Mitiq ZNE {self.extrapolation} {', '.join(map(number_text, self.scale_factors))}, {self.folding}"

    def make(self, compiled: CompiledCircuit) -> Family:
        """Circuits and weights for `compiled`."""
        require_mitiq()
        from mitiq.zne import construct_circuits

        source = bridge(compiled)
        circuits = construct_circuits(source.circuit, list(self.scale_factors), self._folding())
        weights = [self._extrapolate(unit) for unit in np.eye(len(self.scale_factors))]
        return Family(tuple(source.back(c) for c in circuits), torch.tensor(weights, dtype=torch.float64))

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
        """``"folded by Mitiq, scale 3"``, by the scale factor asked for."""
        return [f"folded by Mitiq, scale {factor:g}" for factor in self.scale_factors]

    def _folding(self) -> Callable[[Any, float], Any]:
        from mitiq.zne.scaling import fold_all, fold_gates_at_random, fold_global

        return {
            "global": fold_global,
            "all": fold_all,
            "random": lambda circuit, scale: fold_gates_at_random(circuit, scale, seed=self.seed),
            "two_qubit": lambda circuit, scale: fold_all(circuit, scale, exclude=frozenset({"single"})),
        }[self.folding]

    def _extrapolate(self, values: np.ndarray) -> float:
        """What Mitiq makes of one value per scale."""
        from mitiq.zne.inference import LinearFactory, PolyFactory, RichardsonFactory

        scales, points = list(self.scale_factors), values.tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a polynomial through all points has no covariance
            if self.extrapolation == "linear":
                return float(LinearFactory.extrapolate(scales, points))  # type: ignore[arg-type]
            if self.extrapolation == "polynomial2":
                return float(PolyFactory.extrapolate(scales, points, order=2))  # type: ignore[arg-type]
            return float(RichardsonFactory.extrapolate(scales, points))  # type: ignore[arg-type]


@dataclass(frozen=True)
class MitiqLRE(Weighted):
    """Fold every chunk of the circuit by itself and extrapolate with a polynomial in as many variables as chunks.

    There are C(chunks + degree, degree) circuits. The weights alternate in sign and grow with the degree: the variance
    at equal shots per circuit is multiplied by Σ w² (`noise_amplification`).

    Args:
        degree: of the polynomial, ≥ 1.
        chunks: parts of about equally many layers, ≥ 1; Mitiq's default, every layer by itself, would be thousands of
            circuits here.
        fold_multiplier: step between scale factors: 1 + 2·fold_multiplier is the first, ≥ 1.

    Raises:
        InvalidInputError: a number below 1; more chunks than the circuit has layers (when circuits are made).
    """

    degree: int = 1
    chunks: int = 4
    fold_multiplier: int = 1
    name: ClassVar[str] = "mitiq-lre"

    def __post_init__(self) -> None:
        for field in ("degree", "chunks", "fold_multiplier"):
            check_number(field, getattr(self, field), 1)

    @property
    def label(self) -> str:
        """``"Mitiq LRE, 4 chunks"``, and the degree where it is not 1."""
        return f"Mitiq LRE, {self.chunks} chunks" + ("" if self.degree == 1 else f", degree {self.degree}")

    def make(self, compiled: CompiledCircuit) -> Family:
        """Circuits and weights for `compiled`."""
        require_mitiq()
        from mitiq.lre import construct_circuits
        from mitiq.lre.inference import multivariate_richardson_coefficients
        from mitiq.zne.scaling import fold_all

        source = bridge(compiled)
        if self.chunks > len(source.circuit):
            raise InvalidInputError(
                f"chunks is {self.chunks}, but the circuit has {len(source.circuit)} layers; use fewer chunks"
            )
        # The scales are odd integers: folding every gate reaches them, and leaves nothing to chance
        needed = math.comb(self.chunks + self.degree, self.degree)  # monomials of so many variables
        if needed > MOST_CIRCUITS:
            raise InvalidInputError(
                f"degree {self.degree} in {self.chunks} chunks takes {needed:,} circuits; at most {MOST_CIRCUITS:,} "
                "are made: lower one of them"
            )
        try:  # the weights first: where there are none, hundreds of circuits are not folded in vain
            with warnings.catch_warnings():  # of determinants that overflow: what comes of them is checked
                warnings.simplefilter("ignore")
                weights = np.asarray(
                    multivariate_richardson_coefficients(
                        source.circuit, self.degree, self.fold_multiplier, self.chunks
                    ),
                    float,
                )
        except ValueError:
            weights = np.array(np.nan)
        if not np.isfinite(weights).all():
            raise InvalidInputError(
                f"Mitiq finds no weights for degree {self.degree} in {self.chunks} chunks, its matrix is too large; "
                "lower one of them"
            )
        circuits = construct_circuits(source.circuit, self.degree, self.fold_multiplier, fold_all, self.chunks)
        return Family(tuple(source.back(c) for c in circuits), torch.tensor(weights, dtype=torch.float64))

    def noise_amplification(self, compiled: CompiledCircuit) -> float:
        """What the variance is multiplied by at equal shots per circuit."""
        return float((self.family(compiled).weights ** 2).sum())


@dataclass(frozen=True)
class MitiqDDD(Weighted):
    """Fill the layers in which a qubit waits with pulses that multiply to the identity.

    Mitiq counts layers and knows no durations. Barriers keep each pulse in the layer Mitiq put it in, which makes the
    circuit as long as the sum of its slowest gates; `DynamicalDecoupling` places pulses in time and does not.
    It acts on what a waiting qubit collects coherently. A device's calibration has only T1 and T2 (relaxation without
    memory), so that on engine ``"noisy"`` it can but do harm.

    Args:
        rule: ``"xx"``, ``"yy"`` or ``"xyxy"``.

    Raises:
        UnknownNameError: another rule.
    """

    rule: Literal["xx", "yy", "xyxy"] = "xx"
    name: ClassVar[str] = "mitiq-ddd"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UnknownNameError.of("decoupling rule", str(self.rule), RULES)

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
        """``"decoupled by Mitiq, xx"``."""
        return [f"decoupled by Mitiq, {self.rule}"]

    @property
    def label(self) -> str:
        """``"Mitiq DDD xx"``."""
        return f"Mitiq DDD {self.rule}"

    def make(self, compiled: CompiledCircuit) -> Family:
        """Circuits and weights for `compiled`."""
        require_mitiq()
        from mitiq.ddd import construct_circuits, rules

        source = bridge(compiled)
        rule = {"xx": rules.xx, "yy": rules.yy, "xyxy": rules.xyxy}[self.rule]
        [circuit] = construct_circuits(source.circuit, rule)
        # The identities of the rules are empty places; waiting is what the barriers leave there
        filled = source.back(circuit, identities=False, layers=True)
        return Family((filled,), torch.ones(1, dtype=torch.float64))


@dataclass(frozen=True)
class MitiqTwirling(Weighted):
    """The mean over circuits with random Paulis around every CX or CZ that cancel: coherent errors become random ones.

    By itself it leaves incoherent errors as they are and adds those of the Paulis. Mitiq has no table for ECR, and
    rewriting ECR as CX would add gates to every one: such circuits are refused, `PauliTwirling` takes them.

    Args:
        circuits: random circuits, ≥ 1.
        seed: of the Paulis.

    Raises:
        InvalidInputError: a number of circuits below 1.
    """

    circuits: int = 16
    seed: int = 0
    name: ClassVar[str] = "mitiq-twirling"

    def __post_init__(self) -> None:
        check_number("circuits", self.circuits, 1, MOST_CIRCUITS)
        check_number("seed", self.seed, 0)

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
        """``"twirled by Mitiq, 2 of 16"``."""
        return numbered("twirled by Mitiq", len(made))

    @property
    def label(self) -> str:
        """``"Mitiq twirling, 16 circuits"``."""
        return f"Mitiq twirling, {self.circuits} circuits"

    def check(self, compiled: CompiledCircuit) -> None:
        """As for all of them, and UnsupportedCircuitError for ECR."""
        super().check(compiled)
        _refuse_ecr(compiled)

    def make(self, compiled: CompiledCircuit) -> Family:
        """Circuits and weights for `compiled`."""
        require_mitiq()
        _refuse_ecr(compiled)
        from mitiq.pt import generate_pauli_twirl_variants

        source = bridge(compiled)
        state = random.getstate()  # Mitiq draws from Python's global generator
        random.seed(self.seed)
        try:
            variants = generate_pauli_twirl_variants(source.circuit, self.circuits)
        finally:
            random.setstate(state)
        twirled = tuple(source.back(variant, identities=False) for variant in variants)
        weights = torch.full((len(twirled),), 1 / len(twirled), dtype=torch.float64)
        return Family(twirled, weights, (1,) * len(twirled))


def _refuse_ecr(compiled: CompiledCircuit) -> None:
    if check_basis(without_delays(compiled)) == "ecr":
        raise UnsupportedCircuitError(
            f"Mitiq twirls CX and CZ; circuits for {compiled.device.name} have ECR. The strategy twirling "
            "(PauliTwirling) takes them"
        )
