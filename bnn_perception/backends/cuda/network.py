"""A model as a sequence of kernels: what each is launched with, independent of the GPU's memory and of CuPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bnn_perception.backends.cuda import packing, specs
from bnn_perception.backends.cuda.specs import DenseTile, KernelSpec, Target
from bnn_perception.backends.cuda.tiles import TileTable
from bnn_perception.net.bits import words_for
from bnn_perception.net.model import (
    Conv2d,
    Layer,
    Model,
    OutputBits,
    OutputDense,
    Shape,
    Thermometer,
    iter_layers,
    reads_residual,
)


@dataclass(frozen=True)
class Array:
    """An array on the GPU: ``shape`` for each frame, after an axis of frames."""

    shape: tuple[int, ...]
    dtype: DTypeLike


@dataclass(frozen=True)
class Step:
    """One kernel. Its arguments are the input, the constants, the output, the stream of the step before and its own
    stream, in this order, as far as it has them.

    Attributes:
        name: of the layer, or ``input`` for the preprocessing.
        spec: the kernel for a number of frames.
        constants: arrays that do not change.
        output: what it writes.
        stream: what else it writes, for a shortcut of the next step; None where no step reads it.
        reads_residual: whether it reads the stream of the step before.
    """

    name: str
    spec: Callable[[int], KernelSpec]
    constants: Sequence[NDArray[Any]]
    output: Array
    stream: Array | None = None
    reads_residual: bool = False


def network(model: Model, target: Target, tiles: TileTable) -> list[Step]:
    """The steps of a model: the preprocessing, then one for each layer.

    Raises:
        ValueError: where a layer cannot be run, or the table holds a tile that does not fit it.
    """
    height, width, _ = model.input.shape
    steps = [
        Step(
            "input",
            lambda frames: specs.preprocess(model.input, frames),
            (),
            Array((height, width), np.uint32),
        )
    ]
    for (layer, before, after), following in zip(iter_layers(model), (*model.layers[1:], None)):
        steps.append(layer_step(layer, before, after, target, tiles, reads_residual(following)))
    return steps


def layer_step(
    layer: Layer, before: Shape, after: Shape, target: Target, tiles: TileTable, stored: bool = False
) -> Step:
    """The step of one layer, from activations of shape ``before`` to ``after``; ``stored``: its stream is read."""
    if isinstance(layer, (OutputDense, OutputBits)):
        output = Array((layer.out_features,), np.float32)
    else:
        output = Array((*after[:2], words_for(after[2])), np.uint32)
    if isinstance(layer, Thermometer):
        thresholds = layer.thresholds.reshape(-1)
        return Step(
            layer.name, lambda frames: specs.thermometer(layer, before, frames), (thresholds,), output
        )
    tile = tiles.tile(layer, before, target)
    if isinstance(layer, Conv2d):
        assert not isinstance(tile, DenseTile)
        return Step(
            layer.name,
            lambda frames: specs.convolution(layer, before, tile, frames, stored),
            packing.convolution(layer, before, tile),
            output,
            stream=Array(after, np.int32) if stored else None,
            reads_residual=reads_residual(layer),
        )
    assert isinstance(tile, DenseTile)
    return Step(layer.name, lambda frames: specs.dense(layer, tile, frames), packing.dense(layer), output)
