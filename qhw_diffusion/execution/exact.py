"""The exact engines: `Ideal` without noise, `Noisy` with the device's gate, idle and asymmetric readout errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine, Estimate, Record, check_parameters
from qhw_diffusion.execution.simulator import NUMPY, Simulator, refuse_if_too_large


@dataclass(frozen=True)
class Ideal(Engine):
    """Expectation values of the compiled circuit without any noise, exact and differentiable."""

    name: ClassVar[str] = "ideal"
    differentiable: ClassVar[bool] = True
    noisy: ClassVar[bool] = False

    @property
    def spec(self) -> str:
        return self.name

    def check(self, compiled: CompiledCircuit) -> None:
        refuse_if_too_large(len(compiled.physical_qubits), "density" if self.noisy else "state")

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        parameters = check_parameters(compiled, parameters)
        with torch.no_grad():
            simulator, inputs, weights = split_rows(compiled, parameters, self.noisy)
            values = simulator.expectation(inputs, weights).to(parameters)
        return Estimate(values, torch.zeros_like(values))

    def expectation(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        return simulator_of(compiled, self.noisy, weights.dtype).expectation(inputs, weights)


@dataclass(frozen=True)
class Noisy(Ideal):
    """As `Ideal`, with the noise of the device the circuit was compiled for.

    Gate errors as in Aer's device model, relaxation of waiting qubits where the circuit is scheduled
    (`compile_circuit(..., scheduled=True)`), and p(read 1 | 0), p(read 0 | 1) of every measured qubit.
    """

    name: ClassVar[str] = "noisy"
    noisy: ClassVar[bool] = True

    def check(self, compiled: CompiledCircuit) -> None:
        if not compiled.device.has_noise:
            raise InvalidInputError(
                f"device {compiled.device.name!r} has no noise: use engine='ideal', or compile for a fake device"
            )
        super().check(compiled)


def simulator_of(
    compiled: CompiledCircuit, noisy: bool, dtype: torch.dtype = torch.float64, *, by_rows: bool = False
) -> Simulator:
    """The simulator of a compiled circuit, made once; `by_rows`: every row has weights of its own (further inputs).

    Raises:
        InvalidInputError: a dtype other than torch.float32 and torch.float64.
    """
    if dtype not in NUMPY:
        raise InvalidInputError(f"dtype is {dtype}; allowed: torch.float32, torch.float64")
    key = (noisy, dtype, by_rows)
    if key not in compiled.simulators:
        program = compiled.program.by_rows() if by_rows else compiled.program
        compiled.simulators[key] = Simulator(program, noisy=noisy, dtype=dtype)
    simulator: Simulator = compiled.simulators[key]
    return simulator


def split_rows(compiled: CompiledCircuit, parameters: Tensor, noisy: bool) -> tuple[Simulator, Tensor, Tensor]:
    """Simulator, inputs [B, I] and weights [W] for rows of parameters; rows that share weights are much faster."""
    inputs, weights = parameters[:, : compiled.n_inputs], parameters[:, compiled.n_inputs :]
    if bool((weights == weights[:1]).all()):
        return simulator_of(compiled, noisy, parameters.dtype), inputs, weights[0]
    return simulator_of(compiled, noisy, parameters.dtype, by_rows=True), parameters, parameters[0, :0]
