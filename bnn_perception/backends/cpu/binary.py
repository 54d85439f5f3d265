"""The binary net on the CPU: a model laid out as steps of :mod:`bnn_perception.native`, and the threads that run it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cpu.processor import device_name, thread_count
from bnn_perception.backends.protocol import BackendError, Device, StageTimer
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare
from bnn_perception.net import bits
from bnn_perception.net.model import (
    BinaryConv2d,
    BinaryDense,
    InputConv2d,
    Layer,
    Model,
    OutputBits,
    OutputDense,
    Pool,
    ResidualConv2d,
    Shape,
    Thermometer,
    WithResidual,
    iter_layers,
    reads_residual,
)

if TYPE_CHECKING:
    from types import ModuleType

#: Bytes that memory begins at a multiple of: a cache line.
ALIGNMENT = 64
#: Items of a step for each thread: what a thread that is held up leaves undone, the others take.
ITEMS_PER_THREAD = 4
#: Pixels of a convolution in one item at most, so that its words stay in the nearest cache.
PIXELS_PER_ITEM = 4096
#: Likewise of a convolution with a stream and a pool, which keeps 32 bits a filter where others keep one.
POOLED_STREAM_PIXELS_PER_ITEM = 128
#: Multiply-accumulates of a net for each thread that it pays off to wake: a desktop core does these in a third of a
#: millisecond, and to wake another takes about a tenth of one.
MACS_PER_THREAD = 100_000_000


class Program:
    """A model laid out as steps of :mod:`bnn_perception.native`, with the memory of its activations.

    Attributes:
        steps: (n,) ``native.STEP``; the addresses in it point into arrays that this object keeps.
        native: the compiled functions.
        step_layers: for each step the name of its layer.
        pixels: (height, width, channels) uint8, the input.
        outputs: of each layer, by name: (height, width, words) uint32, the last (out_features,) float32; of a stream
            that a shortcut reads, as ``<layer>.stream``: (height, width, channels) int32.
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
        source = self.pixels = self._zeros(model.input.shape, np.uint8)
        stream: NDArray[np.int32] | None = None
        for (layer, shape, out_shape), follower in zip(iter_layers(model), [*model.layers[1:], None]):
            if isinstance(layer, (OutputDense, OutputBits)):
                target = padded = self._zeros((1, 1, self._lanes(layer.out_features)), np.float32)
                self.outputs[layer.name] = target[0, 0, : layer.out_features]
            else:
                # Words outside the image stay 0, which stands for -1: the padding of the layer that follows.
                padding = follower.padding if isinstance(follower, BinaryConv2d) else (0, 0)
                words = bits.words_for(out_shape[2])
                padded, target = self._padded((out_shape[0], out_shape[1], words), padding, np.uint32)
                self.outputs[layer.name] = target
            before, stream = stream, None
            if reads_residual(follower):
                stream = self._zeros((*out_shape[:2], self._lanes(out_shape[2])), np.int32)
                self.outputs[f"{layer.name}.stream"] = stream[..., : out_shape[2]]
            self._add_layer(layer, shape, source, target, before, stream)
            source = padded
        self.steps = np.zeros(len(self._records), dtype=native.STEP)
        for index, record in enumerate(self._records):
            for field, value in record.items():
                self.steps[field][index] = value

    def layer_steps(self, name: str) -> NDArray[Any]:
        """The steps of one layer."""
        return self.steps[np.array([layer == name for layer in self.step_layers])]

    def _add_layer(
        self,
        layer: Layer,
        shape: Shape,
        source: NDArray[Any],
        target: NDArray[Any],
        before: NDArray[np.int32] | None,
        stream: NDArray[np.int32] | None,
    ) -> None:
        """Append the steps of a layer.

        Args:
            layer: which.
            shape: of its input.
            source: what it reads, padding included.
            target: what it writes.
            before: the stream that its shortcut reads, None where it has none.
            stream: where it keeps its own stream, None where nothing reads it.
        """
        native = self.native
        if isinstance(layer, Thermometer):
            table = self._keep(_thermometer_table(layer))
            self._add_step(layer, native.THERMOMETER, source, target, words=target.shape[2], table=table)
        elif isinstance(layer, InputConv2d):
            # Signed levels are moved up into uint8, padding (level 0) likewise, and the limits with them.
            moved = 128 if layer.levels.min() < 0 else 0
            levels, inside = self._padded(shape, layer.padding, np.uint8, moved)
            table = self._keep((layer.levels + moved).astype(np.uint8))
            self._add_step(layer, native.LEVELS, source, inside, table=table)
            signs = bits.signs(layer.weights, layer.in_channels)  # (filters, kernel y, kernel x, channels)
            excess = moved * signs.sum(axis=(1, 2, 3), dtype=np.int64)[None]
            units = self._pairs(levels, layer.kernel)
            wide = units["units"] > native.PAIRS_IN_SHORT
            if isinstance(layer, WithResidual):
                epilogue = self._stream(layer, -excess, wide, before, stream, shift=0)
            else:
                epilogue = self._limits(layer.threshold + excess, layer.flip, wide)
            self._add_step(
                layer,
                native.INPUT_CONV,
                levels,
                target,
                **units,
                **self._windows(levels, layer.conv_shape(shape), layer.stride, layer.pool),
                **self._weights(_pairs_by_unit(signs), vectors=1),
                **epilogue,
            )
        elif isinstance(layer, BinaryConv2d):
            row, column, correction = layer.border_correction(shape)
            pattern = row[:, None] * correction.shape[1] + column
            correction = correction.reshape(-1, layer.out_channels)
            units = self._units(source, layer.kernel, layer.in_channels)
            wide = units["units"] > native.UNITS_IN_SHORT
            if isinstance(layer, WithResidual):
                epilogue = self._stream(layer, layer.fan_in + correction, wide, before, stream, shift=1)
            else:
                epilogue = self._limits(_limits(layer.threshold, layer.fan_in, correction), layer.flip, wide)
            self._add_step(
                layer,
                native.BINARY_CONV,
                source,
                target,
                **units,
                **self._windows(source, layer.conv_shape(shape), layer.stride, layer.pool, pattern),
                **self._weights(_bytes_by_unit(layer.weights, layer.in_channels), vectors=2),
                **epilogue,
            )
        elif isinstance(layer, OutputBits):
            words = self._zeros((1, 1, bits.words_for(layer.out_features)), np.uint32)
            self._add_step(layer, native.BINARY_CONV, source, words, **self._dense(layer, source))
            logits = self._filled(np.stack([layer.bias, layer.scale + layer.bias]))
            self._add_step(
                layer,
                native.OUTPUT_BITS,
                words,
                target,
                words=words.shape[2],
                table=self._keep(logits.T),
            )
        elif isinstance(layer, BinaryDense):
            self._add_step(layer, native.BINARY_CONV, source, target, **self._dense(layer, source))
        else:
            self._add_step(
                layer,
                native.OUTPUT,
                source,
                target,
                **self._products(layer, source),
                products=layer.fan_in,
                scale=self._keep(self._filled(layer.scale)),
                bias=self._keep(self._filled(layer.bias)),
            )

    def _products(self, layer: BinaryDense | OutputDense, source: NDArray[Any]) -> dict[str, int]:
        """Units and weights of a layer whose one window is its whole input."""
        height, width, channels = layer.in_shape
        weights = layer.weights.reshape(layer.out_features, height, width, -1)
        return {
            **self._units(source, (height, width), channels),
            **self._weights(_bytes_by_unit(weights, channels), vectors=2),
        }

    def _dense(self, layer: BinaryDense, source: NDArray[Any]) -> dict[str, int]:
        products = self._products(layer, source)
        limits = _limits(layer.threshold, layer.fan_in, np.zeros((1, layer.out_features), np.int32))
        return {
            **products,
            **self._windows(source, (1, 1, layer.out_features), (1, 1), None),
            **self._limits(limits, layer.flip, wide=products["units"] > self.native.UNITS_IN_SHORT),
        }

    def _add_step(
        self, layer: Layer, kind: int, source: NDArray[Any], target: NDArray[Any], **fields: int
    ) -> None:
        """Append a step from one array of pixels to another, cut into items for the threads."""
        out_height, out_width = target.shape[:2]
        groups = fields.get("groups", 1)
        pool_stride, pool_size = fields.get("pool_stride", 1), fields.get("pool_size", 1)
        conv_width = fields.get("width", out_width)
        stream, pooled = "stream" in fields, pool_size > 1 or pool_stride > 1
        limit = POOLED_STREAM_PIXELS_PER_ITEM if stream and pooled else PIXELS_PER_ITEM
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
        kept = pixels if pooled or not stream else 0
        self.scratch_bytes = max(self.scratch_bytes, self.native.scratch_bytes(kept, stream))

    def _windows(
        self,
        source: NDArray[Any],
        conv_shape: Shape,
        stride: tuple[int, int],
        pool: Pool | None,
        pattern: NDArray[np.integer] | None = None,
    ) -> dict[str, int]:
        """Where the windows lie.

        Args:
            source: array of pixels.
            conv_shape: of the integers before the pool.
            stride, pool: of the layer.
            pattern: for each window the index of its limits; None where all have the same.
        """
        pool = pool or Pool(1, 1)
        y, x = np.arange(conv_shape[0])[:, None], np.arange(conv_shape[1])
        windows = np.zeros((conv_shape[0], conv_shape[1], 2), np.int32)
        windows[..., 0] = y * stride[0] * source.strides[0] + x * stride[1] * source.strides[1]
        if pattern is not None:
            windows[..., 1] = pattern
        return {
            "width": conv_shape[1],
            "windows": self._keep(windows),
            "pool_size": pool.size,
            "pool_stride": pool.stride,
        }

    def _units(self, source: NDArray[Any], kernel: tuple[int, int], channels: int) -> dict[str, int]:
        """The bytes of a window that hold channels, as distances from its first one."""
        y, x = np.arange(kernel[0])[:, None, None], np.arange(kernel[1])[:, None]
        return self._offsets(y * source.strides[0] + x * source.strides[1] + np.arange(_bytes_for(channels)))

    def _pairs(self, source: NDArray[np.uint8], kernel: tuple[int, int]) -> dict[str, int]:
        """The pairs of bytes that cover each row of a window; the last may reach beyond it."""
        y, first = np.arange(kernel[0])[:, None], np.arange(0, kernel[1] * source.strides[1], 2)
        return self._offsets(y * source.strides[0] + first)

    def _offsets(self, offsets: NDArray[np.integer]) -> dict[str, int]:
        return {"units": offsets.size, "offsets": self._keep(offsets.astype(np.int32))}

    def _weights(self, by_unit: NDArray[Any], vectors: int) -> dict[str, int]:
        """(units, filters, ...) -> the weights of one group of ``vectors`` after those of another."""
        by_filter = self._filled(np.moveaxis(by_unit, 1, -1))
        size = vectors * self.native.LANES
        groups = [
            np.moveaxis(by_filter[..., first : first + size], -1, 1).reshape(-1)
            for first in range(0, by_filter.shape[-1], size)
        ]
        return {
            "words": bits.words_for(by_unit.shape[1]),
            "vectors": vectors,
            "groups": len(groups),
            "weights": self._keep(np.concatenate(groups)),
        }

    def _limits(self, limits: NDArray[np.integer], flip: NDArray[np.bool_], wide: bool) -> dict[str, int]:
        """(patterns, filters) -> what values must reach.

        Values never come near the ends of their type, so that limits which do not fit may be moved there. Spare
        filters never reach theirs and their bits are 0.
        """
        dtype = np.dtype(np.int32 if wide else np.int16)
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        clipped = self._filled(np.clip(limits, low, high).astype(dtype), high)
        return {"wide": int(wide), "limits": self._keep(clipped), "flip": self._keep(bits.pack(flip))}

    def _stream(
        self,
        layer: WithResidual,
        base: NDArray[np.integer],
        wide: bool,
        before: NDArray[np.int32] | None,
        stream: NDArray[np.int32] | None,
        shift: int,
    ) -> dict[str, int]:
        """What follows the values of a layer with a stream; the arrays as :meth:`_add_layer` says.

        Spare filters have multipliers of 0 and at most a channel's shortcut: a stream no larger than a channel can
        have, which never reaches ``bits.NEVER``, so that their bits are 0.

        Args:
            base, shift: of dot products, ``(value << shift) + base``; base (patterns, filters).
        """
        arrays = (layer.multiplier, layer.negative_multiplier, layer.offset)
        by_word = [
            *(self._filled(array) for array in arrays),
            self._filled(layer.threshold, bits.NEVER),
        ]
        fields = {
            "wide": int(wide),
            "limits": self._keep(self._filled(base.astype(np.int32))),
            "shift": shift,
            "flip": self._keep(bits.pack(layer.flip)),
            "stream": self._keep(np.stack([a.reshape(-1, self.native.LANES) for a in by_word], axis=1)),
        }
        if stream is not None:
            fields.update(kept=stream.ctypes.data, kept_row=stream.strides[0], kept_pixel=stream.strides[1])
        if before is not None:
            assert isinstance(layer, ResidualConv2d)
            first = np.arange(0, self._lanes(layer.out_channels), self.native.LANES) % layer.in_channels
            repeats = layer.out_channels > layer.in_channels
            within_word = repeats and layer.in_channels % self.native.LANES != 0
            fields.update(
                shortcut=before.ctypes.data,
                shortcut_row=before.strides[0],
                shortcut_pixel=before.strides[1],
                shortcut_first=self._keep(first.astype(np.int32)),
                shortcut_period=layer.in_channels if within_word else 0,
                shortcut_average=int(layer.shortcut == "average_pool"),
            )
        return fields

    def _lanes(self, filters: int) -> int:
        """Lanes of the vectors that hold ``filters``."""
        return bits.words_for(filters) * int(self.native.LANES)

    def _filled(self, values: NDArray[Any], spare: int = 0) -> NDArray[Any]:
        """(..., filters) -> (..., lanes)."""
        filled = np.full((*values.shape[:-1], self._lanes(values.shape[-1])), spare, dtype=values.dtype)
        filled[..., : values.shape[-1]] = values
        return filled

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        array = aligned_zeros(shape, dtype)
        self._kept.append(array)
        return array

    def _padded(
        self, shape: Shape, padding: tuple[int, int], dtype: Any, value: int = 0
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """An array with a border of ``padding`` around ``shape``, full of ``value``, and the view of its inside."""
        (height, width, depth), (pad_y, pad_x) = shape, padding
        padded = self._zeros((height + 2 * pad_y, width + 2 * pad_x, depth), dtype)
        padded[...] = value
        return padded, padded[pad_y : pad_y + height, pad_x : pad_x + width]

    def _keep(self, values: NDArray[Any]) -> int:
        """The address of a copy of ``values`` that lives as long as this object."""
        array = self._zeros(values.shape, values.dtype)
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


def _limits(threshold: NDArray[np.int32], fan_in: int, correction: NDArray[np.int32]) -> NDArray[np.int64]:
    """The limits of minus the disagreements (see :mod:`bnn_perception.native`): (patterns, filters)."""
    return -((fan_in + correction.astype(np.int64) - threshold) // 2)


def _thermometer_table(layer: Thermometer) -> NDArray[np.uint32]:
    """(channels, 256, words): the bits that each value of each channel sets."""
    reached = np.arange(256)[None, :, None] >= layer.thresholds[:, None, :]  # (channels, values, levels)
    code = np.zeros((layer.channels, 256, layer.channels, layer.levels), dtype=bool)
    for channel in range(layer.channels):
        code[channel, :, channel] = reached[channel]
    return bits.pack(code.reshape(layer.channels, 256, -1))


class CpuBinaryBackend:
    """Evaluates a binary model on the CPU, one frame after another, each on all threads.

    The calling thread is one of the threads. The others sleep outside the interpreter, so that they never need
    its lock, and are woken once a frame; a frame does not wait for one that is late. Two backends share nothing and
    may run at the same time.
    """

    name = "cpu_binary"
    is_float = False
    device: Device = "cpu"

    def __init__(self, model: Model, threads: int = 0) -> None:
        """Lay out the model, start the threads and evaluate a black frame, so that no frame pays for compilation.

        Args:
            model: to evaluate.
            threads: to run on, 0 for as many as pay off.

        Raises:
            BackendError: where numba is missing.
        """
        try:
            from bnn_perception import native
        except ImportError as error:
            raise BackendError(
                f"backend binary needs numba on the CPU ({error}); pip install numba"
            ) from None
        work = sum(layer.macs(shape) for layer, shape, _ in iter_layers(model))
        threads = thread_count(threads, useful=1 + work // MACS_PER_THREAD)
        self.model = model
        self.device_name = device_name(threads)
        self.times: dict[str, float] = {}
        self.program = Program(model, threads, native)
        self.workers = Workers(self.program, self.program.steps, threads)
        self._finalizer = weakref.finalize(self, self.workers.stop)
        height, width, _ = model.input.shape
        self.logits([Frame(np.zeros((height, width, 3), np.uint8))])

    def logits(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        self.times = {"preprocess": 0.0, "inference": 0.0}
        rows = np.empty((len(frames), len(self.model.labels)), np.float32)
        for frame, row in zip(frames, rows):
            row[:] = self._evaluate(frame)
        return rows

    def activations(self, frame: Frame) -> Iterator[tuple[str, NDArray[Any]]]:
        self._evaluate(frame)
        yield "input", self.program.pixels.copy()
        for name, output in self.program.outputs.items():
            yield name, output.copy()

    def close(self) -> None:
        self._finalizer()

    def _evaluate(self, frame: Frame) -> NDArray[np.float32]:
        if not self._finalizer.alive:
            raise BackendError("the backend is closed")
        timer = StageTimer()
        prepare(frame, self.model.input, out=self.program.pixels)
        timer.mark("preprocess")
        self.workers.evaluate()
        timer.mark("inference")
        for stage, milliseconds in timer.milliseconds.items():
            self.times[stage] = self.times.get(stage, 0.0) + milliseconds
        return self.program.outputs[self.model.layers[-1].name]


class Workers:
    """The threads that run steps of a program: the one that calls, and its helpers."""

    def __init__(self, program: Program, steps: NDArray[Any], threads: int) -> None:
        """Start the helpers.

        Args:
            program: owns the memory that the steps refer to.
            steps: all of them, or those of some layers.
            threads: to run on, the caller's included.
        """
        native = program.native
        self._native = native
        self._program = program
        self._steps = np.ascontiguousarray(steps)
        self._state = aligned_zeros((native.state_bytes(len(steps)),), np.uint8)
        self._address = self._state.ctypes.data
        native.open_state(self._address)
        self._scratch = [aligned_zeros((program.scratch_bytes,), np.uint8) for _ in range(threads)]
        # Daemons, so that an interpreter which ends without close() does not wait for them.
        self._helpers = [
            threading.Thread(target=self._run, args=(index, True), name=f"cpu_binary {index}", daemon=True)
            for index in range(1, threads)
        ]
        for helper in self._helpers:
            helper.start()

    def _run(self, thread: int, helper: bool) -> None:
        self._native.evaluate(self._steps, self._address, self._scratch[thread].ctypes.data, helper)

    def evaluate(self) -> None:
        """Run the steps once."""
        self._run(0, False)

    def stop(self) -> None:
        """End the helpers and wait for them."""
        self._native.close_state(self._address)
        for helper in self._helpers:
            helper.join()
