"""What each circuit of a job is: said by the strategies, kept with the job, in the order in which they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from qiskit.quantum_info import SparsePauliOp

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment, Hardware, Ideal
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.provenance import record
from qhw_diffusion.hardware.runner import open_runner
from qhw_diffusion.mitigation import Mitigated, Strategy, strategies_of
from qhw_diffusion.mitigation.mitigated import expand


@pytest.fixture(scope="module")
def compiled() -> CompiledCircuit:
    policy = qhw.circuits.policy_circuit(n_qubits=3, depth=1, n_features=6)
    device = qhw.Device.load("fake_manila")
    return qhw.compile_circuit(
        policy.circuit, device, inputs=policy.inputs, weights=policy.weights, observables=policy.observables
    )


def rows_of(compiled: CompiledCircuit) -> torch.Tensor:
    return torch.full((1, compiled.n_inputs + compiled.n_weights), 0.3)


def kept(folder: Path, compiled: CompiledCircuit, mitigation: str) -> dict[str, Any]:
    """What the ledger has of a job with this mitigation."""
    with Ledger.open(folder) as ledger:
        with open_runner("fake_manila", ledger=ledger, run="test") as runner:
            engine: Any = Hardware(runner, shots=50)
            if mitigation:
                engine = Mitigated(engine, strategies_of(mitigation))
            engine.estimate(compiled, rows_of(compiled))
        (row,) = ledger.rows()
        return record(row)


def test_a_circuit_without_mitigation_is_one(compiled: CompiledCircuit, tmp_path: Path) -> None:
    told = kept(tmp_path, compiled, "")
    assert told["pubs"] == ["circuit"]
    assert told["layout"] == [compiled.isa.layout.initial_index_layout(filter_ancillas=True)]
    assert "mitiq" not in told["packages"]


def test_readout_folding_and_twirling(compiled: CompiledCircuit, tmp_path: Path) -> None:
    told = kept(tmp_path, compiled, "readout:measured+zne:linear:1,3+twirling:2")
    assert told["pubs"] == [
        "twirled, 1 of 2; folded, scale 1",
        "twirled, 1 of 2; folded, scale 3",
        "twirled, 2 of 2; folded, scale 1",
        "twirled, 2 of 2; folded, scale 3",
        "readout calibration, 000 prepared",
        "readout calibration, 111 prepared",
    ]
    circuit = compiled.isa.layout.initial_index_layout(filter_ancillas=True)
    assert told["layout"] == [circuit] * 4 + [list(compiled.physical_qubits)] * 2


def test_the_labels_are_those_of_the_circuits(compiled: CompiledCircuit) -> None:
    """By the gates of each: two-qubit gates grow with the scale, and a calibration has none."""
    strategies = strategies_of("readout:measured+zne:linear:1,3,5+twirling:2")
    expansion = expand(strategies, [(compiled, rows_of(compiled))])
    circuits = [circuit for circuit, _ in (*expansion.leaves, *expansion.calibrations)]
    assert len(circuits) == len(expansion.all_labels) == 2 * 3 + 2
    for circuit, label in zip(circuits, expansion.all_labels, strict=True):
        if "calibration" in label:
            ones = circuit.isa.count_ops().get("x", 0)
            assert label == f"readout calibration, {'1' if ones else '0'}{'11' if ones else '00'} prepared"
        else:
            scale = circuit.two_qubit_gates / compiled.two_qubit_gates
            assert label.endswith(f"folded, scale {scale:g}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mitigation", "labels"),
    [
        ("readout:correlated", ["circuit", *(f"readout calibration, {n & 1}{n >> 1 & 1}{n >> 2} prepared"
                                             for n in range(8))]),
        ("mitiq-zne:linear:1,3", ["folded by Mitiq, scale 1", "folded by Mitiq, scale 3"]),
        ("mitiq-twirling:2", ["twirled by Mitiq, 1 of 2", "twirled by Mitiq, 2 of 2"]),
        ("mitiq-cdr:4", ["circuit", "training circuits of Mitiq CDR, 4 circuits"]),
    ],
)  # fmt: skip
def test_other_strategies(compiled: CompiledCircuit, tmp_path: Path, mitigation: str, labels: list[str]) -> None:
    if "mitiq" in mitigation:
        pytest.importorskip("mitiq")
    told = kept(tmp_path, compiled, mitigation)
    assert told["pubs"] == labels
    assert ("mitiq" in told["packages"]) == ("mitiq" in mitigation)


def test_a_scheduled_circuit_keeps_its_layout_through_all_strategies() -> None:
    policy = qhw.circuits.policy_circuit(n_qubits=3, depth=1, n_features=6)
    compiled = qhw.compile_circuit(
        policy.circuit, qhw.Device.load("fake_manila"), inputs=policy.inputs, weights=policy.weights,
        observables=policy.observables, scheduled=True,
    )  # fmt: skip
    expansion = expand(strategies_of("decoupling:xy4+zne:linear:1,3+twirling:2"), [(compiled, rows_of(compiled))])
    assert expansion.labels[-1] == "twirled, 2 of 2; folded, scale 3; decoupled, XY4"
    layout = compiled.isa.layout.initial_index_layout(filter_ancillas=True)
    for circuit, _ in expansion.leaves:
        assert circuit.isa.layout.initial_index_layout(filter_ancillas=True) == layout


def test_several_bases_are_told_apart(compiled: CompiledCircuit) -> None:
    first = compiled.observables[0]
    other = SparsePauliOp(first.paulis.to_labels()[0].replace("Z", "X"))
    both = replace(compiled, observables=(first, other))
    assert expand(strategies_of("readout"), [(both, rows_of(both))]).labels == ["basis 1 of 2", "basis 2 of 2"]


@dataclass(frozen=True, eq=False)
class Own(Strategy):
    """Twice the same circuit, with labels of its own or without."""

    said: Sequence[str] | None = None

    def construct(self, compiled: CompiledCircuit, rows: torch.Tensor) -> list[Experiment]:
        return [(compiled, rows)] * 2

    def combine(
        self, estimates: Sequence[Estimate], compiled: CompiledCircuit, rows: torch.Tensor, calibration: Any = ()
    ) -> Estimate:
        return estimates[0]

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> Any:
        return super().labels(compiled, made) if self.said is None else self.said


def test_a_strategy_of_ones_own_is_numbered_or_says_it_itself(compiled: CompiledCircuit) -> None:
    experiments = [(compiled, rows_of(compiled))]
    plain = expand([Own()], experiments).labels
    assert [text.partition(", ")[2] for text in plain] == ["1 of 2", "2 of 2"]
    assert all(text.startswith(Own().label) for text in plain)
    assert expand([Own(("a", "b"))], experiments).labels == ["a", "b"]
    with pytest.raises(InvalidInputError, match=r"labels returned .*wanted: a text for each of the 2 circuits"):
        Mitigated(Ideal(), [Own(("a",))]).check(compiled)
