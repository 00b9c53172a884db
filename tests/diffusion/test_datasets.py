from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as datasets_of

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import datasets
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError, UnknownNameError


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX format of MNIST's files: 0, 0, type (8 = uint8), rank, big-endian sizes, data."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


@pytest.fixture
def fake_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray, np.ndarray]:
    """A folder of .gz files with 10,000 held-out images, and far too few training images."""
    monkeypatch.setenv("QHW_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    pixels = np.zeros((10_000, 28, 28), np.uint8)
    pixels[:20] = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, 10_000, dtype=np.uint8)
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    contents = {
        "t10k-images-idx3-ubyte": pixels,
        "t10k-labels-idx1-ubyte": labels,
        "train-images-idx3-ubyte": pixels[:10],
        "train-labels-idx1-ubyte": labels[:10],
    }
    for name, array in contents.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array), 1))
    return tmp_path / "root", pixels, labels


def test_digits_split_is_fixed_stratified_and_complete() -> None:
    train, heldout = diffusion.load_dataset("digits"), diffusion.load_dataset("digits", "heldout")
    assert (len(train), len(heldout)) == (1200, 597)
    assert train.images.shape == (1200, 1, 8, 8)
    assert train.images.dtype == torch.float32
    assert train.labels.dtype == torch.int64
    together = torch.cat([train.images, heldout.images]).flatten(1)
    original = torch.from_numpy(load_digits().data.astype(np.float32)) / 8 - 1
    # every original image is in exactly one of the splits
    assert torch.equal(torch.unique(together, dim=0), torch.unique(original, dim=0))
    assert float(together.sum()) == pytest.approx(float(original.sum()))
    share = torch.bincount(train.labels) / torch.bincount(torch.cat([train.labels, heldout.labels]))
    assert (share - 1200 / 1797).abs().max() < 0.01
    # the shipped models were trained on this very split
    backbone = diffusion.Backbone.load("digits")
    assert backbone.provenance["data_fingerprint"] == train.fingerprint
    evaluator = diffusion.Classifier.load("digits", "evaluation")
    assert evaluator.provenance["heldout_fingerprint"] == heldout.fingerprint


def test_fingerprint_sees_one_pixel_and_one_label() -> None:
    data = diffusion.load_dataset("digits", "heldout")
    changed = data.images.clone()
    changed[3, 0, 4, 4] -= 1 / 8
    assert diffusion.ImageDataset(changed, data.labels, "digits", "heldout").fingerprint != data.fingerprint
    labels = data.labels.clone()
    labels[0] = (labels[0] + 1) % 10
    assert diffusion.ImageDataset(data.images, labels, "digits", "heldout").fingerprint != data.fingerprint


@pytest.mark.parametrize(("name", "split"), [("digit", "train"), ("digits", "test")])
def test_unknown_names(name: str, split: str) -> None:
    with pytest.raises(UnknownNameError):
        diffusion.load_dataset(name, split)


def test_dataset_shapes_are_checked() -> None:
    with pytest.raises(InvalidInputError, match=r"\[N, C, H, W\]"):
        diffusion.ImageDataset(torch.zeros(3, 8, 8), torch.zeros(3, dtype=torch.int64), "own", "train")


def test_mnist_from_packed_files_leaves_them_alone(fake_mnist: tuple[Path, np.ndarray, np.ndarray]) -> None:
    root, pixels, labels = fake_mnist
    before = sorted(p.name for p in (root / "MNIST" / "raw").iterdir())
    for _ in range(2):  # the second time from the cache
        data = diffusion.load_dataset("mnist28", "heldout", root, download=False)
    assert torch.equal(data.images[:20, 0], torch.from_numpy(pixels[:20]).float() / 255 * 2 - 1)
    assert torch.equal(data.labels, torch.from_numpy(labels.astype(np.int64)))
    assert sorted(p.name for p in (root / "MNIST" / "raw").iterdir()) == before


def test_mnist16_is_the_antialiased_bilinear_image(fake_mnist: tuple[Path, np.ndarray, np.ndarray]) -> None:
    root, pixels, _ = fake_mnist
    data = diffusion.load_dataset("mnist16", "heldout", root, download=False)
    assert data.image_shape == (1, 16, 16)
    for i in range(5):
        pillow = np.asarray(Image.fromarray(pixels[i]).resize((16, 16), Image.Resampling.BILINEAR), dtype=np.float32)
        assert np.abs((data.images[i, 0].numpy() + 1) * 127.5 - pillow).max() < 1.0  # Pillow rounds to bytes, twice


def test_wrong_number_of_images_is_damage(fake_mnist: tuple[Path, np.ndarray, np.ndarray]) -> None:
    with pytest.raises(DamagedFileError, match="60000"):
        diffusion.load_dataset("mnist28", "train", fake_mnist[0], download=False)


def test_truncated_packed_file_is_damage(fake_mnist: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    packed = fake_mnist[0] / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(DamagedFileError, match="gzip"):
        diffusion.load_dataset("mnist28", "heldout", fake_mnist[0], download=False)
    assert not list((tmp_path / "cache").rglob("t10k-images*"))  # nothing half-written is taken for the file


def test_absent_mnist_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDataError, match="data_root/MNIST/raw"):
        diffusion.load_dataset("mnist16", data_root=tmp_path, download=False)

    def no_network(self: datasets_of.MNIST) -> None:
        Path(self.raw_folder).mkdir(parents=True)
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried there")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", no_network)
    with pytest.raises(MissingDataError, match=r"could not be downloaded \(Error .*gz: Tried there\)"):
        diffusion.load_dataset("mnist28", data_root=tmp_path / "new" / "data")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("QHW_DATA_ROOT", str(tmp_path / "elsewhere"))
    assert datasets.default_data_root() == tmp_path / "elsewhere"


def test_a_full_cache_disk_is_no_damaged_file(
    fake_mnist: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*idx3-ubyte'"):
        diffusion.load_dataset("mnist28", "heldout", fake_mnist[0], download=False)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_user_without_a_home_folder_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "QHW_CACHE", "QHW_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where the password file does not know the user
    with pytest.raises(MissingDataError, match="set HOME, or QHW_CACHE"):
        diffusion.load_dataset("mnist28")


def test_fashion_has_its_own_folder(
    fake_mnist: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, pixels, _ = fake_mnist
    with pytest.raises(MissingDataError, match="data_root/FashionMNIST/raw"):
        diffusion.load_dataset("fashion28", "heldout", root, download=False)  # MNIST lies there, Fashion-MNIST does not

    def no_network(self: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.download", no_network)
    with pytest.raises(MissingDataError, match=r"no FashionMNIST .* could not be downloaded"):
        diffusion.load_dataset("fashion16", data_root=tmp_path / "new")

    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    labels = (np.arange(10_000) % 10).astype(np.uint8)
    contents = {
        "t10k-images-idx3-ubyte": 255 - pixels,
        "t10k-labels-idx1-ubyte": labels,
        "train-images-idx3-ubyte": pixels[:10],
        "train-labels-idx1-ubyte": labels[:10],
    }
    for name, array in contents.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array), 1))
    fashion = diffusion.load_dataset("fashion28", "heldout", root, download=False)
    mnist = diffusion.load_dataset("mnist28", "heldout", root, download=False)
    assert fashion.name == "fashion28"
    torch.testing.assert_close(fashion.images, -mnist.images)  # neither is taken for the other
    assert torch.equal(fashion.labels, torch.arange(10_000) % 10)
    small = diffusion.load_dataset("fashion16", "heldout", root, download=False)
    pillow = np.asarray(Image.fromarray(255 - pixels[0]).resize((16, 16), Image.Resampling.BILINEAR), dtype=np.float32)
    assert np.abs((small.images[0, 0].numpy() + 1) * 127.5 - pillow).max() < 1.0
    with pytest.raises(DamagedFileError, match=r"FashionMNIST .* expected \(60000"):
        diffusion.load_dataset("fashion28", "train", root, download=False)


def test_image_shapes_without_loading() -> None:
    assert datasets.image_shape_of("digits") == diffusion.load_dataset("digits").image_shape
    assert datasets.image_shape_of("fashion16") == (1, 16, 16)
    with pytest.raises(UnknownNameError, match="fashion28"):
        datasets.image_shape_of("fashion")


@pytest.mark.slow
def test_real_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.environ.get("QHW_DATA_ROOT")
    if not root or not (Path(root) / "FashionMNIST").is_dir():
        pytest.skip("QHW_DATA_ROOT does not name a folder with FashionMNIST")
    monkeypatch.setenv("QHW_CACHE", str(tmp_path))
    data = diffusion.load_dataset("fashion28", "train", root, download=False)
    # published: balanced classes, and the training set's mean grey value .2860
    assert torch.bincount(data.labels).tolist() == [6000] * 10
    assert float((data.images.mean() + 1) / 2) == pytest.approx(0.2860, abs=1e-4)


@pytest.mark.slow
def test_real_mnist() -> None:
    root = os.environ.get("QHW_DATA_ROOT")
    if not root or not (Path(root) / "MNIST").is_dir():
        pytest.skip("QHW_DATA_ROOT does not name a folder with MNIST")
    data = diffusion.load_dataset("mnist28", "heldout", root, download=False)
    # published: the test set's class counts, and its mean grey value .1325
    assert torch.bincount(data.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float((data.images.mean() + 1) / 2) == pytest.approx(0.1325, abs=1e-4)
