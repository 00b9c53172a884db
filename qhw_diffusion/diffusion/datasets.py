"""Data sets: labelled images of a built-in name or of a user's own function.

Built in are scikit-learn's digits (embedded), MNIST and Fashion-MNIST at 16×16 and 28×28, CIFAR-10, CIFAR-100 and
STL-10 (on disk or fetched), and "imagefolder": pictures of a user's own, one folder per class.
One of a user's own is a function named as ``module:name`` or ``file.py:name`` wherever a data set's name is taken:

    def stripes(split, data_root):  # split: "train" or "heldout"; data_root: a folder (pathlib.Path) or None
        return images, labels, n_classes  # float32 [N, C, H, W] in [-1, 1], int64 [N], int; or an ImageDataset
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import inspect
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.diffusion.checks import check_images, check_labels, check_shape_and_classes
from qhw_diffusion.diffusion.image_folder import image_folder, image_folder_facts
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError, QhwError, UnknownNameError
from qhw_diffusion.extensions import is_extension, load_extension, raised_text
from qhw_diffusion.runs import atomic_write_bytes

# name: (class of torchvision.datasets that reads it, shape of its images, number of classes)
_SOURCES: dict[str, tuple[str, tuple[int, int, int], int]] = {
    "digits": ("", (1, 8, 8), 10),
    "mnist16": ("MNIST", (1, 16, 16), 10),
    "mnist28": ("MNIST", (1, 28, 28), 10),
    "fashion16": ("FashionMNIST", (1, 16, 16), 10),
    "fashion28": ("FashionMNIST", (1, 28, 28), 10),
    "cifar10": ("CIFAR10", (3, 32, 32), 10),
    "cifar100": ("CIFAR100", (3, 32, 32), 100),
    "stl32": ("STL10", (3, 32, 32), 10),
    "stl96": ("STL10", (3, 96, 96), 10),
}
IMAGE_FOLDER = "imagefolder"
"""Name of the data set that reads a user's own pictures: a folder or tar archive of one folder per class."""
_FUNCTIONS: dict[str, Callable[..., Any]] = {IMAGE_FOLDER: image_folder}
"""Built-in data sets that are a function (split, data_root) as a user's own are, by name."""
DATASETS = tuple(_SOURCES)
"""Names of the built-in data sets whose images are known: all but those of a function."""
SPLITS = ("train", "heldout")
"""Names of the two splits of every data set."""
_DIGITS_HELDOUT = 597  # of 1,797: the other 1,200 train
_DIGITS_SPLIT_SEED = 0
_RAW_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_WANTED = (
    "a function (split, data_root) that returns images, labels and their number of classes: float32 [N, C, H, W] in "
    "[-1, 1], int64 [N] from 0 to n_classes - 1, int (or an ImageDataset of them)"
)


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images held in memory.

    Attributes:
        images: float32 [N, C, H, W] in [-1, 1], N ≥ 1.
        labels: int64 [N], 0 … n_classes − 1.
        name: the name it was loaded by; free for one made in Python.
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
        digest = hashlib.sha256(self.labels.cpu().numpy().astype("<i8").tobytes())
        digest.update(((self.images + 1) * 127.5).round().to(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Tensor) -> ImageDataset:
        """The images at the given int64 indices, in that order."""
        return ImageDataset(self.images[indices], self.labels[indices], self.name, self.split, self.n_classes)


def load_dataset(
    name: str,
    split: str = "train",
    data_root: str | Path | None = None,
    *,
    download: bool = True,
    prompts: Sequence[str] | None = None,
) -> ImageDataset:
    """A data set with its fixed split.

    `digits`: scikit-learn's 8×8 digits, 1,200 train / 597 held out, stratified by class with a fixed seed; needs no
    files. `mnist28`: MNIST as published (60,000 / 10,000). `mnist16`: the same, anti-aliased bilinear to 16×16.
    `fashion28`, `fashion16`: the same two of Fashion-MNIST (arXiv 1708.07747), ten kinds of clothing.
    `cifar10`, `cifar100`: 32×32 colour photographs of 10 and 100 classes (50,000 / 10,000).
    `stl96`: STL-10's labelled photographs, 96×96 (5,000 / 8,000). `stl32`: the same, anti-aliased bilinear to 32×32.
    `imagefolder`: pictures in `data_root/train/CLASS/` and `data_root/test/CLASS/`; see `image_folder`.
    ``module:name`` or ``file.py:name``: a function of a user's own (see the top of this module); it is called with the
    split and `data_root`.

    Args:
        name: one of `DATASETS`, "imagefolder", ``module:name`` or ``file.py:name``.
        split: "train" or "heldout".
        data_root: folder in torchvision's layout (`data_root/MNIST/raw/*`, `data_root/FashionMNIST/raw/*`, decompressed
            or .gz; a read-only folder of .gz files is decompressed into the cache folder; `cifar-10-batches-py`,
            `cifar-100-python`, `stl10_binary`). Default: $QHW_DATA_ROOT, else ~/.cache/qhw_diffusion/data, or None for
            a user's own function. For "imagefolder": a folder or a tar archive.
        download: fetch the files through torchvision when they are not there and the folder is writable.
        prompts: table of prompts that the labels stand for; given to a user's own function that takes ``prompts=``.

    Raises:
        UnknownNameError: unknown name or split.
        MissingDataError: the files are neither in `data_root` nor downloadable from here.
        DamagedFileError: the files are there but cannot be read as this data set.
        InvalidInputError: a user's own function that fails, that returns something else than said, or whose two splits
            are the same images or differ in shape or classes.
    """
    check_dataset_name(name)
    if split not in SPLITS:
        raise UnknownNameError.of("split", split, SPLITS)
    if _is_own(name):
        return _own(name, split, data_root, prompts)
    if name == "digits":
        return _digits(split)
    source, (_, side, _), n_classes = _SOURCES[name]
    root = Path(data_root) if data_root is not None else default_data_root()
    read = _mnist if source in ("MNIST", "FashionMNIST") else _photographs
    images, labels = read(source, split, root, download)
    if side != images.shape[-1]:
        images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return ImageDataset(images * 2 - 1, labels, name, split, n_classes)


def check_dataset_name(name: object) -> None:
    """Check that a name is that of a built-in data set, or of the form of a user's own.

    Raises:
        UnknownNameError: it is neither; the message lists what is allowed.
    """
    if name not in DATASETS and not _is_own(str(name)):
        raise UnknownNameError.of("data set", str(name), (*DATASETS, *_FUNCTIONS), own=True)


def image_shape_of(name: str, data_root: str | Path | None = None) -> tuple[int, int, int]:
    """(C, H, W) of a data set's images; one of a user's own is loaded for it, once per process.

    Raises:
        UnknownNameError: unknown name.
        InvalidInputError: a user's own function that is not as said at `load_dataset`.
    """
    check_dataset_name(name)
    return _facts(name, data_root).image_shape if _is_own(name) else _SOURCES[name][1]


def n_classes_of(name: str, data_root: str | Path | None = None) -> int:
    """Number of classes of a data set. Loads and raises as `image_shape_of`."""
    check_dataset_name(name)
    return _facts(name, data_root).n_classes if _is_own(name) else _SOURCES[name][2]


def is_photographic(image_shape: tuple[int, int, int]) -> bool:
    """Whether images of this shape are taken for photographs, whose recipes are those of CIFAR-10.

    Colour, and at least 32×32 pixels.
    """
    channels, height, width = image_shape
    return channels == 3 and min(height, width) >= 32


def _is_own(name: str) -> bool:
    """Whether the images come from a function, so that their shape is known when they are loaded."""
    return name in _FUNCTIONS or is_extension(name)


def _function_of(name: str) -> Any:
    return _FUNCTIONS.get(name) or load_extension(name, what="data set")


@dataclass(frozen=True)
class _Facts:
    """What is remembered of a split of a user's own, to compare the other split with."""

    image_shape: tuple[int, int, int]
    n_classes: int
    fingerprint: str


# by function, folder and table of prompts; the function stays alive
_SEEN: dict[tuple[int, str, tuple[str, ...]], tuple[Any, dict[str, _Facts]]] = {}


def _own(name: str, split: str, data_root: str | Path | None, prompts: Sequence[str] | None = None) -> ImageDataset:
    """A split of a user's own data set, checked by itself and against the other split where that was loaded."""
    function, root = _function_of(name), _own_root(data_root)
    table = tuple(prompts) if prompts is not None and _takes_prompts(function) else ()
    data = _called(partial(function, prompts=table) if table else function, name, split, root)
    facts = _Facts(data.image_shape, data.n_classes, data.fingerprint)
    _, seen = _SEEN.setdefault((id(function), str(root), table), (function, {}))
    for other, known in seen.items():
        if other == split:
            continue
        if (known.image_shape, known.n_classes) != (facts.image_shape, facts.n_classes):
            raise InvalidInputError(
                f"data set {name!r} has {_shown(known)} in split {other!r} and {_shown(facts)} in split {split!r}; "
                "both splits need one shape of images and one number of classes"
            )
        if known.fingerprint == facts.fingerprint:
            raise InvalidInputError(
                f"data set {name!r} returns the same images for both splits; 'heldout' needs images that 'train' does "
                "not hold: an evaluation on training images would mean nothing"
            )
    seen[split] = facts
    return data


def _takes_prompts(function: Any) -> bool:
    try:
        return "prompts" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False  # nothing that is called, or of C, without a signature to look at


def _called(function: Any, name: str, split: str, root: Path | None) -> ImageDataset:
    """What a user's function returns for a split, as an ImageDataset of this name; its faults in plain words."""
    here = f"data set {name!r}"
    if not callable(function):
        raise InvalidInputError(f"{here} is of type {type(function).__name__}; need {_WANTED}")
    try:
        inspect.signature(function).bind(split, root)
    except TypeError as error:
        raise InvalidInputError(f"{here} cannot be called as function(split, data_root): {error}") from error
    except ValueError:
        pass  # some callables of C have no signature to look at
    here = f"{here}, split {split!r}"
    try:
        made = function(split, root)
        if isinstance(made, tuple) and len(made) == 3:
            made = ImageDataset(*made[:2], name, split, made[2])
    except (MissingDataError, DamagedFileError):
        raise
    except QhwError as error:
        if name in _FUNCTIONS:
            raise
        raise InvalidInputError(f"{here}: {error}. Needed is {_WANTED}") from error
    except OSError as error:
        raise MissingDataError(f"{here}: {error}") from error
    except Exception as error:
        raise InvalidInputError(f"{here} fails with {raised_text(error)}") from error
    if not isinstance(made, ImageDataset):
        given = f"a tuple of {len(made)}" if isinstance(made, tuple) else f"a {type(made).__name__}"
        raise InvalidInputError(f"{here} is {given}; need {_WANTED}")
    if made.split != split:
        raise InvalidInputError(f"{here} is an ImageDataset of split {made.split!r}: the function must heed its split")
    return replace(made, name=name)


def _facts(name: str, data_root: str | Path | None) -> _Facts:
    if name == IMAGE_FOLDER:
        return _Facts(*image_folder_facts(_own_root(data_root)), fingerprint="")
    function = _function_of(name)
    known = _SEEN.get((id(function), str(_own_root(data_root)), ()))
    if known is None or not known[1]:
        data = _own(name, "train", data_root)
        return _Facts(data.image_shape, data.n_classes, data.fingerprint)
    return next(iter(known[1].values()))


def _own_root(data_root: str | Path | None) -> Path | None:
    given = data_root if data_root is not None else os.environ.get("QHW_DATA_ROOT")
    return Path(given) if given else None


def _shown(facts: _Facts) -> str:
    return f"{'×'.join(map(str, facts.image_shape))} images of {facts.n_classes} classes"


def default_data_root() -> Path:
    """The folder $QHW_DATA_ROOT, else the cache folder."""
    given = os.environ.get("QHW_DATA_ROOT")
    return Path(given) if given else cache_folder() / "data"


def cache_folder() -> Path:
    """The folder $QHW_CACHE, else ~/.cache/qhw_diffusion: downloads and decompressed copies.

    Raises:
        MissingDataError: this user has no home folder.
    """
    given = os.environ.get("QHW_CACHE")
    if given:
        return Path(given)
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise MissingDataError("this user has no home folder to keep data in: set HOME, or QHW_CACHE to a folder")
    return Path(home) / ".cache" / "qhw_diffusion"


@lru_cache(maxsize=1)
def _raw_digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits()  # a text file of its own, .2 s to read


def _digits(split: str) -> ImageDataset:
    from sklearn.model_selection import train_test_split

    raw = _raw_digits()
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


def _photographs(source: str, split: str, root: Path, download: bool) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 3, S, S] in [0, 1], labels int64 [N]; source: "CIFAR10", "CIFAR100" or "STL10"."""
    from torchvision import datasets

    which = {"split": "train" if split == "train" else "test"} if source == "STL10" else {"train": split == "train"}
    folder = root / getattr(datasets, source).base_folder
    advice = f"put the unpacked archive there as {folder.name} (as torchvision lays it out)"
    if not folder.is_dir():
        if not download:
            raise MissingDataError(f"no {source} under {root} and download=False: {advice}")
        _downloaded(source, root, advice)
    try:
        data = getattr(datasets, source)(str(root), **which, download=False)
    except (RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        raise DamagedFileError(f"the files under {folder} are not {source} ({_one_line(error)}): {advice}") from error
    pixels = torch.from_numpy(np.asarray(data.data))
    pixels = pixels if source == "STL10" else pixels.permute(0, 3, 1, 2)
    labels = data.labels if source == "STL10" else data.targets
    return pixels.float() / 255, torch.as_tensor(np.asarray(labels), dtype=torch.int64)


def _mnist_root(source: str, root: Path, download: bool) -> Path:
    """A folder that torchvision can read: `root` itself, a decompressed copy, or a fresh download."""
    raw = root / source / "raw"
    if all((raw / name).is_file() for name in _RAW_FILES):
        return root
    if all((raw / f"{name}.gz").is_file() for name in _RAW_FILES):
        return _decompressed(source, raw)
    advice = f"put {source}'s four files into {raw} (data_root/{source}/raw, as torchvision lays them out)"
    if not download:
        raise MissingDataError(f"no {source} under {root} and download=False: {advice}")
    _downloaded(source, root, advice)
    return root


def _downloaded(source: str, root: Path, advice: str) -> None:
    """Fetch a data set by torchvision; folders that were made in vain are removed.

    Raises:
        MissingDataError: it could not be fetched.
    """
    from torchvision import datasets

    inner = root / source / "raw"
    made = [folder for folder in (inner, *inner.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, source)(str(root), download=True)
    except (RuntimeError, URLError, OSError) as error:
        for folder in made:
            with contextlib.suppress(OSError):  # not made after all, or with files in it
                folder.rmdir()
        raise MissingDataError(
            f"no {source} under {root}, and it could not be downloaded ({_one_line(error)}): {advice}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())  # torchvision's messages are of several lines


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
