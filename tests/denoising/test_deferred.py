"""The whole reverse process as one circuit: equal to step by step, to Aer under noise; error bars that cover."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Statevector

from qhw_diffusion.circuits import deferred_circuit, preparation_angles, reverse_circuit
from qhw_diffusion.denoising import (
    QDM,
    RECONSTRUCTION,
    AmplitudeQDM,
    ClassicalDenoiser,
    DensityMatrixQDM,
    EnsembleQDM,
    ForwardConfig,
    LatentQDM,
    ReverseConfig,
    images_from_counts,
)
from qhw_diffusion.denoising.deferred import DenoiserLayer, compile_deferred
from qhw_diffusion.denoising.quotient import quotient_of
from qhw_diffusion.errors import InvalidInputError, MemoryBudgetError
from qhw_diffusion.execution import SPSA, Primitive, Shots
from qhw_diffusion.execution.measurement import with_readout_errors, z_signs
from qhw_diffusion.execution.primitive import aer_estimator
from qhw_diffusion.hardware.local import aer_simulator, on_qubits


def config(**changes: Any) -> ReverseConfig:
    return ReverseConfig(**{"n_qubits": 2, "n_steps": 2, "depth": 1, "init_scale": 1.0, **changes})


def amplitude(forward: ForwardConfig | None = None, **changes: Any) -> AmplitudeQDM:
    return AmplitudeQDM(config(**changes), forward, image_shape=(1, 2, 2))


def starts_of(model: QDM, count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor | None]:
    n_labels = model.reverse.config.n_labels
    generator = torch.Generator().manual_seed(seed)
    starts = model.forward_process.prior(count, model.dim, generator, torch.complex128)
    return starts, torch.arange(count) % n_labels if n_labels > 1 else None


# -- the circuit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_preparation_makes_any_state(k: int) -> None:
    """Also zeros, real states and a basis state; with as many CNOTs as Möttönen's sequences leave."""
    rng = np.random.default_rng(k)
    states = rng.normal(size=(4, 2**k)) + 1j * rng.normal(size=(4, 2**k))
    states[1, 0], states[2], states[3] = 0, states[2].real, 0
    states[3, -1] = 1j
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    step = reverse_circuit(k, 1, depth=1)
    made = deferred_circuit(step, 1)
    angles = preparation_angles(states)
    assert angles.shape == (4, 2 * (2**k - 1))
    bare = QuantumCircuit(*made.circuit.qregs)
    for instruction in made.circuit.data:
        if set(instruction.params) & set(made.weights):
            break
        bare.append(instruction)
    assert bare.count_ops().get("cx", 0) == sum(2 * (2**c - 1) for c in range(k))
    for state, row in zip(states, angles, strict=True):
        bound = bare.assign_parameters(dict(zip(made.inputs, row, strict=True)))
        prepared = Statevector(bound).data[: 2**k]
        assert abs(np.vdot(prepared, state)) == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["per_step", "time_embedding", "hypernetwork"])
@pytest.mark.parametrize("conditioning", ["none", "qubits", "angles", "weights"])
@pytest.mark.parametrize("kind", ["postselected", "reset"])
def test_it_is_the_step_by_step_simulation(kind: str, conditioning: str, sharing: str) -> None:
    labels = 1 if conditioning == "none" else 3
    _agrees(amplitude(kind=kind, conditioning=conditioning, weight_sharing=sharing, n_labels=labels))


@pytest.mark.parametrize("model", [
    lambda: amplitude(kind="unitary", ancillas=0),
    lambda: amplitude(ForwardConfig(complex=False)),
    lambda: amplitude(ansatz="cz", outer=1, n_steps=1, ancillas=2),
    lambda: AmplitudeQDM(config(n_qubits=1, n_steps=3), image_shape=(1, 1, 2)),
    lambda: DensityMatrixQDM(config()),
    lambda: DensityMatrixQDM(config(kind="reset", n_qubits=1, ancillas=2)),
    lambda: EnsembleQDM(config()),
])  # fmt: skip
def test_other_models_and_priors(model: Any) -> None:
    """Mixed priors are purified: I/d of two qubits by two more."""
    _agrees(model())


def _agrees(model: QDM) -> None:
    model.reverse.double()
    starts, labels = starts_of(model, 4)
    with torch.no_grad():
        chain = model.reverse.run(starts, labels)
        layer = model.as_layer()
        probabilities, success = layer(starts, labels)
    expected = model.reverse.outcome_probabilities(chain.states)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(success, chain.probability.double(), rtol=0, atol=1e-10)
    found = layer.estimate(starts, labels)
    torch.testing.assert_close(found.read.probabilities, expected, rtol=0, atol=1e-10)
    assert not found.read.success_errors.any()
    if isinstance(model, AmplitudeQDM):
        assert found.images is not None
        torch.testing.assert_close(found.images.images, model.images(chain.states).float(), rtol=0, atol=1e-5)
        assert not found.images.std_errors.any()


def test_a_mixed_start_of_any_rank() -> None:
    model = DensityMatrixQDM(config(kind="postselected", n_steps=1)).double()
    generator = torch.Generator().manual_seed(4)
    factors = torch.randn(3, 4, 2, generator=generator, dtype=torch.complex128)
    states = factors @ factors.mH
    states = states / torch.einsum("bii->b", states).real[:, None, None]
    with torch.no_grad():
        chain, (probabilities, success) = model.reverse.run(states), model.as_layer()(states)
    torch.testing.assert_close(probabilities, model.reverse.outcome_probabilities(chain.states), rtol=0, atol=1e-9)
    torch.testing.assert_close(success, chain.probability.double(), rtol=0, atol=1e-9)
    with pytest.raises(InvalidInputError, match="prior is pure"):
        amplitude().as_layer().estimate(states)


def test_with_noise_it_is_aer_s_density_matrix() -> None:
    """The same ISA circuit, with asymmetric readout errors applied to Aer's outcome probabilities, post-selected."""
    model = amplitude(conditioning="angles", n_labels=2)
    starts, labels = starts_of(model, 2)
    layer = model.as_layer("fake_manila", "noisy").double()
    found = layer.estimate(starts, labels).read
    compiled = layer.compiled
    circuit, observables = on_qubits(compiled.isa, compiled.observables, compiled.physical_qubits)
    simulator = aer_simulator(compiled.device, compiled.physical_qubits, scheduled=False)
    simulator.set_options(method="density_matrix")
    circuit.save_density_matrix()
    readout = [compiled.device.readout_error(q) for q in compiled.physical_qubits]
    diagonals = np.array([np.diag(o.to_matrix()).real for o in observables])
    rows = torch.cat([layer.inputs(starts, labels), layer.layer.weight.detach().expand(2, -1)], 1).numpy()
    parameters = (*compiled.inputs, *compiled.weights)
    for b, row in enumerate(rows):
        bound = circuit.assign_parameters(
            {p: v for p, v in zip(parameters, row, strict=True) if p in circuit.parameters}
        )
        matrix = np.asarray(simulator.run(bound).result().data()["density_matrix"])
        read = with_readout_errors(np.diag(matrix).real[None], readout)[0]
        values = diagonals @ read
        shares = values @ z_signs(2) / 4
        assert float(found.success[b]) == pytest.approx(values[0], abs=1e-6)
        np.testing.assert_allclose(found.probabilities[b].numpy(), shares / values[0], atol=1e-6)


def test_gradients_go_through_to_weights_and_success() -> None:
    """Of p and of the success probability, against finite differences; by SPSA without the engine's own gradient."""
    model = amplitude()
    starts, _ = starts_of(model, 2)
    layer = model.as_layer().double()
    target = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)

    def loss() -> torch.Tensor:
        probabilities, success = layer(starts)
        return (probabilities - target).square().sum() - success.log().mean()

    loss().backward()
    weight, step = layer.layer.weight, 1e-5
    assert weight.grad is not None
    for index in (0, 7):
        with torch.no_grad():
            moved = []
            for shift in (step, -2 * step):
                weight[index] += shift
                moved.append(loss())
            weight[index] += step
        assert float(weight.grad[index]) == pytest.approx(float(moved[0] - moved[1]) / (2 * step), rel=1e-4, abs=1e-8)
    sampled = layer.on(Shots(1000, noisy=False), gradient=SPSA(seed=1))
    sampled(starts)[0].square().sum().backward()
    assert sampled.layer.weight.grad is not None


# -- error bars --------------------------------------------------------------------------------------------------------


def spread_over_error(layer: DenoiserLayer, repeats: int) -> dict[str, torch.Tensor]:
    """Scatter over stated error, of everything that is read, over repetitions of one image."""
    starts, labels = starts_of(layer.model, 1, seed=3)
    found = layer.estimate(starts.expand(repeats, -1), None if labels is None else labels.expand(repeats))
    assert found.images is not None
    read, images = found.read, found.images
    pairs = {
        "success": (read.success[:, None], read.success_errors[:, None]),
        "p": (read.probabilities, read.probability_errors),
        "magnitude": (images.magnitudes, images.magnitude_errors),
        "pixel": (images.images.flatten(1), images.std_errors.flatten(1)),
    }
    return {name: values.std(0) / errors.mean(0) for name, (values, errors) in pairs.items()}


@pytest.mark.parametrize("engine", ["shots:2000", "shots:2000+readout", "shots:2000+zne:linear:1,3",
                                    "shots:2000+readout+zne:linear:1,3"])  # fmt: skip
def test_error_bars_are_the_scatter_of_repetitions(engine: str) -> None:
    """A bootstrap: 800 draws of one image, mitigated in numerator and denominator; 2.5 % is the scatter's own error."""
    torch.manual_seed(0)  # of the untrained decoder: it must not depend on the tests before
    model = LatentQDM(config(init_scale=0.6, depth=2))
    for name, ratios in spread_over_error(model.as_layer("fake_manila", engine), 800).items():
        assert ratios.min() > 0.9, name
        assert ratios.max() < 1.1, name


def test_taking_the_two_numbers_as_independent_would_be_wrong() -> None:
    """What the covariance is for: 100 of 1,000 shots pass, 80 of them with one outcome, whose error is a third."""
    shares = torch.tensor([[0.08, 0.01, 0.005, 0.005]], dtype=torch.float64)
    values = shares @ torch.from_numpy(z_signs(2)).T
    read = quotient_of(values, torch.zeros_like(values), 1000)
    p, success, share = 0.8, 0.1, 0.08
    independent = ((share * (1 - share) + p**2 * success * (1 - success)) / 1000) ** 0.5 / success
    assert float(read.probability_errors[0, 0]) == pytest.approx((0.8 * 0.2 / 100) ** 0.5)
    assert independent > 2.8 * float(read.probability_errors[0, 0])


def test_a_primitive_s_errors_are_at_most_too_large() -> None:
    """Qiskit's estimators state the sum of the errors of an observable's strings: a bound from above."""
    model = amplitude(init_scale=0.6, depth=2)
    layer = model.as_layer("fake_manila", "noisy")
    estimator = aer_estimator(layer.compiled, seed=1)
    ratios = spread_over_error(layer.on(Primitive(estimator, 2000**-0.5, reduced=True)), 60)
    for name, each in ratios.items():
        known = each[each.isfinite()]  # the brightest pixel, always the same one, has no error
        assert 0.5 < known.mean() < 1.1, name


def test_plain_shots_are_read_as_counts() -> None:
    """Errors of p and of magnitudes are those of `images_from_counts`, also where nothing was counted."""
    counts = torch.tensor([[40, 0, 9, 1], [5, 6, 7, 8]])
    shots = 200
    values = counts.double() / shots @ torch.from_numpy(z_signs(2)).T
    read = quotient_of(values, torch.zeros_like(values), shots)
    kept = counts.sum(1)
    torch.testing.assert_close(read.success, kept / shots, check_dtype=False)
    torch.testing.assert_close(read.success_errors, ((kept / shots) * (1 - kept / shots) / shots).sqrt().double())
    p = counts / kept[:, None]
    torch.testing.assert_close(read.probabilities, p.double(), check_dtype=False, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        read.probability_errors, (p * (1 - p) / kept[:, None]).sqrt().double(), rtol=1e-5, atol=1e-7
    )
    expected = images_from_counts(counts, (1, 2, 2))
    magnitudes, errors = read.magnitudes
    torch.testing.assert_close(magnitudes.float(), expected.magnitudes, rtol=0, atol=1e-6)
    torch.testing.assert_close(errors.float(), expected.magnitude_errors, rtol=1e-4, atol=1e-6)


def test_what_is_not_told_from_zero_is_divided_by_nothing() -> None:
    values = torch.tensor([[0.3, 0.1, 0.0, 0.1], [0.01, 0.0, 0.0, 0.0], [-0.02, 0.0, 0.0, 0.01]], dtype=torch.float64)
    errors = torch.full_like(values, 0.01)
    read = quotient_of(values, errors)
    assert read.resolved.tolist() == [True, False, False]
    assert read.probabilities[0].isfinite().all()
    assert read.probabilities[1:].isnan().all()
    torch.testing.assert_close(read.distribution[1:], torch.full((2, 4), 0.25, dtype=torch.float64))
    errors[0, 2] = torch.inf
    assert quotient_of(values, errors).probability_errors[0].isinf().all()
    assert float(quotient_of(values, errors).success_errors[0]) == pytest.approx(0.01)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed_forward", [False, True])
def test_kept_outcomes_are_refused(feed_forward: bool) -> None:
    with pytest.raises(InvalidInputError, match=r"kept outcomes need counts.*a Sampler does"):
        amplitude(kind="measured", feed_forward=feed_forward).as_layer()


@pytest.mark.slow
def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(InvalidInputError, match=r"has 6 qubits: 2 of the data, 1 more for each of 4 steps"):
        amplitude(n_steps=4).as_layer("fake_manila")
    with pytest.raises(InvalidInputError, match=r"post-select on 20 qubits.*2\^23 Pauli strings"):
        LatentQDM(RECONSTRUCTION).as_layer()
    with pytest.raises(InvalidInputError, match="has no circuit"):
        amplitude().with_reverse(ClassicalDenoiser(4, 1, 2, 100, torch.Generator())).as_layer()
    with pytest.raises(InvalidInputError, match="compile_deferred"):
        DenoiserLayer(amplitude(), compile_deferred(amplitude(n_steps=1)))
    wide = AmplitudeQDM(config(n_qubits=6, n_steps=30, kind="reset"), image_shape=(1, 8, 8))
    with pytest.raises(MemoryBudgetError):
        wide.as_layer()
    assert compile_deferred(amplitude(kind="reset", n_steps=20), "fake_marrakesh").isa.num_qubits == 156
