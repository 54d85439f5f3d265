"""What the GPU reaches at best, measured by kernels/peaks.cu: the roof that the nets' kernels stand under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.sources import kernel_source
from bnn_perception.backends.cuda.timing import Stopwatch

#: Geometry of kernels/peaks.cu.
THREADS, UNROLL, CHAINS = 256, 16, 8
#: Blocks for each SM: 2048 threads on most SMs, 1536 or 1024 on others, where the rest waits.
BLOCKS_PER_SM = 8
#: One timed launch should take about this long, microseconds.
TARGET_US = 3000.0
#: The best of so many launches counts: a peak is what can be reached.
LAUNCHES = 10
#: Bytes of each side of the copy, far above any GPU's cache, unless memory is short.
COPY_BYTES = 256 << 20


@dataclass(frozen=True)
class Product:
    """A product of the binary tensor cores.

    Attributes:
        kernel: of kernels/peaks.cu.
        macs: binary multiply-accumulates of one instruction of a warp.
        sm: the first that has it.
    """

    kernel: str
    macs: int
    sm: int


PRODUCTS = {
    "b1 mma m16n8k256 xor": Product("peak_mma_xor_256", 16 * 8 * 256, 80),
    "b1 mma m16n8k256 and": Product("peak_mma_and_256", 16 * 8 * 256, 80),
    "b1 mma m8n8k128 xor": Product("peak_mma_xor_128", 8 * 8 * 128, 75),
}


@dataclass(frozen=True)
class Peaks:
    """Rates of the whole GPU.

    Attributes:
        popc: POPC instructions of a thread (32 binary multiply-accumulates each), 1/s.
        lop3: LOP3 instructions of a thread, 1/s.
        copy: bytes read and bytes written, 1/s.
        binary_mma: binary multiply-accumulates of the tensor cores by instruction, 1/s.
    """

    popc: float
    lop3: float
    copy: float
    binary_mma: dict[str, float]

    @property
    def popc_macs(self) -> float:
        """Binary multiply-accumulates a second at one POPC for 32."""
        return 32 * self.popc


def measure_peaks(gpu: Gpu) -> Peaks:
    """Measure all of them; takes about a second. The GPU must be current.

    Products that the SM does not have are left out; what it emulates counts as it runs.
    """
    stream = gpu.cupy.cuda.Stream(non_blocking=True)
    options = (f"-DTHREADS={THREADS}", f"-DUNROLL={UNROLL}", f"-DCHAINS={CHAINS}")
    with stream:
        module = gpu.cupy.RawModule(code=kernel_source("peaks"), options=options, backend="nvrtc")
        watch = Stopwatch(gpu.cupy.cuda, stream)
        sink = gpu.cupy.zeros((CHAINS,), np.uint32)
        blocks = gpu.target.multiprocessors * BLOCKS_PER_SM
        threads = blocks * THREADS

        def rate(kernel: str) -> float:
            """Repetitions a second of one kernel's unrolled body, of all threads."""
            function = module.get_function(kernel)

            def seconds(iterations: int) -> float:
                args = (sink, np.uint32(0xFFFFFFFF), np.int32(iterations))
                return watch.microseconds(lambda: function((blocks, 1, 1), (THREADS, 1, 1), args)) / 1e6

            seconds(1)
            trial = 16
            iterations = max(trial, int(trial * TARGET_US / 1e6 / seconds(trial)))
            best = min(seconds(iterations) for _ in range(LAUNCHES))
            return threads * iterations * UNROLL * CHAINS / best

        products = {
            name: rate(product.kernel) / 32 * product.macs
            for name, product in PRODUCTS.items()
            if gpu.target.sm >= product.sm
        }
        return Peaks(rate("peak_popc"), rate("peak_lop3"), _copy_rate(gpu, module, watch, blocks), products)


def _copy_rate(gpu: Gpu, module: Any, watch: Stopwatch, blocks: int) -> float:
    free, _ = gpu.cupy.cuda.runtime.memGetInfo()
    words = min(COPY_BYTES, free // 8) // 16
    source, target = (gpu.cupy.zeros((words * 4,), np.uint32) for _ in range(2))
    function = module.get_function("peak_copy")
    args = (source, target, np.uint32(words))
    times = [
        watch.microseconds(lambda: function((blocks, 1, 1), (THREADS, 1, 1), args)) for _ in range(LAUNCHES)
    ]
    return 2 * words * 16 / (min(times) / 1e6)
