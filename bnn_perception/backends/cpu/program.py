"""A model laid out as steps of :mod:`bnn_perception.native`: one function for each kind of layer, in :data:`LOWER`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net import bits
from bnn_perception.net.layer import Layer, Pool, Shape
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    FullyConnected,
    InputConv2d,
    InputResidualConv2d,
    OutputBits,
    OutputDense,
    ResidualConv2d,
    Thermometer,
    WithResidual,
)
from bnn_perception.net.model import Model, iter_layers

if TYPE_CHECKING:
    from types import ModuleType

#: Bytes that memory begins at a multiple of: a cache line.
ALIGNMENT = 64
#: Items of a step for each thread: what a thread that is held up leaves undone, the others take.
ITEMS_PER_THREAD = 4
#: Pixels of a convolution in one item at most, so that its words stay in the nearest cache.
PIXELS_PER_ITEM = 4096
#: The same where a residual follows a pool: such a convolution keeps 32 bits a filter where others keep one.
POOLED_RESIDUAL_PIXELS_PER_ITEM = 128


@dataclass(frozen=True)
class Ends:
    """What a layer reads and writes.

    Attributes:
        shape: of its input.
        source: its input, with the border that it reads around it.
        target: its output.
        before: the residual of the layer before, None where that keeps none.
        residual: where it keeps its own residual, None where nothing reads it.
    """

    shape: Shape
    source: NDArray[Any]
    target: NDArray[Any]
    before: NDArray[np.int32] | None
    residual: NDArray[np.int32] | None


class Program:
    """A model laid out as steps of :mod:`bnn_perception.native`, with the memory of its activations.

    Attributes:
        steps: (n,) ``native.STEP``; the addresses in it point into arrays that this object keeps.
        native: the compiled functions.
        step_layers: for each step the name of its layer.
        pixels: (height, width, channels) uint8, the input.
        outputs: of each layer, by name: (height, width, words) uint32, the last (out_features,) float32; of a residual
            that a shortcut reads, as ``<layer>.residual``: (height, width, channels) int32.
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
        source = self.pixels = self.zeros(model.input.shape, np.uint8)
        before: NDArray[np.int32] | None = None
        for place in iter_layers(model):
            layer, after = place.layer, place.after
            if layer.gives == "logits":
                target = padded = self.zeros((1, 1, self.lanes(layer.outputs)), np.float32)
                self.outputs[layer.name] = target[0, 0, : layer.outputs]
            else:
                # Words outside the image stay 0, which stands for -1: the padding of the layer that follows.
                border = (0, 0) if place.following is None else place.following.border
                padded, target = self.padded((*after[:2], bits.words_for(after[2])), border, np.uint32)
                self.outputs[layer.name] = target
            residual: NDArray[np.int32] | None = None
            if place.residual_is_read:
                residual = self.zeros((*after[:2], self.lanes(after[2])), np.int32)
                self.outputs[f"{layer.name}.residual"] = residual[..., : after[2]]
            LOWER[type(layer)](self, layer, Ends(place.before, source, target, before, residual))
            source, before = padded, residual
        self.steps = np.zeros(len(self._records), dtype=native.STEP)
        for index, record in enumerate(self._records):
            for field, value in record.items():
                self.steps[field][index] = value

    def layer_steps(self, name: str) -> NDArray[Any]:
        """The steps of one layer."""
        return self.steps[np.array([layer == name for layer in self.step_layers])]

    def add_step(
        self, layer: Layer, kind: int, source: NDArray[Any], target: NDArray[Any], **fields: int
    ) -> None:
        """Append a step from one array of pixels to another, cut into items for the threads."""
        out_height, out_width = target.shape[:2]
        groups = fields.get("groups", 1)
        pool_stride, pool_size = fields.get("pool_stride", 1), fields.get("pool_size", 1)
        conv_width = fields.get("width", out_width)
        residual, pooled = "scales" in fields, pool_size > 1 or pool_stride > 1
        limit = POOLED_RESIDUAL_PIXELS_PER_ITEM if residual and pooled else PIXELS_PER_ITEM
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
                "target": target.ctypes.data,
                "target_row": target.strides[0],
                "target_pixel": target.strides[1],
                "out_height": out_height,
                "out_width": out_width,
                **fields,
            }
        )
        self.step_layers.append(layer.name)
        pixels = ((rows - 1) * pool_stride + pool_size) * conv_width
        held = pixels if pooled or not residual else 0
        self.scratch_bytes = max(self.scratch_bytes, self.native.scratch_bytes(held, residual))

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
        windows = np.zeros((conv_shape[0], conv_shape[1], 2), np.int32)
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

    def pairs(self, source: NDArray[np.uint8], kernel: tuple[int, int]) -> dict[str, int]:
        """The pairs of bytes that cover each row of a window; the last may reach beyond it."""
        y, first = np.arange(kernel[0])[:, None], np.arange(0, kernel[1] * source.strides[1], 2)
        return self.offsets(y * source.strides[0] + first)

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

    def residual(
        self, layer: WithResidual, base: NDArray[np.integer], wide: bool, ends: Ends, shift: int
    ) -> dict[str, int]:
        """What follows the values of a layer with a residual.

        Spare filters have multipliers of 0 and at most a channel's shortcut: a residual no larger than a channel can
        have, which never reaches ``bits.NEVER``, so that their bits are 0.

        Args:
            layer: which.
            base, shift: of dot products, ``(value << shift) + base``; base (patterns, filters).
            wide: whether values are int32.
            ends: where its residual goes and where its shortcut comes from.
        """
        arrays = (layer.multiplier, layer.negative_multiplier, layer.offset)
        by_word = [*(self.filled(array) for array in arrays), self.filled(layer.threshold, bits.NEVER)]
        fields = {
            "wide": int(wide),
            "limits": self.keep(self.filled(base.astype(np.int32))),
            "shift": shift,
            "flip": self.keep(bits.pack(layer.flip)),
            "scales": self.keep(np.stack([a.reshape(-1, self.native.LANES) for a in by_word], axis=1)),
        }
        if ends.residual is not None:
            fields.update(
                residual=ends.residual.ctypes.data,
                residual_row=ends.residual.strides[0],
                residual_pixel=ends.residual.strides[1],
            )
        if layer.reads_residual:
            assert ends.before is not None  # or it would be no Model
            first = np.arange(0, self.lanes(layer.out_channels), self.native.LANES) % layer.in_channels
            repeats = layer.out_channels > layer.in_channels
            within_word = repeats and layer.in_channels % self.native.LANES != 0
            fields.update(
                shortcut=ends.before.ctypes.data,
                shortcut_row=ends.before.strides[0],
                shortcut_pixel=ends.before.strides[1],
                shortcut_first=self.keep(first.astype(np.int32)),
                shortcut_period=layer.in_channels if within_word else 0,
                shortcut_average=int(layer.added_shortcut == "average_pool"),
            )
        return fields

    def lanes(self, filters: int) -> int:
        """Lanes of the vectors that hold ``filters``."""
        return bits.words_for(filters) * int(self.native.LANES)

    def filled(self, values: NDArray[Any], spare: int = 0) -> NDArray[Any]:
        """(..., filters) -> (..., lanes)."""
        filled = np.full((*values.shape[:-1], self.lanes(values.shape[-1])), spare, dtype=values.dtype)
        filled[..., : values.shape[-1]] = values
        return filled

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        array = aligned_zeros(shape, dtype)
        self._kept.append(array)
        return array

    def padded(
        self, shape: Shape, padding: tuple[int, int], dtype: Any, value: int = 0
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """An array with a border of ``padding`` around ``shape``, full of ``value``, and the view of its inside."""
        (height, width, depth), (pad_y, pad_x) = shape, padding
        padded = self.zeros((height + 2 * pad_y, width + 2 * pad_x, depth), dtype)
        padded[...] = value
        return padded, padded[pad_y : pad_y + height, pad_x : pad_x + width]

    def keep(self, values: NDArray[Any]) -> int:
        """The address of a copy of ``values`` that lives as long as this object."""
        array = self.zeros(values.shape, values.dtype)
        array[...] = values
        return int(array.ctypes.data)


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin at a cache line."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def _bytes_for(channels: int) -> int:
    """Bytes of a pixel that hold channels."""
    return -(-channels // 8)


def _bytes_by_unit(weights: NDArray[np.uint32], channels: int) -> NDArray[np.uint8]:
    """(filters, kernel y, kernel x, words) -> (units, filters) uint8; bytes without channels are left out."""
    as_bytes = np.ascontiguousarray(weights, dtype="<u4").view(np.uint8)[..., : _bytes_for(channels)]
    return np.ascontiguousarray(as_bytes.reshape(len(weights), -1).T)


def _pairs_by_unit(signs: NDArray[np.int32]) -> NDArray[np.int8]:
    """(filters, kernel y, kernel x, channels) +-1 -> (units, filters, 2), 0 where a pair reaches beyond its row."""
    rows = signs.reshape(*signs.shape[:2], -1)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, rows.shape[2] % 2)))
    return np.moveaxis(rows.reshape(len(signs), -1, 2), 0, 1).astype(np.int8)


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


def input_residual_conv2d(program: Program, layer: InputResidualConv2d, ends: Ends) -> None:
    _add_input_conv(
        program, layer, ends, lambda excess, wide: program.residual(layer, -excess, wide, ends, shift=0)
    )


def binary_conv2d(program: Program, layer: BinaryConv2d, ends: Ends) -> None:
    _add_binary_conv(
        program,
        layer,
        ends,
        lambda correction, wide: program.limits(
            _distance_limits(layer.threshold, layer.fan_in, correction), layer.flip, wide
        ),
    )


def residual_conv2d(program: Program, layer: ResidualConv2d, ends: Ends) -> None:
    _add_binary_conv(
        program,
        layer,
        ends,
        lambda correction, wide: program.residual(layer, layer.fan_in + correction, wide, ends, shift=1),
    )


def binary_dense(program: Program, layer: BinaryDense, ends: Ends) -> None:
    _add_binary_dense(program, layer, ends.source, ends.target)


def output_dense(program: Program, layer: OutputDense, ends: Ends) -> None:
    program.add_step(
        layer,
        program.native.OUTPUT,
        ends.source,
        ends.target,
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
        ends.target,
        words=words.shape[2],
        table=program.keep(logits.T),
    )


#: How each kind of layer is laid out.
LOWER: dict[type[Layer], Callable[[Program, Any, Ends], None]] = {
    Thermometer: thermometer,
    InputConv2d: input_conv2d,
    InputResidualConv2d: input_residual_conv2d,
    BinaryConv2d: binary_conv2d,
    ResidualConv2d: residual_conv2d,
    BinaryDense: binary_dense,
    OutputDense: output_dense,
    OutputBits: output_bits,
}


#: What follows the values of a convolution: from an offset of them and whether they are int32 to fields of the step.
_Epilogue = Callable[[NDArray[Any], bool], "dict[str, int]"]


def _add_input_conv(program: Program, layer: InputConv2d, ends: Ends, epilogue: _Epilogue) -> None:
    native = program.native
    # Signed levels are moved up into uint8, padding (level 0) likewise, and the limits with them.
    moved = 128 if layer.levels.min() < 0 else 0
    levels, inside = program.padded(ends.shape, layer.padding, np.uint8, moved)
    table = program.keep((layer.levels + moved).astype(np.uint8))
    program.add_step(layer, native.LEVELS, ends.source, inside, table=table)
    signs = bits.signs(layer.weights, layer.in_channels)  # (filters, kernel y, kernel x, channels)
    excess = moved * signs.sum(axis=(1, 2, 3), dtype=np.int64)[None]
    units = program.pairs(levels, layer.kernel)
    program.add_step(
        layer,
        native.INPUT_CONV,
        levels,
        ends.target,
        **units,
        **program.windows(levels, layer.conv_shape(ends.shape), layer.stride, layer.window),
        **program.weights(_pairs_by_unit(signs), vectors=1),
        **epilogue(excess, units["units"] > native.PAIRS_IN_SHORT),
    )


def _add_binary_conv(program: Program, layer: BinaryConv2d, ends: Ends, epilogue: _Epilogue) -> None:
    native = program.native
    row, column, correction = layer.border_correction(ends.shape)
    pattern = row[:, None] * correction.shape[1] + column
    correction = correction.reshape(-1, layer.out_channels)
    units = program.units(ends.source, layer.kernel, layer.in_channels)
    program.add_step(
        layer,
        native.BINARY_CONV,
        ends.source,
        ends.target,
        **units,
        **program.windows(ends.source, layer.conv_shape(ends.shape), layer.stride, layer.window, pattern),
        **program.weights(_bytes_by_unit(layer.weights, layer.in_channels), vectors=2),
        **epilogue(correction, units["units"] > native.UNITS_IN_SHORT),
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
