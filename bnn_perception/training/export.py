"""Trained nets as files: QONNX of the binary net, plain ONNX of the float twin."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from bnn_perception.training.config import NetworkSpec
from bnn_perception.training.float_graph import FloatGraph
from bnn_perception.training.networks import to_brevitas

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

    Each layer writes its own nodes (:mod:`bnn_perception.training.kinds`).
    """
    from onnx import TensorProto, checker, helper

    graph = FloatGraph("image")
    modules = dict(net.named_children())
    for name, layer, before in spec.walk_twin():
        if f"{name}_relu_before" in modules:
            graph.add("Relu", f"{name}_relu_before")
        if layer.takes == "features" and not before.flat:
            graph.add("Flatten", "flatten")
        layer.add_twin_nodes(graph, name, modules, before)
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
