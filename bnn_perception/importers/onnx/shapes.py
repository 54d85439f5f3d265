"""Nodes that move, pad, average or repeat the numbers of a signal, convert them, or leave them as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.builder import LayerBuilder
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
    outside, at = exact(value).item(), by_axis.pop("C", (0, 0))
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
    by_axis = {name: (0, size, 1) for name, size in zip("N" + signal.axes, signal.shape)}
    if (
        signal.flat
        or sorted(signal.axes) != ["C", "H", "W"]
        or not len(starts) == len(ends) == len(axes) == len(steps)
    ):
        raise RefusalError("does not slice channels, height and width")
    for axis, start, end, step in zip(_normalized(axes, rank), starts, ends, steps):
        name = ("N" + signal.axes)[axis]
        if step < 1:
            raise RefusalError(f"takes steps of {step}")
        by_axis[name] = (*slice(start, end).indices(by_axis[name][1])[:2], step)
    rows, columns, (first, last, every) = by_axis["H"], by_axis["W"], by_axis["C"]
    whole = [(low, high) == (0, signal.sizes[name]) for name, (low, high, _) in (("H", rows), ("W", columns))]
    if by_axis["N"] != (0, 1, 1) or every != 1 or not all(whole) or last <= first:
        raise RefusalError("slices other ranges than every n-th pixel, and channels side by side")
    if (rows[2], columns[2]) != (1, 1):
        signal = layers.average(signal, (1, 1), (rows[2], columns[2]), (0, 0, 0, 0), counts_padding=True)
    return signal if (first, last) == (0, signal.sizes["C"]) else layers.channels(signal, first, last)


# -- the axes


def transpose(node: Node[Signal]) -> Signal:
    signal = node.signal
    permutation = node.attribute("perm", list(range(len(signal.shape)))[::-1])
    if sorted(permutation) != list(range(len(signal.shape))):
        raise RefusalError(f"its permutation {list(permutation)} is not one of {len(signal.shape)} axes")
    if signal.pixel and permutation[0] == 0:
        return _pixel(signal, "".join(signal.pixel[axis - 1] for axis in permutation[1:]))
    if signal.flat or permutation[0] != 0 or "L" in signal.axes:
        raise RefusalError("moves the batch axis, or transposes a matrix of activations")
    moved = "".join(signal.axes[axis - 1] for axis in permutation[1:])
    return replace(signal, axes=moved)


def flatten(node: Node[Signal]) -> Signal:
    if node.attribute("axis", 1) not in (1, 1 - len(node.signal.shape)):
        raise RefusalError("does not flatten to (N, features)")
    return _flat(node.signal)


def squeeze(node: Node[Signal]) -> Signal:
    shape = node.signal.shape
    axes = _axes(node, len(shape))
    if 0 in axes or len(axes) != len(shape) - 2 or any(shape[axis] != 1 for axis in axes):
        raise RefusalError(f"squeezes axes {sorted(axes)} of {list(shape)} to what is not (N, features)")
    return _flat(node.signal)


def reshape(node: Node[Signal]) -> Signal:
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
    shape = tuple(kept)
    if shape == signal.shape:
        return signal
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
    raise RefusalError(f"reshapes {list(signal.shape)} to {asked}")


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
    signal = layers.value(signal)
    ends = np.cumsum(sizes).tolist()
    return [layers.channels(signal, end - size, end) for size, end in zip(sizes, ends)]


def concat(node: Node[Signal], layers: LayerBuilder) -> Signal:
    if any(value is None for value in node.values):
        raise RefusalError("joins activations and constants")
    signal = node.signal
    axis = node.attribute("axis", None)
    place = axis + len(signal.shape) if axis is not None and axis < 0 else axis
    if signal.flat or place is None or place < 1 or ("N" + signal.axes)[place : place + 1] != "C":
        raise RefusalError("does not join channels")
    return layers.concat(node.taken)


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
    signal = layers.value(signal)
    return layers.concat([signal] * times)
