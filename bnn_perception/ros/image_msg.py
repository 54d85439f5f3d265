"""From a sensor_msgs image to a :class:`~bnn_perception.frames.frame.Frame`: no copy where none is needed.

A message is untrusted: what disagrees with itself is refused with a reason and costs that frame alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import one_line
from bnn_perception.frames.frame import ENCODINGS, MAX_SIDE, WHOLE, Frame

if TYPE_CHECKING:
    from sensor_msgs.msg import CompressedImage, Image

Region = tuple[float, float, float, float]

#: Why a frame is refused, for counters.
Reason = Literal["zero size", "too large", "encoding", "step", "data length", "undecodable"]
REASONS: tuple[Reason, ...] = get_args(Reason)


class RefusedFrame(ValueError):  # noqa: N818 - what it is, not an error of the program
    """An image message that cannot be used; the message is one line.

    Attributes:
        reason: one of :data:`REASONS`.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def view(message: Image, max_pixels: int, region: Region = WHOLE) -> Frame:
    """The frame in an Image message. Its pixels are the message's own memory unless cv_bridge had to convert them.

    Args:
        message: to look into; must not be changed while the frame is in use.
        max_pixels: larger images are refused.
        region: of interest, passed on to the frame.

    Raises:
        RefusedFrame: where size, step, data length or encoding cannot be right or are not supported.
    """
    height, width, step = message.height, message.width, message.step
    _check_size(height, width, max_pixels)
    if message.encoding not in ENCODINGS:
        return Frame(_convert(message), "rgb8", region)
    channels = ENCODINGS[message.encoding].channels
    if step < width * channels:
        raise RefusedFrame("step", f"step {step} is less than a row of {width} {message.encoding} pixels")
    if len(message.data) != step * height:
        raise RefusedFrame(
            "data length", f"{len(message.data)} bytes of data in an image of {height} rows of {step} bytes"
        )
    # The step may be longer than a row of pixels. 8-bit encodings have no byte order, so is_bigendian says nothing.
    pixels: NDArray[np.uint8] = np.ndarray(
        (height, width, channels), np.uint8, buffer=message.data, strides=(step, channels, 1)
    )
    return Frame(pixels, message.encoding, region)


def decode(message: CompressedImage, max_pixels: int, region: Region = WHOLE) -> Frame:
    """The frame in a CompressedImage message (JPEG, PNG and what else OpenCV decodes).

    Raises:
        RefusedFrame: where it cannot be decoded or is too large.
    """
    # Read by OpenCV when it is loaded; keeps a small message from unpacking to gigabytes.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(max_pixels))
    import cv2

    if len(message.data) == 0:
        raise RefusedFrame("data length", "a compressed image without data")
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise RefusedFrame("undecodable", f"OpenCV cannot decode it: {one_line(error)}") from None
    if pixels is None:
        raise RefusedFrame(
            "undecodable",
            f"{len(message.data)} bytes of format '{message.format}' are no image that OpenCV decodes",
        )
    _check_size(pixels.shape[0], pixels.shape[1], max_pixels)
    return Frame(pixels, "bgr8", region)


#: How a frame is taken from a message, by the parameter ``image_transport``.
UNPACK: dict[str, Callable[[Any, int, Region], Frame]] = {"raw": view, "compressed": decode}


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height == 0 or width == 0:
        raise RefusedFrame("zero size", f"an image of {width}x{height} pixels")
    if height * width > max_pixels or max(height, width) > MAX_SIDE:
        raise RefusedFrame(
            "too large",
            f"an image of {width}x{height} pixels; at most {max_pixels} (max_pixels) and {MAX_SIDE} a side are taken",
        )


def _convert(message: Image) -> NDArray[np.uint8]:
    """Bayer, YUV and 16-bit images as (height, width, 3) rgb8, by cv_bridge."""
    try:
        from cv_bridge import CvBridge
    except Exception as error:  # one built for another NumPy raises whatever it likes
        raise RefusedFrame(
            "encoding",
            f"encoding '{message.encoding}' is none of {', '.join(ENCODINGS)} and needs cv_bridge, "
            f"which cannot be imported: {error}",
        ) from None
    bridge: Any = CvBridge()
    try:
        pixels = bridge.imgmsg_to_cv2(message, desired_encoding="rgb8")
    except Exception as error:  # CvBridgeError, and what OpenCV and NumPy raise below it
        raise RefusedFrame(
            "encoding", f"cv_bridge cannot convert encoding '{message.encoding}': {error}"
        ) from None
    return np.ascontiguousarray(pixels)
