"""The lookup is the circuit exactly; the network is near it; both are saved and loaded like any policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion import diffusion, guidance
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import QuantumLayer, Shots, compile_circuit
from qhw_diffusion.guidance.distill import grid_angles, input_degrees


def _states(n: int = 300, features: int = 6, seed: int = 0) -> torch.Tensor:
    return 2.0 * torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _error(a: guidance.Policy, b: guidance.Policy, states: torch.Tensor) -> float:
    return float(max((x - y).abs().max() for x, y in zip(a(states), b(states), strict=True)))


def test_the_lookup_is_the_policy_under_noise(quantum: guidance.QuantumPolicy) -> None:
    """Also far outside the range of ± 2 the policy was calibrated for: a polynomial is known everywhere."""
    lookup = guidance.tabulate(quantum)
    assert lookup.table.shape == (3**6, 4)
    assert _error(quantum, lookup, _states()) < 1e-5
    assert not lookup.uses_circuit


@pytest.mark.parametrize("reuploading", [False, True])
def test_the_lookup_of_other_circuits(manila: Device, reuploading: bool) -> None:
    """A policy without noise, with output scaling; re-uploading encodes every feature twice: degree 2."""
    settings = guidance.PolicyConfig(n_qubits=3, gain=1.0, engine="ideal", output_scaling=True, reuploading=reuploading)
    policy = guidance.build_policy(settings, n_features=4, seed=1, device=manila)
    assert isinstance(policy, guidance.QuantumPolicy)
    assert policy.output_scale is not None
    with torch.no_grad():
        policy.output_scale.copy_(torch.tensor([0.5, 1.5, 2.0]))
        policy.input_scale.copy_(torch.tensor([1.3, 0.2, 2.0, 0.9]))
    lookup = guidance.tabulate(policy)
    assert lookup.degrees == ((2,) * 4 if reuploading else (1,) * 4)
    assert _error(policy, lookup, _states(features=4)) < 2e-5


def test_a_sampled_table_is_as_good_as_one_evaluation(quantum: guidance.QuantumPolicy) -> None:
    """The claimed property of the interpolation: mean squared error at any point = that of one estimate."""
    exact = quantum.expectations(_states(2000)).detach()
    moved = quantum.on(engine=Shots(100, seed=5))
    sampled = guidance.tabulate(moved).expectations(_states(2000))
    direct = moved.layer.estimate(moved.angles(_states(2000))).values
    ratio = float((sampled - exact).square().mean() / (direct - exact).square().mean())
    assert 0.7 < ratio < 1.4


def test_the_grid_has_the_last_input_fastest() -> None:
    grid = grid_angles((1, 0, 2))
    assert grid.shape == (15, 3)
    assert torch.allclose(grid[1], torch.tensor([0.0, 0.0, 2 * torch.pi / 5], dtype=torch.float64))


def test_what_no_table_holds_is_refused(manila: Device) -> None:
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(1)
    circuit.rx(0.5 * x, 0)
    circuit.ry(w, 0)
    compiled = compile_circuit(circuit, manila, inputs=[x], weights=[w], observables=[SparsePauliOp("Z")])
    with pytest.raises(InvalidInputError, match="whole number"):
        input_degrees(compiled)
    deep = guidance.PolicyConfig(n_qubits=4, depth=3, reuploading=True, engine="ideal")
    policy = guidance.build_policy(deep, device=Device.load("ideal"))
    assert isinstance(policy, guidance.QuantumPolicy)
    with pytest.raises(InvalidInputError, match=r"117,649 rows .* network"):
        guidance.tabulate(policy)
    with pytest.raises(InvalidInputError, match="only a quantum policy"):
        guidance.tabulate(guidance.MLPPolicy())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def visited(
    backbone: diffusion.Backbone,
    reward_classifier: diffusion.Classifier,
    config: guidance.GuidanceConfig,
    manila: Device,
) -> tuple[guidance.QuantumPolicy, torch.Tensor, torch.Tensor]:
    policy = guidance.build_policy(guidance.PolicyConfig(gain=1.0), seed=3, device=manila)
    assert isinstance(policy, guidance.QuantumPolicy)
    fit = guidance.explored_states(policy, config, backbone, reward_classifier, images=48, seed=1)
    return policy, fit, guidance.visited_states(policy, config, backbone, reward_classifier, images=48, seed=2)


def test_states_to_fit_on(visited: tuple[guidance.QuantumPolicy, torch.Tensor, torch.Tensor]) -> None:
    _, fit, heldout = visited
    assert fit.shape == (4 * 48 * 4, 6)
    assert heldout.shape == (48 * 4, 6)
    half = len(fit) // 2
    assert 0.23 < float((fit[half:] - fit[:half]).std()) < 0.27


@pytest.mark.slow
def test_the_network_learns_the_policy(
    visited: tuple[guidance.QuantumPolicy, torch.Tensor, torch.Tensor], config: guidance.GuidanceConfig
) -> None:
    policy, fit, heldout = visited
    network = guidance.fit_network(policy, fit, hidden=(32, 32), iterations=600)
    error = guidance.action_error(policy, network, heldout, config)
    untrained = guidance.action_error(policy, guidance.MLPPolicy((32, 32), gain=1.0), heldout, config)
    assert error.states == len(heldout)
    assert error.action_mean < 0.25 * error.action_spread
    assert error.action_mean < 0.2 * untrained.action_mean
    again = guidance.fit_network(policy, fit, hidden=(32, 32), iterations=600)
    assert _error(network, again, heldout) == 0.0


def test_errors_are_those_of_the_applied_action(config: guidance.GuidanceConfig) -> None:
    """A difference beyond the limit of the action, or of the scale, is no difference."""

    class Constant(guidance.Policy):
        n_features, action_dim = 6, 1

        def __init__(self, action: float) -> None:
            super().__init__()
            self.action = action

        def _outputs(self, obs: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[self.action, -1.0]]).expand(len(obs), 2)

    states = _states(10)
    beyond = guidance.action_error(Constant(5.0), Constant(9.0), states, config)
    assert (beyond.action_max, beyond.g_max) == (0.0, 0.0)
    below_zero = guidance.action_error(Constant(-1.6), Constant(-1.9), states, config)  # g0 = 1.5, g_min = 0
    assert below_zero.action_mean == pytest.approx(0.3)
    assert below_zero.g_mean == 0.0


@pytest.mark.parametrize("form", ["lookup", "network"])
def test_saved_and_loaded(quantum: guidance.QuantumPolicy, tmp_path: Path, form: str) -> None:
    if form == "lookup":
        stand_in: guidance.Policy = guidance.tabulate(quantum)
    else:
        stand_in = guidance.fit_network(quantum, _states(64), hidden=(8,), iterations=5)
    guidance.save_policy_model(stand_in, tmp_path)
    loaded = guidance.load_policy_model(tmp_path)
    assert type(loaded) is type(stand_in)
    assert _error(stand_in, loaded, _states()) == 0.0
    with pytest.raises(InvalidInputError, match="classical"):
        guidance.load_policy_model(tmp_path, engine="ideal")


def test_a_lookup_needs_no_layer(quantum: guidance.QuantumPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = guidance.tabulate(quantum)
    monkeypatch.setattr(QuantumLayer, "forward", lambda *_: pytest.fail("a circuit was evaluated"))
    monkeypatch.setattr(QuantumLayer, "estimate", lambda *_: pytest.fail("a circuit was evaluated"))
    assert lookup(_states(3))[0].shape == (3, 1)
