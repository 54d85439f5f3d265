"""Reads image files and labelled sets of images, tolerant of what people's folders hold."""

from __future__ import annotations

import os
import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import Error
from bnn_perception.frames.frame import MAX_SIDE

#: Endings of the files that are taken for images.
SUFFIXES = {
    *(".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
}

#: Endings of pictures that OpenCV need not know: they are tried, so that what is left out is reported.
TRIED = {".avif", ".gif", ".heic", ".heif", ".jp2"}

# OpenCV decodes up to 2**30 pixels; a file that large is a mistake or an attack on a robot's memory.
MAX_PIXELS = 1 << 27


class ImageError(Error, ValueError):
    """An image, or a set of them, that cannot be read; the message names the file and the reason."""


@dataclass(frozen=True)
class ImageFile:
    """Where the bytes of one image lie: a file, or a stretch of an uncompressed tar file.

    Attributes:
        name: for messages.
        path: of the file.
        offset, size: of the stretch, bytes; a size of -1 reaches to the end.
    """

    name: str
    path: Path
    offset: int = 0
    size: int = -1

    def size_on_disk(self) -> int:
        """Of the image, bytes."""
        return self.path.stat().st_size if self.size < 0 else self.size


def read_image(file: str | os.PathLike[str] | ImageFile) -> NDArray[np.uint8]:
    """Read an image file as RGB.

    Grey becomes RGB, 16 bits become 8 by their upper half, transparency is dropped, EXIF orientation is honoured.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ImageError: naming the file and the reason.
    """
    # Read by OpenCV when it is loaded: what is too large is then refused before it is decoded.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    import cv2

    if not isinstance(file, ImageFile):
        file = ImageFile(os.fspath(file), Path(file))
    path = file.name
    try:
        # Not cv2.imread, which cannot open every Unicode name.
        data = np.fromfile(file.path, dtype=np.uint8, count=file.size, offset=file.offset)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from None
    if data.size == 0:
        raise ImageError(f"{path}: the file is empty")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ImageError(f"{path}: has more than {MAX_PIXELS} pixels") from None
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
    """The image files at or below ``path``, sorted by their path; hidden files and folders are passed over.

    Raises:
        ImageError: where there is no such path, or no image.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ImageError(f"{path}: no such file or folder")
    found = _images_below(path)
    if not found:
        raise ImageError(f"{path}: holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


def class_folders(path: str | os.PathLike[str]) -> dict[str, list[ImageFile]]:
    """The images of each class: one folder a class, each with its images at or below it, all sorted by name.

    Args:
        path: a folder, an uncompressed tar file, or a folder in one (``photos.tar/train``). Hidden files and
            folders are passed over, and so are files that are not images.

    Raises:
        ImageError: where there is nothing of the kind, or no folder in it.
    """
    path = Path(path)
    if path.is_dir():
        try:
            content = sorted(path.iterdir())
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
        folders = {
            folder.name: [ImageFile(str(file), file) for file in _images_below(folder)]
            for folder in content
            if folder.is_dir() and not folder.name.startswith(".")
        }
    else:
        archive = next((parent for parent in (path, *path.parents) if parent.is_file()), None)
        if archive is None:
            raise ImageError(f"{path}: no such file or folder")
        folders = _tar_folders(archive, PurePosixPath(*path.relative_to(archive).parts))
    if not folders:
        raise ImageError(f"{path}: holds no folders; one for each class is expected")
    return folders


def _images_below(folder: Path) -> list[Path]:
    """The image files at or below a folder, sorted; links to folders are followed, hidden ones are passed over.

    Raises:
        ImageError: naming a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename}: cannot be read: {error.strerror}")

    found: list[Path] = []
    seen: set[tuple[int, int]] = set()  # a link may lead to a folder that it lies in
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Sorted, so that of two ways to one folder the same is taken everywhere.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in files if _is_image(PurePath(name))]
    # A dead link stays, to be reported when it is read.
    return sorted(file for file in found if file.is_file() or not file.exists())


def _tar_folders(archive: Path, inner: PurePosixPath) -> dict[str, list[ImageFile]]:
    folders: dict[str, list[ImageFile]] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if not (member.isdir() or member.isfile()) or not name.is_relative_to(inner):
                    continue
                parts = name.relative_to(inner).parts
                if not parts or parts[0].startswith(".") or (member.isfile() and len(parts) < 2):
                    continue
                files = folders.setdefault(parts[0], [])
                if member.isfile() and _is_image(PurePosixPath(*parts[1:])):
                    shown = f"{archive}/{member.name}"
                    files.append(ImageFile(shown, archive, member.offset_data, member.size))
    except (OSError, tarfile.TarError) as error:
        raise ImageError(f"{archive}: is not an uncompressed tar file that can be read: {error}") from None
    return {name: sorted(folders[name], key=lambda file: file.name) for name in sorted(folders)}


def _is_image(path: PurePath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in SUFFIXES | TRIED and not hidden


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
        labels: of the model, in order.
        ignore: folders that are left out.

    Raises:
        ImageError: naming the file or folder and what is wrong.
    """
    path = Path(path)
    if path.suffix == ".tar" or not path.is_file():
        return _read_folder(path, labels, ignore)
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


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _read_folder(path: Path, labels: Sequence[str], ignore: Sequence[str]) -> Dataset:
    indices: list[int] = []
    files: list[ImageFile] = []
    for folder, images in class_folders(path).items():
        if folder in ignore:
            continue
        index = match_label(folder, labels)
        if index is None:
            shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
            raise ImageError(f"{path / folder}: the model has no class '{folder}'; it has {shown}")
        indices += [index] * len(images)
        files += images
    if not files:
        raise ImageError(f"{path}: its class folders hold no images ({', '.join(sorted(SUFFIXES))})")
    names = [file.name for file in files]
    return Dataset(np.asarray(indices, dtype=np.int64), names, _files=files)
