"""Finite shots: outcomes drawn from the exact joint distribution, readout errors included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.draws import Draws
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine, Estimate, Record, Usage, check_parameters, rows_of
from qhw_diffusion.execution.exact import simulator_of, split_rows
from qhw_diffusion.execution.readoff import Terms, measurement_groups


@dataclass(frozen=True)
class Shots(Engine):
    """Expectation values from a finite number of shots, as a device would give them.

    The observables' Pauli strings are measured in groups that agree qubit by qubit; for each row of parameters and each
    group, `shots` outcomes of all qubits are drawn from their exact joint distribution. Under autograd the value is the
    sampled one and the gradient that of the exact expectation value; with ``gradient=ParameterShift()`` the gradient
    carries shot noise too, as on a device.

    Args:
        shots: repetitions of each circuit, ≥ 1.
        seed: of the outcomes. One engine object draws on from call to call; a new one with this seed repeats them.
            Worker processes that inherit the object draw outcomes of their own (`Draws`).
        noisy: with the device's noise and readout errors (not available on the ideal device).

    Raises:
        InvalidInputError: shots below 1.
    """

    shots: int = 1024
    seed: int = 0
    noisy: bool = True
    draws: Draws = field(init=False, repr=False, compare=False)
    name: ClassVar[str] = "shots"
    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.shots, bool) or not isinstance(self.shots, int) or self.shots < 1:
            raise InvalidInputError(f"shots is {self.shots!r}; allowed: whole numbers from 1")
        object.__setattr__(self, "draws", Draws(self.seed))

    @property
    def spec(self) -> str | None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            return None  # numpy takes other seeds too, which no text holds
        seed = f":seed={self.seed}" if self.seed else ""
        return f"{self.name}:{self.shots}{seed}{'' if self.noisy else ':ideal'}"

    @classmethod
    def from_settings(cls, settings: Sequence[str]) -> Self:
        """``[N][:seed=S][:ideal]``, in any order, each at most once."""
        values: dict[str, int] = {}
        for text in settings:
            name, equals, number = text.partition("=")
            if text == "ideal":
                value = 1
            elif not equals:
                name, value = "shots", _whole("shots", text, 1)
            elif name == "seed":
                value = _whole("seed", number, 0)
            else:
                raise UnknownNameError.of("setting of engine 'shots'", text, ["seed=0", "ideal"])
            if name in values:
                raise InvalidInputError(f"engine 'shots:{':'.join(settings)}' states its {name} twice; state it once")
            values[name] = value
        noisy = not values.pop("ideal", 0)
        return cls(**values, noisy=noisy)

    def check(self, compiled: CompiledCircuit) -> None:
        if self.noisy and not compiled.device.has_noise:
            raise InvalidInputError(
                f"device {compiled.device.name!r} has no noise: use Shots(noisy=False), or compile for a fake device"
            )
        if compiled.postselect:
            raise InvalidInputError(
                "engine 'shots' does not post-select; use 'ideal' or 'noisy', whose values are given the outcomes kept"
            )

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        parameters = check_parameters(compiled, parameters)
        self.check(compiled)
        simulator, inputs, weights = split_rows(compiled, parameters.detach(), self.noisy)
        observables = compiled.program.observables
        values = np.zeros((len(parameters), len(observables)))
        variances = np.zeros_like(values)
        groups = measurement_groups(observables)
        for block in simulator.blocks(len(parameters)):
            rows = simulator.final_rows(inputs[block].cpu().numpy(), weights.cpu().numpy())
            for basis, members in groups:
                distribution = simulator.distribution(rows, basis)
                counts = self.draws.generator.multinomial(self.shots, distribution)
                outcome = outcome_values(observables, members, distribution.shape[1])  # [2^n, M]
                mean = counts @ outcome / self.shots
                square = counts @ (outcome * outcome) / self.shots
                values[block] += mean
                # A single shot says nothing of its spread: the bound by the largest outcome then
                spread = (square - mean**2).clip(0) / (self.shots - 1) if self.shots > 1 else (outcome**2).max(0)
                variances[block] += spread
        values += [sum(c for c, label in terms if not label.strip("I")) for terms in observables]
        circuits = len(parameters) * len(groups)
        return Estimate(
            torch.from_numpy(values).to(parameters),
            torch.from_numpy(np.sqrt(variances)).to(parameters),
            Usage(circuits, circuits * self.shots),
        )

    def expectation(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        exact = simulator_of(compiled, self.noisy, weights.dtype).expectation(inputs, weights)
        estimate = self.estimate(compiled, rows_of(inputs.detach(), weights.detach()))
        record(estimate.usage)
        return exact + (estimate.values - exact).detach()


def _whole(name: str, text: str, low: int) -> int:
    # not longer than any number meant: Python itself refuses very long ones
    if not (text.isascii() and text.isdecimal() and len(text) < 40 and int(text) >= low):
        raise InvalidInputError(
            f"{name} is {text!r}; allowed: whole numbers from {low}. The text is shots[:N][:seed=S][:ideal]"
        )
    return int(text)


def outcome_values(observables: tuple[Terms, ...], members: list[tuple[int, float, str]], n: int) -> np.ndarray:
    """[n outcomes, M]: what each joint outcome adds to each observable."""
    result = np.zeros((n, len(observables)))
    index = np.arange(n)
    for observable, coefficient, label in members:
        sign = np.ones(n)
        for q, factor in enumerate(label):
            if factor != "I":
                sign *= 1 - 2 * ((index >> q) & 1)
        result[:, observable] += coefficient * sign
    return result
