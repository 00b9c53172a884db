from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import torch
from scipy import stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import metrics
from qhw_diffusion.errors import InvalidInputError, MissingDataError, MissingDependencyError


def two_sets(n: int = 300, m: int = 200, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated Gaussians of different mean and covariance."""
    generator = torch.Generator().manual_seed(seed)
    mix_a, mix_b = torch.randn(2, width, width, generator=generator)
    a = torch.randn(n, width, generator=generator) @ mix_a + 0.3
    b = torch.randn(m, width, generator=generator) @ mix_b
    return a, b


class Flat(torch.nn.Module):
    """Features of torchmetrics' distances: the pixels of a [N, 3, 1, 2] image, six of them."""

    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def as_images(features: Tensor) -> Tensor:
    return features.view(-1, 3, 1, 2)


def test_frechet_distance_agrees_with_scipy() -> None:
    a, b = (x.double().numpy() for x in two_sets())
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert diffusion.frechet_distance(*two_sets()) == pytest.approx(wanted, rel=1e-6)


def test_frechet_distance_agrees_with_torchmetrics() -> None:
    a, b = two_sets()
    fid = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 1, 2))
    fid.set_dtype(torch.float64)
    fid.update(as_images(a.double()), real=True)
    fid.update(as_images(b.double()), real=False)
    assert diffusion.frechet_distance(a, b) == pytest.approx(float(fid.compute()), rel=1e-4)


def test_frechet_distance_closed_forms() -> None:
    a, b = two_sets()
    assert diffusion.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert diffusion.frechet_distance(a, a + 2.0) == pytest.approx(6 * 4.0, rel=1e-6)
    assert diffusion.frechet_distance(a, b) == pytest.approx(diffusion.frechet_distance(b, a), rel=1e-9)
    # scaling about the mean: tr(Σ + s²Σ − 2sΣ) = (1 − s)² tr Σ
    scaled = a.mean(0) + 3.0 * (a - a.mean(0))
    assert diffusion.frechet_distance(a, scaled) == pytest.approx(4.0 * float(a.double().var(0).sum()), rel=1e-5)
    # a constant feature makes the covariances singular; it must not disturb
    constant = torch.ones(len(a), 1)
    wider = diffusion.frechet_distance(torch.cat([a, constant], 1), torch.cat([b, torch.ones(len(b), 1)], 1))
    assert wider == pytest.approx(diffusion.frechet_distance(a, b), rel=1e-6)


def test_frechet_distance_with_fewer_rows_than_features() -> None:
    a, b = two_sets(5, 4, 6)
    cov_a, cov_b = np.cov(a.double().numpy(), rowvar=False), np.cov(b.double().numpy(), rowvar=False)
    eigenvalues = scipy.linalg.eigvals(cov_a @ cov_b).real.clip(0)
    mean = float((a.double().mean(0) - b.double().mean(0)).square().sum())
    wanted = mean + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(eigenvalues).sum()
    assert diffusion.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-5)


def test_kernel_distance_agrees_with_torchmetrics() -> None:
    a, b = two_sets(150, 150)
    with pytest.warns(UserWarning, match="buffer"):
        kid = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=150, normalize=True)
    kid.update(as_images(a), real=True)
    kid.update(as_images(b), real=False)
    assert diffusion.kernel_distance(a, b) == pytest.approx(float(kid.compute()[0]), rel=1e-3)


def test_kernel_distance_is_unbiased() -> None:
    """Two samples of one distribution: positive and negative values that average to nothing."""
    generator = torch.Generator().manual_seed(0)
    values = [diffusion.kernel_distance(*torch.randn(2, 30, 5, generator=generator)) for _ in range(400)]
    mean, error = np.mean(values), np.std(values) / 20
    assert abs(mean) < 3 * error
    assert min(values) < 0 < max(values)


def test_witness_is_tied_to_the_kernel_distance() -> None:
    generated, real = (x.double() for x in two_sets(40, 50))
    witness = diffusion.mmd_witness(generated, real)
    assert witness.shape == (40,)
    by_hand = []
    for i in range(40):
        others = [diffusion.polynomial_kernel(generated[[i]], generated[[j]]).item() for j in range(40) if j != i]
        by_hand.append(diffusion.polynomial_kernel(generated[[i]], real).mean().item() - np.mean(others))
    np.testing.assert_allclose(witness.numpy(), by_hand, rtol=1e-9)

    def among(x: Tensor) -> float:
        kernel = diffusion.polynomial_kernel(x, x)
        n = len(x)
        return float((kernel.sum() - kernel.trace()) / (n * (n - 1)))

    mmd = among(real) - among(generated) - 2 * float(witness.mean())
    assert diffusion.kernel_distance(generated, real) == pytest.approx(mmd, rel=1e-9)


def test_gradient_of_the_witness_is_that_of_the_kernel_distance() -> None:
    """∇_{x_i} MMD² = −(2/N) ∇_{x_i} w_i with the other images held fixed (finite differences on kernel_distance)."""
    generated, real = (x.double() for x in two_sets(20, 30))
    for i in (0, 7):
        moving = generated[[i]].clone().requires_grad_()
        rows = torch.cat([generated[:i], moving, generated[i + 1 :]])
        fixed = rows.detach()
        # w_i as a function of x_i alone: row i against the others held fixed
        kernel = diffusion.polynomial_kernel(moving, torch.cat([fixed[:i], fixed[i + 1 :]]))
        own = diffusion.polynomial_kernel(moving, real).mean() - kernel.mean()
        assert own.item() == pytest.approx(diffusion.mmd_witness(fixed, real)[i].item(), rel=1e-9)
        (gradient,) = torch.autograd.grad(own, moving)
        for column in range(3):
            step = torch.zeros_like(generated)
            step[i, column] = 1e-5
            up, down = (diffusion.kernel_distance(generated + s * step, real) for s in (1, -1))
            assert (up - down) / 2e-5 == pytest.approx(-2 / 20 * gradient[0, column].item(), rel=1e-4)


def test_following_the_witness_lowers_the_kernel_distance() -> None:
    generated, real = two_sets(60, 60, 3)
    before = diffusion.kernel_distance(generated, real)
    x = generated.clone()
    for _ in range(50):
        x.requires_grad_()
        # detached copies of the others: the witness as each image's own reward
        to_real = diffusion.polynomial_kernel(x, real).mean(1)
        kernel = diffusion.polynomial_kernel(x, x.detach())
        own = to_real - (kernel.sum(1) - kernel.diagonal()) / (len(x) - 1)
        (gradient,) = torch.autograd.grad(own.sum(), x)
        x = (x + 0.05 * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1.0)).detach()
    assert diffusion.kernel_distance(x, real) < 0.5 * before


def test_energy_distance_of_classes_agrees_with_scipy() -> None:
    """In one dimension scipy has it with the pairs of a point with itself, which are none here."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 1, generator=generator).double(), 0.3 + 2 * torch.randn(60, 1, generator=generator).double()
    labels_a, labels_b = torch.arange(50) % 2, (torch.arange(60) // 15) % 3  # class 2 is in the second set alone
    width, wanted = b.std(0), 0.0
    for label in (0, 1):
        x, y = ((f[of == label] / width)[:, 0].numpy() for f, of in ((a, labels_a), (b, labels_b)))
        own = [np.abs(v[:, None] - v[None, :]).mean() / (len(v) - 1) for v in (x, y)]  # of the pairs left out
        wanted += (stats.energy_distance(x, y) ** 2 - sum(own)) / 2
    found = diffusion.class_energy_distance(a, labels_a, b, labels_b)
    assert found == pytest.approx(wanted, rel=1e-9)
    assert diffusion.class_energy_distance(3 * a, labels_a, 3 * b, labels_b) == pytest.approx(found, rel=1e-9)
    # the same sets with the labels of one swapped: the marginal distributions have not changed
    far = torch.cat([torch.zeros(20, 1), 9 + torch.zeros(20, 1)]) + 0.1 * torch.randn(40, 1, generator=generator)
    of = torch.arange(40) // 20
    assert diffusion.class_energy_distance(far, 1 - of, far, of) > 1.0
    assert abs(diffusion.class_energy_distance(far, of, far, of)) < 0.1
    with pytest.raises(InvalidInputError, match="no class has two images in both"):
        diffusion.class_energy_distance(a[:2], torch.tensor([0, 1]), b, labels_b)


def test_diversity_agrees_with_scipy_and_sees_collapse() -> None:
    a, _ = two_sets(30)
    labels = torch.tensor([0] * 10 + [1] * 15 + [2] * 4 + [5])  # class 5 has no pair
    wanted = np.mean([scipy.spatial.distance.pdist(a[labels == c].double().numpy()).mean() for c in (0, 1, 2)])
    assert diffusion.diversity(a, labels) == pytest.approx(wanted, rel=1e-9)
    assert diffusion.diversity(a[:1].expand(30, -1), labels) == 0.0
    with pytest.raises(InvalidInputError, match="pair"):
        diffusion.diversity(a[:3], torch.tensor([0, 1, 2]))


def test_precision_and_recall_agree_with_sklearn() -> None:
    generated, real = two_sets(120, 90, 4)
    wanted = []
    for centres, points in ((real, generated), (generated, real)):
        tree = NearestNeighbors(n_neighbors=4).fit(centres.double().numpy())
        radius = tree.kneighbors(centres.double().numpy())[0][:, 3]  # column 0 is the point itself
        distance = scipy.spatial.distance.cdist(points.double().numpy(), centres.double().numpy())
        wanted.append((distance <= radius).any(1).mean())
    assert diffusion.precision_recall(generated, real, k=3) == pytest.approx(wanted)


def test_precision_and_recall_mean_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.cat([torch.randn(100, 3, generator=generator), torch.randn(100, 3, generator=generator) + 30])
    one_mode = torch.randn(100, 3, generator=generator)
    precision, recall = diffusion.precision_recall(one_mode, real)
    assert precision > 0.8  # what is made is real…
    assert recall < 0.6  # …but half is never made
    assert diffusion.precision_recall(one_mode + 1000, real) == (0.0, 0.0)


@pytest.mark.parametrize("function", [diffusion.frechet_distance, diffusion.kernel_distance, diffusion.mmd_witness])
def test_bad_features(function: object) -> None:
    assert callable(function)
    a, b = two_sets()
    for pair in ((a, b[:, :3]), (a[:1], b), (a[0], b), (a, b.masked_fill(b > 1, float("nan")))):
        with pytest.raises(InvalidInputError, match=r"features|NaN"):
            function(*pair)
    with pytest.raises(InvalidInputError, match="k = 3"):
        diffusion.precision_recall(a[:3], b)


def test_inception_takes_its_published_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.pth"
    with pytest.raises(MissingDataError, match="pt_inception-2015-12-05-6726825d"):
        diffusion.Inception(weights)
    torch.save({"scale": torch.tensor([1.0, 10.0, 100.0])}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(InvalidInputError, match=f"begins with {digest[:8]}, wanted is 6726825d"):
        diffusion.Inception(weights)
    monkeypatch.setattr(diffusion.metrics, "_INCEPTION", digest[:8])
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(MissingDependencyError, match="pip install torch-fidelity"):
        diffusion.Inception(weights)

    class Network(torch.nn.Module):
        """Takes what torch-fidelity's network takes: 8-bit colour images."""

        def __init__(self, name: str, features: list[str], path: str) -> None:
            super().__init__()
            assert features == ["2048"]
            self.scale = torch.load(path, weights_only=True)["scale"]

        def forward(self, x: Tensor) -> tuple[Tensor]:
            assert x.dtype == torch.uint8
            assert x.shape[1] == 3
            assert len(x) <= 50
            return (x.float().mean((2, 3)) * self.scale,)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    levels = torch.tensor([-1.0, 0.0, 1.0]).repeat(40)
    found = diffusion.Inception(weights).features(levels[:, None, None, None].expand(-1, 1, 2, 2))
    wanted = torch.tensor([0.0, 128.0, 255.0]).repeat(40)[:, None] * torch.tensor([1.0, 10.0, 100.0])
    torch.testing.assert_close(found, wanted)


def test_what_follows_from_the_real_features_is_kept_while_they_are_there_and_unchanged() -> None:
    generator = torch.Generator().manual_seed(0)
    generated, real = torch.randn(20, 5, generator=generator), torch.randn(60, 5, generator=generator)

    def measured(a: torch.Tensor, b: torch.Tensor) -> tuple[float, ...]:
        return (metrics.kernel_distance(a, b), *metrics.precision_recall(a, b))

    first, before = measured(generated, real), len(metrics._KNOWN)
    assert measured(generated, real) == first == measured(generated.clone(), real.clone())
    assert measured(real, generated) == (pytest.approx(first[0]), first[2], first[1])
    assert len(metrics._KNOWN) == before
    real.mul_(3.0)
    assert measured(generated, real) == measured(generated, real.clone()) != first
    del generated, real
    assert len(metrics._KNOWN) == before - 2
