"""What a JPEG says of itself: its segments, its size, and whether the data of its scans is whole.

The data is walked by :mod:`bnn_perception.frames.scan`, where numba is there. Without numba what tells of a cut is the
missing end marker alone, and damage inside the data is not seen.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Segments of a file at most.
MAX_SEGMENTS = 100_000

#: Scans of a file at most: the progressive kind comes in ten or so.
MAX_SCANS = 100

#: As libjpeg looks for the next marker: over what stands between segments, and over fill bytes.
_MARKER = re.compile(rb"\xff[^\x00\xff]")

_HUFFMAN, _QUANTIZERS, _INTERVAL, _SCAN, _END = 0xC4, 0xDB, 0xDD, 0xDA, 0xD9
_SEQUENTIAL, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2

#: Markers that begin a picture. Those besides the three are lossless, hierarchical or arithmetic; nobody sends them.
_FRAMES = set(range(0xC0, 0xD0)) - {_HUFFMAN, 0xC8, 0xCC}


#: Of a coefficient that no scan has brought.
_NOT_THERE = 255


class JpegError(ValueError):
    """A JPEG that is not whole; the message goes on after "JPEG"."""


@dataclass
class _Component:
    """One channel: its blocks in an MCU, its quantizers, and the blocks that it has."""

    across: int
    down: int
    quantizers: int
    rows: int = 0
    columns: int = 0
    blocks_a_row: int = 0
    first_block: int = 0


class Jpeg:
    """One file, read segment by segment."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        # One type for numba, whether or not a message's memory can be written to.
        self._data = data.view()
        self._data.flags.writeable = False
        self._bytes = memoryview(self._data)
        self._is_progressive = False
        self._height = self._width = 0
        # Blocks of an MCU across and down, of the component with the most.
        self._across = self._down = 1
        self._components: dict[int, _Component] = {}
        self._blocks = 0
        self._interval = 0
        self._tables = list(_STANDARD)
        self._quantizers = np.zeros((4, 64), np.int64)
        self._seen: NDArray[np.int64] | None = None
        # Low bits of each coefficient that are still to come, by component; all of them where none has come.
        self._lacking: dict[int, NDArray[np.int64]] = {}

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Width and height as the header states them; who goes on iterating has the rest checked.

        Raises:
            JpegError, struct.error, IndexError: where something disagrees, or is not there.
        """
        at, scans = 2, 0
        for _ in range(MAX_SEGMENTS):
            found = _MARKER.search(self._bytes, at)
            if found is None:
                return self._finish(has_end=False)
            at = found.end()
            marker = self._bytes[at - 1]
            if marker == _END:
                return self._finish(has_end=True)
            if marker == 0x01 or 0xD0 <= marker <= 0xD8:
                continue
            (length,) = struct.unpack_from(">H", self._bytes, at)
            if length < 2 or at + length > len(self._bytes):
                raise JpegError("whose parts reach beyond its end")
            segment = self._bytes[at + 2 : at + length]
            at += length
            if marker in _FRAMES:
                self._read_frame(marker, segment)
                yield self._width, self._height
                self._lay_out()
            elif marker == _HUFFMAN:
                self._read_tables(segment)
            elif marker == _QUANTIZERS:
                self._read_quantizers(segment)
            elif marker == _INTERVAL:
                (self._interval,) = struct.unpack_from(">H", segment)
            elif marker == _SCAN:
                scans += 1
                if scans > MAX_SCANS:
                    raise JpegError(f"of over {MAX_SCANS} scans")
                at = self._walk(segment, at)
        raise JpegError(f"of over {MAX_SEGMENTS} parts")

    def _read_frame(self, marker: int, segment: memoryview) -> None:
        if marker not in (_SEQUENTIAL, _EXTENDED, _PROGRESSIVE):
            raise JpegError(f"of a kind that nobody sends (SOF{marker - 0xC0})")
        if self._components:
            raise JpegError("with two headers")
        self._is_progressive = marker == _PROGRESSIVE
        precision, self._height, self._width, count = struct.unpack_from(">BHHB", segment)
        if precision != 8 or not 1 <= count <= 4:
            raise JpegError(f"of {count} channels of {precision} bits")
        for index in range(count):
            name, sampling, quantizers = (
                segment[6 + 3 * index],
                segment[7 + 3 * index],
                segment[8 + 3 * index],
            )
            across, down = sampling >> 4, sampling & 15
            if not (1 <= across <= 4 and 1 <= down <= 4 and quantizers < 4) or name in self._components:
                raise JpegError("whose header disagrees with itself")
            self._components[name] = _Component(across, down, quantizers)

    def _lay_out(self) -> None:
        """Where the blocks of each component lie: in whole MCUs."""
        self._across = max(component.across for component in self._components.values())
        self._down = max(component.down for component in self._components.values())
        for name, component in self._components.items():
            component.columns = _share(self._width, component.across, 8 * self._across)
            component.rows = _share(self._height, component.down, 8 * self._down)
            component.blocks_a_row = _share(self._width, 1, 8 * self._across) * component.across
            component.first_block = self._blocks
            self._blocks += component.blocks_a_row * _share(self._height, 1, 8 * self._down) * component.down
            self._lacking[name] = np.full(64, _NOT_THERE)

    def _read_tables(self, segment: memoryview) -> None:
        while segment:
            place, symbols = segment[0], sum(segment[1:17])
            kind, number = place >> 4, place & 15
            if kind > 1 or number > 3 or symbols > 256 or len(segment) < 17 + symbols:
                raise JpegError("whose tables disagree with themselves")
            self._tables[4 * kind + number] = bytes(segment[1 : 17 + symbols])
            segment = segment[17 + symbols :]

    def _read_quantizers(self, segment: memoryview) -> None:
        while segment:
            wide, number = segment[0] >> 4, segment[0] & 15
            size = 128 if wide else 64
            if wide > 1 or number > 3 or len(segment) < 1 + size:
                raise JpegError("whose tables disagree with themselves")
            self._quantizers[number] = np.frombuffer(segment[1 : 1 + size], ">u2" if wide else np.uint8)
            segment = segment[1 + size :]

    def _walk(self, segment: memoryview, at: int) -> int:
        """Check the data of a scan, which begins at ``at``; the place of the marker behind it."""
        count = segment[0]
        named = [(segment[1 + 2 * index], segment[2 + 2 * index]) for index in range(count)]
        first, last, approximation = struct.unpack_from("BBB", segment, 1 + 2 * count)
        high, low = approximation >> 4, approximation & 15
        if not self._is_progressive:
            first, last, high, low = 0, 63, 0, 0  # as libjpeg takes them, whatever is written there
        if (
            not 1 <= count <= 4
            or len({name for name, _ in named}) != count
            or any(name not in self._components or tables & 0xCC for name, tables in named)
            or not first <= last <= 63
            or (self._is_progressive and (first == 0) != (last == 0))
            or (first > 0 and count > 1)
            or low > 13
        ):
            raise JpegError("whose scans disagree with its header")
        for name, _ in named:
            lacking = self._lacking[name][first : last + 1]
            if (lacking != (high or _NOT_THERE)).any():
                raise JpegError("whose scans do not follow from one another")
            lacking[:] = low
        scan = _walker()
        if scan is None:
            return at
        components = np.empty((count, scan.COMPONENT), np.int64)
        longest = np.empty((count, 64), np.int64)
        for index, (name, tables) in enumerate(named):
            component = self._components[name]
            quantizers = self._quantizers[component.quantizers]
            across, down = (component.across, component.down) if count > 1 else (1, 1)
            components[index] = (
                tables >> 4, 4 + (tables & 15), across, down, component.blocks_a_row, component.first_block,
                quantizers[0],
            )  # fmt: skip
            longest[index] = _longest(quantizers.tobytes()) - low
        if count > 1:
            rows, columns = (
                _share(self._height, 1, 8 * self._down),
                _share(self._width, 1, 8 * self._across),
            )
        else:
            rows, columns = component.rows, component.columns
        if self._seen is None:
            self._seen = np.zeros(self._blocks if self._is_progressive else 1, np.int64)
        end = int(
            scan.walk(
                self._data,
                at,
                _joined(tuple(self._tables)),
                components,
                longest.reshape(-1),
                rows,
                columns,
                self._interval,
                self._is_progressive,
                (first, last, high, low),
                self._seen,
                np.empty(self._data.size - at + scan.SPARE, np.uint8),
                np.empty(count, np.int64),
            )
        )
        if end == scan.CUT:
            raise JpegError("whose data ends before its picture")
        if end == scan.DAMAGED:
            raise JpegError("whose data is damaged")
        return end

    def _finish(self, has_end: bool) -> None:
        """Refuse a picture of which a coefficient, or a bit of one, has not come."""
        if not has_end and _walker() is None:
            raise JpegError("without its end")
        if any(lacking.any() for lacking in self._lacking.values()):
            raise JpegError("whose data ends before its picture")


#: A grey picture of 8x8 pixels, by the tables of annex K.
_SMALLEST = bytes.fromhex("ffd8 ffc0000b08000800080101 1100 ffda0008010100003f00 2b ffd9")


def compile_ahead() -> None:
    """Have the walk over data compiled, or read from numba's cache, which takes seconds; without numba nothing."""
    for _ in Jpeg(np.frombuffer(_SMALLEST, np.uint8)).sizes():
        pass


def _share(size: int, part: int, whole: int) -> int:
    return -(-size * part // whole)


@functools.lru_cache(maxsize=1)
def _walker() -> Any:
    """The compiled walk over a scan's data; None without numba."""
    try:
        from bnn_perception.frames import scan
    except ImportError:
        return None
    return scan


@functools.lru_cache(maxsize=64)
def _longest(quantizers: bytes) -> NDArray[np.int64]:
    """Bits that coefficients can have, 10 at most: times its quantizer one lies within 2048, rounding aside.

    A transform of 8x8 values of 8 bits gives up to 1024; twice that leaves room for what encoders do at edges.
    """
    steps = np.maximum(np.frombuffer(quantizers, np.int64), 1)
    return np.array([min(int((2048 + step) // step).bit_length(), 10) for step in steps], np.int64)


@functools.lru_cache(maxsize=64)
def _table(definition: bytes) -> NDArray[np.int32]:
    """A Huffman table as the walk takes it, from how many codes of 1 to 16 bits there are, and their symbols."""
    scan = _walker()
    table = np.zeros(scan.TABLE, np.int32)
    symbols = definition[16:]
    table[scan.SYMBOLS : scan.SYMBOLS + len(symbols)] = np.frombuffer(symbols, np.uint8)
    code = place = 0
    for length in range(1, 17):
        count = definition[length - 1]
        table[scan.PLACES + length] = place - code
        for symbol in symbols[place : place + count]:
            if length <= scan.LOOKUP_BITS:
                begin = code << (scan.LOOKUP_BITS - length)
                bits = length + (symbol & 15)
                table[begin : begin + (1 << (scan.LOOKUP_BITS - length))] = (bits << 8) | symbol
            code += 1
        place += count
        if code > 1 << length:
            raise JpegError("whose tables disagree with themselves")
        table[scan.ENDS + length] = code << (16 - length)
        code <<= 1
    return table


@functools.lru_cache(maxsize=16)
def _joined(definitions: tuple[bytes, ...]) -> NDArray[np.int32]:
    """Eight tables one behind the other; codes of one that is not there are none."""
    return np.concatenate([_table(definition) for definition in definitions])


def _standard(counts: str, symbols: str) -> bytes:
    return bytes.fromhex(counts) + bytes.fromhex(symbols)


_MEANS = "000102030405060708090a0b"
_NO_CODES = bytes(16)

#: The tables of annex K, of DC and of AC: the frames of many webcams bring none.
_STANDARD = (
    _standard("00010501010101010100000000000000", _MEANS),
    _standard("00030101010101010101010000000000", _MEANS),
    _NO_CODES,
    _NO_CODES,
    _standard(
        "0002010303020403050504040000017d",
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a34353637"
        "38393a434445464748494a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3"
        "a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa",
    ),
    _standard(
        "00020102040403040705040400010277",
        "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a262728292a3536"
        "3738393a434445464748494a535455565758595a636465666768696a737475767778797a82838485868788898a92939495969798999a"
        "a2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa",
    ),
    _NO_CODES,
    _NO_CODES,
)
