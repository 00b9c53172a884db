"""Pictures of a user's own: one folder per class, in a folder or a tar archive."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qhw_diffusion import diffusion
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError


def write(root: Path, name: str, pixels: np.ndarray) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    names = ("train/owl/b.png", "train/owl/a.png", "train/ant/z.PNG", "test/ant/0.bmp", "test/owl/1.png")
    made = {name: rng.integers(0, 256, (5, 4, 3), dtype=np.uint8) for name in names}
    for name, pixels in made.items():
        write(tmp_path / "pictures", name, pixels)
    (tmp_path / "pictures" / "train" / "owl" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures", made


def packed(root: Path) -> Path:
    with tarfile.open(root.parent / "pictures.tar", "w") as archive:
        for path in sorted(root.rglob("*"), reverse=True):
            archive.add(path, path.relative_to(root).as_posix(), recursive=False)
    return root.parent / "pictures.tar"


def test_folders_become_classes(pictures: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, made = pictures
    for where in (root, packed(root)):
        train, heldout = (diffusion.load_dataset("imagefolder", split, where) for split in ("train", "heldout"))
        assert (train.labels.tolist(), heldout.labels.tolist()) == ([0, 1, 1], [0, 1])  # ant, owl
        assert (train.n_classes, train.image_shape, train.name) == (2, (3, 5, 4), "imagefolder")
        wanted = [made[name] for name in ("train/ant/z.PNG", "train/owl/a.png", "train/owl/b.png")]
        for image, pixels in zip(train.images, wanted, strict=True):
            assert np.array_equal(((image + 1) * 127.5).round().permute(1, 2, 0).numpy(), pixels)
        assert diffusion.image_shape_of("imagefolder", where) == (3, 5, 4)
        assert diffusion.n_classes_of("imagefolder", where) == 2
    assert diffusion.BackboneConfig.for_dataset("imagefolder", data_root=root).image_shape == (3, 5, 4)


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("a", "b"):
            write(tmp_path, f"{split}/{kind}/0.png", np.full((4, 4), ord(kind) + len(split), np.uint8))
    data = diffusion.load_dataset("imagefolder", "heldout", tmp_path)
    assert data.image_shape == (1, 4, 4)
    assert torch.equal(((data.images[:, 0, 0, 0] + 1) * 127.5).round(), torch.tensor([100.0, 101.0]))


def test_bad_folders(
    pictures: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = pictures
    monkeypatch.delenv("QHW_DATA_ROOT", raising=False)
    with pytest.raises(MissingDataError, match="needs data_root"):
        diffusion.load_dataset("imagefolder")
    with pytest.raises(MissingDataError, match=r"does not exist: .*train/CLASS/PICTURE"):
        diffusion.load_dataset("imagefolder", "train", tmp_path / "nowhere")
    with pytest.raises(MissingDataError, match="holds no pictures of split 'train'"):
        diffusion.load_dataset("imagefolder", "train", root / "train")
    archive = packed(root)
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises((DamagedFileError, MissingDataError)):
        diffusion.load_dataset("imagefolder", "train", archive)
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(DamagedFileError, match="no readable tar archive"):
        diffusion.load_dataset("imagefolder", "train", tmp_path / "text.tar")
    write(root, "train/owl/c.png", np.zeros((6, 4, 3), np.uint8))
    with pytest.raises(InvalidInputError, match=r"owl/c.png is of 4×6 pixels and train/ant/z.PNG of 4×5"):
        diffusion.load_dataset("imagefolder", "train", root)
    (root / "train/owl/c.png").write_bytes(b"no picture")
    with pytest.raises(DamagedFileError, match=r"owl/c.png is no readable picture"):
        diffusion.load_dataset("imagefolder", "train", root)
    (root / "train/owl/c.png").unlink()
    write(root, "train/bee/0.png", np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(InvalidInputError, match="has the classes ant, bee, owl to train on, and ant, owl held out"):
        diffusion.load_dataset("imagefolder", "train", root)
