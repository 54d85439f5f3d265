"""The stages of a float twin, node by node: what its operators do to the stage that is open.

Every stage (:class:`~bnn_perception.importers.stage.Stage`) is one matrix product and what follows it up to the next
one. A fully connected layer is a convolution whose kernel covers its whole input. Batch norm before the pool goes into
the weights, batch norm after it into ``scale`` and ``shift``; a clip commutes with the max, so it may stand on either
side of the pool.

A shortcut is an Add with the tensor that the activation before the convolution reads, with its AveragePool by 2x2, or
with a Concat of copies of either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import ImporterError, RefusalError
from bnn_perception.importers.onnx.node import Node
from bnn_perception.importers.stage import Stage
from bnn_perception.net.layer import Shape

_KNOWN_SHORTCUT = "a shortcut around one convolution, from before the activation in front of it"


class Tensor(NamedTuple):
    """A tensor that depends on the image, as what a shortcut adds.

    Attributes:
        source: name of the tensor that it is made from; its own where no shortcut's operator made it.
        averaged: whether it is averaged by 2x2.
        repeats: how often its channels are repeated.
        where: the shortcut's operator that gives it; empty for a tensor of the chain.
    """

    source: str
    averaged: bool = False
    repeats: int = 1
    where: str = ""


@dataclass
class Chain:
    """The stages so far.

    Attributes:
        current: name of the tensor that the next node of the chain must take.
        shape: its (height, width, channels).
        flat: whether it is flattened.
        done: the finished stages.
        stage: the open one; None before the first.
        residual, residual_before: names of the tensors before the clip of the open stage and of the one before it;
            None where there is none.
        tensors: all that depend on the image, by their names.
    """

    current: str
    shape: Shape
    flat: bool = False
    done: tuple[Stage, ...] = ()
    stage: Stage | None = None
    residual: str | None = None
    residual_before: str | None = None

    def __post_init__(self) -> None:
        self.tensors = {self.current: Tensor(self.current)}

    def follow(self, node: Node[Tensor], change: Callable[[Node[Tensor], Chain], None]) -> None:
        """Take a node of the chain: what it gives is the current tensor."""
        self._check_inputs(node)
        change(node, self)
        self.current = node.outputs[0]
        self.tensors[self.current] = Tensor(self.current)
        if self.stage is not None and not _is_clipped(self.stage):
            self.residual = self.current
        elif node.op == "MaxPool":
            # Behind the clip: what stands before the clip is not pooled.
            self.residual = None

    def branch(self, node: Node[Tensor], change: Callable[[Node[Tensor]], Tensor]) -> None:
        """Take a node of a shortcut: the current tensor stays."""
        self.tensors[node.outputs[0]] = change(node)._replace(where=node.where)

    def _check_inputs(self, node: Node[Tensor]) -> None:
        """Refuse a node that takes anything but the previous node's output, constants and, an Add, the shortcut."""
        others = [name for name, tensor in zip(node.inputs, node.values) if tensor and name != self.current]
        if node.op == "Add" and len(others) == 1 and self.is_shortcut(self.tensors[others[0]]):
            others.clear()
        if list(node.inputs).count(self.current) == 1 and not others:
            return
        for name in others:
            if self.tensors[name].where:
                raise ImporterError(
                    f"{self.tensors[name].where}: {node.where} reads it; known is only {_KNOWN_SHORTCUT}"
                )
        known = f"a constant or {_KNOWN_SHORTCUT}" if node.op == "Add" else "constants"
        raise RefusalError(f"its inputs are not the previous node's output and {known}")

    def is_shortcut(self, tensor: Tensor) -> bool:
        """Whether a tensor is made from the residual of the stage before the open one."""
        return tensor.source == self.residual_before

    def opened(self) -> Stage:
        """The open stage."""
        if self.stage is None:
            raise RefusalError("it stands before the first Conv, Gemm or MatMul")
        return self.stage

    def unclipped(self) -> Stage:
        """The open stage, before its activation."""
        stage = self.opened()
        if _is_clipped(stage):
            raise RefusalError("it follows an activation; it can only stand before one")
        return stage

    def begin(self, node: Node[Tensor], weights: NDArray[Any], bias: NDArray[Any], **geometry: Any) -> None:
        """Open a stage with ``weights`` (out, kernel y, kernel x, in)."""
        if self.stage is not None:
            self.done = (*self.done, self.stage)
        self.residual_before = self.residual
        out = weights.shape[0]
        self.resize(
            Stage(
                name=node.proto.name or node.outputs[0],
                input_shape=self.shape,
                weights=np.ascontiguousarray(weights, dtype=np.float32),
                pool=None,
                scale=np.ones(out, dtype=np.float32),
                shift=_channels(bias, out).astype(np.float32),
                **geometry,
            )
        )

    def resize(self, stage: Stage) -> None:
        """Set the open stage to one whose output has another shape."""
        if min(stage.output_shape) < 1:
            raise RefusalError(f"its window is larger than its input {list(stage.input_shape)}")
        self.stage, self.shape = stage, stage.output_shape


def _is_clipped(stage: Stage) -> bool:
    return (stage.low, stage.high) != (-np.inf, np.inf)


def _channels(value: NDArray[Any], out: int) -> NDArray[np.float64]:
    """A constant as one number a channel, however it is shaped to broadcast."""
    if value.size not in (1, out):
        raise RefusalError(
            f"a constant of shape {list(value.shape)} is not one value for each of {out} channels"
        )
    return np.broadcast_to(np.asarray(value, dtype=np.float64).reshape(-1), (out,))


# -- nodes of the chain


def conv(node: Node[Tensor], chain: Chain) -> None:
    weights, window, groups = node.convolution(None)
    if groups != 1:
        raise RefusalError(f"group {groups}; only convolutions of group 1 can be expressed in a float twin")
    if chain.flat or weights.shape[1] != chain.shape[2]:
        raise RefusalError(f"{weights.shape[1]} input channels, but its input is {list(chain.shape)}")
    if any(pad >= kernel for pad, kernel in zip(window.pads, window.kernel * 2)):
        raise RefusalError(f"pads {list(window.pads)} reach the size of the kernel")
    bias = node.option(2, np.zeros(1))
    chain.begin(node, weights.transpose(0, 2, 3, 1), bias, stride=window.stride, padding=window.pads)


def gemm(node: Node[Tensor], chain: Chain) -> None:
    _dense(node, chain, *node.gemm())


def matmul(node: Node[Tensor], chain: Chain) -> None:
    if node.place != 0:
        raise RefusalError("its first input is not the previous node's output")
    _dense(node, chain, node.constant(1).T, np.zeros(1))


def _dense(node: Node[Tensor], chain: Chain, matrix: NDArray[Any], bias: NDArray[Any]) -> None:
    """Open a stage with ``matrix`` (out, in), its input in the order of ONNX: channel, y, x."""
    height, width, channels = chain.shape
    if matrix.ndim != 2 or matrix.shape[1] != height * width * channels or not chain.flat:
        raise RefusalError(
            f"weights {list(matrix.T.shape)} on an input {list(chain.shape)}, flattened or not"
        )
    weights = matrix.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    chain.begin(node, weights, bias, stride=(1, 1), padding=(0, 0, 0, 0))


def batch_norm(node: Node[Tensor], chain: Chain) -> None:
    stage = chain.unclipped()
    norm = node.normalization(stage.out_channels)
    if stage.shortcut != "none":
        raise RefusalError("it follows a shortcut; it can only stand before one")
    gamma, beta, mean, variance = (
        _channels(values, stage.out_channels) for values in (norm.gamma, norm.beta, norm.mean, norm.variance)
    )
    scale = gamma / np.sqrt(variance + norm.epsilon)
    shift = (stage.shift * scale + beta - mean * scale).astype(np.float32)
    if stage.pool is None:
        weights = (stage.weights * scale[:, None, None, None]).astype(np.float32)
        chain.stage = replace(stage, weights=weights, shift=shift)
    else:
        chain.stage = replace(stage, scale=(stage.scale * scale).astype(np.float32), shift=shift)


def add(node: Node[Tensor], chain: Chain) -> None:
    stage = chain.unclipped()
    index = 1 if node.inputs[0] == chain.current else 0
    other = node.values[index]
    if other is not None:
        chain.stage = _with_shortcut(chain, stage, other)
        return
    bias = _channels(node.constant(index), stage.out_channels)
    chain.stage = replace(stage, shift=(stage.shift + bias).astype(np.float32))


def _with_shortcut(chain: Chain, stage: Stage, shortcut: Tensor) -> Stage:
    height, width, channels = stage.input_shape
    if shortcut.averaged:
        height, width = height // 2, width // 2
    shape = height, width, channels * shortcut.repeats
    if stage.shortcut != "none" or chain.flat:
        raise RefusalError("a stage has at most one shortcut, before it is flattened")
    if stage.output_shape != shape:
        raise RefusalError(f"the shortcut is {list(shape)}, the convolution {list(stage.output_shape)}")
    return replace(stage, shortcut="average_pool" if shortcut.averaged else "identity")


def relu(node: Node[Tensor], chain: Chain) -> None:
    _limit(chain, 0.0, np.inf)


def clip(node: Node[Tensor], chain: Chain) -> None:
    _limit(chain, *node.limits())


def _limit(chain: Chain, low: float, high: float) -> None:
    stage = chain.opened()
    if low > high:
        raise RefusalError(f"its bounds {low} and {high} are the wrong way round")
    low, high = (float(np.clip(bound, low, high)) for bound in (stage.low, stage.high))
    chain.stage = replace(stage, low=low, high=high)


def max_pool(node: Node[Tensor], chain: Chain) -> None:
    stage = chain.opened()
    if stage.pool is not None or stage.shortcut != "none" or chain.flat:
        raise RefusalError("a stage has at most one max pool, before its shortcut and before it is flattened")
    chain.resize(replace(stage, pool=node.window(None).max_pool(chain.shape[:2])))


def flatten(node: Node[Tensor], chain: Chain) -> None:
    if node.attribute("axis", 1) != 1:
        raise RefusalError(f"axis {node.attribute('axis', 1)}; it must be 1")
    chain.flat = True


def reshape(node: Node[Tensor], chain: Chain) -> None:
    shape = node.constant(1).tolist()
    features = int(np.prod(chain.shape))
    if len(shape) != 2 or shape[0] not in (-1, 0) or shape[1] not in (-1, features) or shape == [-1, -1]:
        raise RefusalError(f"to {shape}; only a flattening to (batch, {features}) is known")
    chain.flat = True


def keep(node: Node[Tensor], chain: Chain) -> None:
    """Nothing changes."""


# -- nodes of a shortcut


def average_pool(node: Node[Tensor]) -> Tensor:
    node.window(None).check_halving(None)
    if node.signal.averaged:
        raise RefusalError("a shortcut is averaged at most once")
    return node.signal._replace(averaged=True)


def concat(node: Node[Tensor]) -> Tensor:
    axis = node.attribute("axis", None)
    if len(set(node.inputs)) != 1 or axis not in (1, -3):
        raise RefusalError(f"axis {axis}; only copies of one tensor along the channels are known")
    return node.signal._replace(repeats=node.signal.repeats * len(node.inputs))
