"""Evaluates single layers with the real kernels on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from host_module import HostModule
from hypothesis import HealthCheck, settings
from layer_cases import ORIN, pixel_words, random_input
from numpy.typing import NDArray

from bnn_perception.backends import reference
from bnn_perception.cuda.network import Step, layer_step
from bnn_perception.cuda.sources import kernel_source
from bnn_perception.cuda.specs import Tile
from bnn_perception.cuda.tiles import TileTable
from bnn_perception.model import Layer, Shape, Thermometer


def same_examples(count: int) -> settings:
    """The same examples each time: their kernels are then compiled once. No deadline, for the first run compiles."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=slow
    )


def step_of(layer: Layer, shape: Shape, tile: Tile | None = None) -> Step:
    """The step of a layer, with a tile of the caller's choice."""
    table = TileTable()
    if tile is not None and not isinstance(layer, Thermometer):
        table.set(layer, shape, ORIN, tile)
    return layer_step(layer, shape, layer.output_shape(shape), ORIN, table)


def launch_step(
    step: Step,
    source: NDArray[Any],
    frames: int,
    mode: str = "plain",
    seed: int = 0,
    arch: int = 870,
    times: int = 1,
    change: Callable[[str], str] = str,
) -> NDArray[Any]:
    """What a step makes of (frames, ...) inputs, launched ``times`` times; ``change`` is made to its source."""
    spec = step.spec(frames)
    module = HostModule(change(kernel_source(spec.kernel)), (*spec.options, f"-D__CUDA_ARCH__={arch}"), mode)
    output = np.empty((frames, *step.output.shape), dtype=step.output.dtype)
    scratch = [np.zeros((frames, *array.shape), array.dtype) for array in step.scratch]
    for _ in range(times):
        output.fill(0xDB)
        module.launch(
            spec.kernel, spec.grid, spec.block, [source, *step.constants, output, *scratch], seed=seed
        )
    return output


def check_layer(layer: Layer, shape: Shape, tile: Tile | None = None, frames: int = 1, **launch: Any) -> None:
    """Assert that the kernel gives the same words as the reference."""
    source = random_input(layer, shape, frames, np.random.default_rng(frames))
    expected = np.stack([reference.EVALUATE[type(layer)](layer, value) for value in source])
    if source.dtype == np.uint8:
        source = pixel_words(source)
    actual = launch_step(step_of(layer, shape, tile), source, frames, **launch)
    np.testing.assert_array_equal(actual, expected, err_msg=f"{layer.name} {shape} {tile}")
