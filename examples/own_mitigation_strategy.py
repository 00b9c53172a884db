"""A mitigation strategy of your own: zero-noise extrapolation with weights that hold errors down.

Two circuits, the given one and one with its two-qubit gates tripled, are combined as (1 + w)·value − w·value tripled;
w = 1/2 is linear extrapolation to no noise, a smaller w corrects less and scatters less. The field of the dataclass is
the setting of the text. Two ways to use it:

    Python:        Mitigated("noisy", [Readout(), HalfWay(0.3)])
    command line:  qhw evaluate guidance RUN --engine noisy+readout+examples/own_mitigation_strategy.py:HalfWay:0.3

Costs, calibrations, one job for all circuits, saving and loading follow from the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import qhw_diffusion as qhw
from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment, engine_of
from qhw_diffusion.mitigation import Mitigated, Readout, Strategy, folded


@dataclass(frozen=True)
class HalfWay(Strategy):
    """Part of the way to no noise, from the circuit and its threefold fold."""

    weight: float = 0.3

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"half-way ZNE, weight {self.weight:g}"

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """The circuit, and the circuit with every two-qubit gate three times."""
        return [(compiled, rows), (folded(compiled, 3)[0], rows)]

    def combine(
        self, estimates: Sequence[Estimate], compiled: CompiledCircuit, rows: Tensor, calibration: Sequence = ()
    ) -> Estimate:
        """A weighted difference, and its standard error."""
        one, three = estimates
        values = (1 + self.weight) * one.values - self.weight * three.values
        errors = ((1 + self.weight) * one.std_errors).hypot(self.weight * three.std_errors)
        return Estimate(values, errors)


def main() -> None:
    """Compare errors with and without it."""
    policy = policy_circuit()
    compiled = qhw.compile_circuit(
        policy.circuit, qhw.Device.load("fake_manila"),
        inputs=policy.inputs, weights=policy.weights, observables=policy.observables,
    )  # fmt: skip
    rows = torch.linspace(-1, 1, 8 * (compiled.n_inputs + compiled.n_weights)).reshape(8, -1)
    ideal = engine_of("ideal").estimate(compiled, rows).values
    for engine in ("noisy", "noisy+readout", Mitigated("noisy", [Readout(), HalfWay()])):
        engine = engine_of(engine)
        error = (engine.estimate(compiled, rows).values - ideal).square().mean().sqrt()
        print(f"{engine.label:70} rms error {error:.4f}")


if __name__ == "__main__":
    main()
