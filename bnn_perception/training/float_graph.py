"""The ONNX graph of a float twin, while its layers write their nodes.

Batch norm is folded into the convolution or matrix product before it, in float64. A max pool may stand between the two:
a positive scale may pass it, and :func:`bnn_perception.training.networks.clip` keeps it positive.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn


class FloatGraph:
    """Nodes of a float twin, in order.

    Attributes:
        tensor: name of the last node's output, which the next node takes.
    """

    def __init__(self, tensor: str) -> None:
        self.tensor = tensor
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, name: str, *arrays: NDArray[np.float64], **attributes: Any) -> None:
        """A node that takes the current tensor and constants: a weight, then a bias."""
        from onnx import numpy_helper

        inputs = [self.tensor]
        for suffix, array in zip(("weight", "bias"), arrays):
            self.constants.append(numpy_helper.from_array(array.astype(np.float32), f"{name}.{suffix}"))
            inputs.append(f"{name}.{suffix}")
        self.join(op, name, *inputs, **attributes)

    def join(self, op: str, name: str, *inputs: str, **attributes: Any) -> None:
        """A node that takes these tensors."""
        from onnx import helper

        self.tensor = f"{name}_out"
        self.nodes.append(helper.make_node(op, inputs, [self.tensor], name, **attributes))

    def conv(self, name: str, module: Any, norm: nn.Module) -> None:
        """A convolution with the batch norm that follows it."""
        weight, bias = _folded(module, norm)
        pads = [*module.padding, *module.padding]
        self.add(
            "Conv", name, weight, bias, kernel_shape=module.kernel_size, strides=module.stride, pads=pads
        )

    def linear(self, name: str, module: Any, norm: nn.Module | None = None) -> None:
        """A matrix product with the batch norm that follows it, or with its own bias."""
        self.add("Gemm", name, *_folded(module, norm), transB=1)

    def max_pool(self, name: str, size: int) -> None:
        """Max pool of square windows side by side."""
        self.add("MaxPool", name, kernel_shape=[size] * 2, strides=[size] * 2)


def _folded(
    module: nn.Conv2d | nn.Linear, norm: nn.Module | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weight = module.weight.detach().numpy().astype(np.float64)
    bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().numpy().astype(np.float64)
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return weight, bias
    gamma, beta, mean, variance = (
        value.detach().numpy().astype(np.float64)  # type: ignore[union-attr]
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    if np.any(gamma < 0):
        raise ValueError("a batch norm of the float twin has a negative gamma and cannot pass the max pool")
    scale = gamma / np.sqrt(variance + norm.eps)
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), beta + (bias - mean) * scale
