"""Images of a camera kept as a folder to train on: one folder a label, near-duplicates and what is too much left out.

What is saved is what ``train --data FOLDER`` takes. A label comes from a parameter or the command line and names a
folder, so it is held to what may be one everywhere (:func:`check_label`).
"""

from __future__ import annotations

import unicodedata
from collections import deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import Error, shown
from bnn_perception.files import replacing
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.images import ImageError, ImageFile, as_png, class_folders, read_image
from bnn_perception.frames.preprocess import prepare, source_rect
from bnn_perception.net.checks import MAX_LABEL, is_text
from bnn_perception.net.model import InputSpec

#: What images are compared at: the input of the nets that ``train`` makes by default, with nothing cut off.
SEEN = InputSpec(32, 32, fit="stretch")

#: The compared pixels are divided into so many parts along each side.
PARTS = 4

#: Images of a label that a new one is compared with: the newest ones.
RECENT = 64

#: Below this two images are near-duplicates by default, see :func:`difference`. docs/training.md has what it keeps of
#: recordings and of the rendered scene.
DIFFERENCE = 10.0

#: Images and bytes that a folder holds at most by default.
MAX_IMAGES, MAX_BYTES = 10_000, 4 << 30

#: Bytes of the name of a folder on common file systems.
MAX_NAME = 255

#: Characters that are no part of a name on the file systems of memory sticks and of Windows, / among them.
FORBIDDEN = set('/\\<>:"|?*')

#: Names that Windows keeps for devices, whatever follows them behind a point.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


class CollectionError(Error, ValueError):
    """A label or a folder that cannot be used; the message names it and the remedy."""


class Outcome(Enum):
    """What became of an image; the values are the words of logs, diagnostics and the command."""

    SAVED = "saved"
    DUPLICATE = "near-duplicates"
    KNOWN = "saved before"
    FULL = "over the limits"


@dataclass(frozen=True)
class Limits:
    """What is kept of the images that come.

    Attributes:
        difference: images that differ from a recent one of their label by less are left out; 0 keeps all.
        images: that the folder holds at most.
        bytes: that the folder's images take at most.
    """

    difference: float = DIFFERENCE
    images: int = MAX_IMAGES
    bytes: int = MAX_BYTES


def check_label(label: str) -> str:
    """The label, which can name a folder on every common file system and a class of a model.

    Raises:
        CollectionError: where it cannot.
    """
    reason = ""
    if not label.strip():
        reason = "is empty"
    elif not is_text(label) or any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in label):
        reason = "holds a character that is not shown, such as a line break"
    elif FORBIDDEN & set(label):
        reason = f"holds '{next(c for c in label if c in FORBIDDEN)}'; {' '.join(sorted(FORBIDDEN))} cannot be in it"
    elif label.startswith("."):
        reason = "begins with a point: the folder would be hidden"
    elif label != label.strip() or label.endswith("."):
        reason = "begins or ends with a space, or ends with a point"
    elif label.split(".", maxsplit=1)[0].rstrip().casefold() in DEVICES:
        reason = "is the name of a device on Windows"
    elif len(label) > MAX_LABEL or len(label.encode()) > MAX_NAME:
        reason = f"is longer than {MAX_LABEL} characters, or {MAX_NAME} bytes"
    if reason:
        raise CollectionError(f"label '{shown(label)}' {reason}; a label names a folder, such as forklift")
    return label


def difference(image: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How much an image differs from others where they differ most.

    The mean would not tell a still picture from one in which something small moves: both change little in most places.
    So it is that of the part, of PARTS x PARTS parts of equal size, in which it is largest.

    Args:
        image: (height, width, channels) uint8 of :data:`SEEN`.
        others: (n, height, width, channels) uint8.

    Returns:
        (n,) float32, steps of 255 from black to white.
    """
    height, width = SEEN.height // PARTS, SEEN.width // PARTS
    apart = np.abs(others.astype(np.int16) - image)
    parts = apart.reshape(len(others), PARTS, height, PARTS, width, -1).mean(axis=(2, 4, 5), dtype=np.float32)
    largest: NDArray[np.float32] = parts.max(axis=(1, 2))
    return largest


class Collection:
    """A folder that images are added to. Used by one thread, but for the counts.

    Args:
        folder: where a folder is made for each label; made where it is missing. Images that are there already count.

    Attributes:
        folder: in full.
        counts: images of each label.
        bytes: that all images take.

    Raises:
        CollectionError: where the folder cannot be made or read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self._recent: dict[str, deque[NDArray[np.uint8]]] = {}
        self._found: dict[str, list[ImageFile]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                self._found = class_folders(self.folder)
            self.bytes = sum(file.size_on_disk() for files in self._found.values() for file in files)
        except OSError as error:
            raise CollectionError(
                f"{self.folder}: cannot be used: {error.strerror or error}; name another folder"
            ) from None
        except ImageError as error:
            raise CollectionError(
                f"{error}; images are collected in an empty folder, or in one of such"
            ) from None
        self.counts = {label: len(files) for label, files in self._found.items()}

    def __len__(self) -> int:
        """Images of all labels."""
        return sum(self.counts.values())

    def add(self, label: str, name: str, frame: Frame, limits: Limits) -> Outcome:
        """Save the region of a frame as a PNG, unless there is a reason not to.

        Args:
            label: that :func:`check_label` has passed.
            name: of the file, without its ending. Where there is such a file, the frame has been saved before.
            frame: any.
            limits: what is kept.

        Raises:
            OSError: naming the file, where it cannot be written; nothing of it is left.
        """
        path = self.folder / label / f"{name}.png"
        if len(self) >= limits.images or self.bytes >= limits.bytes:
            return Outcome.FULL
        if path.exists():
            return Outcome.KNOWN
        recent = self._recent_of(label)
        seen = prepare(frame, SEEN)
        if limits.difference and recent and difference(seen, np.stack(recent)).min() < limits.difference:
            return Outcome.DUPLICATE
        content = encode(frame)
        if self.bytes + len(content) > limits.bytes:
            return Outcome.FULL
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(content)
        recent.append(seen)
        self.bytes += len(content)
        self.counts[label] = self.counts.get(label, 0) + 1
        return Outcome.SAVED

    def _recent_of(self, label: str) -> deque[NDArray[np.uint8]]:
        """The newest images of a label as they are compared; at first those that were there before."""
        if label not in self._recent:
            recent = self._recent[label] = deque(maxlen=RECENT)
            for file in self._found.pop(label, [])[-RECENT:]:
                try:
                    recent.append(prepare(Frame(read_image(file)), SEEN))
                except ImageError:  # somebody else's file, and training says so
                    continue
        return self._recent[label]


def encode(frame: Frame) -> bytes:
    """The region of a frame as a PNG, grey where the frame is; its pixels are those that a net is given."""
    height, width, _ = frame.pixels.shape
    rect = source_rect(height, width, frame.region, SEEN)
    pixels = frame.pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
    return as_png(pixels, frame.encoding)


def stamp_name(stamp: int) -> str:
    """A stamp in nanoseconds as a part of a file's name; names are in the order of the stamps."""
    return f"{stamp // 1_000_000_000:010d}.{stamp % 1_000_000_000:09d}"


def in_words(counts: dict[str, int]) -> str:
    """Images of each label, most first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {label}" for label, count in ordered) or "no images"
