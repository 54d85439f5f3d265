"""A float twin in ONNX Runtime as the benchmark needs it: quantized to int8, and timed layer by layer."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cpu.float import open_session
from bnn_perception.errors import Error

#: Random images that the ranges of the activations are taken from. Accuracy is not measured here, and no operator
#: takes longer for other ranges.
CALIBRATION_IMAGES = 16
#: Calls that are profiled; their median counts.
PROFILED_CALLS = 200
#: Operators that begin a layer: those with weights. ONNX Runtime's optimizer appends and prepends to these names.
WEIGHTED = ("Conv", "Gemm", "MatMul")


class MissingPackageError(Error):
    """A package that int8 needs is not installed; the message says which."""


def quantize(twin: Path, folder: Path, input_shape: tuple[int, int, int]) -> Path:
    """Write the int8 form of a float twin, by ONNX Runtime's own static quantization (QDQ, weights by channel).

    Args:
        twin: the float twin.
        folder: to write to.
        input_shape: (channels, height, width).

    Raises:
        MissingPackageError: where a package for it is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingPackageError(
            f"int8 is left out, for its quantization needs the package onnx ({error})"
        ) from None
    rng = np.random.default_rng(0)

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self._images: Iterator[NDArray[np.float32]] = iter(
                rng.random((CALIBRATION_IMAGES, 1, *input_shape), np.float32)
            )

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._images, None)
            return None if image is None else {name: image}

    name = str(onnx.load(str(twin), load_external_data=False).graph.input[0].name)
    prepared, quantized = folder / "prepared.onnx", folder / "int8.onnx"
    # Its warnings advise to do what was just done.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quant_pre_process(str(twin), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(quantized),
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)
    return quantized


def layer_times(path: Path, threads: int, tensor: NDArray[np.float32], folder: Path) -> list[float]:
    """Milliseconds of each layer with weights, as ONNX Runtime's profiler states them for its operators.

    A layer is an operator with weights and all operators up to the next one; what stands before the first is counted
    to the first. The executor's own time between operators is in none of them.
    """
    session = open_session(path, threads, spinning=True, profile=folder / "profile")
    name = session.get_inputs()[0].name
    for _ in range(PROFILED_CALLS):
        session.run(None, {name: tensor})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    calls: list[list[float]] = []
    for event in sorted(events, key=lambda event: float(event.get("ts", 0))):
        if event.get("name") == "model_run":
            calls.append([])
            weighted = 0
        elif calls and str(event.get("name")).endswith("_kernel_time"):
            weighted += any(word in event["args"]["op_name"] for word in WEIGHTED)
            if len(calls[-1]) < max(weighted, 1):
                calls[-1].append(0.0)
            calls[-1][-1] += event["dur"] / 1e3
    return [float(time) for time in np.median(np.array(calls), axis=0)]
