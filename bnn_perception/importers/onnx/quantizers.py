"""Evaluates the nodes of a QONNX graph, the quantizers of QONNX (arXiv 2206.07527) among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError

if TYPE_CHECKING:
    import onnx

#: Domains in which exporters put the quantizers; an op means the same in all of them.
QUANT_DOMAINS = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")


def bipolar_quant(x: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float32]:
    """QONNX BipolarQuant: ``scale`` where x >= 0, else ``-scale``."""
    return (np.where(x >= 0, 1.0, -1.0) * scale).astype(np.float32)


def quantize(
    x: NDArray[Any], scale: Any, zero_point: Any, bit_width: Any, signed: int, narrow: int, rounding_mode: str
) -> NDArray[np.float32]:
    """QONNX Quant: round ``x / scale + zero_point`` to an integer of so many bits, and back.

    Signed numbers of one bit are -1 and +1, as of BipolarQuant: so QONNX executes them.
    """
    if rounding_mode.upper() != "ROUND":
        raise RefusalError(f"rounding mode {rounding_mode}; ROUND is supported")
    integers = np.asarray(x, dtype=np.float32) / scale + zero_point
    if signed and np.all(np.asarray(bit_width) == 1):
        integers = np.where(integers >= 0, 1.0, -1.0)
    else:
        half = 2.0 ** (np.asarray(bit_width, dtype=np.float64) - 1)
        low, high = (-half + narrow, half - 1) if signed else (0.0, 2 * half - 1 - narrow)
        integers = np.clip(np.rint(integers), low, high)
    return ((integers - zero_point) * scale).astype(np.float32)


def multi_threshold(
    x: NDArray[Any], thresholds: NDArray[Any], out_scale: float, out_bias: float, data_layout: str
) -> NDArray[np.float32]:
    """QONNX MultiThreshold: how many of its channel's thresholds x reaches, scaled and shifted."""
    axis = x.ndim - 1 if data_layout == "NHWC" else 1
    shape = [1] * x.ndim
    shape[axis] = len(thresholds)
    reached = sum((x >= column.reshape(shape)).astype(np.float32) for column in thresholds.T)
    return np.asarray(reached * out_scale + out_bias, dtype=np.float32)


def quant_operators() -> list[Any]:
    """Classes with which ``onnx.reference`` evaluates the quantizers, and batch norm as inference means it.

    Below opset 14 ``onnx.reference`` mixes the batch's own statistics into a batch norm.
    """
    from onnx.reference.op_run import OpRun

    def norm_run(
        self: Any, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: Any = 1e-5, **_: Any
    ) -> Any:
        shape = (-1,) + (1,) * (x.ndim - 2)
        scale = gamma / np.sqrt(variance + np.float32(epsilon))
        return ((x - mean.reshape(shape)) * scale.reshape(shape) + beta.reshape(shape),)

    def bipolar_run(self: Any, x: Any, scale: Any) -> Any:
        return (bipolar_quant(x, scale),)

    def quant_run(
        self: Any,
        x: Any,
        scale: Any,
        zero: Any,
        width: Any,
        narrow: Any = 0,
        rounding_mode: Any = "ROUND",
        signed: Any = 1,
    ) -> Any:
        return (quantize(x, scale, zero, width, signed or 0, narrow or 0, rounding_mode or "ROUND"),)

    def threshold_run(
        self: Any,
        x: Any,
        thresholds: Any,
        data_layout: Any = "",
        out_bias: Any = 0.0,
        out_dtype: Any = "",
        out_scale: Any = 1.0,
    ) -> Any:
        scale = 1.0 if out_scale is None else out_scale
        return (multi_threshold(x, thresholds, scale, out_bias or 0.0, data_layout or "NCHW"),)

    runs: dict[str, Callable[..., Any]] = {
        "BipolarQuant": bipolar_run,
        "Quant": quant_run,
        "IntQuant": quant_run,
        "MultiThreshold": threshold_run,
    }
    places: list[tuple[str, str, Callable[..., Any]]] = [("", "BatchNormalization", norm_run)]
    places += [(domain, op, run) for domain in QUANT_DOMAINS for op, run in runs.items()]
    return [type(op, (OpRun,), {"op_domain": domain, "_run": run}) for domain, op, run in places]


def evaluate_node(
    node: onnx.NodeProto, values: Sequence[NDArray[Any] | None], opset: int
) -> list[NDArray[Any]]:
    """What one node gives for constants."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    present = {name: value for name, value in zip(node.input, values) if name and value is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in present.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in QUANT_DOMAINS)]
    try:
        evaluator = ReferenceEvaluator(
            helper.make_model(graph, opset_imports=opsets), new_ops=quant_operators()
        )
        return list(evaluator.run(None, present))
    except RefusalError:
        raise
    except Exception as error:  # whatever the evaluator of an untrusted graph raises
        raise RefusalError(f"cannot be evaluated: {error}") from None
