"""Trained nets as files: QONNX of the binary net, plain ONNX of the float twin."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bnn_perception.training.config import NetworkSpec
from bnn_perception.training.networks import ResidualConv, to_brevitas

#: Opset and IR version that ONNX Runtime reads from 1.14 on.
OPSET, IR_VERSION = 13, 8

#: Metadata of a QONNX file, read by the importer: labels joined by newlines, how a frame is fitted, the name.
LABELS_KEY, FIT_KEY, NAME_KEY = "bnn_perception.labels", "bnn_perception.fit", "bnn_perception.name"


def export_qonnx(
    net: nn.Module, spec: NetworkSpec, path: Path, labels: Sequence[str], name: str, fit: str = "crop"
) -> None:
    """Write a trained binary net as QONNX by Brevitas' exporter.

    The graph takes ``image``, (1, channels, height, width) float32 in [0, 1]; its quantizers are ``BipolarQuant``.
    """
    import onnx

    example = torch.zeros(1, spec.channels, spec.height, spec.width)
    with warnings.catch_warnings():
        # Brevitas and PyTorch's exporter warn about themselves.
        warnings.simplefilter("ignore")
        from brevitas.export import export_qonnx as brevitas_export

        brevitas_net = to_brevitas(net, spec, len(labels))
        brevitas_export(
            brevitas_net, args=example, export_path=str(path), input_names=["image"], dynamo=False
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {LABELS_KEY: "\n".join(labels), FIT_KEY: fit, NAME_KEY: name})
    onnx.save(model, str(path))


def float_twin_onnx(net: nn.Sequential, spec: NetworkSpec) -> bytes:
    """The float twin as ONNX: ``image`` (N, channels, height, width) float32 in [0, 1] -> ``logits`` (N, classes).

    Batch norm is folded into the convolution or matrix product before it, in float64. A max pool may stand between the
    two: a positive scale may pass it, and :func:`bnn_perception.training.networks.clip` keeps it positive. So may ReLU,
    which is written right behind the convolution, where runtimes fuse it.
    """
    from onnx import TensorProto, checker, helper

    graph = _FloatGraph("image")
    modules = dict(net.named_children())
    for name, module in modules.items():
        norm = modules.get(f"{name}_norm")
        if isinstance(module, nn.Conv2d):
            graph.conv(name, module, norm)
        elif isinstance(module, ResidualConv):
            graph.residual(name, module)
        elif isinstance(module, nn.Linear):
            graph.add("Gemm", name, *_folded(module, norm), transB=1)
        elif isinstance(module, nn.Flatten):
            graph.add("Flatten", name)
        elif isinstance(module, nn.MaxPool2d):
            graph.max_pool(name, module)
        elif name.endswith("_relu_before"):
            graph.add("Relu", name)
        if f"{name}_relu" in modules:
            graph.add("Relu", f"{name}_relu")
    graph.nodes[-1].output[0] = "logits"
    classes = graph.constants[-1].dims[0]
    image = helper.make_tensor_value_info(
        "image", TensorProto.FLOAT, ["N", spec.channels, spec.height, spec.width]
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "float_twin", [image], [logits], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="bnn_perception",
    )
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


class _FloatGraph:
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

    def conv(self, name: str, module: nn.Conv2d, norm: nn.Module | None) -> None:
        weight, bias = _folded(module, norm)
        pads = [*module.padding, *module.padding]
        self.add(
            "Conv", name, weight, bias, kernel_shape=module.kernel_size, strides=module.stride, pads=pads
        )

    def max_pool(self, name: str, module: nn.MaxPool2d) -> None:
        size = [module.kernel_size] * 2
        self.add("MaxPool", name, kernel_shape=size, strides=size)

    def residual(self, name: str, block: ResidualConv) -> None:
        """ReLU, convolution with its batch norm, max pool, plus the shortcut."""
        residual = self.tensor
        assert isinstance(block.conv, nn.Conv2d)
        assert block.activation is None  # of the binary net alone
        self.add("Relu", f"{name}_relu_before")
        self.conv(name, block.conv, block.norm)
        if isinstance(block.pool, nn.MaxPool2d):
            self.max_pool(f"{name}_pool", block.pool)
        if block.shortcut == "none":
            return
        result, self.tensor = self.tensor, residual
        if block.shortcut == "average_pool":
            self.add("AveragePool", f"{name}_average", kernel_shape=[2, 2], strides=[2, 2])
        if block.repeats > 1:
            self.join("Concat", f"{name}_repeat", *[self.tensor] * block.repeats, axis=1)
        self.join("Add", f"{name}_add", result, self.tensor)


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
