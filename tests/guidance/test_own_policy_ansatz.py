"""An ansatz of a user's own: counts, matched baseline, saving and loading follow from its circuit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrations import few_calibration_images  # noqa: F401 - for every test here
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits import POLICY_ANSATZES, policy_ansatz, policy_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, Classifier, ImageDataset
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.guidance import (
    GuidanceConfig,
    PolicyConfig,
    PPOConfig,
    QuantumPolicy,
    RewardConfig,
    build_policy,
    check_training,
    load_policy,
    quantum_parameters,
    train_guidance,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_policy_ansatz.py"
GUIDANCE = GuidanceConfig(n_steps=4, g0=1.5, g_max=3.5, noise_pool=20)
PPO = PPOConfig(num_iterations=1, num_envs=20, num_minibatches=2, update_epochs=1)


def many(n_features: int) -> QuantumCircuit:
    """Twelve weights under plain names, which Qiskit orders w0, w1, w10, w11, w2, …"""
    circuit = QuantumCircuit(3)
    for j in range(n_features):
        circuit.ry(Parameter(f"x{j}"), j % 3)
    for k in range(12):
        circuit.rx(Parameter(f"w{k}"), k % 3)
    return circuit


def named() -> tuple[Any, ...]:
    state, angles = [Parameter(f"s{j}") for j in range(6)], [Parameter("alpha"), Parameter("beta")]
    circuit = QuantumCircuit(2)
    for j, parameter in enumerate(state):
        circuit.ry(parameter, j % 2)
    circuit.rxx(angles[0], 0, 1)
    circuit.rz(angles[1], 0)
    circuit.rx(0.3, 0)
    return circuit, state, angles, [SparsePauliOp("ZZ"), SparsePauliOp("IZ"), SparsePauliOp("XI")]


def test_inputs_and_weights_are_told_apart_and_ordered_by_number() -> None:
    built = policy_ansatz(many)
    assert [p.name for p in built.weights] == [f"w{k}" for k in range(12)]
    assert [p.name for p in built.inputs] == [f"x{j}" for j in range(6)]
    assert (built.ansatz, built.n_qubits, built.depth, len(built.observables)) == ("many", 3, None, 3)
    own = policy_ansatz(named)
    assert [p.name for p in own.weights] == ["alpha", "beta"]
    assert len(own.observables) == 3
    assert policy_ansatz(lambda **settings: policy_circuit(**settings), depth=3).depth == 3
    paper = policy_ansatz("paper", depth=3, entanglement="chain")
    assert paper.circuit == policy_circuit(depth=3, entanglement="chain").circuit


def test_an_own_ansatz_becomes_a_built_in_one_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICY_ANSATZES, "many", many)
    built, own = policy_ansatz(PolicyConfig(ansatz="many").ansatz), policy_ansatz(many)
    assert built.circuit.count_ops() == own.circuit.count_ops()
    assert (built.ansatz, built.n_qubits, built.depth) == ("many", 3, None)
    assert [p.name for p in built.weights] == [p.name for p in own.weights]
    with pytest.raises(InvalidInputError, match="'many' has no parameter depth, so depth = 5 has no effect"):
        policy_ansatz("many", depth=5)


def test_counts_follow_from_the_circuit(manila: Device) -> None:
    config = PolicyConfig(output_scaling=True)
    for ansatz, weights, outputs in ((many, 12, 3), (named, 2, 3), (None, 24, 4)):
        policy = build_policy(config, device=manila, ansatz=ansatz)
        assert isinstance(policy, QuantumPolicy)
        assert policy.parameter_counts()["circuit"] == weights + 6 + outputs
        total = policy.parameter_counts()["total"]
        assert quantum_parameters(config, 6, ansatz) == total
        matched = build_policy(config.replace(kind="matched"), ansatz=ansatz).parameter_counts()["total"]
        assert abs(matched - total) < 30


def test_a_run_with_an_own_ansatz_is_loaded_without_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    shutil.copy(EXAMPLE, file)
    policy = PolicyConfig(ansatz=f"{file}:brickwork", depth=3, device="fake_manila")
    trained = train_guidance(GUIDANCE, PPO, RewardConfig(), policy, path=tmp_path / "run")
    file.unlink()
    loaded = load_policy(tmp_path / "run")
    assert loaded.policy_config.ansatz == f"{file}:brickwork"
    assert isinstance(loaded.policy, QuantumPolicy)
    assert loaded.policy.circuit.ansatz == f"{file}:brickwork"
    assert loaded.policy.circuit.depth == 3
    states = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.policy(states)[0], trained.policy(states)[0])
    ideal = load_policy(tmp_path / "run", engine="ideal").policy
    assert not torch.equal(ideal(states)[0], trained.policy(states)[0])


@pytest.mark.slow
def test_an_object_must_be_given_again(tmp_path: Path) -> None:
    settings: tuple[Any, ...] = (GUIDANCE, PPO, RewardConfig(), PolicyConfig(device="fake_manila"))

    def nested(n_features: int) -> QuantumCircuit:
        return many(n_features)

    trained = train_guidance(*settings, ansatz=nested, path=tmp_path / "run")
    assert trained.policy_config.ansatz == "object:nested"
    assert load_policy(tmp_path / "run").policy.parameter_counts() == trained.policy.parameter_counts()
    with pytest.raises(InvalidInputError, match="'nested' was passed as an object"):
        build_policy(trained.policy_config)
    with pytest.raises(InvalidInputError, match="ansatz"):
        train_guidance(*settings, path=tmp_path / "run", resume=True)
    train_guidance(*settings, ansatz=nested, path=tmp_path / "run", resume=True)
    by_name = train_guidance(*settings, ansatz=many)
    assert by_name.policy_config.ansatz == f"{__name__}:many"
    assert build_policy(by_name.policy_config).parameter_counts() == by_name.policy.parameter_counts()


def no_inputs() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.ry(Parameter("w0"), 0)
    return circuit


def no_weights(n_features: int) -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    for x in ParameterVector("x", n_features):
        circuit.ry(x, 0)
    return circuit


def three_inputs() -> QuantumCircuit:
    return many(3)


def stranger() -> QuantumCircuit:
    circuit = many(6)
    circuit.rz(Parameter("theta"), 0)
    return circuit


def left_out() -> tuple[Any, ...]:
    circuit, inputs, weights, _ = named()
    return circuit, inputs, weights[:1]


def measured() -> QuantumCircuit:
    circuit = many(6)
    circuit.measure_all()
    return circuit


def nothing() -> None:
    return None


def raises() -> QuantumCircuit:
    raise ValueError("no such gate")


@pytest.mark.parametrize(
    ("ansatz", "words"),
    [
        (no_inputs, "'no_inputs': the circuit has no inputs"),
        (no_weights, "'no_weights': the circuit has no weights"),
        (three_inputs, "'three_inputs': the circuit has 3 inputs, wanted: 6"),
        (stranger, "'stranger': parameter 'theta' is neither"),
        (left_out, "'left_out'.*wrong: beta"),
        (measured, "'measured' returned a circuit with 3 classical bits"),
        (nothing, "'nothing' returned a NoneType"),
        (raises, "'raises' raises ValueError: no such gate"),
    ],
)
def test_a_wrong_ansatz_is_refused_before_training(
    backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, ansatz: Any, words: str
) -> None:
    parts = {"backbone": backbone, "scorer": reward_classifier, "real": real, "ansatz": ansatz}
    with pytest.raises(InvalidInputError, match=words):
        check_training(GUIDANCE, PPO, RewardConfig(), PolicyConfig(), **parts)


def test_settings_that_an_ansatz_does_not_take_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'many' has no parameter depth"):
        policy_ansatz(many, depth=3)
    with pytest.raises(InvalidInputError, match="no parameter entanglement"):
        build_policy(PolicyConfig(kind="unentangled"), ansatz=many)
    with pytest.raises(UnknownNameError, match=r"did you mean paper.*module:name"):
        PolicyConfig(ansatz="papre")
    with pytest.raises(InvalidInputError, match=r"own_policy_ansatz.py has no 'bricks'; it has .*brickwork"):
        policy_ansatz(f"{EXAMPLE}:bricks")
