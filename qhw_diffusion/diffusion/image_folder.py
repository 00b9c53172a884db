"""Pictures of a user's own as a data set: one folder per class, in a folder or a tar archive."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_NAMES = {"train": ("train",), "heldout": ("heldout", "test", "val", "validation")}
_LAYOUT = (
    "data_root is a folder, or a .tar archive, that holds train/CLASS/PICTURE and test/CLASS/PICTURE (or heldout, val, "
    f"validation; pictures end in {', '.join(_ENDINGS)})"
)


def image_folder(split: str, data_root: Path | None) -> tuple[Tensor, Tensor, int]:
    """The pictures of one split: images float32 [N, C, H, W] in [−1, 1], labels int64 [N], number of classes.

    Classes are numbered in the order of their folders' names, pictures of a class are sorted by theirs. The first
    picture decides whether all are read as grey (C = 1) or as colour (C = 3); all must have the same size.

    Args:
        split: "train" or "heldout".
        data_root: folder or tar archive of ``train/CLASS/*.png`` and ``test/CLASS/*.png``.

    Raises:
        MissingDataError: no such folder or archive, or none of that layout.
        DamagedFileError: an archive or a picture that cannot be read.
        InvalidInputError: pictures of different sizes, or splits with different classes.
    """
    root, pictures, classes = _surveyed(data_root)
    wanted = pictures[split]
    labels = torch.tensor([classes.index(name.parts[-2]) for name in wanted])
    contents = dict(_read(root, set(wanted)))
    arrays: list[np.ndarray] = []
    mode = ""
    for name in wanted:
        mode, array = _decoded(contents.pop(name), f"{root}/{name}", mode)
        if arrays and array.shape != arrays[0].shape:
            height, width = arrays[0].shape[:2]
            raise InvalidInputError(
                f"{root}/{name} is of {array.shape[1]}×{array.shape[0]} pixels and {wanted[0]} of {width}×{height}: "
                "all pictures need the same size, so scale or crop them first"
            )
        arrays.append(array)
    stacked = torch.from_numpy(np.stack(arrays))
    stacked = stacked.unsqueeze(1) if mode == "L" else stacked.permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1, labels, len(classes)


def image_folder_facts(data_root: Path | None) -> tuple[tuple[int, int, int], int]:
    """((C, H, W), number of classes) of an image folder, from its first picture. Raises as `image_folder`."""
    root, pictures, classes = _surveyed(data_root)
    first = pictures["train"][0]
    mode, array = _decoded(dict(_read(root, {first}))[first], f"{root}/{first}", "")
    return (1 if mode == "L" else 3, array.shape[0], array.shape[1]), len(classes)


def _surveyed(data_root: Path | None) -> tuple[Path, dict[str, list[PurePosixPath]], list[str]]:
    """The folder, the sorted paths of each split's pictures, and the sorted names of the classes."""
    if data_root is None:
        raise MissingDataError(f"the data set 'imagefolder' needs data_root: {_LAYOUT}")
    root = Path(data_root)
    if not root.exists():
        raise MissingDataError(f"{root} does not exist: {_LAYOUT}")
    everything = _names(root)
    pictures = {which: _of_split(everything, names) for which, names in _NAMES.items()}
    classes = {which: sorted({name.parts[-2] for name in found}) for which, found in pictures.items()}
    for which in _NAMES:
        if not pictures[which]:
            raise MissingDataError(f"{root} holds no pictures of split {which!r}: {_LAYOUT}")
    if classes["train"] != classes["heldout"]:
        raise InvalidInputError(
            f"{root} has the classes {', '.join(classes['train'])} to train on, and {', '.join(classes['heldout'])} "
            "held out: both need the same class folders"
        )
    return root, pictures, classes["train"]


def _of_split(names: list[PurePosixPath], splits: tuple[str, ...]) -> list[PurePosixPath]:
    """Sorted pictures below the first of these split folders that has any, as paths from the root."""
    for split in splits:
        if found := [n for n in names if n.parts[-3] == split and n.suffix.lower() in _ENDINGS]:
            return sorted(found)
    return []


def _names(root: Path) -> list[PurePosixPath]:
    if root.is_dir():
        return [PurePosixPath(p.relative_to(root).as_posix()) for p in root.glob("*/*/*") if p.is_file()]
    try:
        with tarfile.open(root) as archive:
            members = [PurePosixPath(m.name) for m in archive if m.isfile()]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DamagedFileError(f"{root} is no readable tar archive ({error}): {_LAYOUT}") from error
    return [name for name in members if len(name.parts) >= 3]


def _read(root: Path, wanted: set[PurePosixPath]) -> Iterator[tuple[PurePosixPath, bytes]]:
    if root.is_dir():
        for name in wanted:
            yield name, (root / name).read_bytes()
        return
    try:
        with tarfile.open(root) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                content = archive.extractfile(member) if name in wanted and member.isfile() else None
                if content is not None:
                    yield name, content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DamagedFileError(f"{root} is damaged ({error})") from error


def _decoded(content: bytes, name: str, mode: str) -> tuple[str, np.ndarray]:
    """Mode ("L" or "RGB") and pixels, uint8 [H, W] or [H, W, 3]; `mode`: the one to use, or none yet."""
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(content))
        mode = mode or ("L" if picture.mode in ("1", "L", "LA") else "RGB")
        return mode, np.asarray(picture.convert(mode))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DamagedFileError(f"{name} is no readable picture ({error})") from error
