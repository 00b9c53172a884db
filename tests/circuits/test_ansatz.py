"""Ansätze of the denoiser: the contract of a user's own, its names, and what is wrong with one that is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.quantum_info import Operator

from qhw_diffusion.circuits import reverse_circuit
from qhw_diffusion.circuits.ansatz import ansatz_of, ansatz_text, chain_layer, check_ansatz, cz_layer, is_own_ansatz
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.extensions import load_extension

FILE = """
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter


def ring(n_qubits, layer):
    circuit, angle = QuantumCircuit(n_qubits), Parameter("a")
    for qubit in range(n_qubits):
        circuit.ry(angle, qubit)
    for qubit in range(n_qubits):
        circuit.cz(qubit, (qubit + 1) % n_qubits)
    return circuit


number = 3
"""


def staggered(n_qubits: int, layer: int) -> QuantumCircuit:
    """RY with one angle for all, RXX on every second pair; another number of weights in every second layer."""
    circuit, angles = QuantumCircuit(n_qubits), ParameterVector("theta", 2)
    for qubit in range(n_qubits):
        circuit.ry(angles[0], qubit)
    for qubit in range(layer % 2, n_qubits - 1, 2):
        circuit.rxx(2 * angles[1] + 0.1, qubit, qubit + 1)
    return circuit


def test_a_step_is_made_of_the_layers_with_weights_of_their_own() -> None:
    step = reverse_circuit(2, 1, 2, outer=1, ansatz=staggered, label_qubits=1, conditioning_angles=True)
    assert len(step.weights) == 2 * 4
    assert step.n_conditioning == 2 * 1 * 2
    assert len(step.inputs) == 1 + 4
    assert set(step.circuit.parameters) == {*step.inputs, *step.weights}
    assert step.circuit.name == "reverse_2d1l1a_1-2-1_own_staggered_conditioned"
    # by hand: data 0 1, label 2, ancilla 3
    x, w = step.inputs, step.weights
    hand = QuantumCircuit(4)
    hand.rx(x[0], 2)
    for layer, (qubits, angles) in enumerate(
        zip((range(3), range(4), range(4), range(3)), (None, 1, 3, None), strict=True)
    ):
        if angles is not None:
            hand.ry(x[angles], 3)
            hand.rz(x[angles + 1], 3)
        for qubit in qubits:
            hand.ry(w[2 * layer], qubit)
        for qubit in range(layer % 2, len(qubits) - 1, 2):
            hand.rxx(2 * w[2 * layer + 1] + 0.1, qubit, qubit + 1)
    hand.rx(x[0], 2)
    values = dict(zip([*x, *w], np.random.default_rng(0).normal(size=len(x) + len(w)), strict=True))
    one, other = (Operator(c.assign_parameters(values)) for c in (step.circuit, hand))
    np.testing.assert_allclose(one.data, other.data, atol=1e-12)


def test_a_function_of_the_package_as_an_own_ansatz_gives_the_built_in_circuit() -> None:
    own, built_in = (reverse_circuit(3, 1, 3, outer=1, ansatz=a) for a in (chain_layer, "chain"))
    assert own.circuit == built_in.circuit
    assert own.weights == built_in.weights


def test_weights_are_in_the_order_of_the_layers_parameters() -> None:
    def backwards(n_qubits: int, layer: int) -> QuantumCircuit:
        circuit = QuantumCircuit(n_qubits)
        circuit.rx(Parameter("b"), 0)
        circuit.ry(Parameter("a"), 0)
        return circuit

    step = reverse_circuit(1, 0, 2, ansatz=backwards)
    assert [i.operation.params[0] for i in step.circuit.data] == [step.weights[k] for k in (1, 0, 3, 2)]


def test_layers_without_weights_are_fine_but_not_all() -> None:
    def alternating(n_qubits: int, layer: int) -> QuantumCircuit:
        circuit = QuantumCircuit(n_qubits)
        if layer % 2:
            circuit.cx(0, 1)
        else:
            circuit.ry(Parameter("a"), 0)
        circuit.barrier()
        return circuit

    assert len(reverse_circuit(1, 1, 4, ansatz=alternating).weights) == 2
    with pytest.raises(InvalidInputError, match=r"staggered_wrong' has no weights"):
        reverse_circuit(2, 1, 2, ansatz=staggered_wrong)


def staggered_wrong(n_qubits: int, layer: int) -> QuantumCircuit:
    circuit = QuantumCircuit(n_qubits)
    circuit.h(0)
    return circuit


def _measured(n_qubits: int, layer: int) -> QuantumCircuit:
    circuit = staggered(n_qubits, layer)
    circuit.measure_all()
    return circuit


def _reset(n_qubits: int, layer: int) -> QuantumCircuit:
    circuit = staggered(n_qubits, layer)
    circuit.reset(0)
    return circuit


def _wrapped_reset(n_qubits: int, layer: int) -> QuantumCircuit:
    circuit = QuantumCircuit(n_qubits)
    circuit.append(_reset(n_qubits, layer).to_instruction(), range(n_qubits))
    return circuit


def _initialised(n_qubits: int, layer: int) -> QuantumCircuit:
    circuit = staggered(n_qubits, layer)
    circuit.initialize([1, 0], 0)
    return circuit


def _wide(n_qubits: int, layer: int) -> QuantumCircuit:
    return staggered(n_qubits + 1, layer)


def _raising(n_qubits: int, layer: int) -> QuantumCircuit:
    raise ZeroDivisionError("no layers left") if layer else ZeroDivisionError("none at all")


def _list(n_qubits: int, layer: int) -> list[int]:
    return [n_qubits, layer]


def _no_arguments() -> QuantumCircuit:
    return QuantumCircuit(3)


@pytest.mark.parametrize(
    ("ansatz", "message"),
    [
        (_measured, "a circuit with 3 classical bits"),
        (_reset, "the operation 'reset'"),
        (_wrapped_reset, "the operation 'reset' in 'circuit"),
        (_initialised, "the operation 'initialize'"),
        (_wide, "a circuit on 4 qubits"),
        (_raising, "fails: ZeroDivisionError: none at all"),
        (_list, "returns a list"),
        (_no_arguments, "fails: TypeError"),
    ],
)
def test_what_is_wrong_with_an_own_ansatz_is_said_with_its_name(ansatz: Callable, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as found:
        reverse_circuit(2, 1, 2, ansatz=ansatz)
    assert f"test_ansatz:{ansatz.__name__}' for n_qubits=3, layer=0" in str(found.value)
    assert "wanted: a unitary QuantumCircuit on 3 qubits whose parameters are the weights" in str(found.value)


def test_an_ansatz_that_draws_another_circuit_each_time_is_refused() -> None:
    numbers, count = np.random.default_rng(0), itertools.count()

    def angles(n_qubits: int, layer: int) -> QuantumCircuit:
        circuit = staggered(n_qubits, layer)
        circuit.rx(numbers.normal(), 0)
        return circuit

    def growing(n_qubits: int, layer: int) -> QuantumCircuit:
        circuit = staggered(n_qubits, layer)
        for _ in range(next(count)):
            circuit.rx(Parameter("more"), 0) if not circuit.count_ops().get("rx") else circuit.h(0)
        return circuit

    for ansatz in (angles, growing):
        with pytest.raises(InvalidInputError, match="returns another circuit each time"):
            reverse_circuit(2, 1, 2, ansatz=ansatz)


def test_names_are_resolved_built_in_first_then_modules_and_files(tmp_path: Path) -> None:
    assert ansatz_of("chain") is chain_layer
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    ring = ansatz_of(f"{file}:ring")
    assert len(reverse_circuit(2, 1, 3, ansatz=f"{file}:ring").weights) == 3
    assert ansatz_of(ring) is ring
    assert ansatz_of("qhw_diffusion.circuits.ansatz:cz_layer") is cz_layer
    assert [is_own_ansatz(a) for a in ("chain", "cz", f"{file}:ring", ring)] == [False, False, True, True]
    for wrong in ("chian", "mine.ring", 3, None):
        own = r"(allowed: chain, cz, or one of your own as|did you mean chain\? One of your own is) module:name"
        with pytest.raises(UnknownNameError, match=own):
            check_ansatz(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"ansatz 'nowhere.at_all:ring': there is no module"):
        ansatz_of("nowhere.at_all:ring")
    with pytest.raises(InvalidInputError, match=r"has no 'rings'"):
        ansatz_of(f"{file}:rings")
    with pytest.raises(InvalidInputError, match=r"is a int; wanted: a function"):
        ansatz_of(f"{file}:number")


def test_the_text_of_a_function_names_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    assert ansatz_text("cz") == "cz"
    assert ansatz_text("anything:at_all") == "anything:at_all"
    assert load_extension(ansatz_text(chain_layer), what="ansatz") is chain_layer
    ring = load_extension("mine.py:ring", what="ansatz")
    assert ansatz_text(ring) == "mine.py:ring"
    for nameless in (lambda n_qubits, layer: chain_layer(n_qubits, layer), _local(), Layers()):
        with pytest.raises(InvalidInputError, match="cannot be saved: it has no name by which it is found again"):
            ansatz_text(nameless)


def _local() -> Callable:
    def inner(n_qubits: int, layer: int) -> QuantumCircuit:
        return chain_layer(n_qubits, layer)

    return inner


class Layers:
    def __call__(self, n_qubits: int, layer: int) -> QuantumCircuit:
        return chain_layer(n_qubits, layer)


@pytest.mark.slow
def test_a_function_of_the_running_script_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        FILE + "\nfrom qhw_diffusion.circuits.ansatz import ansatz_text\nprint(ansatz_text(ring))\n"
    )
    run = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "mine.py:ring"
    run = subprocess.run([sys.executable, "-m", "mine"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "mine:ring"
    code = "exec(open('mine.py').read())"  # as in a notebook: no file to find it in
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "cannot be saved" in run.stderr
