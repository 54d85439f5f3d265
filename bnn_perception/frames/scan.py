"""The entropy-coded data of a JPEG, walked to its end without making pixels of it: compiled by numba.

A decoder goes on over damage, and what it makes of the rest looks like a picture. The data itself tells: codes that no
table holds, coefficients beyond the 64 of a block or larger than any picture's, and data that ends before the last
block or goes on after it. What passes is the picture that was encoded, save for bits whose change leaves every code in
its place, and codes that found their places again.

One file of its own: numba's cache goes by the file of the function that is called. Indices are unsigned where speed
counts, for a signed one might be meant from the end.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from bnn_perception.native import compiled

#: Bits of a code that are looked up at once. Entries are ``bits << 8 | symbol``, where the bits of the symbol's value
#: are counted too; 0 where a code is longer, or none.
LOOKUP_BITS = 10

#: Parts of one Huffman table, int32: the look-up; for each length the first 16 bits that are beyond its codes; what a
#: code of that length lacks to the place of its symbol; the symbols.
ENDS = 1 << LOOKUP_BITS
PLACES = ENDS + 17
SYMBOLS = PLACES + 17
TABLE = SYMBOLS + 256

#: Of a component of a scan: index of its tables of DC and AC, blocks of an MCU across and down, blocks in a row of the
#: whole picture, its first block, quantizer of its means.
DC_TABLE, AC_TABLE, ACROSS, DOWN, BLOCKS_A_ROW, FIRST_BLOCK, QUANTIZER = range(7)
COMPONENT = 7

#: Why a walk ended before its end.
CUT, DAMAGED = -1, -2

#: Bytes behind the last block that pass: webcams put some there, of whole pictures ("extraneous bytes before marker").
STRAY = 8

#: Zeros behind the data of an interval: more than a block can take, whose 64 codes have up to 32 bits.
SPARE = 1 << 10

# Inlined, for a call with arrays takes longer than a block.
_inner: Any = numba.njit(nogil=True, error_model="numpy", forceinline=True)


@_inner
def _unpack(data: Any, at: int, packed: Any) -> Any:
    """Copy the data up to the next marker, without what is stuffed into it: where the marker is, how many bytes."""
    size, count = len(data), 0
    while at < size:
        byte = data[np.uint64(at)]
        if byte == 0xFF:
            if at + 1 >= size or data[np.uint64(at + 1)] != 0:
                break
            at += 1
        packed[np.uint64(count)] = byte
        count += 1
        at += 1
    for place in range(count, count + SPARE):
        packed[np.uint64(place)] = 0
    return at, count


@_inner
def _ahead(packed: Any, bit: int) -> int:
    """The next 16 bits."""
    place = np.uint64(bit >> 3)
    first, second = np.uint32(packed[place]), np.uint32(packed[place + np.uint64(1)])
    return np.int64(
        ((first << np.uint32(16)) | (second << np.uint32(8)) | np.uint32(packed[place + np.uint64(2)]))
        >> np.uint32(8 - (bit & 7))
    ) & np.int64(0xFFFF)


@_inner
def _value(packed: Any, end: int, count: int) -> int:
    """The ``count`` bits, up to 16, that end before the bit ``end``."""
    return _ahead(packed, end - count) >> (16 - count)


@_inner
def _window(packed: Any, bit: int) -> Any:
    """The next 57 bits and more, from the highest on."""
    place, window = np.uint64(bit >> 3), np.uint64(0)
    for index in range(8):
        window = (window << np.uint64(8)) | np.uint64(packed[place + np.uint64(index)])
    return window << np.uint64(bit & 7)


@_inner
def _long_code(tables: Any, table: int, ahead: int) -> int:
    """As :func:`_code`, for a code that the look-up does not hold."""
    for length in range(LOOKUP_BITS + 1, 17):
        if ahead < tables[np.uint64(table + ENDS + length)]:
            place = (ahead >> (16 - length)) + tables[np.uint64(table + PLACES + length)]
            symbol = np.int64(tables[np.uint64(table + SYMBOLS + (place & 0xFF))])
            return ((length + (symbol & 15)) << 8) | symbol
    return np.int64(0)


@_inner
def _code(tables: Any, table: int, ahead: int) -> int:
    """The entry (see :data:`LOOKUP_BITS`) of the code that 16 bits begin with, 0 where there is none."""
    entry = np.int64(tables[np.uint64(table + (ahead >> (16 - LOOKUP_BITS)))])
    return entry if entry else _long_code(tables, table, ahead)


@_inner
def _band(
    packed: Any, bit: int, run: int, tables: Any, table: int, k: int, last: int, longest: Any, limits: int
) -> Any:
    """Walk over the coefficients ``k`` to ``last`` of a block: next bit, or -1 for damage; run; which are not 0."""
    seen = np.int64(0)
    window, used = _window(packed, bit), np.int64(0)
    while k <= last:
        if used > 32:
            bit += used
            window, used = _window(packed, bit), np.int64(0)
        entry = np.int64(tables[np.uint64(table) + (window >> np.uint64(64 - LOOKUP_BITS))])
        if entry == 0:
            entry = _long_code(tables, table, np.int64(window >> np.uint64(48)))
            if entry == 0:
                return np.int64(-1), run, seen
        window <<= np.uint64(entry >> 8)
        used += entry >> 8
        length, zeros = entry & 15, (entry >> 4) & 15
        if length:
            k += zeros
            if k > last or length > longest[np.uint64(limits + k)]:
                return np.int64(-1), run, seen
            seen |= np.int64(1) << k
            k += 1
        elif zeros == 15:
            k += 16
            if k > last + 1:
                return np.int64(-1), run, seen
        else:
            used += zeros
            run = (np.int64(1) << zeros) - 1 + _value(packed, bit + used, zeros)
            break
    bit += used
    return bit, run, seen


@_inner
def _refined_band(
    packed: Any, bit: int, run: int, tables: Any, table: int, k: int, last: int, known: int
) -> Any:
    """Walk over one more bit of the coefficients of a block; as :func:`_band`."""
    seen = known
    while k <= last and run == 0:
        entry = _code(tables, table, _ahead(packed, bit))
        length, zeros = entry & 15, (entry >> 4) & 15
        if entry == 0 or length > 1:
            return np.int64(-1), run, seen
        bit += entry >> 8
        if length == 0 and zeros < 15:
            bit += zeros
            run = (np.int64(1) << zeros) + _value(packed, bit, zeros)
            break
        # A bit for each coefficient that was not 0 before; over so many that were.
        while k <= last:
            if (known >> k) & 1:
                bit += 1
            elif zeros == 0:
                break
            else:
                zeros -= 1
            k += 1
        if length:
            if k > last:
                return np.int64(-1), run, seen
            seen |= np.int64(1) << k
        k += 1
    if run:
        while k <= last:
            bit += (known >> k) & 1
            k += 1
        run -= 1
    return bit, run, seen


@_inner
def _is_padding(packed: Any, bit: int, count: int, stray: int) -> bool:
    """Whether what is left of an interval is filling: ones or zeros in its last byte, and in whole bytes behind.

    Those are of encoders in cameras, which write whole words. So many ``stray`` bytes may hold anything.
    """
    if bit & 7:
        left = 0xFF >> (bit & 7)
        filling = packed[bit >> 3] & left
        if filling != 0 and filling != left:
            return False
    left = count - ((bit + 7) >> 3)
    while left > 0 and (packed[count - left] == 0 or packed[count - left] == 0xFF):
        left -= 1
    return left <= stray


@compiled
def walk(
    data: Any,
    at: int,
    tables: Any,
    components: Any,
    longest: Any,
    rows: int,
    columns: int,
    interval: int,
    progressive: bool,
    band: Any,
    seen: Any,
    packed: Any,
    means: Any,
) -> int:
    """Walk over the data of one scan.

    Args:
        data: (n,) uint8, the file.
        at: where the scan's data begins.
        tables: (8 * TABLE,) int32, four of DC and four of AC; zeros where there is none.
        components: (c, COMPONENT) int64, those of the scan.
        longest: (c * 64,) int64, bits that a coefficient at each place of the zigzag can have.
        rows, columns: of MCUs.
        interval: MCUs from one restart marker to the next, 0 without.
        progressive: whether a block may come in several scans.
        band: first and last coefficient, and of the progressive kind how many low bits were left out before (0 where
            none was brought yet) and are now.
        seen: (blocks,) int64 of a progressive picture: the coefficients that are not 0, a bit for each; changed.
        packed: (n + SPARE,) uint8, memory to work in.
        means: (c,) int64, likewise.

    Returns:
        The place of the marker behind the data, or of the data's end; :data:`CUT` or :data:`DAMAGED`.
    """
    first, last, high, low = band
    mcu, row, column, restarts = 0, 0, 0, 0
    while True:
        at, count = _unpack(data, at, packed)
        broken = np.int64(CUT if at >= len(data) - 1 else DAMAGED)
        bit, run, bits = np.int64(0), np.int64(0), 8 * count
        for index in range(len(components)):
            means[index] = 0
        end = min(mcu + interval, rows * columns) if interval else rows * columns
        while mcu < end:
            for index in range(len(components)):
                across, down = components[index, ACROSS], components[index, DOWN]
                step, in_row = components[index, QUANTIZER], components[index, BLOCKS_A_ROW]
                dc, ac = TABLE * components[index, DC_TABLE], TABLE * components[index, AC_TABLE]
                corner = components[index, FIRST_BLOCK] + row * down * in_row + column * across
                for _ in range(across * down):
                    if bit > bits:
                        return broken
                    if first == 0 and high:
                        bit += 1
                    elif first == 0:
                        entry = _code(tables, dc, _ahead(packed, bit))
                        length = entry & 0xFF
                        if entry == 0 or length > 11:
                            return broken
                        bit += entry >> 8
                        value = _value(packed, bit, length)
                        if length and value >> (length - 1) == 0:
                            value -= (1 << length) - 1
                        means[index] += value << low
                        # 8 times a block's mean lies within 1024; encoders round it, and sharpen edges by 31 levels.
                        if abs(means[index]) * step > 1280 + (step << low):
                            return broken
                    if last == 0:
                        continue
                    if not progressive:
                        bit, run, _ = _band(packed, bit, run, tables, ac, 1, last, longest, 64 * index)
                        if bit < 0 or run:
                            return broken
                        continue
                    # A scan of a band has one component, whose MCU is a block.
                    if high:
                        bit, run, seen[corner] = _refined_band(
                            packed, bit, run, tables, ac, first, last, seen[corner]
                        )
                    elif run:
                        run -= 1
                    else:
                        bit, run, found = _band(
                            packed, bit, run, tables, ac, first, last, longest, 64 * index
                        )
                        seen[corner] |= found
                    if bit < 0:
                        return broken
            mcu += 1
            column += 1
            if column == columns:
                row, column = row + 1, 0
        if bit > bits:
            return broken
        if run:
            return np.int64(DAMAGED)
        if not _is_padding(packed, bit, count, STRAY if mcu == rows * columns else 0):
            return np.int64(DAMAGED)
        while at + 1 < len(data) and data[at + 1] == 0xFF:
            at += 1
        if mcu == rows * columns:
            return np.int64(at)
        if at + 1 >= len(data):
            return np.int64(CUT)
        if data[at + 1] != 0xD0 + (restarts & 7):
            return np.int64(DAMAGED)
        restarts += 1
        at += 2
