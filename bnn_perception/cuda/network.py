"""A model as a sequence of kernels: what each is launched with, independent of the GPU's memory and of CuPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bnn_perception.bits import words_for
from bnn_perception.cuda import packing, specs
from bnn_perception.cuda.specs import DenseTile, KernelSpec, Target
from bnn_perception.cuda.tiles import TileTable
from bnn_perception.model import (
    Conv2d,
    Layer,
    Model,
    OutputBits,
    OutputDense,
    Shape,
    StreamConv2d,
    Thermometer,
    iter_layers,
)


@dataclass(frozen=True)
class Array:
    """An array on the GPU: ``shape`` for each frame, after an axis of frames."""

    shape: tuple[int, ...]
    dtype: DTypeLike


@dataclass(frozen=True)
class Step:
    """One kernel. Its arguments are the input, the constants, the output and the scratch, in this order.

    Attributes:
        name: of the layer, or ``input`` for the preprocessing.
        spec: the kernel for a number of frames.
        constants: arrays that do not change.
        output: what it writes.
        scratch: arrays that hold 0 before the first launch and are the kernel's own.
    """

    name: str
    spec: Callable[[int], KernelSpec]
    constants: Sequence[NDArray[Any]]
    output: Array
    scratch: Sequence[Array] = ()


def network(model: Model, target: Target, tiles: TileTable) -> list[Step]:
    """The steps of a model: the preprocessing, then one for each layer.

    Raises:
        ValueError: where a layer cannot be run, or the table holds a tile that does not fit it.
    """
    for layer in model.layers:
        if isinstance(layer, StreamConv2d):
            raise ValueError(f"{layer.name}: a {layer.kind} does not run on CUDA yet; use device cpu")
    height, width, _ = model.input.shape
    steps = [
        Step(
            "input",
            lambda frames: specs.preprocess(model.input, frames),
            (),
            Array((height, width), np.uint32),
        )
    ]
    steps += [layer_step(layer, before, after, target, tiles) for layer, before, after in iter_layers(model)]
    return steps


def layer_step(layer: Layer, before: Shape, after: Shape, target: Target, tiles: TileTable) -> Step:
    """The step of one layer, from activations of shape ``before`` to ``after``."""
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
            lambda frames: specs.convolution(layer, before, tile, frames),
            packing.convolution(layer, before, tile),
            output,
        )
    assert isinstance(tile, DenseTile)
    words = words_for(layer.out_features)
    scratch = (Array((words, tile.splits, specs.WARP), np.int32), Array((words,), np.uint32))
    return Step(
        layer.name, lambda frames: specs.dense(layer, tile, frames), packing.dense(layer), output, scratch
    )
