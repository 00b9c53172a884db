"""The U-Net with a quantum bottleneck: none of the published defects, noise, devices, files, sampling, commands."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path

import logs
import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import Statevector
from torch import Tensor, nn

from qhw_diffusion.circuits.preparation import preparation_size, prepare
from qhw_diffusion.cli import main
from qhw_diffusion.denoising import HybridBackbone, HybridConfig
from qhw_diffusion.diffusion import Backbone, BackboneConfig, Denoiser, GuidedDDIM, load_dataset, train_backbone
from qhw_diffusion.errors import InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.execution import Primitive, QuantumLayer, aer_estimator


def config(**changes: object) -> HybridConfig:
    tiny = {"bottleneck": "quantum", "channels": (8, 8), "attention": (False, False), "patch": 1, "n_qubits": 2,
            "depth": 2, "batch_size": 16, "steps": 4, "log_every": 2, "warmup": 1}  # fmt: skip
    return HybridConfig.for_dataset("digits", **{**tiny, **changes})


@functools.cache
def untrained(**changes: object) -> HybridBackbone:
    torch.manual_seed(0)
    return HybridBackbone(config(**changes)).eval()


class Constant(nn.Module):
    """A bottleneck whose values do not depend on the image."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.kept = values

    def forward(self, x: Tensor) -> Tensor:
        return self.kept.expand(len(x), -1)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(4)


def gradients(backbone: HybridBackbone) -> dict[str, Tensor]:
    """Of a diffusion-like loss, by name of the parameter."""
    x, labels = batch()
    backbone.zero_grad()
    (backbone(x, torch.tensor([5, 300, 600, 900]), labels) - x.flip(0)).square().mean().backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in backbone.unet.named_parameters() if p.grad is not None}


# -- state preparation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_state_can_be_prepared(n: int) -> None:
    """The map from angles to states has full rank 2^(n+1) − 2, the dimension of pure states."""
    angles = ParameterVector("a", preparation_size(n))
    circuit = QuantumCircuit(n)
    prepare(circuit, range(n), list(angles))
    at = np.random.default_rng(1).uniform(-2, 2, len(angles))

    def projector(values: np.ndarray) -> np.ndarray:
        state = Statevector(circuit.assign_parameters(values)).data
        return np.outer(state, state.conj()).ravel()

    step = 1e-5
    columns = [(projector(at + step * e) - projector(at - step * e)) / (2 * step) for e in np.eye(len(at))]
    jacobian = np.array(columns).T
    rank = np.linalg.matrix_rank(np.vstack([jacobian.real, jacobian.imag]), tol=1e-6)
    assert rank == len(angles) == 2 ** (n + 1) - 2


# -- what the published code gets wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["amplitude", "angle"])
@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_every_part_of_the_circuit_is_on_the_data_path(encoding: str, engine: str) -> None:
    """No block of the circuit cancels: each weight and coefficient, and the angles, have a gradient in the loss."""
    backbone = untrained(encoding=encoding, engine=engine, device="fake_manila" if engine == "noisy" else "ideal")
    found = gradients(backbone)
    assert found.keys() == {name for name, _ in backbone.unet.named_parameters()}
    assert bool((found["bottleneck.weight"].abs() > 1e-9).all())
    assert bool((found["bottleneck.coefficients"].abs() > 1e-9).sum() >= 0.8 * 30)
    assert float(found["angles.weight"].norm()) > 1e-6
    assert float(found["enter.weight"].norm()) > 1e-6


def test_the_prediction_depends_on_the_weights_of_the_circuit() -> None:
    """Other weights, or other coefficients, another prediction; through the public interface."""
    x, labels = batch()
    backbone = untrained().on(engine="ideal")
    assert backbone.layer is not None
    assert backbone.layer.coefficients is not None
    with torch.no_grad():
        before = backbone.predict(x, 400, labels)
        backbone.layer.weight.add_(0.5)
        turned = backbone.predict(x, 400, labels)
        backbone.layer.coefficients.add_(0.5)
        measured = backbone.predict(x, 400, labels)
    for one, other in ((before, turned), (turned, measured)):
        assert all(float((a - b).abs().mean()) > 1e-4 for a, b in zip(one, other, strict=True))


def test_the_noisy_image_goes_through_the_circuit() -> None:
    """The circuit's values differ from image to image, and nothing passes the coarsest level beside them."""
    backbone = copy.deepcopy(untrained())
    values: list[Tensor] = []
    behind: list[Tensor] = []
    backbone.unet.bottleneck.register_forward_hook(lambda _, inputs, out: values.append(out))
    backbone.unet.after.register_forward_pre_hook(lambda _, inputs: behind.append(inputs[0]))
    x, labels = batch()
    with torch.no_grad():
        backbone(x, 100, labels)
        assert float(values[-1].std(0).min()) > 1e-3
        assert float(behind[-1].std(0).mean()) > 1e-4
        backbone.unet.bottleneck = Constant(torch.ones(2))
        backbone(x, 100, labels)
    assert torch.equal(behind[-1], behind[-1][:1].expand(4, -1, -1, -1))


def test_the_control_without_a_bottleneck_has_none() -> None:
    """ "none" passes nothing: the coarsest level does not depend on the image."""
    backbone = untrained(bottleneck="none")
    assert backbone.layer is None
    h = torch.randn(3, 8, 4, 4)
    assert not backbone.unet.values(h).any()
    assert "angles.weight" not in gradients(backbone)


def test_the_classical_control_has_as_many_parameters() -> None:
    """Of the default circuit of 4 qubits: 108 against 109."""
    both = [HybridBackbone(config(bottleneck=kind, n_qubits=4, depth=4)) for kind in ("quantum", "classical")]
    counts = [sum(p.numel() for p in b.unet.bottleneck.parameters()) for b in both]
    assert counts == [48 + 60, 109]
    assert both[1].n_parameters - both[0].n_parameters == 1
    assert float(gradients(both[1])["bottleneck.0.weight"].norm()) > 0


# -- as a backbone -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_under_noise_saving_and_devices(tmp_path: Path) -> None:
    """Trained with a fake device's noise; loaded as a backbone; sampled, all classes; on other engines and devices."""
    data = load_dataset("digits", "train")
    settings = config(device="fake_manila", engine="noisy")
    trained = train_backbone(settings, dataset=data, make=HybridBackbone)
    assert isinstance(trained, HybridBackbone)
    start = HybridBackbone(settings).layer
    assert start is not None
    assert trained.layer is not None
    assert not torch.allclose(trained.layer.weight, start.weight)
    assert not torch.allclose(trained.layer.coefficients, start.coefficients, atol=1e-5)  # type: ignore[arg-type]
    trained.save(tmp_path / "model")
    loaded = Backbone.load(tmp_path / "model")
    assert isinstance(loaded, HybridBackbone)
    assert isinstance(loaded, Denoiser)
    assert loaded.config == settings
    assert loaded.layer is not None
    assert loaded.layer.compiled.physical_qubits == trained.layer.compiled.physical_qubits
    assert not any(p.requires_grad for p in loaded.parameters())
    x, labels = batch()
    with torch.no_grad():
        assert torch.equal(loaded.predict(x, 300, labels)[0], trained.predict(x, 300, labels)[0])
        ideal = loaded.on(engine="ideal").predict(x, 300, labels)[0]
        noisy = loaded.predict(x, 300, labels)[0]
        # Aer on the fake device, as any Estimator; its error is of the order of the shots'
        primitive = Primitive(aer_estimator(loaded.layer.compiled, seed=1), precision=0.01, reduced=True)
        measured = loaded.on(engine=primitive).predict(x, 300, labels)[0]
        elsewhere = loaded.on("fake_torino", "ideal").predict(x, 300, labels)[0]
        images = GuidedDDIM(loaded, 3, spacing="trailing").sample(torch.arange(10), 1.5, torch.randn(10, 1, 8, 8))
    assert torch.allclose(elsewhere, ideal, atol=1e-5)
    assert float((ideal - noisy).norm()) > 1e-5
    assert float((measured - noisy).norm()) < 0.5 * float((noisy - noisy.mean()).norm())
    assert images.shape == (10, 1, 8, 8)
    assert bool(images.isfinite().all())


def test_a_backbone_without_a_circuit_runs_on_no_device() -> None:
    """It is told, also for the classical control."""
    for backbone in (Backbone.load("digits"), untrained(bottleneck="classical")):
        with pytest.raises(InvalidInputError, match="has no circuit"):
            backbone.on(engine="ideal")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck": "quantumm"}, "did you mean quantum"),
        ({"encoding": "phase"}, "encoding"),
        ({"observables": "x"}, "adaptive:K"),
        ({"engine": "noisyy"}, "noisyy"),
        ({"n_qubits": 9}, "1 to 8"),
        ({"depth": 0}, "1 or more"),
        ({"channels": (8,), "attention": (False,)}, "two levels"),
        ({"attention": (True, False)}, "attention"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    """Told when the configuration is made; without a bottleneck they are not looked at."""
    with pytest.raises(QhwError, match=message):
        config(**changes)


def test_more_settings_that_do_not_fit() -> None:
    """Observables wider than the circuit, noise on the ideal device, no bottleneck at all."""
    with pytest.raises(InvalidInputError, match="3 neighbouring qubits, the circuit has 2"):
        HybridBackbone(config(observables="adaptive:3"))
    with pytest.raises(InvalidInputError, match="no noise"):
        HybridBackbone(config(engine="noisy"))
    with pytest.raises(InvalidInputError, match="needs a bottleneck"):
        HybridBackbone(HybridConfig())
    with pytest.raises(UnknownNameError):
        HybridConfig(bottleneck="mine")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`qhw train backbone --bottleneck` makes a run folder, `qhw evaluate backbone` measures it on other engines."""
    out = str(tmp_path / "run")
    train = ["train", "backbone", "--bottleneck", "quantum", "--channels", "8,8", "--attention", "false,false",
             "--patch", "1", "--n-qubits", "2", "--depth", "1", "--steps", "2", "--out", out]  # fmt: skip
    assert main([*train, "--logger", logs.file_of(tmp_path)]) == 0
    assert "--backbone" in capsys.readouterr().out
    assert [list(values) for _, values, what in logs.told(tmp_path) if what == "picture"] == [["charts/samples"]]
    assert isinstance(Backbone.load(out).config, HybridConfig)
    measure = ["evaluate", "backbone", out, "--constants", "1", "--images", "40", "--steps", "2"]
    assert main([*measure, "--device", "fake_manila", "--engine", "noisy"]) == 0
    assert "energy" in capsys.readouterr().out
    assert main(["train", "backbone", "--n-qubits", "2", "--out", str(tmp_path / "other")]) != 0
    assert "--bottleneck quantum" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_without_a_bottleneck_nothing_changes() -> None:
    """The ordinary backbone and its configuration are what they were."""
    assert type(Backbone.load("digits").config) is BackboneConfig
    assert math.isclose(float(Backbone.load("digits").alphas_cumprod[0]), 0.99995869, rel_tol=1e-6)
    assert not isinstance(Backbone.load("digits").unet, QuantumLayer)
