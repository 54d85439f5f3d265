"""Labelled images: folders, tar files and arrays of them, their classes matched to a model's labels."""

from __future__ import annotations

import math
import os
import re
import unicodedata
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import one_line
from bnn_perception.frames.images import (
    SUFFIXES,
    ImageError,
    ImageFile,
    class_folders,
    parts_among,
    read_image,
)

#: Bytes of each array of an ``.npz`` file: a million images of 36 by 36 pixels in colour.
MAX_BYTES = 1 << 32


class LabelledImages(Protocol):
    """What a model can be evaluated on.

    Attributes:
        labels: (n,) class index of each image; where images are read one after the other, of those that have been.
        refused: images that the last iteration left out because they could not be read, with the reason.
    """

    refused: list[str]

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Index and (height, width, 3) uint8 RGB of every image that can be read."""
        ...

    def read_some(self, indices: Collection[int]) -> dict[int, NDArray[np.uint8]]:
        """Index and pixels of some of the images that an iteration gave."""
        ...


@dataclass
class Dataset:
    """Labelled images, read one by one.

    Attributes:
        labels: (n,) class index of each image.
        names: what messages call each image.
        refused: images that the last iteration left out because they could not be read, with the reason.
    """

    labels: NDArray[np.int64]
    names: list[str]
    _arrays: NDArray[np.uint8] | None = None
    _files: list[ImageFile] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 RGB of one image.

        Raises:
            ImageError: where it cannot be read.
        """
        if self._arrays is None:
            return read_image(self._files[index])
        image = self._arrays[index]
        return np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image

    def read_some(self, indices: Collection[int]) -> dict[int, NDArray[np.uint8]]:
        """Index and pixels of some images.

        Raises:
            ImageError: where one cannot be read.
        """
        return {index: self.read(index) for index in indices}

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Index and pixels of every image that can be read."""
        self.refused.clear()
        for index in range(len(self)):
            try:
                yield index, self.read(index)
            except ImageError as error:
                self.refused.append(str(error))


def read_dataset(path: str | os.PathLike[str], labels: Sequence[str], ignore: Sequence[str] = ()) -> Dataset:
    """Open a folder (or tar file) with a folder of images for each class, or an ``.npz`` with ``x`` and ``y``.

    Folders are matched to labels as they are, then without regard to case and to ``_``, ``-`` and spaces, then by
    number (``00007`` is class 7, or the label 7 where there are labels that are numbers). A class may be missing.

    Args:
        path: as :func:`class_folders` takes it; or the ``.npz`` with x (N, H, W, 3), (N, H, W, 1) or (N, H, W)
            uint8 and y (N,) integers.
        labels: the model's, in order.
        ignore: folders that are left out.

    Raises:
        ImageError: naming the file or folder and what is wrong.
    """
    path = Path(path)
    if path.suffix == ".tar" or not path.is_file():
        return _read_folder(path, labels, ignore)
    try:
        with zipfile.ZipFile(path) as archive:
            x, y = (_read_array(archive, name) for name in ("x", "y"))
    except KeyError as error:
        raise ImageError(f"{path}: the array {error} is missing; x and y are expected") from None
    # Of zipfile, of its decompressors, of NumPy's parser of headers.
    except Exception as error:
        raise ImageError(f"{path}: is not an .npz file with x and y: {one_line(error)}") from None
    if x.dtype != np.uint8:
        raise ImageError(f"{path}: x is {x.dtype}, not uint8")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape:
        raise ImageError(
            f"{path}: x has shape {list(x.shape)}; (N, H, W, 3), (N, H, W, 1) or (N, H, W) is expected"
        )
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ImageError(f"{path}: y is {y.dtype} {list(y.shape)}, not {len(x)} integers")
    if y.min() < 0 or y.max() >= len(labels):
        raise ImageError(
            f"{path}: y holds {y.min()} to {y.max()}, but the model has classes 0 to {len(labels) - 1}"
        )
    return Dataset(y.astype(np.int64), [f"{path.name}[{i}]" for i in range(len(x))], x)


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array of an ``.npz`` file, whose size is known before memory is taken for it.

    Raises:
        KeyError: naming it, where it is missing.
        ValueError: where it is larger than :data:`MAX_BYTES`, or holds objects.
    """
    if f"{name}.npy" not in archive.namelist():
        raise KeyError(name)
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(stream)
        size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        raise ValueError(f"{name} takes {size} bytes; at most {MAX_BYTES} are read")
    with archive.open(f"{name}.npy") as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def match_label(folder: str, labels: Sequence[str]) -> int | None:
    """Index of the label that a folder's name means, None where it means none."""

    def plain(text: str) -> str:
        # Folders that come from a Mac spell an umlaut as two characters.
        return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", text)).strip().casefold()

    if folder in labels:
        return list(labels).index(folder)
    plain_labels = [plain(label) for label in labels]
    if plain(folder) in plain_labels:
        return plain_labels.index(plain(folder))
    if not _is_number(folder):
        return None
    numbers = {int(label): index for index, label in enumerate(labels) if _is_number(label)}
    if numbers:  # "1" to "5" are not classes 0 to 4 by their place, which would be off by one
        return numbers.get(int(folder))
    return int(folder) if int(folder) < len(labels) else None


def unknown_class(folder: Path, labels: Sequence[str]) -> ImageError:
    """What is said of a folder that is named after no label."""
    shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    return ImageError(f"{folder}: the model has no class '{folder.name}'; it has {shown}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _read_folder(path: Path, labels: Sequence[str], ignore: Sequence[str]) -> Dataset:
    indices: list[int] = []
    files: list[ImageFile] = []
    folders = class_folders(path)
    for folder, images in folders.items():
        if folder in ignore:
            continue
        index = match_label(folder, labels)
        if index is None:
            if folder in (parts := parts_among(path, folders)):
                part = next((name for name in parts if "test" in name.lower()), parts[0])
                raise ImageError(
                    f"{path}: its folders ({', '.join(parts)}) are parts; give {path / part}, say"
                )
            raise unknown_class(path / folder, labels)
        indices += [index] * len(images)
        files += images
    if not files:
        raise ImageError(f"{path}: its class folders hold no images ({', '.join(sorted(SUFFIXES))})")
    names = [file.name for file in files]
    return Dataset(np.asarray(indices, dtype=np.int64), names, _files=files)
