"""A float twin on the GPU: weights, matrices, and the launches from pixels to logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cuda import float_specs, specs
from bnn_perception.backends.cuda.backend import Launch, enqueue
from bnn_perception.backends.cuda.compile import Kernels
from bnn_perception.backends.cuda.cublas import Cublas
from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.memory import SharedBuffer
from bnn_perception.backends.cuda.specs import KernelSpec
from bnn_perception.importers.stage import Stage
from bnn_perception.net.model import InputSpec

PRECISIONS = ("fp32", "fp16")


class FloatNetwork:
    """The stages of a float twin with their arrays on the GPU; see :class:`.backend.DeviceNetwork`.

    Each stage is a matrix product by cuBLAS, (frames * conv height * conv width, columns) by the weights, and one
    kernel that pools, scales, adds the shortcut, clips and writes the next stage's matrix (kernels/float_epilogue.cu).
    What a shortcut of the next stage reads, the values before the clip, it writes too, as float32 in both precisions.

    Args:
        gpu: where; entered by the caller.
        stream: that everything is enqueued on.
        spec: the model's input.
        stages: of the float twin.
        precision: ``fp32``, or ``fp16`` for operands of half precision and sums of single precision.
    """

    def __init__(
        self, gpu: Gpu, stream: Any, spec: InputSpec, stages: Sequence[Stage], precision: str
    ) -> None:
        self._gpu = gpu
        self._spec = spec
        self._stages = stages
        self._half = precision == "fp16"
        self._element = np.float16 if self._half else np.float32
        self._kernels = Kernels(gpu)
        self._cublas = Cublas(gpu, stream)
        asarray = gpu.cupy.asarray
        self._weights = [asarray(matrix) for matrix in weight_matrices(stages, self._element)]
        self._affine = [(asarray(padded(stage.scale)), asarray(padded(stage.shift))) for stage in stages]
        self._bounds = [(np.float32(stage.low), np.float32(stage.high)) for stage in stages]
        self._frames = 0

    def reserve(self, frames: int) -> bool:
        if frames <= self._frames:
            return False
        self._frames = 1 << (frames - 1).bit_length()
        cupy = self._gpu.cupy
        height, width, _ = self._spec.shape
        self.logits = SharedBuffer(self._gpu, (self._frames, self._stages[-1].out_channels), np.float32)
        self._pixels = cupy.zeros((self._frames, height, width), np.uint32)
        # Zeros once and for all where a matrix holds padding: the kernels write the rest of it only.
        self._matrices = [
            cupy.zeros((self._frames * _rows(stage), weights.shape[1]), self._element)
            for stage, weights in zip(self._stages, self._weights)
        ]
        self._residuals = [
            cupy.empty((self._frames, *stage.output_shape[:2], weights.shape[0]), np.float32)
            if float_specs.reads_residual(following)
            else None
            for stage, following, weights in zip(self._stages, self._followers(), self._weights)
        ]
        largest = max(_rows(stage) * weights.shape[0] for stage, weights in zip(self._stages, self._weights))
        self._product = cupy.zeros((self._frames * largest,), self._element)
        return True

    def compile(self, frames: int) -> None:
        # cuBLAS chooses and loads its kernels at the first call with a shape, so everything but the preprocessing,
        # which needs frames, is run once.
        enqueue(self.launches(None, frames)[1:])

    def launches(self, upload: Any, frames: int) -> Sequence[Launch]:
        launches = [
            self._launch("input", specs.preprocess(self._spec, frames), upload, self._pixels),
            self._launch(
                self._stages[0].name,
                float_specs.im2col(self._stages[0], self._half, frames),
                self._pixels,
                self._matrices[0],
            ),
        ]
        followers = self._followers()
        outputs = [*self._matrices[1:], self.logits.device]
        for index, (stage, weights) in enumerate(zip(self._stages, self._weights)):
            rows, filters = frames * _rows(stage), weights.shape[0]
            product = self._product[: rows * filters].reshape(rows, filters)
            multiply = partial(self._cublas.multiply, self._matrices[index][:rows], weights, product)
            launches.append(Launch(stage.name, None, multiply))
            spec = float_specs.epilogue(stage, followers[index], self._half, frames)
            residuals = [self._residuals[index - 1]] if float_specs.reads_residual(stage) else []
            if float_specs.reads_residual(followers[index]):
                residuals.append(self._residuals[index])
            args = (product, *self._affine[index], *self._bounds[index], outputs[index], *residuals)
            launches.append(self._launch(stage.name, spec, *args))
        return launches

    def _followers(self) -> list[Stage | None]:
        """The stage behind each."""
        return [*self._stages[1:], None]

    def _launch(self, layer: str, spec: KernelSpec, *args: Any) -> Launch:
        return Launch(layer, spec, partial(self._kernels[spec], spec.grid, spec.block, args))

    def outputs(self) -> Iterator[tuple[str, NDArray[Any]]]:
        yield "input", self._pixels[0].get()
        yield self._stages[-1].name, self.logits.device[0].get()

    def close(self) -> None:
        self._cublas.close()


def _rows(stage: Stage) -> int:
    """Rows of a stage's matrix for one frame."""
    return stage.conv_shape[0] * stage.conv_shape[1]


def weight_matrices(stages: Sequence[Stage], element: type) -> list[NDArray[Any]]:
    """Each stage's weights as (padded filters, columns), columns as :func:`float_specs.columns` lays them."""
    matrices: list[NDArray[Any]] = []
    for index, stage in enumerate(stages):
        filters, height, width, channels = stage.weights.shape
        columns = float_specs.columns(stage, first=index == 0)
        matrix: NDArray[Any] = np.zeros((float_specs.aligned(filters), columns), element)
        if index == 0:
            matrix[:filters, : height * width * channels] = stage.weights.reshape(filters, -1)
        else:
            taps = matrix[:filters].reshape(filters, height, width, -1)
            taps[..., :channels] = stage.weights
        matrices.append(matrix)
    return matrices


def padded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A value a filter, 0 for filters that do not exist."""
    return np.pad(values, (0, float_specs.aligned(len(values)) - len(values)))
