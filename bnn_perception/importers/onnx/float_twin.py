"""Reads a float twin (``float.onnx``) into the few stages that a backend of this package's own evaluates.

Every stage is one matrix product and what follows it up to the next one::

    stream = scale * max_pool(conv(x, weights)) + shift + shortcut
    y = clip(stream, low, high)

where the shortcut of a residual net is made of the stream of the stage before; most stages have none. A fully connected
layer is a convolution whose kernel covers its whole input. Batch norm before the pool goes into the weights, batch norm
after it into ``scale`` and ``shift``; a clip commutes with the max, so it may stand on either side of the pool.

In a graph a shortcut is an Add with the tensor that the activation before the convolution reads, with its AveragePool
by 2x2, or with a Concat of copies of either. What is not such a chain is refused with the node's name and operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import one_line
from bnn_perception.net.checks import ModelError
from bnn_perception.net.layers import Pool, Shape
from bnn_perception.net.model import InputSpec

_KNOWN_SHORTCUT = "a shortcut around one convolution, from before the activation in front of it"


@dataclass(frozen=True, eq=False)
class Stage:
    """``y = clip(scale * max_pool(conv(x, weights)) + shift + shortcut, low, high)``.

    Attributes:
        name: of the node with the weights.
        input_shape: (height, width, channels).
        weights: (out_channels, kernel y, kernel x, in_channels) float32.
        stride: (y, x).
        padding: (top, left, bottom, right), with zeros.
        pool: max pooling, or None.
        scale, shift: (out_channels,) float32.
        low, high: bounds of the clip; infinite where there is none.
        shortcut: what is added of the stage before, taken before its clip: ``none``, ``identity``, or ``average_pool``:
            means of 2x2 with stride 2, an odd last row or column left out. Output channel c gets its channel
            ``c % in_channels``.
    """

    name: str
    input_shape: Shape
    weights: NDArray[np.float32]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    pool: Pool | None
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    low: float = -np.inf
    high: float = np.inf
    shortcut: Literal["none", "identity", "average_pool"] = "none"

    @property
    def kernel(self) -> tuple[int, int]:
        """(y, x)"""
        return self.weights.shape[1], self.weights.shape[2]

    @property
    def out_channels(self) -> int:
        return self.weights.shape[0]

    @property
    def conv_shape(self) -> Shape:
        """Before the pool."""
        height, width, _ = self.input_shape
        top, left, bottom, right = self.padding
        return (
            (height + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (width + left + right - self.kernel[1]) // self.stride[1] + 1,
            self.out_channels,
        )

    @property
    def output_shape(self) -> Shape:
        height, width, channels = self.conv_shape
        if self.pool is None:
            return height, width, channels
        return self.pool.length(height), self.pool.length(width), channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one frame."""
        height, width, _ = self.conv_shape
        return height * width * int(self.weights.size)


def read_float_twin(path: Path, spec: InputSpec, classes: int) -> tuple[Stage, ...]:
    """The stages of ``path``, a float twin of a model with this input and number of classes.

    Raises:
        FloatTwinError: naming the file, the node, its operator and what cannot be evaluated.
    """
    try:
        import onnx
    except ImportError:
        raise FloatTwinError(f"{path}: reading it needs the package onnx; pip install onnx") from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises types of its own, which change between versions
        raise FloatTwinError(f"{path}: is not an ONNX file: {one_line(error)}") from None
    try:
        stages = _Reader(model, spec.shape).stages()
    except _UnknownGraphError as error:
        raise FloatTwinError(f"{path}: {error}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise FloatTwinError(f"{path}: is malformed: {one_line(error)}") from None
    expected: Shape = (1, 1, classes)
    if stages[-1].output_shape != expected:
        raise FloatTwinError(f"{path}: its output is {list(stages[-1].output_shape)}, not {list(expected)}")
    return stages


class FloatTwinError(ModelError):
    """A float twin that cannot be evaluated; the message names the file, the node, its operator and the reason."""


class _UnknownGraphError(Exception):
    """A graph that is not a chain of stages."""


class _Shortcut(NamedTuple):
    """A tensor as what a shortcut adds.

    Attributes:
        source: the tensor that it is made of.
        averaged: by 2x2.
        repeats: of its channels.
        node: that makes it, None where it is the source.
    """

    source: str
    averaged: bool = False
    repeats: int = 1
    node: Any = None


class _Reader:
    """Walks the chain of nodes from the input to the output and gathers stages."""

    def __init__(self, model: Any, input_shape: Shape) -> None:
        from onnx import numpy_helper

        graph = model.graph
        self._constants: dict[str, NDArray[Any]] = {}
        for tensor in graph.initializer:
            if tensor.data_location == tensor.EXTERNAL:
                raise _UnknownGraphError(
                    f"tensor '{tensor.name}' lies in another file; a float twin is one file"
                )
            self._constants[tensor.name] = numpy_helper.to_array(tensor)
        inputs = [value.name for value in graph.input if value.name not in self._constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise _UnknownGraphError(
                f"it has {len(inputs)} inputs and {len(graph.output)} outputs; a float twin has one of each"
            )
        self._nodes = list(graph.node)
        self._current, self._output = inputs[0], graph.output[0].name
        self._shape = input_shape
        self._flat = False
        self._done: list[Stage] = []
        self._stage: Stage | None = None
        # The tensors that hold the values before the clip, of the open stage and of the one before; None: none does.
        self._stream: str | None = None
        self._stream_before: str | None = None
        self._shortcuts: dict[str, _Shortcut] = {}

    def stages(self) -> tuple[Stage, ...]:
        for node in self._nodes:
            self._take(node)
        if self._current != self._output:
            raise _UnknownGraphError(f"output '{self._output}' does not come from the last node")
        if self._stage is None:
            raise _UnknownGraphError("it holds no Conv, Gemm or MatMul")
        return (*self._done, self._stage)

    def _take(self, node: Any) -> None:
        from onnx import helper, numpy_helper

        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Constant":
            (value,) = attributes.values()
            tensor = hasattr(value, "dims")
            self._constants[node.output[0]] = numpy_helper.to_array(value) if tensor else np.asarray(value)
            return
        if node.op_type == "Identity" and node.input[0] in self._constants:
            self._constants[node.output[0]] = self._constants[node.input[0]]
            return
        if node.op_type in _SHORTCUTS:
            self._shortcuts[node.output[0]] = _SHORTCUTS[node.op_type](self, node, attributes)
            return
        handler: Callable[[Any, dict[str, Any]], None] | None = _HANDLERS.get(node.op_type)
        if handler is None:
            known = ", ".join((*_HANDLERS, *_SHORTCUTS))
            raise _refuse(node, f"the operator is not supported; known are {known}")
        self._check_inputs(node)
        handler(self, node, attributes)  # type: ignore[call-arg]
        self._current = node.output[0]
        if self._stage is not None and not _is_clipped(self._stage):
            self._stream = self._current
        elif node.op_type == "MaxPool":  # behind the clip: what stands before it is not pooled
            self._stream = None

    def _check_inputs(self, node: Any) -> None:
        """Refuse a node that takes anything but the previous node's output, constants and, an Add, the shortcut."""
        others = [
            name for name in node.input if name not in ("", self._current) and name not in self._constants
        ]
        if node.op_type == "Add" and len(others) == 1 and self._shortcut(others[0]) is not None:
            others.clear()
        if list(node.input).count(self._current) == 1 and not others:
            return
        for name in others:
            if name in self._shortcuts:
                reader = f"node '{node.name or node.output[0]}' ({node.op_type})"
                raise _refuse(
                    self._shortcuts[name].node, f"{reader} reads it; known is only {_KNOWN_SHORTCUT}"
                )
        known = f"a constant or {_KNOWN_SHORTCUT}" if node.op_type == "Add" else "constants"
        raise _refuse(node, f"its inputs are not the previous node's output and {known}")

    def _shortcut(self, name: str) -> _Shortcut | None:
        """A tensor as the shortcut of the open stage, None where it is not made of the stream of the stage before."""
        found = self._shortcuts.get(name, _Shortcut(name))
        return found if found.source == self._stream_before else None

    def _constant(self, node: Any, index: int) -> NDArray[Any] | None:
        """The constant input ``index``, None where it is absent."""
        name = node.input[index] if index < len(node.input) else ""
        return self._constants[name] if name else None

    def _need(self, node: Any, index: int) -> NDArray[Any]:
        value = self._constant(node, index)
        if value is None:
            raise _refuse(node, f"its input {index} is missing")
        return value

    def _open(self, node: Any) -> Stage:
        """The stage that ``node`` belongs to."""
        if self._stage is None:
            raise _refuse(node, "it stands before the first Conv, Gemm or MatMul")
        return self._stage

    def _unclipped(self, node: Any) -> Stage:
        stage = self._open(node)
        if _is_clipped(stage):
            raise _refuse(node, "it follows an activation; it can only stand before one")
        return stage

    def _begin(self, node: Any, weights: NDArray[Any], bias: NDArray[Any] | None, **geometry: Any) -> None:
        """Start a stage with ``weights`` (out, kernel y, kernel x, in)."""
        if self._stage is not None:
            self._done.append(self._stage)
        self._stream_before = self._stream
        out = weights.shape[0]
        shift = np.zeros(out) if bias is None else self._channels(node, bias, out)
        self._stage = Stage(
            name=node.name or node.output[0],
            input_shape=self._shape,
            weights=np.ascontiguousarray(weights, dtype=np.float32),
            pool=None,
            scale=np.ones(out, dtype=np.float32),
            shift=shift.astype(np.float32),
            **geometry,
        )
        self._follow(node)

    def _follow(self, node: Any) -> None:
        """The current shape after a change of the stage."""
        stage = self._open(node)
        if min(stage.output_shape) < 1:
            raise _refuse(node, f"its window is larger than its input {list(stage.input_shape)}")
        self._shape = stage.output_shape

    @staticmethod
    def _channels(node: Any, value: NDArray[Any], out: int) -> NDArray[np.float64]:
        """A constant for each channel, however it is shaped to broadcast."""
        if value.size not in (1, out):
            raise _refuse(
                node, f"a constant of shape {list(value.shape)} is not one value for each of {out} channels"
            )
        return np.broadcast_to(np.asarray(value, dtype=np.float64).reshape(-1), (out,))

    def conv(self, node: Any, attributes: dict[str, Any]) -> None:
        weights = self._need(node, 1)
        if weights.ndim != 4 or attributes.get("group", 1) != 1:
            raise _refuse(
                node, f"group {attributes.get('group', 1)}, weights {list(weights.shape)}; 2-d, group 1 only"
            )
        if self._flat or weights.shape[1] != self._shape[2]:
            raise _refuse(node, f"{weights.shape[1]} input channels, but its input is {list(self._shape)}")
        stride, padding = _window(node, attributes)
        if max(padding[0], padding[2]) >= weights.shape[2] or max(padding[1], padding[3]) >= weights.shape[3]:
            raise _refuse(node, f"pads {list(padding)} reach the size of the kernel")
        self._begin(
            node, weights.transpose(0, 2, 3, 1), self._constant(node, 2), stride=stride, padding=padding
        )

    def gemm(self, node: Any, attributes: dict[str, Any]) -> None:
        if (
            attributes.get("transA", 0)
            or attributes.get("alpha", 1.0) != 1.0
            or attributes.get("beta", 1.0) != 1.0
        ):
            raise _refuse(node, "transA, alpha and beta must be 0, 1 and 1")
        matrix = self._need(node, 1)
        self._dense(node, matrix if attributes.get("transB", 0) else matrix.T, self._constant(node, 2))

    def matmul(self, node: Any, attributes: dict[str, Any]) -> None:
        if node.input[0] != self._current:
            raise _refuse(node, "its first input is not the previous node's output")
        self._dense(node, self._need(node, 1).T, None)

    def _dense(self, node: Any, matrix: NDArray[Any], bias: NDArray[Any] | None) -> None:
        """``matrix`` is (out, in), its input in the order of ONNX: channel, y, x."""
        height, width, channels = self._shape
        if matrix.ndim != 2 or matrix.shape[1] != height * width * channels or not self._flat:
            raise _refuse(
                node, f"weights {list(matrix.T.shape)} on an input {list(self._shape)}, flattened or not"
            )
        weights = matrix.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        self._begin(node, weights, bias, stride=(1, 1), padding=(0, 0, 0, 0))

    def batch_norm(self, node: Any, attributes: dict[str, Any]) -> None:
        stage = self._unclipped(node)
        if attributes.get("training_mode", 0):
            raise _refuse(node, "training_mode 1")
        if stage.shortcut != "none":
            raise _refuse(node, "it follows a shortcut; it can only stand before one")
        gamma, beta, mean, variance = (
            self._channels(node, self._need(node, i), stage.out_channels) for i in (1, 2, 3, 4)
        )
        scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        shift = (stage.shift * scale + beta - mean * scale).astype(np.float32)
        if stage.pool is None:
            weights = (stage.weights * scale[:, None, None, None]).astype(np.float32)
            self._stage = replace(stage, weights=weights, shift=shift)
        else:
            self._stage = replace(stage, scale=(stage.scale * scale).astype(np.float32), shift=shift)

    def add(self, node: Any, attributes: dict[str, Any]) -> None:
        stage = self._unclipped(node)
        index = 1 if node.input[0] == self._current else 0
        shortcut = self._shortcut(node.input[index])
        if shortcut is not None:
            self._stage = self._with_shortcut(node, stage, shortcut)
            return
        bias = self._channels(node, self._need(node, index), stage.out_channels)
        self._stage = replace(stage, shift=(stage.shift + bias).astype(np.float32))

    def _with_shortcut(self, node: Any, stage: Stage, shortcut: _Shortcut) -> Stage:
        height, width, channels = stage.input_shape
        if shortcut.averaged:
            height, width = height // 2, width // 2
        shape = height, width, channels * shortcut.repeats
        if stage.shortcut != "none" or self._flat:
            raise _refuse(node, "a stage has at most one shortcut, before it is flattened")
        if stage.output_shape != shape:
            raise _refuse(node, f"the shortcut is {list(shape)}, the convolution {list(stage.output_shape)}")
        return replace(stage, shortcut="average_pool" if shortcut.averaged else "identity")

    def average_pool(self, node: Any, attributes: dict[str, Any]) -> _Shortcut:
        size = attributes["kernel_shape"]
        stride, padding = _window(node, attributes)
        if (*size, *stride) != (2, 2, 2, 2) or any(padding) or attributes.get("ceil_mode", 0):
            raise _refuse(
                node,
                f"window {list(size)}, strides {list(stride)}, pads {list(padding)}, ceil_mode "
                f"{attributes.get('ceil_mode', 0)}; 2x2 with stride 2, unpadded, rounded down only",
            )
        found = self._shortcuts.get(node.input[0], _Shortcut(node.input[0]))
        if found.averaged:
            raise _refuse(node, "a shortcut is averaged at most once")
        return found._replace(averaged=True, node=node)

    def concat(self, node: Any, attributes: dict[str, Any]) -> _Shortcut:
        if len(set(node.input)) != 1 or attributes["axis"] not in (1, -3):
            raise _refuse(
                node, f"axis {attributes['axis']}; only copies of one tensor along the channels are known"
            )
        found = self._shortcuts.get(node.input[0], _Shortcut(node.input[0]))
        return found._replace(repeats=found.repeats * len(node.input), node=node)

    def relu(self, node: Any, attributes: dict[str, Any]) -> None:
        self._clip(node, 0.0, np.inf)

    def clip(self, node: Any, attributes: dict[str, Any]) -> None:
        bounds = [attributes.get("min", -np.inf), attributes.get("max", np.inf)]  # attributes up to opset 10
        for index in (1, 2):
            value = self._constant(node, index)
            if value is not None:
                bounds[index - 1] = float(value.reshape(()))
        self._clip(node, *bounds)

    def _clip(self, node: Any, low: float, high: float) -> None:
        stage = self._open(node)
        if low > high:
            raise _refuse(node, f"its bounds {low} and {high} are the wrong way round")
        self._stage = replace(
            stage,
            low=float(np.clip(stage.low, low, high)),
            high=float(np.clip(stage.high, low, high)),
        )

    def max_pool(self, node: Any, attributes: dict[str, Any]) -> None:
        stage = self._open(node)
        if stage.pool is not None or stage.shortcut != "none" or self._flat:
            raise _refuse(
                node, "a stage has at most one max pool, before its shortcut and before it is flattened"
            )
        size = attributes["kernel_shape"]
        stride, padding = _window(node, attributes)
        if len(set(size)) != 1 or len(set(stride)) != 1 or any(padding) or attributes.get("ceil_mode", 0):
            raise _refuse(
                node,
                f"window {list(size)}, strides {list(stride)}, pads {list(padding)}; square, unpadded only",
            )
        self._stage = replace(stage, pool=Pool(int(size[0]), stride[0]))
        self._follow(node)

    def flatten(self, node: Any, attributes: dict[str, Any]) -> None:
        if attributes.get("axis", 1) != 1:
            raise _refuse(node, f"axis {attributes['axis']}; it must be 1")
        self._flat = True

    def reshape(self, node: Any, attributes: dict[str, Any]) -> None:
        shape = self._need(node, 1).tolist()
        features = int(np.prod(self._shape))
        if len(shape) != 2 or shape[0] not in (-1, 0) or shape[1] not in (-1, features) or shape == [-1, -1]:
            raise _refuse(node, f"to {shape}; only a flattening to (batch, {features}) is known")
        self._flat = True

    def identity(self, node: Any, attributes: dict[str, Any]) -> None:
        pass


def _is_clipped(stage: Stage) -> bool:
    return (stage.low, stage.high) != (-np.inf, np.inf)


def _window(node: Any, attributes: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Stride (y, x) and padding (top, left, bottom, right) of a convolution or pool."""
    stride = tuple(attributes.get("strides", (1, 1)))
    padding = tuple(attributes.get("pads", (0, 0, 0, 0)))
    if len(stride) != 2 or len(padding) != 4 or min(padding) < 0:
        raise _refuse(node, f"strides {list(stride)}, pads {list(padding)}; 2-d, not negative only")
    if any(d != 1 for d in attributes.get("dilations", ())):
        raise _refuse(node, f"dilations {list(attributes['dilations'])}; 1 only")
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise _refuse(node, f"auto_pad {attributes['auto_pad'].decode()}; state pads instead")
    return (int(stride[0]), int(stride[1])), (
        int(padding[0]),
        int(padding[1]),
        int(padding[2]),
        int(padding[3]),
    )


def _refuse(node: Any, reason: str) -> _UnknownGraphError:
    return _UnknownGraphError(f"node '{node.name or node.output[0]}' ({node.op_type}): {reason}")


_HANDLERS: dict[str, Callable[..., None]] = {
    "Conv": _Reader.conv,
    "Gemm": _Reader.gemm,
    "MatMul": _Reader.matmul,
    "BatchNormalization": _Reader.batch_norm,
    "Add": _Reader.add,
    "Relu": _Reader.relu,
    "Clip": _Reader.clip,
    "MaxPool": _Reader.max_pool,
    "Flatten": _Reader.flatten,
    "Reshape": _Reader.reshape,
    "Identity": _Reader.identity,
    "Dropout": _Reader.identity,
}
#: Nodes beside the chain.
_SHORTCUTS: dict[str, Callable[..., _Shortcut]] = {
    "AveragePool": _Reader.average_pool,
    "Concat": _Reader.concat,
}
