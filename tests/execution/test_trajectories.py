"""Sampled outcomes and post-selection together: every outcome is drawn given all that is post-selected on."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_aer import AerSimulator

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution import Shots

X, W = Parameter("x"), Parameter("w")
OBSERVABLES = [SparsePauliOp("IZ"), SparsePauliOp("IX"), SparsePauliOp("ZI")]
ROWS = torch.tensor([[0.4], [2.1]], dtype=torch.float64)
WEIGHT = 0.9


def circuit() -> QuantumCircuit:
    """Qubit 1 measured three times and used on each time, entangled with qubit 0; inputs before, between and after."""
    made = QuantumCircuit(2, 3)
    made.ry(1.1, 0)
    made.ry(X, 1)
    made.cx(0, 1)
    made.measure(1, 0)
    made.ry(W, 1)
    made.cx(1, 0)
    made.measure(1, 1)
    made.ry(0.7 * X, 1)
    made.cx(0, 1)
    made.rx(0.5, 0)
    made.measure(1, 2)
    made.ry(0.3, 1)
    return made


def layer(postselect: dict[int, int], engine: str = "ideal", dtype: torch.dtype = torch.float64) -> qhw.QuantumLayer:
    device = Device.load("ideal" if engine == "ideal" else "fake_manila")
    compiled = qhw.compile_circuit(
        circuit(), device, inputs=[X], weights=[W], observables=OBSERVABLES, postselect=postselect
    )
    made = qhw.QuantumLayer(compiled, engine, dtype=dtype)
    with torch.no_grad():
        made.weight.fill_(WEIGHT)
    return made


def branches(x: float) -> dict[tuple[int, ...], tuple[float, np.ndarray]]:
    """By Qiskit's Statevector: outcomes of the three measurements → their probability and the values given them."""
    bound = circuit().assign_parameters({X: x, W: WEIGHT})
    found = {}
    for outcomes in itertools.product((0, 1), repeat=3):
        state, chance = Statevector.from_label("00"), 1.0
        for instruction in bound.data:
            qubits = [bound.find_bit(q).index for q in instruction.qubits]
            if instruction.operation.name == "measure":
                kept = outcomes[bound.find_bit(instruction.clbits[0]).index]
                chance *= state.probabilities(qubits)[kept]
                state = state.evolve(np.diag([1.0 - kept, float(kept)]), qubits)
                state = state / np.linalg.norm(state.data)
            else:
                state = state.evolve(instruction.operation, qubits)
        found[outcomes] = chance, np.array([state.expectation_value(o).real for o in OBSERVABLES])
    assert sum(chance for chance, _ in found.values()) == pytest.approx(1)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("postselect", [{0: 1}, {1: 0}, {2: 1}, {0: 0, 2: 1}, {1: 1, 2: 0}, {}])
def test_outcomes_are_drawn_given_what_is_post_selected_on_before_and_after(
    postselect: dict[int, int], dtype: torch.dtype
) -> None:
    """Frequencies of the joint outcomes against the exact conditional ones (within 5 standard errors, false alarms
    below 1e-5 in all); the values given the outcomes are exact."""
    repeats = 3000
    made = layer(postselect, dtype=dtype)
    drawn = made.sample(ROWS.to(dtype).repeat_interleave(repeats, 0), torch.Generator().manual_seed(3))
    free = [clbit for clbit in range(3) if clbit not in postselect]
    assert drawn.clbits == tuple(free)
    for row, x in enumerate(ROWS[:, 0].tolist()):
        possible = {o: b for o, b in branches(x).items() if all(o[bit] == kept for bit, kept in postselect.items())}
        total = sum(chance for chance, _ in possible.values())
        mine = slice(row * repeats, (row + 1) * repeats)
        for outcomes, (chance, values) in possible.items():
            same = (drawn.outcomes[mine] == torch.tensor([outcomes[bit] for bit in free])).all(1)
            p = chance / total
            assert abs(float(same.double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / repeats) + 1e-9
            if same.any():
                wanted = np.broadcast_to(values, (int(same.sum()), 3))
                np.testing.assert_allclose(drawn.values[mine][same].numpy(), wanted, rtol=0, atol=3e-6)
        # the mean over the outcomes is what the layer says, exactly
        mean = sum(chance / total * values for chance, values in possible.values())
        np.testing.assert_allclose(made(ROWS.to(dtype))[row].detach().numpy(), mean, rtol=0, atol=3e-6)


def test_later_post_selection_moves_the_outcomes_before_it() -> None:
    """The test above could not fail on a circuit where the later outcome says nothing of the earlier one."""
    joint = branches(0.4)
    first = sum(chance for outcomes, (chance, _) in joint.items() if outcomes[0])
    kept = [(outcomes, chance) for outcomes, (chance, _) in joint.items() if outcomes[2]]
    given = sum(chance for outcomes, chance in kept if outcomes[0]) / sum(chance for _, chance in kept)
    assert abs(first - given) > 0.2


def test_with_noise_the_outcomes_agree_with_aer_and_a_filter_on_its_shots() -> None:
    """fake_manila, readout errors included: as read by Aer, shots that read another outcome thrown away.

    χ² of the four joint outcomes of the free measurements, two-sample, three degrees of freedom: false alarm 1e-5.
    """
    postselect = {2: 1}
    made = layer(postselect, "noisy")
    shots, rows = 8000, 8000
    compiled = made.compiled
    isa = compiled.isa.assign_parameters({X: 0.4, W: WEIGHT})
    used = list(compiled.physical_qubits)
    reduced = QuantumCircuit(len(used), 3)
    for instruction in isa.data:
        if instruction.operation.name != "barrier":
            qubits = [used.index(isa.find_bit(q).index) for q in instruction.qubits]
            reduced.append(instruction.operation, qubits, [isa.find_bit(c).index for c in instruction.clbits])
    simulator = AerSimulator(noise_model=compiled.device.noise_model(used), max_parallel_threads=1)
    counts = simulator.run(reduced, shots=shots, seed_simulator=9).result().get_counts()
    theirs = np.zeros((2, 2))
    for read, count in counts.items():
        c2, c1, c0 = map(int, read)
        if c2 == postselect[2]:
            theirs[c0, c1] += count
    drawn = made.sample(ROWS[:1].expand(rows, 1), torch.Generator().manual_seed(1)).outcomes
    ours = np.array([[float((drawn == torch.tensor([a, b])).all(1).sum()) for b in (0, 1)] for a in (0, 1)])
    pooled = (ours + theirs) / (ours.sum() + theirs.sum())
    chi2 = sum(((n - n.sum() * pooled) ** 2 / (n.sum() * pooled)).sum() for n in (ours, theirs))
    assert chi2 < 25.9
    assert float(made.probability(ROWS[:1])[0].detach()) == pytest.approx(theirs.sum() / shots, abs=0.028)  # 5 σ


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_the_mean_over_drawn_outcomes_is_the_layers_value(engine: str) -> None:
    """Within 5 standard errors for each of three observables: false alarm 2e-6."""
    made = layer({1: 0, 2: 1}, engine)
    drawn = made.sample(ROWS[:1].expand(4000, 1), torch.Generator().manual_seed(8)).values
    error = drawn.std(0) / math.sqrt(len(drawn)) + 1e-9
    assert ((drawn.mean(0) - made(ROWS[:1])[0].detach()).abs() < 5 * error).all()


def test_chunks_of_samples_are_drawn_alike() -> None:
    """More samples than are worked on at a time, with inputs of their own in every column."""
    made = layer({2: 1})
    x = torch.linspace(-2, 2, 6000, dtype=torch.float64)[:, None]
    drawn = made.sample(x, torch.Generator().manual_seed(2))
    assert len(made.compiled.simulators[False, torch.float64, False].chunks(6000)) > 1
    wanted = made(x).detach()
    error = (drawn.values - wanted).std(0) / math.sqrt(len(x)) + 1e-9
    assert ((drawn.values - wanted).mean(0).abs() < 5 * error).all()


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
@pytest.mark.parametrize("kept", [{0: 0}, {0: 0, 1: 1}])
def test_an_impossible_post_selection_is_refused_by_sample_as_by_the_layer(kept: dict[int, int], engine: str) -> None:
    """An X, measured: it reads 0 never (ideal) or by a readout error (noisy), which is possible."""
    made = QuantumCircuit(2, 3)
    made.x(0)
    made.measure(0, 0)
    made.h(0)
    made.measure(0, 1)
    made.h(0)
    made.measure(0, 2)
    made.cx(0, 1)
    device = Device.load("ideal" if engine == "ideal" else "fake_manila")
    compiled = qhw.compile_circuit(made, device, inputs=[], weights=[], observables=OBSERVABLES, postselect=kept)
    asked = qhw.QuantumLayer(compiled, engine)
    none = torch.zeros(5, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if engine == "noisy":
            assert bool(torch.isfinite(asked.sample(none, torch.Generator()).values).all())
            return
        for call in (lambda: asked.sample(none, torch.Generator()), lambda: asked(none)):
            with pytest.raises(InvalidInputError, match=r"probability below 1e-06 for 5 of 5.*keep other outcomes"):
                call()
    assert float(asked.probability(none).detach().max()) == 0, "what the message advises works"
    other = qhw.compile_circuit(made, device, inputs=[], weights=[], observables=OBSERVABLES, postselect={0: 1})
    assert bool(torch.isfinite(qhw.QuantumLayer(other, engine).sample(none, torch.Generator()).values).all())


def test_errors_advise_only_what_works() -> None:
    everything = layer({0: 0, 1: 0, 2: 0})
    with pytest.raises(InvalidInputError, match=r"every measurement .* is post-selected on.*call the layer itself"):
        everything.sample(ROWS, torch.Generator())
    assert bool(torch.isfinite(everything(ROWS)).all())
    with pytest.raises(InvalidInputError, match=r"does not post-select; use 'ideal' or 'noisy'"):
        layer({0: 0}).with_engine(Shots(10, noisy=False))
    layer({0: 0}).with_engine("ideal")(ROWS)
    layer({0: 0}, "noisy").with_engine("noisy")(ROWS)
    with pytest.raises(InvalidInputError, match=r"engine 'shots' cannot sample trajectories; use 'ideal' or 'noisy'"):
        layer({}).with_engine(Shots(10, noisy=False)).sample(ROWS, torch.Generator())
    engine = qhw.Primitive(StatevectorEstimator())
    with pytest.raises(UnsupportedCircuitError, match=r"do not post-select: use engine 'ideal' or 'noisy'"):
        layer({0: 0}).with_engine(engine)
