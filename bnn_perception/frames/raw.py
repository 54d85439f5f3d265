"""Raw camera encodings that are no plain bytes of red, green and blue: Bayer mosaics, YUV and 16 bits a channel.

OpenCV converts them. The names are those of sensor_msgs/image_encodings, and ``nv12``, which drivers write as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Other names of encodings that are taken as they are. Of 8UC3 OpenCV's own order, blue first, is assumed.
ALIASES = {"8UC1": "mono8", "8UC3": "bgr8", "8UC4": "bgra8"}

#: Names of OpenCV's types: with :data:`ALIASES` taken out, images of them are measurements and no pictures.
HOLDS_NO_COLOURS = re.compile(r"(?!8UC[134]$)(8U|8S|16U|16S|32S|32F|64F)C[0-9]+")


def compressed_order(format: str) -> str:
    """In which order the colours of a compressed image were stored, by its ``format``, as image_transport takes it.

    Args:
        format: such as ``jpeg``, ``rgb8; jpeg compressed bgr8`` or ``16UC1; compressedDepth png``.

    Returns:
        rgb8 or bgr8; an encoded file holds bgr8 unless the format says otherwise.

    Raises:
        RawError: of depths and other measurements, and of mosaics of a Bayer camera, which are no pictures.
    """
    original, _, how = (part.strip() for part in format.partition(";"))
    if HOLDS_NO_COLOURS.fullmatch(original) or how.startswith("compressedDepth"):
        raise RawError("holds no colours (a depth image?); take the colour camera's topic")
    stored = how.partition("compressed ")[2].strip()
    if stored.startswith("bayer_"):
        raise RawError("holds a mosaic; send it in colour")
    return "rgb8" if stored.startswith("rgb") else "bgr8"


class RawError(ValueError):
    """A raw image that disagrees with its encoding; the message says how."""


@dataclass(frozen=True)
class Raw:
    """How an encoding lies in memory, and how it is converted.

    Attributes:
        item: bytes of one value; values of two bytes have a byte order.
        channels: values a pixel.
        convert: from (rows, width, channels) values to (height, width, 3) or (height, width, 1) uint8 RGB or grey.
        even: whether width (1) or width and height (2) must be even; 0 where any will do.
        chroma: whether half as many rows of chroma follow those of the image.
    """

    item: int
    channels: int
    convert: Callable[[NDArray[Any]], NDArray[np.uint8]]
    even: int = 0
    chroma: bool = False

    def rows(self, height: int) -> int:
        """Rows of the data of an image."""
        return height * 3 // 2 if self.chroma else height

    def check(self, encoding: str, height: int, width: int) -> None:
        """Refuse sizes that the encoding cannot have."""
        if (self.even and width % 2) or (self.even > 1 and height % 2):
            raise RawError(f"{width}x{height} pixels of {encoding}, whose sides must be even")


def to_rgb(raw: Raw, data: Any, height: int, width: int, step: int, big_endian: bool) -> NDArray[np.uint8]:
    """The picture in a raw image whose sizes have been checked.

    Args:
        raw: its encoding.
        data: at least ``raw.rows(height) * step`` bytes.
        step: bytes from one row to the next.

    Returns:
        (height, width, 3) uint8 RGB, or (height, width, 1) uint8 grey.
    """
    dtype = np.dtype(np.uint8) if raw.item == 1 else np.dtype(">u2" if big_endian else "<u2")
    strides = (step, raw.item * raw.channels, raw.item)
    values = np.ndarray((raw.rows(height), width, raw.channels), dtype, buffer=data, strides=strides)
    native = np.ascontiguousarray(values, dtype.newbyteorder("="))
    return np.ascontiguousarray(raw.convert(native).reshape(height, width, -1))


def _eight_bits(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """65535 becomes 255, to the nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _deep(order: tuple[int, ...], values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return _eight_bits(values[..., order])


def _by_opencv(code: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """A conversion of OpenCV, whose mosaics are named by the pixels of the second row and column."""
    import cv2

    values = values[..., 0] if values.shape[2] == 1 else values
    if values.dtype == np.uint16:
        values = _eight_bits(values)
    return np.asarray(cv2.cvtColor(values, getattr(cv2, f"COLOR_{code}")))


_MOSAICS = {"rggb": "BayerBG2RGB", "bggr": "BayerRG2RGB", "gbrg": "BayerGR2RGB", "grbg": "BayerGB2RGB"}
_ORDERS = {"rgb16": (0, 1, 2), "bgr16": (2, 1, 0), "rgba16": (0, 1, 2), "bgra16": (2, 1, 0), "mono16": (0,)}
_UYVY = Raw(1, 2, partial(_by_opencv, "YUV2RGB_UYVY"), even=1)
_YUYV = Raw(1, 2, partial(_by_opencv, "YUV2RGB_YUY2"), even=1)

#: The encodings that are converted, by name.
RAW: dict[str, Raw] = {
    **{
        f"bayer_{pattern}{8 * item}": Raw(item, 1, partial(_by_opencv, code), even=2)
        for pattern, code in _MOSAICS.items()
        for item in (1, 2)
    },
    **{
        name: Raw(2, {"rgba16": 4, "bgra16": 4}.get(name, len(order)), partial(_deep, order))
        for name, order in _ORDERS.items()
    },
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    "nv12": Raw(1, 1, partial(_by_opencv, "YUV2RGB_NV12"), even=2, chroma=True),
    "nv21": Raw(1, 1, partial(_by_opencv, "YUV2RGB_NV21"), even=2, chroma=True),
}
