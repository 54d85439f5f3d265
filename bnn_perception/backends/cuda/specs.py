"""The geometry of every kernel, stated once: the ``-D`` options, the block, the grid and the shared memory.

A spec function takes a layer (or what the kernel needs of it), the shape of its input, a tile and the number of
frames, and returns a :class:`KernelSpec`. The tile functions list the tiles that a layer can run with, best guess
first; :mod:`bnn_perception.backends.cuda.tiles` holds those that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product, zip_longest
from typing import Any, TypeAlias, TypeGuard

import numpy as np

from bnn_perception.frames.preprocess import LUMA
from bnn_perception.net.bits import words_for
from bnn_perception.net.layer import Layer, Shape
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    FullyConnected,
    InputConv2d,
    OfBits,
    OfPixels,
    OutputBits,
    OutputDense,
    Thermometer,
)
from bnn_perception.net.model import InputSpec
from bnn_perception.net.signals import (
    Add,
    Affine,
    AveragePool,
    BinaryMaxPool,
    Clip,
    Pool2d,
    PRelu,
    RealConv2d,
    RealInputConv2d,
    Scaled,
    ScaledBinaryConv2d,
    ScaledInputConv2d,
)
from bnn_perception.net.windows import inside_patterns

WARP = 32
#: Frames that one launch evaluates at most. A robot has 1 to 16 cameras; data sets are evaluated in larger batches.
MAX_FRAMES = 256
#: Static shared memory of a block, bytes; every SM has it without asking.
MAX_SHARED_BYTES = 48 * 1024
#: One frame of the upload buffer, the twin of ``struct Frame`` in kernels/preprocess.cu.
FRAME = np.dtype(
    [
        ("offset", "<u8"),
        ("step", "<u4"),
        ("pixel_bytes", "<u4"),
        ("red", "<u4"),
        ("green", "<u4"),
        ("blue", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("lead", "<u4"),
    ]
)

Dim3 = tuple[int, int, int]


@dataclass(frozen=True)
class Sm:
    """A kind of SM that the kernels are compiled and tested for.

    Attributes:
        board: a typical one, and
        multiprocessors: how many SMs it has.
        cuda: the major versions of CUDA whose compiler knows it, the oldest first.
        has_binary_mma: whether one-bit matrix products are one instruction; elsewhere they are many, or none.
    """

    board: str
    multiprocessors: int
    cuda: tuple[int, ...]
    has_binary_mma: bool


#: The kinds of SMs by compute capability times ten.
SMS: dict[int, Sm] = {
    53: Sm("Jetson Nano", 1, (12,), False),
    62: Sm("Jetson TX2", 2, (12,), False),
    72: Sm("Jetson AGX Xavier", 8, (12,), False),
    75: Sm("T4", 40, (12, 13), False),
    80: Sm("A100", 108, (12, 13), True),
    86: Sm("A40", 84, (12, 13), True),
    87: Sm("Jetson AGX Orin", 16, (12, 13), True),
    89: Sm("L4", 58, (12, 13), True),
    90: Sm("H100", 132, (12, 13), True),
    100: Sm("B200", 148, (12, 13), False),
    110: Sm("Jetson AGX Thor", 20, (13,), False),
    120: Sm("RTX 5080", 84, (12, 13), False),
}
#: SMs on which binary convolutions may run on tensor cores.
MMA_SMS = tuple(number for number, sm in SMS.items() if sm.has_binary_mma)


@dataclass(frozen=True)
class Target:
    """The GPU that a tile is chosen for.

    Attributes:
        sm: compute capability times ten, 87 say.
        multiprocessors: how many SMs it has.
    """

    sm: int
    multiprocessors: int


@dataclass(frozen=True)
class KernelSpec:
    """One kernel as it is compiled and launched.

    Attributes:
        kernel: its name, and that of its source, ``kernels/<kernel>.cu``.
        defines: the macros of its geometry.
        block: threads, all in x.
        grid: blocks; z goes over the frames.
        shared_bytes: static shared memory of a block.
        max_registers: of a thread. With 128 an SM of 65,536 registers holds 16 warps. Checked for every SM by
            test/kernels/test_nvrtc_matrix.py.
    """

    kernel: str
    defines: Mapping[str, int]
    block: Dim3
    grid: Dim3
    shared_bytes: int
    max_registers: int = 128

    @property
    def options(self) -> tuple[str, ...]:
        """The macros as compiler options."""
        return tuple(f"-D{name}={value}" for name, value in self.defines.items())


@dataclass(frozen=True)
class ConvTile:
    """How a convolution is cut; see kernels/conv2d.cuh.

    Attributes:
        patch: outputs of a row that one warp computes.
        rows, patches, filters: rows, patches of a row and filter words (32 filters each) of a block: its warps.
        positions: rows and columns of the pool's window that are summed at once, all or 1.
        chunk_words: words of a pixel that are held in registers at once.
    """

    patch: int = 1
    rows: int = 1
    patches: int = 1
    filters: int = 1
    positions: int = 1
    chunk_words: int = 1

    @property
    def warps(self) -> int:
        return self.rows * self.patches * self.filters


@dataclass(frozen=True)
class MmaTile:
    """How a binary convolution on tensor cores is cut; see kernels/bconv2d_b1mma.cu.

    Attributes:
        columns: width of a group of 8 outputs: 1, 2, 4 or 8.
        rows, patches, filters: rows and columns of groups, and filter words, of a block: its warps.
    """

    columns: int
    rows: int
    patches: int
    filters: int

    @property
    def warps(self) -> int:
        return self.rows * self.patches * self.filters


@dataclass(frozen=True)
class DenseTile:
    """How a fully connected layer is cut; see kernels/dense.cu.

    Attributes:
        outputs: of a block.
        lanes: that share an output.
    """

    outputs: int
    lanes: int


Tile: TypeAlias = "ConvTile | MmaTile | DenseTile"
#: Layers that a tile is chosen for.
Tiled: TypeAlias = "Conv2d | FullyConnected"

#: RESULT of kernels/dense.cu.
RESULTS: dict[type[Layer], int] = {BinaryDense: 0, OutputDense: 1, OutputBits: 2}


def divide_up(a: int, b: int) -> int:
    return -(-a // b)


def divisors(n: int, largest: int) -> list[int]:
    """Divisors of ``n`` up to ``largest``, the largest first."""
    return [d for d in range(min(n, largest), 0, -1) if n % d == 0]


# ---------------------------------------------------------------------------------------------------- preprocess


def preprocess(spec: InputSpec, frames: int) -> KernelSpec:
    """Four warps make 8 or 16 pixels of a row: under them lie about as many 4-byte words of a camera's row as the block
    has threads, and a small output still makes a hundred blocks."""
    tile, warps = min(8 if spec.width < 64 else 16, spec.width), 4
    red, green, blue = LUMA
    return KernelSpec(
        "preprocess",
        {
            "OUT_HEIGHT": spec.height,
            "OUT_WIDTH": spec.width,
            "OUT_CHANNELS": spec.channels,
            "LUMA_RED": red,
            "LUMA_GREEN": green,
            "LUMA_BLUE": blue,
            "TILE": tile,
            "WARPS": warps,
        },
        block=(warps * WARP, 1, 1),
        grid=(divide_up(spec.width, tile), spec.height, frames),
        shared_bytes=warps * WARP * 4 * 4,
        max_registers=64,
    )


# ---------------------------------------------------------------------------------------------------- thermometer


def thermometer(layer: Thermometer, shape: Shape, frames: int) -> KernelSpec:
    """Four warps of 32 pixels a block."""
    pixels, warps = shape[0] * shape[1], 4
    return KernelSpec(
        "thermometer",
        {"PIXELS": pixels, "CHANNELS": layer.channels, "LEVELS": layer.levels, "WARPS": warps},
        block=(warps * WARP, 1, 1),
        grid=(divide_up(pixels, warps * WARP), words_for(layer.channels * layer.levels), frames),
        shared_bytes=0,
        max_registers=64,
    )


# ---------------------------------------------------------------------------------------------------- convolutions


@dataclass(frozen=True)
class _Taps:
    """What a convolution multiplies: ``words`` a pixel, ``columns`` of the kernel, ``step`` pixels apart."""

    words: int
    columns: int
    step: int


def _input_taps(layer: OfPixels) -> _Taps:
    """Four signed bytes a word: the channels of one colour pixel, or four grey pixels side by side."""
    if layer.in_channels == 3:
        return _Taps(1, layer.kernel[1], 1)
    return _Taps(1, divide_up(layer.kernel[1], 4), 4)


def _binary_taps(layer: OfBits) -> _Taps:
    """32 channels a word."""
    return _Taps(words_for(layer.in_channels), layer.kernel[1], 1)


def _input_defines(layer: OfPixels, shape: Shape) -> dict[str, int]:
    return {
        "CHANNELS": layer.in_channels,
        "LEVEL_OFFSET": level_offset(layer),
        "IDENTITY_LEVELS": int(np.array_equal(layer.levels, np.arange(256))),
    }


def _binary_defines(layer: OfBits, shape: Shape) -> dict[str, int]:
    return {"FAN_IN": layer.fan_in, "BORDER_COLUMNS": border_columns(layer, shape)}


@dataclass(frozen=True)
class ConvKernel:
    """What the kernels that share kernels/conv2d.cuh differ in.

    Attributes:
        name: of the kernel.
        taps: how a layer's products are grouped into words.
        defines: macros that it has beside those of kernels/conv2d.cuh, from the layer and the shape of its input.
    """

    name: str
    taps: Callable[[Any], _Taps]
    defines: Callable[[Any, Shape], dict[str, int]]


_INPUT = ConvKernel("input_conv2d", _input_taps, _input_defines)
_BINARY = ConvKernel("bconv2d_popc", _binary_taps, _binary_defines)
#: The kernel of each kind of convolution.
CONV_KERNELS: dict[type[Layer], ConvKernel] = {
    InputConv2d: _INPUT,
    ScaledInputConv2d: _INPUT,
    BinaryConv2d: _BINARY,
    ScaledBinaryConv2d: _BINARY,
}
#: Kinds that the kernel of tensor cores evaluates as well.
MMA_KINDS: tuple[type[Layer], ...] = (BinaryConv2d,)


def taps(layer: Conv2d) -> _Taps:
    """How the layer's products are grouped into words."""
    return CONV_KERNELS[type(layer)].taps(layer)


#: Registers that a tile may plan for the sums and for a line of the input; the weights take up to 28 more.
_MAX_SUMS, _MAX_LINE = 16, 48
#: Taps of a row that are held in registers at once.
_MAX_STEP_TAPS = 7


#: The operations of an epilogue, as kernels/epilogue.cuh counts them, and the rows of parameters that each takes.
OPERATIONS: dict[type[Layer], tuple[int, int]] = {Affine: (1, 2), PRelu: (2, 1), Clip: (3, 2), Add: (4, 0)}


@dataclass(frozen=True)
class Epilogue:
    """What follows the values of a step; see kernels/epilogue.cuh.

    Attributes:
        chain: kinds of the layers, in order.
        signal: whether the signal is stored.
        sign: whether its signs are.
    """

    chain: tuple[type[Layer], ...] = ()
    signal: bool = True
    sign: bool = False

    def defines(self, shape: Shape) -> dict[str, int]:
        """The macros, for an output of ``shape``."""
        operations = [OPERATIONS[kind] for kind in self.chain]
        return {
            "EPILOGUE": 1,
            "OPS": sum(code << 3 * place for place, (code, _) in enumerate(operations)),
            "OPS_ROWS": sum(rows for _, rows in operations),
            "ADDS": int(Add in self.chain),
            "SIGNAL_STORED": int(self.signal),
            "SIGNS": int(self.sign),
            "OUT_HEIGHT": shape[0],
            "OUT_WIDTH": shape[1],
            "OUT_CHANNELS": shape[2],
            "OUT_WORDS": words_for(shape[2]),
        }


#: What follows a convolution that gives a signal, where nothing is fused with it.
SCALED = Epilogue((Affine,))


def conv2d(
    layer: Conv2d, shape: Shape, tile: ConvTile, frames: int, epilogue: Epilogue = SCALED
) -> KernelSpec:
    """The kernel of an input or a binary convolution.

    Args:
        layer, shape: the convolution and the shape of its input.
        tile: how it is cut.
        frames: of a launch.
        epilogue: what follows its dot products, of a layer that gives a signal.

    Raises:
        ValueError: where the tile does not fit the layer or the shared memory.
    """
    conv_height, conv_width, _ = layer.conv_shape(shape)
    out_height, out_width, out_channels = layer.output_shape(shape)
    out_words = words_for(out_channels)
    tap = taps(layer)
    pool_size, pool_stride = layer.window.size, layer.window.stride
    if out_words % tile.filters or tap.words % tile.chunk_words or tile.positions not in (1, pool_size):
        raise ValueError(f"{layer.name}: {tile} does not divide the layer")
    if tile.positions < pool_size and tile.patch > 1:
        raise ValueError(
            f"{layer.name}: {tile} has more than one output a warp, but not all of its pool's positions"
        )

    tile_rows = ((tile.rows - 1) * pool_stride + tile.positions - 1) * layer.stride[0] + layer.kernel[0]
    tile_outputs = tile.patches * tile.patch
    tile_columns = (
        ((tile_outputs - 1) * pool_stride + tile.positions - 1) * layer.stride[1]
        + (tap.columns - 1) * tap.step
        + 1
    )
    tile_words = tile_rows * divide_up(tile_columns * tile.chunk_words, 4) * 4
    row_weights = tap.columns * tile.chunk_words * WARP
    chunks = tap.words // tile.chunk_words

    def shared(stage_chunks: int, stage_rows: int) -> int:
        return 4 * stage_chunks * (tile_words + tile.filters * stage_rows * row_weights)

    # The fewest stages that fit: whole kernels of fewer channels first, then fewer rows of the kernel.
    stages = [(c, layer.kernel[0]) for c in divisors(chunks, chunks)]
    stages += [(1, rows) for rows in divisors(layer.kernel[0], layer.kernel[0] - 1)]
    fitting = [stage for stage in stages if shared(*stage) <= MAX_SHARED_BYTES]
    if not fitting:
        raise ValueError(f"{layer.name}: {tile} needs more than {MAX_SHARED_BYTES} bytes of shared memory")
    stage_chunks, stage_rows = fitting[0]

    defines = {
        "IN_HEIGHT": shape[0],
        "IN_WIDTH": shape[1],
        "TAPS_Y": layer.kernel[0],
        "TAPS_X": tap.columns,
        "TAP_STEP": tap.step,
        "STRIDE_Y": layer.stride[0],
        "STRIDE_X": layer.stride[1],
        "PADDING_Y": layer.padding[0],
        "PADDING_X": layer.padding[1],
        "POOL_SIZE": pool_size,
        "POOL_STRIDE": pool_stride,
        "CONV_HEIGHT": conv_height,
        "CONV_WIDTH": conv_width,
        "OUT_HEIGHT": out_height,
        "OUT_WIDTH": out_width,
        "OUT_WORDS": out_words,
        "CHUNKS": chunks,
        "CHUNK_WORDS": tile.chunk_words,
        "STAGE_CHUNKS": stage_chunks,
        "STAGE_ROWS": stage_rows,
        "STEP_TAPS": divisors(tap.columns, _MAX_STEP_TAPS)[0],
        "POSITIONS": tile.positions,
        "PATCH": tile.patch,
        "TILE_ROWS": tile.rows,
        "TILE_PATCHES": tile.patches,
        "TILE_FILTERS": tile.filters,
    }
    kernel = CONV_KERNELS[type(layer)]
    defines |= kernel.defines(layer, shape)
    defines |= epilogue.defines(layer.output_shape(shape)) if isinstance(layer, Scaled) else {"EPILOGUE": 0}
    tiles = divide_up(out_height, tile.rows) * divide_up(out_width, tile_outputs)
    return KernelSpec(
        kernel.name,
        defines,
        block=(tile.warps * WARP, 1, 1),
        grid=(tiles, out_words // tile.filters, frames),
        shared_bytes=shared(stage_chunks, stage_rows),
    )


def level_offset(layer: OfPixels) -> int:
    """What is subtracted from the levels so that they fit a signed byte."""
    return 128 if layer.levels.max() > 127 else 0


def border_columns(layer: OfBits, shape: Shape) -> int:
    """Columns of the table of :meth:`BinaryConv2d.border_correction`, 0 where nothing has to be corrected."""
    if layer.padding_value == -1 or not any(layer.padding):
        return 0
    return len(inside_patterns(shape, layer.kernel, layer.stride, layer.padding, axis=1)[0])


def conv_tiles(layer: Conv2d, shape: Shape, target: Target) -> list[ConvTile]:
    """Every tile worth trying, best guess first; never empty."""
    out_height, out_width, out_channels = layer.output_shape(shape)
    pool_size, pool_stride = layer.window.size, layer.window.stride
    tap = taps(layer)
    step_taps = divisors(tap.columns, _MAX_STEP_TAPS)[0]
    candidates: dict[ConvTile, float] = {}
    for patch, rows, patches, filters in product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4)):
        if not (
            rows * patches * filters <= 8 and rows < 2 * out_height and (patches - 1) * patch < out_width
        ):
            continue
        if (patch > 1 and patch >= 2 * out_width) or words_for(out_channels) % filters:
            continue
        for positions, chunk_words in product({pool_size, 1}, divisors(tap.words, 4)):
            columns = (patch - 1) * pool_stride + positions
            line = ((columns - 1) * layer.stride[1] + (step_taps - 1) * tap.step + 1) * chunk_words
            smallest = patch == positions == chunk_words == 1
            if (positions * columns > _MAX_SUMS or line > _MAX_LINE) and not smallest:
                continue
            tile = ConvTile(patch, rows, patches, filters, positions, chunk_words)
            try:
                spec = conv2d(layer, shape, tile, 1)
            except ValueError:
                continue
            candidates[tile] = _conv_cycles(spec, target)
    return sorted(candidates, key=lambda tile: candidates[tile])


def _conv_cycles(spec: KernelSpec, target: Target) -> float:
    """A guess at the cycles that the busiest SM spends, to order tiles by; only its order has a meaning.

    Each SM has four schedulers. A product of words costs a scheduler about 5 cycles (XOR, carry-save, POPC at a
    quarter rate; 2 for DP4A), an access to shared memory about 4, since the schedulers share one path to it. A warp
    alone waits for its own results: it takes about 1.6 times as long as when others fill the gaps.
    """
    d = spec.defines
    columns = (d["PATCH"] - 1) * d["POOL_STRIDE"] + d["POSITIONS"]
    windows = (d["POOL_SIZE"] // d["POSITIONS"]) ** 2
    words = d["STEP_TAPS"] * d["CHUNK_WORDS"]
    line = ((columns - 1) * d["STRIDE_X"] + (d["STEP_TAPS"] - 1) * d["TAP_STEP"] + 1) * d["CHUNK_WORDS"]
    aligned = d["PATCH"] * d["POOL_STRIDE"] * d["STRIDE_X"] * d["CHUNK_WORDS"]
    vector = 4 if aligned % 4 == 0 else 2 if aligned % 2 == 0 else 1
    multiply = 2 if spec.kernel == "input_conv2d" else 5
    step = d["POSITIONS"] * (columns * words * multiply + 4 * line / vector) + 4 * words
    steps = d["CHUNKS"] * d["TAPS_Y"] * (d["TAPS_X"] // d["STEP_TAPS"]) * windows
    stages = (d["CHUNKS"] // d["STAGE_CHUNKS"]) * (d["TAPS_Y"] // d["STAGE_ROWS"]) * windows
    warps = spec.block[0] // WARP
    # Staging: each word costs some 20 instructions of indexing and bounds, a stage two trips to L2 of 300 cycles.
    staging = stages * (spec.shared_bytes / 4 / WARP * 20 / 4 + 600)
    busy = step * steps * divide_up(warps, 4)
    blocks = divide_up(spec.grid[0] * spec.grid[1], target.multiprocessors)
    return blocks * (staging + busy) + 0.6 * step * steps


def bconv2d_b1mma(layer: Conv2d, shape: Shape, tile: MmaTile, frames: int) -> KernelSpec:
    """The kernel of a binary convolution to bits on tensor cores: there a lane holds up to 32 sums, and as many signals
    at once would take more registers than a kernel may have.

    Raises:
        ValueError: where the tile or the kernel does not fit the layer or the shared memory.
    """
    if not isinstance(layer, BinaryConv2d):
        raise ValueError(f"{layer.name}: tensor cores are used for binary convolutions to bits only")
    out_height, out_width, out_channels = layer.output_shape(shape)
    in_words, out_words = words_for(layer.in_channels), words_for(out_channels)
    pool_size, pool_stride = layer.window.size, layer.window.stride
    if border_columns(layer, shape):
        raise ValueError(f"{layer.name}: tensor cores are used with padding by -1 only")
    if out_words % tile.filters or 8 % tile.columns:
        raise ValueError(f"{layer.name}: {tile} does not divide the layer")
    # Two slots make a matrix, and two matrices at a time are better than one.
    groups = {1: 4}.get(pool_size, 1 + pool_size % 2)
    rows, columns = tile.rows * groups * 8 // tile.columns, tile.patches * tile.columns
    in_rows = ((rows - 1) * pool_stride + pool_size - 1) * layer.stride[0] + layer.kernel[0]
    in_columns = ((columns - 1) * pool_stride + pool_size - 1) * layer.stride[1] + layer.kernel[1]
    shared_bytes = 4 * (in_rows * in_columns * in_words + mma_steps(layer) * 8)
    if shared_bytes > MAX_SHARED_BYTES:
        raise ValueError(f"{layer.name}: {tile} needs more than {MAX_SHARED_BYTES} bytes of shared memory")
    return KernelSpec(
        "bconv2d_b1mma",
        {
            "IN_HEIGHT": shape[0],
            "IN_WIDTH": shape[1],
            "IN_WORDS": in_words,
            "TAPS_Y": layer.kernel[0],
            "TAPS_X": layer.kernel[1],
            "STRIDE_Y": layer.stride[0],
            "STRIDE_X": layer.stride[1],
            "PADDING_Y": layer.padding[0],
            "PADDING_X": layer.padding[1],
            "POOL_SIZE": pool_size,
            "POOL_STRIDE": pool_stride,
            "OUT_HEIGHT": out_height,
            "OUT_WIDTH": out_width,
            "OUT_WORDS": out_words,
            "GROUPS": groups,
            "GROUP_COLUMNS": tile.columns,
            "TILE_ROWS": tile.rows,
            "TILE_PATCHES": tile.patches,
            "TILE_FILTERS": tile.filters,
        },
        block=(tile.warps * WARP, 1, 1),
        grid=(divide_up(out_height, rows) * divide_up(out_width, columns), out_words // tile.filters, frames),
        shared_bytes=shared_bytes,
    )


def mma_steps(layer: Conv2d) -> int:
    """Steps of 256 bits that a window takes."""
    return divide_up(layer.kernel[0] * layer.kernel[1] * words_for(layer.in_channels), 8)


def mma_tiles(layer: Conv2d, shape: Shape, target: Target) -> list[MmaTile]:
    """Every tile on tensor cores worth trying, best guess first; none where the SM or the layer has no use for it."""
    if target.sm not in MMA_SMS or type(layer) not in MMA_KINDS:
        return []
    out_height, out_width, out_channels = layer.output_shape(shape)
    candidates: dict[MmaTile, float] = {}
    for columns, rows, patches, filters in product((8, 4, 2, 1), (1, 2, 4), (1, 2, 4), (1, 2, 4)):
        tile = MmaTile(columns, rows, patches, filters)
        if tile.warps > 8 or words_for(out_channels) % filters or (patches - 1) * columns >= out_width:
            continue
        try:
            spec = bconv2d_b1mma(layer, shape, tile, 1)
        except ValueError:
            continue
        covered = (
            spec.grid[0]
            * spec.defines["TILE_ROWS"]
            * spec.defines["TILE_PATCHES"]
            * spec.defines["GROUPS"]
            * 8
        )
        blocks = divide_up(spec.grid[0] * spec.grid[1], target.multiprocessors)
        # Waste first, then waves of blocks; staging is shared by the warps of a block.
        candidates[tile] = (
            covered / (out_height * out_width) * blocks * (tile.warps + spec.shared_bytes / 2048)
        )
    return sorted(candidates, key=lambda tile: candidates[tile])


# ---------------------------------------------------------------------------------------------------- dense


def dense_frames(frames: int) -> int:
    """Frames that one block of a fully connected layer takes, so that a weight is loaded once for all of them."""
    return math.gcd(frames, 4)


def dense(layer: FullyConnected, tile: DenseTile, frames: int) -> KernelSpec:
    """The kernel of a fully connected layer.

    Raises:
        ValueError: where the tile does not fit the layer.
    """
    threads = tile.outputs * tile.lanes
    if tile.outputs not in (8, 16, 32) and (layer.gives == "bits" or tile.outputs != 4):
        raise ValueError(f"{layer.name}: {tile} does not make whole bytes of bits, or 4 logits")
    if tile.lanes & (tile.lanes - 1) or threads % WARP or threads > _MAX_DENSE_THREADS:
        raise ValueError(
            f"{layer.name}: {tile} does not make whole warps, {_MAX_DENSE_THREADS} threads at most"
        )
    in_words = layer.weights.shape[1]
    block_frames = dense_frames(frames)
    vector, step, _ = _dense_loads(in_words, tile.lanes)
    outputs = words_for(layer.out_features) * WARP if layer.gives == "bits" else layer.out_features
    return KernelSpec(
        "dense",
        {
            "IN_WORDS": in_words,
            "OUT_FEATURES": layer.out_features,
            "FAN_IN": layer.fan_in,
            "RESULT": RESULTS[type(layer)],
            "FRAMES": block_frames,
            "OUTPUTS": tile.outputs,
            "LANES": tile.lanes,
            "LOAD_WORDS": vector,
            "STEP": step,
        },
        block=(threads, 1, 1),
        grid=(divide_up(outputs, tile.outputs), 1, frames // block_frames),
        shared_bytes=4 * block_frames * tile.outputs * divide_up(tile.lanes, WARP),
    )


#: Threads of a block of a dense layer at most: each then has 64 registers even where a block has no more than 32,768.
_MAX_DENSE_THREADS = 512
#: Words of a row that a lane of a dense layer loads at once.
_MAX_DENSE_WORDS = 20


def _dense_loads(in_words: int, lanes: int) -> tuple[int, int, int]:
    """Words of a load, loads of a lane at once, and how often it does that."""
    vector = math.gcd(in_words, 4)
    loads = divide_up(in_words // vector, lanes)
    passes = divide_up(loads * vector, _MAX_DENSE_WORDS)
    return vector, divide_up(loads, passes), passes


def dense_tiles(layer: FullyConnected, target: Target) -> list[DenseTile]:
    """Every tile worth trying, best guess first; never empty."""
    in_words = layer.weights.shape[1]
    candidates: dict[DenseTile, float] = {}
    for outputs, lanes in product((32, 16, 8, 4), (1, 2, 4, 8, 16, 32, 64, 128)):
        tile = DenseTile(outputs, lanes)
        idle = lanes > 1 and lanes >= 2 * in_words and outputs * lanes > WARP
        try:
            spec = dense(layer, tile, 1)
        except ValueError:
            continue
        if not idle:
            candidates[tile] = _dense_cycles(spec, target)
    return sorted(candidates, key=lambda tile: candidates[tile])


def _dense_cycles(spec: KernelSpec, target: Target) -> float:
    """As :func:`_conv_cycles`: a trip to memory a pass, what the SM loads at 64 bytes a clock, a lane's loads one after
    the other, then counting, then adding up; a warp takes a while to start."""
    d = spec.defines
    vector, step, passes = _dense_loads(d["IN_WORDS"], d["LANES"])
    blocks = divide_up(spec.grid[0], target.multiprocessors)
    warps = spec.block[0] // WARP
    words = passes * step * vector
    loading = 500 * passes + blocks * (d["OUTPUTS"] + 1) * d["IN_WORDS"] * 4 / 64 + 20 * passes * step
    counting = 5 * words * max(1.6, blocks * warps / 4)
    adding = 25 * math.log2(min(d["LANES"], WARP)) + 10 * divide_up(d["LANES"], WARP)
    return loading + counting + adding + 8 * blocks * warps


def tile_fields(tile: Tile) -> dict[str, int]:
    """A tile as it stands in a table."""
    return asdict(tile)


def is_tiled(layer: Layer) -> TypeGuard[Tiled]:
    """Whether a tile is chosen for a layer."""
    return isinstance(layer, (Conv2d, FullyConnected))


def best_tile(layer: Tiled, shape: Shape, target: Target) -> Tile:
    """The best guess for a layer. Tensor cores are taken only where they were measured to be faster."""
    if isinstance(layer, Conv2d):
        return conv_tiles(layer, shape, target)[0]
    return dense_tiles(layer, target)[0]


def tiles_of(layer: Tiled, shape: Shape, target: Target) -> Iterator[Tile]:
    """Every tile that a tuner may try, best guesses first; those on tensor cores take turns with the others."""
    if isinstance(layer, Conv2d):
        mma: list[Tile] = [*mma_tiles(layer, shape, target)]
        others: list[Tile] = [*conv_tiles(layer, shape, target)]
        yield from (tile for pair in zip_longest(others, mma) for tile in pair if tile is not None)
    else:
        yield from dense_tiles(layer, target)


def convolution(
    layer: Conv2d, shape: Shape, tile: ConvTile | MmaTile, frames: int, epilogue: Epilogue = SCALED
) -> KernelSpec:
    """The kernel of a convolution with either kind of tile; the arguments are those of :func:`conv2d`.

    Raises:
        ValueError: where the tile does not fit the layer or the shared memory.
    """
    if isinstance(tile, ConvTile):
        return conv2d(layer, shape, tile, frames, epilogue)
    return bconv2d_b1mma(layer, shape, tile, frames)


# ---------------------------------------------------------------------------------------------------- signals


#: Warps of a block of the kernels on signals.
_SIGNAL_WARPS = 4
#: Pixels of a warp of a real convolution: so many use each weight that is loaded.
_REAL_PATCH = 4


def _signal_step(
    kernel: str, defines: dict[str, int], after: Shape, epilogue: Epilogue, frames: int, patch: int = 1
) -> KernelSpec:
    """A kernel of kernels/signal_step.cuh."""
    warps = words_for(after[2]) * after[0] * divide_up(after[1], patch)
    return KernelSpec(
        kernel,
        {**defines, **epilogue.defines(after), "PATCH": patch, "WARPS": _SIGNAL_WARPS},
        block=(_SIGNAL_WARPS * WARP, 1, 1),
        grid=(divide_up(warps, _SIGNAL_WARPS), 1, frames),
        shared_bytes=0,
        max_registers=64,
    )


def _window(layer: Pool2d | RealConv2d | RealInputConv2d, shape: Shape) -> dict[str, int]:
    return {
        "IN_HEIGHT": shape[0],
        "IN_WIDTH": shape[1],
        "KERNEL_Y": layer.kernel[0],
        "KERNEL_X": layer.kernel[1],
        "STRIDE_Y": layer.stride[0],
        "STRIDE_X": layer.stride[1],
        "PADDING_Y": layer.padding[0],
        "PADDING_X": layer.padding[1],
    }


def stored_signal(shape: Shape, frames: int, epilogue: Epilogue) -> KernelSpec:
    """The kernel of a step that begins with a signal of ``shape`` as it is."""
    return _signal_step("stored_signal", {}, shape, epilogue, frames)


def pool2d(layer: Pool2d, shape: Shape, frames: int, epilogue: Epilogue) -> KernelSpec:
    """The kernel of a maximum or a mean of windows."""
    defines = {**_window(layer, shape), "AVERAGES": int(isinstance(layer, AveragePool))}
    return _signal_step("pool2d", defines, layer.output_shape(shape), epilogue, frames)


def real_conv2d(layer: RealConv2d, shape: Shape, frames: int, epilogue: Epilogue) -> KernelSpec:
    """The kernel of a convolution of a signal with real weights."""
    defines = {
        **_window(layer, shape),
        "IN_CHANNELS": layer.in_channels,
        "GROUP_CHANNELS": layer.group_channels,
        "GROUP_FILTERS": layer.out_channels // layer.groups,
    }
    after = layer.output_shape(shape)
    patch = min(_REAL_PATCH, after[1])
    return _signal_step("real_conv2d", defines, after, epilogue, frames, patch)


def real_input_conv2d(layer: RealInputConv2d, shape: Shape, frames: int, epilogue: Epilogue) -> KernelSpec:
    """The kernel of a convolution of pixels with real weights."""
    columns = len(inside_patterns(shape, layer.kernel, layer.stride, layer.padding, axis=1)[0])
    defines = {**_window(layer, shape), "OFFSET_COLUMNS": columns}
    after = layer.output_shape(shape)
    patch = min(_REAL_PATCH, after[1])
    return _signal_step("real_input_conv2d", defines, after, epilogue, frames, patch)


def binary_pool2d(layer: BinaryMaxPool, shape: Shape, frames: int) -> KernelSpec:
    """The kernel of a maximum of windows of bits."""
    height, width, channels = layer.output_shape(shape)
    words = words_for(channels)
    return KernelSpec(
        "binary_pool2d",
        {
            **_window(layer, shape),
            "OUT_HEIGHT": height,
            "OUT_WIDTH": width,
            "OUT_WORDS": words,
            "WARPS": _SIGNAL_WARPS,
        },
        block=(_SIGNAL_WARPS * WARP, 1, 1),
        grid=(divide_up(height * width * words, _SIGNAL_WARPS * WARP), 1, frames),
        shared_bytes=0,
        max_registers=64,
    )


def copy_channels(shape: Shape, after: Shape, first: int, zeros: bool, frames: int) -> KernelSpec:
    """The kernel that copies a signal of ``shape`` to the channels from ``first`` on of one of shape ``after``."""
    pixels = shape[0] * shape[1]
    values = pixels * (after[2] if zeros else shape[2])
    return KernelSpec(
        "copy_channels",
        {
            "PIXELS": pixels,
            "CHANNELS": shape[2],
            "OUT_CHANNELS": after[2],
            "FIRST": first,
            "ZEROS": int(zeros),
            "WARPS": _SIGNAL_WARPS,
        },
        block=(_SIGNAL_WARPS * WARP, 1, 1),
        grid=(divide_up(values, _SIGNAL_WARPS * WARP), 1, frames),
        shared_bytes=0,
        max_registers=64,
    )
