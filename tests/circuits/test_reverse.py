"""Circuits of a reverse step, and the chain of them as a dynamic circuit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.quantum_info import Operator
from qiskit_aer import AerSimulator
from scipy.stats import chi2

from qhw_diffusion.circuits.reverse import ReverseCircuit, dynamic_circuit, reverse_circuit
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.models import RECONSTRUCTION
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnknownNameError


def of(config: ReverseConfig) -> ReverseCircuit:
    return reverse_circuit(
        config.n_qubits,
        config.ancillas,
        config.depth,
        outer=config.outer,
        ansatz=config.ansatz,
        label_qubits=config.label_qubits,
        conditioning_angles=config.conditioning_angles,
    )


@pytest.mark.parametrize(
    ("n", "ancillas", "depth", "outer", "labels"), [(2, 1, 4, 0, 0), (3, 0, 2, 1, 0), (2, 2, 3, 2, 1)]
)
@pytest.mark.parametrize(("ansatz", "per_qubit", "entangler"), [("chain", 3, "cx"), ("cz", 2, "cz")])
def test_number_of_weights_and_gates(
    n: int, ancillas: int, depth: int, outer: int, labels: int, ansatz: str, per_qubit: int, entangler: str
) -> None:
    step = reverse_circuit(n, ancillas, depth, outer=outer, ansatz=ansatz, label_qubits=labels)
    body, everything = n + labels, n + labels + ancillas
    assert len(step.weights) == per_qubit * (2 * outer * body + depth * everything)
    assert step.circuit.count_ops()[entangler] == 2 * outer * (body - 1) + depth * (everything - 1)
    assert set(step.circuit.parameters) == {*step.weights, *step.inputs}
    assert (step.data, step.measured) == (tuple(range(n)), tuple(range(n, everything)))
    assert len(step.observables) == everything


def test_the_reconstruction_has_1110_circuit_parameters() -> None:
    """As published for ten classes: 3 data, 4 label qubits and an ancilla, one circuit shared by all steps."""
    step = of(RECONSTRUCTION)
    assert (len(step.data), len(step.labels), len(step.ancillas)) == (3, 4, 1)
    assert len(step.weights) == 1110
    assert ReverseProcess(RECONSTRUCTION).n_circuit_parameters == 1110


@pytest.mark.slow
@pytest.mark.parametrize("config", [ReverseConfig(n_qubits=2, depth=4), RECONSTRUCTION])
def test_zero_weights_are_the_identity_and_labels_read_zero(config: ReverseConfig) -> None:
    """The CNOT chains of an even number of layers cancel, and label qubits that were left alone cost nothing."""
    step = of(config)
    rng = np.random.default_rng(0)
    labels = [math.pi * bit for bit in (1, 0, 1, 1)[: config.label_qubits]]
    values = dict.fromkeys(step.weights, 0.0) | dict.fromkeys(step.inputs, 0.0)
    values |= dict(zip(step.inputs, labels, strict=False))
    circuit = step.circuit.assign_parameters(values)
    assert Operator(circuit).equiv(Operator(np.eye(2**circuit.num_qubits)))
    if not labels:
        values |= dict(zip(step.weights, rng.normal(size=len(step.weights)), strict=True))
        assert not Operator(step.circuit.assign_parameters(values)).equiv(Operator(np.eye(2**circuit.num_qubits)))


def test_cz_layers_have_every_neighbouring_pair() -> None:
    """Of the whole register, ancillas too, in every layer (half of them lose the published result)."""
    step = reverse_circuit(2, 2, 3, ansatz="cz")
    names = [i.operation.name for i in step.circuit.data]
    pairs = [
        tuple(step.circuit.find_bit(q).index for q in i.qubits) for i in step.circuit.data if i.operation.name == "cz"
    ]
    assert pairs == [(0, 1), (1, 2), (2, 3)] * 3
    assert names == (["rx", "ry"] * 4 + ["cz"] * 3) * 3


def test_conditioning_angles_turn_the_ancillas_before_every_layer_they_are_in() -> None:
    step = reverse_circuit(2, 2, 3, outer=1, conditioning_angles=True)
    assert step.n_conditioning == len(step.inputs) == 2 * 2 * 3
    turned = [
        (i.operation.name, step.circuit.find_bit(i.qubits[0]).index)
        for i in step.circuit.data
        if i.operation.params and i.operation.params[0] in set(step.inputs)
    ]
    assert turned == [("ry", 2), ("rz", 2), ("ry", 3), ("rz", 3)] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_qubits": 0}, "n_qubits is 0"),
        ({"n_qubits": 2, "depth": 0}, "depth is 0"),
        ({"n_qubits": 2, "outer": -1}, "outer is -1"),
        ({"n_qubits": 2, "n_ancillas": 1.0}, "n_ancillas is 1.0"),
        ({"n_qubits": 10, "n_ancillas": 3}, "13 qubits"),
        ({"n_qubits": 2, "n_ancillas": 0, "conditioning_angles": True}, "ancillas"),
    ],
)
def test_circuits_that_cannot_be(arguments: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        reverse_circuit(**arguments)
    with pytest.raises(UnknownNameError, match="ansatz"):
        reverse_circuit(2, ansatz="ring")


# --- the chain as one dynamic circuit ------------------------------------------------------------------------------

PROCESS = ReverseConfig(
    n_qubits=2, n_steps=3, kind="measured", ancillas=1, feed_forward=True, depth=2, init_scale=1.0, seed=4
)


def process_and_circuit(config: ReverseConfig, labels: int = 0) -> tuple[ReverseProcess, QuantumCircuit]:
    process = ReverseProcess(config, dtype=torch.float64)
    return process, process.dynamic_circuit(labels, prior())


def prior() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.ry(0.7, 0)
    circuit.cx(0, 1)
    circuit.rx(0.4, 1)
    return circuit


def start() -> torch.Tensor:
    return torch.from_numpy(Operator(prior()).data[:, 0].copy())[None]


def enumerated(process: ReverseProcess, labels: int = 0) -> dict[tuple[int, ...], float]:
    """{(outcome at T, …, outcome at 1, data): probability}, by every branch of every step."""
    table = {}
    given = torch.tensor([labels]) if process.config.n_labels > 1 else None
    with torch.no_grad():
        for outcomes in itertools.product(range(process.config.n_outcomes), repeat=process.config.n_steps):
            states, weight, before = start(), 1.0, None
            for t, outcome in zip(range(process.config.n_steps, 0, -1), outcomes, strict=True):
                branches = process.step(states, t, given, before)
                before = torch.tensor([outcome])
                states, probability = branches.select(before)
                weight *= float(probability)
            for x, p in enumerate(states[0].abs().square().tolist()):
                table[(*outcomes, x)] = weight * p
    return table


def counted(circuit: QuantumCircuit, shots: int, n_steps: int) -> dict[tuple[int, ...], int]:
    """The same keys from Aer's counts."""
    simulator = AerSimulator(method="statevector", max_parallel_threads=1)
    ready = transpile(circuit, simulator, optimization_level=0)
    counts = simulator.run(ready, shots=shots, seed_simulator=3).result().get_counts()
    order = [register.name for register in circuit.cregs][::-1]
    table = {}
    for text, count in counts.items():
        values = dict(zip(order, (int(part, 2) for part in text.split()), strict=True))
        table[(*(values[f"m{t}"] for t in range(n_steps, 0, -1)), values["x"])] = count
    return table


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        PROCESS,
        ReverseConfig(**{**PROCESS.to_dict(), "feed_forward": False}),
        ReverseConfig(**{**PROCESS.to_dict(), "n_steps": 2, "conditioning": "qubits", "n_labels": 2}),
    ],
    ids=["feed forward", "none", "label qubit"],
)
def test_the_dynamic_circuit_on_aer_has_the_outcomes_of_the_reverse_process(config: ReverseConfig) -> None:
    """Pearson's chi-square at a false-alarm rate of 1e-6 (rare cells pooled), and one that feed-forward would fail."""
    label = 1 if config.n_labels > 1 else 0
    process, circuit = process_and_circuit(config, label)
    exact, shots = enumerated(process, label), 20_000
    assert sum(exact.values()) == pytest.approx(1, abs=1e-9)
    seen = counted(circuit, shots, config.n_steps)
    assert set(seen) <= set(exact)

    def statistic(expected: dict[tuple[int, ...], float]) -> tuple[float, int]:
        cells = [(seen.get(key, 0), shots * p) for key, p in expected.items()]
        common = [cell for cell in cells if cell[1] >= 10]
        rest = [cell for cell in cells if cell[1] < 10]
        common.append((sum(n for n, _ in rest), max(sum(m for _, m in rest), 1e-9)))
        if common[-1][1] < 5:
            common.pop()
        return sum((n - m) ** 2 / m for n, m in common), len(common) - 1

    value, freedom = statistic(exact)
    assert freedom >= 8
    assert value < chi2.isf(1e-6, freedom)
    if config.feed_forward:  # power of the test: without feed-forward it would fail
        blind = ReverseProcess(ReverseConfig(**{**config.to_dict(), "feed_forward": False}), dtype=torch.float64)
        with torch.no_grad():
            blind.weight.copy_(process.weight[:, :, :1])
        value, freedom = statistic(enumerated(blind, label))
        assert value > 2 * chi2.isf(1e-6, freedom)


def test_a_heron_takes_the_dynamic_circuit() -> None:
    _, circuit = process_and_circuit(PROCESS)
    target = Device.load("fake_marrakesh").target
    assert target is not None
    isa = transpile(circuit, target=target, optimization_level=1, seed_transpiler=0)
    assert {"if_else", "measure", "reset"} <= set(isa.count_ops())
    assert "if_else" in target.operation_names

    def check(block: QuantumCircuit, where: list[int]) -> None:
        for i in block.data:
            qubits = tuple(where[block.find_bit(q).index] for q in i.qubits)
            if i.operation.name == "if_else":
                for inner in i.operation.blocks:
                    check(inner, list(qubits))
            elif i.operation.name != "barrier":
                assert target.instruction_supported(i.operation.name, qubits)

    check(isa, list(range(isa.num_qubits)))


def test_dynamic_circuits_that_cannot_be() -> None:
    with pytest.raises(InvalidInputError, match="labels run from 1 to 1"):
        ReverseProcess(PROCESS).dynamic_circuit(1)
    step = reverse_circuit(2, 1, 1)
    with pytest.raises(InvalidInputError, match="3 angles given; the step has 9"):
        dynamic_circuit(step, 1, lambda t, outcome: [0.0] * 3)
    with pytest.raises(InvalidInputError, match="prior has 1 qubits"):
        dynamic_circuit(step, 1, lambda t, outcome: [0.0] * 9, prior=QuantumCircuit(1))
    with pytest.raises(InvalidInputError, match="n_steps"):
        dynamic_circuit(step, 0, lambda t, outcome: [0.0] * 9)


def test_a_chain_without_ancillas_or_readout_is_just_the_steps() -> None:
    step = reverse_circuit(2, 0, 1)
    circuit = dynamic_circuit(step, 2, lambda t, outcome: [0.1 * t] * 6, read=False)
    assert not circuit.clbits
    one, two = (Operator(step.circuit.assign_parameters([0.1 * t] * 6)) for t in (1, 2))
    assert Operator(circuit).equiv(one @ two), "t = 2 comes first"
