"""What a source of camera frames is, and what it yields: images as messages hold them, raw or compressed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import Error, shown
from bnn_perception.frames.boxes import Box
from bnn_perception.frames.encoded import MAX_PIXELS, TRANSPORTED, EncodedError, decode
from bnn_perception.frames.images import ImageError
from bnn_perception.frames.raw import RawError, compressed_order

#: Frames a second where the source has no rate of its own: a folder of images.
FOLDER_RATE = 10.0


class SourceError(Error):
    """A source that cannot be opened or has stopped; the message is one line that names it and the remedy."""


@dataclass(frozen=True)
class RawImage:
    """Pixels, with the fields of sensor_msgs/Image under their names there.

    Attributes:
        height, width: in pixels.
        encoding: as in sensor_msgs/image_encodings.
        is_bigendian: 0 or 1.
        step: bytes from one row to the next.
        data: (n,) uint8, contiguous. From a recording it is what was recorded, even where it contradicts the rest.
    """

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: NDArray[np.uint8]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], encoding: str) -> RawImage:
        """The image of ``pixels`` (height, width, channels), without a copy where they are contiguous."""
        height, width, channels = pixels.shape
        return cls(height, width, encoding, 0, width * channels, np.ascontiguousarray(pixels).reshape(-1))


@dataclass(frozen=True)
class CompressedImage:
    """An encoded image, with the fields of sensor_msgs/CompressedImage.

    Attributes:
        format: such as "jpeg" or "rgb8; jpeg compressed bgr8".
        data: (n,) uint8, the bytes of the encoded file.
    """

    format: str
    data: NDArray[np.uint8]

    def decode(self) -> RawImage:
        """The pixels, in the order that :func:`~bnn_perception.frames.raw.compressed_order` says.

        Raises:
            ImageError: where they cannot be decoded, or are no picture.
        """
        name = shown(self.format)
        if self.data.size == 0:
            raise ImageError(f"the compressed image of format '{name}' is empty")
        try:
            order = compressed_order(self.format)
            pixels = decode(np.asarray(self.data), MAX_PIXELS, TRANSPORTED)
        except RawError as error:
            raise ImageError(f"the compressed image of format '{name}' {error}") from None
        except EncodedError as error:
            raise ImageError(f"the {self.data.size} bytes of format '{name}': {error}") from None
        return RawImage.of(pixels, order)


@dataclass(frozen=True)
class SourceFrame:
    """One frame.

    Attributes:
        name: what messages call the frame: a file, or a place in a video or recording.
        stamp: when it was taken, in nanoseconds on the clock of the source; rises through a source, loops included.
        image: raw or compressed.
        truth: the right label, None where it is not known.
        frame_id: the coordinate frame as recorded, "" where there is none.
        boxes: around what is to be classified, where that is known.
    """

    name: str
    stamp: int
    image: RawImage | CompressedImage
    truth: str | None = None
    frame_id: str = ""
    boxes: tuple[Box, ...] = ()


class Source:
    """Frames from one place, from the first on in every ``for``.

    A frame that cannot be read costs that frame alone: it is counted in ``refused`` and reported. What makes the whole
    source useless raises :class:`SourceError`.

    Attributes:
        uri: what was opened.
        loop: whether it starts again at the end.
        live: whether frames come at a pace of their own, so that reading one waits for it.
        knows_boxes: whether frames say where what is to be classified lies.
        compressed: whether frames are :class:`CompressedImage`, otherwise :class:`RawImage`.
        refused: number of frames so far that could not be read.
    """

    live = False
    knows_boxes = False
    compressed = False

    def __init__(self, uri: str, *, loop: bool, warn: Callable[[str], None]) -> None:
        self.uri = uri
        self.loop = loop
        self.refused = 0
        self._warn = warn

    def __iter__(self) -> Iterator[SourceFrame]:
        """Frames from the first on.

        Raises:
            SourceError: where not one frame can be read, or a webcam falls silent.
        """
        shift = 0  # length of the passes so far, nanoseconds
        while True:
            first, last, step = None, 0, round(1e9 / FOLDER_RATE)
            for frame in self._one_pass():
                if first is None:
                    first = frame.stamp
                else:
                    step = frame.stamp - last
                last = frame.stamp
                yield replace(frame, stamp=last + shift)
            if first is None:
                raise SourceError(
                    f"{self.uri}: not one frame could be read; the warnings before name the reasons"
                )
            if not self.loop:
                return
            shift += last - first + step

    def _one_pass(self) -> Iterator[SourceFrame]:
        raise NotImplementedError

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        self._warn(reason)
