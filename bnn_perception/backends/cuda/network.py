"""A model as a sequence of kernels: what each is launched with, independent of the GPU's memory and of CuPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bnn_perception.backends.cuda import packing, specs
from bnn_perception.backends.cuda.specs import ConvTile, DenseTile, KernelSpec, Target
from bnn_perception.backends.cuda.tiles import TileTable
from bnn_perception.net.bits import words_for
from bnn_perception.net.layer import Layer, Shape
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    FullyConnected,
    InputConv2d,
    InputResidualConv2d,
    OutputBits,
    OutputDense,
    ResidualConv2d,
    Thermometer,
)
from bnn_perception.net.model import Model, Place, iter_layers


@dataclass(frozen=True)
class Array:
    """An array on the GPU: ``shape`` for each frame, after an axis of frames."""

    shape: tuple[int, ...]
    dtype: DTypeLike


@dataclass(frozen=True)
class Step:
    """One kernel. Its arguments are the input, the constants, the output, the residual of the step before and its own
    residual, in this order, as far as it has them.

    Attributes:
        name: of the layer, or ``input`` for the preprocessing.
        spec: the kernel for a number of frames.
        constants: arrays that do not change.
        output: what it writes.
        residual: what else it writes, for a shortcut of the next step; None where no step reads it.
        reads_residual: whether it reads the residual of the step before.
    """

    name: str
    spec: Callable[[int], KernelSpec]
    constants: Sequence[NDArray[Any]]
    output: Array
    residual: Array | None = None
    reads_residual: bool = False


def network(model: Model, target: Target, tiles: TileTable) -> list[Step]:
    """The steps of a model: the preprocessing, then one for each layer.

    Raises:
        ValueError: where a layer cannot be run, or the table holds a tile that does not fit it.
    """
    height, width, _ = model.input.shape
    first = Step(
        "input", lambda frames: specs.preprocess(model.input, frames), (), Array((height, width), np.uint32)
    )
    return [first, *(layer_step(place, target, tiles) for place in iter_layers(model))]


def layer_step(place: Place, target: Target, tiles: TileTable) -> Step:
    """The step of one layer.

    Raises:
        ValueError: where it cannot be run, or the table holds a tile that does not fit it.
    """
    return LOWER[type(place.layer)](place.layer, place, target, tiles)


def _thermometer(layer: Thermometer, place: Place, target: Target, tiles: TileTable) -> Step:
    return Step(
        layer.name,
        lambda frames: specs.thermometer(layer, place.before, frames),
        (layer.thresholds.reshape(-1),),
        _words(place.after),
    )


Pack = Callable[[Any, Shape, ConvTile], "list[NDArray[Any]]"]


def _convolution(pack: Pack, layer: Conv2d, place: Place, target: Target, tiles: TileTable) -> Step:
    """The step of a convolution; ``pack`` gives the constants where it does not run on tensor cores."""
    tile = tiles.tile(layer, place.before, target)
    assert not isinstance(tile, DenseTile)
    stored = place.residual_is_read
    return Step(
        layer.name,
        lambda frames: specs.convolution(layer, place.before, tile, frames, stored),
        pack(layer, place.before, tile) if isinstance(tile, ConvTile) else packing.binary_conv2d_mma(layer),
        _words(place.after),
        residual=Array(place.after, np.int32) if stored else None,
        reads_residual=layer.reads_residual,
    )


def _fully_connected(
    pack: Callable[[Any], list[NDArray[Any]]],
    layer: FullyConnected,
    place: Place,
    target: Target,
    tiles: TileTable,
) -> Step:
    """The step of a fully connected layer; ``pack`` gives the constants."""
    tile = tiles.tile(layer, place.before, target)
    assert isinstance(tile, DenseTile)
    is_last = layer.gives == "logits"
    return Step(
        layer.name,
        lambda frames: specs.dense(layer, tile, frames),
        pack(layer),
        Array((layer.out_features,), np.float32) if is_last else _words(place.after),
    )


def _words(shape: Shape) -> Array:
    return Array((*shape[:2], words_for(shape[2])), np.uint32)


#: How each kind of layer becomes a step.
LOWER: dict[type[Layer], Callable[[Any, Place, Target, TileTable], Step]] = {
    Thermometer: _thermometer,
    InputConv2d: partial(_convolution, packing.input_conv2d),
    InputResidualConv2d: partial(_convolution, packing.input_residual_conv2d),
    BinaryConv2d: partial(_convolution, packing.binary_conv2d),
    ResidualConv2d: partial(_convolution, packing.residual_conv2d),
    BinaryDense: partial(_fully_connected, packing.binary_dense),
    OutputDense: partial(_fully_connected, packing.output_dense),
    OutputBits: partial(_fully_connected, packing.output_bits),
}
