"""What each operator of a ``.tflite`` file is in ONNX; one function an operator, found by :data:`OPERATORS`.

TFLite's maps are (N, height, width, channels), as those of the ONNX graph then are; a convolution or pool stands
between two Transposes. Larq Compute Engine's operators, by its kernels:

- ``LceQuantize`` packs signs, -1 where x < 0, otherwise +1; a bit is 1 for -1, the first channel lowest in its word.
- ``LceBconv2d`` gives ``multiplier[c] * activation(dot) + bias[c]``, or signs: -1 where the products of different signs
  are more than ``threshold[c]``. Its padding counts as 0 or, with ``pad_values`` 1, as +1.
- ``LceBMaxPool2d`` gives the largest sign of a window, ``LceDequantize`` signs as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.onnx.node import same_pads
from bnn_perception.importers.tflite.file import QUANTIZED, Operator, Tensor
from bnn_perception.importers.tflite.graph import CHW, HWC, GraphBuilder

#: Padding by the schema, and by the options of Larq's operators.
SAME, VALID = 0, 1

#: Limits that an activation leaves, by its code in the schema (``tflite.ActivationFunctionType``).
ACTIVATIONS: dict[int, tuple[float | None, float | None]] = {
    0: (None, None),
    1: (0.0, None),
    2: (-1.0, 1.0),
    3: (0.0, 6.0),
}

#: Why whole numbers that stand for others are refused.
EIGHT_BITS = "nets that are quantized to 8 bits cannot be expressed; convert without quantization"

Translate = Callable[[Operator, GraphBuilder], None]


# -- Larq Compute Engine


def lce_quantize(operator: Operator, graph: GraphBuilder) -> None:
    graph.name(_signs(graph, graph.of(_input(operator, 0)), "GreaterOrEqual", np.float32(0)), operator)


def lce_bconv(operator: Operator, graph: GraphBuilder) -> None:
    options, source = operator.options, _input(operator, 0)
    packed = _constant(operator, 1)
    channels = int(options.get("channels_in", 0))
    if packed.ndim != 4 or packed.dtype != np.dtype("<i4") or not 0 < channels:
        raise RefusalError(f"takes {list(packed.shape)} words of weights for {channels} channels")
    words = -(-channels // 32)
    if packed.shape[3] != words:
        raise RefusalError(
            f"takes its {channels} channels in groups; only binary convolutions of all channels can be expressed"
        )
    graph.check_room(packed.size * 32)
    bits = np.unpackbits(packed.astype("<i4").view(np.uint8), axis=-1, bitorder="little")
    weights = np.where(bits[..., :channels], np.float32(-1), np.float32(1)).transpose(0, 3, 1, 2)
    _check_dilation(options, "dilation_height_factor", "dilation_width_factor")
    stride = _pair(options, "stride_height", "stride_width")
    value = int(options.get("pad_values", 0))
    if value not in (0, 1):
        raise RefusalError(f"pads with {value}; 0 and 1 are known")
    padding, outputs, result = int(options.get("padding", VALID)), len(weights), operator.outputs[0]
    kernel, whole = _kernel(weights.shape), graph.constant(weights)
    dot = _convolved(graph, source, [whole], kernel, stride, padding, outside=float(value))
    if result.dtype == np.int32:
        thresholds = _constant(operator, 4).astype(np.float64)
        if thresholds.shape != (outputs,):
            raise RefusalError(f"has {list(thresholds.shape)} thresholds for {outputs} outputs")
        # More than t of the n products are -1 where n - 2 * (their number) < n - 2 * t.
        at = channels * packed.shape[1] * packed.shape[2] - 2 * thresholds
        graph.name(_signs(graph, dot, "GreaterOrEqual", at.astype(np.float32)), operator)
        return
    if result.dtype != np.float32:
        raise RefusalError(EIGHT_BITS)
    multiplier, bias = (_constant(operator, index) for index in (2, 3))
    if multiplier.shape != (outputs,) or bias.shape != (outputs,):
        raise RefusalError(
            f"has scales of {list(multiplier.shape)} and {list(bias.shape)} for {outputs} outputs"
        )
    # The activation stands before the scale.
    active = _activated(graph, dot, int(options.get("fused_activation_function", 0)))
    scaled = graph.add("Mul", active, graph.constant(multiplier))
    graph.name(graph.add("Add", scaled, graph.constant(bias)), operator)


def lce_max_pool(operator: Operator, graph: GraphBuilder) -> None:
    options = operator.options
    kernel = _pair(options, "filter_height", "filter_width")
    stride = _pair(options, "stride_height", "stride_width")
    pooled = _pooled(
        graph, "MaxPool", _input(operator, 0), kernel, stride, int(options.get("padding", VALID))
    )
    graph.name(pooled, operator)


# -- convolutions, matrices, pools


def conv(operator: Operator, graph: GraphBuilder) -> None:
    shape = _weights(operator).shape
    channels = _input(operator, 0).shape[-1:]
    if len(shape) != 4 or len(channels) != 1 or channels[0] % shape[3]:
        raise RefusalError(f"has weights of {list(shape)} for an input of {list(_input(operator, 0).shape)}")
    _finish_conv(operator, graph, [0, 3, 1, 2], channels[0] // shape[3])


def depthwise_conv(operator: Operator, graph: GraphBuilder) -> None:
    shape = _weights(operator).shape
    channels = _input(operator, 0).shape[-1:]
    if len(shape) != 4 or shape[0] != 1 or len(channels) != 1:
        raise RefusalError(f"has weights of {list(shape)} for an input of {list(_input(operator, 0).shape)}")
    _finish_conv(operator, graph, [3, 0, 1, 2], channels[0])


def fully_connected(operator: Operator, graph: GraphBuilder) -> None:
    source, matrix = _input(operator, 0), _weights(operator)
    if len(matrix.shape) != 2 or operator.options.get("WeightsFormat", 0) != 0:
        raise RefusalError(f"has weights of {list(matrix.shape)}, or in another order than rows of outputs")
    flat, shape = graph.of(source), operator.outputs[0].shape
    if len(source.shape) != 2:
        flat = graph.add("Reshape", flat, graph.constant(np.array([1, matrix.shape[1]], np.int64)))
    product = graph.add("Gemm", flat, graph.of(matrix), *_bias(operator, graph), transB=1)
    if len(shape) != 2:
        product = graph.add("Reshape", product, graph.constant(np.array(shape, np.int64)))
    graph.name(_activated(graph, product, _activation(operator)), operator)


def max_pool(operator: Operator, graph: GraphBuilder) -> None:
    _finish_pool(operator, graph, "MaxPool")


def average_pool(operator: Operator, graph: GraphBuilder) -> None:
    _finish_pool(operator, graph, "AveragePool")


def mean(operator: Operator, graph: GraphBuilder) -> None:
    axes = [int(axis) for axis in _constant(operator, 1).reshape(-1)]
    keep = int(bool(operator.options.get("KeepDims", 0)))
    source = graph.of(_input(operator, 0))
    graph.name(graph.add("ReduceMean", source, axes=axes, keepdims=keep), operator)


# -- numbers


def binary(op: str) -> Translate:
    """Of two tensors, with an activation behind."""

    def translate(operator: Operator, graph: GraphBuilder) -> None:
        if len(operator.inputs) != 2:
            raise RefusalError(f"takes {len(operator.inputs)} tensors; two are known")
        first, second = (graph.of(_input(operator, index)) for index in (0, 1))
        graph.name(_activated(graph, graph.add(op, first, second), _activation(operator)), operator)

    return translate


def unary(op: str, **attributes: Any) -> Translate:
    """Of one tensor."""

    def translate(operator: Operator, graph: GraphBuilder) -> None:
        graph.name(graph.add(op, graph.of(_input(operator, 0)), **attributes), operator)

    return translate


def limited(low: float | None, high: float | None) -> Translate:
    """Numbers between two limits."""

    def translate(operator: Operator, graph: GraphBuilder) -> None:
        graph.name(graph.clip(graph.of(_input(operator, 0)), low, high), operator)

    return translate


def leaky_relu(operator: Operator, graph: GraphBuilder) -> None:
    alpha = float(operator.options.get("Alpha", 0.0))
    graph.name(graph.add("LeakyRelu", graph.of(_input(operator, 0)), alpha=alpha), operator)


def prelu(operator: Operator, graph: GraphBuilder) -> None:
    slope = graph.constant(_constant(operator, 1))
    graph.name(graph.add("PRelu", graph.of(_input(operator, 0)), slope), operator)


def softmax(operator: Operator, graph: GraphBuilder) -> None:
    if not float(operator.options.get("Beta", 1.0)) > 0:
        raise RefusalError(
            "has a factor that is not positive, so that it does not keep the order of the logits"
        )
    unary("Softmax", axis=-1)(operator, graph)


def arg_max(operator: Operator, graph: GraphBuilder) -> None:
    axis = int(_constant(operator, 1).reshape(()))
    graph.name(graph.add("ArgMax", graph.of(_input(operator, 0)), axis=axis, keepdims=0), operator)


def rsqrt(operator: Operator, graph: GraphBuilder) -> None:
    root = graph.add("Sqrt", graph.of(_input(operator, 0)))
    graph.name(graph.add("Reciprocal", root), operator)


def square(operator: Operator, graph: GraphBuilder) -> None:
    source = graph.of(_input(operator, 0))
    graph.name(graph.add("Mul", source, source), operator)


def cast(operator: Operator, graph: GraphBuilder) -> None:
    dtype = operator.outputs[0].dtype
    graph.name(graph.add("Cast", graph.of(_input(operator, 0)), to=graph.type_of(dtype)), operator)


def dequantize(operator: Operator, graph: GraphBuilder) -> None:
    """Of float16 weights; whole numbers are those of a net of 8 bits."""
    if _input(operator, 0).dtype != np.float16:
        raise RefusalError(EIGHT_BITS)
    cast(operator, graph)


# -- axes


def reshape(operator: Operator, graph: GraphBuilder) -> None:
    """To the shape that the file states, whose computation (Shape, Pack) is then left out."""
    shape = np.array(operator.outputs[0].shape, np.int64)
    graph.name(graph.add("Reshape", graph.of(_input(operator, 0)), graph.constant(shape)), operator)


def transpose(operator: Operator, graph: GraphBuilder) -> None:
    order = [int(axis) for axis in _constant(operator, 1).reshape(-1)]
    graph.name(graph.add("Transpose", graph.of(_input(operator, 0)), perm=order), operator)


def pad(operator: Operator, graph: GraphBuilder) -> None:
    pads = _constant(operator, 1)
    if pads.ndim != 2 or pads.shape[1] != 2:
        raise RefusalError(f"has pads of {list(pads.shape)}")
    value = _constant(operator, 2) if len(operator.inputs) > 2 else np.zeros((), np.float32)
    both = graph.constant(pads.T.reshape(-1).astype(np.int64))
    source = graph.of(_input(operator, 0))
    graph.name(graph.add("Pad", source, both, graph.constant(value.reshape(()))), operator)


def concat(operator: Operator, graph: GraphBuilder) -> None:
    names = [graph.of(_input(operator, index)) for index in range(len(operator.inputs))]
    joined = graph.add("Concat", *names, axis=int(operator.options.get("Axis", 0)))
    graph.name(_activated(graph, joined, _activation(operator)), operator)


def sliced(operator: Operator, graph: GraphBuilder) -> None:
    begin, size = (_constant(operator, index).reshape(-1).astype(np.int64) for index in (1, 2))
    shape = _input(operator, 0).shape
    if not len(begin) == len(size) == len(shape):
        raise RefusalError(f"has {len(begin)} ranges for {len(shape)} axes")
    ends = [
        int(extent if length == -1 else first + length) for first, length, extent in zip(begin, size, shape)
    ]
    _slice(operator, graph, [*begin.tolist()], ends, [1] * len(ends))


def strided_slice(operator: Operator, graph: GraphBuilder) -> None:
    begin, end, steps = ([int(v) for v in _constant(operator, index).reshape(-1)] for index in (1, 2, 3))
    shape, options = _input(operator, 0).shape, operator.options
    if any(options.get(name, 0) for name in ("EllipsisMask", "NewAxisMask", "ShrinkAxisMask", "Offset")):
        raise RefusalError("has masks other than those of begin and end")
    if not len(begin) == len(end) == len(steps) == len(shape):
        raise RefusalError(f"has {len(begin)} ranges for {len(shape)} axes")
    first, last = int(options.get("BeginMask", 0)), int(options.get("EndMask", 0))
    begin = [0 if first >> axis & 1 else value for axis, value in enumerate(begin)]
    end = [shape[axis] if last >> axis & 1 else value for axis, value in enumerate(end)]
    _slice(operator, graph, begin, end, steps)


def split(operator: Operator, graph: GraphBuilder) -> None:
    source = _input(operator, 1)
    axis = int(_constant(operator, 0).reshape(-1)[0]) % max(1, len(source.shape))
    parts, extent = len(operator.outputs), source.shape[axis]
    if extent % parts:
        raise RefusalError(f"splits {extent} into {parts} parts")
    for index, result in enumerate(operator.outputs):
        begin, end = [0] * len(source.shape), list(source.shape)
        begin[axis], end[axis] = index * extent // parts, (index + 1) * extent // parts
        name = _range(graph, graph.of(source), begin, end, [1] * len(end))
        graph.name(name, operator, result)


# -- what they share


def _input(operator: Operator, index: int) -> Tensor:
    tensor = operator.inputs[index] if index < len(operator.inputs) else None
    if tensor is None:
        raise RefusalError(f"input {index + 1} is missing")
    return tensor


def _constant(operator: Operator, index: int) -> NDArray[Any]:
    data = _input(operator, index).data
    if data is None:
        raise RefusalError(f"input {index + 1} is not a constant")
    return data


def _weights(operator: Operator) -> Tensor:
    """The weights of a real-valued layer."""
    tensor = _input(operator, 1)
    if tensor.dtype in QUANTIZED:
        raise RefusalError(EIGHT_BITS)
    return tensor


def _bias(operator: Operator, graph: GraphBuilder) -> list[str]:
    tensor = operator.inputs[2] if len(operator.inputs) > 2 else None
    return [] if tensor is None else [graph.of(tensor)]


def _activation(operator: Operator) -> int:
    return int(operator.options.get("FusedActivationFunction", 0))


def _activated(graph: GraphBuilder, name: str, activation: int) -> str:
    if activation not in ACTIVATIONS:
        raise RefusalError(f"has the activation {activation}; those of ReLU and its kin can be expressed")
    low, high = ACTIVATIONS[activation]
    return graph.clip(name, low, high)


def _signs(graph: GraphBuilder, name: str, comparison: str, at: NDArray[Any] | np.float32) -> str:
    """+1 where the comparison holds, otherwise -1."""
    holds = graph.add(comparison, name, graph.constant(np.asarray(at)))
    return graph.add("Where", holds, graph.constant(np.float32(1)), graph.constant(np.float32(-1)))


def _pair(options: dict[str, int | float | bool], height: str, width: str) -> tuple[int, int]:
    return int(options.get(height, 1)), int(options.get(width, 1))


def _check_dilation(options: dict[str, int | float | bool], height: str, width: str) -> None:
    dilation = _pair(options, height, width)
    if dilation != (1, 1):
        raise RefusalError(f"dilations {list(dilation)}; only 1 can be expressed")


def _pads(source: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: int) -> list[int]:
    if len(source.shape) != 4 or min(*kernel, *stride) < 1 or padding not in (SAME, VALID):
        raise RefusalError(
            f"takes {list(source.shape)} by windows of {list(kernel)}, strides {list(stride)}, padding {padding}"
        )
    if padding == VALID:
        return [0, 0, 0, 0]
    less, more = same_pads(source.shape[1:3], kernel, stride)
    return less + more


def _kernel(shape: Sequence[int]) -> tuple[int, int]:
    """Of weights (out, in, y, x)."""
    return shape[2], shape[3]


def _convolved(
    graph: GraphBuilder,
    source: Tensor,
    inputs: Sequence[str],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int,
    group: int = 1,
    outside: float = 0.0,
) -> str:
    """A convolution of maps (N, H, W, C).

    Args:
        inputs: the weights (out, in / groups, y, x), and the bias where there is one.
        outside: what its padding counts as.
    """
    pads = _pads(source, kernel, stride, padding)
    name = graph.add("Transpose", graph.of(source), perm=CHW)
    if any(pads) and outside:
        around = graph.constant(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64))
        name, pads = graph.add("Pad", name, around, graph.constant(np.float32(outside))), [0, 0, 0, 0]
    sums = graph.add("Conv", name, *inputs, kernel_shape=kernel, strides=stride, pads=pads, group=group)
    return graph.add("Transpose", sums, perm=HWC)


def _finish_conv(operator: Operator, graph: GraphBuilder, order: Sequence[int], group: int) -> None:
    """A real convolution.

    Args:
        order: of its weights' axes, so that they become (out, in / groups, y, x).
    """
    options, weights = operator.options, _input(operator, 1)
    _check_dilation(options, "DilationHFactor", "DilationWFactor")
    stride, padding = _pair(options, "StrideH", "StrideW"), int(options.get("Padding", SAME))
    kernel = _kernel([weights.shape[axis] for axis in order])
    inputs = [graph.add("Transpose", graph.of(weights), perm=list(order)), *_bias(operator, graph)]
    sums = _convolved(graph, _input(operator, 0), inputs, kernel, stride, padding, group)
    graph.name(_activated(graph, sums, _activation(operator)), operator)


def _pooled(
    graph: GraphBuilder,
    op: str,
    source: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int,
) -> str:
    pads = _pads(source, kernel, stride, padding)
    name = graph.add("Transpose", graph.of(source), perm=CHW)
    pooled = graph.add(op, name, kernel_shape=kernel, strides=stride, pads=pads)
    return graph.add("Transpose", pooled, perm=HWC)


def _finish_pool(operator: Operator, graph: GraphBuilder, op: str) -> None:
    options = operator.options
    kernel = _pair(options, "FilterHeight", "FilterWidth")
    stride = _pair(options, "StrideH", "StrideW")
    pooled = _pooled(graph, op, _input(operator, 0), kernel, stride, int(options.get("Padding", SAME)))
    graph.name(_activated(graph, pooled, _activation(operator)), operator)


def _slice(
    operator: Operator, graph: GraphBuilder, begin: list[int], end: list[int], steps: list[int]
) -> None:
    graph.name(_range(graph, graph.of(_input(operator, 0)), begin, end, steps), operator)


def _range(graph: GraphBuilder, name: str, begin: list[int], end: list[int], steps: list[int]) -> str:
    """A Slice, of maps by their order in ONNX."""
    axes = list(range(len(begin)))
    is_map = len(begin) == 4
    if is_map:
        name, axes = graph.add("Transpose", name, perm=CHW), [CHW.index(axis) for axis in axes]
    limits = (graph.constant(np.array(values, np.int64)) for values in (begin, end, axes, steps))
    result = graph.add("Slice", name, *limits)
    return graph.add("Transpose", result, perm=HWC) if is_map else result


#: All operators that are known, by their names in the schema or their own.
OPERATORS: dict[str, Translate] = {
    "LceQuantize": lce_quantize,
    "LceBconv2d": lce_bconv,
    "LceBMaxPool2d": lce_max_pool,
    "LceDequantize": unary("Identity"),
    "CONV_2D": conv,
    "DEPTHWISE_CONV_2D": depthwise_conv,
    "FULLY_CONNECTED": fully_connected,
    "MAX_POOL_2D": max_pool,
    "AVERAGE_POOL_2D": average_pool,
    "MEAN": mean,
    "ADD": binary("Add"),
    "SUB": binary("Sub"),
    "MUL": binary("Mul"),
    "DIV": binary("Div"),
    "MINIMUM": binary("Min"),
    "MAXIMUM": binary("Max"),
    "RELU": unary("Relu"),
    "RELU6": limited(0.0, 6.0),
    "RELU_N1_TO_1": limited(-1.0, 1.0),
    "RELU_0_TO_1": limited(0.0, 1.0),
    "LEAKY_RELU": leaky_relu,
    "PRELU": prelu,
    "NEG": unary("Neg"),
    "ABS": unary("Abs"),
    "SQRT": unary("Sqrt"),
    "RSQRT": rsqrt,
    "SQUARE": square,
    "EXP": unary("Exp"),
    "LOGISTIC": unary("Sigmoid"),
    "TANH": unary("Tanh"),
    "SIGN": unary("Sign"),
    "CAST": cast,
    "DEQUANTIZE": dequantize,
    "RESHAPE": reshape,
    "SQUEEZE": reshape,
    "EXPAND_DIMS": reshape,
    "TRANSPOSE": transpose,
    "PAD": pad,
    "PADV2": pad,
    "CONCATENATION": concat,
    "SLICE": sliced,
    "STRIDED_SLICE": strided_slice,
    "SPLIT": split,
    "SOFTMAX": softmax,
    "LOG_SOFTMAX": unary("LogSoftmax", axis=-1),
    "ARG_MAX": arg_max,
}
