"""Nodes that multiply a signal by weights: convolutions and matrices, and the max pools behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.onnx.graph import Node
from bnn_perception.importers.onnx.quantizers import RefusalError
from bnn_perception.importers.onnx.shapes import is_plain
from bnn_perception.importers.onnx.signal import Exact, Products, Signal, exact
from bnn_perception.net.layers import Pool


def conv(node: Node) -> Signal:
    signal = node.signal
    weights, magnitude = _signs(node.constant(1))
    if weights.ndim != 4 or signal.flat or signal.axes != "CHW":
        raise RefusalError("is not a two-dimensional convolution of (N, channels, height, width)")
    _check_binary(signal)
    if node.attribute("group", 1) != 1 or any(d != 1 for d in node.attribute("dilations", [1, 1])):
        raise RefusalError("has groups or dilations; the format supports group=1 and dilations=1")
    if weights.shape[1] != signal.sizes["C"]:
        raise RefusalError(f"takes {weights.shape[1]} channels, its input has {signal.sizes['C']}")
    kernel = weights.shape[2:]
    if tuple(node.attribute("kernel_shape", kernel)) != kernel:
        raise RefusalError(f"its kernel_shape is another one than its weights', {list(kernel)}")
    stride = tuple(node.attribute("strides", [1, 1]))
    if len(stride) != 2:
        raise RefusalError(f"has {len(stride)} strides")
    padding, value = _padding(signal, _pads(node, kernel, stride))
    outside, levels, offset = _outside(signal, padding, value)
    height, width = (
        (signal.sizes[axis] + 2 * pad - size) // step + 1
        for axis, pad, size, step in zip("HW", padding, kernel, stride)
    )
    if height < 1 or width < 1:
        raise RefusalError("its kernel is larger than its input")
    bias = exact(node.option(2, np.zeros(len(weights))))
    if bias.shape != (len(weights),):
        raise RefusalError(f"has a bias of shape {list(bias.shape)} for {len(weights)} outputs")
    is_matrix = padding == (0, 0) and levels is None and kernel == (signal.sizes["H"], signal.sizes["W"])
    ordered = weights.transpose(0, 2, 3, 1)
    products = Products(ordered, is_matrix, signal.place, stride, padding, outside, None, levels)
    result = _sums(replace(signal, offset=offset), products, magnitude)
    return replace(result, sizes={**result.sizes, "H": height, "W": width}).shifted(bias)


def gemm(node: Node) -> Signal:
    if node.attribute("transA", 0):
        raise RefusalError("transposes its input")
    matrix = node.constant(1)
    if not node.attribute("transB", 0):
        matrix = matrix.T
    bias = node.option(2, np.zeros(1))
    if bias.size not in (1, len(matrix)) or bias.shape[-1:] not in ((), (bias.size,)):
        raise RefusalError(f"has a bias of shape {list(bias.shape)} for {len(matrix)} outputs")
    return _dense(node.signal, matrix * node.attribute("alpha", 1.0), bias * node.attribute("beta", 1.0))


def matmul(node: Node) -> Signal:
    return _dense(node.signal, node.constant(1).T, np.zeros(1))


def _dense(signal: Signal, matrix: NDArray[Any], bias: NDArray[Any]) -> Signal:
    if signal.kind != "signs":
        raise RefusalError("its input is not binary; a quantizer must stand before it")
    if matrix.ndim != 2 or not signal.flat or matrix.shape[1] != signal.shape[1]:
        raise RefusalError(f"a matrix of {list(matrix.T.shape)} on an activation of {list(signal.shape)}")
    weights, magnitude = _signs(matrix)
    ordered = weights.reshape(len(weights), *(signal.sizes[axis] for axis in signal.axes))
    ordered = ordered.transpose(0, *(1 + signal.axes.index(axis) for axis in "HWC"))
    result = replace(_sums(signal, Products(ordered, True, signal.place), magnitude), flat=True)
    return result.shifted(exact(np.broadcast_to(bias.reshape(-1), len(weights))))


def _check_binary(signal: Signal) -> None:
    if signal.kind in ("sums", "stream"):
        raise RefusalError("its input is not binary; a quantizer must stand before it")


def _signs(values: NDArray[Any]) -> tuple[NDArray[np.int8], Exact]:
    """(out, ...) floats of one magnitude an output -> ±1 and the magnitudes."""
    magnitude = np.abs(values).reshape(len(values), -1)
    if np.any(magnitude != magnitude[:, :1]) or np.any(magnitude == 0) or not np.all(np.isfinite(magnitude)):
        raise RefusalError(
            "its weights are not +c and -c with one c an output; only binary weights can be expressed"
        )
    return np.where(values > 0, 1, -1).astype(np.int8), exact(magnitude[:, 0])


def _sums(signal: Signal, products: Products, magnitude: Exact) -> Signal:
    """The values ``magnitude * sum(weight * value)``."""
    # weights * (scale * integer + offset): the offsets add up to a constant, the same at the border, where
    # `outside` stands for the integer whose value is the padding.
    taps = products.weights.astype(object).sum(axis=(1, 2))
    return replace(
        signal,
        kind="sums",
        axes="CHW",
        sizes={"C": len(magnitude), "H": 1, "W": 1},
        scale=magnitude * signal.one_scale(),
        offset=magnitude * (taps * signal.offset).sum(axis=1),
        levels=None,
        products=products,
        pad=None,
    )


# -- padding


def _pads(node: Node, kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
    """What a Conv adds: top, left, bottom, right."""
    signal = node.signal
    auto_pad = node.attribute("auto_pad", b"NOTSET")
    if auto_pad == b"NOTSET":
        return list(node.attribute("pads", [0, 0, 0, 0]))
    if auto_pad == b"VALID":
        return [0, 0, 0, 0]
    before = signal.pad[:2] if signal.pad is not None else (0, 0)
    sizes = [signal.sizes[axis] + 2 * pad for axis, pad in zip("HW", before)]
    # SAME: as many windows as steps begin in the input
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, stride)]
    less, more = [total // 2 for total in totals], [-(-total // 2) for total in totals]
    return less + more if auto_pad == b"SAME_UPPER" else more + less


def _padding(signal: Signal, pads: Sequence[int]) -> tuple[tuple[int, int], Fraction]:
    """What a Pad before and the Conv itself add: (y, x) and the value there."""
    if list(pads[:2]) != list(pads[2:]):
        raise RefusalError(f"pads {list(pads)} are not symmetric")
    if len(pads) != 4:
        raise RefusalError(f"has {len(pads)} pads")
    if signal.pad is None:
        return (pads[0], pads[1]), Fraction(0)
    if any(pads):
        raise RefusalError("pads what a Pad has padded already")
    return signal.pad[:2], signal.pad[2]


def _outside(
    signal: Signal, padding: tuple[int, int], value: Fraction
) -> tuple[int, NDArray[np.int16] | None, Exact]:
    """The integer whose value is the padding; of pixels, the levels and offsets that make it 0."""
    if padding == (0, 0):
        return 0, signal.levels, signal.offset
    integers = {(value - offset) / signal.one_scale() for offset in signal.offset}
    outside = integers.pop()
    if signal.levels is None:
        if integers or outside not in (-1, 0):
            raise RefusalError(f"pads with {float(value):g}; only the values of -1 and of 0 can be expressed")
        return int(outside), None, signal.offset
    shifted = signal.levels.astype(np.int64) - int(outside)
    fits = (shifted.min() >= 0 and shifted.max() <= 255) or (shifted.min() >= -128 and shifted.max() <= 127)
    if integers or outside.denominator != 1 or not fits:
        raise RefusalError(
            f"pads pixels with {float(value):g}, which is no level that 8-bit integers can count as 0"
        )
    offset = signal.offset + signal.one_scale() * outside
    return 0, shifted.astype(np.int16), offset


# -- pools


def pool_of(node: Node) -> tuple[Pool, dict[str, int]]:
    """The window of a MaxPool, and the sizes of what it gives."""
    signal = node.signal
    kernel, strides = node.attribute("kernel_shape", []), node.attribute("strides", [1, 1])
    square = len(kernel) == len(strides) == 2 and kernel[0] == kernel[1] and strides[0] == strides[1]
    if not square or not is_plain(node):
        raise RefusalError("only square windows without padding and dilation can be expressed")
    if signal.flat or signal.axes != "CHW":
        raise RefusalError("does not pool height and width")
    pool = Pool(kernel[0], strides[0])
    if node.attribute("ceil_mode", 0) and any((signal.sizes[a] - pool.size) % pool.stride for a in "HW"):
        raise RefusalError("its windows reach over the edge (ceil_mode)")
    sizes = {**signal.sizes, "H": pool.length(signal.sizes["H"]), "W": pool.length(signal.sizes["W"])}
    if sizes["H"] < 1 or sizes["W"] < 1:
        raise RefusalError("its window is larger than its input")
    return pool, sizes


OPERATIONS: dict[str, Callable[[Node], Signal]] = {"Conv": conv, "Gemm": gemm, "MatMul": matmul}
