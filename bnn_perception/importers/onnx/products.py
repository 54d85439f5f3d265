"""Nodes that begin a layer: convolutions and matrices, and the max pools behind them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.builder import LayerBuilder
from bnn_perception.importers.fold.products import convolve, multiply
from bnn_perception.importers.fold.signal import Signal, constant
from bnn_perception.importers.onnx.node import Node, Window
from bnn_perception.importers.onnx.shapes import reshaped
from bnn_perception.net.layer import Pads


def conv(node: Node[Signal], layers: LayerBuilder) -> Signal:
    signal = _taken(node, layers)
    if signal.pixel == "CHW":
        # A convolution of one pixel, whose channels are a whole map's features, is a matrix.
        weights, window, groups = node.convolution((1, 1))
        if weights.shape[1:] != (signal.shape[1], 1, 1) or any(window.pads) or groups != 1:
            raise RefusalError(
                "convolves a flattened map; only one pixel without padding, of group 1, can be taken"
            )
        bias = node.option(2, np.zeros(len(weights)))
        sums = multiply(replace(signal, pixel=""), weights.reshape(len(weights), -1), bias)
        return replace(sums, flat=False)
    if signal.flat or signal.axes != "CHW":
        raise RefusalError("is not a two-dimensional convolution of (N, channels, height, width)")
    # A Pad before the convolution counts for auto_pad as part of the map.
    top, left, bottom, right = signal.pad[0] if signal.pad is not None else (0, 0, 0, 0)
    size = signal.sizes["H"] + top + bottom, signal.sizes["W"] + left + right
    weights, window, groups = node.convolution(size)
    bias = node.option(2, np.zeros(len(weights)))
    if window.ceil_mode:
        raise RefusalError("has a ceil_mode, which no convolution has")
    return convolve(signal, weights, bias, window.stride, window.pads, groups)


def gemm(node: Node[Signal], layers: LayerBuilder) -> Signal:
    return multiply(_taken(node, layers), *node.gemm())


def matmul(node: Node[Signal], layers: LayerBuilder) -> Signal:
    return multiply(_taken(node, layers), node.constant(1).T, np.zeros(1))


def _taken(node: Node[Signal], layers: LayerBuilder) -> Signal:
    """What a layer with weights takes: pixels, upright signs, or values as a layer gives them."""
    signal = layers.upright(node.signal)
    if signal.kind in ("pixels", "signs"):
        return layers.fix_pixel_range(signal, 0 * signal.scale)
    return layers.value(signal)


def max_pool(node: Node[Signal], layers: LayerBuilder) -> Signal:
    signal = _map(node)
    window, own = _window(node, signal)
    if signal.pad is not None:
        around = _together(signal.pad[0], own, window)
        if around is None or not layers.exceeds(signal, signal.pad[1]):
            signal = layers.padded(signal)
        else:
            signal, own = replace(signal, pad=None), around
    return layers.pool(signal, window.kernel, window.stride, own, node.is_shared)


def average_pool(node: Node[Signal], layers: LayerBuilder) -> Signal:
    signal, counts = _map(node), bool(node.attribute("count_include_pad", 0))
    window, own = _window(node, signal)
    if counts and own != window.pads:
        raise RefusalError("counts the padding of windows that reach over the edge (ceil_mode)")
    if signal.pad is not None:
        around = _together(signal.pad[0], own, window)
        # The zeros of a Pad count, whatever the pool's own do.
        if around is None or signal.pad[1] != 0 or (any(own) and not counts):
            signal = layers.padded(signal)
        else:
            signal, own, counts = replace(signal, pad=None), around, True
    return layers.average(signal, window.kernel, window.stride, own, counts)


def _window(node: Node[Signal], signal: Signal) -> tuple[Window, Pads]:
    """The window of a pool, and the pads that it has on the map as a Pad before it leaves it."""
    top, left, bottom, right = signal.pad[0] if signal.pad is not None else (0, 0, 0, 0)
    size = signal.sizes["H"] + top + bottom, signal.sizes["W"] + left + right
    window = node.window(size)
    return window, window.whole(size)


def _together(before: Pads, own: Pads, window: Window) -> Pads | None:
    """The pads of a Pad and of the pool behind it; None where they are as large as the window."""
    top, left, bottom, right = (one + other for one, other in zip(before, own))
    fits = max(top, bottom) < window.kernel[0] and max(left, right) < window.kernel[1]
    return (top, left, bottom, right) if fits else None


def global_average(node: Node[Signal], layers: LayerBuilder) -> Signal:
    size = _map(node).sizes["H"], _map(node).sizes["W"]
    return layers.average(node.signal, size, (1, 1), (0, 0, 0, 0), counts_padding=True)


def global_max(node: Node[Signal], layers: LayerBuilder) -> Signal:
    size = _map(node).sizes["H"], _map(node).sizes["W"]
    return layers.pool(node.signal, size, (1, 1), (0, 0, 0, 0), node.is_shared)


def reduce_mean(node: Node[Signal], layers: LayerBuilder) -> Signal:
    """The mean of all pixels, or of rows or columns, as tf2onnx and hand-written nets write it."""
    return _reduced(node, layers, partial(layers.average, counts_padding=True))


def reduce_sum(node: Node[Signal], layers: LayerBuilder) -> Signal:
    """As many times the mean."""
    mean = reduce_mean(node, layers)
    count = math.prod(node.signal.shape) // math.prod(mean.shape)
    return mean.scaled(constant(count, len(mean.scale)))


def reduce_max(node: Node[Signal], layers: LayerBuilder) -> Signal:
    return _reduced(node, layers, partial(layers.pool, is_shared=node.is_shared))


def _reduced(node: Node[Signal], layers: LayerBuilder, pool: Callable[..., Signal]) -> Signal:
    """A signal whose rows, columns or all pixels a pool has made one."""
    signal, rank = node.signal, len(node.signal.shape)
    # An input since opset 13 or 18, by the operator.
    given = (
        node.option(1, np.zeros(0)).reshape(-1).tolist()
        if len(node.inputs) > 1
        else node.attribute("axes", [])
    )
    axes = {int(axis) % rank for axis in given}
    if signal.order is not None and not _are_pixels(signal, axes):
        signal = layers.settled(signal)
    kernel = _window_of(signal, axes)
    signal = replace(signal, order=None)
    result = pool(signal, kernel, (1, 1), (0, 0, 0, 0))
    shape = [1 if axis in axes else size for axis, size in enumerate(node.signal.shape)]
    if not node.attribute("keepdims", 1):
        shape = [size for axis, size in enumerate(shape) if axis not in axes]
    return reshaped(result, layers, tuple(shape))


def _window_of(signal: Signal, axes: set[int]) -> tuple[int, int]:
    """Height and width of the window whose pixels are those along some axes."""
    size = signal.sizes["H"], signal.sizes["W"]
    if signal.order is not None:
        return size
    named = set() if signal.flat else {("N" + signal.axes)[axis] for axis in axes}
    if not named or not named <= {"H", "W"}:
        raise RefusalError("reduces other axes than height and width")
    return size[0] if "H" in named else 1, size[1] if "W" in named else 1


def _are_pixels(signal: Signal, axes: set[int]) -> bool:
    """Whether the moved numbers along some axes are all pixels of a channel, and the channels in their order."""
    assert signal.order is not None
    kept = [axis for axis in range(signal.order.ndim) if axis not in axes]
    of_one = signal.order.transpose(*kept, *sorted(axes)).reshape(
        -1, math.prod(signal.shape[a] for a in axes)
    )
    channels, pixels = signal.sizes["C"], signal.sizes["H"] * signal.sizes["W"]
    return np.array_equal(np.sort(of_one, axis=1), np.arange(channels * pixels).reshape(channels, -1))


def _map(node: Node[Signal]) -> Signal:
    signal = node.signal
    if signal.flat or signal.axes != "CHW":
        raise RefusalError("does not pool height and width of (N, channels, height, width)")
    return signal
