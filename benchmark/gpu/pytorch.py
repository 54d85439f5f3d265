"""The float twin in PyTorch, which most people would run: cuDNN, CUDA graphs, torch.compile.

The one place outside training/ that imports torch, and only when it is called: as something to compare with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cuda.timing import Timing, sample
from bnn_perception.errors import one_line
from bnn_perception.importers.stage import Stage


@dataclass(frozen=True)
class Variant:
    """How PyTorch evaluates the twin.

    Attributes:
        half: half precision, with channels last as its tensor cores like it; else single precision.
        tf32: single precision may be rounded to TF32 in products.
        compiled: by torch.compile.
    """

    half: bool = False
    tf32: bool = False
    compiled: bool = False


VARIANTS = {
    "pytorch fp32": Variant(),
    "pytorch tf32": Variant(tf32=True),
    "pytorch fp16": Variant(half=True),
    "pytorch fp16 compiled": Variant(half=True, compiled=True),
}


def why_not() -> str | None:
    """Why PyTorch cannot be compared with here, None where it can."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    except Exception as error:  # a PyTorch whose libraries do not fit raises what they raise
        return f"PyTorch cannot be imported ({one_line(error)})"
    return None if torch.cuda.is_available() else "PyTorch was built without CUDA or finds no GPU"


def build_twin(stages: Sequence[Stage], half: bool) -> Any:
    """The twin as a torch module: (N, height, width, channels) uint8 -> (N, classes) float32.

    Scale and shift are folded into weights and bias wherever the scale is positive, so that it gets the fewest kernels.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    dtype = torch.float16 if half else torch.float32
    layout = torch.channels_last if half else torch.contiguous_format

    class Layer(nn.Module):
        weight: torch.Tensor
        shift: torch.Tensor
        scale: torch.Tensor | None

        def __init__(self, stage: Stage) -> None:
            super().__init__()
            self.stage = stage
            positive = bool((stage.scale > 0).all())
            weights = stage.weights * stage.scale[:, None, None, None] if positive else stage.weights
            height, width, _ = stage.input_shape
            self.dense = stage.kernel == (height, width) and not any(stage.padding)
            if self.dense:
                # The order in which the layout of the activations is flattened.
                order = weights if half else weights.transpose(0, 3, 1, 2)
                self.register_buffer("weight", torch.tensor(order.reshape(len(order), -1), dtype=dtype))
            else:
                tensor = torch.tensor(weights.transpose(0, 3, 1, 2), dtype=dtype)
                self.register_buffer("weight", tensor.contiguous(memory_format=layout))
            self.register_buffer("shift", torch.tensor(stage.shift, dtype=dtype))
            self.register_buffer("scale", None if positive else torch.tensor(stage.scale, dtype=dtype))

        def forward(self, x: Any, residual: Any) -> tuple[Any, Any]:
            """What the layer before gave behind and before its clip; returns the same of this one."""
            stage = self.stage
            bias = None if self.scale is not None else self.shift
            if self.dense:
                flat = x.permute(0, 2, 3, 1) if half and x.dim() == 4 else x
                x = functional.linear(flat.reshape(len(x), -1), self.weight, bias)
            else:
                top, left, bottom, right = stage.padding
                if (top, left) == (bottom, right):
                    x = functional.conv2d(x, self.weight, bias, stage.stride, (top, left))
                else:
                    padded = functional.pad(x, (left, right, top, bottom))
                    x = functional.conv2d(padded, self.weight, bias, stage.stride)
                if stage.pool is not None:
                    x = functional.max_pool2d(x, stage.pool.size, stage.pool.stride)
            if self.scale is not None:
                shape = (-1,) if self.dense else (-1, 1, 1)
                x = x * self.scale.view(shape) + self.shift.view(shape)
            if stage.shortcut != "none":
                shortcut = (
                    functional.avg_pool2d(residual, 2) if stage.shortcut == "average_pool" else residual
                )
                repeats = stage.out_channels // stage.input_shape[2]
                repeated = torch.cat([shortcut] * repeats, dim=1) if repeats > 1 else shortcut
                x = x + repeated.reshape(x.shape)  # a single pixel's may lack its height and width
            if (stage.low, stage.high) == (0.0, np.inf):
                return functional.relu(x), x
            if (stage.low, stage.high) == (-np.inf, np.inf):
                return x, x
            return x.clamp(stage.low, stage.high), x

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer(stage) for stage in stages)

        def forward(self, pixels: Any) -> Any:
            x = pixels.permute(0, 3, 1, 2).to(dtype, memory_format=layout) / 255
            residual = None
            for layer in self.layers:
                x, residual = layer(x, residual)
            return x.float()

    return Twin().eval()


@dataclass(frozen=True)
class Result:
    """What one variant gave.

    Attributes:
        gpu: time of the GPU for a batch, frames there to logits there, in a CUDA graph.
        call: wall time of a whole call, frames in the host's memory to logits there: a copy, a graph, a copy.
        logits: of the first batch, (N, classes) float32.
    """

    gpu: Timing
    call: Timing
    logits: NDArray[np.float32]


def time_variant(stages: Sequence[Stage], variant: Variant, batches: Sequence[NDArray[np.uint8]]) -> Result:
    """Measure a variant on ``batches`` of (N, height, width, channels) uint8, by the rules of the other backends."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = variant.tf32
    torch.backends.cudnn.allow_tf32 = variant.tf32
    torch.backends.cudnn.benchmark = True
    with torch.no_grad():
        twin = build_twin(stages, variant.half).cuda()
        if variant.compiled:
            twin = torch.compile(twin)
        inputs = [torch.from_numpy(np.ascontiguousarray(batch)).cuda() for batch in batches]
        rounds, _ = _captured(lambda: [twin(pixels) for pixels in inputs])
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def gpu_time() -> float:
            before.record()
            rounds()
            after.record()
            torch.cuda.synchronize()
            return float(before.elapsed_time(after)) * 1e3 / len(inputs)

        gpu = sample(gpu_time)

        pinned = torch.from_numpy(batches[0]).pin_memory()
        on_gpu = torch.empty_like(inputs[0])
        classes = stages[-1].out_channels
        logits = torch.empty((len(batches[0]), classes), dtype=torch.float32).pin_memory()

        on_gpu.copy_(pinned)
        replay, answers = _captured(lambda: twin(on_gpu))

        def call() -> None:
            # The copies stand outside of the graph: PyTorch 2.11 refuses them while it is captured.
            on_gpu.copy_(pinned, non_blocking=True)
            replay()
            logits.copy_(answers, non_blocking=True)

        host, calls = pinned.numpy(), 0

        def call_time() -> float:
            nonlocal calls
            batch = batches[calls % len(batches)]
            calls += 1
            start = time.perf_counter()
            host[...] = batch
            call()
            torch.cuda.current_stream().synchronize()
            logits.numpy().copy()
            return (time.perf_counter() - start) * 1e6

        timing = sample(call_time)
        host[...] = batches[0]
        call()
        torch.cuda.synchronize()
        return Result(gpu, timing, logits.numpy().copy())


def _captured(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """What replays ``function`` as a CUDA graph, and what it returned while it was captured."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # chooses algorithms, compiles, fills the pool of memory
            function()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result
