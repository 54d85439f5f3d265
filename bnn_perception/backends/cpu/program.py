"""A model laid out as steps of :mod:`bnn_perception.native`: one function for each kind of layer, in :data:`LOWER`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.fusion import Fused, fuse
from bnn_perception.net import bits
from bnn_perception.net.layer import Layer, Pads, Pool, Shape
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    FullyConnected,
    InputConv2d,
    OfBits,
    OfPixels,
    OutputBits,
    OutputDense,
    Thermometer,
)
from bnn_perception.net.model import Model, iter_layers
from bnn_perception.net.signals import (
    Add,
    Affine,
    AveragePool,
    BinaryMaxPool,
    ChannelPad,
    Clip,
    Concat,
    MaxPool,
    Pool2d,
    PRelu,
    RealConv2d,
    RealInputConv2d,
    Scaled,
    ScaledBinaryConv2d,
    ScaledInputConv2d,
    Sign,
)
from bnn_perception.net.windows import pads

if TYPE_CHECKING:
    from types import ModuleType

#: Bytes that memory begins at a multiple of: a cache line.
ALIGNMENT = 64
#: Items of a step for each thread: what a thread that is held up leaves undone, the others take.
ITEMS_PER_THREAD = 4
#: Pixels of a convolution in one item at most, so that its words stay in the nearest cache.
PIXELS_PER_ITEM = 4096
#: The same where a signal follows a pool: such a convolution keeps 32 bits a filter where others keep one.
POOLED_SIGNAL_PIXELS_PER_ITEM = 128


@dataclass(frozen=True)
class Ends:
    """What a step reads and writes.

    Attributes:
        fused: its layers.
        shape: of its first input.
        source: its first input with the border that its readers need.
        border: rows above and columns left of that input's pixels.
        insides: all of its inputs, without borders.
        bits: where its bits go, None where it gives none.
        signal: where its signal goes, None where no other step reads it.
        addend: the signal that its ``Add`` adds.
    """

    fused: Fused
    shape: Shape
    source: NDArray[Any]
    border: tuple[int, int]
    insides: tuple[NDArray[Any], ...]
    bits: NDArray[np.uint32] | None
    signal: NDArray[np.float32] | None
    addend: NDArray[np.float32] | None

    def inside(self) -> NDArray[Any]:
        """The pixels of the first input, without the border."""
        return self.insides[0]

    @property
    def logits(self) -> NDArray[np.float32]:
        """Where the logits go, of a step that gives them."""
        assert self.signal is not None
        return self.signal

    def padded(self, padding: tuple[int, ...]) -> NDArray[Any]:
        """The first input from where the windows of a layer with this padding begin."""
        top, left, _, _ = pads(padding)
        return self.source[self.border[0] - top :, self.border[1] - left :]

    @property
    def target(self) -> NDArray[Any]:
        """Where its bits go, of a step that gives nothing else."""
        assert self.bits is not None
        return self.bits


@dataclass(frozen=True)
class Tensor:
    """What a layer gives, in memory: with a border for those who read around it, and its inside."""

    whole: NDArray[Any]
    inside: NDArray[Any]
    border: tuple[int, int]


class Program:
    """A model laid out as steps of :mod:`bnn_perception.native`, with the memory of its activations.

    Attributes:
        steps: (n,) ``native.STEP``; the addresses in it point into arrays that this object keeps.
        native: the compiled functions.
        step_layers: for each step the name of its first layer.
        pixels: (height, width, channels) uint8, the input.
        outputs: what steps keep, by the name of the layer that gives it: (height, width, words) uint32 bits, (height,
            width, channels) float32 signals, the last (classes,) float32 logits.
        scratch_bytes: of memory that each thread needs.
    """

    def __init__(self, model: Model, threads: int, native: ModuleType) -> None:
        self.native = native
        self._items = ITEMS_PER_THREAD * threads if threads > 1 else 1
        self._kept: list[NDArray[Any]] = []
        self._records: list[dict[str, int]] = []
        self.step_layers: list[str] = []
        self.outputs: dict[str, NDArray[Any]] = {}
        self.scratch_bytes = 0
        self.pixels = self.zeros(model.input.shape, np.uint8)
        shapes = dict(zip((layer.name for layer in model.layers), model.shapes()[1:]))
        readers: dict[str, list[Layer]] = {}
        for place in iter_layers(model):
            readers[place.layer.name] = list(place.readers)
        tensors: dict[str | None, Tensor] = {None: Tensor(self.pixels, self.pixels, (0, 0))}
        for fused in fuse(model):
            head = fused.head
            sources = [tensors[None if source is None else source.name] for source in head.sources]
            if isinstance(head.layer, Add):  # the chain adds the other one
                sources = sources[:1]
            signs = fused.sign or (head.layer if head.layer.gives == "bits" else None)
            target = signal = None
            if signs is not None:
                target = self._bits(shapes[signs.name], readers[signs.name])
                tensors[signs.name] = target
                self.outputs[signs.name] = target.inside
            kept = head.layer.name if head.layer.gives == "logits" else fused.signal
            if kept is not None:
                signal = self._signal(shapes[kept], readers[kept])
                tensors[kept] = signal
                values = signal.inside[..., : shapes[kept][2]]
                self.outputs[kept] = values if readers[kept] else values[0, 0]
            LOWER[type(head.layer)](
                self,
                head.layer,
                Ends(
                    fused,
                    head.before,
                    sources[0].whole,
                    sources[0].border,
                    tuple(tensor.inside for tensor in sources),
                    None if target is None else target.inside,
                    None if signal is None else signal.inside,
                    None if fused.addend is None else tensors[fused.addend].inside,
                ),
            )
        self.steps = np.zeros(len(self._records), dtype=native.STEP)
        for index, record in enumerate(self._records):
            for field, value in record.items():
                self.steps[field][index] = value

    def _bits(self, shape: Shape, readers: Sequence[Layer]) -> Tensor:
        # Words outside the image stay 0, which stands for -1: the padding of the layers that follow.
        return self._tensor((*shape[:2], bits.words_for(shape[2])), [r.border for r in readers], np.uint32)

    def _signal(self, shape: Shape, readers: Sequence[Layer]) -> Tensor:
        # Values outside stay 0, as convolutions want them; pools look where the image ends.
        borders = [reader.border for reader in readers if isinstance(reader, RealConv2d)]
        return self._tensor((*shape[:2], self.lanes(shape[2])), borders, np.float32)

    def _tensor(self, shape: Shape, borders: Sequence[Pads], dtype: Any) -> Tensor:
        top, left, bottom, right = (max((pad[side] for pad in borders), default=0) for side in range(4))
        height, width, depth = shape
        whole = self.zeros((top + height + bottom, left + width + right, depth), dtype)
        return Tensor(whole, whole[top : top + height, left : left + width], (top, left))

    def layer_steps(self, name: str) -> NDArray[Any]:
        """The steps of one layer."""
        return self.steps[np.array([layer == name for layer in self.step_layers])]

    def add_step(
        self, layer: Layer, kind: int, source: NDArray[Any], target: NDArray[Any] | None, **fields: int
    ) -> None:
        """Append a step from one array of pixels to another, cut into items for the threads.

        Without a target ``fields`` hold where the step's signal goes, and its size.
        """
        if target is not None:
            out_height, out_width = target.shape[:2]
        else:
            out_height, out_width = fields["out_height"], fields["out_width"]
        groups = fields.get("groups", 1)
        pool_stride, pool_size = fields.get("pool_stride", 1), fields.get("pool_size", 1)
        conv_width = fields.get("width", out_width)
        signal, pooled = "ops" in fields, pool_size > 1 or pool_stride > 1
        limit = POOLED_SIGNAL_PIXELS_PER_ITEM if signal and pooled else PIXELS_PER_ITEM
        chunks = min(out_height, max(-(-self._items // groups), -(-out_height * conv_width // limit)))
        rows = -(-out_height // chunks)
        self._records.append(
            {
                "kind": kind,
                "items": groups * -(-out_height // rows),
                "rows": rows,
                "groups": groups,
                "source": source.ctypes.data,
                "source_row": source.strides[0],
                "source_pixel": source.strides[1],
                "target": 0 if target is None else target.ctypes.data,
                "target_row": 0 if target is None else target.strides[0],
                "target_pixel": 0 if target is None else target.strides[1],
                "out_height": out_height,
                "out_width": out_width,
                **fields,
            }
        )
        self.step_layers.append(layer.name)
        pixels = ((rows - 1) * pool_stride + pool_size) * conv_width
        held = pixels if pooled or not signal else 0
        self.scratch_bytes = max(self.scratch_bytes, self.native.scratch_bytes(held, signal))

    def windows(
        self,
        source: NDArray[Any],
        conv_shape: Shape,
        stride: tuple[int, int],
        pool: Pool,
        pattern: NDArray[np.integer] | None = None,
    ) -> dict[str, int]:
        """Where the windows lie.

        Args:
            source: array of pixels.
            conv_shape: of the integers before the pool.
            stride, pool: of the layer.
            pattern: for each window the index of its limits; None where all have the same.
        """
        y, x = np.arange(conv_shape[0])[:, None], np.arange(conv_shape[1])
        windows = np.zeros((conv_shape[0], conv_shape[1], 2), np.uint32)
        windows[..., 0] = y * stride[0] * source.strides[0] + x * stride[1] * source.strides[1]
        if pattern is not None:
            windows[..., 1] = pattern
        return {
            "width": conv_shape[1],
            "windows": self.keep(windows),
            "pool_size": pool.size,
            "pool_stride": pool.stride,
        }

    def units(self, source: NDArray[Any], kernel: tuple[int, int], channels: int) -> dict[str, int]:
        """The bytes of a window that hold channels, as distances from its first one."""
        y, x = np.arange(kernel[0])[:, None, None], np.arange(kernel[1])[:, None]
        return self.offsets(y * source.strides[0] + x * source.strides[1] + np.arange(_bytes_for(channels)))

    def pairs(self, source: NDArray[Any], kernel: tuple[int, int]) -> dict[str, int]:
        """The pairs of values that cover each row of a window; the last may reach beyond it."""
        y, first = np.arange(kernel[0])[:, None], np.arange(0, kernel[1] * source.shape[2], 2)
        return self.offsets(y * source.strides[0] + first * source.itemsize)

    def offsets(self, offsets: NDArray[np.integer]) -> dict[str, int]:
        return {"units": offsets.size, "offsets": self.keep(offsets.astype(np.int32))}

    def weights(self, by_unit: NDArray[Any], vectors: int) -> dict[str, int]:
        """(units, filters, ...) -> the weights of one group of ``vectors`` after those of another."""
        by_filter = self.filled(np.moveaxis(by_unit, 1, -1))
        size = vectors * self.native.LANES
        groups = [
            np.moveaxis(by_filter[..., first : first + size], -1, 1).reshape(-1)
            for first in range(0, by_filter.shape[-1], size)
        ]
        return {
            "words": bits.words_for(by_unit.shape[1]),
            "vectors": vectors,
            "groups": len(groups),
            "weights": self.keep(np.concatenate(groups)),
        }

    def limits(self, limits: NDArray[np.integer], flip: NDArray[np.bool_], wide: bool) -> dict[str, int]:
        """(patterns, filters) -> what values must reach.

        Values never come near the ends of their type, so that limits which do not fit may be moved there. Spare
        filters never reach theirs and their bits are 0.
        """
        dtype = np.dtype(np.int32 if wide else np.int16)
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        clipped = self.filled(np.clip(limits, low, high).astype(dtype), high)
        return {"wide": int(wide), "limits": self.keep(clipped), "flip": self.keep(bits.pack(flip))}

    def epilogue(self, ends: Ends, first: Sequence[NDArray[np.float32]] = ()) -> dict[str, int]:
        """What follows the values of a step, up to its signal and its bits.

        Spare channels have parameters of 0 and thresholds that no value reaches: their values and bits are 0.

        Args:
            ends: with the chain and the sign.
            first: scale and bias that go before the chain.
        """
        native = self.native
        # 1 * x + 0 is x.
        rows = list(first) if first and (np.any(first[0] != 1) or np.any(first[1])) else []
        ops = [native.AFFINE] if rows else []
        channels = ends.fused.head.after[2]
        for layer in ends.fused.chain:
            ops.append(OPERATIONS[type(layer)](native))
            rows += layer.array_values().values()
        sign = ends.fused.sign
        never = np.full(channels, np.inf, np.float32)
        by_lane = [self.filled(row) for row in rows]
        by_lane.append(self.filled(never if sign is None else sign.threshold, np.inf))
        lanes = native.LANES
        parameters = np.stack([row.reshape(-1, lanes) for row in by_lane], axis=1).astype(np.float32)
        fields = {
            "words": bits.words_for(channels),
            "ops": self.keep(np.array([*ops, native.END], np.int64)),
            "parameters": self.keep(parameters),
            "parameter_bytes": parameters[0].nbytes,
            "flip": self.keep(bits.pack(np.zeros(channels, bool) if sign is None else sign.flip)),
            "out_height": ends.fused.head.after[0],
            "out_width": ends.fused.head.after[1],
        }
        for name, array in (("signal", ends.signal), ("addend", ends.addend)):
            if array is not None:
                fields[name] = array.ctypes.data
                fields[f"{name}_row"], fields[f"{name}_pixel"] = array.strides[:2]
        return fields

    def lanes(self, filters: int) -> int:
        """Lanes of the vectors that hold ``filters``."""
        return bits.words_for(filters) * int(self.native.LANES)

    def filled(self, values: NDArray[Any], spare: float = 0) -> NDArray[Any]:
        """(..., filters) -> (..., lanes)."""
        filled = np.full((*values.shape[:-1], self.lanes(values.shape[-1])), spare, dtype=values.dtype)
        filled[..., : values.shape[-1]] = values
        return filled

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        array = aligned_zeros(shape, dtype)
        self._kept.append(array)
        return array

    def padded(
        self, shape: Shape, padding: Pads, dtype: Any, value: int = 0
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """An array with a border of ``padding`` around ``shape``, full of ``value``, and the view of its inside."""
        (height, width, depth), (top, left, bottom, right) = shape, padding
        padded = self.zeros((top + height + bottom, left + width + right, depth), dtype)
        padded[...] = value
        return padded, padded[top : top + height, left : left + width]

    def keep(self, values: NDArray[Any]) -> int:
        """The address of a copy of ``values`` that lives as long as this object."""
        array = self.zeros(values.shape, values.dtype)
        array[...] = values
        return int(array.ctypes.data)


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin at a cache line, and that may be read beyond their end by no more than one."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + 2 * ALIGNMENT, dtype=np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def _bytes_for(channels: int) -> int:
    """Bytes of a pixel that hold channels."""
    return -(-channels // 8)


def _bytes_by_unit(weights: NDArray[np.uint32], channels: int) -> NDArray[np.uint8]:
    """(filters, kernel y, kernel x, words) -> (units, filters) uint8; bytes without channels are left out."""
    as_bytes = np.ascontiguousarray(weights, dtype="<u4").view(np.uint8)[..., : _bytes_for(channels)]
    return np.ascontiguousarray(as_bytes.reshape(len(weights), -1).T)


def _pairs_by_unit(weights: NDArray[Any]) -> NDArray[Any]:
    """(filters, kernel y, kernel x, channels) -> (units, filters, 2), 0 where a pair reaches beyond its row."""
    rows = weights.reshape(*weights.shape[:2], -1)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, rows.shape[2] % 2)))
    return np.moveaxis(rows.reshape(len(weights), -1, 2), 0, 1)


def _distance_limits(
    threshold: NDArray[np.int32], fan_in: int, correction: NDArray[np.int32]
) -> NDArray[np.int64]:
    """The limits of minus the Hamming distance (see :mod:`bnn_perception.native`): (patterns, filters)."""
    return -((fan_in + correction.astype(np.int64) - threshold) // 2)


def _thermometer_table(layer: Thermometer) -> NDArray[np.uint32]:
    """(channels, 256, words): the bits that each value of each channel sets."""
    reached = np.arange(256)[None, :, None] >= layer.thresholds[:, None, :]  # (channels, values, levels)
    code = np.zeros((layer.channels, 256, layer.channels, layer.levels), dtype=bool)
    for channel in range(layer.channels):
        code[channel, :, channel] = reached[channel]
    return bits.pack(code.reshape(layer.channels, 256, -1))


# One function for each kind of layer: it appends the steps of the layer to the program.


def thermometer(program: Program, layer: Thermometer, ends: Ends) -> None:
    program.add_step(
        layer,
        program.native.THERMOMETER,
        ends.source,
        ends.target,
        words=ends.target.shape[2],
        table=program.keep(_thermometer_table(layer)),
    )


def input_conv2d(program: Program, layer: InputConv2d, ends: Ends) -> None:
    _add_input_conv(
        program,
        layer,
        ends,
        lambda excess, wide: program.limits(layer.threshold + excess, layer.flip, wide),
    )


def scaled_input_conv2d(program: Program, layer: ScaledInputConv2d, ends: Ends) -> None:
    _add_input_conv(program, layer, ends, lambda excess, wide: _dots(program, layer, ends, -excess, wide, 0))


def binary_conv2d(program: Program, layer: BinaryConv2d, ends: Ends) -> None:
    _add_binary_conv(
        program,
        layer,
        ends,
        lambda correction, wide: program.limits(
            _distance_limits(layer.threshold, layer.fan_in, correction), layer.flip, wide
        ),
    )


def scaled_binary_conv2d(program: Program, layer: ScaledBinaryConv2d, ends: Ends) -> None:
    _add_binary_conv(
        program,
        layer,
        ends,
        lambda correction, wide: _dots(program, layer, ends, layer.fan_in + correction, wide, 1),
    )


def real_input_conv2d(program: Program, layer: RealInputConv2d, ends: Ends) -> None:
    native = program.native
    levels, inside = program.padded(ends.shape, pads(layer.padding), np.uint16)
    program.add_step(layer, native.LEVELS, ends.source, inside, wide=1)
    row, column, offsets = layer.offsets(ends.shape)
    by_vector, starts = _by_vector(layer, layer.in_channels)
    by_unit = np.stack([_pairs_by_unit(weights) for weights in by_vector])
    _add_real_conv(
        program,
        ends,
        native.REAL_INPUT_CONV,
        levels,
        # weight = 4096 * high + low
        np.stack([by_unit & 0xFFF, by_unit >> 12], axis=2).astype(np.int16),
        starts,
        program.pairs(levels, layer.kernel),
        program.epilogue(ends),
        {
            "scale": program.keep(program.filled(layer.scale)),
            "bias": program.keep(program.filled(offsets.reshape(-1, layer.out_channels))),
        },
        pattern=row[:, None] * offsets.shape[1] + column,
    )


def real_conv2d(program: Program, layer: RealConv2d, ends: Ends) -> None:
    native = program.native
    source = ends.padded(layer.padding)
    kind = native.REAL_CONV
    if layer.groups == layer.in_channels == layer.out_channels:
        kind = native.DEPTHWISE_CONV
        by_lane = program.filled(layer.weights.reshape(layer.out_channels, -1).T)
        by_tap = np.moveaxis(by_lane.reshape(len(by_lane), -1, native.LANES), 1, 0)
        channels, starts = np.zeros(1, np.intp), np.arange(len(by_tap)) * native.LANES
    else:
        by_vector, starts = _by_vector(layer)
        by_tap = np.moveaxis(by_vector.reshape(*by_vector.shape[:2], -1), 2, 1)
        channels = np.arange(by_vector.shape[-1])
    y, x = np.arange(layer.kernel[0])[:, None, None], np.arange(layer.kernel[1])[:, None]
    _add_real_conv(
        program,
        ends,
        kind,
        source,
        by_tap,
        starts,
        program.offsets(y * source.strides[0] + x * source.strides[1] + channels * source.itemsize),
        program.epilogue(ends, (np.ones_like(layer.bias), layer.bias)),
    )


def pool2d(program: Program, layer: Pool2d, ends: Ends) -> None:
    fields = _pool_fields(layer, ends.shape)
    kind = program.native.MAX_POOL
    if isinstance(layer, AveragePool):
        kind = program.native.AVERAGE_POOL
        fields["counts"] = program.keep(layer.counts(ends.shape))
    groups = bits.words_for(layer.channels)
    program.add_step(layer, kind, ends.inside(), ends.bits, groups=groups, **fields, **program.epilogue(ends))


def binary_max_pool(program: Program, layer: BinaryMaxPool, ends: Ends) -> None:
    program.add_step(
        layer,
        program.native.BITS_POOL,
        ends.padded(layer.padding),
        ends.target,
        words=bits.words_for(layer.channels),
        **_pool_fields(layer, ends.shape),
    )


def stored_signal(program: Program, layer: Layer, ends: Ends) -> None:
    """A step that begins with a signal as it is: a layer that may follow others in their steps, but does not."""
    program.add_step(
        layer,
        program.native.SIGNAL,
        ends.inside(),
        ends.bits,
        groups=bits.words_for(ends.shape[2]),
        **program.epilogue(ends),
    )


def concat(program: Program, layer: Concat, ends: Ends) -> None:
    _join(program, layer, ends, [place.outputs if place else 0 for place in ends.fused.head.sources], 0)


def channel_pad(program: Program, layer: ChannelPad, ends: Ends) -> None:
    _join(program, layer, ends, [ends.shape[2]], layer.before)


def _join(program: Program, layer: Layer, ends: Ends, channels: Sequence[int], first: int) -> None:
    """Copy the channels of the inputs, one after the other, to ``first`` and on; the others stay 0."""
    native = program.native
    whole = ends.signal if not ends.fused.chain else None
    joined = whole
    if joined is None:
        joined = program.zeros((*ends.shape[:2], program.lanes(ends.fused.head.after[2])), np.float32)
    for number, count in enumerate(channels):
        target = joined[..., first : first + count]
        program.add_step(layer, native.COPY_CHANNELS, ends.insides[number], target, units=count)
        first += count
    if ends.fused.chain or ends.bits is not None:
        fields = program.epilogue(ends)
        if whole is not None:
            fields.pop("signal")  # it is there
        groups = bits.words_for(ends.fused.head.after[2])
        program.add_step(layer, native.SIGNAL, joined, ends.bits, groups=groups, **fields)


def binary_dense(program: Program, layer: BinaryDense, ends: Ends) -> None:
    _add_binary_dense(program, layer, ends.source, ends.target)


def output_dense(program: Program, layer: OutputDense, ends: Ends) -> None:
    program.add_step(
        layer,
        program.native.OUTPUT,
        ends.source,
        ends.logits,
        **_products(program, layer, ends.source),
        products=layer.fan_in,
        scale=program.keep(program.filled(layer.scale)),
        bias=program.keep(program.filled(layer.bias)),
    )


def output_bits(program: Program, layer: OutputBits, ends: Ends) -> None:
    words = program.zeros((1, 1, bits.words_for(layer.out_features)), np.uint32)
    _add_binary_dense(program, layer, ends.source, words)
    logits = program.filled(np.stack([layer.bias, layer.scale + layer.bias]))
    program.add_step(
        layer,
        program.native.OUTPUT_BITS,
        words,
        ends.logits,
        words=words.shape[2],
        table=program.keep(logits.T),
    )


#: How each kind of layer is laid out that is the first of a step.
LOWER: dict[type[Layer], Callable[[Program, Any, Ends], None]] = {
    Thermometer: thermometer,
    InputConv2d: input_conv2d,
    ScaledInputConv2d: scaled_input_conv2d,
    RealInputConv2d: real_input_conv2d,
    BinaryConv2d: binary_conv2d,
    ScaledBinaryConv2d: scaled_binary_conv2d,
    RealConv2d: real_conv2d,
    Affine: stored_signal,
    PRelu: stored_signal,
    Clip: stored_signal,
    Sign: stored_signal,
    Add: stored_signal,
    Concat: concat,
    ChannelPad: channel_pad,
    MaxPool: pool2d,
    BinaryMaxPool: binary_max_pool,
    AveragePool: pool2d,
    BinaryDense: binary_dense,
    OutputDense: output_dense,
    OutputBits: output_bits,
}

#: What each kind of layer is within a step, where it may follow another.
OPERATIONS: dict[type[Layer], Callable[[ModuleType], int]] = {
    Affine: lambda native: int(native.AFFINE),
    PRelu: lambda native: int(native.PRELU),
    Clip: lambda native: int(native.CLIP),
    Add: lambda native: int(native.ADD),
}


def _dots(
    program: Program, layer: Scaled, ends: Ends, base: NDArray[np.integer], wide: bool, shift: int
) -> dict[str, int]:
    """What follows the dot products ``(value << shift) + base``; base (patterns, filters)."""
    return {
        "wide": int(wide),
        "limits": program.keep(program.filled(base.astype(np.int32))),
        "shift": shift,
        **program.epilogue(ends, (layer.scale, layer.bias)),
    }


def _by_vector(layer: RealConv2d | RealInputConv2d, span: int = 0) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The weights of each vector of filters, over the channels that its filters' groups take.

    Args:
        layer: which.
        span: channels of a vector; 0 stands for as few as will do.

    Returns:
        weights: (vectors, LANES, kernel y, kernel x, span), 0 where a filter does not take a channel: that term changes
        no sum; starts: (vectors,) the first channel of each.
    """
    filter_index = np.arange(layer.out_channels)
    first = filter_index // (layer.out_channels // layer.groups) * layer.group_channels
    vector, lane = np.divmod(filter_index, bits.WORD_BITS)
    last = np.append(np.flatnonzero(np.diff(vector)), layer.out_channels - 1)
    starts = first[lane == 0]
    span = span or int((first[last] + layer.group_channels - starts).max())
    starts = np.minimum(starts, layer.in_channels - span)
    weights = np.zeros((len(starts), bits.WORD_BITS, *layer.kernel, span), layer.weights.dtype)
    channel = (first - starts[vector])[:, None] + np.arange(layer.group_channels)
    weights[vector[:, None], lane[:, None], :, :, channel] = np.moveaxis(layer.weights, 3, 1)
    return weights, starts


def _add_real_conv(
    program: Program,
    ends: Ends,
    kind: int,
    source: NDArray[Any],
    weights: NDArray[Any],
    starts: NDArray[np.intp],
    *fields: dict[str, int],
    pattern: NDArray[np.integer] | None = None,
) -> None:
    """A convolution with real weights, (vectors, ...), of vectors of filters that begin at channels ``starts``."""
    layer: Any = ends.fused.head.layer
    program.add_step(
        layer,
        kind,
        source,
        ends.bits,
        groups=len(weights),
        weights=program.keep(weights),
        starts=program.keep((starts * source.itemsize).astype(np.int32)),
        **program.windows(source, ends.fused.head.after, layer.stride, Pool(1, 1), pattern),
        **{name: value for more in fields for name, value in more.items()},
    )


def _pool_fields(layer: Pool2d, shape: Shape) -> dict[str, int]:
    top, left, _, _ = pads(layer.padding)
    return {
        "in_height": shape[0],
        "in_width": shape[1],
        "kernel_y": layer.kernel[0],
        "kernel_x": layer.kernel[1],
        "stride_y": layer.stride[0],
        "stride_x": layer.stride[1],
        "top": top,
        "left": left,
    }


#: What follows the values of a convolution: from an offset of them and whether they are int32 to fields of the step.
_Epilogue = Callable[[NDArray[Any], bool], "dict[str, int]"]


def _add_input_conv(program: Program, layer: OfPixels, ends: Ends, epilogue: _Epilogue) -> None:
    native = program.native
    # Signed levels are moved up into uint8, padding (level 0) likewise, and the limits with them.
    moved = 128 if layer.levels.min() < 0 else 0
    levels, inside = program.padded(ends.shape, pads(layer.padding), np.uint8, moved)
    table = program.keep((layer.levels + moved).astype(np.uint8))
    program.add_step(layer, native.LEVELS, ends.source, inside, table=table)
    signs = bits.signs(layer.weights, layer.in_channels)  # (filters, kernel y, kernel x, channels)
    excess = moved * signs.sum(axis=(1, 2, 3), dtype=np.int64)[None]
    units = program.pairs(levels, layer.kernel)
    program.add_step(
        layer,
        native.INPUT_CONV,
        levels,
        ends.bits,
        **units,
        **program.windows(levels, layer.conv_shape(ends.shape), layer.stride, layer.window),
        **{
            **program.weights(_pairs_by_unit(signs.astype(np.int8)), vectors=1),
            **epilogue(excess, units["units"] > native.PAIRS_IN_SHORT),
        },
    )


def _add_binary_conv(program: Program, layer: OfBits, ends: Ends, epilogue: _Epilogue) -> None:
    native = program.native
    row, column, correction = layer.border_correction(ends.shape)
    pattern = row[:, None] * correction.shape[1] + column
    correction = correction.reshape(-1, layer.out_channels)
    source = ends.padded(layer.padding)
    units = program.units(source, layer.kernel, layer.in_channels)
    program.add_step(
        layer,
        native.BINARY_CONV,
        source,
        ends.bits,
        **units,
        **program.windows(source, layer.conv_shape(ends.shape), layer.stride, layer.window, pattern),
        **{
            **program.weights(_bytes_by_unit(layer.weights, layer.in_channels), vectors=2),
            **epilogue(correction, units["units"] > native.UNITS_IN_SHORT),
        },
    )


def _add_binary_dense(
    program: Program, layer: BinaryDense, source: NDArray[Any], target: NDArray[Any]
) -> None:
    products = _products(program, layer, source)
    limits = _distance_limits(layer.threshold, layer.fan_in, np.zeros((1, layer.out_features), np.int32))
    program.add_step(
        layer,
        program.native.BINARY_CONV,
        source,
        target,
        **products,
        **program.windows(source, (1, 1, layer.out_features), (1, 1), Pool(1, 1)),
        **program.limits(limits, layer.flip, wide=products["units"] > program.native.UNITS_IN_SHORT),
    )


def _products(program: Program, layer: FullyConnected, source: NDArray[Any]) -> dict[str, int]:
    """Units and weights of a layer whose one window is its whole input."""
    height, width, channels = layer.in_shape
    weights = layer.weights.reshape(layer.out_features, height, width, -1)
    return {
        **program.units(source, (height, width), channels),
        **program.weights(_bytes_by_unit(weights, channels), vectors=2),
    }
