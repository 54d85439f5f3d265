"""Evaluates single layers with the real kernels on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from bnn_perception.backends import reference
from bnn_perception.cuda.network import Step, layer_step
from bnn_perception.cuda.sources import kernel_source
from bnn_perception.cuda.specs import Target, Tile
from bnn_perception.cuda.tiles import TileTable
from bnn_perception.model import InputConv2d, Layer, Shape, Thermometer
from host_module import HostModule

#: AGX Orin.
ORIN = Target(87, 16)



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


def pixel_words(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(frames, height, width, 1 or 3) uint8 -> (frames, height, width) uint32, as preprocess.cu leaves them."""
    four = np.zeros((*pixels.shape[:3], 4), dtype=np.uint8)
    four[..., : pixels.shape[3]] = pixels
    return four.view("<u4")[..., 0].astype(np.uint32)


def launch_step(
    step: Step, source: NDArray[Any], frames: int, mode: str = "plain", seed: int = 0, arch: int = 870, times: int = 1
) -> NDArray[Any]:
    """What a step makes of (frames, ...) inputs, launched ``times`` times."""
    spec = step.spec(frames)
    module = HostModule(kernel_source(spec.kernel), (*spec.options, f"-D__CUDA_ARCH__={arch}"), mode)
    output = np.full((frames, *step.output.shape), 0xDB, dtype=step.output.dtype)
    scratch = [np.zeros((frames, *array.shape), array.dtype) for array in step.scratch]
    for _ in range(times):
        module.launch(spec.kernel, spec.grid, spec.block, [source, *step.constants, output, *scratch], seed=seed)
    return output


def random_input(layer: Layer, shape: Shape, frames: int, rng: np.random.Generator) -> NDArray[Any]:
    """(frames, height, width, channels) pixels or (frames, height, width, words) activations."""
    if isinstance(layer, (InputConv2d, Thermometer)):
        return rng.integers(0, 256, (frames, *shape), dtype=np.uint8)
    return np.stack([reference.random_input(shape, rng) for _ in range(frames)])


def check_layer(layer: Layer, shape: Shape, tile: Tile | None = None, frames: int = 1, **launch: Any) -> None:
    """Assert that the kernel gives the same words as the reference."""
    source = random_input(layer, shape, frames, np.random.default_rng(frames))
    expected = np.stack([reference.EVALUATE[type(layer)](layer, value) for value in source])
    if source.dtype == np.uint8:
        source = pixel_words(source)
    actual = launch_step(step_of(layer, shape, tile), source, frames, **launch)
    np.testing.assert_array_equal(actual, expected, err_msg=f"{layer.name} {shape} {tile}")
