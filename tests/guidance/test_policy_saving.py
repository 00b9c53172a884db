"""Policies on disk: what was built by hand comes back bit for bit, or is refused when it is saved."""

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
from qhw_diffusion.guidance import MLPPolicy, Policy, QuantumPolicy, load_policy_model, save_policy_model, tabulate
from qhw_diffusion.guidance.policies import AnnealingPolicy, compile_policy
from qhw_diffusion.mitigation import ZNE, Readout

SETTINGS: dict[str, Any] = {"n_qubits": 3, "depth": 1, "n_features": 3}


def policy_of(circuit: PolicyCircuit, device: Device, engine: Any = "noisy", **settings: Any) -> QuantumPolicy:
    layer = QuantumLayer(compile_policy(circuit, device), engine, seed=5, **settings)
    policy = QuantumPolicy(layer, circuit, hidden=(7, 5), gain=1.0, seed=6)
    with torch.no_grad():
        policy.input_scale += torch.tensor([0.1, -0.3, 0.7])  # so that the order of the inputs matters
    return policy


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


def answers(policy: Policy, obs: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of all that trains."""
    outputs = policy(obs)
    trained = [p for p in policy.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(sum(o.square().sum() for o in outputs), trained) if trained else ()  # type: ignore[arg-type]
    return [*outputs, *slopes]


def assert_same(again: Policy, policy: Policy, obs: Tensor) -> None:
    assert type(again) is type(policy)
    assert again.config() == policy.config()
    ours, theirs = dict(again.named_parameters()), dict(policy.named_parameters())
    assert {k: (v.dtype, v.requires_grad) for k, v in ours.items()} == {
        k: (v.dtype, v.requires_grad) for k, v in theirs.items()
    }
    assert {k: v.dtype for k, v in again.named_buffers()} == {k: v.dtype for k, v in policy.named_buffers()}
    for one, other in zip(answers(again, obs), answers(policy, obs), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", CIRCUITS)
def test_policies_built_by_hand_come_back(tmp_path: Path, manila: Device, name: str) -> None:
    policy = policy_of(CIRCUITS[name](), manila)
    again = load_policy_model(save_policy_model(policy, tmp_path / "a"))
    assert isinstance(again, QuantumPolicy)
    assert_same(again, policy, states())
    assert again.circuit.circuit == policy.circuit.circuit
    assert (again.circuit.inputs, again.circuit.weights) == (policy.circuit.inputs, policy.circuit.weights)
    assert again.circuit.observables == policy.circuit.observables
    assert_same(load_policy_model(save_policy_model(again, tmp_path / "b")), policy, states())
    if name != "as it comes":  # the test can fail: what the five settings describe is another policy
        plain = policy_of(policy_circuit(**SETTINGS), manila)
        assert not torch.allclose(plain(states())[0], policy(states())[0], atol=1e-3)


def test_the_layers_circuit_is_what_counts(tmp_path: Path, manila: Device) -> None:
    """A layer of another circuit than the one given beside it, of equal counts: the layer gives the numbers."""
    plain, own = policy_circuit(**SETTINGS), own_circuit()
    policy = QuantumPolicy(QuantumLayer(compile_policy(own, manila), "noisy"), plain)
    again = load_policy_model(save_policy_model(policy, tmp_path))
    assert isinstance(again, QuantumPolicy)
    assert_same(again, policy, states())
    assert again.circuit.circuit == own.circuit
    for device in (None, Device.load("fake_quito")):
        moved = load_policy_model(tmp_path, device=device, engine="ideal")
        assert_same(moved, policy.on(device, "ideal"), states())


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_every_kind_of_device_comes_back(tmp_path: Path, name: str) -> None:
    device = DEVICES[name](tmp_path)
    policy = policy_of(own_circuit(), device, "ideal" if device.is_ideal else "noisy")
    again = load_policy_model(save_policy_model(policy, tmp_path / "model"))
    assert isinstance(again, QuantumPolicy)
    assert again.layer.compiled.device == device
    assert_same(again, policy, states())


def test_how_it_was_compiled_comes_back(tmp_path: Path, manila: Device) -> None:
    for settings in ({"scheduled": True}, {"seed": 11}, {"optimization_level": 0}):
        circuit = policy_circuit(**SETTINGS)
        layer = QuantumLayer(compile_policy(circuit, manila, **settings), "noisy")  # type: ignore[arg-type]
        policy = QuantumPolicy(layer, circuit)
        again = load_policy_model(save_policy_model(policy, tmp_path))
        assert isinstance(again, QuantumPolicy)
        assert again.layer.compiled.isa == layer.compiled.isa
        assert_same(again, policy, states())


@pytest.mark.slow
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
    policy = policy_of(own_circuit(), manila, engine if isinstance(engine, str) else engine(), gradient=method)
    again = load_policy_model(save_policy_model(policy, tmp_path))
    assert isinstance(again, QuantumPolicy)
    assert (again.layer.engine, again.layer.gradient) == (policy.layer.engine, policy.layer.gradient)
    assert_same(again, policy, states())
    with torch.no_grad():
        assert torch.equal(
            load_policy_model(tmp_path, engine="ideal")(states())[0], policy.on(engine="ideal")(states())[0]
        )


def _frozen_head(policy: Policy) -> None:
    policy.get_submodule("head").requires_grad_(False)


def _frozen_first_weights(policy: Policy) -> None:
    next(policy.get_submodule("head").parameters()).requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("freeze", [lambda policy: None, nn.Module.requires_grad_, _frozen_head, _frozen_first_weights])
@pytest.mark.parametrize("kind", ["quantum", "mlp", "annealing", "lookup"])
def test_dtype_and_what_is_frozen_come_back(
    tmp_path: Path, manila: Device, dtype: torch.dtype, freeze: Callable[[Policy], None], kind: str
) -> None:
    made: dict[str, Callable[[], Policy]] = {
        "quantum": lambda: policy_of(own_circuit(), manila),
        "mlp": lambda: MLPPolicy((5, 4), n_features=3, gain=1.0),
        "annealing": lambda: AnnealingPolicy((5, 4), n_features=7, gain=1.0),
        "lookup": lambda: tabulate(policy_of(policy_circuit(**SETTINGS), manila)),
    }
    policy = made[kind]().to(dtype)
    policy.requires_grad_(True)
    freeze(policy)
    obs = states(dtype) if kind != "annealing" else torch.cat([states(dtype)] * 3, 1)[:, :7]
    if freeze is nn.Module.requires_grad_:
        policy.requires_grad_(False)
    assert_same(load_policy_model(save_policy_model(policy, tmp_path)), policy, obs)
    if isinstance(policy, QuantumPolicy):  # moving is as faithful as saving
        assert_same(policy.on(), policy, obs)


def test_a_table_keeps_the_precision_of_its_policy(manila: Device, tmp_path: Path) -> None:
    policy = policy_of(policy_circuit(**SETTINGS), manila).double()
    table = tabulate(policy)
    assert table.table.dtype == torch.float64
    torch.testing.assert_close(table(states(torch.float64))[0], policy(states(torch.float64))[0], rtol=0, atol=1e-12)
    assert_same(load_policy_model(save_policy_model(table, tmp_path)), table, states(torch.float64))


def test_copies_are_copies(manila: Device) -> None:
    policy = policy_of(own_circuit(), manila)
    other = policy.on()
    with torch.no_grad():
        other.layer.weight += 1
        other.head.layers[0].weight += 1  # type: ignore[operator]
    assert not torch.equal(other.layer.weight, policy.layer.weight)
    assert not torch.equal(other.head.layers[0].weight, policy.head.layers[0].weight)  # type: ignore[arg-type]


class _OwnActor(MLPPolicy):
    def _outputs(self, obs: Tensor) -> Tensor:
        return 2 * super()._outputs(obs)


class _OwnQuantumPolicy(QuantumPolicy):
    def angles(self, obs: Tensor) -> Tensor:
        return obs.tanh() * self.input_scale


def _refused(manila: Device) -> dict[str, tuple[Callable[[], Policy], str]]:
    def changed(change: Callable[[QuantumPolicy], None]) -> Callable[[], Policy]:
        def make() -> Policy:
            policy = policy_of(own_circuit(), manila)
            change(policy)
            return policy

        return make

    def relu(policy: QuantumPolicy) -> None:
        policy.head.layers[1] = nn.ReLU()

    def wider(policy: QuantumPolicy) -> None:
        policy.head.layers[-1] = nn.Linear(5, 4)

    circuit = own_circuit()
    own = _OwnQuantumPolicy(QuantumLayer(compile_policy(circuit, manila)), circuit)
    return {
        "primitive": (
            lambda: policy_of(circuit, manila, Primitive(StatevectorEstimator())),
            r"policy\.on\(engine='noisy'\)",
        ),
        "subclass": (_OwnActor, "_OwnActor is none of the package's policies"),
        "quantum subclass": (lambda: own, "_OwnQuantumPolicy is none of"),
        "another activation": (changed(relu), "parts that its settings do not describe"),
        "another head": (changed(wider), "parts that its settings do not describe"),
    }


@pytest.mark.parametrize("what", ["primitive", "subclass", "quantum subclass", "another activation", "another head"])
def test_what_would_come_back_different_is_refused(tmp_path: Path, manila: Device, what: str) -> None:
    make, message = _refused(manila)[what]
    with pytest.raises(InvalidInputError, match=message):
        save_policy_model(make(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["circuit.qpy", "isa.qpy", SNAPSHOT])
@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_damage_is_found(tmp_path: Path, manila: Device, name: str, damage: str) -> None:
    folder = save_policy_model(policy_of(own_circuit(), manila), tmp_path / "model")
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    else:
        other = save_policy_model(policy_of(policy_circuit(**SETTINGS), Device.load("fake_quito")), tmp_path / "other")
        shutil.copy(other / name, folder / name)
    with pytest.raises(DamagedFileError, match=name):
        load_policy_model(folder)


# -- folders of format 1, written as this package wrote them before it saved circuits ---------------------------------


def first_format(policy: QuantumPolicy, folder: Path, **changes: Any) -> Path:
    circuit, compiled = policy.circuit, policy.layer.compiled
    save_circuit(circuit.circuit, folder, "circuit")
    save_circuit(compiled.isa, folder, "isa")
    compiled.device.save(folder / SNAPSHOT)
    names = ("n_qubits", "depth", "n_features", "entanglement", "reuploading")
    config = policy.config() | {"circuit": {name: getattr(circuit, name) for name in names}}
    config |= {"device": compiled.device.name, "transpile_seed": compiled.seed}
    config |= {"optimization_level": compiled.optimization_level, "scheduled": compiled.scheduled}
    return save_module(folder, policy, {**config, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ideal", "noisy", "shots:64", "noisy+readout"])
def test_a_policy_of_format_1_still_loads(tmp_path: Path, manila: Device, engine: str) -> None:
    policy = policy_of(policy_circuit(**SETTINGS), manila, engine)
    folder = first_format(policy, tmp_path / "old")
    assert_same(load_policy_model(folder), policy_of(policy_circuit(**SETTINGS), manila, engine), states())
    assert_same(
        load_policy_model(folder, device="fake_quito", engine="ideal"),
        policy.on(Device.load("fake_quito"), "ideal"),
        states(),
    )
    _, config = load_module_state(save_policy_model(load_policy_model(folder), tmp_path / "new"))
    assert config["format"] == 3


def test_format_1_without_a_schedule_loads_too(tmp_path: Path, manila: Device) -> None:
    """The first folders did not say whether the circuit was scheduled: it was not."""
    policy = policy_of(policy_circuit(**SETTINGS), manila)
    folder = first_format(policy, tmp_path)
    state, config = load_module_state(folder)
    del config["scheduled"], state
    save_module(folder, policy, config)
    assert_same(load_policy_model(folder), policy, states())


def test_classical_actors_of_format_1_still_load(tmp_path: Path) -> None:
    policy = MLPPolicy((5, 4), n_features=3)
    assert_same(load_policy_model(save_module(tmp_path, policy, policy.config())), policy, states())


def test_what_format_1_did_not_hold_is_refused(tmp_path: Path, manila: Device) -> None:
    with pytest.raises(DamagedFileError, match=r"circuit\.qpy is not the circuit .*format version 1"):
        load_policy_model(first_format(policy_of(own_circuit(), manila), tmp_path / "own", circuit=SETTINGS))
    folder = first_format(policy_of(policy_circuit(**SETTINGS), manila), tmp_path / "primitive", engine="primitive")
    with pytest.raises(UnknownNameError, match=r"unknown engine 'primitive'.*give engine="):
        load_policy_model(folder)
    assert load_policy_model(folder, engine=Noisy())


def test_a_later_format_is_refused(tmp_path: Path, manila: Device) -> None:
    for policy in (MLPPolicy(), policy_of(own_circuit(), manila)):
        folder = save_policy_model(policy, tmp_path / policy.kind)
        _, config = load_module_state(folder)
        save_module(folder, policy, {**config, "format": 4})
        with pytest.raises(DamagedFileError, match="format version 4, this package reads 1 and 2 and 3"):
            load_policy_model(folder)
        save_module(folder, policy, {k: v for k, v in config.items() if k not in ("layer", "kind")})
        with pytest.raises(QhwError, match="whole policy"):
            load_policy_model(folder)


def test_two_circuits_on_one_layer_still_have_equal_counts(manila: Device) -> None:
    qc = QuantumCircuit(1)
    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    qc.ry(x[0], 0)
    qc.rx(w[0], 0)
    compiled = compile_circuit(qc, manila, inputs=list(x), weights=list(w), observables=[SparsePauliOp("Z")])
    with pytest.raises(InvalidInputError, match="compile this circuit"):
        QuantumPolicy(QuantumLayer(compiled), policy_circuit(**SETTINGS))
