"""Readout inversion: exact under the device's own errors, calibrated by circuits as well, and under crosstalk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Engine, Estimate, Ideal, Noisy, Shots, Usage, all_z_strings, compile_circuit
from qhw_diffusion.execution.engines import split_rows
from qhw_diffusion.mitigation import Cost, Mitigated, Readout
from qhw_diffusion.mitigation.readout import substrings


@pytest.mark.parametrize("name", ["fake_manila", "fake_brisbane"])
def test_it_undoes_the_readout_errors_of_products_and_sums(name, products, rows, aer):
    compiled = products(name)
    values = rows(compiled)
    raw = Noisy().estimate(compiled, values).values.numpy()
    np.testing.assert_allclose(raw, aer(compiled, values), atol=1e-6)
    wanted = aer(compiled, values, readout=False)
    assert np.abs(raw - wanted).max() > 0.02
    corrected = Mitigated("noisy", [Readout()]).estimate(compiled, values)
    np.testing.assert_allclose(corrected.values.numpy(), wanted, atol=1e-6)


def test_without_the_sub_strings_products_would_come_out_wrong(products, rows, aer):
    """Manila's errors are asymmetric: dividing by the scales alone is not enough."""
    compiled = products("fake_manila")
    values = rows(compiled)
    scales = [1 - sum(compiled.device.readout_error(q)) for q in compiled.physical_qubits]
    naive = Noisy().estimate(compiled, values).values.numpy()[:, 1] / np.prod(scales)
    assert np.abs(naive - aer(compiled, values, readout=False)[:, 1]).max() > 0.01


def test_the_strings_added_are_measured_in_the_same_circuits(products, rows):
    compiled, values = products("fake_manila"), rows(products("fake_manila"))
    plain = Shots(100).estimate(compiled, values).usage
    assert Mitigated(Shots(100), [Readout()]).estimate(compiled, values).usage == plain
    assert substrings("ZIX") == ["ZIX", "ZII", "IIX", "III"]


@pytest.mark.parametrize("source", ["measured", "correlated"])
def test_a_measured_calibration_gives_the_same_up_to_the_preparation(source, products, rows, aer):
    compiled = products("fake_manila")
    values = rows(compiled)
    corrected = Mitigated("noisy", [Readout(source)]).estimate(compiled, values).values.numpy()
    # X gates that prepare 1 err by some 1e-4
    np.testing.assert_allclose(corrected, aer(compiled, values, readout=False), atol=2e-3)


@dataclass(frozen=True)
class Crosstalk(Engine):
    """Exact values of strings of Z, read so that a qubit is misread more often while its neighbour is 1."""

    calls: list[int] = field(default_factory=list)
    name: ClassVar[str] = "crosstalk"

    @staticmethod
    def matrix(k: int) -> np.ndarray:
        """[2^k read, 2^k prepared]"""
        result = np.ones((2**k, 2**k))
        for prepared in range(2**k):
            for read in range(2**k):
                for q in range(k):
                    bit, other = prepared >> q & 1, prepared >> ((q + 1) % k) & 1
                    flip = (0.02 + 0.08 * other) if bit == 0 else (0.05 + 0.1 * other)
                    result[read, prepared] *= flip if (read >> q & 1) != bit else 1 - flip
        return result

    def estimate(self, compiled, parameters):
        self.calls.append(len(parameters))
        simulator, inputs, weights = split_rows(compiled, parameters, False)
        probabilities = simulator.distribution(
            simulator.final_rows(inputs.numpy(), weights.numpy()), "Z" * len(compiled.physical_qubits)
        )
        read = probabilities @ self.matrix(len(compiled.physical_qubits)).T
        index = np.arange(read.shape[1])
        values = np.zeros((len(parameters), len(compiled.observables)))
        for m, terms in enumerate(compiled.program.observables):
            for coefficient, label in terms:
                sign = np.prod([1 - 2 * (index >> q & 1) for q, f in enumerate(label) if f == "Z"], axis=0)
                values[:, m] += coefficient * (read @ (sign * np.ones(len(index))))
        result = torch.from_numpy(values)
        return Estimate(result, torch.zeros_like(result), Usage(len(parameters), 0))


def test_correlated_errors_need_the_correlated_inversion(rows):
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(3)
    circuit.ry(x, 0)
    circuit.cx(0, 1)
    circuit.ry(w, 2)
    circuit.cx(1, 2)
    strings = [SparsePauliOp(label) for label in ("IIZ", "IZZ", "ZZZ", "ZII")]
    compiled = compile_circuit(circuit, Device.load("ideal"), inputs=[x], weights=[w], observables=strings)
    values = rows(compiled)
    ideal = Ideal().estimate(compiled, values).values
    errors = {}
    for source in ("measured", "correlated"):
        engine = Mitigated(Crosstalk(), [Readout(source)])
        errors[source] = (engine.estimate(compiled, values).values - ideal).abs().max().item()
    assert errors["correlated"] < 1e-12
    assert errors["measured"] > 0.01


def test_calibration_circuits_run_once_for_each_set_of_qubits(products, policy, rows):
    base = Crosstalk()
    engine = Mitigated(base, [Readout("measured")])
    compiled = policy("fake_manila")
    values = rows(compiled)
    assert engine.estimate(compiled, values).usage.circuits == 3 + 2
    assert engine.estimate(compiled, values).usage.circuits == 3
    assert base.calls == [3, 1, 1, 3]
    assert Readout("measured").cost(compiled) == Cost(1, 2)
    assert Readout("correlated").cost(compiled) == Cost(1, 16)
    assert Readout().cost(compiled) == Cost(1)
    assert Mitigated(base, [Readout("measured")]).estimate(compiled, values).usage.circuits == 5, "a new one calibrates"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["snapshot", "measured", "correlated"])
def test_error_bars_cover(source, policy, rows):
    """Also those of the calibration: it is drawn anew each time, with as few shots as the rest."""
    compiled = policy("fake_manila")
    values = rows(compiled, 2, seed=5)  # none near ±1, where 400 outcomes may all be the same
    exact = Mitigated("noisy", [Readout(source)]).estimate(compiled, values).values
    base, pulls = Shots(400, seed=7), []
    for _ in range(60 if source == "correlated" else 120):
        estimate = Mitigated(base, [Readout(source)]).estimate(compiled, values)
        pulls.append((estimate.values - exact) / estimate.std_errors)
    spread = torch.stack(pulls)
    if source == "correlated":  # for all strings together only a bound from above is known
        assert 0.3 < spread.std().item() < 1.05
    else:
        assert spread.std().item() == pytest.approx(1, abs=0.08)
    assert spread.mean().abs().item() < 0.15


def test_errors_of_products_are_those_of_the_shots_they_share(products, rows):
    """150 draws of each: the scatter is the error stated, not the sum of the strings' errors, which is larger."""
    compiled = products("fake_manila")
    values = rows(compiled, 2)
    estimate = Mitigated(Shots(500, seed=1), [Readout()]).estimate(compiled, values.repeat(150, 1))
    exact = Mitigated("noisy", [Readout()]).estimate(compiled, values).values
    pulls = ((estimate.values - exact.repeat(150, 1)) / estimate.std_errors).std(0)
    assert pulls.max() < 1.1
    assert pulls.min() > 0.9


def test_the_gradient_goes_through(products, rows):
    compiled = products("fake_manila")
    values = rows(compiled, 2)
    x, w = values[:, :1].clone().requires_grad_(), values[0, 1:].clone().requires_grad_()
    engine = Mitigated("noisy", [Readout("measured")])
    torch.autograd.gradcheck(lambda a, b: engine.expectation(compiled, a, b), (x, w), eps=1e-4, atol=1e-6)


def test_bad_settings_are_refused(products):
    with pytest.raises(UnknownNameError, match="snapshot"):
        Readout("snapshots")
    circuit = QuantumCircuit(9)
    circuit.rx(Parameter("x"), range(9))
    wide = compile_circuit(
        circuit, Device.load("fake_guadalupe"), inputs=list(circuit.parameters), weights=[],
        observables=all_z_strings(9)[1:4] + all_z_strings(9)[-1:],
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match="512 calibration circuits"):
        Mitigated("noisy", [Readout("correlated")]).check(wide)
    Mitigated("noisy", [Readout("measured")]).check(wide)


def test_a_qubit_that_reads_nothing_is_named(policy, rows):
    @dataclass(frozen=True)
    class Blind(Engine):
        name: ClassVar[str] = "blind"

        def estimate(self, compiled, parameters):
            zeros = torch.zeros(len(parameters), len(compiled.observables))
            return Estimate(zeros, zeros)

    compiled = policy("fake_manila")
    with pytest.raises(InvalidInputError, match=rf"qubit {compiled.physical_qubits[0]} reads 0 and 1 almost alike"):
        Mitigated(Blind(), [Readout("measured")]).estimate(compiled, rows(compiled))
    with pytest.raises(InvalidInputError, match="cannot be inverted"):
        Mitigated(Blind(), [Readout("correlated")]).estimate(compiled, rows(compiled))
