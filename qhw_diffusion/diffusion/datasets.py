"""The data sets: scikit-learn's digits (embedded), MNIST and Fashion-MNIST at 16×16 and 28×28 (on disk or fetched)."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from ..errors import DamagedFileError, MissingDataError, UnknownNameError
from ..runs import atomic_write_bytes
from .checks import check_images, check_labels, check_shape_and_classes

# name: (class of torchvision.datasets that reads it, side of its square images)
_SOURCES = {
    "digits": ("", 8),
    "mnist16": ("MNIST", 16),
    "mnist28": ("MNIST", 28),
    "fashion16": ("FashionMNIST", 16),
    "fashion28": ("FashionMNIST", 28),
}
DATASETS = tuple(_SOURCES)
SPLITS = ("train", "heldout")
_DIGITS_HELDOUT = 597  # of 1,797: the other 1,200 train
_DIGITS_SPLIT_SEED = 0
_RAW_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images held in memory.

    Attributes:
        images: float32 [N, C, H, W] in [-1, 1], N ≥ 1.
        labels: int64 [N], 0 … n_classes − 1.
        name: one of `DATASETS` for a data set loaded here; free for one's own.
        split: "train" or "heldout".
        n_classes: number of classes.

    Raises:
        InvalidInputError: images or labels that are not as said.
    """

    images: Tensor
    labels: Tensor
    name: str
    split: str
    n_classes: int = 10

    def __post_init__(self) -> None:
        check_images(self.images)
        check_shape_and_classes(self.image_shape, self.n_classes)
        check_labels(self.labels, self.n_classes, len(self.images))
        if float(self.images.min()) >= 0 < float(self.images.max()):
            warnings.warn(
                f"no pixel of data set {self.name!r} is below 0: black is -1 here, and images x in [0, 1], as "
                "torchvision's ToTensor makes them, become x * 2 - 1",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the labels and the images as bytes 0…255: says that two machines hold the same split."""
        digest = hashlib.sha256(self.labels.numpy().astype("<i8").tobytes())
        digest.update(((self.images + 1) * 127.5).round().to(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Tensor) -> ImageDataset:
        """The images at the given int64 indices, in that order."""
        return ImageDataset(self.images[indices], self.labels[indices], self.name, self.split, self.n_classes)


def load_dataset(
    name: str, split: str = "train", data_root: str | Path | None = None, *, download: bool = True
) -> ImageDataset:
    """A data set with its fixed split.

    `digits`: scikit-learn's 8×8 digits, 1,200 train / 597 held out, stratified by class with a fixed seed; needs no
    files. `mnist28`: MNIST as published (60,000 / 10,000). `mnist16`: the same, anti-aliased bilinear to 16×16.
    `fashion28`, `fashion16`: the same two of Fashion-MNIST (arXiv 1708.07747), ten kinds of clothing.

    Args:
        name: one of `DATASETS`.
        split: "train" or "heldout".
        data_root: folder in torchvision's layout (`data_root/MNIST/raw/*`, `data_root/FashionMNIST/raw/*`, decompressed
            or .gz; a read-only folder of .gz files is decompressed into the cache folder). Default: $QHW_DATA_ROOT,
            else ~/.cache/qhw_diffusion/data.
        download: fetch the files through torchvision when they are not there and the folder is writable.

    Raises:
        UnknownNameError: unknown name or split.
        MissingDataError: the files are neither in `data_root` nor downloadable from here.
        DamagedFileError: the files are there but cannot be read as this data set.
    """
    if name not in DATASETS:
        raise UnknownNameError.of("data set", name, DATASETS)
    if split not in SPLITS:
        raise UnknownNameError.of("split", split, SPLITS)
    if name == "digits":
        return _digits(split)
    source, side = _SOURCES[name]
    root = Path(data_root) if data_root is not None else default_data_root()
    images, labels = _mnist(source, split, root, download)
    if side != images.shape[-1]:
        images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return ImageDataset(images * 2 - 1, labels, name, split)


def image_shape_of(name: str) -> tuple[int, int, int]:
    """(C, H, W) of a data set's images, without loading it. Raises UnknownNameError."""
    if name not in DATASETS:
        raise UnknownNameError.of("data set", name, DATASETS)
    side = _SOURCES[name][1]
    return 1, side, side


def default_data_root() -> Path:
    """$QHW_DATA_ROOT, else the cache folder."""
    given = os.environ.get("QHW_DATA_ROOT")
    return Path(given) if given else cache_folder() / "data"


def cache_folder() -> Path:
    """$QHW_CACHE, else ~/.cache/qhw_diffusion: downloads and decompressed copies. MissingDataError without a home."""
    given = os.environ.get("QHW_CACHE")
    if given:
        return Path(given)
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise MissingDataError("this user has no home folder to keep data in: set HOME, or QHW_CACHE to a folder")
    return Path(home) / ".cache" / "qhw_diffusion"


def _digits(split: str) -> ImageDataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    train, heldout = train_test_split(
        np.arange(len(raw.target)), test_size=_DIGITS_HELDOUT, random_state=_DIGITS_SPLIT_SEED, stratify=raw.target
    )
    chosen = np.sort(train if split == "train" else heldout)
    images = torch.from_numpy(raw.images[chosen].astype(np.float32)).unsqueeze(1) / 8 - 1  # pixels are 0 … 16
    return ImageDataset(images, torch.from_numpy(raw.target[chosen].astype(np.int64)), "digits", split)


def _mnist(source: str, split: str, root: Path, download: bool) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 1, 28, 28] in [0, 1], labels int64 [N]; source: "MNIST" or "FashionMNIST"."""
    from torchvision import datasets

    folder = _mnist_root(source, root, download)
    try:
        data = getattr(datasets, source)(str(folder), train=split == "train", download=False)
    except (RuntimeError, ValueError, AssertionError, EOFError) as error:
        raise DamagedFileError(f"the files under {folder / source / 'raw'} are not {source}: {error}") from error
    expected = 60_000 if split == "train" else 10_000
    if data.data.shape != (expected, 28, 28) or data.targets.shape != (expected,):
        raise DamagedFileError(
            f"{source} under {folder} has {tuple(data.data.shape)} images and {tuple(data.targets.shape)} labels; "
            f"expected ({expected}, 28, 28) and ({expected},): delete the files and fetch them again"
        )
    return data.data.unsqueeze(1).float() / 255, data.targets.long()


def _mnist_root(source: str, root: Path, download: bool) -> Path:
    """A folder that torchvision can read: `root` itself, a decompressed copy, or a fresh download."""
    raw = root / source / "raw"
    if all((raw / name).is_file() for name in _RAW_FILES):
        return root
    if all((raw / f"{name}.gz").is_file() for name in _RAW_FILES):
        return _decompressed(source, raw)
    from torchvision import datasets

    advice = f"put {source}'s four files into {raw} (data_root/{source}/raw, as torchvision lays them out)"
    if not download:
        raise MissingDataError(f"no {source} under {root} and download=False: {advice}")
    made = [folder for folder in (raw, *raw.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, source)(str(root), download=True)
    except (RuntimeError, URLError, OSError) as error:
        for folder in made:
            with contextlib.suppress(OSError):  # not made after all, or with files in it
                folder.rmdir()
        reason = " ".join(str(error).split())  # torchvision's is of several lines
        raise MissingDataError(
            f"no {source} under {root}, and it could not be downloaded ({reason}): {advice}"
        ) from error
    return root


def _decompressed(source: str, raw: Path) -> Path:
    """Decompress the .gz files into the cache folder, once per set of files (keyed by their path, size and date)."""
    stats = [(raw / f"{name}.gz").stat() for name in _RAW_FILES]
    key = hashlib.sha256(repr([str(raw.resolve()), *((s.st_size, s.st_mtime_ns) for s in stats)]).encode()).hexdigest()
    target = cache_folder() / "decompressed" / key[:16]
    folder = target / source / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name in _RAW_FILES:
        if (folder / name).is_file():
            continue
        try:
            content = gzip.decompress((raw / f"{name}.gz").read_bytes())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DamagedFileError(f"{raw / name}.gz is not a readable gzip file: {error}") from error
        atomic_write_bytes(folder / name, content)
    return target
