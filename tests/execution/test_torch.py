"""What torch does with its modules, done with ours: the plain call's numbers, or one sentence that says what to do.

Kinds of tensors, copies and derivatives have files of their own (test_tensor_kinds, test_copies,
test_second_derivatives).
"""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from elsewhere import pretended_device
from evaluated import Evaluated
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import qhw_diffusion as qhw
from qhw_diffusion.denoising import AmplitudeQDM, ReverseConfig
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import Engine, NoiseTrajectories, ParameterShift
from qhw_diffusion.execution import noise_trajectories as trajectories
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.guidance import PolicyConfig, build_policy
from qhw_diffusion.guidance.policies import Policy

# torch's compiler looks at tensors of all kinds while it compiles
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

X = [Parameter(f"x{i}") for i in range(2)]
W = [Parameter(f"w{i}") for i in range(3)]


def compiled() -> qhw.CompiledCircuit:
    qc = QuantumCircuit(2)
    qc.ry(X[0], 0)
    qc.rx(X[1] + W[0], 1)
    qc.cx(0, 1)
    qc.ry(W[1], 1)
    qc.rx(0.5 * X[0] + W[2], 0)
    qc.cx(0, 1)
    observables = [SparsePauliOp("IZ"), SparsePauliOp(["XX", "ZI"], [0.5, 1])]
    return qhw.compile_circuit(qc, qhw.Device.load("fake_manila"), inputs=X, weights=W, observables=observables)


COMPILED = compiled()


def layer(engine: str | Engine = "noisy", **settings: object) -> qhw.QuantumLayer:
    return qhw.QuantumLayer(COMPILED, engine, **settings)  # type: ignore[arg-type]


def inputs(rows: int = 5) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A circuit between two layers of torch."""

    def __init__(self, circuit: nn.Module) -> None:
        super().__init__()
        self.before, self.circuit, self.after = nn.Linear(2, 2), circuit, nn.Linear(2, 1)
        for linear in (self.before, self.after):
            nn.init.orthogonal_(linear.weight, generator=torch.Generator().manual_seed(1))
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.circuit(self.before(x).tanh()).tanh())
        return out


def slopes(model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    model.zero_grad()
    call(x).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# -- torch.compile -----------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_model_has_the_numbers_of_the_plain_one() -> None:
    """With one engine after another: what was compiled for one holds nothing of it."""
    engines: list[tuple[str, dict[str, object]]] = [
        ("ideal", {}), ("noisy", {}), ("noisy", {"gradient": ParameterShift()}), ("noisy+zne", {}),
    ]  # fmt: skip
    for engine, settings in engines:
        model = Model(layer(engine, **settings))
        fast = torch.compile(model, backend="aot_eager")
        for x in (inputs(), inputs() + 1, inputs(3), inputs(4)):  # other numbers and shapes, compiled anew or not
            assert torch.equal(fast(x), model(x)), engine
            assert torch.equal(slopes(model, fast, x), slopes(model, model, x)), engine
            with torch.no_grad():
                assert torch.equal(fast(x), model(x)), engine
        with torch.no_grad():
            model.circuit.weight.add_(0.3)
        assert torch.equal(fast(inputs()), model(inputs())), "weights are no constants"


@pytest.mark.usefixtures("compiler")
def test_the_compiler_does_not_look_into_the_circuit(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    model = Model(layer())
    torch.compile(model, backend=backend)(inputs())
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op.startswith("call")}
    assert called
    assert not [name for name in called if "numpy" in name or "cos" in name], "what is compiled is torch's own"
    assert len(graphs) == 2, "the part before the circuit, and the part behind it"


@pytest.mark.usefixtures("compiler")
def test_a_compiled_sampling_layer_draws_and_counts_at_every_call() -> None:
    sampled = layer("shots:64")
    fast = torch.compile(sampled, backend="eager")
    first, second = fast(inputs()), fast(inputs())
    assert not torch.equal(first, second)
    assert sampled.usage.shots == 2 * 5 * 2 * 64  # calls, rows, groups of observables
    assert torch.compile(lambda x: sampled.estimate(x).std_errors, backend="eager")(inputs()).min() > 0


@pytest.mark.usefixtures("compiler")
def test_a_compiled_layer_has_second_derivatives_and_refuses_what_the_plain_one_does() -> None:
    exact = layer(dtype=torch.float64)
    found = []
    for call in (exact, torch.compile(exact, backend="eager")):
        x = inputs().double().requires_grad_()
        (slope,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), exact.weight)[0])
    assert torch.equal(*found)
    with pytest.raises(InvalidInputError, match="NaN"):
        torch.compile(exact, backend="eager")(torch.full((2, 2), torch.nan))


@pytest.mark.usefixtures("compiler")
def test_a_whole_graph_is_refused_with_the_reason() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="without fullgraph=True the rest is compiled"):
        torch.compile(Model(layer()), backend="eager", fullgraph=True)(inputs())


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("engine", ["noisy", "trajectories:4"])
def test_a_compiled_evolution_has_the_numbers_of_the_plain_one(engine: str) -> None:
    states = torch.tensor([[0.6, 0.8j], [1, 0]], dtype=torch.complex64)
    found = []
    for wrap in (lambda call: call, lambda call: torch.compile(call, backend="aot_eager")):
        evolution = Evolution(COMPILED, data=[0], measured=[1], engine=engine)
        weights = torch.tensor([0.3, -0.7, 0.2], requires_grad=True)

        def loss(weights: Tensor, evolution: Evolution = evolution) -> Tensor:
            branches = evolution(states, weights, inputs(2))
            return (branches.probabilities * branches.states.abs().square()[..., 0, 0]).sum() * 2

        value = wrap(loss)(weights)
        found.append((value, *torch.autograd.grad(value, weights)))
    for plain, fast in zip(*found, strict=True):
        assert torch.equal(plain, fast)


def policy(kind: str = "quantum", **settings: object) -> Policy:
    return build_policy(PolicyConfig(kind=kind, device="fake_manila", engine="noisy", depth=1, **settings))  # type: ignore[arg-type]


POLICIES: dict[str, Callable[[], Policy]] = {
    "quantum": policy,
    "choices": lambda: policy(discrete_actions=(-1.0, 0.0, 1.0)),
    "mlp": lambda: policy("mlp"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", POLICIES)
def test_a_compiled_policy_has_the_numbers_of_the_plain_one(kind: str) -> None:
    plain, states = POLICIES[kind](), torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    fast = torch.compile(plain, backend="aot_eager")

    def outputs(call: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.cat(call(x), 1)

    assert torch.equal(outputs(fast)(states), outputs(plain)(states))
    assert torch.equal(slopes(plain, outputs(fast), states), slopes(plain, outputs(plain), states))
    draw = torch.compile(plain.sample, backend="eager")
    for one, other in zip(
        draw(states, torch.Generator().manual_seed(1)),
        plain.sample(states, torch.Generator().manual_seed(1)),
        strict=True,
    ):
        assert torch.equal(one, other)


SETTINGS = {"n_qubits": 2, "n_steps": 2, "depth": 1, "init_scale": 0.6}
DENOISERS: dict[str, dict[str, object]] = {
    "post-selected, noisy": {"kind": "postselected", "engine": "noisy", "device": "fake_manila"},
    "measured": {"kind": "measured", "feed_forward": True},
    "angles": {"weight_sharing": "time_embedding", "conditioning": "angles", "n_labels": 3},
    "measured, angles": {
        "kind": "measured", "feed_forward": True, "weight_sharing": "time_embedding", "conditioning": "angles",
        "n_labels": 3,
    },
    "weights of labels": {"conditioning": "weights", "n_labels": 3},
    "label qubits": {"conditioning": "qubits", "n_labels": 3},
    "hypernetwork": {"weight_sharing": "hypernetwork"},
    "trajectories": {"kind": "postselected", "engine": "trajectories:3", "device": "fake_manila"},
}  # fmt: skip


def denoiser(kind: str) -> AmplitudeQDM:
    return AmplitudeQDM(ReverseConfig(**{**SETTINGS, **DENOISERS[kind]}), image_shape=(1, 2, 2))  # type: ignore[arg-type]


def start(kind: str) -> tuple[Tensor, Tensor | None]:
    states = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.complex64)
    labels = torch.tensor([0, 1, 2, 0]) if "n_labels" in DENOISERS[kind] else None
    return states / states.norm(dim=1, keepdim=True), labels


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_denoiser_has_the_numbers_of_the_plain_one() -> None:
    """One after another, so that the second is compiled for what differs only."""
    for kind in ("post-selected, noisy", "measured, angles"):
        found = []
        for wrap in (lambda call: call, lambda call: torch.compile(call, backend="aot_eager")):
            model = denoiser(kind)
            made = wrap(model.reverse.run)(*start(kind), torch.Generator().manual_seed(2))
            loss = made.states.abs().square()[..., 0].sum() + made.log_probability.sum()
            weights = [p for p in model.reverse.parameters() if p.requires_grad]
            found.append((made.states, made.log_probability, *torch.autograd.grad(loss, weights)))
        for plain, fast in zip(*found, strict=True):
            assert torch.equal(plain, fast), kind


# -- recording ---------------------------------------------------------------------------------------------------------

RECORD: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "jit.trace": torch.jit.trace,
    "export": lambda model, x: torch.export.export(model, (x,), strict=False),
    "onnx": lambda model, x: torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False),
    "make_fx": lambda model, x: make_fx(model)(x),
    "make_fx, fake": lambda model, x: make_fx(model, tracing_mode="fake", _allow_non_fake_inputs=True)(x),
    "linearize": lambda model, x: torch.func.linearize(model, x),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("record", RECORD)
@pytest.mark.parametrize("engine", ["ideal", "noisy", "shots:10"])
def test_what_would_keep_the_values_as_constants_is_refused(engine: str, record: str, grad: bool) -> None:
    for module in (layer(engine), Model(layer(engine))):
        with torch.set_grad_enabled(grad), pytest.raises(InvalidInputError, match="kept as constants; use torch"):
            RECORD[record](module, inputs())
    layer(engine)(inputs())  # it is over


@pytest.mark.filterwarnings("ignore")
def test_recording_an_evolution_and_estimates_is_refused() -> None:
    evolution, states = Evolution(COMPILED, data=[0], measured=[1]), torch.eye(2, dtype=torch.complex64)
    for call in (
        lambda w: evolution(states, w, inputs(2)).probabilities,
        lambda w: evolution.kraus(w, inputs(1)),
        lambda w: layer().estimate(w[None, :2]).values,
        lambda w: layer().probability(w[None, :2]),
    ):
        with torch.no_grad(), pytest.raises(InvalidInputError, match="kept as constants"):
            torch.jit.trace(call, torch.zeros(3))


@pytest.mark.filterwarnings("ignore")
def test_scripting_says_what_to_do_instead() -> None:
    for module in (layer(), Model(layer())):
        with pytest.raises(InvalidInputError, match=r"torch\.jit\.script.*use torch\.compile"):
            torch.jit.script(module)


# -- tensors without numbers, or of a form that NumPy does not take ---------------------------------------------------


def test_tensors_without_numbers_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="inputs are on the meta device"):
        layer()(inputs().to("meta"))
    for engine in ("noisy", "shots:10"):
        with pytest.raises(InvalidInputError, match=r"weights are on the meta device.*to_empty"):
            layer(engine).to("meta")(inputs())
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, pytest.raises(InvalidInputError, match="inputs are fake"):
        layer()(fake.from_tensor(inputs()))
    with pytest.raises(InvalidInputError, match="parameters are on the meta device"):
        qhw.execution.Shots(10).estimate(COMPILED, torch.zeros(1, 5, device="meta"))
    evolution = Evolution(COMPILED, data=[0], measured=[1])
    with pytest.raises(InvalidInputError, match="states are on the meta device"):
        evolution(torch.eye(2, dtype=torch.complex64, device="meta"), torch.zeros(3), inputs(2))


def test_a_layer_comes_back_from_the_meta_device() -> None:
    original = layer()
    again = layer().to("meta").to_empty(device="cpu")
    again.load_state_dict(original.state_dict())
    assert torch.equal(again(inputs()), original(inputs()))


def test_nested_tensors_are_refused_and_negated_views_taken() -> None:
    nested = torch.nested.nested_tensor([inputs(2), inputs(3)], layout=torch.jagged)
    with pytest.raises(InvalidInputError, match="nested tensor"):
        layer()(nested)
    conjugate = torch.complex(inputs(), inputs() + 1).conj().imag
    assert conjugate.is_neg()
    assert torch.equal(layer()(conjugate), layer()(-(inputs() + 1)))


def test_views_give_the_numbers_of_their_copies() -> None:
    circuit, wide = layer(), torch.randn(10, 6, generator=torch.Generator().manual_seed(4))
    for view in (wide[::2, 1:5:3], wide[:2, :5].T, wide[:1, :2].expand(4, 2), wide[:, :2].flip(0)):
        leaf = view.clone(memory_format=torch.contiguous_format).requires_grad_()
        again = view.detach().requires_grad_()
        values = circuit(again)
        assert torch.equal(values, circuit(leaf))
        cotangent = torch.ones(1, 2).expand_as(values)
        assert torch.equal(*(torch.autograd.grad(circuit(x), x, cotangent)[0] for x in (again, leaf)))


def test_an_empty_batch_is_refused() -> None:
    for module in (layer(), policy()):
        with pytest.raises(InvalidInputError, match="no rows; give at least one"):
            module(torch.zeros(0, 2 if isinstance(module, qhw.QuantumLayer) else 6))


def test_without_gradients() -> None:
    circuit = layer()
    plain = circuit(inputs()).detach()
    with torch.inference_mode():
        there, made = circuit(inputs()), inputs()
    assert torch.equal(there, plain)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        circuit(made)
    assert torch.equal(circuit(made.clone()), plain)
    frozen = layer().requires_grad_(False)
    assert not frozen(inputs()).requires_grad
    one, other = inputs().requires_grad_(), inputs().requires_grad_()
    frozen(one).sum().backward()
    circuit(other).sum().backward()
    assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    assert frozen.weight.grad is None


# -- another device ----------------------------------------------------------------------------------------------------

ELSEWHERE = [
    "pretended",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.mark.slow
@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("moved", [False, True], ids=["model on the CPU", "model moved"])
@pytest.mark.parametrize("kind", DENOISERS)
def test_a_denoiser_takes_states_of_another_device(kind: str, moved: bool, where: str) -> None:
    here = denoiser(kind).reverse.run(*start(kind), torch.Generator().manual_seed(2))

    def there(device: torch.device) -> None:
        model, (states, labels) = denoiser(kind), start(kind)
        model = model.to(device) if moved else model
        labels = labels if labels is None else labels.to(device)
        made = model.reverse.run(states.to(device), labels, torch.Generator().manual_seed(2))
        for name in ("states", "log_probability", "outcomes"):
            found = getattr(made, name)
            assert found.device.type == device.type, name
            assert torch.equal(found.detach().cpu(), getattr(here, name)), name

    if where == "cuda":
        there(torch.device("cuda"))
    else:
        with pretended_device() as device:
            there(device)


# -- modules -----------------------------------------------------------------------------------------------------------


class Shrunk(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


def test_parametrized_and_pruned_weights_count_and_are_not_saved(tmp_path: Path) -> None:
    shrunk, cut = layer(), layer()
    parametrize.register_parametrization(shrunk, "weight", Shrunk())
    prune.l1_unstructured(cut, "weight", 1)
    assert (cut.weight == 0).sum() == 1
    for changed in (shrunk, cut):
        expected = torch.func.functional_call(layer(), {"weight": changed.weight.detach()}, (inputs(),))
        for twin in (changed, changed.with_engine("noisy")):
            assert torch.equal(twin(inputs()), expected)
        assert slopes(changed, changed, inputs()).abs().sum() > 0
        with pytest.raises(InvalidInputError, match=r"remove_parametrizations.*prune\.remove"):
            changed.save(tmp_path / "layer")
        assert not (tmp_path / "layer").exists()
    parametrize.remove_parametrizations(shrunk, "weight")
    prune.remove(cut, "weight")
    for changed in (shrunk, cut):
        changed.save(tmp_path / "layer")
        assert torch.equal(qhw.QuantumLayer.load(tmp_path / "layer")(inputs()), changed(inputs()))


def test_hooks_see_and_change_what_passes() -> None:
    circuit, seen = layer(), []
    circuit.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    circuit.register_forward_hook(lambda module, arguments, output: output + 1)
    circuit.register_full_backward_hook(lambda module, by_input, by_output: seen.append(by_input[0]))
    x = inputs().requires_grad_()
    values = circuit(x)
    assert torch.equal(values, layer()(2 * inputs()) + 1)
    values.sum().backward()
    torch.testing.assert_close(x.grad, 2 * seen[0])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_gradient_and_refuses_to_draw_twice(reentrant: bool) -> None:
    model = Model(layer())
    plain = slopes(model, model, inputs())
    again = slopes(model, lambda x: checkpoint(model, x.requires_grad_(), use_reentrant=reentrant), inputs())
    torch.testing.assert_close(again, plain)
    for engine in ("shots:10", "trajectories:2"):
        sampled = Model(layer(engine))
        value = checkpoint(sampled, inputs().requires_grad_(), use_reentrant=reentrant)
        with pytest.raises(InvalidInputError, match=r"evaluates anew.*leave the layer out"):
            value.sum().backward()
        sampled(inputs()).sum().backward()  # without it, all is well


def test_a_layer_within_a_backward_pass_that_is_no_checkpoint_is_evaluated() -> None:
    sampled, seen = layer("shots:10"), []
    x = inputs().requires_grad_()
    x.register_hook(lambda slope: seen.append(sampled(inputs().requires_grad_())))
    (x * 2).sum().backward()
    assert seen[0].shape == (5, 2)


def test_replicas_count_with_the_layer_they_are_made_of() -> None:
    assert torch.equal(nn.DataParallel(layer())(inputs()), layer()(inputs()))  # without GPUs the module itself
    sampled = layer("shots:10")
    replica = sampled._replicate_for_data_parallel()
    replica.weight = sampled.weight
    replica(inputs())
    assert sampled.usage.circuits == 10
    twin = copy.deepcopy(sampled)
    twin(inputs())
    assert (sampled.usage.circuits, twin.usage.circuits) == (10, 20)


def test_state_dicts_are_strict() -> None:
    circuit = layer()
    for wrong, words in (
        ({}, "Missing key"),
        ({"weight": torch.zeros(4)}, "size mismatch for weight"),
        ({"weight": torch.zeros(3), "bias": torch.zeros(1)}, "Unexpected key"),
    ):
        with pytest.raises(RuntimeError, match=words):
            circuit.load_state_dict(wrong)
    twin = layer(seed=7)
    twin.load_state_dict(circuit.state_dict())
    assert torch.equal(twin(inputs()), circuit(inputs()))
    twin.load_state_dict({"weight": circuit.weight.detach().double()}, assign=True)
    assert twin(inputs()).dtype == torch.float64
    torch.testing.assert_close(twin(inputs()).float(), circuit(inputs()))


def test_an_average_of_models_and_shared_memory() -> None:
    model = Model(layer())
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    assert torch.equal(averaged(inputs()), model(inputs()))
    assert torch.equal(layer().share_memory()(inputs()), layer()(inputs()))


def test_vmap_folds_any_axis_and_stacks_weights() -> None:
    circuit = layer(dtype=torch.float64)
    rows = torch.randn(2, 3, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = torch.stack([torch.stack([circuit(each) for each in some]) for some in rows])
    torch.testing.assert_close(torch.func.vmap(torch.func.vmap(circuit))(rows), plain)
    moved = rows[0].movedim(0, 1)
    torch.testing.assert_close(torch.func.vmap(circuit, in_dims=1, out_dims=1)(moved), plain[0].movedim(0, 1))
    torch.testing.assert_close(torch.func.vmap(circuit, chunk_size=1)(rows[0]), plain[0])
    with pytest.raises(InvalidInputError, match=r"\[batch, 2\], given \(2,\)"):
        torch.func.vmap(circuit)(rows[0, 0])
    policies = [policy(), policy()]
    with torch.no_grad():
        for parameter in policies[1].parameters():
            parameter.add_(0.1)
    parameters, buffers = torch.func.stack_module_state(policies)
    states = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    made, _ = torch.func.vmap(lambda p, b: torch.func.functional_call(policies[0], (p, b), (states,)))(
        parameters, buffers
    )
    torch.testing.assert_close(made, torch.stack([each(states)[0] for each in policies]))


# -- threads and processes ---------------------------------------------------------------------------------------------


def in_threads(work: Callable[[int], object], count: int = 4) -> list[object]:
    """What the work gave in each of these threads."""
    found: list[object] = [None] * count
    gate = threading.Barrier(count)

    def run(place: int) -> None:
        gate.wait()
        try:
            found[place] = work(place)
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_threads_that_share_a_layer_get_the_numbers_of_one(engine: str) -> None:
    rows = [inputs(count) + count for count in (1, 3, 40, 200)]

    def work(call: qhw.QuantumLayer, place: int) -> list[Tensor]:
        found = []
        for _ in range(5):
            x = rows[place].clone().requires_grad_()
            value = call(x)
            with torch.no_grad():
                found.append(call(rows[place]))
            found += [value.detach(), *torch.autograd.grad(value.square().sum(), (x, call.weight))]
        return found

    shared = layer(engine)
    for place, found in enumerate(in_threads(lambda place: work(shared, place))):
        assert isinstance(found, list), found
        for one, other in zip(found, work(layer(engine), place), strict=True):
            assert torch.equal(one, other)


def test_threads_that_share_a_sampling_layer_are_all_counted() -> None:
    sampled = layer("shots:10")
    in_threads(lambda place: [sampled(inputs(1)) for _ in range(20)])
    assert sampled.usage.circuits == 4 * 20 * 2


def test_threads_do_not_draw_between_the_draws_of_a_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trajectories that are not kept are drawn again for the gradient, from the state that the generator had."""
    monkeypatch.setattr(trajectories, "KEEP_BYTES", 0)
    layer_of_all = layer(NoiseTrajectories(64, seed=3), dtype=torch.float64)
    drawn = trajectories.FrameProgram.draw
    kept: dict[int, list[object]] = {}

    def draw(self: object, *arguments: object) -> object:
        made = drawn(self, *arguments)  # type: ignore[arg-type]
        kept.setdefault(threading.get_ident(), []).append(made)
        return made

    monkeypatch.setattr(trajectories.FrameProgram, "draw", draw)

    def work(place: int) -> None:
        for _ in range(10):
            x = inputs(8).double().requires_grad_()
            layer_of_all(x).square().sum().backward(inputs=[x])

    assert in_threads(work) == [None] * 4
    for found in kept.values():  # of each thread: what each of ten calls drew forwards, and again backwards
        chunks = len(found) // 20
        for call_at in range(0, len(found), 2 * chunks):
            for at in range(call_at, call_at + chunks):
                assert (found[at].signs == found[at + chunks].signs).all()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_workers_of_a_data_loader_give_the_numbers(how: str) -> None:
    circuit = layer()
    loader = DataLoader(Evaluated(circuit, inputs(3)), batch_size=3, num_workers=1, multiprocessing_context=how)
    (values,) = list(loader)
    torch.testing.assert_close(values, circuit(inputs(3)).detach(), atol=1e-6, rtol=0)
