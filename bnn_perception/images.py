"""Reads image files and labelled sets of images, tolerant of what people's folders hold."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnn_perception.preprocess import MAX_SIDE

#: Endings of the files that are taken for images.
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

# OpenCV decodes up to 2**30 pixels; a file that large is a mistake or an attack on a robot's memory.
MAX_PIXELS = 1 << 27


class ImageError(ValueError):
    """An image, or a set of them, that cannot be read; the message names the file and the reason."""


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an image file as RGB.

    Grey becomes RGB, 16 bits become 8 by their upper half, transparency is dropped, EXIF orientation is honoured.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ImageError: naming the file and the reason.
    """
    import cv2

    try:
        data = np.fromfile(path, dtype=np.uint8)  # not cv2.imread, which cannot open every Unicode name
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from None
    if data.size == 0:
        raise ImageError(f"{path}: the file is empty")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"{path}: cannot be decoded: {str(error).strip().splitlines()[-1]}") from None
    if image is None:
        raise ImageError(f"{path}: is not an image that can be decoded, or is cut short")
    height, width = image.shape[:2]
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise ImageError(
            f"{path}: {width}x{height} pixels; at most {MAX_PIXELS} and {MAX_SIDE} a side are taken"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """The image files at or below ``path``, sorted by their path; hidden files are passed over.

    Raises:
        ImageError: where there is no such path, or no image.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ImageError(f"{path}: no such file or folder")
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
    )
    if not found:
        raise ImageError(f"{path}: holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


@dataclass
class Dataset:
    """Labelled images, read one by one.

    Attributes:
        labels: (n,) class index of each image.
        names: of each image, for messages.
        refused: images that the last iteration left out because they could not be read, with the reason.
    """

    labels: NDArray[np.int64]
    names: list[str]
    _arrays: NDArray[np.uint8] | None = None
    refused: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 RGB of one image.

        Raises:
            ImageError: where it cannot be read.
        """
        if self._arrays is None:
            return read_image(self.names[index])
        image = self._arrays[index]
        return np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Index and pixels of every image that can be read."""
        self.refused.clear()
        for index in range(len(self)):
            try:
                yield index, self.read(index)
            except ImageError as error:
                self.refused.append(str(error))


def read_dataset(path: str | os.PathLike[str], labels: Sequence[str]) -> Dataset:
    """Open a folder with a folder of images for each class, or an ``.npz`` with ``x`` and ``y``.

    Folders are matched to labels as they are, then without regard to case and to ``_``, ``-`` and spaces, then by
    number (``00007`` is class 7). A class may be missing.

    Args:
        path: the folder; or the file with x (N, H, W, 3), (N, H, W, 1) or (N, H, W) uint8 and y (N,) integers.
        labels: of the model, in order.

    Raises:
        ImageError: naming the file or folder and what is wrong.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, labels)
    if not path.is_file():
        raise ImageError(f"{path}: no such file or folder")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except KeyError as error:
        raise ImageError(f"{path}: the array {error} is missing; x and y are expected") from None
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        AttributeError,
        TypeError,
        IndexError,
    ) as error:
        raise ImageError(f"{path}: is not an .npz file with x and y: {error}") from None
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


def match_label(folder: str, labels: Sequence[str]) -> int | None:
    """Index of the label that a folder's name means, None where it means none."""

    def plain(text: str) -> str:
        return re.sub(r"[\s_-]+", " ", text).strip().casefold()

    if folder in labels:
        return list(labels).index(folder)
    plain_labels = [plain(label) for label in labels]
    if plain(folder) in plain_labels:
        return plain_labels.index(plain(folder))
    if folder.isascii() and folder.isdigit() and int(folder) < len(labels):
        return int(folder)
    return None


def _read_folder(path: Path, labels: Sequence[str]) -> Dataset:
    indices: list[int] = []
    names: list[str] = []
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise ImageError(f"{path}: holds no folders; one for each class is expected")
    for folder in folders:
        index = match_label(folder.name, labels)
        if index is None:
            shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
            raise ImageError(f"{folder}: the model has no class '{folder.name}'; it has {shown}")
        images = [
            file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()
        ]
        indices += [index] * len(images)
        names += map(str, images)
    if not names:
        raise ImageError(f"{path}: its class folders hold no images ({', '.join(sorted(SUFFIXES))})")
    return Dataset(np.asarray(indices, dtype=np.int64), names)
