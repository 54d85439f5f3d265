"""Evaluates the binary net on an NVIDIA GPU: one CUDA graph from the camera's bytes to the logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from bnn_perception.backends.cuda.backend import CudaBackend, Launch
from bnn_perception.backends.cuda.compile import Kernels
from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.memory import SharedBuffer
from bnn_perception.backends.cuda.network import Array, Step, network
from bnn_perception.backends.cuda.tiles import TileTable
from bnn_perception.backends.protocol import BackendError
from bnn_perception.net.model import Model


class CudaBinaryBackend(CudaBackend):
    """Evaluates a model with the kernels of ``kernels/``; see :class:`.backend.CudaBackend`.

    Args:
        model: to evaluate.
        tiles: how the layers are cut; by default the tables that ship and that were tuned on this machine.
        gpu: which one, as CUDA counts.

    Raises:
        BackendError: where there is no usable GPU, or it fails.
    """

    name = "cuda_binary"

    def __init__(self, model: Model, tiles: TileTable | None = None, gpu: int = 0) -> None:
        def build(device: Gpu, stream: Any) -> BinaryNetwork:
            try:
                steps = network(model, device.target, TileTable.load() if tiles is None else tiles)
            except ValueError as error:
                raise BackendError(str(error)) from None
            return BinaryNetwork(device, steps)

        super().__init__(model, build, gpu)


class BinaryNetwork:
    """The steps of a network with their arrays on the GPU; see :class:`.backend.DeviceNetwork`."""

    def __init__(self, gpu: Gpu, steps: Sequence[Step]) -> None:
        self._gpu = gpu
        self._steps = steps
        self._kernels = Kernels(gpu)
        self._constants = [[gpu.cupy.asarray(constant) for constant in step.constants] for step in steps]
        self._frames = 0

    def reserve(self, frames: int) -> bool:
        if frames <= self._frames:
            return False
        self._frames = 1 << (frames - 1).bit_length()
        zeros = self._gpu.cupy.zeros

        def on_gpu(array: Array) -> Any:
            return zeros((self._frames, *array.shape), array.dtype)

        *inner, last = self._steps
        self.logits = SharedBuffer(self._gpu, (self._frames, *last.output.shape), last.output.dtype)
        self._outputs = [*(on_gpu(step.output) for step in inner), self.logits.device]
        self._residuals = [None if step.residual is None else on_gpu(step.residual) for step in self._steps]
        return True

    def compile(self, frames: int) -> None:
        for step in self._steps:
            self._kernels[step.spec(frames)]

    def launches(self, upload: Any, frames: int) -> Sequence[Launch]:
        sources = [upload, *self._outputs]
        launches = []
        for index, step in enumerate(self._steps):
            spec = step.spec(frames)
            residuals = (self._residuals[index - 1] if step.reads_residual else None, self._residuals[index])
            args = (
                sources[index],
                *self._constants[index],
                self._outputs[index],
                *(residual for residual in residuals if residual is not None),
            )
            launches.append(
                Launch(step.name, spec, partial(self._kernels[spec], spec.grid, spec.block, args))
            )
        return launches

    def outputs(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for step, output, residual in zip(self._steps, self._outputs, self._residuals):
            yield step.name, output[0].get()
            if residual is not None:
                yield f"{step.name}.residual", residual[0].get()

    def close(self) -> None:
        pass
