"""Encoded images (JPEG, PNG ...): what the bytes say of themselves is checked before a decoder takes memory for it.

A file or message is untrusted. OpenCV opens more formats than anybody sends, takes memory for a chunk's stated length
before it looks whether the bytes are there, and gives of a few formats no picture in uint8. So the format is told by
the first bytes, its lengths are held against the data, its stated pixels against a limit, and what comes out is looked
at too.
"""

from __future__ import annotations

import functools
import os
import re
import struct
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import Error, one_line
from bnn_perception.frames.frame import MAX_SIDE
from bnn_perception.frames.jpeg import Jpeg, JpegError

#: OpenCV decodes up to 2**30 pixels; an image that large is a mistake or an attack on a robot's memory.
MAX_PIXELS = 1 << 27

#: Chunks and segments of an image at most, so that walking over them takes a fraction of a second.
MAX_PARTS = 100_000

#: Bytes of a JPEG from which on a thread of its own checks its data: handing over fewer takes longer than the check.
LARGE = 8192

#: What a JPEG ends with.
END_OF_IMAGE = b"\xff\xd9"

#: Why an encoded image cannot be used, in a word.
Reason = Literal["undecodable", "too large", "zero size"]


class EncodedError(Error, ValueError):
    """An encoded image that cannot be used; the message says what it is or has, without its name.

    Attributes:
        reason: one of :data:`Reason`.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Size(NamedTuple):
    """What a header states, in pixels."""

    width: int
    height: int


def decode(
    data: NDArray[np.uint8], max_pixels: int, formats: Collection[str] | None = None, limit: str = ""
) -> NDArray[np.uint8]:
    """The pixels of an encoded image, upright as its EXIF orientation says, or the rotation of an AVIF.

    Grey becomes colour, 16 bits become 8 by their upper half, transparency is dropped. What has 12 bits or fewer in 16
    is refused: it would be nearly black.

    Args:
        data: (n,), the bytes of the file.
        max_pixels: larger images are refused, before they are decoded.
        formats: names of :data:`FORMATS` that are taken; None takes all of them.
        limit: what messages call ``max_pixels``.

    Returns:
        (height, width, 3) uint8; blue, green, red.

    Raises:
        EncodedError: with the reason.
    """
    # Read by OpenCV when it is loaded: a second bound, should a header have said less than the data.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    checks = _checks(data, max_pixels, formats, limit)
    name = next(checks)
    if name == "JPEG" and bytes(data[-2:]) != END_OF_IMAGE:
        # Without it OpenCV leaves the last rows as the memory was before 4.11, and refuses the file from then on.
        data = np.append(data, np.frombuffer(END_OF_IMAGE, np.uint8))
    if name == "JPEG" and data.size >= LARGE:
        # Its header has been checked, so that memory is bounded. The walk over its data takes a third of the time of
        # decoding it, and neither holds the interpreter.
        checked = _helper().submit(_exhaust, checks)
        try:
            pixels = _decoded(data, name)
        finally:
            if checked.cancel():  # no processor has been free for it
                _exhaust(checks)
            else:
                checked.result()
    else:
        _exhaust(checks)
        pixels = _decoded(data, name)
    if pixels is None:
        raise EncodedError("undecodable", "is not an image that can be decoded, or is cut short")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise EncodedError(
            "undecodable",
            f"is decoded to {pixels.dtype} of shape {pixels.shape}, which is no picture in colour",
        )
    check_size(pixels.shape[1], pixels.shape[0], max_pixels, limit)
    if _may_be_deep(data, name) and 0 < pixels.max() < 16 and _is_deep(data):
        raise EncodedError(
            "undecodable",
            f"is {name} of 16 bits whose values need 12 or fewer, and would be nearly black; shift them up to 16 bits",
        )
    return np.asarray(pixels)


def _decoded(data: NDArray[np.uint8], name: str) -> Any:
    """What OpenCV makes of it, upright; None where it makes nothing."""
    import cv2

    try:
        if name not in TURNED:
            return cv2.imdecode(data, cv2.IMREAD_COLOR)
        # OpenCV turns WebP from 4.13 on, and AVIF never.
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        return pixels if pixels is None else np.ascontiguousarray(TURNED[name](bytes(data), pixels))
    # Not cv2.error alone: a size that numpy cannot take, or no memory, are exceptions of other types.
    except Exception as error:
        raise EncodedError("undecodable", f"cannot be decoded: {one_line(error)}") from None


@functools.lru_cache(maxsize=1)
def _helper() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "jpeg")


# The thread does not live on in a child.
os.register_at_fork(after_in_child=_helper.cache_clear)


def _exhaust(checks: Iterator[str]) -> None:
    for _ in checks:
        pass


def check(
    data: NDArray[np.uint8], max_pixels: int, formats: Collection[str] | None = None, limit: str = ""
) -> None:
    """Check format, structure and stated sizes of an encoded image; see :func:`decode`.

    Raises:
        EncodedError: with the reason.
    """
    _exhaust(_checks(data, max_pixels, formats, limit))


def _checks(
    data: NDArray[np.uint8], max_pixels: int, formats: Collection[str] | None, limit: str
) -> Iterator[str]:
    """As :func:`check`; yields the format's name each time that a size has passed."""
    content = memoryview(np.ascontiguousarray(data).data)
    name = format_of(bytes(content[:32]))
    taken = FORMATS if formats is None else formats
    if name is None or name not in taken:
        raise EncodedError("undecodable", f"is not an image that can be decoded ({', '.join(taken)} can)")
    sizes = 0
    try:
        for size in FORMATS[name].sizes(content):
            check_size(*size, max_pixels, limit)
            sizes += 1
            if sizes > MAX_PARTS:
                raise _too_many_parts(name)
            yield name
    # A header that ends in the midst of a field.
    except (struct.error, IndexError):
        raise _cut_short(name) from None
    if not sizes:
        raise EncodedError("undecodable", f"is not an image that can be decoded: {name} without a size")


def check_size(width: int, height: int, max_pixels: int, limit: str = "") -> None:
    """Refuse a size of no pixels and one of too many.

    Raises:
        EncodedError: with the reason.
    """
    if width <= 0 or height <= 0:
        raise EncodedError("zero size", f"{width}x{height} pixels")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        named = f" ({limit})" if limit else ""
        raise EncodedError(
            "too large",
            f"{width}x{height} pixels; at most {max_pixels}{named} and {MAX_SIDE} a side are taken",
        )


def format_of(start: bytes) -> str | None:
    """The name in :data:`FORMATS` of the format that data begins like, None where it is none of them."""
    return next((name for name, kind in FORMATS.items() if kind.begins(start)), None)


def _too_many_parts(name: str) -> EncodedError:
    return EncodedError(
        "undecodable", f"is not an image that can be decoded: {name} of over {MAX_PARTS} parts"
    )


def _cut_short(name: str) -> EncodedError:
    return EncodedError(
        "undecodable",
        f"is not an image that can be decoded, or is cut short: {name} whose parts reach beyond its end",
    )


def _too_little(name: str, held: int) -> EncodedError:
    return EncodedError(
        "undecodable",
        f"is not an image that can be decoded: {name} whose {held} bytes of data cannot fill its size",
    )


# The formats. Each function yields the sizes that data states, and raises EncodedError, struct.error or IndexError
# where its parts do not lie inside it.


#: Bytes at most that deflate makes of one.
_INFLATES = 1032

#: Values a pixel of each of PNG's kinds of colour.
_PNG_VALUES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _png(data: memoryview) -> Iterator[Size]:
    at, held, needed = 8, 0, 0
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise _cut_short("PNG")
        if (at == 8) != (kind == b"IHDR"):
            raise EncodedError(
                "undecodable", "is not an image that can be decoded: PNG with its header out of place"
            )
        if kind == b"IHDR":
            width, height, bits, colour = struct.unpack_from(">IIBB", data, at + 8)
            yield Size(width, height)
            # A byte a row names its filter. What does not fill its rows is decoded to black all the same.
            needed = height * (1 + -(-width * bits * _PNG_VALUES.get(colour, 1) // 8))
        elif kind == b"fcTL":
            # A frame of an animation, which OpenCV gives memory of its own.
            yield Size(*struct.unpack_from(">II", data, at + 12))
        elif kind == b"IDAT":
            held += length
        elif kind == b"IEND":
            break
        at += 12 + length
    else:
        raise _too_many_parts("PNG")
    if not held:
        raise EncodedError("undecodable", "is not an image that can be decoded: PNG without data")
    if held * _INFLATES < needed:
        raise _too_little("PNG", held)


def _jpeg(data: memoryview) -> Iterator[Size]:
    try:
        for size in Jpeg(np.frombuffer(data, np.uint8)).sizes():
            yield Size(*size)
    except JpegError as error:
        raise EncodedError(
            "undecodable", f"is not an image that can be decoded, or is cut short: JPEG {error}"
        ) from None


def _webp(data: memoryview) -> Iterator[Size]:
    for kind, at, _ in _webp_chunks(data):
        if kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, at + 6)
            yield Size(width & 0x3FFF, height & 0x3FFF)
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, at + 1)
            yield Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind == b"VP8X":
            yield Size(*(int.from_bytes(data[at + 4 + 3 * i :][:3], "little") + 1 for i in range(2)))


def _webp_chunks(data: bytes | memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and length of what each chunk of a WebP holds; those of an animation's frames among them."""
    (length,) = struct.unpack_from("<I", data, 4)
    end = 8 + length
    if end > len(data):
        raise _cut_short("WebP")
    at = 12
    for _ in range(MAX_PARTS):
        if at + 8 > end:
            return
        kind, length = struct.unpack_from("<4sI", data, at)
        at += 8
        if at + length > end:
            raise _cut_short("WebP")
        if kind == b"ANMF":
            # The chunks of a frame lie inside of its own.
            at += 16
            continue
        yield kind, at, length
        at += length + length % 2
    raise _too_many_parts("WebP")


def _bmp(data: memoryview) -> Iterator[Size]:
    offset, header = struct.unpack_from("<II", data, 10)
    if offset > len(data):
        raise _cut_short("BMP")
    if header == 12:
        (width, height), compression = struct.unpack_from("<HH", data, 18), 0
        (bits,) = struct.unpack_from("<H", data, 24)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
        bits, compression = struct.unpack_from("<HI", data, 28)
    # Negative where the first row stands first.
    yield Size(width, abs(height))
    # Run lengths, 1 and 2, may be as short as they like.
    if compression not in (1, 2) and len(data) - offset < abs(height) * (-(-width * bits // 32) * 4):
        raise _too_little("BMP", len(data) - offset)


def _gif(data: memoryview) -> Iterator[Size]:
    yield Size(*struct.unpack_from("<HH", data, 6))


def _pnm(data: memoryview) -> Iterator[Size]:
    numbers = re.match(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s", bytes(data[:4096]))
    if numbers:
        width, height = int(numbers[1]), int(numbers[2])
        yield Size(width, height)
        held, kind = len(data) - numbers.end(), data[1] - ord("0")
        values = width * height * (3 if kind in (3, 6) else 1)
        # A bit a value in P4, with rows of whole bytes; elsewhere a byte at least.
        if held < (-(-width // 8) * height if kind == 4 else values):
            raise _too_little("PNM", held)


#: Of TIFF: width and height of the image, and of its tiles.
_TIFF_TAGS = (0x100, 0x101, 0x142, 0x143)


def _tiff(data: memoryview) -> Iterator[Size]:
    order = "<" if data[0] == ord("I") else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (at,) = struct.unpack_from(order + "Q", data, 8) if big else struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    entry = 20 if big else 12
    if count > MAX_PARTS:
        raise _too_many_parts("TIFF")
    if at + count * entry > len(data):
        raise _cut_short("TIFF")
    values: dict[int, int] = {}
    for start in range(at, at + count * entry, entry):
        tag, kind = struct.unpack_from(order + "HH", data, start)
        if tag in _TIFF_TAGS:
            code = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if code is None:
                return
            (values[tag],) = struct.unpack_from(order + code, data, start + entry - (8 if big else 4))
    for width, height in (_TIFF_TAGS[:2], _TIFF_TAGS[2:]):
        if width in values or height in values:
            yield Size(values.get(width, 0), values.get(height, 0))


def _avif(data: memoryview) -> Iterator[Size]:
    # Every size of every picture in it, wherever it stands: type, version and flags, width, height.
    for box in re.finditer(rb"ispe", bytes(data)):
        yield Size(*struct.unpack_from(">II", data, box.end() + 4))


def _turned_webp(content: bytes, pixels: NDArray[Any]) -> NDArray[Any]:
    """By the orientation in its EXIF chunk; without one, or with one that cannot be read, as it is."""
    for kind, at, length in _webp_chunks(content):
        if kind == b"EXIF":
            turn = ORIENTATIONS.get(_orientation(content[at : at + length]))
            return turn(pixels) if turn else pixels
    return pixels


def _orientation(exif: bytes) -> int:
    """The orientation that EXIF data states; 0 where it states none."""
    exif = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        if order is not None:
            (at,) = struct.unpack_from(order + "I", exif, 4)
            (count,) = struct.unpack_from(order + "H", exif, at)
            for entry in range(at + 2, at + 2 + 12 * count, 12):
                tag, _, _, value = struct.unpack_from(order + "HHIH", exif, entry)
                if tag == 0x112:
                    return int(value)
    except struct.error:
        pass
    return 0


def _turned_avif(content: bytes, pixels: NDArray[Any]) -> NDArray[Any]:
    """By its boxes of rotation (quarter turns to the left) and then of mirroring."""
    header = content[: content.find(b"mdat")]
    turns = re.search(rb"\0\0\0\x09irot(.)", header, re.DOTALL)
    if turns:
        pixels = np.rot90(pixels, turns[1][0] & 3)
    mirror = re.search(rb"\0\0\0\x09imir(.)", header, re.DOTALL)
    if mirror:
        pixels = pixels[:, ::-1] if mirror[1][0] & 1 else pixels[::-1]
    return pixels


#: What brings a picture of each EXIF orientation upright.
ORIENTATIONS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}

#: The formats that are turned here and not by OpenCV.
TURNED: dict[str, Callable[[bytes, NDArray[Any]], NDArray[Any]]] = {
    "WebP": _turned_webp,
    "AVIF": _turned_avif,
}


def _may_be_deep(data: NDArray[np.uint8], name: str) -> bool:
    """Whether an image may have 16 bits a value, as far as is seen at once."""
    return name in ("TIFF", "PNM") or (name == "PNG" and bool(data[24] == 16))


def _is_deep(data: NDArray[np.uint8]) -> bool:
    import cv2

    deep = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH)
    return deep is not None and deep.dtype == np.uint16


class Format(NamedTuple):
    """A format that is decoded.

    Attributes:
        begins: whether the first bytes are those of the format.
        sizes: the sizes that data of it states, its structure checked.
    """

    begins: Callable[[bytes], bool]
    sizes: Callable[[memoryview], Iterator[Size]]


#: The formats that are decoded, by name. What is none of them is left to no decoder.
FORMATS = {
    "JPEG": Format(lambda start: start[:3] == b"\xff\xd8\xff", _jpeg),
    "PNG": Format(lambda start: start[:8] == b"\x89PNG\r\n\x1a\n", _png),
    "WebP": Format(lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP", _webp),
    "BMP": Format(lambda start: start[:2] == b"BM", _bmp),
    "GIF": Format(lambda start: start[:6] in (b"GIF87a", b"GIF89a"), _gif),
    "PNM": Format(lambda start: re.match(rb"P[1-6][\s#]", start) is not None, _pnm),
    "TIFF": Format(lambda start: start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
    "AVIF": Format(
        lambda start: start[4:8] == b"ftyp" and re.search(rb"avi[fs]", start[8:]) is not None, _avif
    ),
}

#: Those that image_transport and camera drivers send.
TRANSPORTED = ("JPEG", "PNG", "WebP")
