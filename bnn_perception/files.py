"""Files that are whole at any moment, each either the old one or the new one; and files that nobody vouches for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

#: Bytes that are read at once beyond the size that a file states.
CHUNK = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which replaces it when all went well and it is on the disk.

    Raises:
        OSError: naming ``path`` where the system names no file, as when the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming(path):
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the operating system, which knows no name when writing fails, that of the file."""
    try:
        yield
    except OSError as error:
        # Without a number the name would hide the message.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A regular file to read from; a FIFO or a device, which may never end, is not opened for long.

    Raises:
        ValueError: where it is no regular file, or its name is none that a file can have.
        OSError: where it cannot be opened.
    """
    # Without waiting: whoever opens a FIFO waits for its other end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises:
        ValueError: where it is no regular file, or larger.
        OSError: where it cannot be opened or read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{size} bytes; at most {limit} are read")
        # What is asked for is taken in memory at once: the size that is stated and one more, and on for a file that
        # grows, or of a system that states no size.
        content = file.read(size + 1)
        while size < len(content) <= limit and (more := file.read(min(CHUNK, limit + 1 - len(content)))):
            content += more
    if len(content) > limit:
        raise ValueError(f"{len(content)} bytes or more; at most {limit} are read")
    return content


def is_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a file lies in a folder, or below it, where all links have been followed."""
    root = os.path.realpath(folder)
    return os.path.commonpath([root, os.path.realpath(path)]) == root
