"""CIFAR-10, CIFAR-100 and STL-10 in torchvision's folders, from small files of the same formats."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import datasets
from qhw_diffusion.errors import DamagedFileError, MissingDataError


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision takes files that are not the published ones."""
    for module in ("cifar", "stl10"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)


def pickled(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


@pytest.mark.usefixtures("any_checksum")
def test_cifar_is_read_as_published(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = {name: rng.integers(0, 256, (2, 3072), dtype=np.uint8) for name in ("1", "2", "3", "4", "5", "test")}
    for name, rows in pixels.items():
        file = "test_batch" if name == "test" else f"data_batch_{name}"
        pickled(tmp_path / "cifar-10-batches-py" / file, {"data": rows, "labels": [9, 3]})
    pickled(tmp_path / "cifar-10-batches-py" / "batches.meta", {"label_names": list("abcdefghij")})
    train, heldout = (diffusion.load_dataset("cifar10", split, tmp_path) for split in ("train", "heldout"))
    assert (train.labels.tolist(), heldout.labels.tolist()) == ([9, 3] * 5, [9, 3])
    # a row is 1,024 red pixels, then the green, then the blue ones, each row by row
    wanted = torch.from_numpy(pixels["test"]).view(2, 3, 32, 32).float() / 255 * 2 - 1
    torch.testing.assert_close(heldout.images, wanted)
    assert train.image_shape == datasets.image_shape_of("cifar10") == (3, 32, 32)
    assert train.n_classes == datasets.n_classes_of("cifar10") == 10

    fine = {"data": pixels["1"], "fine_labels": [99, 0]}
    for file in ("train", "test"):
        pickled(tmp_path / "cifar-100-python" / file, fine)
    pickled(tmp_path / "cifar-100-python" / "meta", {"fine_label_names": [str(i) for i in range(100)]})
    hundred = diffusion.load_dataset("cifar100", "heldout", tmp_path)
    assert (hundred.labels.tolist(), hundred.n_classes) == ([99, 0], 100)


@pytest.mark.usefixtures("any_checksum")
def test_stl_is_read_upright_at_both_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    for name in ("train", "test"):
        (folder / f"{name}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())  # column by column
        (folder / f"{name}_y.bin").write_bytes(bytes([1, 10]))  # classes are counted from 1
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    large, small = (diffusion.load_dataset(name, "heldout", tmp_path) for name in ("stl96", "stl32"))
    assert (large.labels.tolist(), small.labels.tolist()) == ([0, 9], [0, 9])
    torch.testing.assert_close(large.images, torch.from_numpy(pixels).float() / 255 * 2 - 1)
    pillow = Image.fromarray(pixels[0].transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BILINEAR)
    ours = ((small.images[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(ours - np.asarray(pillow, dtype=np.float32)).max() < 1.5  # Pillow rounds to bytes, twice


def test_absent_and_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDataError, match=r"no CIFAR10 under .*cifar-10-batches-py \(as torchvision"):
        diffusion.load_dataset("cifar10", data_root=tmp_path, download=False)

    def no_network(self: object) -> None:
        raise RuntimeError("Error downloading\nfrom there")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", no_network)
    with pytest.raises(MissingDataError, match=r"no CIFAR100 .*\(Error downloading from there\)"):
        diffusion.load_dataset("cifar100", data_root=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    pickled(tmp_path / "cifar-10-batches-py" / "test_batch", {"data": np.zeros((1, 3072), np.uint8), "labels": [0]})
    with pytest.raises(DamagedFileError, match=r"cifar-10-batches-py are not CIFAR10"):  # not the published bytes
        diffusion.load_dataset("cifar10", "heldout", tmp_path)
