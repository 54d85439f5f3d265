"""Nodes that begin a layer: convolutions and matrices, and the max pools behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.builder import LayerBuilder
from bnn_perception.importers.fold.products import convolve, multiply
from bnn_perception.importers.fold.signal import Signal
from bnn_perception.importers.onnx.node import Node


def conv(node: Node[Signal], layers: LayerBuilder) -> Signal:
    signal = layers.upright(node.signal)
    if signal.flat or signal.axes != "CHW":
        raise RefusalError("is not a two-dimensional convolution of (N, channels, height, width)")
    signal = layers.fix_pixel_range(signal, 0 * signal.scale)
    # A Pad before the convolution counts for auto_pad as part of the map.
    rows, columns = signal.pad[:2] if signal.pad is not None else (0, 0)
    weights, window = node.convolution((signal.sizes["H"] + 2 * rows, signal.sizes["W"] + 2 * columns))
    bias = node.option(2, np.zeros(len(weights)))
    result = convolve(signal, weights, bias, window.stride, window.pads)
    layers.open(signal, node.source)
    return result


def gemm(node: Node[Signal], layers: LayerBuilder) -> Signal:
    return _matrix(node, layers, *node.gemm())


def matmul(node: Node[Signal], layers: LayerBuilder) -> Signal:
    return _matrix(node, layers, node.constant(1).T, np.zeros(1))


def _matrix(node: Node[Signal], layers: LayerBuilder, matrix: NDArray[Any], bias: NDArray[Any]) -> Signal:
    signal = layers.upright(node.signal)
    result = multiply(signal, matrix, bias)
    layers.open(signal, node.source)
    return result


def max_pool(node: Node[Signal], layers: LayerBuilder) -> Signal:
    signal = node.signal
    if signal.flat or signal.axes != "CHW":
        raise RefusalError("does not pool height and width")
    size = signal.sizes["H"], signal.sizes["W"]
    return layers.pool(signal, node.window(size).max_pool(size), node.is_shared)
