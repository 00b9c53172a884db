from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

from qhw_diffusion import guidance
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Primitive, QuantumLayer, Shots, runtime_estimator
from qhw_diffusion.guidance import (
    MLPPolicy,
    PolicyConfig,
    QuantumPolicy,
    build_policy,
    load_policy_model,
    quantum_parameters,
    save_policy_model,
)
from qhw_diffusion.guidance.policies import GaussianHead, mlp_parameters


def states(n: int = 16, features: int = 6) -> torch.Tensor:
    return 0.5 * torch.randn(n, features, generator=torch.Generator().manual_seed(0))


def test_published_parameter_counts(quantum: QuantumPolicy) -> None:
    assert MLPPolicy().parameter_counts() == {"circuit": 0, "head": 9282, "total": 9282}
    counts = quantum.parameter_counts()
    assert counts == {"circuit": 24 + 6, "head": 2466, "total": 2496}
    assert quantum_parameters(PolicyConfig(), 6) == counts["total"]


@pytest.mark.parametrize("settings", [{}, {"n_qubits": 6, "depth": 3}, {"output_scaling": True}, {"n_qubits": 8}])
@pytest.mark.parametrize("features", [6, 7])
def test_matched_mlp_has_the_quantum_actors_count(settings: dict[str, int], features: int) -> None:
    config = PolicyConfig(kind="quantum", device="ideal", engine="ideal", **settings)
    real = build_policy(config, n_features=features).parameter_counts()["total"]
    assert quantum_parameters(config, features) == real
    matched = build_policy(config.replace(kind="matched"), n_features=features)
    count = matched.parameter_counts()["total"]
    assert count == sum(p.numel() for p in matched.parameters())
    assert abs(count - real) <= 0.002 * real
    assert isinstance(matched, MLPPolicy)
    first, second = matched.hidden
    assert 1 <= first / second <= 4  # no crippled shape


def test_mlp_parameters_by_counting() -> None:
    head = GaussianHead([5, 7, 3], 2, torch.Generator(), initial_std=1.0, gain=1.0)
    assert mlp_parameters([5, 7, 3, 4]) == sum(p.numel() for p in head.parameters())


@pytest.mark.parametrize("kind", guidance.POLICY_KINDS)
def test_every_kind_acts(kind: str, manila: Device) -> None:
    features = 7 if kind == "annealing" else 6
    policy = build_policy(PolicyConfig(kind=kind), n_features=features, device=manila, seed=1)
    mean, log_std = policy(states(16, features))
    assert mean.shape == log_std.shape == (16, 1)
    quiet = build_policy(PolicyConfig(kind=kind, gain=0.01, initial_std=0.5), n_features=features, device=manila)
    assert quiet(states(16, features))[0].abs().max() < 0.05  # a small gain starts at ΔCFG = 0 …
    torch.testing.assert_close(  # … with the σ asked for
        quiet(states(16, features))[1].exp(), torch.full((16, 1), 0.5), rtol=0.05, atol=0.0
    )
    assert mean.std() > 0
    again = build_policy(PolicyConfig(kind=kind), n_features=features, device=manila, seed=1)
    assert torch.equal(again(states(16, features))[0], mean)
    assert policy.circuits_per_state == int(kind in guidance.QUANTUM_KINDS)


def test_log_std_is_clamped() -> None:
    policy = MLPPolicy(hidden=(4, 4))
    last = policy.head.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    for bias, expected in ((50.0, 2.0), (-50.0, -20.0)):
        torch.nn.init.constant_(last.bias, bias)
        assert (policy(states())[1] == expected).all()


@torch.no_grad()
def test_sampling_and_densities_against_torch_distributions() -> None:
    policy = MLPPolicy(action_dim=2, gain=1.0)
    action, log_prob, mean = policy.sample(states(4000), torch.Generator().manual_seed(0))
    mu, log_std = policy(states(4000))
    normal = torch.distributions.Normal(mu, log_std.exp())
    torch.testing.assert_close(mean, mu)
    torch.testing.assert_close(log_prob, normal.log_prob(action).sum(1), rtol=1e-4, atol=1e-4)
    got, entropy = policy.evaluate(states(4000), action)
    torch.testing.assert_close(got, normal.log_prob(action).sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropy, normal.entropy().sum(1))
    z = (action - mu) / log_std.exp()
    assert abs(float(z.mean())) < 0.05
    assert abs(float(z.std()) - 1) < 0.05


def test_gradient_against_finite_differences(manila: Device) -> None:
    """Through scaling, circuit under noise and head, in double precision."""
    policy = build_policy(PolicyConfig(gain=1.0, output_scaling=True), seed=2, device=manila).double()
    assert isinstance(policy, QuantumPolicy)
    obs = states(3).double()

    def value() -> torch.Tensor:
        mean, log_std = policy(obs)
        return (mean.sin() + 0.3 * log_std).sum()

    value().backward()
    for parameter in (policy.layer.weight, policy.input_scale, policy.output_scale):
        assert parameter is not None
        for index in (0, parameter.numel() - 1):
            with torch.no_grad():
                shifted = []
                for step in (1e-5, -2e-5):
                    parameter.view(-1)[index] += step
                    shifted.append(float(value()))
                parameter.view(-1)[index] += 1e-5
            assert parameter.grad is not None
            assert float(parameter.grad.view(-1)[index]) == pytest.approx(
                (shifted[0] - shifted[1]) / 2e-5, rel=1e-4, abs=1e-8
            )


def test_kinds_differ_in_what_they_should(manila: Device, quantum: QuantumPolicy) -> None:
    frozen = build_policy(PolicyConfig(kind="frozen", gain=1.0), seed=3, device=manila)
    assert isinstance(frozen, QuantumPolicy)
    assert frozen.parameter_counts()["circuit"] == 0
    assert not frozen.layer.weight.requires_grad
    assert not frozen.input_scale.requires_grad
    assert torch.equal(frozen(states())[0], quantum(states())[0])  # the same start, only not trained
    unentangled = build_policy(PolicyConfig(kind="unentangled"), seed=3, device=manila)
    assert isinstance(unentangled, QuantumPolicy)
    assert unentangled.layer.compiled.two_qubit_gates == 0
    assert quantum.layer.compiled.two_qubit_gates > 0
    with pytest.raises(InvalidInputError, match="seventh state entry"):
        build_policy(PolicyConfig(kind="annealing"), n_features=6)


def test_annealing_actor_sees_time_and_guidance_norm_only() -> None:
    policy = build_policy(PolicyConfig(kind="annealing", gain=1.0), n_features=7)
    obs = states(8, 7)
    base = policy(obs)[0]
    for j in range(7):
        moved = obs.clone()
        moved[:, j] += 1.0
        changed = not torch.equal(policy(moved)[0], base)
        assert changed == (j in (0, 6))


def test_the_wrong_state_is_refused(quantum: QuantumPolicy) -> None:
    for policy in (quantum, MLPPolicy()):
        with pytest.raises(InvalidInputError, match="states"):
            policy(states(4, 5))


def test_saved_and_loaded(quantum: QuantumPolicy, tmp_path: Path) -> None:
    with torch.no_grad():
        quantum.layer.weight += 0.1
    for name, policy, obs in (
        ("q", quantum, states()),
        ("m", MLPPolicy(hidden=(9, 5), seed=4), states()),
        ("a", build_policy(PolicyConfig(kind="annealing"), n_features=7), states(16, 7)),
    ):
        folder = save_policy_model(policy, tmp_path / name)
        again = load_policy_model(folder)
        assert type(again) is type(policy)
        assert again.config() == policy.config()
        assert torch.equal(again(obs)[0], policy(obs)[0])
        assert {"model.safetensors", "config.json"} <= {p.name for p in folder.iterdir()}
    files = {p.name for p in (tmp_path / "q").iterdir()}
    assert {"circuit.qpy", "circuit.qasm", "isa.qpy", "device.json", "device.snapshot.json.gz"} <= files
    summary = json.loads((tmp_path / "q" / "device.json").read_text())
    assert summary["name"] == "fake_manila"
    assert len(summary["physical_qubits"]) == 4


def test_the_same_policy_on_another_device_and_engine(quantum: QuantumPolicy, tmp_path: Path, manila: Device) -> None:
    """Weights unchanged, circuit compiled anew: ideal engines agree on every device, noise differs."""
    save_policy_model(quantum, tmp_path)
    ideal = {
        name: load_policy_model(tmp_path, device=name, engine="ideal")
        for name in ("ideal", "fake_manila", "fake_quito")
    }
    noisy = load_policy_model(tmp_path, device="fake_quito")
    obs = states()
    for policy in (*ideal.values(), noisy):
        assert isinstance(policy, QuantumPolicy)
        assert torch.equal(policy.layer.weight, quantum.layer.weight)
    for policy in ideal.values():
        torch.testing.assert_close(policy(obs)[0], ideal["ideal"](obs)[0], rtol=1e-4, atol=1e-5)
    assert isinstance(noisy, QuantumPolicy)
    assert noisy.layer.compiled.device.name == "fake_quito"
    assert (noisy(obs)[0] - quantum(obs)[0]).abs().max() > 1e-4
    moved = quantum.on(engine="ideal")
    torch.testing.assert_close(moved(obs)[0], ideal["ideal"](obs)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(UnknownNameError):
        load_policy_model(tmp_path, engine="noisey")


def test_damaged_and_misused_folders(quantum: QuantumPolicy, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError):
        load_policy_model(tmp_path / "nothing")
    save_policy_model(MLPPolicy(), tmp_path / "m")
    with pytest.raises(InvalidInputError, match="classical"):
        load_policy_model(tmp_path / "m", engine="ideal")
    save_policy_model(quantum, tmp_path / "q")
    other = build_policy(PolicyConfig(depth=3), device=quantum.layer.compiled.device)
    save_policy_model(other, tmp_path / "other")
    (tmp_path / "q" / "circuit.qpy").write_bytes((tmp_path / "other" / "circuit.qpy").read_bytes())
    with pytest.raises(DamagedFileError, match=r"circuit\.qpy"):
        load_policy_model(tmp_path / "q")
    weights = tmp_path / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(DamagedFileError):
        load_policy_model(tmp_path / "other")


def test_a_layer_of_another_circuit_is_refused(quantum: QuantumPolicy, manila: Device) -> None:
    other = build_policy(PolicyConfig(depth=1), device=manila)
    assert isinstance(other, QuantumPolicy)
    with pytest.raises(InvalidInputError, match="compile this circuit"):
        QuantumPolicy(QuantumLayer(other.layer.compiled, "ideal"), quantum.circuit)


@pytest.mark.slow
def test_the_same_policy_with_shots_and_on_a_fake_backends_primitive(quantum: QuantumPolicy, tmp_path: Path) -> None:
    """One argument moves a trained policy from the exact simulation to finite shots and to an Estimator primitive.

    The layer's values are compared in units of their standard errors: at most 5 of them (false alarms below 1e-4 for
    the 2·64 values).
    """
    obs = states()
    exact = quantum.layer.estimate(obs).values
    estimator = runtime_estimator(FakeManilaV2(), options={"simulator": {"seed_simulator": 3}}, legacy=True)
    for engine in (Shots(4096, seed=2), Primitive(estimator, precision=1 / 64)):
        moved = quantum.on(engine=engine)
        estimate = moved.layer.estimate(obs)
        assert ((estimate.values - exact).abs() <= 5 * estimate.std_errors + 1e-6).all()
        with torch.no_grad():
            assert (moved(obs)[0] - quantum(obs)[0]).abs().max() < 0.5
        assert moved.layer.usage.shots > 0
    save_policy_model(quantum.on(engine="shots:256"), tmp_path / "shots")
    again = load_policy_model(tmp_path / "shots")
    assert isinstance(again, QuantumPolicy)
    assert again.layer.engine == Shots(256)
    with pytest.raises(InvalidInputError, match=r"'primitive'.*cannot be saved.*policy\.on\(engine='noisy'\)"):
        save_policy_model(quantum.on(engine=Primitive(estimator)), tmp_path / "primitive")
    assert not (tmp_path / "primitive").exists()


def test_a_scheduled_policy_keeps_its_delays(tmp_path: Path) -> None:
    policy = build_policy(PolicyConfig(device="fake_manila", scheduled=True))
    save_policy_model(policy, tmp_path)
    again = load_policy_model(tmp_path)
    assert isinstance(policy, QuantumPolicy)
    assert isinstance(again, QuantumPolicy)
    assert again.layer.compiled.isa.count_ops()["delay"] > 0
    obs = states()
    assert torch.equal(policy(obs)[0], again(obs)[0])
    plain = build_policy(PolicyConfig(device="fake_manila"))
    assert (policy(obs)[0] - plain(obs)[0]).abs().max() > 1e-6, "waiting qubits relax"
    assert load_policy_model(tmp_path, device="ideal", engine="ideal")
