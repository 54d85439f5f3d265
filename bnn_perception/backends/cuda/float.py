"""Evaluates the float twin on an NVIDIA GPU: what the binary net is compared with, made as fast as it honestly can be.

Convolutions are matrix products by cuBLAS. Between two products stands one kernel, which pools, normalizes, adds a
residual net's shortcut, clips and lays out the rows of the next product; as in the binary backend, one graph launch
takes a batch from camera bytes to logits.
"""

from __future__ import annotations

from bnn_perception.backends.cuda.backend import CudaBackend
from bnn_perception.backends.cuda.float_network import PRECISIONS, FloatNetwork
from bnn_perception.backends.protocol import BackendError
from bnn_perception.importers.errors import FloatTwinError
from bnn_perception.importers.onnx.float_twin import read_float_twin
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import read_twin
from bnn_perception.net.model import Model


class CudaFloatBackend(CudaBackend):
    """Evaluates a float twin; see :class:`bnn_perception.backends.cuda.backend.CudaBackend`.

    Args:
        model: whose float twin is evaluated.
        precision: ``fp32``, or ``fp16``: weights and activations of half precision, sums of single precision.
        graph: False to enqueue kernel by kernel, which is what the paper compares with.
        gpu: which one, as CUDA counts.

    Raises:
        BackendError: where there is no usable GPU, it fails, or the float twin holds what it does not know.
    """

    name = "cuda_float"
    is_float = True

    def __init__(self, model: Model, precision: str = "fp32", graph: bool = True, gpu: int = 0) -> None:
        if precision not in PRECISIONS:
            raise BackendError(f"precision '{precision}' is not one of {', '.join(PRECISIONS)}")
        if model.float_twin is None:
            raise BackendError(f"model '{model.name}' has no float twin (float.onnx)")
        try:
            content = read_twin(model)
            stages = read_float_twin(model.float_twin, model.input, len(model.labels), content)
        except FloatTwinError as error:
            raise BackendError(f"{error}; device cpu evaluates it") from None
        except ModelError as error:
            raise BackendError(str(error)) from None
        super().__init__(
            model,
            lambda device, stream: FloatNetwork(device, stream, model.input, stages, precision),
            gpu,
            graph,
        )
