"""Everything that numba compiles: preprocessing, the layers of the binary CPU backend, and its threads.

It is one file because numba's disk cache watches the file of the function that is called, and no other: were
these functions spread over several, an update of one could leave a stale compilation of another in use.

Memory is passed as addresses and byte strides, so that one compilation serves every model, image and layout;
who calls owns the arrays and keeps them alive. All functions run without the GIL.

The binary dot product
----------------------
A SIMD lane holds one filter, a vector holds :data:`LANES` of them. Weights lie transposed, ``(units, filters)``
bytes, where a *unit* is the byte of 8 input channels of one tap. A unit of the input, one byte, is compared with
the bytes of all filters at once, and the number of bits that differ is added to one byte a filter. A byte
holds 31 such counts of at most 8 before it is taken off a 16-bit value, which holds 4095 of them; a layer with
more units than that adds up 32-bit values. That number is the Hamming distance. With ``value = -distance``, K products
and the border's correction c (0 for most pixels)::

    K + 2 * value + c >= threshold   <=>   value >= ceil((threshold - K - c) / 2)

so that a bit takes one comparison with a limit that is known beforehand. An input convolution adds pixels, two
at a time, by the signs of its weights; it has its sum as value and its threshold as limit, and from there on the two
kinds of convolution are one.

Where a signal (:mod:`bnn_perception.net.signals`) follows, the dot product itself, or the maximum of a pool's window,
is taken through the step's *epilogue* as float32: a list of operations (:data:`AFFINE` and so on), the store of the
signal where another step reads it, and the comparison with its thresholds. Without a pool this happens while the values
of a tile still lie in the nearest cache. Steps on signals end in the same epilogue. Every operation of it is one
instruction that rounds once; nothing here allows LLVM to contract or reorder them. A signal takes a whole number of
vectors a pixel; its spare lanes are 0, since spare parameters are.

How the distance is counted depends on the processor (:func:`_hamming_distances`). With AVX2 it is a table
look-up: ``vpshufb`` takes the low nibble of every weight byte as index into a table of 16 bytes that was made
for the input's nibble, the high nibble likewise; half the instructions of XOR and a vector popcount.
Elsewhere (NEON's ``cnt``, AVX-512's ``vpopcntb``) popcount is one instruction, and XOR and ``ctpop`` win.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

# numba's annotations do not know that these are called from compiled code.
intrinsic: Any = extending.intrinsic
external: Any = types.ExternalFunction

#: Filters in one vector; also the bits of the word that they become.
LANES = 32
#: Output pixels that share each weight that is loaded.
PIXELS = 4
#: Units whose Hamming distances (at most 8 each) a byte holds.
UNITS_IN_BYTE = 31
#: Units whose Hamming distances a signed 16-bit value holds.
UNITS_IN_SHORT = 4095
#: Pairs of taps of an input convolution whose sums (at most 510 each) a signed 16-bit value holds.
PAIRS_IN_SHORT = 64

#: Pairs of taps of a convolution of pixels with 24-bit weights whose sums, in halves of 12 bits, an int32 holds.
PAIRS_IN_INT = 1024
#: Output pixels of a convolution with real weights that share each weight that is loaded: of a signal, and of pixels.
#: Each takes half a vector of filters at a time; with more pixels the sums would not stay in the 16 registers of AVX2.
REAL_PIXELS, INPUT_PIXELS = 4, 2

#: What a step does; see :data:`STEP`.
THERMOMETER, LEVELS, INPUT_CONV, BINARY_CONV, OUTPUT, OUTPUT_BITS = range(6)
BITS_POOL, COPY_CHANNELS, SIGNAL, MAX_POOL, AVERAGE_POOL, REAL_CONV, DEPTHWISE_CONV, REAL_INPUT_CONV = range(
    6, 14
)

#: Operations of an epilogue. Their parameters, rows of LANES float32, follow one another: scale and bias, a slope, low
#: and high, none; after :data:`END` the thresholds.
END, AFFINE, PRELU, CLIP, ADD = range(5)

#: One step of a program. Addresses and strides are in bytes; ``*_row`` and ``*_pixel`` are the distances of
#: rows and pixels. A dense layer is a convolution whose kernel is as large as its input.
STEP = np.dtype(
    [
        (field, np.int64)
        for field in (
            "kind",
            "items",  # independent pieces of work
            "rows",  # output rows in one item
            "groups",  # of filters
            "vectors",  # of LANES filters in a group, 1 or 2; the last group may have fewer
            "words",  # of 32 filters
            "source",  # first pixel of the first window, padding included
            "source_row",
            "source_pixel",
            "target",
            "target_row",
            "target_pixel",
            "width",  # of the convolution's output, before the pool
            "out_height",
            "out_width",
            "pool_size",
            "pool_stride",
            "windows",  # (pixels of the convolution's output, 2) uint32: byte of the window, index of its limits
            "units",  # of one dot product: bytes of bits, pairs of pixels, or reals
            "offsets",  # (units,) int32 distance of each from the first byte of a window
            "weights",  # for each group (units, filters of the group) uint8; of pairs (units, filters, 2) int8; of
            # reals (units, LANES) float32; of pairs with 24-bit weights (units, 2 halves, LANES, 2) int16
            "starts",  # of real weights, (groups,) int32: distance of the group's first channel from that of a window
            "wide",  # whether values and limits are int32, not int16; levels uint16, not uint8
            "limits",  # (patterns, words * LANES) of which a value reaches its own to become 1; of a residual the base
            "flip",  # (words,) uint32
            "table",  # thermometer (channels, 256, words) uint32, levels (256,) uint8, bits (words * LANES, 2) float32
            "products",  # of one dot product of an output
            "scale",  # of an output: (words * LANES,) float32
            "bias",  # likewise
            "ops",  # the epilogue, int64 operations up to END; 0 where bits follow from integers alone
            "parameters",  # of it, for each word (rows, LANES) float32
            "parameter_bytes",  # of one word
            "shift",  # a dot product is ``(value << shift) + base``, base int32
            "signal",  # where the signal goes: (words * LANES,) float32 a pixel; 0 where no other step reads it
            "signal_row",
            "signal_pixel",
            "addend",  # the signal that ADD adds
            "addend_row",
            "addend_pixel",
            "in_height",  # of the source of a pool
            "in_width",
            "kernel_y",  # of a pool
            "kernel_x",
            "stride_y",
            "stride_x",
            "top",  # rows and columns of padding before the source of a pool
            "left",
            "counts",  # of an average: (out_height, out_width) int32
        )
    ],
    align=True,
)

#: What the threads of a program share, a cache line each, since different threads write them: frames begun, whether
#: the program is closed, the mutex and the condition to sleep on, then items taken and items done of each step. The
#: counters only ever grow, so that a thread which is late for a frame finds nothing left to do in it.
STATE_FRAMES, STATE_CLOSED, STATE_MUTEX, STATE_CONDITION, STATE_STEPS = range(5)
CACHE_LINE = 64


def state_bytes(steps: int) -> int:
    """Bytes of the state of a program of so many steps; zeros to begin with, then :func:`open_state`."""
    return CACHE_LINE * (STATE_STEPS + 2 * steps)


#: Bytes of a tile's int16 values, and of their int32 totals.
VALUE_BYTES, TOTAL_BYTES = 2 * PIXELS * 2 * LANES, 4 * PIXELS * 2 * LANES


#: Bytes of a vector of int32 or float32, and of a step's own vectors: one for a signal that no step reads, and of each
#: pixel of a tile a value, sums in two halves, and sums in float64.
VECTOR_BYTES = 4 * LANES
OWN_BYTES = (1 + (1 + 2 + 2) * REAL_PIXELS) * VECTOR_BYTES


def scratch_bytes(pixels: int, signal: bool = False) -> int:
    """Bytes of scratch memory for an item of ``pixels`` outputs of a convolution.

    They hold values, totals, and of each pixel and vector a word or, where a signal follows a pool, the dot products.
    """
    return VALUE_BYTES + TOTAL_BYTES + (OWN_BYTES + 2 * VECTOR_BYTES * pixels if signal else 4 * 2 * pixels)


def _warn_once(text: str, *values: object) -> None:
    """Say why kernels are compiled anew, once a process: it costs many seconds at every start."""
    global _is_warned  # noqa: PLW0603 - of the process
    if not _is_warned:
        _is_warned = True
        logging.getLogger("bnn_perception").warning(text, *values)


_is_warned = False


class _Forgiving:
    """A cache of numba that does without its disk where that is full or damaged; numba would end the start over it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, *arguments: Any) -> Any:
        """What was kept; None where nothing can be read."""
        try:
            return self._cache.load_overload(*arguments)
        # Of the system, or of pickle, for a file that ends early.
        except Exception as error:
            self._tell(error)
            return None

    def save_overload(self, *arguments: Any) -> None:
        """Keep what was compiled, if that can be."""
        try:
            self._cache.save_overload(*arguments)
        except OSError as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        _warn_once(
            "the CPU's kernels are compiled anew, for numba's cache %s cannot be used (%s: %s); make room there, "
            "or set NUMBA_CACHE_DIR",
            self._cache.cache_path,
            type(error).__name__,
            error,
        )


def compiled(function: Callable[..., Any]) -> Any:
    """``numba.njit`` without the GIL, with NumPy's arithmetic, kept on disk where a directory can be written."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
        dispatcher._cache = _Forgiving(dispatcher._cache)
        return dispatcher
    # numba found no place to write: not NUMBA_CACHE_DIR, not __pycache__, not the user's own.
    except RuntimeError:
        _warn_once(
            "the CPU's kernels are compiled at every start, for numba finds no directory to write to; "
            "set NUMBA_CACHE_DIR to a folder that can be written to"
        )
        return numba.njit(**options)(function)


# ---------------------------------------------------------------------------------------------------------------
# Memory by address
# ---------------------------------------------------------------------------------------------------------------

_I8, _I16, _I32, _I64 = (ir.IntType(width) for width in (8, 16, 32, 64))
_BYTES, _SHORTS, _INTS = (ir.VectorType(scalar, LANES) for scalar in (_I8, _I16, _I32))
_FLOAT = ir.FloatType()
_FLOATS, _DOUBLES = ir.VectorType(_FLOAT, LANES), ir.VectorType(ir.DoubleType(), LANES)
_HALF_TABLE = ir.VectorType(_I8, 16)


def _pointer(builder: ir.IRBuilder, address: ir.Value, scalar: ir.Type) -> ir.Value:
    return builder.inttoptr(address, scalar.as_pointer())


def _load(builder: ir.IRBuilder, address: ir.Value, scalar: ir.Type) -> ir.Value:
    return builder.load(_pointer(builder, address, scalar), align=1)


def _store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    builder.store(value, _pointer(builder, address, value.type), align=1)


def _element(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, scalar: ir.IntType) -> ir.Value:
    """Element of an array of integers, as int64."""
    pointer = builder.gep(_pointer(builder, address, scalar), [index])
    return builder.sext(builder.load(pointer, align=1), _I64)


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _broadcast(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, _constant(ir.VectorType(_I32, vector.count), 0))


def _reader(kind: Any) -> Any:
    """An intrinsic ``read(address, index)`` of an array of ``kind``."""

    @intrinsic
    def read(_: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            pointer = _pointer(builder, args[0], context.get_data_type(kind))
            return builder.load(builder.gep(pointer, [args[1]]), align=1)

        return kind(types.int64, types.int64), generate

    return read


def _writer(kind: Any) -> Any:
    """An intrinsic ``write(address, index, value)`` to an array of ``kind``."""

    @intrinsic
    def write(_: Any, address: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            pointer = _pointer(builder, args[0], context.get_data_type(kind))
            builder.store(args[2], builder.gep(pointer, [args[1]]), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, kind), generate

    return write


_read_u8, _read_i32 = map(_reader, (types.uint8, types.int32))
_read_u32, _read_f32 = map(_reader, (types.uint32, types.float32))
_write_u8, _write_u16, _write_i32 = map(_writer, (types.uint8, types.uint16, types.int32))
_write_u32, _write_f32 = map(_writer, (types.uint32, types.float32))


# ---------------------------------------------------------------------------------------------------------------
# Dot products
# ---------------------------------------------------------------------------------------------------------------


def _features(context: Any) -> set[str]:
    """Features of the processor that is compiled for, as LLVM names them: ``+avx2``."""
    return set(context.codegen().magic_tuple()[2].split(","))


def _table_lookup(context: Any) -> bool:
    """Whether the processor counts bits faster by ``vpshufb`` than by a vector popcount."""
    features = _features(context)
    return "+avx2" in features and not {"+avx512bitalg", "+avx512vl"} <= features


def _nibble_tables() -> bytearray:
    """For each byte, the Hamming distances of its low nibble from all 16 nibbles, then those of its high one."""
    return bytearray(
        bin((byte >> shift & 15) ^ nibble).count("1")
        for byte in range(256)
        for shift in (0, 4)
        for nibble in range(16)
    )


def _hamming_distances(context: Any, builder: ir.IRBuilder, unit: ir.Value, weights: ir.Value) -> ir.Value:
    """Hamming distances of the byte ``unit`` from each byte of the vector ``weights``.

    What depends on one of the two alone is emitted again for each pair; LLVM keeps one copy.
    """
    module = builder.module
    if not _table_lookup(context):
        popcount = cgutils.get_or_insert_function(
            module, ir.FunctionType(_BYTES, [_BYTES]), "llvm.ctpop.v32i8"
        )
        return builder.call(popcount, [builder.xor(_broadcast(builder, unit, _BYTES), weights)])
    shuffle = cgutils.get_or_insert_function(
        module, ir.FunctionType(_BYTES, [_BYTES, _BYTES]), "llvm.x86.avx2.pshuf.b"
    )
    tables = _nibble_tables()
    name = "bnn_perception.nibble_tables"
    if name not in module.globals:
        cgutils.global_constant(module, name, ir.Constant(ir.ArrayType(_I8, len(tables)), tables))
    base = builder.ptrtoint(module.globals[name], _I64)
    address = builder.add(base, builder.shl(builder.zext(unit, _I64), _I64(5)))
    shorts = ir.VectorType(_I16, LANES // 2)
    high = builder.bitcast(builder.lshr(builder.bitcast(weights, shorts), _constant(shorts, 4)), _BYTES)
    both_halves = ir.Constant(ir.VectorType(_I32, LANES), [*range(16), *range(16)])
    counts = []
    for half, nibbles in ((0, weights), (16, high)):
        table = _load(builder, builder.add(address, _I64(half)), _HALF_TABLE)
        table = builder.shuffle_vector(table, table, both_halves)
        counts.append(builder.call(shuffle, [table, builder.and_(nibbles, _constant(_BYTES, 15))]))
    return builder.add(*counts)


def _binary_tile(pixels: int, vectors: int) -> Any:
    """An intrinsic for the Hamming distances of up to :data:`UNITS_IN_SHORT` units, of a tile of pixels and filters.

    ``tile(values, weights, offsets, units, windows)``: values (pixels, vectors * LANES) int16, set to minus
    the distances; weights (units, vectors * LANES) uint8; offsets (units,) int32; windows, an address a pixel.
    """

    @intrinsic
    def tile(_: Any, values: Any, weights: Any, offsets: Any, units: Any, windows: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            values, weights, offsets, units, windows = args
            corners = [builder.extract_value(windows, pixel) for pixel in range(pixels)]
            cells = [(pixel, vector) for pixel in range(pixels) for vector in range(vectors)]
            counts = {cell: cgutils.alloca_once(builder, _BYTES) for cell in cells}
            totals = {cell: cgutils.alloca_once(builder, _SHORTS) for cell in cells}
            for cell in cells:
                builder.store(_constant(_SHORTS, 0), totals[cell])
            with cgutils.for_range_slice(builder, _I64(0), units, _I64(UNITS_IN_BYTE), intp=_I64) as (
                first,
                _,
            ):
                for cell in cells:
                    builder.store(_constant(_BYTES, 0), counts[cell])
                left = builder.sub(units, first)
                more = builder.icmp_signed(">", left, _I64(UNITS_IN_BYTE))
                with cgutils.for_range(
                    builder, builder.select(more, _I64(UNITS_IN_BYTE), left), intp=_I64
                ) as loop:
                    unit = builder.add(first, loop.index)
                    offset = _element(builder, offsets, unit, _I32)
                    row = builder.add(weights, builder.mul(unit, _I64(vectors * LANES)))
                    ours = [
                        _load(builder, builder.add(row, _I64(LANES * vector)), _BYTES)
                        for vector in range(vectors)
                    ]
                    theirs = [_load(builder, builder.add(corner, offset), _I8) for corner in corners]
                    for pixel, vector in cells:
                        count = counts[pixel, vector]
                        differ = _hamming_distances(context, builder, theirs[pixel], ours[vector])
                        builder.store(builder.add(builder.load(count), differ), count)
                for cell in cells:
                    count = builder.zext(builder.load(counts[cell]), _SHORTS)
                    builder.store(builder.sub(builder.load(totals[cell]), count), totals[cell])
            for index, cell in enumerate(cells):
                _store(builder, builder.load(totals[cell]), builder.add(values, _I64(2 * LANES * index)))
            return context.get_dummy_value()

        integer = types.int64
        return types.void(integer, integer, integer, integer, types.UniTuple(integer, pixels)), generate

    return tile


def _pair_sums(context: Any, builder: ir.IRBuilder, pair: ir.Value, weights: ir.Value) -> ir.Value:
    """``a * w[0] + b * w[1]`` of two adjacent uint8 pixels and the weights of each lane, as a vector of int16.

    Args:
        pair: address of the two.
        weights: address of (LANES, 2) int8.
    """
    if "+avx2" in _features(context):
        # vpmaddubsw does just this, for half of the lanes. It saturates beyond 16 bits, which +-1 never reach.
        half = ir.VectorType(_I16, LANES // 2)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(half, [_BYTES, _BYTES]), "llvm.x86.avx2.pmadd.ub.sw"
        )
        pixels = builder.bitcast(_broadcast(builder, _load(builder, pair, _I16), half), _BYTES)
        low, high = (
            builder.call(
                multiply_add, [pixels, _load(builder, builder.add(weights, _I64(LANES * part)), _BYTES)]
            )
            for part in (0, 1)
        )
        return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES))))
    both = _load(builder, weights, ir.VectorType(_I8, 2 * LANES))
    products = []
    for place in (0, 1):
        chosen = ir.Constant(ir.VectorType(_I32, LANES), list(range(place, 2 * LANES, 2)))
        signs = builder.sext(builder.shuffle_vector(both, both, chosen), _SHORTS)
        pixel = builder.zext(_load(builder, builder.add(pair, _I64(place)), _I8), _I16)
        products.append(builder.mul(_broadcast(builder, pixel, _SHORTS), signs))
    return builder.add(*products)


def _input_tile(pixels: int) -> Any:
    """An intrinsic for the sums of up to :data:`PAIRS_IN_SHORT` pairs of taps, of a tile of pixels and one vector of
    filters.

    Its arguments are those of :func:`_binary_tile`, but a unit is two adjacent uint8 pixels and the weights are
    (units, LANES, 2) int8.
    """

    @intrinsic
    def tile(_: Any, values: Any, weights: Any, offsets: Any, units: Any, windows: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            values, weights, offsets, units, windows = args
            corners = [builder.extract_value(windows, pixel) for pixel in range(pixels)]
            totals = [cgutils.alloca_once(builder, _SHORTS) for _ in range(pixels)]
            for total in totals:
                builder.store(_constant(_SHORTS, 0), total)
            with cgutils.for_range(builder, units, intp=_I64) as loop:
                offset = _element(builder, offsets, loop.index, _I32)
                row = builder.add(weights, builder.mul(loop.index, _I64(2 * LANES)))
                for corner, total in zip(corners, totals):
                    more = _pair_sums(context, builder, builder.add(corner, offset), row)
                    builder.store(builder.add(builder.load(total), more), total)
            for pixel, total in enumerate(totals):
                _store(builder, builder.load(total), builder.add(values, _I64(2 * LANES * pixel)))
            return context.get_dummy_value()

        integer = types.int64
        return types.void(integer, integer, integer, integer, types.UniTuple(integer, pixels)), generate

    return tile


def _reached(vector: ir.VectorType) -> Any:
    """An intrinsic ``reached(values, limits)``: the word of LANES bits ``value >= limit``."""

    @intrinsic
    def reached(_: Any, values: Any, limits: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            values, limits = (_load(builder, address, vector) for address in args)
            return builder.bitcast(builder.icmp_signed(">=", values, limits), _I32)

        return types.uint32(types.int64, types.int64), generate

    return reached


@intrinsic
def _widen(_: Any, totals: Any, values: Any) -> Any:
    """``widen(totals, values)``: add a vector of int16 to one of int32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        totals, values = args
        _store(
            builder,
            builder.add(_load(builder, totals, _INTS), builder.sext(_load(builder, values, _SHORTS), _INTS)),
            totals,
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _dot(
    builder: ir.IRBuilder, values: ir.Value, vector: ir.VectorType, base: ir.Value, shift: ir.Value
) -> ir.Value:
    """A vector of dot products, ``(value << shift) + base``, as int32."""
    wide = _load(builder, values, vector)
    if vector is not _INTS:
        wide = builder.sext(wide, _INTS)
    wide = builder.shl(wide, _broadcast(builder, builder.trunc(shift, _I32), _INTS))
    return builder.add(wide, _load(builder, base, _INTS))


def _dots(vector: ir.VectorType) -> Any:
    """An intrinsic ``dots(target, values, base, shift)``: store the dot products of :func:`_dot` as float32."""

    @intrinsic
    def dots(_: Any, target: Any, values: Any, base: Any, shift: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            target, values, base, shift = args
            _store(builder, builder.sitofp(_dot(builder, values, vector, base, shift), _FLOATS), target)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(integer, integer, integer, integer), generate

    return dots


@intrinsic
def _largest(_: Any, target: Any, other: Any) -> Any:
    """``largest(target, other)``: raise a vector of float32 to another where that is larger."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        target, other = args
        larger = _larger(builder, _load(builder, target, _FLOATS), _load(builder, other, _FLOATS))
        _store(builder, larger, target)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


#: Values that an epilogue takes, in memory: dot products of 16 and of 32 bits as :func:`_dot` has them, float32.
_SHORT_VALUES, _INT_VALUES, _FLOAT_VALUES = range(3)


@intrinsic
def _epilogue(
    _: Any, target: Any, kind: Any, values: Any, base: Any, shift: Any, ops: Any, parameters: Any, addend: Any
) -> Any:
    """``epilogue(target, kind, values, base, shift, ops, parameters, addend)``, of one vector.

    It takes values of the given kind through the operations ``ops``, stores the result at ``target`` and returns the
    word of its comparisons with the thresholds.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        target, kind, values, base, shift, ops, parameters, addend = args
        x, row, op = (cgutils.alloca_once(builder, type_) for type_ in (_FLOATS, _I64, _I64))
        for place, value in ((row, parameters), (op, ops)):
            builder.store(value, place)

        def parameter() -> ir.Value:
            """The next row of parameters."""
            address = builder.load(row)
            builder.store(builder.add(address, _I64(VECTOR_BYTES)), row)
            return _load(builder, address, _FLOATS)

        def affine(value: ir.Value) -> ir.Value:
            scaled = builder.fmul(parameter(), value)
            return builder.fadd(scaled, parameter())

        def prelu(value: ir.Value) -> ir.Value:
            rises = builder.fcmp_ordered(">=", value, _constant(_FLOATS, 0.0))
            return builder.select(rises, value, builder.fmul(parameter(), value))

        def clip(value: ir.Value) -> ir.Value:
            low = parameter()
            value = builder.select(builder.fcmp_ordered(">", value, low), value, low)
            high = parameter()
            return builder.select(builder.fcmp_ordered("<", value, high), value, high)

        def add(value: ir.Value) -> ir.Value:
            return builder.fadd(value, _load(builder, addend, _FLOATS))

        head, done = builder.append_basic_block("op"), builder.append_basic_block("end")
        floats = builder.append_basic_block("floats")
        form = builder.switch(kind, floats)
        for code, vector in ((_SHORT_VALUES, _SHORTS), (_INT_VALUES, _INTS)):
            block = builder.append_basic_block("dots")
            form.add_case(_I64(code), block)
            builder.position_at_end(block)
            builder.store(builder.sitofp(_dot(builder, values, vector, base, shift), _FLOATS), x)
            builder.branch(head)
        builder.position_at_end(floats)
        builder.store(_load(builder, values, _FLOATS), x)
        builder.branch(head)
        builder.position_at_end(head)
        address = builder.load(op)
        builder.store(builder.add(address, _I64(8)), op)
        choice = builder.switch(builder.load(_pointer(builder, address, _I64)), done)
        for code, apply in ((AFFINE, affine), (PRELU, prelu), (CLIP, clip), (ADD, add)):
            block = builder.append_basic_block("apply")
            choice.add_case(_I64(code), block)
            builder.position_at_end(block)
            builder.store(apply(builder.load(x)), x)
            builder.branch(head)
        builder.position_at_end(done)
        y = builder.load(x)
        _store(builder, y, target)
        return builder.bitcast(builder.fcmp_ordered(">=", y, parameter()), _I32)

    return types.uint32(*[types.int64] * 8), generate


def _window(first: float, combine: Callable[..., ir.Value]) -> Any:
    """An intrinsic ``window(target, source, rows, columns, row, pixel)`` of one vector of the channels of a signal.

    It stores what ``combine`` makes of ``first`` and of each pixel of a window in turn, row by row.
    """

    @intrinsic
    def window(_: Any, target: Any, source: Any, rows: Any, columns: Any, row: Any, pixel: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            target, source, rows, columns, row, pixel = args
            value = cgutils.alloca_once(builder, _FLOATS)
            builder.store(_constant(_FLOATS, first), value)
            with cgutils.for_range(builder, rows, intp=_I64) as y:
                line = builder.add(source, builder.mul(y.index, row))
                with cgutils.for_range(builder, columns, intp=_I64) as x:
                    at = builder.add(line, builder.mul(x.index, pixel))
                    other = _load(builder, at, _FLOATS)
                    builder.store(combine(builder, builder.load(value), other), value)
            _store(builder, builder.load(value), target)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return window


def _larger(builder: ir.IRBuilder, ours: ir.Value, theirs: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", ours, theirs), ours, theirs)


def _sum(builder: ir.IRBuilder, ours: ir.Value, theirs: ir.Value) -> ir.Value:
    return builder.fadd(ours, theirs)


@intrinsic
def _divide(_: Any, target: Any, count: Any) -> Any:
    """``divide(target, count)``: a vector of float32 by one number."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        divisor = _broadcast(builder, args[1], _FLOATS)
        _store(builder, builder.fdiv(_load(builder, args[0], _FLOATS), divisor), args[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


def _real_tile(pixels: int, lanes: int, is_depthwise: bool) -> Any:
    """An intrinsic ``tile(sums, weights, offsets, taps, windows)`` of a tile of pixels and one vector of filters.

    It takes ``lanes`` of the vector at a time, as many as leave their sums in registers, and sets ``sums``, (pixels,
    LANES) float32, to the sums of ``x * w`` over the taps, products and sums rounded one after the other. ``x`` is the
    value of a tap, or of its lane's own channel. weights: (taps, LANES) float32; offsets: (taps,) int32; windows: an
    address a pixel.
    """
    some = ir.VectorType(_FLOAT, lanes)

    @intrinsic
    def tile(_: Any, sums: Any, weights: Any, offsets: Any, taps: Any, windows: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            sums, weights, offsets, taps, windows = args
            corners = [builder.extract_value(windows, pixel) for pixel in range(pixels)]
            totals = [cgutils.alloca_once(builder, some) for _ in range(pixels)]
            with cgutils.for_range(builder, _I64(LANES // lanes), intp=_I64) as part:
                for total in totals:
                    builder.store(_constant(some, 0.0), total)
                begin = builder.mul(part.index, _I64(4 * lanes))
                first = builder.add(weights, begin)
                firsts = [builder.add(corner, begin) if is_depthwise else corner for corner in corners]
                with cgutils.for_range(builder, taps, intp=_I64) as loop:
                    offset = _element(builder, offsets, loop.index, _I32)
                    row = builder.add(first, builder.mul(loop.index, _I64(VECTOR_BYTES)))
                    w = _load(builder, row, some)
                    for corner, total in zip(firsts, totals):
                        at = builder.add(corner, offset)
                        x = _load(builder, at, some if is_depthwise else _FLOAT)
                        x = x if is_depthwise else _broadcast(builder, x, some)
                        builder.store(builder.fadd(builder.load(total), builder.fmul(x, w)), total)
                for pixel, total in enumerate(totals):
                    target = builder.add(builder.add(sums, begin), _I64(VECTOR_BYTES * pixel))
                    _store(builder, builder.load(total), target)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(integer, integer, integer, integer, types.UniTuple(integer, pixels)), generate

    return tile


def _pixel_tile(pixels: int) -> Any:
    """An intrinsic for sums of up to :data:`PAIRS_IN_INT` pairs of taps, of a tile of pixels and one vector of filters.

    Its arguments are those of :func:`_real_tile`, but a tap is two adjacent uint16 pixels, a weight its low and its
    high 12 bits, (taps, 2 halves, LANES, 2) int16, and the sums of each half are int32: (pixels, 2 halves, LANES).
    Half a vector of filters at a time leaves registers for two pixels. The shape of the products' sum is that of
    ``vpmaddwd``.
    """
    lanes = LANES // 2
    pairs, wide = (ir.VectorType(scalar, 2 * lanes) for scalar in (_I16, _I32))
    half = ir.VectorType(_I32, lanes)

    def multiply_add(builder: ir.IRBuilder, pair: ir.Value, weights: ir.Value) -> ir.Value:
        left, right = (builder.sext(side, wide) for side in (builder.bitcast(pair, pairs), weights))
        products = builder.mul(left, right)
        undefined = ir.Constant(wide, ir.Undefined)
        even, odd = (
            builder.shuffle_vector(
                products, undefined, ir.Constant(half, [2 * lane + side for lane in range(lanes)])
            )
            for side in (0, 1)
        )
        return builder.add(even, odd)

    @intrinsic
    def tile(_: Any, sums: Any, weights: Any, offsets: Any, units: Any, windows: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            sums, weights, offsets, units, windows = args
            corners = [builder.extract_value(windows, pixel) for pixel in range(pixels)]
            cells = [(pixel, plane) for pixel in range(pixels) for plane in range(2)]
            totals = {cell: cgutils.alloca_once(builder, half) for cell in cells}
            with cgutils.for_range(builder, _I64(2), intp=_I64) as part:
                for cell in cells:
                    builder.store(_constant(half, 0), totals[cell])
                first = builder.add(weights, builder.mul(part.index, _I64(4 * lanes)))
                with cgutils.for_range(builder, units, intp=_I64) as loop:
                    offset = _element(builder, offsets, loop.index, _I32)
                    row = builder.add(first, builder.mul(loop.index, _I64(2 * VECTOR_BYTES)))
                    ours = [
                        _load(builder, builder.add(row, _I64(VECTOR_BYTES * plane)), pairs)
                        for plane in range(2)
                    ]
                    theirs = [
                        _broadcast(builder, _load(builder, builder.add(corner, offset), _I32), half)
                        for corner in corners
                    ]
                    for pixel, plane in cells:
                        more = multiply_add(builder, theirs[pixel], ours[plane])
                        total = totals[pixel, plane]
                        builder.store(builder.add(builder.load(total), more), total)
                target = builder.add(sums, builder.mul(part.index, _I64(4 * lanes)))
                for index, cell in enumerate(cells):
                    at = builder.add(target, _I64(VECTOR_BYTES * index))
                    _store(builder, builder.load(totals[cell]), at)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(integer, integer, integer, integer, types.UniTuple(integer, pixels)), generate

    return tile


@intrinsic
def _add_planes(_: Any, target: Any, planes: Any, begins: Any) -> Any:
    """``add_planes(target, planes, begins)``: add ``low + 4096 * high`` of two vectors of int32 to one of float64.

    The sum is exact. It begins with 0 where ``begins`` is true, whatever stands at ``target``.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        target, planes, begins = args
        low, high = (
            builder.sitofp(_load(builder, builder.add(planes, _I64(VECTOR_BYTES * plane)), _INTS), _DOUBLES)
            for plane in (0, 1)
        )
        sums = builder.fadd(low, builder.fmul(high, _constant(_DOUBLES, 4096.0)))
        before = builder.select(begins, _constant(_DOUBLES, 0.0), _load(builder, target, _DOUBLES))
        _store(builder, builder.fadd(before, sums), target)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.boolean), generate


@intrinsic
def _scale_sums(_: Any, target: Any, sums: Any, scale: Any, offset: Any) -> Any:
    """``scale_sums(target, sums, scale, offset)``: ``scale * float32(sums) + offset`` of float64, rounded each time."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        target, sums, scale, offset = args
        x = builder.fptrunc(_load(builder, sums, _DOUBLES), _FLOATS)
        scaled = builder.fmul(_load(builder, scale, _FLOATS), x)
        _store(builder, builder.fadd(scaled, _load(builder, offset, _FLOATS)), target)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


_binary_tile_4x2, _binary_tile_4x1 = _binary_tile(PIXELS, 2), _binary_tile(PIXELS, 1)
_binary_tile_1x2, _binary_tile_1x1 = _binary_tile(1, 2), _binary_tile(1, 1)
_input_tile_4 = _input_tile(PIXELS)
_reached_short, _reached_int = _reached(_SHORTS), _reached(_INTS)
_dots_short, _dots_int = _dots(_SHORTS), _dots(_INTS)
_max_window, _sum_window = _window(-np.inf, _larger), _window(0.0, _sum)
_real_tile_4, _real_tile_1 = _real_tile(REAL_PIXELS, LANES // 2, False), _real_tile(1, LANES, False)
_depthwise_tile_4, _pixel_tile_2 = _real_tile(REAL_PIXELS, LANES // 2, True), _pixel_tile(INPUT_PIXELS)
_inner: Any = numba.njit(nogil=True, error_model="numpy")
#: What numba puts into its caller: a level less through which it and LLVM take all that lies below, at compilation.
_thin: Any = numba.njit(nogil=True, error_model="numpy", inline="always")


# ---------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------


@_inner
def _levels(step: Any, first: int, last: int) -> None:
    """uint8 pixels -> the uint8 that they count as, or the same as uint16."""
    for row in range(first, last):
        source = step.source + row * step.source_row
        target = step.target + row * step.target_row
        if step.wide:
            for index in range(step.source_row):
                _write_u16(target, index, np.uint16(_read_u8(source, index)))
            continue
        for index in range(step.source_row):
            _write_u8(target, index, _read_u8(step.table, np.int64(_read_u8(source, index))))


@_inner
def _thermometer(step: Any, first: int, last: int) -> None:
    """uint8 pixels -> words; the table holds the words that each value of each channel sets."""
    for row in range(first, last):
        for column in range(step.out_width):
            source = step.source + row * step.source_row + column * step.source_pixel
            target = step.target + row * step.target_row + column * step.target_pixel
            for word in range(step.words):
                code = np.uint32(0)
                for channel in range(step.source_pixel):
                    value = channel * 256 + np.int64(_read_u8(source, channel))
                    code |= _read_u32(step.table, value * step.words + word)
                _write_u32(target, word, code)


@_inner
def _values(step: Any, group: int, vectors: int, first: int, units: int, values: int, windows: Any) -> None:
    """The values of PIXELS windows for one group of filters, over ``units`` units from ``first`` on."""
    offsets = step.offsets + 4 * first
    if step.kind == INPUT_CONV:
        weights = step.weights + 2 * LANES * (group * step.units + first)
        _input_tile_4(values, weights, offsets, units, windows)
        return
    weights = step.weights + LANES * (group * step.vectors * step.units + vectors * first)
    if step.width * step.out_height == 1:  # of a dense layer
        if vectors == 2:
            _binary_tile_1x2(values, weights, offsets, units, windows[:1])
        else:
            _binary_tile_1x1(values, weights, offsets, units, windows[:1])
    elif vectors == 2:
        _binary_tile_4x2(values, weights, offsets, units, windows)
    else:
        _binary_tile_4x1(values, weights, offsets, units, windows)


@_inner
def _total_values(step: Any, group: int, vectors: int, totals: int, values: int, windows: Any) -> None:
    """The int32 values of more units than 16 bits hold."""
    for index in range(PIXELS * vectors * LANES):
        _write_i32(totals, index, np.int32(0))
    size = PAIRS_IN_SHORT if step.kind == INPUT_CONV else UNITS_IN_SHORT
    for first in range(0, step.units, size):
        _values(step, group, vectors, first, min(size, step.units - first), values, windows)
        for index in range(PIXELS * vectors):
            _widen(totals + 4 * LANES * index, values + 2 * LANES * index)


@_inner
def _tile(step: Any, group: int, vectors: int, pixel: int, end: int, scratch: int) -> None:
    """Values, or totals, of a tile of one group of filters from ``pixel`` on; ``end`` is the first not to evaluate."""
    # A tile that is not full repeats the last pixel.
    a, b, c, d = pixel, min(pixel + 1, end - 1), min(pixel + 2, end - 1), min(pixel + 3, end - 1)
    windows = (
        step.source + np.int64(_read_u32(step.windows, 2 * a)),
        step.source + np.int64(_read_u32(step.windows, 2 * b)),
        step.source + np.int64(_read_u32(step.windows, 2 * c)),
        step.source + np.int64(_read_u32(step.windows, 2 * d)),
    )
    if step.wide:
        _total_values(step, group, vectors, scratch + VALUE_BYTES, scratch, windows)
    else:
        _values(step, group, vectors, np.int64(0), step.units, scratch, windows)


@_inner
def _convolution(step: Any, group: int, first: int, last: int, scratch: int) -> None:
    """Output rows ``first`` to ``last`` of one group of filters: values, limits, pool, flip, pack."""
    vectors = min(step.vectors, step.words - group * step.vectors)
    values, totals = scratch, scratch + VALUE_BYTES
    words = totals + TOTAL_BYTES
    top = first * step.pool_stride * step.width
    bottom = ((last - 1) * step.pool_stride + step.pool_size) * step.width
    for pixel in range(top, bottom, PIXELS):
        _tile(step, group, vectors, pixel, bottom, scratch)
        for slot in range(min(PIXELS, bottom - pixel)):
            pattern = np.int64(_read_u32(step.windows, 2 * (pixel + slot) + 1))
            limit = LANES * (pattern * step.words + group * step.vectors)
            for vector in range(vectors):
                index = LANES * (slot * vectors + vector)
                if step.wide:
                    word = _reached_int(totals + 4 * index, step.limits + 4 * (limit + LANES * vector))
                else:
                    word = _reached_short(values + 2 * index, step.limits + 2 * (limit + LANES * vector))
                _write_u32(words, (pixel - top + slot) * vectors + vector, word)
    for row in range(first, last):
        for column in range(step.out_width):
            target = step.target + row * step.target_row + column * step.target_pixel
            corner = (row - first) * step.pool_stride * step.width + column * step.pool_stride
            for vector in range(vectors):
                word = np.uint32(0)
                for y in range(step.pool_size):
                    for x in range(step.pool_size):
                        word |= _read_u32(words, (corner + y * step.width + x) * vectors + vector)
                index = group * step.vectors + vector
                _write_u32(target, index, word ^ _read_u32(step.flip, index))


@_inner
def _finish(
    step: Any, vector: int, vectors: int, row: int, column: int, kind: int, values: int, base: int, own: int
) -> None:
    """Signal and words of one pixel of the output and ``vectors`` of filters, from values side by side.

    See :func:`_epilogue`.
    """
    size = 2 * LANES if kind == _SHORT_VALUES else 4 * LANES
    y, step_y = own, np.int64(0)
    if step.signal:
        y = step.signal + row * step.signal_row + column * step.signal_pixel + VECTOR_BYTES * vector
        step_y = np.int64(VECTOR_BYTES)
    addend = step.addend + row * step.addend_row + column * step.addend_pixel + VECTOR_BYTES * vector
    parameters = step.parameters + step.parameter_bytes * vector
    target = step.target + row * step.target_row + column * step.target_pixel
    for index in range(vectors):
        more = VECTOR_BYTES * index
        word = _epilogue(
            y + step_y * index,
            kind,
            values + size * index,
            base + more,
            step.shift,
            step.ops,
            parameters + step.parameter_bytes * index,
            addend + more,
        )
        if step.target:
            _write_u32(target, vector + index, word ^ _read_u32(step.flip, vector + index))


@_inner
def _signal_convolution(step: Any, group: int, first: int, last: int, scratch: int) -> None:
    """The same where a signal follows the dot products; see :func:`_convolution`."""
    vectors = min(step.vectors, step.words - group * step.vectors)
    totals = scratch + VALUE_BYTES
    own = totals + TOTAL_BYTES
    dots = own + OWN_BYTES
    values, size, kind = scratch, 2 * LANES, _SHORT_VALUES
    if step.wide:
        values, size, kind = totals, 4 * LANES, _INT_VALUES
    pooled = step.pool_size > 1 or step.pool_stride > 1
    top = first * step.pool_stride * step.width
    bottom = ((last - 1) * step.pool_stride + step.pool_size) * step.width
    row, column = first, np.int64(0)
    for pixel in range(top, bottom, PIXELS):
        _tile(step, group, vectors, pixel, bottom, scratch)
        for slot in range(min(PIXELS, bottom - pixel)):
            pattern = np.int64(_read_u32(step.windows, 2 * (pixel + slot) + 1))
            base = step.limits + VECTOR_BYTES * (pattern * step.words + group * step.vectors)
            theirs = values + size * slot * vectors
            if not pooled:
                _finish(step, group * step.vectors, vectors, row, column, kind, theirs, base, own)
                column += 1
                if column == step.width:
                    row, column = row + 1, np.int64(0)
                continue
            for index in range(vectors):
                at = dots + VECTOR_BYTES * ((pixel - top + slot) * vectors + index)
                if step.wide:
                    _dots_int(at, theirs + size * index, base + VECTOR_BYTES * index, step.shift)
                else:
                    _dots_short(at, theirs + size * index, base + VECTOR_BYTES * index, step.shift)
    if not pooled:
        return
    for row in range(first, last):
        for column in range(step.out_width):
            corner = (row - first) * step.pool_stride * step.width + column * step.pool_stride
            # No window that is still to come holds this one's first pixel, which can take the maximum.
            largest = dots + VECTOR_BYTES * corner * vectors
            for y in range(step.pool_size):
                for x in range(step.pool_size):
                    pixel = dots + VECTOR_BYTES * (corner + y * step.width + x) * vectors
                    for index in range(vectors):
                        _largest(largest + VECTOR_BYTES * index, pixel + VECTOR_BYTES * index)
            _finish(step, group * step.vectors, vectors, row, column, _FLOAT_VALUES, largest, own, own)


@_inner
def _pooled(step: Any, vector: int, row: int, column: int, target: int) -> None:
    """Set a vector of float32 to the maximum or the mean of one window, as far as it lies inside the source."""
    y, x = row * step.stride_y - step.top, column * step.stride_x - step.left
    top, left = max(y, 0), max(x, 0)
    rows, columns = min(y + step.kernel_y, step.in_height) - top, min(x + step.kernel_x, step.in_width) - left
    source = step.source + top * step.source_row + left * step.source_pixel + VECTOR_BYTES * vector
    if step.kind == MAX_POOL:
        _max_window(target, source, rows, columns, step.source_row, step.source_pixel)
    else:
        _sum_window(target, source, rows, columns, step.source_row, step.source_pixel)
        _divide(target, np.float32(_read_i32(step.counts, row * step.out_width + column)))


@_inner
def _pixel_values(step: Any, vector: int, pixel: int, count: int, values: int, windows: Any) -> None:
    """The scaled sums of pixels with 24-bit weights, of a tile of windows: ``count`` of them from ``pixel`` on."""
    planes = values + REAL_PIXELS * VECTOR_BYTES
    sums = planes + 2 * REAL_PIXELS * VECTOR_BYTES
    for first in range(0, step.units, PAIRS_IN_INT):
        weights = step.weights + 2 * VECTOR_BYTES * (vector * step.units + first)
        units = min(step.units - first, PAIRS_IN_INT)
        _pixel_tile_2(planes, weights, step.offsets + 4 * first, units, windows[:INPUT_PIXELS])
        for slot in range(count):
            _add_planes(sums + 2 * VECTOR_BYTES * slot, planes + 2 * VECTOR_BYTES * slot, first == 0)
    for slot in range(count):
        pattern = np.int64(_read_u32(step.windows, 2 * (pixel + slot) + 1))
        offset = step.bias + VECTOR_BYTES * (pattern * step.words + vector)
        value, total = values + VECTOR_BYTES * slot, sums + 2 * VECTOR_BYTES * slot
        _scale_sums(value, total, step.scale + VECTOR_BYTES * vector, offset)


@_inner
def _real_convolution(step: Any, vector: int, first: int, last: int, own: int) -> None:
    """Output rows of one vector of filters of a convolution with real weights."""
    values = own + VECTOR_BYTES
    source = step.source + np.int64(_read_i32(step.starts, vector))
    weights = step.weights + VECTOR_BYTES * vector * step.units
    row, column, end = first, np.int64(0), last * step.width
    size = INPUT_PIXELS if step.kind == REAL_INPUT_CONV else REAL_PIXELS
    for pixel in range(first * step.width, end, size):
        # A tile that is not full repeats the last pixel.
        a, b, c, d = pixel, min(pixel + 1, end - 1), min(pixel + 2, end - 1), min(pixel + 3, end - 1)
        windows = (
            source + np.int64(_read_u32(step.windows, 2 * a)),
            source + np.int64(_read_u32(step.windows, 2 * b)),
            source + np.int64(_read_u32(step.windows, 2 * c)),
            source + np.int64(_read_u32(step.windows, 2 * d)),
        )
        count = min(size, end - pixel)
        if step.kind == REAL_INPUT_CONV:
            _pixel_values(step, vector, pixel, count, values, windows)
        elif step.kind == DEPTHWISE_CONV:
            _depthwise_tile_4(values, weights, step.offsets, step.units, windows)
        elif count == 1:
            _real_tile_1(values, weights, step.offsets, step.units, windows[:1])
        else:
            _real_tile_4(values, weights, step.offsets, step.units, windows)
        for slot in range(count):
            value = values + VECTOR_BYTES * slot
            _finish(step, vector, 1, row, column, _FLOAT_VALUES, value, own, own)
            column += 1
            if column == step.width:
                row, column = row + 1, np.int64(0)


@_thin
def _signal_rows(step: Any, vector: int, first: int, last: int, scratch: int) -> None:
    """Output rows of one vector of channels of a step that takes a signal, or pixels with real weights."""
    own = scratch + VALUE_BYTES + TOTAL_BYTES
    if step.kind >= REAL_CONV:
        _real_convolution(step, vector, first, last, own)
        return
    value = own + VECTOR_BYTES
    for row in range(first, last):
        for column in range(step.out_width):
            source = value
            if step.kind == SIGNAL:
                source = step.source + row * step.source_row + column * step.source_pixel
                source += VECTOR_BYTES * vector
            else:
                _pooled(step, vector, row, column, value)
            _finish(step, vector, 1, row, column, _FLOAT_VALUES, source, own, own)


@_inner
def _copy_channels(step: Any, first: int, last: int) -> None:
    """The channels of one signal to their place in another."""
    for row in range(first, last):
        for column in range(step.out_width):
            source = step.source + row * step.source_row + column * step.source_pixel
            target = step.target + row * step.target_row + column * step.target_pixel
            for channel in range(step.units):
                _write_f32(target, channel, _read_f32(source, channel))


@_inner
def _bits_pool(step: Any, first: int, last: int) -> None:
    """Words -> OR of the words of each window; those outside are 0."""
    for row in range(first, last):
        for column in range(step.out_width):
            source = step.source + row * step.stride_y * step.source_row
            source += column * step.stride_x * step.source_pixel
            target = step.target + row * step.target_row + column * step.target_pixel
            for index in range(step.words):
                word = np.uint32(0)
                for y in range(step.kernel_y):
                    for x in range(step.kernel_x):
                        word |= _read_u32(source + y * step.source_row + x * step.source_pixel, index)
                _write_u32(target, index, word)


@_inner
def _output(step: Any, group: int, scratch: int) -> None:
    """Logits of one group of filters; products and sums are rounded one after the other."""
    vectors = min(step.vectors, step.words - group * step.vectors)
    values, totals = scratch, scratch + VALUE_BYTES
    _total_values(step, group, vectors, totals, values, (step.source, step.source, step.source, step.source))
    for lane in range(vectors * LANES):
        index = group * step.vectors * LANES + lane
        product = np.int32(step.products + 2 * np.int64(_read_i32(totals, lane)))
        scaled = np.float32(product) * _read_f32(step.scale, index)
        _write_f32(step.target, index, scaled + _read_f32(step.bias, index))


@_inner
def _output_bits(step: Any) -> None:
    """Words -> logits, one of two for each bit."""
    for index in range(step.words * LANES):
        bit = np.int64(_read_u32(step.source, index // LANES) >> np.uint32(index % LANES)) & 1
        _write_f32(step.target, index, _read_f32(step.table, 2 * index + bit))


@_thin
def _work(step: Any, item: int, scratch: int) -> None:
    """One item of a step: some output rows of one group of filters."""
    chunks = step.items // step.groups
    group, chunk = item // chunks, item % chunks
    first = chunk * step.rows
    last = min(first + step.rows, step.out_height)
    if step.kind == LEVELS:
        _levels(step, first, last)
    elif step.kind == THERMOMETER:
        _thermometer(step, first, last)
    elif step.kind == OUTPUT:
        _output(step, group, scratch)
    elif step.kind == OUTPUT_BITS:
        _output_bits(step)
    elif step.kind == BITS_POOL:
        _bits_pool(step, first, last)
    elif step.kind == COPY_CHANNELS:
        _copy_channels(step, first, last)
    elif step.kind >= SIGNAL:
        _signal_rows(step, group, first, last, scratch)
    elif step.ops:
        _signal_convolution(step, group, first, last, scratch)
    else:
        _convolution(step, group, first, last, scratch)


# ---------------------------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------------------------


@intrinsic
def _atomic_load(_: Any, address: Any) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load_atomic(_pointer(builder, args[0], _I64), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def _atomic_add(_: Any, address: Any, value: Any) -> Any:
    """Returns the value before."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.atomic_rmw("add", _pointer(builder, args[0], _I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _compare_and_swap(_: Any, address: Any, expected: Any, value: Any) -> Any:
    """Whether ``expected`` stood there and was replaced by ``value``."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = _pointer(builder, args[0], _I64)
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


_mutex_init = external("pthread_mutex_init", types.int32(types.int64, types.int64))
_mutex_lock = external("pthread_mutex_lock", types.int32(types.int64))
_mutex_unlock = external("pthread_mutex_unlock", types.int32(types.int64))
_condition_init = external("pthread_cond_init", types.int32(types.int64, types.int64))
_condition_wait = external("pthread_cond_wait", types.int32(types.int64, types.int64))
_condition_broadcast = external("pthread_cond_broadcast", types.int32(types.int64))

#: How often a waiting thread looks before it sleeps: some tens of microseconds, longer than an item of a small net.
SPINS = 50_000


@_thin
def _counter(state: int, index: int) -> int:
    return state + CACHE_LINE * index


@_thin
def _mutex(state: int) -> int:
    return _counter(state, STATE_MUTEX)


@_thin
def _condition(state: int) -> int:
    return _counter(state, STATE_CONDITION)


@_inner
def _await(state: int, counter: int, value: int) -> None:
    """Wait until a counter has reached ``value``; whoever raises it so far calls :func:`_announce`."""
    for _ in range(SPINS):
        if _atomic_load(counter) >= value:
            return
    _mutex_lock(_mutex(state))
    while _atomic_load(counter) < value:
        _condition_wait(_condition(state), _mutex(state))
    _mutex_unlock(_mutex(state))


@_inner
def _announce(state: int) -> None:
    """Wake the threads that sleep; without any it takes no system call."""
    _mutex_lock(_mutex(state))
    _condition_broadcast(_condition(state))
    _mutex_unlock(_mutex(state))


@_thin
def _run(steps: Any, state: int, frame: int, scratch: int) -> None:
    """Do frame number ``frame`` together with whichever other threads run this.

    Each step has two counters, of items taken and of items done, over all frames. An item of this frame is taken by
    raising the first from below ``frame * items``; the step is over when the second has reached that.
    """
    for index in range(len(steps)):
        step = steps[index]
        end = frame * step.items
        taken, done = _counter(state, STATE_STEPS + 2 * index), _counter(state, STATE_STEPS + 2 * index + 1)
        while True:
            ticket = _atomic_load(taken)
            if ticket >= end:
                break
            if _compare_and_swap(taken, ticket, ticket + 1):
                _work(step, ticket - (end - step.items), scratch)
                if _atomic_add(done, 1) == end - 1:
                    _announce(state)
        _await(state, done, end)


@compiled
def open_state(state: int) -> None:
    """Make the mutex and the condition in a new state, whose counters are 0."""
    _mutex_init(_mutex(state), 0)
    _condition_init(_condition(state), 0)


@compiled
def evaluate(steps: Any, state: int, scratch: int, helper: bool) -> None:
    """Evaluate a program for one frame, whose pixels lie in the first step's source; or help to.

    Args:
        steps: (n,) :data:`STEP`.
        state: address of :func:`state_bytes` bytes.
        scratch: address of this thread's scratch memory.
        helper: whether to help with every frame until :func:`close_state`. A helper that comes late to a frame is
            not waited for.
    """
    frames, closed = _counter(state, STATE_FRAMES), _counter(state, STATE_CLOSED)
    frame = np.int64(0)
    if not helper:
        frame = _atomic_add(frames, 1) + 1
        _announce(state)
    while True:
        _run(steps, state, frame, scratch)
        if not helper:
            return
        _mutex_lock(_mutex(state))
        while _atomic_load(frames) == frame and _atomic_load(closed) == 0:
            _condition_wait(_condition(state), _mutex(state))
        _mutex_unlock(_mutex(state))
        if _atomic_load(closed):
            return
        frame = _atomic_load(frames)


@compiled
def close_state(state: int) -> None:
    """End all helpers."""
    _atomic_add(_counter(state, STATE_CLOSED), 1)
    _announce(state)


# ---------------------------------------------------------------------------------------------------------------
# Preprocessing
# ---------------------------------------------------------------------------------------------------------------


@_inner
def _sum_rows(sums: Any, source: int, stride: int, rows: int) -> None:
    """Set uint16 ``sums`` to the sums of up to 257 rows of bytes, four rows at a time."""
    sums[:] = 0
    row = 0
    while row + 4 <= rows:
        a, b = source + row * stride, source + (row + 1) * stride
        c, d = source + (row + 2) * stride, source + (row + 3) * stride
        for index in range(len(sums)):
            above = np.uint16(_read_u8(a, index)) + np.uint16(_read_u8(b, index))
            below = np.uint16(_read_u8(c, index)) + np.uint16(_read_u8(d, index))
            sums[index] += np.uint16(above + below)
        row += 4
    while row < rows:
        for index in range(len(sums)):
            sums[index] += np.uint16(_read_u8(source + row * stride, index))
        row += 1


@_inner
def _column_sums(columns: Any, sums: Any, source: int, stride: int, span: Any, weight: int) -> None:
    """Weighted sums down the columns, uint32: rows ``span[0]`` to ``span[1]``, less what lies outside of the two."""
    first, last = source + span[0] * stride, source + span[1] * stride
    above, below = np.uint32(span[2]), np.uint32(span[3])
    for index in range(len(columns)):
        outside = above * np.uint32(_read_u8(first, index)) + below * np.uint32(_read_u8(last, index))
        columns[index] = np.uint32(0) - outside  # wraps around, and back again below
    for row in range(span[0], span[1] + 1, 256):
        _sum_rows(sums, source + row * stride, stride, min(256, span[1] + 1 - row))
        for index in range(len(columns)):
            columns[index] += np.uint32(weight) * np.uint32(sums[index])


@_inner
def _spans(source: int, destination: int) -> Any:
    """For each destination pixel of one axis the first and last source pixel and the units of each outside."""
    spans = np.empty((destination, 4), np.int64)
    for index in range(destination):
        begin, end = index * source, (index + 1) * source
        first, last = begin // destination, (end - 1) // destination
        spans[index, 0], spans[index, 1] = first, last
        spans[index, 2], spans[index, 3] = begin - first * destination, (last + 1) * destination - end
    return spans


@_inner
def _row_sum(columns: int, channels: int, span: Any, weight: int) -> int:
    """Weighted sum along one row of one channel, whose first uint32 lies at ``columns``."""
    total = np.int64(0)
    for column in range(span[0], span[1] + 1):
        total += np.int64(_read_u32(columns, column * channels))
    before = span[2] * np.int64(_read_u32(columns, span[0] * channels))
    after = span[3] * np.int64(_read_u32(columns, span[1] * channels))
    return weight * total - before - after


@compiled
def resize(
    pixels: int,
    stride: int,
    height: int,
    width: int,
    channels: int,
    out: int,
    out_height: int,
    out_width: int,
    out_channels: int,
    red: int,
    blue: int,
    luma: tuple[int, int, int],
) -> None:
    """Area average and colour, as :mod:`bnn_perception.frames.preprocess` defines them.

    Source pixels are summed whole; then the parts of the first and the last that lie outside the destination pixel
    are taken off. All sums fit: down a column at most 255 * (height + 2 * out_height), in all 2**37.

    Args:
        pixels: address of the rectangle's first pixel; (height, width, channels) uint8, pixels adjacent.
        stride: bytes from one row to the next, of either sign.
        height, width, channels: of the rectangle in memory.
        out: address of (out_height, out_width, out_channels) uint8, adjacent.
        out_height, out_width, out_channels: 3 channels (RGB) or 1 (grey).
        red, blue: channel index of each; green is half way between.
        luma: weights of red, green and blue in a grey pixel, in 1/256. An argument and no constant of another module,
            whose change numba's cache would not notice.
    """
    area = height * width
    # floor(s / area) of a whole s is floor((s + 0.5) / area): the quotient lies at least 0.5 / area, 2**-29, away from
    # any whole number, and float64 gets it right to 2**-43.
    rounding, per_area = area // 2 + 0.5, 1.0 / area
    rows, spans = _spans(height, out_height), _spans(width, out_width)
    columns, sums = np.empty(width * channels, np.uint32), np.empty(width * channels, np.uint16)
    reds, greens, blues = (
        columns.ctypes.data + 4 * red,
        columns.ctypes.data + 2 * (red + blue),
        columns.ctypes.data + 4 * blue,
    )
    for y in range(out_height):
        _column_sums(columns, sums, pixels, stride, rows[y], out_height)
        for x in range(out_width):
            r = np.int64((_row_sum(reds, channels, spans[x], out_width) + rounding) * per_area)
            g = np.int64((_row_sum(greens, channels, spans[x], out_width) + rounding) * per_area)
            b = np.int64((_row_sum(blues, channels, spans[x], out_width) + rounding) * per_area)
            pixel = y * out_width + x
            if out_channels == 3:
                _write_u8(out, 3 * pixel, np.uint8(r))
                _write_u8(out, 3 * pixel + 1, np.uint8(g))
                _write_u8(out, 3 * pixel + 2, np.uint8(b))
            else:
                _write_u8(out, pixel, np.uint8((luma[0] * r + luma[1] * g + luma[2] * b + 128) >> 8))
