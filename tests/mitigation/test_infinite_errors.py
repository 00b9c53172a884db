"""Estimates with infinite standard errors, as the client's own extrapolation gives them, under strategies of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment, Shots, compile_circuit
from qhw_diffusion.execution.engine import Engine
from qhw_diffusion.mitigation import Mitigated, strategies_of

ROWS = torch.tensor([[0.3, 0.7], [1.2, -0.4], [0.1, 2.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def compiled() -> CompiledCircuit:
    angles = ParameterVector("a", 2)
    circuit = QuantumCircuit(2)
    circuit.rx(angles[0], 0)
    circuit.cx(0, 1)
    circuit.ry(angles[1], 1)
    zs = [SparsePauliOp("IZ"), SparsePauliOp("ZI")]
    return compile_circuit(circuit, Device.load("fake_manila"), inputs=list(angles), weights=[], observables=zs)


@dataclass(frozen=True)
class Spoiled(Engine):
    """Shots with a fixed seed; the standard error of one value of one experiment is infinite."""

    experiment: int | None = None
    place: tuple[int, int] = (1, 0)
    sent: list[int] = field(default_factory=list, compare=False)
    name = "spoiled"

    def estimate(self, compiled: CompiledCircuit, parameters: torch.Tensor) -> Estimate:
        return self.estimate_many([(compiled, parameters)])[0]

    def estimate_many(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        estimates = Shots(400, seed=3).estimate_many(experiments)
        self.sent.append(len(experiments))
        if self.experiment is not None:
            errors = estimates[self.experiment].std_errors.clone()
            errors[self.place] = torch.inf
            estimates[self.experiment] = replace(estimates[self.experiment], std_errors=errors)
        return estimates


STRATEGIES = ["zne:linear:1,3", "zne:exponential:1,3,5", "readout", "readout:measured", "readout:correlated",
              "twirling:3", "readout:measured+zne:linear:1,3", "mitiq-cdr:6", "mitiq-lre:1:3"]  # fmt: skip


@pytest.mark.parametrize("text", STRATEGIES)
def test_an_infinite_error_is_of_the_values_that_depend_on_it(compiled: CompiledCircuit, text: str) -> None:
    """The first circuit's value of row 1, observable 0: its error alone is infinite, all values stay."""
    usual = Mitigated(Spoiled(), strategies_of(text)).estimate(compiled, ROWS)
    assert bool(usual.std_errors.isfinite().all())
    spoiled = Mitigated(Spoiled(0), strategies_of(text)).estimate(compiled, ROWS)
    assert torch.equal(spoiled.values, usual.values)
    assert not bool(spoiled.std_errors.isnan().any())
    touched = spoiled.std_errors.isinf()
    assert bool(touched[1, 0])
    if "correlated" not in text:  # there every string of the basis has a part in every value
        assert int(touched.sum()) == 1
    assert not bool(touched[[0, 2]].any()), "another row has nothing to do with it"
    torch.testing.assert_close(spoiled.std_errors[~touched], usual.std_errors[~touched])


@pytest.mark.parametrize("text", ["readout:measured", "readout:correlated", "readout:measured+zne:linear:1,3"])
def test_a_calibration_that_knows_no_error_spoils_what_it_corrects(compiled: CompiledCircuit, text: str) -> None:
    usual = Mitigated(Spoiled(), strategies_of(text)).estimate(compiled, ROWS)
    spoiled = Mitigated(Spoiled(-1, (0, 0)), strategies_of(text)).estimate(compiled, ROWS)
    assert torch.equal(spoiled.values, usual.values)
    assert not bool(spoiled.std_errors.isnan().any())
    touched = spoiled.std_errors.isinf()
    assert bool(touched[:, 0].all())
    torch.testing.assert_close(spoiled.std_errors[~touched], usual.std_errors[~touched])
