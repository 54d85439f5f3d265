"""Nodes that move, pad, average or repeat the numbers of a signal, convert them, or leave them as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import Signal, exact, is_float
from bnn_perception.importers.onnx.node import FLOATS, Node
from bnn_perception.net.checks import MAX_CHANNELS


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


def pad(node: Node[Signal]) -> Signal:
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
    around = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    rows, columns = around.pop(2, (0, 0)), around.pop(3, (0, 0))
    if not signal.is_map or any(map(any, around.values())) or rows[0] != rows[1] or columns[0] != columns[1]:
        raise RefusalError(f"pads {pads} are not symmetric in height and width alone")
    if min(pads) < 0 or signal.kind in ("sums", "residual"):
        raise RefusalError("crops, or pads what is not binary")
    return replace(signal, pad=(rows[0], columns[0], exact(value).item()))


# -- the axes


def transpose(node: Node[Signal]) -> Signal:
    signal = node.signal
    permutation = node.attribute("perm", list(range(len(signal.shape)))[::-1])
    if sorted(permutation) != list(range(len(signal.shape))):
        raise RefusalError(f"its permutation {list(permutation)} is not one of {len(signal.shape)} axes")
    if signal.flat or permutation[0] != 0 or "L" in signal.axes:
        raise RefusalError("moves the batch axis, or transposes a matrix of activations")
    return replace(signal, axes="".join(signal.axes[axis - 1] for axis in permutation[1:]))


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
    if signal.axes == "CLHW" and shape == (1, signal.shape[1] * signal.shape[2], *signal.shape[3:]):
        return replace(signal, axes="CHW", sizes={"C": shape[1], "H": shape[2], "W": shape[3]})
    raise RefusalError(f"reshapes {list(signal.shape)} to {asked}")


def unsqueeze(node: Node[Signal]) -> Signal:
    signal = node.signal
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
    return replace(signal, flat=True)


# -- shortcuts


def average_pool(node: Node[Signal]) -> Signal:
    signal = _residual(node)
    size = signal.sizes["H"], signal.sizes["W"]
    node.window(size).check_halving(size)
    if signal.averaged:
        raise RefusalError("averages a second time")
    sizes = {**signal.sizes, "H": size[0] // 2, "W": size[1] // 2}
    return replace(signal, sizes=sizes, averaged=True)


def concat(node: Node[Signal]) -> Signal:
    signal = _residual(node)
    if any(other is not signal for other in node.values):
        raise RefusalError("joins different tensors; only one tensor with itself, along its channels, can be")
    if node.attribute("axis", None) not in (1, -3):
        raise RefusalError("does not join channels")
    return _repeat(signal, len(node.inputs))


def tile(node: Node[Signal]) -> Signal:
    signal = _residual(node)
    repeats = [int(times) for times in node.constant(1).reshape(-1)]
    if len(repeats) != 4 or [*repeats[:1], *repeats[2:]] != [1, 1, 1] or repeats[1] < 1:
        raise RefusalError(f"repeats {repeats}; only channels can be repeated")
    return _repeat(signal, repeats[1])


def _residual(node: Node[Signal]) -> Signal:
    signal = node.signal
    if signal.kind != "residual" or not signal.is_map:
        raise RefusalError(
            f"takes {signal.kind}; only a residual, (N, channels, height, width), can be averaged or repeated"
        )
    return signal


def _repeat(signal: Signal, times: int) -> Signal:
    if times * signal.sizes["C"] > MAX_CHANNELS:
        raise RefusalError(f"gives {times * signal.sizes['C']} channels; there can be {MAX_CHANNELS}")
    return replace(
        signal,
        sizes={**signal.sizes, "C": times * signal.sizes["C"]},
        scale=np.tile(signal.scale, times),
        offset=np.tile(signal.offset, times),
        repeated=signal.repeated or times > 1,
    )
