"""Evaluates single layers with the real kernels on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from host_module import HostModule
from hypothesis import HealthCheck, settings
from layer_cases import ORIN, evaluate, fused_of, pixel_words, random_input
from numpy.typing import NDArray

from bnn_perception.backends.cuda.network import Step, layer_steps
from bnn_perception.backends.cuda.sources import kernel_source
from bnn_perception.backends.cuda.specs import Tile, is_tiled
from bnn_perception.backends.cuda.tiles import TileTable
from bnn_perception.net.layer import Layer, Shape


def same_examples(count: int) -> settings:
    """The same examples each time: their kernels are then compiled once. No deadline, for the first run compiles."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=slow
    )


def step_of(layer: Layer, shape: Shape, tile: Tile | None = None) -> Step:
    """The step of a layer that stands alone, with a tile of the caller's choice."""
    table = TileTable()
    if tile is not None and is_tiled(layer):
        table.set(layer, shape, ORIN, tile)
    (step,) = layer_steps(fused_of(layer, shape), ORIN, table)
    return step


def launch_step(
    step: Step,
    source: NDArray[Any],
    frames: int,
    mode: str = "plain",
    seed: int = 0,
    arch: int = 870,
    change: Callable[[str], str] = str,
) -> NDArray[Any]:
    """What a step makes of (frames, ...) inputs. ``change`` is made to its source."""
    spec = step.spec(frames)
    module = HostModule(change(kernel_source(spec.kernel)), (*spec.options, f"-D__CUDA_ARCH__={arch}"), mode)
    ((_, array),) = step.outputs
    result = np.empty((frames, *array.shape), dtype=array.dtype)
    result.view(np.uint8).fill(0xDB)
    module.launch(spec.kernel, spec.grid, spec.block, [source, *step.constants, result], seed=seed)
    return result


def check_layer(layer: Layer, shape: Shape, tile: Tile | None = None, frames: int = 1, **launch: Any) -> None:
    """Assert that the kernel gives what the reference gives."""
    rng = np.random.default_rng(frames)
    source = random_input(layer, shape, frames, rng)
    expected = evaluate(layer, source)
    if source.dtype == np.uint8:
        source = pixel_words(source)
    actual = launch_step(step_of(layer, shape, tile), source, frames, **launch)
    np.testing.assert_array_equal(actual, expected, err_msg=f"{layer.name} {shape} {tile}")
