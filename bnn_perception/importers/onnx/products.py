"""Nodes that begin a layer: convolutions and matrices, and the max pools behind them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.builder import LayerBuilder
from bnn_perception.importers.fold.products import convolve, multiply
from bnn_perception.importers.fold.signal import Signal
from bnn_perception.importers.onnx.node import Node


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
    size = signal.sizes["H"], signal.sizes["W"]
    window = node.window(size)
    return layers.pool(signal, window.kernel, window.stride, window.whole(size), node.is_shared)


def average_pool(node: Node[Signal], layers: LayerBuilder) -> Signal:
    signal = _map(node)
    size = signal.sizes["H"], signal.sizes["W"]
    window = node.window(size)
    counts, pads = bool(node.attribute("count_include_pad", 0)), window.whole(size)
    if counts and pads != window.pads:
        raise RefusalError("counts the padding of windows that reach over the edge (ceil_mode)")
    return layers.average(signal, window.kernel, window.stride, pads, counts)


def global_average(node: Node[Signal], layers: LayerBuilder) -> Signal:
    size = _map(node).sizes["H"], _map(node).sizes["W"]
    return layers.average(node.signal, size, (1, 1), (0, 0, 0, 0), counts_padding=True)


def global_max(node: Node[Signal], layers: LayerBuilder) -> Signal:
    size = _map(node).sizes["H"], _map(node).sizes["W"]
    return layers.pool(node.signal, size, (1, 1), (0, 0, 0, 0), node.is_shared)


def reduce_mean(node: Node[Signal], layers: LayerBuilder) -> Signal:
    """The mean of all pixels, as tf2onnx and hand-written nets write it."""
    size = _reduced(node)
    mean = layers.average(node.signal, size, (1, 1), (0, 0, 0, 0), counts_padding=True)
    return mean if node.attribute("keepdims", 1) else replace(mean, flat=True)


def reduce_max(node: Node[Signal], layers: LayerBuilder) -> Signal:
    size = _reduced(node)
    largest = layers.pool(node.signal, size, (1, 1), (0, 0, 0, 0), node.is_shared)
    return largest if node.attribute("keepdims", 1) else replace(largest, flat=True)


def _reduced(node: Node[Signal]) -> tuple[int, int]:
    """Height and width, which are what a node reduces."""
    signal = node.signal
    rank = len(signal.shape)
    # An input since opset 18, of ReduceMean as of ReduceMax.
    axes = node.constant(1).reshape(-1).tolist() if len(node.inputs) > 1 else node.attribute("axes", [])
    named = {("N" + signal.axes)[int(axis) % rank] for axis in axes} if not signal.flat else set()
    if named != {"H", "W"}:
        raise RefusalError("reduces other axes than height and width")
    return signal.sizes["H"], signal.sizes["W"]


def _map(node: Node[Signal]) -> Signal:
    signal = node.signal
    if signal.flat or signal.axes != "CHW":
        raise RefusalError("does not pool height and width of (N, channels, height, width)")
    return signal
