"""From a sensor_msgs image to a :class:`~bnn_perception.frames.frame.Frame`: no copy where none is needed.

A message is untrusted: what disagrees with itself is refused with a reason and costs that frame alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import one_line
from bnn_perception.frames.encoded import TRANSPORTED, EncodedError, check_size
from bnn_perception.frames.encoded import decode as decode_bytes
from bnn_perception.frames.frame import ENCODINGS, WHOLE, Frame
from bnn_perception.frames.raw import ALIASES, HOLDS_NO_COLOURS, RAW, RawError, compressed_order, to_rgb

if TYPE_CHECKING:
    from sensor_msgs.msg import CompressedImage, Image

Region = tuple[float, float, float, float]

#: Why a frame is refused, for counters.
Reason = Literal["zero size", "too large", "encoding", "step", "data length", "undecodable", "boxes"]
REASONS: tuple[Reason, ...] = get_args(Reason)


#: Characters of a message's text that are shown.
MAX_TEXT = 80


class RefusedFrame(ValueError):  # noqa: N818 - what it is, not an error of the program
    """An image message that cannot be used; the message is one line.

    Attributes:
        reason: one of :data:`REASONS`.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def view(message: Image, max_pixels: int, region: Region = WHOLE) -> Frame:
    """The frame in an Image message. Its pixels are the message's own memory unless they had to be converted.

    Args:
        message: to look into; must not be changed while the frame is in use.
        max_pixels: larger images are refused.
        region: of interest, passed on to the frame.

    Raises:
        RefusedFrame: where size, step, data length or encoding cannot be right or are not supported.
    """
    height, width, step = message.height, message.width, message.step
    _check_size(height, width, max_pixels)
    encoding = ALIASES.get(message.encoding, message.encoding)
    if encoding in ENCODINGS:
        channels = ENCODINGS[encoding].channels
        _check_data(message, width * channels, height)
        # The step may be longer than a row of pixels. 8-bit encodings have no byte order: is_bigendian says nothing.
        pixels = np.ndarray(
            (height, width, channels), np.uint8, buffer=message.data, strides=(step, channels, 1)
        )
        return Frame(pixels, encoding, region)
    if raw := RAW.get(encoding):
        try:
            raw.check(encoding, height, width)
        except RawError as error:
            raise RefusedFrame("encoding", f"an image of {error}") from None
        _check_data(message, width * raw.item * raw.channels, raw.rows(height))
        pixels = to_rgb(raw, message.data, height, width, step, bool(message.is_bigendian))
        return Frame(pixels, "rgb8" if pixels.shape[2] == 3 else "mono8", region)
    _check_data(message, 1, height)
    pixels = _convert(message)
    try:
        return Frame(pixels, "rgb8", region)
    except ValueError as error:
        raise RefusedFrame("encoding", f"cv_bridge made no picture of it: {error}") from None


def decode(message: CompressedImage, max_pixels: int, region: Region = WHOLE) -> Frame:
    """The frame in a CompressedImage message: JPEG, PNG or WebP, whatever its format says.

    Of the format, only what image_transport's own subscribers go by counts: whether colours were stored in the order
    of rgb8, and what is no picture (:func:`~bnn_perception.frames.raw.compressed_order`).

    Raises:
        RefusedFrame: where it cannot be decoded or is too large.
    """
    if len(message.data) == 0:
        raise RefusedFrame("data length", "a compressed image without data")
    try:
        order = compressed_order(message.format)
    except RawError as error:
        raise RefusedFrame(
            "encoding", f"a compressed image of format {_short(message.format)} {error}"
        ) from None
    try:
        pixels = decode_bytes(np.frombuffer(message.data, np.uint8), max_pixels, TRANSPORTED, "max_pixels")
    except EncodedError as error:
        if error.reason != "undecodable":
            raise RefusedFrame(error.reason, f"an image of {error}") from None
        what = f"a compressed image of {len(message.data)} bytes and format {_short(message.format)}"
        raise RefusedFrame("undecodable", f"{what} {error}") from None
    return Frame(pixels, order, region)


#: How a frame is taken from a message, by the parameter ``image_transport``.
UNPACK: dict[str, Callable[[Any, int, Region], Frame]] = {"raw": view, "compressed": decode}


def _check_size(height: int, width: int, max_pixels: int) -> None:
    try:
        check_size(width, height, max_pixels, "max_pixels")
    except EncodedError as error:
        # Its reasons are among those of a frame.
        raise RefusedFrame(error.reason, f"an image of {error}") from None


def _check_data(message: Image, row: int, rows: int) -> None:
    """Refuse an image whose rows or data are too short; ``row``: bytes of its pixels in a row."""
    step = message.step
    if step < row:
        raise RefusedFrame(
            "step", f"step {step} is less than a row of {message.width} {_short(message.encoding)} pixels"
        )
    if len(message.data) != step * rows:
        raise RefusedFrame(
            "data length", f"{len(message.data)} bytes of data in an image of {rows} rows of {step} bytes"
        )


def _short(text: str) -> str:
    """An untrusted text in a message: quoted, on one line, and not whole where it is long."""
    return repr(text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}...")


def _convert(message: Image) -> NDArray[np.uint8]:
    """What only cv_bridge knows, as (height, width, 3) rgb8."""
    if HOLDS_NO_COLOURS.fullmatch(message.encoding):
        raise RefusedFrame(
            "encoding",
            f"encoding {_short(message.encoding)} holds no colours (a depth image?); take the colour camera's topic",
        )
    known = {name.lower(): name for name in [*ENCODINGS, *ALIASES, *RAW]}
    nearest = difflib.get_close_matches(message.encoding[:MAX_TEXT].lower(), known, 1)
    meant = f"; is {known[nearest[0]]} meant?" if nearest else ""
    try:
        from cv_bridge import CvBridge
    except Exception as error:  # one built for another NumPy raises whatever it likes
        raise RefusedFrame(
            "encoding",
            f"encoding {_short(message.encoding)} needs cv_bridge, which cannot be imported "
            f"({one_line(error)}){meant}",
        ) from None
    bridge: Any = CvBridge()
    try:
        pixels = bridge.imgmsg_to_cv2(message, desired_encoding="rgb8")
    except Exception as error:  # CvBridgeError, and what OpenCV and NumPy raise below it
        raise RefusedFrame(
            "encoding",
            f"cv_bridge cannot convert encoding {_short(message.encoding)} ({one_line(error)}){meant}",
        ) from None
    return np.ascontiguousarray(pixels)
