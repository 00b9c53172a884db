"""Actors on disk: what was built by hand comes back bit for bit, or is refused when it is saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor, nn

from qhw_diffusion import SPSA, Device, Mitigated, ParameterShift, Primitive, QuantumLayer, Shots, Surrogate
from qhw_diffusion.checkpoints import load_module_state, save_module
from qhw_diffusion.circuits import PolicyCircuit, policy_circuit, save_circuit
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.execution import GradientMethod, Noisy, compile_circuit
from qhw_diffusion.execution.saving import SNAPSHOT
from qhw_diffusion.guidance import Actor, MLPActor, QuantumActor, load_actor, save_actor, tabulate
from qhw_diffusion.guidance.actors import AnnealingActor
from qhw_diffusion.guidance.quantum_actor import compile_policy
from qhw_diffusion.mitigation import ZNE, Readout

SETTINGS: dict[str, Any] = {"n_qubits": 3, "depth": 1, "n_features": 3}


def actor_of(circuit: PolicyCircuit, device: Device, engine: Any = "noisy", **settings: Any) -> QuantumActor:
    layer = QuantumLayer(compile_policy(circuit, device), engine, seed=5, **settings)
    actor = QuantumActor(layer, circuit, hidden=(7, 5), gain=1.0, seed=6)
    with torch.no_grad():
        actor.input_scale += torch.tensor([0.1, -0.3, 0.7])  # so that the order of the inputs matters
    return actor


def own_circuit() -> PolicyCircuit:
    """Not one of `policy_circuit`'s, with the same counts of inputs, weights and observables."""
    x, w = ParameterVector("in", 3), ParameterVector("turn", 9)
    qc = QuantumCircuit(3, name="mine")
    for q in range(3):
        qc.h(q)
        qc.rz(2 * x[q], q)
        qc.ry(w[q] - w[q + 3] / 2, q)
        qc.rx(w[q + 6], q)
    qc.ccx(0, 1, 2)
    return PolicyCircuit(qc, tuple(x), tuple(w), policy_circuit(**SETTINGS).observables, 3, 1, 3, "mine", False)


OWN_OBSERVABLES = tuple(
    SparsePauliOp(labels, numbers)
    for labels, numbers in (("XXI", [1.0]), (["ZZZ", "IYI"], [0.3, 1 / 7]), ("IIZ", [2.0]))
)
CIRCUITS: dict[str, Callable[[], PolicyCircuit]] = {
    "as it comes": lambda: policy_circuit(**SETTINGS),
    "own observables": lambda: replace(policy_circuit(**SETTINGS), observables=OWN_OBSERVABLES),
    "observables in another order": lambda: replace(
        policy_circuit(**SETTINGS), observables=policy_circuit(**SETTINGS).observables[::-1]
    ),
    "inputs in another order": lambda: replace(
        policy_circuit(**SETTINGS), inputs=policy_circuit(**SETTINGS).inputs[::-1]
    ),
    "weights in another order": lambda: replace(
        policy_circuit(**SETTINGS), weights=policy_circuit(**SETTINGS).weights[::-1]
    ),
    "another circuit": own_circuit,
}
DEVICES: dict[str, Callable[[Path], Device]] = {
    "ideal": lambda folder: Device.load("ideal"),
    "fake": lambda folder: Device.load("fake_manila"),
    "fractional": lambda folder: Device.load("fake_marrakesh").with_fractional_gates(),
    "of a file": lambda folder: Device.load(Device.load("fake_quito").save(folder / "quito.json.gz")),
}


def states(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def answers(actor: Actor, obs: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of all that trains."""
    outputs = actor(obs)
    trained = [p for p in actor.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(sum(o.square().sum() for o in outputs), trained) if trained else ()  # type: ignore[arg-type]
    return [*outputs, *slopes]


def assert_same(again: Actor, actor: Actor, obs: Tensor) -> None:
    assert type(again) is type(actor)
    assert again.config() == actor.config()
    ours, theirs = dict(again.named_parameters()), dict(actor.named_parameters())
    assert {k: (v.dtype, v.requires_grad) for k, v in ours.items()} == {
        k: (v.dtype, v.requires_grad) for k, v in theirs.items()
    }
    assert {k: v.dtype for k, v in again.named_buffers()} == {k: v.dtype for k, v in actor.named_buffers()}
    for one, other in zip(answers(again, obs), answers(actor, obs), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", CIRCUITS)
def test_policies_built_by_hand_come_back(tmp_path: Path, manila: Device, name: str) -> None:
    actor = actor_of(CIRCUITS[name](), manila)
    again = load_actor(save_actor(actor, tmp_path / "a"))
    assert isinstance(again, QuantumActor)
    assert_same(again, actor, states())
    assert again.circuit.circuit == actor.circuit.circuit
    assert (again.circuit.inputs, again.circuit.weights) == (actor.circuit.inputs, actor.circuit.weights)
    assert again.circuit.observables == actor.circuit.observables
    assert_same(load_actor(save_actor(again, tmp_path / "b")), actor, states())
    if name != "as it comes":  # the test can fail: what the five settings describe is another policy
        plain = actor_of(policy_circuit(**SETTINGS), manila)
        assert not torch.allclose(plain(states())[0], actor(states())[0], atol=1e-3)


def test_the_layers_circuit_is_what_counts(tmp_path: Path, manila: Device) -> None:
    """A layer of another circuit than the one given beside it, of equal counts: the layer gives the numbers."""
    plain, own = policy_circuit(**SETTINGS), own_circuit()
    actor = QuantumActor(QuantumLayer(compile_policy(own, manila), "noisy"), plain)
    again = load_actor(save_actor(actor, tmp_path))
    assert isinstance(again, QuantumActor)
    assert_same(again, actor, states())
    assert again.circuit.circuit == own.circuit
    for device in (None, Device.load("fake_quito")):
        moved = load_actor(tmp_path, device=device, engine="ideal")
        assert_same(moved, actor.on(device, "ideal"), states())


@pytest.mark.parametrize("name", DEVICES)
def test_every_kind_of_device_comes_back(tmp_path: Path, name: str) -> None:
    device = DEVICES[name](tmp_path)
    actor = actor_of(own_circuit(), device, "ideal" if device.is_ideal else "noisy")
    again = load_actor(save_actor(actor, tmp_path / "model"))
    assert isinstance(again, QuantumActor)
    assert again.layer.compiled.device == device
    assert_same(again, actor, states())


def test_how_it_was_compiled_comes_back(tmp_path: Path, manila: Device) -> None:
    for settings in ({"scheduled": True}, {"seed": 11}, {"optimization_level": 0}):
        circuit = policy_circuit(**SETTINGS)
        layer = QuantumLayer(compile_policy(circuit, manila, **settings), "noisy")  # type: ignore[arg-type]
        actor = QuantumActor(layer, circuit)
        again = load_actor(save_actor(actor, tmp_path))
        assert isinstance(again, QuantumActor)
        assert again.layer.compiled.isa == layer.compiled.isa
        assert_same(again, actor, states())


@pytest.mark.parametrize(
    ("engine", "method"),
    [
        ("ideal", None),
        ("shots:64", None),
        (lambda: Shots(seed=3, noisy=False), None),
        (lambda: Shots(32, seed=4), ParameterShift()),
        (lambda: Shots(32, seed=4), SPSA(seed=2, repetitions=2, size=0.2)),
        (lambda: Shots(32, seed=4), Surrogate("noisy+readout")),
        ("noisy+readout", None),
        ("shots:50:seed=2:ideal+zne:linear:1,3", None),
        (lambda: Mitigated(Shots(50, seed=2), [Readout("measured"), ZNE((1, 3))]), ParameterShift()),
    ],
)
def test_engine_and_gradient_method_come_back(
    tmp_path: Path, manila: Device, engine: Any, method: GradientMethod | None
) -> None:
    actor = actor_of(own_circuit(), manila, engine if isinstance(engine, str) else engine(), gradient=method)
    again = load_actor(save_actor(actor, tmp_path))
    assert isinstance(again, QuantumActor)
    assert (again.layer.engine, again.layer.gradient) == (actor.layer.engine, actor.layer.gradient)
    assert_same(again, actor, states())
    with torch.no_grad():
        assert torch.equal(load_actor(tmp_path, engine="ideal")(states())[0], actor.on(engine="ideal")(states())[0])


def _frozen_head(actor: Actor) -> None:
    actor.get_submodule("head").requires_grad_(False)


def _frozen_first_weights(actor: Actor) -> None:
    next(actor.get_submodule("head").parameters()).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("freeze", [lambda actor: None, nn.Module.requires_grad_, _frozen_head, _frozen_first_weights])
@pytest.mark.parametrize("kind", ["quantum", "mlp", "annealing", "lookup"])
def test_dtype_and_what_is_frozen_come_back(
    tmp_path: Path, manila: Device, dtype: torch.dtype, freeze: Callable[[Actor], None], kind: str
) -> None:
    made: dict[str, Callable[[], Actor]] = {
        "quantum": lambda: actor_of(own_circuit(), manila),
        "mlp": lambda: MLPActor((5, 4), n_features=3, gain=1.0),
        "annealing": lambda: AnnealingActor((5, 4), n_features=7, gain=1.0),
        "lookup": lambda: tabulate(actor_of(policy_circuit(**SETTINGS), manila)),
    }
    actor = made[kind]().to(dtype)
    actor.requires_grad_(True)
    freeze(actor)
    obs = states(dtype) if kind != "annealing" else torch.cat([states(dtype)] * 3, 1)[:, :7]
    if freeze is nn.Module.requires_grad_:
        actor.requires_grad_(False)
    assert_same(load_actor(save_actor(actor, tmp_path)), actor, obs)
    if isinstance(actor, QuantumActor):  # moving is as faithful as saving
        assert_same(actor.on(), actor, obs)


def test_a_table_keeps_the_precision_of_its_policy(manila: Device, tmp_path: Path) -> None:
    actor = actor_of(policy_circuit(**SETTINGS), manila).double()
    table = tabulate(actor)
    assert table.table.dtype == torch.float64
    torch.testing.assert_close(table(states(torch.float64))[0], actor(states(torch.float64))[0], rtol=0, atol=1e-12)
    assert_same(load_actor(save_actor(table, tmp_path)), table, states(torch.float64))


def test_copies_are_copies(manila: Device) -> None:
    actor = actor_of(own_circuit(), manila)
    other = actor.on()
    with torch.no_grad():
        other.layer.weight += 1
        other.head.layers[0].weight += 1  # type: ignore[operator]
    assert not torch.equal(other.layer.weight, actor.layer.weight)
    assert not torch.equal(other.head.layers[0].weight, actor.head.layers[0].weight)  # type: ignore[arg-type]


class _OwnActor(MLPActor):
    def _outputs(self, obs: Tensor) -> Tensor:
        return 2 * super()._outputs(obs)


class _OwnQuantumActor(QuantumActor):
    def angles(self, obs: Tensor) -> Tensor:
        return obs.tanh() * self.input_scale


def _refused(manila: Device) -> dict[str, tuple[Callable[[], Actor], str]]:
    def changed(change: Callable[[QuantumActor], None]) -> Callable[[], Actor]:
        def make() -> Actor:
            actor = actor_of(own_circuit(), manila)
            change(actor)
            return actor

        return make

    def relu(actor: QuantumActor) -> None:
        actor.head.layers[1] = nn.ReLU()

    def wider(actor: QuantumActor) -> None:
        actor.head.layers[-1] = nn.Linear(5, 4)

    circuit = own_circuit()
    own = _OwnQuantumActor(QuantumLayer(compile_policy(circuit, manila)), circuit)
    return {
        "primitive": (
            lambda: actor_of(circuit, manila, Primitive(StatevectorEstimator())),
            r"actor\.on\(engine='noisy'\)",
        ),
        "subclass": (_OwnActor, "_OwnActor is none of the package's actors"),
        "quantum subclass": (lambda: own, "_OwnQuantumActor is none of"),
        "another activation": (changed(relu), "parts that its settings do not describe"),
        "another head": (changed(wider), "parts that its settings do not describe"),
    }


@pytest.mark.parametrize("what", ["primitive", "subclass", "quantum subclass", "another activation", "another head"])
def test_what_would_come_back_different_is_refused(tmp_path: Path, manila: Device, what: str) -> None:
    make, message = _refused(manila)[what]
    with pytest.raises(InvalidInputError, match=message):
        save_actor(make(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["circuit.qpy", "isa.qpy", SNAPSHOT])
@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_damage_is_found(tmp_path: Path, manila: Device, name: str, damage: str) -> None:
    folder = save_actor(actor_of(own_circuit(), manila), tmp_path / "model")
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    else:
        other = save_actor(actor_of(policy_circuit(**SETTINGS), Device.load("fake_quito")), tmp_path / "other")
        shutil.copy(other / name, folder / name)
    with pytest.raises(DamagedFileError, match=name):
        load_actor(folder)


# -- folders of format 1, written as this package wrote them before it saved circuits ---------------------------------


def first_format(actor: QuantumActor, folder: Path, **changes: Any) -> Path:
    circuit, compiled = actor.circuit, actor.layer.compiled
    save_circuit(circuit.circuit, folder, "circuit")
    save_circuit(compiled.isa, folder, "isa")
    compiled.device.save(folder / SNAPSHOT)
    names = ("n_qubits", "depth", "n_features", "entanglement", "reuploading")
    config = actor.config() | {"circuit": {name: getattr(circuit, name) for name in names}}
    config |= {"device": compiled.device.name, "transpile_seed": compiled.seed}
    config |= {"optimization_level": compiled.optimization_level, "scheduled": compiled.scheduled}
    return save_module(folder, actor, {**config, **changes})


@pytest.mark.parametrize("engine", ["ideal", "noisy", "shots:64", "noisy+readout"])
def test_a_policy_of_format_1_still_loads(tmp_path: Path, manila: Device, engine: str) -> None:
    actor = actor_of(policy_circuit(**SETTINGS), manila, engine)
    folder = first_format(actor, tmp_path / "old")
    assert_same(load_actor(folder), actor_of(policy_circuit(**SETTINGS), manila, engine), states())
    assert_same(
        load_actor(folder, device="fake_quito", engine="ideal"), actor.on(Device.load("fake_quito"), "ideal"), states()
    )
    _, config = load_module_state(save_actor(load_actor(folder), tmp_path / "new"))
    assert config["format"] == 2


def test_format_1_without_a_schedule_loads_too(tmp_path: Path, manila: Device) -> None:
    """The first folders did not say whether the circuit was scheduled: it was not."""
    actor = actor_of(policy_circuit(**SETTINGS), manila)
    folder = first_format(actor, tmp_path)
    state, config = load_module_state(folder)
    del config["scheduled"], state
    save_module(folder, actor, config)
    assert_same(load_actor(folder), actor, states())


def test_classical_actors_of_format_1_still_load(tmp_path: Path) -> None:
    actor = MLPActor((5, 4), n_features=3)
    assert_same(load_actor(save_module(tmp_path, actor, actor.config())), actor, states())


def test_what_format_1_did_not_hold_is_refused(tmp_path: Path, manila: Device) -> None:
    with pytest.raises(DamagedFileError, match=r"circuit\.qpy is not the circuit .*format version 1"):
        load_actor(first_format(actor_of(own_circuit(), manila), tmp_path / "own", circuit=SETTINGS))
    folder = first_format(actor_of(policy_circuit(**SETTINGS), manila), tmp_path / "primitive", engine="primitive")
    with pytest.raises(UnknownNameError, match=r"unknown engine 'primitive'.*give engine="):
        load_actor(folder)
    assert load_actor(folder, engine=Noisy())


def test_a_later_format_is_refused(tmp_path: Path, manila: Device) -> None:
    for actor in (MLPActor(), actor_of(own_circuit(), manila)):
        folder = save_actor(actor, tmp_path / actor.kind)
        _, config = load_module_state(folder)
        save_module(folder, actor, {**config, "format": 3})
        with pytest.raises(DamagedFileError, match="format version 3, this package reads 1 and 2"):
            load_actor(folder)
        save_module(folder, actor, {k: v for k, v in config.items() if k not in ("layer", "kind")})
        with pytest.raises(QhwError, match="whole actor"):
            load_actor(folder)


def test_two_circuits_on_one_layer_still_have_equal_counts(manila: Device) -> None:
    qc = QuantumCircuit(1)
    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    qc.ry(x[0], 0)
    qc.rx(w[0], 0)
    compiled = compile_circuit(qc, manila, inputs=list(x), weights=list(w), observables=[SparsePauliOp("Z")])
    with pytest.raises(InvalidInputError, match="compile this circuit"):
        QuantumActor(QuantumLayer(compiled), policy_circuit(**SETTINGS))
