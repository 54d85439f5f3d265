"""Evaluates the binary net on an NVIDIA GPU: one CUDA graph from the camera's bytes to the logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cuda.backend import CudaBackend, Launch
from bnn_perception.backends.cuda.compile import Kernels
from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.memory import SharedBuffer
from bnn_perception.backends.cuda.network import IMAGE, Array, Step, network
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

        arrays = dict(output for step in self._steps for output in step.outputs)
        last, logits = self._steps[-1].outputs[-1]
        self.logits = SharedBuffer(self._gpu, (self._frames, int(np.prod(logits.shape))), logits.dtype)
        self._arrays = {name: on_gpu(array) for name, array in arrays.items() if name != last}
        self._arrays[last] = self.logits.device
        return True

    def compile(self, frames: int) -> None:
        for step in self._steps:
            self._kernels[step.spec(frames)]

    def launches(self, upload: Any, frames: int) -> Sequence[Launch]:
        launches = []
        for step, constants in zip(self._steps, self._constants):
            spec = step.spec(frames)
            written = [self._arrays[name] for name, _ in step.outputs]
            bits = written[:1] if step.bits is not None else []
            addend = [] if step.addend is None else [self._arrays[step.addend]]
            source = upload if step.source is None else self._arrays[step.source]
            args = (source, *constants, *bits, *addend, *written[len(bits) :])
            launches.append(
                Launch(step.name, spec, partial(self._kernels[spec], spec.grid, spec.block, args))
            )
        return launches

    def outputs(self) -> Iterator[tuple[str, NDArray[Any]]]:
        # What several steps fill comes once.
        for name in dict.fromkeys(name for step in self._steps for name, _ in step.outputs):
            yield "input" if name == IMAGE else name, self._arrays[name][0].get()

    def close(self) -> None:
        pass
