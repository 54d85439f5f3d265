"""Files that are whole at any moment: each is either the old one or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
