"""What is faulty, out of use or without calibration: no part of a device, never taken for perfect, refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp

import qhw_diffusion as qhw
from qhw_diffusion.denoising.device_noise import DeviceNoise, best_qubits
from qhw_diffusion.devices import Calibration, Device, Snapshot, calibration_text, draw_calibration, rank_layouts
from qhw_diffusion.errors import InvalidInputError, QhwError
from qhw_diffusion.execution import aer_estimator

Documents = tuple[dict[str, Any], dict[str, Any]]
Change = Callable[[dict[str, Any], dict[str, Any]], None]
X, W = Parameter("x"), Parameter("w")


def taken(*changes: Change, name: str = "fake_manila") -> Device:
    """The fake device with a changed calibration; fake_manila's five qubits lie on a line."""
    snapshot = Device.load(name).snapshot
    configuration, properties = json.loads(snapshot.configuration), json.loads(snapshot.properties)
    for change in changes:
        change(configuration, properties)
    return Device(Snapshot.from_provider(configuration, properties, "test"))


def flag(value: Any) -> dict[str, Any]:
    return {"name": "operational", "value": value, "unit": "", "date": "2024-01-01T00:00:00+00:00"}


def faulty_qubit(qubit: int, value: Any = 0, *, bare: bool = False) -> Change:
    def change(configuration: dict[str, Any], properties: dict[str, Any]) -> None:
        properties["qubits"][qubit] = [*([] if bare else properties["qubits"][qubit]), flag(value)]

    return change


def gates(properties: dict[str, Any], name: str, *places: tuple[int, ...]) -> list[dict[str, Any]]:
    return [g for g in properties["gates"] if g["gate"] == name and tuple(g["qubits"]) in places]


def faulty_gate(name: str, *places: tuple[int, ...], value: Any = 0) -> Change:
    return lambda _, properties: [g["parameters"].append(flag(value)) for g in gates(properties, name, *places)]


def without_entry(name: str, *places: tuple[int, ...]) -> Change:
    def change(configuration: dict[str, Any], properties: dict[str, Any]) -> None:
        gone = gates(properties, name, *places)
        properties["gates"] = [g for g in properties["gates"] if g not in gone]

    return change


def error_of(value: float, name: str, *places: tuple[int, ...]) -> Change:
    def change(configuration: dict[str, Any], properties: dict[str, Any]) -> None:
        for gate in gates(properties, name, *places):
            next(p for p in gate["parameters"] if p["name"] == "gate_error")["value"] = value

    return change


def circuit(n_qubits: int, *, ring: bool = False) -> QuantumCircuit:
    made = QuantumCircuit(n_qubits)
    for qubit in range(n_qubits):
        made.ry(X + qubit, qubit)
        made.rx(W, qubit)
    for qubit in range(n_qubits - 1):
        made.cx(qubit, qubit + 1)
        made.ry(0.3 + qubit, qubit + 1)
    if ring:
        made.cx(n_qubits - 1, 0)
    return made


def compiled(device: Device, n_qubits: int, **settings: Any) -> qhw.CompiledCircuit:
    observables = [SparsePauliOp("Z" * n_qubits)]
    return qhw.compile_circuit(
        circuit(n_qubits, ring=settings.pop("ring", False)), device, inputs=[X], weights=[W], observables=observables,
        **settings
    )  # fmt: skip


def used(made: QuantumCircuit) -> set[tuple[str, tuple[int, ...]]]:
    return {
        (i.operation.name, tuple(made.find_bit(q).index for q in i.qubits))
        for i in made.data
        if i.operation.name not in ("barrier", "delay")
    }


# what goes wrong → the qubits and pairs that must not be used
BROKEN: dict[str, tuple[Change, set[int], set[tuple[int, int]]]] = {
    "qubit 0 faulty": (faulty_qubit(0), {0}, {(0, 1)}),
    "qubit 4 faulty": (faulty_qubit(4, False), {4}, {(3, 4)}),
    "qubit 0 faulty, no values": (faulty_qubit(0, bare=True), {0}, {(0, 1)}),
    "cx 0-1 faulty": (faulty_gate("cx", (0, 1), (1, 0)), set(), {(0, 1)}),
    "cx 3-4 faulty, one way": (faulty_gate("cx", (3, 4), value=False), set(), set()),
    "cx 0-1 without entry": (without_entry("cx", (0, 1), (1, 0)), set(), {(0, 1)}),
    "cx 3-4 without entry": (without_entry("cx", (3, 4), (4, 3)), set(), {(3, 4)}),
    "sx 0 without entry": (without_entry("sx", (0,)), {0}, {(0, 1)}),
    "x 4 without entry": (without_entry("x", (4,)), {4}, {(3, 4)}),
    "rz 0 without entry": (without_entry("rz", (0,)), {0}, {(0, 1)}),
    "sx 0 faulty": (faulty_gate("sx", (0,)), {0}, {(0, 1)}),
}
OUT_OF_USE: dict[str, tuple[Change, set[int], set[tuple[int, int]]]] = {
    "cx 0-1 of error 1": (error_of(1.0, "cx", (0, 1), (1, 0)), set(), {(0, 1)}),
    "sx 4 of error 1": (error_of(1.0, "sx", (4,)), {4}, {(3, 4)}),
    "sx 0 of error 1": (error_of(1.0, "sx", (0,)), {0}, {(0, 1)}),
}
ALL = {**BROKEN, **OUT_OF_USE}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_qubits", [1, 2, 4])
def test_no_circuit_is_placed_on_what_is_broken(name: str, n_qubits: int) -> None:
    change, qubits, pairs = ALL[name]
    device = taken(change)
    for level in range(4):
        for seed in range(3):
            made = compiled(device, n_qubits, optimization_level=level, seed=seed)
            for gate, place in used(made.isa):
                assert not qubits & set(place), (level, seed, gate, place)
                assert tuple(sorted(place)) not in pairs, (level, seed, gate, place)
                assert device.gate_error(gate, place) is not None or gate == "rz"


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_layouts_and_calibrations_know_it(name: str) -> None:
    change, qubits, pairs = ALL[name]
    device = taken(change)
    ranked = rank_layouts(device, circuit(2), top=50, seeds=2)
    places = {tuple(sorted(layout.qubits)) for layout in ranked.layouts}
    assert places == {(q, q + 1) for q in range(4) if not {q, q + 1} & qubits} - pairs
    assert all(layout.error < 0.5 for layout in ranked.layouts)
    assert not pairs & set(device.couplings_in_use)
    lines = calibration_text(Calibration.of(device))
    assert "2-qubit gate error" in lines
    assert "nan" not in lines.split("median")[1].splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["qubit 0 faulty", "qubit 0 faulty, no values", "cx 0-1 without entry", "sx 0 without entry", "sx 0 of error 1"],
)
def test_pictures_are_drawn_without_what_is_broken(name: str, tmp_path: Path) -> None:
    """One of each kind of what is missing."""
    device = taken(ALL[name][0])
    assert draw_calibration(Calibration.of(device), tmp_path / "device.png").stat().st_size > 1000


@pytest.mark.parametrize("name", BROKEN)
def test_asked_for_by_name_it_is_refused(name: str) -> None:
    change, qubits, pairs = BROKEN[name]
    device = taken(change)
    for qubit in qubits:
        with pytest.raises(QhwError, match=f"fake_manila has no 'sx' in use on qubits \\({qubit},\\)"):
            device.gate_error("sx", (qubit,))
        with pytest.raises(InvalidInputError, match=rf"qubits \[{qubit}\] of fake_manila cannot be used"):
            device.noise_model([qubit, 2])
        with pytest.raises(InvalidInputError, match=rf"qubits \[{qubit}\] of fake_manila are faulty"):
            DeviceNoise(device, [qubit, 2], 3, pairs=1)
        assert qubit not in best_qubits(device, 2)
        if "no values" in name:
            with pytest.raises(InvalidInputError, match=f"qubit {qubit} of fake_manila is faulty"):
                device.readout_error(qubit)
    for pair in pairs:
        with pytest.raises(QhwError, match=r"fake_manila has no 'cx' in use"):
            device.gate_error("cx", pair)


def test_gates_of_error_1_are_refused_where_a_process_asks_for_them() -> None:
    with pytest.raises(InvalidInputError, match=r"x on 4 of fake_manila: out of use"):
        DeviceNoise(taken(error_of(1.0, "x", (4,))), [3, 4], 3, pairs=1)
    device = taken(error_of(1.0, "cx", (0, 1), (1, 0)))
    assert set(DeviceNoise(device, 4, 3, pairs=1, gate="cx").qubits) == {1, 2, 3, 4}
    with pytest.raises(InvalidInputError, match="no two of the qubits"):
        DeviceNoise(device, [0, 1], 3, pairs=1, gate="cx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_engine_runs_beside_it_and_agrees(name: str) -> None:
    made = compiled(taken(ALL[name][0]), 3, scheduled=name.startswith(("qubit", "sx")))
    x = torch.tensor([[0.4]])
    noisy = qhw.QuantumLayer(made, "noisy").estimate(x).values
    ideal = qhw.QuantumLayer(made, "ideal").estimate(x).values
    assert float((noisy - ideal).abs()) > 1e-3
    estimator = qhw.Primitive(aer_estimator(made, seed=2), precision=0.02, reduced=True)
    assert float((qhw.QuantumLayer(made, estimator).estimate(x).values - noisy).abs()) < 0.1


def test_a_missing_pair_was_once_preferred_for_its_missing_noise() -> None:
    """The worst pair, without its entry, must not come out as the best one."""
    worst = error_of(0.4, "cx", (0, 1), (1, 0))
    for changes in ((worst,), (without_entry("cx", (0, 1), (1, 0)),)):
        made = compiled(taken(*changes), 2, ring=True)
        assert made.physical_qubits != (0, 1)


def test_too_little_left_is_said() -> None:
    device = taken(faulty_qubit(2))
    with pytest.raises(QhwError, match="5 qubits but only 4 of the 5 qubits of fake_manila are calibrated"):
        compiled(device, 5)
    with pytest.raises(InvalidInputError, match="5 qubits, fake_manila has 4 in use"):
        rank_layouts(device, circuit(5))
    with pytest.raises(InvalidInputError, match="no place for this circuit"):
        rank_layouts(device, circuit(4))
    broken = taken(error_of(1.0, "cx", (1, 2), (2, 1)))
    with pytest.raises(InvalidInputError, match=r"on the gates of fake_manila that are in use; it would need cx on"):
        compiled(broken, 5)
    with pytest.raises(InvalidInputError, match="that are in use"):
        compiled(Device.load("fake_kyoto"), 2)  # every one of its ECR gates has error 1


def test_what_is_complete_is_as_published() -> None:
    """Nothing is left out of any published device but what the converter itself leaves out."""
    device = taken()
    assert device.usable_qubits == (0, 1, 2, 3, 4)
    assert device.couplings_in_use == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert device.target_in_use is device.target
    marrakesh = Device.load("fake_marrakesh")
    assert marrakesh.target is not marrakesh.target_in_use
    assert marrakesh.target is not None
    published = {tuple(sorted(place)) for place, entry in marrakesh.target["cz"].items() if entry.error < 1}
    assert published == set(marrakesh.couplings_in_use)


def test_a_faulty_device_survives_saving(tmp_path: Path) -> None:
    device = taken(faulty_qubit(4, False, bare=True), faulty_gate("cx", (0, 1), (1, 0)))
    again = Device.load(device.save(tmp_path / "device.json.gz"))
    assert again == device
    assert again.couplings_in_use == ((1, 2), (2, 3))
    assert np.isnan(Calibration.of(again).qubits[4].readout_error)
