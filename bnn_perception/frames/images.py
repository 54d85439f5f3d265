"""Image files: how one is read, and which a folder or a tar file holds; tolerant of what people keep there."""

from __future__ import annotations

import functools
import os
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import Error
from bnn_perception.frames.encoded import MAX_PIXELS, EncodedError, decode, format_of
from bnn_perception.frames.frame import ENCODINGS

#: Extensions of the files that are taken for images.
SUFFIXES = {
    *(".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
}

#: Extensions that OpenCV may not support; they are tried, so that unreadable files are reported and not passed over.
TRIED = {".avif", ".gif", ".heic", ".heif", ".jp2", ".mpo"}


#: Words in the names of folders that hold a part of the images each, not a class.
PARTS = {
    *("train", "training", "test", "testing", "val", "valid", "validation"),
    *("dev", "eval", "evaluation", "holdout"),
}


class ImageError(Error, ValueError):
    """An image, or a set of them, that cannot be read; the message names the file and the reason."""


@dataclass(frozen=True)
class ImageFile:
    """Where the bytes of one image lie: a file, or a stretch of an uncompressed tar file.

    Attributes:
        name: what messages call the image.
        path: the file.
        offset, size: where in the file the image lies, bytes; a size of -1 reaches to the end.
    """

    name: str
    path: Path
    offset: int = 0
    size: int = -1

    def size_on_disk(self) -> int:
        """The bytes that the image takes."""
        return self.path.stat().st_size if self.size < 0 else self.size


def read_image(file: str | os.PathLike[str] | ImageFile) -> NDArray[np.uint8]:
    """Read an image file as RGB.

    Grey becomes RGB, 16 bits become 8 by their upper half, transparency is dropped, EXIF orientation is honoured.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ImageError: naming the file and the reason.
    """
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
        pixels = decode(data, MAX_PIXELS)
    except EncodedError as error:
        raise ImageError(f"{path}: {error}") from None
    return np.ascontiguousarray(pixels[..., ::-1])


def as_png(pixels: NDArray[np.uint8], encoding: str) -> bytes:
    """The content of a PNG file with the pixels of a frame; it is grey where they are.

    Args:
        pixels: (height, width, channels) uint8.
        encoding: of them, see :data:`~bnn_perception.frames.frame.ENCODINGS`.

    Raises:
        ImportError: where OpenCV is missing.
    """
    import cv2

    if pixels.shape[2] > 1:
        pixels = pixels[..., list(ENCODINGS[encoding].rgb[::-1])]  # OpenCV's order is blue, green, red
    return bytes(cv2.imencode(".png", np.ascontiguousarray(pixels))[1])


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """The image files at or below ``path``, sorted by their path; hidden files and folders are passed over.

    Files without an extension are taken where they begin as an image does.

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


def parts_among(path: str | os.PathLike[str], folders: Mapping[str, Sequence[ImageFile]]) -> list[str]:
    """The folders that seem to be parts of a dataset (train and test, say), and not classes.

    They are named so, all of them; or two or more, at least half of all, hold mostly the same folders.

    Args:
        path, folders: what :func:`class_folders` was given, and what it returned.
    """
    if folders and all(PARTS & set(re.split(r"[^a-z]+", name.lower())) for name in folders):
        return list(folders)
    inside: dict[str, set[str]] = {}
    for name, files in folders.items():
        below = [PurePath(file.name).relative_to(path).parts[1:] for file in files]
        inside[name] = {parts[0] for parts in below if len(parts) > 1}
    for ours in inside.values():
        alike = [
            name
            for name, theirs in inside.items()
            if len(ours & theirs) >= 2 and 2 * len(ours & theirs) >= len(ours | theirs)
        ]
        if len(alike) >= 2 and 2 * len(alike) >= len(folders):
            return alike
    return []


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
        found += [
            Path(place, name)
            for name in files
            if _is_image(PurePath(name), functools.partial(_first_bytes, Path(place, name)))
        ]
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
                below = PurePosixPath(*parts[1:])
                if member.isfile() and _is_image(below, functools.partial(_first_bytes_in, tar, member)):
                    shown = f"{archive}/{member.name}"
                    files.append(ImageFile(shown, archive, member.offset_data, member.size))
    except (OSError, tarfile.TarError) as error:
        raise ImageError(f"{archive}: is not an uncompressed tar file that can be read: {error}") from None
    return {name: sorted(folders[name], key=lambda file: file.name) for name in sorted(folders)}


def _is_image(path: PurePath, first_bytes: Callable[[], bytes]) -> bool:
    """Whether a file is taken for an image: by its ending, or without one by how it begins; hidden ones are not.

    Args:
        path: below the folder that is looked through.
        first_bytes: reads what the file begins with.
    """
    if any(part.startswith(".") for part in path.parts):
        return False
    if "." in path.name:
        return path.suffix.lower() in SUFFIXES | TRIED
    return format_of(first_bytes()) is not None


def _first_bytes(path: Path) -> bytes:
    try:
        # Not of a FIFO, which would wait.
        return np.fromfile(path, np.uint8, 32).tobytes() if path.is_file() else b""
    except OSError:
        return b""


def _first_bytes_in(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return b"" if stream is None else stream.read(32)
