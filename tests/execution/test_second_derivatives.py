"""Second derivatives and torch.func through every custom autograd function: the true value, or one clear error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor
from torch.autograd import forward_ad

import qhw_diffusion as qhw
from qhw_diffusion.denoising.losses import density_fidelity
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import SPSA, Engine, GradientMethod, ParameterShift, Shots, Surrogate, aer_estimator
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.mitigation import ZNE, Mitigated, Readout

X = [Parameter(f"x{i}") for i in range(2)]
W = [Parameter(f"w{i}") for i in range(3)]
OBSERVABLES = [SparsePauliOp("IZ"), SparsePauliOp(["XY", "ZZ", "II"], [0.5, -0.3, 0.2])]


def compiled(device: str = "fake_manila", reuploading: bool = True, measured: bool = False) -> qhw.CompiledCircuit:
    qc = QuantumCircuit(2, 1)
    qc.ry(X[0], 0)
    qc.rx(0.5 * X[1] + W[0], 1)
    qc.rzz(W[1], 0, 1)
    if measured:
        qc.measure(1, 0)
        qc.ry(0.4, 1)
    qc.ry(2 * W[2] - 0.3, 0)
    if reuploading:
        qc.rx(X[0] + W[0], 0)
    qc.cx(0, 1)
    qc.ry(W[2], 1)
    return qhw.compile_circuit(
        qc,
        qhw.Device.load(device),
        inputs=X,
        weights=W,
        observables=OBSERVABLES,
        postselect={0: 0} if measured else None,
    )


def point(batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(batch, 2, generator=generator, dtype=torch.float64),
        torch.randn(3, generator=generator, dtype=torch.float64),
    )


def function(layer: qhw.QuantumLayer) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x,))


def scalar(layer: qhw.QuantumLayer) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that is not linear in the values, so that the cotangent takes part."""
    return lambda x, w: (function(layer)(x, w) * torch.tensor([1.0, -2.0])).sum(1).square().sum()


def hessian_by_weight(layer: qhw.QuantumLayer, x: Tensor, w: Tensor) -> Tensor:
    hessian: Tensor = torch.autograd.functional.hessian(lambda v: function(layer)(x, v).sum(), w)
    return hessian


CASES = {
    "ideal": ("ideal", True, False),
    "noisy": ("noisy", True, False),
    "noisy, observables taken half-way": ("noisy", False, False),
    "ideal, post-selected": ("ideal", True, True),
    "noisy, post-selected": ("noisy", True, True),
}


def layer_of(case: str) -> qhw.QuantumLayer:
    engine, reuploading, measured = CASES[case]
    return qhw.QuantumLayer(compiled("fake_manila", reuploading, measured), engine, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 5])
def test_second_derivatives_are_finite_differences_of_the_first(case: str, batch: int) -> None:
    x, w = point(batch)
    assert torch.autograd.gradgradcheck(
        function(layer_of(case)), (x.requires_grad_(), w.requires_grad_()), atol=1e-6, rtol=1e-4
    )


def test_the_hessian_of_a_cosine_is_known() -> None:
    qc, angle = QuantumCircuit(1), Parameter("a")
    qc.rx(2 * angle, 0)
    circuit = qhw.compile_circuit(
        qc, qhw.Device.load("ideal"), inputs=[angle], weights=[], observables=[SparsePauliOp("Z")]
    )
    layer = qhw.QuantumLayer(circuit)
    hessian = torch.autograd.functional.hessian(lambda x: layer(x).sum(), torch.tensor([[0.4]]))
    assert hessian.item() == pytest.approx(-4 * torch.cos(torch.tensor(0.8)).item(), abs=1e-5)  # ⟨Z⟩ = cos 2a


@pytest.mark.parametrize("case", CASES)
def test_a_third_derivative_is_a_finite_difference_of_the_second(case: str) -> None:
    x, w = point()
    loss = scalar(layer_of(case))

    def curvature(w0: Tensor) -> Tensor:
        w0.requires_grad_()
        (slope,) = torch.autograd.grad(loss(x, w0), w0, create_graph=True)
        return torch.autograd.grad(slope[2], w0, create_graph=True)[0][2]

    w_leaf = w.clone()
    (third,) = torch.autograd.grad(curvature(w_leaf), w_leaf)
    step = torch.tensor([0.0, 0.0, 1e-5], dtype=torch.float64)
    expected = (curvature(w + step) - curvature(w - step)) / 2e-5
    assert third[2].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_penalty_trains_the_weights(case: str) -> None:
    x, w = point(4)
    f = function(layer_of(case))

    def penalty(w0: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(f(leaf, w0).sum(), leaf, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    w.requires_grad_()
    (by_weight,) = torch.autograd.grad(penalty(w), w)
    assert by_weight.abs().max() > 1e-3
    direction = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    with torch.no_grad():
        ends = w + 1e-5 * direction, w - 1e-5 * direction
    expected = (penalty(ends[0]) - penalty(ends[1])).item() / 2e-5
    assert (by_weight @ direction).item() == pytest.approx(expected, abs=1e-6)


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor]] = {
    "grad": lambda f, x, w: torch.func.grad(f, 1)(x, w),
    "jacrev": lambda f, x, w: torch.func.jacrev(f, 1)(x, w),
    "jacfwd": lambda f, x, w: torch.func.jacfwd(f, 1)(x, w),
}
HESSIANS: dict[str, Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor]] = {
    "hessian": lambda f, x, w: torch.func.hessian(f, 1)(x, w),
    "reverse over reverse": lambda f, x, w: torch.func.jacrev(torch.func.jacrev(f, 1), 1)(x, w),
    "forward over forward": lambda f, x, w: torch.func.jacfwd(torch.func.jacfwd(f, 1), 1)(x, w),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_torch_func_give_the_gradient(case: str, transform: str) -> None:
    x, w = point(3)
    loss = scalar(layer_of(case))
    leaf = w.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(x, leaf), leaf)
    torch.testing.assert_close(TRANSFORMS[transform](loss, x, w), expected)


@pytest.mark.parametrize("case", ["ideal", "noisy"])
@pytest.mark.parametrize("transform", HESSIANS)
def test_transforms_of_torch_func_give_the_hessian(case: str, transform: str) -> None:
    x, w = point(3)
    loss = scalar(layer_of(case))
    expected = torch.autograd.functional.hessian(lambda v: loss(x, v), w)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(HESSIANS[transform](loss, x, w), expected)


@pytest.mark.parametrize("case", ["ideal", "noisy"])
def test_vmap_over_inputs_and_over_weights_is_a_loop(case: str) -> None:
    f = function(layer_of(case))
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    w = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(f, (0, None))(x, w[0]), torch.stack([f(row, w[0]) for row in x]))
    torch.testing.assert_close(torch.func.vmap(f, (None, 0))(x[0], w), torch.stack([f(x[0], row) for row in w]))
    torch.testing.assert_close(torch.func.vmap(f)(x, w), torch.stack([f(a, b) for a, b in zip(x, w, strict=True)]))


@pytest.mark.parametrize("case", ["ideal, post-selected", "noisy, post-selected"])
def test_vmap_of_post_selection_is_refused_since_its_probability_cannot_be_checked(case: str) -> None:
    x, w = point(3)
    with pytest.raises(InvalidInputError, match="post-selected"):
        torch.func.vmap(function(layer_of(case)), (0, None))(x[:, None, :], w)


@pytest.mark.parametrize("case", ["ideal", "noisy"])
def test_per_sample_gradients_by_vmap_of_grad(case: str) -> None:
    x, w = point(4)
    loss = scalar(layer_of(case))
    slopes = torch.func.vmap(torch.func.grad(loss, 1), (0, None))(x[:, None, :], w)
    expected = torch.stack([torch.func.grad(loss, 1)(row[None], w) for row in x])
    torch.testing.assert_close(slopes, expected)


def test_forward_mode_gives_the_directional_derivative() -> None:
    x, w = point(2)
    f, direction = function(layer_of("noisy")), torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(x, forward_ad.make_dual(w, direction))).tangent
    expected = (f(x, w + 1e-6 * direction) - f(x, w - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(tangent, expected, atol=1e-8, rtol=1e-6)


def test_shots_have_the_exact_second_derivative() -> None:
    x, w = point(2)
    circuit = compiled()
    sampled = qhw.QuantumLayer(circuit, Shots(10**6), dtype=torch.float64)
    exact = qhw.QuantumLayer(circuit, "noisy", dtype=torch.float64)
    hessians = [hessian_by_weight(layer, x, w) for layer in (sampled, exact)]
    torch.testing.assert_close(*hessians)


@pytest.mark.slow
def test_mitigated_values_have_second_derivatives() -> None:
    x, w = point(2)
    layer = qhw.QuantumLayer(compiled(), Mitigated("noisy", [Readout(), ZNE()]), dtype=torch.float64)
    assert torch.autograd.gradgradcheck(function(layer), (x.requires_grad_(), w.requires_grad_()), atol=1e-6, rtol=1e-4)


METHODS: dict[str, tuple[GradientMethod, str | Engine]] = {
    "ParameterShift": (ParameterShift(), "noisy"),
    "ParameterShift, shots": (ParameterShift(), "shots:64"),
    "SPSA": (SPSA(), "noisy"),
}


@pytest.mark.parametrize("method", METHODS)
def test_gradient_methods_refuse_second_derivatives(method: str) -> None:
    x, w = point(2)
    gradient, engine = METHODS[method]
    f = function(qhw.QuantumLayer(compiled(), engine, gradient=gradient, dtype=torch.float64))
    w.requires_grad_()
    (slope,) = torch.autograd.grad(f(x, w).sum(), w, create_graph=True)  # the first derivative is there
    assert slope.isfinite().all()
    with pytest.raises(InvalidInputError, match=rf"{type(gradient).__name__}: a second derivative"):
        torch.autograd.grad(slope.sum(), w)
    with pytest.raises(InvalidInputError, match="second derivative"):
        torch.autograd.functional.hessian(lambda v: f(x, v).sum(), w.detach())


def test_a_second_derivative_of_another_part_of_the_network_is_no_business_of_the_layer() -> None:
    x, w = point(2)
    f = function(qhw.QuantumLayer(compiled(), "noisy", gradient=ParameterShift(), dtype=torch.float64))
    other = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(f(x, w.requires_grad_()).sum() + other**3, (w, other), create_graph=True)
    (curvature,) = torch.autograd.grad(slopes[1], other)
    assert curvature.item() == pytest.approx(6 * 0.3)


def test_a_surrogate_has_the_second_derivative_of_its_simulation() -> None:
    x, w = point(2)
    circuit = compiled()
    layer = qhw.QuantumLayer(circuit, "shots:64", gradient=Surrogate(), dtype=torch.float64)
    exact = qhw.QuantumLayer(circuit, "noisy", dtype=torch.float64)
    hessians = [hessian_by_weight(each, x, w) for each in (layer, exact)]
    torch.testing.assert_close(*hessians)


def primitive() -> qhw.QuantumLayer:
    circuit = compiled()
    return qhw.QuantumLayer(circuit, qhw.Primitive(aer_estimator(circuit), reduced=True))


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(lambda: qhw.QuantumLayer(compiled(), "shots:64"), id="shots"),
        pytest.param(lambda: qhw.QuantumLayer(compiled(), "noisy", gradient=ParameterShift()), id="parameter-shift"),
        pytest.param(lambda: qhw.QuantumLayer(compiled(), "noisy", gradient=SPSA()), id="spsa"),
        pytest.param(lambda: qhw.QuantumLayer(compiled(), "shots:64", gradient=Surrogate()), id="surrogate"),
        pytest.param(primitive, id="primitive"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda layer, x: torch.func.vmap(layer)(x[None]), id="vmap"),
        pytest.param(lambda layer, x: torch.func.grad(lambda v: layer(v).sum())(x), id="grad"),
        pytest.param(lambda layer, x: torch.func.jvp(layer, (x,), (x,)), id="jvp"),
    ],
)
def test_sampling_inside_torch_func_is_refused(
    layer: Callable[[], qhw.QuantumLayer], use: Callable[[qhw.QuantumLayer, Tensor], Tensor]
) -> None:
    with pytest.raises(InvalidInputError, match=r"torch\.func"):
        use(layer(), point(2)[0].float())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ideal", "noisy"])
@pytest.mark.parametrize("pure", [True, False])
def test_evolution_has_second_derivatives(engine: str, pure: bool) -> None:
    _, w = point()
    evolution = Evolution(compiled(), data=[0], measured=[1], engine=engine)
    raw = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(amplitudes: Tensor, weights: Tensor, inputs: Tensor) -> Tensor:
        states = torch.complex(amplitudes[..., 0], amplitudes[..., 1])
        states = states / states.abs().square().sum(1, keepdim=True).sqrt()
        if not pure:
            states = states[:, :, None] * states[:, None, :].conj()
        branches = evolution(states, weights, inputs)
        return torch.cat([branches.probabilities.flatten(), branches.states.abs().square().flatten()])

    arguments = (raw.requires_grad_(), w.requires_grad_(), point(2)[0].requires_grad_())
    assert torch.autograd.gradgradcheck(value, arguments, atol=1e-5, rtol=1e-3)


def test_evolution_under_torch_func() -> None:
    x, w = point(2)
    evolution = Evolution(compiled(), data=[0], measured=[1], engine="noisy")
    states = torch.eye(2, dtype=torch.complex128)

    def value(weights: Tensor) -> Tensor:
        return evolution(states, weights, x).probabilities.square().sum()

    torch.testing.assert_close(torch.func.hessian(value)(w), torch.autograd.functional.hessian(value, w))


def test_the_fidelity_of_density_matrices_refuses_a_second_derivative() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 3, 3, generator=generator, dtype=torch.complex128)
    rho = raw @ raw.mH / (raw @ raw.mH).diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    rho.requires_grad_()
    (slope,) = torch.autograd.grad(density_fidelity(rho, rho.detach().flip(0)).sum(), rho, create_graph=True)
    with pytest.raises(InvalidInputError, match="second derivative"):
        torch.autograd.grad(slope.abs().sum(), rho)
    with pytest.raises(InvalidInputError, match=r"torch\.func"):
        torch.func.vmap(density_fidelity)(rho.detach(), rho.detach())
