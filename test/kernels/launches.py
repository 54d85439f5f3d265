"""Evaluates single layers with the real kernels on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from host_module import HostModule
from hypothesis import HealthCheck, settings
from layer_cases import ORIN, evaluate, pixel_words, place_of, random_input, random_residual
from numpy.typing import NDArray

from bnn_perception.backends.cuda.network import Step, layer_step
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


def step_of(layer: Layer, shape: Shape, tile: Tile | None = None, stored: bool = False) -> Step:
    """The step of a layer, with a tile of the caller's choice; ``stored``: it stores its residual."""
    table = TileTable()
    if tile is not None and is_tiled(layer):
        table.set(layer, shape, ORIN, tile)
    return layer_step(place_of(layer, shape, stored), ORIN, table)


def launch_step(
    step: Step,
    source: NDArray[Any],
    frames: int,
    mode: str = "plain",
    seed: int = 0,
    arch: int = 870,
    change: Callable[[str], str] = str,
    before: NDArray[np.int32] | None = None,
) -> list[NDArray[Any]]:
    """What a step makes of (frames, ...) inputs and of the residual ``before``: its output, and its residual where it
    stores one. ``change`` is made to its source."""
    spec = step.spec(frames)
    module = HostModule(change(kernel_source(spec.kernel)), (*spec.options, f"-D__CUDA_ARCH__={arch}"), mode)
    written = [step.output] if step.residual is None else [step.output, step.residual]
    results = [np.empty((frames, *array.shape), dtype=array.dtype) for array in written]
    output, *stored = results
    residuals = stored if before is None else [before, *stored]
    for result in results:
        result.fill(0xDB)
    args = [source, *step.constants, output, *residuals]
    module.launch(spec.kernel, spec.grid, spec.block, args, seed=seed)
    return results


def check_layer(
    layer: Layer,
    shape: Shape,
    tile: Tile | None = None,
    frames: int = 1,
    stored: bool = True,
    **launch: Any,
) -> None:
    """Assert that the kernel gives the same words as the reference, and the same residual where it stores one."""
    rng = np.random.default_rng(frames)
    source, before = random_input(layer, shape, frames, rng), random_residual(layer, shape, frames, rng)
    expected = evaluate(layer, source, before)
    stored = stored and layer.has_residual
    if source.dtype == np.uint8:
        source = pixel_words(source)
    actual = launch_step(step_of(layer, shape, tile, stored), source, frames, before=before, **launch)
    assert len(actual) == 1 + stored
    for result, wanted in zip(actual, expected):
        np.testing.assert_array_equal(result, wanted, err_msg=f"{layer.name} {shape} {tile}")
