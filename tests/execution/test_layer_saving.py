"""A layer on disk: what comes back gives the same numbers bit for bit, or it was refused when it was saved."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit, QuantumRegister
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.library import PauliEvolutionGate, RYGate, UnitaryGate
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp, random_unitary
from safetensors import safe_open
from torch import Tensor

from qhw_diffusion import SPSA, Device, Mitigated, ParameterShift, Primitive, QuantumLayer, Shots, Surrogate
from qhw_diffusion.circuits import load_circuit, save_circuit
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, UnknownNameError
from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, GradientMethod, compile_circuit, load_layer
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.execution.gradients import unrolled
from qhw_diffusion.execution.saving import SNAPSHOT
from qhw_diffusion.mitigation import ZNE, PauliTwirling, Readout

X, W = ParameterVector("x", 3), [Parameter(name) for name in ("b", "a", "θ", "last")]


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(3, name="mine", metadata={"made": "here"})
    for q in range(3):
        qc.ry(X[q] * 0.5 + W[q] - 0.3, q)
    qc.cx(0, 1)
    qc.rzz(W[3], 1, 2)
    qc.ecr(2, 0)
    qc.rx(W[0] - W[1], 1)
    return qc


OBSERVABLES = [
    SparsePauliOp(["XYZ", "III", "IIZ"], [0.1, 1 / 3, -math.pi]),
    SparsePauliOp("ZIZ"),
    SparsePauliOp(["IXI", "IXI"], [0.7, 1e-9]),
]


def compiled(device: str | Device = "fake_manila", **settings: Any) -> CompiledCircuit:
    target = device if isinstance(device, Device) else Device.load(device)
    given = {"inputs": [X[2], X[0], X[1]], "weights": [W[1], W[3], W[0], W[2]], "observables": OBSERVABLES}
    return compile_circuit(circuit(), target, **{**given, **settings})


@pytest.fixture(scope="module")
def manila() -> CompiledCircuit:
    return compiled()


def inputs(layer: QuantumLayer) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, layer.compiled.n_inputs, generator=generator, dtype=torch.float64).to(layer.weight.dtype)


def answers(layer: QuantumLayer) -> list[Tensor]:
    """Values, standard errors, and gradients by inputs and weights."""
    x = inputs(layer).requires_grad_()
    estimate = layer.estimate(x.detach())
    values = layer(x)
    wanted = [x, layer.weight] if layer.weight.requires_grad else [x]
    return [estimate.values, estimate.std_errors, values, *torch.autograd.grad(values.square().sum(), wanted)]


def assert_same(again: QuantumLayer, layer: QuantumLayer) -> None:
    assert again.weight.dtype == layer.weight.dtype
    assert again.weight.requires_grad == layer.weight.requires_grad
    assert torch.equal(again.weight, layer.weight)
    assert (again.engine, again.gradient) == (layer.engine, layer.gradient)
    for ours, theirs in zip(answers(again), answers(layer), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


CIRCUITS: dict[str, Callable[[], CompiledCircuit]] = {
    "ideal": lambda: compiled("ideal"),
    "manila": compiled,
    "other order": lambda: compiled(inputs=[X[1], X[2], X[0]], weights=W[::-1]),
    "other observables": lambda: compiled(observables=OBSERVABLES[:1]),
    "level 0, another seed": lambda: compiled(optimization_level=0, seed=5),
    "scheduled": lambda: compiled(scheduled=True),
    "fractional": lambda: compiled(Device.load("fake_marrakesh").with_fractional_gates(), optimization_level=1),
    "heron": lambda: compiled("fake_marrakesh"),
    "eagle": lambda: compiled("fake_brisbane"),
    "without inputs": lambda: compiled(inputs=[], weights=[*X, *W]),
    "unrolled": lambda: unrolled(compiled()).compiled,
    "observables replaced": lambda: replace(compiled(), observables=compiled().observables[::-1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CIRCUITS)
def test_every_circuit_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    layer = QuantumLayer(CIRCUITS[name](), "ideal", seed=7)
    if name == "fractional":  # rzz takes angles from 0 to π/2 only
        layer.weight.data[1] = 0.4
    again = QuantumLayer.load(layer.save(tmp_path / "a"))
    assert_same(again, layer)
    assert again.compiled.isa == layer.compiled.isa
    assert again.compiled.device == layer.compiled.device
    assert not again.training
    assert_same(QuantumLayer.load(again.save(tmp_path / "b")), layer)
    if not layer.compiled.device.is_ideal:
        assert_same(QuantumLayer.load(tmp_path / "b", engine="noisy"), layer.with_engine("noisy"))
    if name not in ("unrolled", "observables replaced"):  # what was made of the ISA circuit is not compiled anew
        moved = QuantumLayer.load(tmp_path / "b", device="ideal")
        assert_same(moved, layer.with_compiled(layer.compiled.compile_for(Device.load("ideal"))))


def test_a_device_of_a_file_comes_back(tmp_path: Path) -> None:
    file = Device.load("fake_manila").save(tmp_path / "mine.json")
    layer = QuantumLayer(compiled(Device.load(file)), "noisy")
    file.unlink()
    assert_same(QuantumLayer.load(layer.save(tmp_path / "a")), layer)


@pytest.mark.parametrize(
    "engine",
    [
        "ideal",
        "noisy",
        "shots:64",
        Shots(77, seed=3, noisy=False),
        "noisy+readout+zne:linear:1,3",
        Mitigated(Shots(50, seed=2), [Readout("measured"), PauliTwirling(2, 5), ZNE((1, 3 + 1 / 3), "richardson")]),
    ],
)
def test_every_engine_comes_back(tmp_path: Path, manila: CompiledCircuit, engine: str | Engine) -> None:
    if isinstance(engine, Engine):
        layer = QuantumLayer(manila, engine)
        again = load_layer(layer.save(tmp_path))
        assert again.engine == layer.engine
        assert_same(again, layer)
    else:
        assert_same(load_layer(QuantumLayer(manila, engine).save(tmp_path)), QuantumLayer(manila, engine))


@pytest.mark.parametrize(
    "method",
    [
        ParameterShift(),
        SPSA(),
        SPSA(seed=4, repetitions=3, size=0.25),
        Surrogate(),
        Surrogate("ideal"),
        Surrogate(Mitigated("noisy", [Readout()])),
    ],
)
def test_every_gradient_method_comes_back(tmp_path: Path, manila: CompiledCircuit, method: GradientMethod) -> None:
    layer = QuantumLayer(manila, Shots(32, seed=9), gradient=method)
    again = load_layer(layer.save(tmp_path))
    assert type(again.gradient) is type(method)
    assert again.gradient == method
    assert_same(again, layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trains", [True, False])
def test_dtype_and_frozen_weights_come_back(
    tmp_path: Path, manila: CompiledCircuit, dtype: torch.dtype, trains: bool
) -> None:
    layer = QuantumLayer(manila, "noisy", dtype=dtype, seed=3).requires_grad_(trains)
    assert_same(load_layer(layer.save(tmp_path)), layer)
    double = QuantumLayer(manila, "noisy", seed=3).double().requires_grad_(trains)
    assert_same(load_layer(double.save(tmp_path)), double)


def test_mid_circuit_measurements_and_postselection_come_back(tmp_path: Path) -> None:
    x, w = Parameter("x"), Parameter("w")
    qc = QuantumCircuit(2, 2)
    qc.ry(x, 0)
    qc.cx(0, 1)
    qc.measure(1, 0)
    qc.reset(1)
    qc.rx(w, 0)
    made = compile_circuit(
        qc, Device.load("fake_manila"), inputs=[x], weights=[w], observables=[SparsePauliOp("IZ")], postselect={0: 1}
    )
    layer = QuantumLayer(made, "noisy")
    again = load_layer(layer.save(tmp_path))
    assert_same(again, layer)
    assert again.compiled.postselect == ((0, 1),)
    assert torch.equal(again.probability(inputs(again)), layer.probability(inputs(layer)))


def _unusual(kind: str) -> QuantumCircuit:
    x, w = Parameter("x"), Parameter("w")
    qc = QuantumCircuit(QuantumRegister(2, "some register"), global_phase=w / 3)
    qc.ry(x, 0)
    inner = QuantumCircuit(2, name="own gate!")
    inner.rxx(w, 0, 1)
    if kind == "unitary":
        qc.append(UnitaryGate(random_unitary(4, seed=3)), [0, 1])
    elif kind == "gate of one's own":
        qc.append(inner.to_gate(), [1, 0])
    elif kind == "controlled":
        qc.append(RYGate(w).control(1, ctrl_state=0), [1, 0])
    elif kind == "evolution":
        qc.append(PauliEvolutionGate(SparsePauliOp(["XX", "ZY"]), time=w), [0, 1])
    elif kind == "delay":
        qc.delay(1000, 0, "dt")
    elif kind == "bound":
        qc.rzz(w, 0, 1)
        qc = qc.assign_parameters({x: 0.3})
    qc.rx(w, 1)
    return qc


@pytest.mark.parametrize("kind", ["unitary", "gate of one's own", "controlled", "evolution", "delay", "bound"])
def test_whatever_compiles_can_be_saved(tmp_path: Path, kind: str) -> None:
    qc = _unusual(kind)
    x = [p for p in qc.parameters if p.name == "x"]
    w = [p for p in qc.parameters if p.name == "w"]
    observables = [SparsePauliOp("ZZ"), SparsePauliOp("YI")]
    scheduled = kind == "delay"
    made = compile_circuit(
        qc, Device.load("fake_manila"), inputs=x, weights=w, observables=observables, scheduled=scheduled
    )
    layer = QuantumLayer(made, "noisy", seed=2)
    again = load_layer(layer.save(tmp_path))
    assert_same(again, layer)
    moved = load_layer(tmp_path, device="fake_quito", engine="ideal")  # the circuit as written is still whole
    torch.testing.assert_close(
        moved.estimate(inputs(moved)).values, layer.with_engine("ideal").estimate(inputs(layer)).values
    )


@pytest.mark.parametrize("device", ["ideal", "fake_manila", "fake_marrakesh"])
def test_the_layout_comes_back_for_maps_on_states(tmp_path: Path, device: str) -> None:
    layer = QuantumLayer(compiled(device), "ideal")
    again = load_layer(layer.save(tmp_path))
    states = torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    states = states / states.norm(dim=1, keepdim=True)
    found = [
        Evolution(each.compiled, data=(2, 0), measured=(1,))(states, each.weight, inputs(each)[:3]).states
        for each in (layer, again)
    ]
    assert torch.equal(*found)


def test_the_folder_can_be_read_by_people_and_by_qiskit(tmp_path: Path, manila: CompiledCircuit) -> None:
    layer = QuantumLayer(manila, Shots(10, seed=3), gradient=SPSA(2))
    folder = layer.save(tmp_path / "deep" / "layer")
    assert {p.name for p in folder.iterdir()} == {
        "model.safetensors", "config.json", "circuit.qpy", "circuit.qasm", "isa.qpy", "isa.qasm", "device.json",
        SNAPSHOT,
    }  # fmt: skip
    assert not [p.name for p in folder.parent.iterdir() if p != folder], "nothing is left beside it"
    assert load_circuit(folder / "circuit.qpy") == circuit()
    config = json.loads((folder / "config.json").read_text())["layer"]
    assert config["engine"] == "shots:10:seed=3"
    assert config["gradient"] == {"method": "SPSA", "seed": 2, "repetitions": 1, "size": 0.1}
    assert config["compiled"]["weights"] == ["a", "last", "b", "θ"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert list(file.keys()) == ["weight"]
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    layer.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before, "equal contents are equal files"


class _OwnEngine(Engine):
    name, tried = "own", False

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        raise AssertionError


class _OwnMethod(ParameterShift):
    """A gradient method of somebody's own."""


class _OwnDevice(Device):
    """A device with a method of its own."""


def _by_hand(made: CompiledCircuit) -> dict[str, tuple[Callable[[], QuantumLayer], str]]:
    wrong = replace(made.device.snapshot, properties='{"qubits": []}')
    loose = Parameter("loose")
    return {
        "primitive": (
            lambda: QuantumLayer(made, Primitive(StatevectorEstimator(), reduced=True)),
            "engine 'primitive'",
        ),
        "engine": (lambda: QuantumLayer(made, _OwnEngine()), "engine 'own'"),
        "mitigated": (
            lambda: QuantumLayer(made, Mitigated(Primitive(StatevectorEstimator(), reduced=True), [Readout()])),
            r"engine 'primitive\+readout'",
        ),
        "method": (
            lambda: QuantumLayer(made, "noisy", gradient=_OwnMethod()),
            "gradient method .*layer.gradient = None",
        ),
        "seed": (
            lambda: QuantumLayer(made, "noisy", gradient=SPSA(np.random.SeedSequence(1))),  # type: ignore[arg-type]
            "gradient method",
        ),
        "device": (
            lambda: QuantumLayer(replace(made, device=_OwnDevice(made.device.snapshot))),
            r"made by hand.*_OwnDevice.*policy\.on\(device\)",
        ),
        "snapshot": (
            lambda: QuantumLayer(replace(made, device=Device(wrong))),
            "made by hand and cannot be saved: .*snapshot",
        ),
        "parameter": (
            lambda: QuantumLayer(replace(made, weights=(*made.weights, loose)), "shots:4"),
            "cannot be saved: 'loose'",
        ),
    }


@pytest.mark.parametrize(
    "what", ["primitive", "engine", "mitigated", "method", "seed", "device", "snapshot", "parameter"]
)
def test_what_cannot_be_made_again_is_refused(tmp_path: Path, manila: CompiledCircuit, what: str) -> None:
    make, message = _by_hand(manila)[what]
    layer = make()
    with pytest.raises(InvalidInputError, match=message):
        layer.save(tmp_path / "new")
    assert not list(tmp_path.iterdir()), "nothing was written"
    good = QuantumLayer(manila, "noisy")
    folder = good.save(tmp_path / "old")
    with pytest.raises(InvalidInputError, match=message):
        layer.save(folder)
    assert_same(load_layer(folder), good)


def test_what_the_message_says_helps(tmp_path: Path, manila: CompiledCircuit) -> None:
    layer = QuantumLayer(manila, Primitive(StatevectorEstimator(), reduced=True))
    with pytest.raises(InvalidInputError, match=r"layer\.with_engine\('noisy'\)"):
        layer.save(tmp_path)
    assert_same(load_layer(layer.with_engine("noisy").save(tmp_path)), QuantumLayer(manila, "noisy"))
    assert load_layer(tmp_path, engine=layer.engine).engine is layer.engine


@pytest.mark.parametrize("name", ["model.safetensors", "circuit.qpy", "isa.qpy", SNAPSHOT])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage", "another"])
def test_damage_is_found(tmp_path: Path, manila: CompiledCircuit, name: str, damage: str) -> None:
    folder = QuantumLayer(manila, "noisy").save(tmp_path / "layer")
    file = folder / name
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "garbage":
        file.write_bytes(b"nothing of the kind")
    else:  # whole files, but of another layer
        other = QuantumLayer(compiled("fake_quito", seed=3, weights=W, observables=OBSERVABLES[:2]), "ideal")
        save_circuit(circuit().inverse(), tmp_path / "other", "circuit")
        other.save(tmp_path / "layer2")
        shutil.copy(tmp_path / ("other" if name == "circuit.qpy" else "layer2") / name, file)
    with pytest.raises(
        DamagedFileError, match="not the file that was saved" if damage == "another" else name.split(".")[0]
    ):
        load_layer(folder)


def test_folders_that_are_no_layer(tmp_path: Path, manila: CompiledCircuit) -> None:
    from qhw_diffusion.checkpoints import load_module_state, save_module

    with pytest.raises(DamagedFileError, match="no saved model"):
        load_layer(tmp_path / "nothing")
    save_module(tmp_path / "linear", torch.nn.Linear(2, 2), {"kind": "other"})
    with pytest.raises(DamagedFileError, match="does not hold a quantum layer but 'other'"):
        load_layer(tmp_path / "linear")
    layer = QuantumLayer(manila, "noisy")
    folder = layer.save(tmp_path / "layer")
    _, config = load_module_state(folder)
    save_module(folder, layer, {**config, "format": 99})
    with pytest.raises(DamagedFileError, match="format version 99, this package reads 1"):
        load_layer(folder)
    for part in ("layer", "frozen"):
        save_module(folder, layer, {k: v for k, v in config.items() if k != part})
        with pytest.raises(DamagedFileError, match="whole quantum layer"):
            load_layer(folder)
    save_module(folder, torch.nn.ParameterDict({"weight": torch.zeros(2)}), config)
    with pytest.raises(DamagedFileError, match="size mismatch"):
        load_layer(folder)


def test_another_device_or_engine_that_does_not_exist(tmp_path: Path, manila: CompiledCircuit) -> None:
    folder = QuantumLayer(manila, "noisy").save(tmp_path)
    with pytest.raises(UnknownNameError, match="fake_manila"):
        load_layer(folder, device="fake_manilla")
    with pytest.raises(UnknownNameError, match="noisy"):
        load_layer(folder, engine="noisey")
    with pytest.raises(InvalidInputError, match="has no noise"):
        load_layer(folder, device="ideal")
