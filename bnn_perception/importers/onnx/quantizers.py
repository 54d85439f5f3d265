"""The quantizers of QONNX (arXiv 2206.07527) in NumPy, to evaluate what a graph computes of constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError


def bipolar_quant(x: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float32]:
    """QONNX BipolarQuant: ``scale`` where x >= 0, else ``-scale``."""
    return (np.where(x >= 0, 1.0, -1.0) * scale).astype(np.float32)


def quantize(
    x: NDArray[Any], scale: Any, zero_point: Any, bit_width: Any, signed: int, narrow: int, rounding_mode: str
) -> NDArray[np.float32]:
    """QONNX Quant: round ``x / scale + zero_point`` to an integer of so many bits, and back.

    Signed numbers of one bit are -1 and +1, as BipolarQuant gives them; QONNX executes them so.
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


# -- as onnx.reference calls them: the operator first, then inputs, then attributes, which are None where not stated


def run_batch_norm(
    _: Any,
    x: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    variance: Any,
    epsilon: Any = 1e-5,
    **_attributes: Any,
) -> Any:
    """Batch norm in inference; below opset 14 ``onnx.reference`` mixes the batch's own statistics into it."""
    shape = (-1,) + (1,) * (x.ndim - 2)
    scale = gamma / np.sqrt(variance + np.float32(epsilon))
    return ((x - mean.reshape(shape)) * scale.reshape(shape) + beta.reshape(shape),)


def run_bipolar_quant(_: Any, x: Any, scale: Any) -> Any:
    return (bipolar_quant(x, scale),)


def run_quant(
    _: Any,
    x: Any,
    scale: Any,
    zero: Any,
    width: Any,
    narrow: Any = 0,
    rounding_mode: Any = "ROUND",
    signed: Any = 1,
) -> Any:
    return (quantize(x, scale, zero, width, signed or 0, narrow or 0, rounding_mode or "ROUND"),)


def run_multi_threshold(
    _: Any,
    x: Any,
    thresholds: Any,
    data_layout: Any = "",
    out_bias: Any = 0.0,
    out_dtype: Any = "",
    out_scale: Any = 1.0,
) -> Any:
    scale = 1.0 if out_scale is None else out_scale
    return (multi_threshold(x, thresholds, scale, out_bias or 0.0, data_layout or "NCHW"),)
