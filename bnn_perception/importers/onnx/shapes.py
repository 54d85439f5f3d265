"""Nodes that move, pad, average or repeat the numbers of a signal, convert them, or leave them as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.builder import LOWEST, LayerBuilder
from bnn_perception.importers.fold.picked import Picked, places
from bnn_perception.importers.fold.signal import Signal, exact, is_float
from bnn_perception.importers.onnx.node import FLOATS, Node
from bnn_perception.net.checks import MAX_INPUTS


def keep(node: Node[Signal]) -> Signal:
    return node.signal


def shape(node: Node[Signal]) -> NDArray[np.int64]:
    part = slice(node.attribute("start", 0), node.attribute("end", None))
    return np.asarray(node.signal.shape[part], dtype=np.int64)


def cast(node: Node[Signal]) -> Signal:
    """The signal in numbers of another type, which must hold them exactly; floats count as rational numbers."""
    from onnx import helper

    signal, to = node.signal, node.attribute("to", FLOATS[0])
    dtype = helper.tensor_dtype_to_np_dtype(to)
    if to in FLOATS or dtype == signal.dtype:
        return replace(signal, dtype=dtype)
    if dtype.kind not in "iu":
        raise RefusalError(f"casts to {dtype.name}")
    if is_float(signal.dtype):
        low, high = signal.offset - signal.scale, signal.offset + signal.scale
        if signal.kind != "signs" or any(value.denominator != 1 for value in (*low, *high)):
            raise RefusalError("casts to integers")
    return replace(signal, dtype=dtype).in_range()


def dropout(node: Node[Signal]) -> Signal:
    if np.any(node.option(2, np.zeros(()))):
        raise RefusalError("is in training mode; export the net in evaluation mode")
    return node.signal


def pad(node: Node[Signal], layers: LayerBuilder) -> Signal:
    signal = node.signal
    if node.opset < 11:
        pads, value = list(node.attribute("pads", [])), np.asarray(node.attribute("value", 0.0))
    else:
        pads, value = [int(p) for p in node.constant(1).reshape(-1)], node.option(2, np.zeros(()))
    if node.attribute("mode", b"constant") != b"constant":
        raise RefusalError("only constant padding can be expressed")
    rank = len(signal.shape)
    axes = _normalized(node.option(3, np.arange(rank)).reshape(-1).tolist(), rank)
    if len(pads) != 2 * len(axes):
        raise RefusalError(f"has {len(pads)} pads for {len(axes)} axes")
    if not any(pads):
        return signal
    if min(pads) < 0:
        raise RefusalError("crops; only whole maps can be expressed")
    around = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    by_axis = {name: around.get(number + 1, (0, 0)) for number, name in enumerate(signal.axes)}
    outside = LOWEST if np.all(np.isneginf(value)) else exact(value).item()
    at = by_axis.pop("C", (0, 0))
    (top, bottom), (left, right) = by_axis.pop("H", (0, 0)), by_axis.pop("W", (0, 0))
    if signal.flat or any(map(any, by_axis.values())) or any(around.get(0, (0, 0))):
        raise RefusalError(f"pads {pads} are not of channels, height and width alone")
    if any(at):
        if outside != 0 or any((top, left, bottom, right)):
            raise RefusalError("pads channels with other numbers than 0, or height and width with them")
        return layers.pad_channels(signal, *at)
    if signal.kind not in ("pixels", "signs"):
        signal = layers.value(signal)
    return replace(signal, pad=((top, left, bottom, right), outside))


def strided(node: Node[Signal], layers: LayerBuilder) -> Signal:
    """Every n-th pixel, as shortcuts without weights take them, or a range of channels."""
    signal = node.signal
    rank = len(signal.shape)
    if node.opset < 10:
        starts, ends = node.attribute("starts", []), node.attribute("ends", [])
        axes, steps = node.attribute("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = ([int(v) for v in node.constant(i).reshape(-1)] for i in (1, 2))
        axes = [int(v) for v in node.option(3, np.arange(len(starts))).reshape(-1)]
        steps = [int(v) for v in node.option(4, np.ones(len(starts), np.int64)).reshape(-1)]
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise RefusalError(f"has {len(starts)} starts, {len(ends)} ends and the steps {steps}")
    ranges = [range(size) for size in signal.shape]
    for axis, start, end, step in zip(_normalized(axes, rank), starts, ends, steps):
        ranges[axis] = ranges[axis][start:end:step]
    if not all(ranges):
        raise RefusalError("leaves nothing")
    by_axis = dict(zip(signal.axes, ranges[1:]))
    is_map = (
        ranges[0] == range(1)
        and signal.order is None
        and not signal.flat
        and sorted(signal.axes) == ["C", "H", "W"]
    )
    if signal.kind not in ("pixels", "signs") and is_map:
        rows, columns, channels = by_axis["H"], by_axis["W"], by_axis["C"]
        whole = all(
            part == range(0, signal.sizes[axis], part.step) for axis, part in by_axis.items() if axis != "C"
        )
        if whole and channels.step == 1 and min(rows.step, columns.step) > 0:
            if (rows.step, columns.step) != (1, 1):
                stride = rows.step, columns.step
                signal = layers.average(signal, (1, 1), stride, (0, 0, 0, 0), counts_padding=True)
            if channels == range(signal.sizes["C"]):
                return signal
            return layers.channels(signal, channels.start, channels.stop)
    return _moved(signal, layers, places(signal)[np.ix_(*ranges)])


def gather(node: Node[Signal], layers: LayerBuilder) -> Signal:
    """Channels, rows or columns by their numbers."""
    signal, index = node.signal, node.constant(1)
    (axis,) = _normalized([node.attribute("axis", 0)], len(signal.shape))
    if node.op == "GatherND" and index.shape[1:] == (1,) and node.attribute("batch_dims", 0) == 0:
        index = index[:, 0]  # of the first axis
    if index.ndim > 1 or index.dtype.kind not in "iu":
        raise RefusalError(f"takes numbers by {list(index.shape)} of them; a row can be expressed")
    order = places(signal)
    layers.check_moved(order.size // order.shape[axis] * index.size)
    return _moved(signal, layers, order.take(index, axis=axis))


def expand(node: Node[Signal]) -> Signal:
    asked = tuple(int(size) for size in node.constant(1).reshape(-1))
    if asked and asked[0] == node.batch:
        asked = (1, *asked[1:])
    shape = node.signal.shape
    if len(asked) > len(shape) or any(a not in (1, s) for a, s in zip(asked[::-1], shape[::-1])):
        raise RefusalError(f"spreads {list(shape)} to {list(asked)}")
    return node.signal


def _moved(signal: Signal, layers: LayerBuilder, order: NDArray[np.int32]) -> Signal:
    """The numbers of a signal in another order; of sums, those of the layer that gives them."""
    if signal.pad is not None:
        raise RefusalError("stands between a Pad and its Conv")
    kept = signal if signal.kind in ("pixels", "signs") else layers.value(signal)
    return layers.moved(kept, order)


# -- the axes


def transpose(node: Node[Signal], layers: LayerBuilder) -> Signal:
    signal = node.signal
    permutation = node.attribute("perm", list(range(len(signal.shape)))[::-1])
    if sorted(permutation) != list(range(len(signal.shape))):
        raise RefusalError(f"its permutation {list(permutation)} is not one of {len(signal.shape)} axes")
    if signal.pixel and permutation[0] == 0:
        return _pixel(signal, "".join(signal.pixel[axis - 1] for axis in permutation[1:]))
    if permutation[0] != 0 or signal.order is not None or signal.flat or "L" in signal.axes:
        return _moved(signal, layers, places(signal).transpose(permutation))
    moved = "".join(signal.axes[axis - 1] for axis in permutation[1:])
    return replace(signal, axes=moved)


def flatten(node: Node[Signal], layers: LayerBuilder) -> Signal:
    shape = node.signal.shape
    if node.attribute("axis", 1) not in (1, 1 - len(shape)):
        raise RefusalError("does not flatten to (N, features)")
    return reshaped(node.signal, layers, (1, math.prod(shape)))


def squeeze(node: Node[Signal], layers: LayerBuilder) -> Signal:
    shape = node.signal.shape
    axes = _axes(node, len(shape))
    if not axes or 0 in axes:
        raise RefusalError(
            "squeezes the axis of the batch as well; flatten to (N, features) before the export"
        )
    if any(shape[axis] != 1 for axis in axes):
        raise RefusalError(f"squeezes axes {sorted(axes)} of {list(shape)}, not all of one element")
    return reshaped(node.signal, layers, tuple(size for axis, size in enumerate(shape) if axis not in axes))


def reshape(node: Node[Signal], layers: LayerBuilder) -> Signal:
    signal = node.signal
    asked = [int(size) for size in node.constant(1).reshape(-1)]
    if node.attribute("allowzero", 0) and 0 in asked:
        raise RefusalError("makes a tensor without numbers")
    if asked and asked[0] == node.batch:
        asked[0] = 1
    kept = [signal.shape[i] if size == 0 and i < len(signal.shape) else size for i, size in enumerate(asked)]
    total = math.prod(signal.shape)
    if kept.count(-1) == 1:
        known = -math.prod(kept)
        kept[kept.index(-1)] = total // known if known else 0
    if math.prod(kept) != total:
        raise RefusalError(f"reshapes {list(signal.shape)} to {asked}")
    return reshaped(signal, layers, tuple(kept))


def reshaped(signal: Signal, layers: LayerBuilder, shape: tuple[int, ...]) -> Signal:
    """A signal in a shape of as many numbers, in their order."""
    total = math.prod(shape)
    if shape == signal.shape:
        return signal
    if signal.order is not None:
        if shape != (1, total) or Picked.of_signal(signal) is None:
            return _moved(signal, layers, signal.order.reshape(shape))
        signal = layers.settled(signal)  # a matrix takes the whole map
    if shape == (1, total):
        return _flat(signal)
    # Axes of one element may stand anywhere.
    if len(shape) == 4 and "L" not in signal.axes:
        long = [name for name in signal.axes if signal.sizes[name] > 1]
        for axes in ("CHW", "HWC"):
            sizes = dict(zip(axes, shape[1:]))
            kept_order = [name for name in axes if sizes[name] > 1] == long
            if kept_order and all(sizes[name] == signal.sizes[name] for name in long):
                return replace(signal, axes=axes, flat=False, pixel="")
        for axes, whole in (("CHW", (1, total, 1, 1)), ("HWC", (1, 1, 1, total))):
            if shape == whole:
                return _pixel(signal, axes)
    if signal.axes == "CLHW" and shape == (1, signal.shape[1] * signal.shape[2], *signal.shape[3:]):
        return replace(signal, axes="CHW", sizes={"C": shape[1], "H": shape[2], "W": shape[3]})
    return _moved(signal, layers, places(signal).reshape(shape))


def unsqueeze(node: Node[Signal]) -> Signal:
    signal = node.signal
    # A matrix of features as a map of one pixel, for a batch norm of maps, say.
    if len(signal.shape) == 2:
        rank = 2 + len(node.constant(1).reshape(-1) if len(node.inputs) > 1 else node.attribute("axes", []))
        axes = _axes(node, rank)
        is_pixel = all(signal.sizes[axis] == 1 for axis in "HW")
        if rank == 3 and axes == [2] and is_pixel:
            return replace(signal, flat=False, axes="CW")
        for order, places in (("CHW", [2, 3]), ("HWC", [1, 2])):
            if rank == 4 and sorted(axes) == places:
                return replace(signal, flat=False, axes=order) if is_pixel else _pixel(signal, order)
    if signal.kind != "pixels" or signal.axes != "CHW" or _axes(node, 5) != [2]:
        raise RefusalError(
            "only the axis of a thermometer's levels, behind the channels of the image, can be added"
        )
    return replace(signal, axes="CLHW", sizes={**signal.sizes, "L": 1})


def _axes(node: Node, rank: int) -> list[int]:
    """The axes of a Squeeze or Unsqueeze: an input since opset 13, before that an attribute."""
    axes = node.constant(1).reshape(-1).tolist() if len(node.inputs) > 1 else node.attribute("axes", [])
    return _normalized(axes, rank)


def _normalized(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front."""
    counted = [axis + rank if axis < 0 else axis for axis in axes]
    if len(set(counted)) < len(counted) or any(not 0 <= axis < rank for axis in counted):
        raise RefusalError(f"its axes {list(axes)} are not different ones of {rank}")
    return counted


def _flat(signal: Signal) -> Signal:
    if "L" in signal.axes:
        raise RefusalError("flattens a thermometer whose levels are no channels yet")
    return replace(signal, flat=True, pixel="", axes="CHW" if signal.axes == "CW" else signal.axes)


def _pixel(signal: Signal, axes: str) -> Signal:
    """A flattened map as the channels of one pixel."""
    return replace(_flat(signal), pixel=axes)


# -- channels


def split(node: Node[Signal], layers: LayerBuilder) -> list[Signal]:
    """Parts of the channels, one after the other."""
    signal, count = node.signal, len(node.outputs)
    axis = node.attribute("axis", 0)
    place = axis + len(signal.shape) if axis < 0 else axis
    if signal.flat or place < 1 or ("N" + signal.axes)[place : place + 1] != "C":
        raise RefusalError("does not split channels")
    channels = signal.sizes["C"]
    stated = node.option(1, np.zeros(0)) if node.opset >= 13 else np.array(node.attribute("split", []))
    each = -(-channels // count)  # a last part may be smaller
    sizes = [int(size) for size in stated.reshape(-1)] or [each] * (count - 1) + [
        channels - each * (count - 1)
    ]
    if len(sizes) != count or sum(sizes) != channels or min(sizes) < 1:
        raise RefusalError(f"splits {channels} channels into {sizes}")
    ends = np.cumsum(sizes).tolist()
    if signal.kind in ("pixels", "signs"):
        parts = np.split(places(signal), ends[:-1], axis=place)
        return [_moved(signal, layers, part) for part in parts]
    signal = layers.value(signal)
    return [layers.channels(signal, end - size, end) for size, end in zip(sizes, ends)]


def concat(node: Node[Signal], layers: LayerBuilder) -> Signal:
    """Channels side by side; constants of zeros may stand at either end."""
    signal, rank = node.signal, len(node.signal.shape)
    (place,) = _normalized([node.attribute("axis", 0)], rank)
    # A row of features may be the channels of one pixel.
    is_row = signal.flat and all(taken.sizes[axis] == 1 for taken in node.taken for axis in "HW")
    joins = place == 1 if is_row else not signal.flat and ("N" + signal.axes)[place] == "C"
    if not joins:
        raise RefusalError("does not join channels")
    first = next(index for index, value in enumerate(node.values) if value is not None)
    count = len(node.taken)
    if any(value is None for value in node.values[first : first + count]):
        raise RefusalError("joins activations and constants by turns; only at either end")
    zeros = [0, 0]
    for index, number in enumerate(node.constants):
        if not first <= index < first + count:
            if (
                number is None
                or np.any(number)
                or _without(number.shape, place) != _without(signal.shape, place)
            ):
                raise RefusalError("joins activations and constants other than zeros")
            zeros[index > first] += number.shape[place]
    taken = [replace(one, flat=False, axes="CHW") for one in node.taken] if is_row else node.taken
    joined = layers.concat(taken)
    if any(zeros):
        joined = layers.pad_channels(joined, *zeros)
    return replace(joined, flat=True) if is_row else joined


def _without(shape: Sequence[int], place: int) -> tuple[int, ...]:
    """A shape but for the batch and one axis."""
    return (*shape[1:place], *shape[place + 1 :])


def tile(node: Node[Signal], layers: LayerBuilder) -> Signal:
    repeats = [int(times) for times in node.constant(1).reshape(-1)]
    signal = node.signal
    if (
        signal.flat
        or len(repeats) != 4
        or any(times != 1 for name, times in zip("N" + signal.axes, repeats) if name != "C")
    ):
        raise RefusalError(f"repeats {repeats}; only channels can be repeated")
    times = repeats[1 + signal.axes.index("C")]
    if not 1 <= times <= MAX_INPUTS:
        raise RefusalError(f"repeats channels {times} times; there can be 1 to {MAX_INPUTS}")
    if signal.kind in ("pixels", "signs"):
        layers.check_moved(math.prod(signal.shape) * times)
        return _moved(signal, layers, np.tile(places(signal), repeats))
    signal = layers.value(signal)
    return layers.concat([signal] * times)
