"""Waiting qubits, fractional gates, reset and measurement in mid-circuit, against Aer's density-matrix method."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Delay, Parameter
from qiskit.quantum_info import Kraus, SparsePauliOp
from qiskit_aer import AerSimulator
from qiskit_aer.noise import RelaxationNoisePass

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, compile_circuit

BOUND = 1e-6
X, W = Parameter("x"), Parameter("w")
VALUES = {X: 0.7, W: -1.1}


@functools.cache
def device(name: str = "fake_marrakesh") -> Device:
    return Device.load(name)


def z_on_every_qubit(n: int) -> list[SparsePauliOp]:
    return [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], n) for q in range(n)]


def compiled(circuit: QuantumCircuit, on: Device, **settings: object) -> CompiledCircuit:
    parameters = set(circuit.parameters)
    return compile_circuit(
        circuit,
        on,
        inputs=[p for p in (X,) if p in parameters],
        weights=[p for p in (W,) if p in parameters],
        observables=z_on_every_qubit(circuit.num_qubits),
        **{"optimization_level": 1} | settings,
    )


def layer_of(made: CompiledCircuit, engine: str) -> qhw.QuantumLayer:
    layer = qhw.QuantumLayer(made, engine, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([VALUES[w] for w in made.weights], dtype=torch.float64))
    return layer


def inputs_of(made: CompiledCircuit, rows: int = 1) -> torch.Tensor:
    return torch.tensor([[VALUES[x] for x in made.inputs]] * rows, dtype=torch.float64)


def values(made: CompiledCircuit, engine: str) -> np.ndarray:
    with torch.no_grad():
        return layer_of(made, engine)(inputs_of(made)).numpy()[0]


def aer_density(made: CompiledCircuit, *, noisy: bool = True, idle: bool = False) -> np.ndarray:
    """Aer's density matrix of the bound ISA circuit on the qubits in use; not normalised after a projection."""
    qubits = list(made.physical_qubits)
    bound = made.isa.assign_parameters({p: VALUES[p] for p in made.isa.parameters})
    circuit = QuantumCircuit(len(qubits), bound.num_clbits)
    for instruction in bound.data:
        where = [bound.find_bit(q).index for q in instruction.qubits]
        if instruction.operation.name != "barrier" and set(where) <= set(qubits):
            clbits = [bound.find_bit(c).index for c in instruction.clbits]
            circuit.append(instruction.operation, [qubits.index(q) for q in where], clbits)
    if idle:
        properties = [made.device.target.qubit_properties[q] for q in qubits]
        t1s, t2s = [p.t1 for p in properties], [min(p.t2, 2 * p.t1) for p in properties]
        circuit = RelaxationNoisePass(t1s, t2s, dt=made.device.target.dt, op_types=Delay)(circuit)
    circuit.save_density_matrix()
    model = made.device.noise_model(qubits) if noisy else None
    simulator = AerSimulator(method="density_matrix", noise_model=model, max_parallel_threads=1)
    return np.asarray(simulator.run(circuit).result().data(0)["density_matrix"])


def read_out(rho: np.ndarray, made: CompiledCircuit, *, readout: bool = True) -> np.ndarray:
    """⟨Z⟩ of each logical qubit with readout error, from a density matrix of the qubits in use."""
    qubits, result = list(made.physical_qubits), []
    populations = np.diag(rho).real / np.trace(rho).real
    index = np.arange(len(populations))
    for observable in made.observables:
        q = int(np.flatnonzero(observable.paulis.z[0])[0])
        one = populations[(index >> qubits.index(q)) & 1 == 1].sum()
        p10, p01 = made.device.readout_error(q) if readout else (0.0, 0.0)
        read_one = (1 - one) * p10 + one * (1 - p01)
        result.append(1 - 2 * read_one)
    return np.array(result)


# -- waiting qubits --------------------------------------------------------------------------------------------------


def waiting_circuit() -> QuantumCircuit:
    """Qubit 0 is put into superposition and waits while 1 and 2 are busy."""
    circuit = QuantumCircuit(3)
    circuit.ry(X, 0)
    circuit.cx(0, 1)
    for _ in range(6):
        circuit.cx(1, 2)
        circuit.rx(W, 2)
        circuit.ry(0.3, 1)
    circuit.cx(0, 1)
    circuit.h(0)
    return circuit


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fake_manila", "fake_brisbane", "fake_marrakesh"])
def test_waiting_qubits_relax_as_in_aer(name: str) -> None:
    made = compiled(waiting_circuit(), device(name), scheduled=True)
    assert made.isa.count_ops()["delay"] > 0
    reference = read_out(aer_density(made, idle=True), made)
    np.testing.assert_allclose(values(made, "noisy"), reference, rtol=0, atol=BOUND)
    without = read_out(aer_density(made), made)
    assert np.abs(reference - without).max() > 100 * BOUND, "the wait must matter, or the test cannot fail"


def test_without_scheduling_there_is_no_idle_error_and_no_delay() -> None:
    plain, scheduled = compiled(waiting_circuit(), device()), compiled(waiting_circuit(), device(), scheduled=True)
    assert "delay" not in plain.isa.count_ops()
    assert set(plain.physical_qubits) == set(scheduled.physical_qubits), "qubits that only wait are dropped"
    assert np.abs(values(plain, "noisy") - values(scheduled, "noisy")).max() > 100 * BOUND
    np.testing.assert_allclose(values(plain, "ideal"), values(scheduled, "ideal"), atol=1e-12)


def test_a_delay_in_seconds_on_one_qubit_decays_by_t1() -> None:
    circuit = QuantumCircuit(1)
    circuit.x(0)
    circuit.delay(50, 0, unit="us")
    made = compiled(circuit, device())
    t1, _ = made.device.relaxation_times(made.physical_qubits[0])
    short = QuantumCircuit(1)
    short.x(0)
    before = compiled(short, device())
    assert made.physical_qubits == before.physical_qubits
    p10, p01 = made.device.readout_error(made.physical_qubits[0])
    excited = [
        (1 - v - 2 * p10) / (2 * (1 - p10 - p01)) for v in (values(before, "noisy")[0], values(made, "noisy")[0])
    ]
    assert excited[1] / excited[0] == pytest.approx(math.exp(-50e-6 / t1), rel=1e-9)


def test_scheduling_needs_durations() -> None:
    with pytest.raises(InvalidInputError, match="gate durations"):
        compiled(waiting_circuit(), Device.load("ideal"), scheduled=True)
    circuit = QuantumCircuit(1)
    circuit.x(0)
    circuit.delay(100, 0, unit="dt")
    assert values(compiled(circuit, Device.load("ideal")), "ideal")[0] == pytest.approx(-1)


# -- fractional gates ------------------------------------------------------------------------------------------------


def fractional_circuit() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.rx(X, 0)
    circuit.ry(0.4, 1)
    circuit.rzz(W, 0, 1)
    circuit.rx(0.9, 1)
    circuit.rx(X, 0)
    return circuit


def test_fractional_gates_agree_with_aer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(fractional_circuit(), device().with_fractional_gates())
    assert made.isa.count_ops()["rzz"] == 1
    assert made.isa.count_ops()["rx"] >= 2
    assert made.two_qubit_gates == 1
    assert compiled(fractional_circuit(), device()).two_qubit_gates == 2
    monkeypatch.setitem(VALUES, W, 1.1)  # inside [0, π/2]
    np.testing.assert_allclose(values(made, "noisy"), read_out(aer_density(made), made), rtol=0, atol=BOUND)


@pytest.mark.slow
def test_an_angle_outside_the_devices_range_is_refused_by_name() -> None:
    made = compiled(fractional_circuit(), device().with_fractional_gates())
    with pytest.raises(InvalidInputError, match=r"rzz number .* angles from -1\.1000 .* takes 0\.0000 to 1\.5708"):
        values(made, "noisy")
    values(made, "ideal")  # an ideal machine has no such limit
    with pytest.raises(InvalidInputError, match="no calibration of rx and rzz"):
        device("fake_brisbane").with_fractional_gates()


# -- reset and measurement in mid-circuit ----------------------------------------------------------------------------


def ancilla_circuit(*, reset: bool = False, measure: bool = True) -> QuantumCircuit:
    """Two data qubits and an ancilla (qubit 2) that is entangled with them, measured, and used again."""
    circuit = QuantumCircuit(3, 1)
    circuit.ry(X, 0)
    circuit.ry(0.5, 1)
    circuit.cx(0, 2)
    circuit.ry(W, 2)
    circuit.cx(2, 1)
    if measure:
        circuit.measure(2, 0)
    if reset:
        circuit.reset(2)
    circuit.ry(0.8, 2)
    circuit.cx(2, 0)
    circuit.rx(0.3, 0)
    circuit.cx(0, 1)
    return circuit


@pytest.mark.parametrize("name", ["fake_manila", "fake_marrakesh"])
@pytest.mark.parametrize("reset", [False, True], ids=["measured", "reset"])
def test_discarded_outcomes_and_resets_agree_with_aer(name: str, reset: bool) -> None:
    made = compiled(ancilla_circuit(reset=reset), device(name))
    # Aer's density-matrix method keeps every branch of a reset; for a measurement it draws one: dephase by hand instead
    reference = _aer_dephased(made)
    np.testing.assert_allclose(values(made, "noisy"), read_out(reference, made), rtol=0, atol=BOUND)
    ideal = _aer_dephased(made, noisy=False)
    np.testing.assert_allclose(values(made, "ideal"), read_out(ideal, made, readout=False), rtol=0, atol=1e-9)


def test_measuring_and_resetting_matter() -> None:
    nothing = values(compiled(ancilla_circuit(measure=False), device()), "noisy")
    measured = values(compiled(ancilla_circuit(), device()), "noisy")
    reset = values(compiled(ancilla_circuit(reset=True), device()), "noisy")
    assert np.abs(nothing - measured).max() > 0.01
    assert np.abs(measured - reset).max() > 0.01


def _aer_dephased(made: CompiledCircuit, *, noisy: bool = True) -> np.ndarray:
    """As `aer_density`, every measurement replaced by complete dephasing (the outcome forgotten)."""
    return aer_density(_replace_measurement(made, [np.diag([1.0, 0.0]), np.diag([0.0, 1.0])]), noisy=noisy)


def _replace_measurement(made: CompiledCircuit, kraus: list[np.ndarray]) -> CompiledCircuit:
    circuit = made.isa.copy_empty_like()
    for instruction in made.isa.data:
        if instruction.operation.name == "measure":
            circuit.append(Kraus(kraus).to_instruction(), instruction.qubits)
        else:
            circuit.append(instruction)
    return replace(made, isa=circuit)


@pytest.mark.parametrize("outcome", [0, 1])
def test_post_selection_gives_the_conditional_values_and_their_probability(outcome: int) -> None:
    """Noiseless: the projector is applied by hand. Noisy: the outcome *read* is kept, readout errors included."""
    made = compiled(ancilla_circuit(), device(), postselect={0: outcome})
    for engine, readout in (("ideal", False), ("noisy", True)):
        (measured,) = [i for i in made.isa.data if i.operation.name == "measure"]
        p10, p01 = made.device.readout_error(made.isa.find_bit(measured.qubits[0]).index) if readout else (0.0, 0.0)
        read = [1 - p10, p01] if outcome == 0 else [p10, 1 - p01]
        branches = []
        for state, chance in enumerate(read):
            rho = _aer_branch(made, state, noisy=readout)
            branches.append(chance * rho)
        kept = sum(branches)
        probability = np.trace(kept).real
        np.testing.assert_allclose(values(made, engine), read_out(kept, made, readout=readout), rtol=0, atol=BOUND)
        found = layer_of(made, engine).probability(inputs_of(made))
        assert float(found[0].detach()) == pytest.approx(probability, abs=BOUND)
        assert 0.05 < probability < 0.95


def _aer_branch(made: CompiledCircuit, state: int, *, noisy: bool) -> np.ndarray:
    """Unnormalised ρ after the projection of the measured qubit on `state`.

    Aer wants channels that preserve the trace: so a noiseless CNOT copies the outcome to a further qubit, and the block
    of ρ that belongs to it is taken.
    """
    qubits = list(made.physical_qubits)
    bound = made.isa.assign_parameters({p: VALUES[p] for p in made.isa.parameters})
    circuit = QuantumCircuit(len(qubits) + 1)
    for instruction in bound.data:
        where = [qubits.index(bound.find_bit(q).index) for q in instruction.qubits]
        if instruction.operation.name == "measure":
            copy = QuantumCircuit(2, name="copy")
            copy.cx(0, 1)
            circuit.append(copy.to_gate(label="copy"), [where[0], len(qubits)])
        elif instruction.operation.name != "barrier":
            circuit.append(instruction.operation, where)
    circuit.save_density_matrix()
    model = made.device.noise_model(qubits) if noisy else None
    simulator = AerSimulator(method="density_matrix", noise_model=model, max_parallel_threads=1)
    unrolled = circuit.decompose(gates_to_decompose="copy")
    rho = np.asarray(simulator.run(unrolled).result().data(0)["density_matrix"])
    d = 2 ** len(qubits)
    return rho[state * d : (state + 1) * d, state * d : (state + 1) * d]


def test_the_branches_add_up() -> None:
    kept = [compiled(ancilla_circuit(), device(), postselect={0: outcome}) for outcome in (0, 1)]
    chances = [float(layer_of(k, "noisy").probability(inputs_of(k))[0].detach()) for k in kept]
    assert sum(chances) == pytest.approx(1, abs=1e-9)
    mixed = sum(p * values(k, "noisy") for p, k in zip(chances, kept, strict=True))
    np.testing.assert_allclose(mixed, values(compiled(ancilla_circuit(), device()), "noisy"), atol=1e-9)


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_gradients_through_post_selection(engine: str) -> None:
    made = compiled(ancilla_circuit(), device(), postselect={0: 1})
    layer = layer_of(made, engine)
    x = inputs_of(made, 2).requires_grad_()

    def evaluate(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": w}, (x,))

    assert torch.autograd.gradcheck(evaluate, (x, layer.weight.detach().clone().requires_grad_()), atol=1e-6)


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_sampled_outcomes_have_the_right_frequencies_and_conditional_values(engine: str) -> None:
    """Frequencies within 4.5 standard errors (false alarms below 1e-5); values given an outcome are exact without
    readout error, and on average with it."""
    made = compiled(ancilla_circuit(), device())
    rows = 4000
    drawn = layer_of(made, engine).sample(inputs_of(made, rows), torch.Generator().manual_seed(5))
    assert drawn.outcomes.shape == (rows, 1)
    assert drawn.clbits == (0,)
    kept = compiled(ancilla_circuit(), device(), postselect={0: 1})
    chance = float(layer_of(kept, engine).probability(inputs_of(kept))[0].detach())
    assert abs(drawn.outcomes.double().mean().item() - chance) < 4.5 * math.sqrt(chance * (1 - chance) / rows)
    given_one = drawn.values[drawn.outcomes[:, 0] == 1]
    spread = given_one.std(0) / math.sqrt(len(given_one)) + 1e-9
    assert ((given_one.mean(0) - torch.from_numpy(values(kept, engine))).abs() < 4.5 * spread).all()
    again = layer_of(made, engine).sample(inputs_of(made, rows), torch.Generator().manual_seed(5))
    assert torch.equal(again.outcomes, drawn.outcomes)


def test_refused_requests_for_outcomes() -> None:
    with pytest.raises(InvalidInputError, match=r"postselect=\{3: 0\}.*measures \[0\]"):
        compiled(ancilla_circuit(), device(), postselect={3: 0})
    with pytest.raises(InvalidInputError, match="0 or 1"):
        compiled(ancilla_circuit(), device(), postselect={0: 2})
    made = compiled(ancilla_circuit(measure=False), device())
    with pytest.raises(InvalidInputError, match="no outcome to sample"):
        layer_of(made, "noisy").sample(inputs_of(made), torch.Generator())
    with pytest.raises(InvalidInputError, match="does not post-select"):
        layer_of(compiled(ancilla_circuit(), device(), postselect={0: 0}), "shots")


def test_an_outcome_that_never_occurs_is_refused() -> None:
    circuit = QuantumCircuit(2, 1)
    circuit.ry(W, 0)
    circuit.measure(1, 0)
    circuit.cx(1, 0)
    made = compiled(circuit, Device.load("ideal"), postselect={0: 1})
    with pytest.raises(InvalidInputError, match=r"probability below 1e-06 for 1 of 1 samples"):
        values(made, "ideal")
    assert float(layer_of(made, "ideal").probability(inputs_of(made))[0].detach()) == 0
