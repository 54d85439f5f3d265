"""A model as a sequence of kernels: what each is launched with, independent of the GPU's memory and of CuPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bnn_perception.backends.cuda import packing, specs
from bnn_perception.backends.cuda.specs import ConvTile, DenseTile, Epilogue, KernelSpec, Target
from bnn_perception.backends.cuda.tiles import TileTable
from bnn_perception.backends.fusion import Fused, fuse
from bnn_perception.net.bits import words_for
from bnn_perception.net.layer import Layer, Shape
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    FullyConnected,
    InputConv2d,
    OutputBits,
    OutputDense,
    Thermometer,
)
from bnn_perception.net.model import Model, Place
from bnn_perception.net.signals import (
    Add,
    Affine,
    AveragePool,
    BinaryMaxPool,
    ChannelPad,
    Clip,
    Concat,
    MaxPool,
    Pool2d,
    PRelu,
    RealConv2d,
    RealInputConv2d,
    Scaled,
    ScaledBinaryConv2d,
    ScaledInputConv2d,
    Sign,
)

#: The name of the preprocessed image among the arrays that steps read and write; with its blank, no layer has it.
IMAGE = "the image"


@dataclass(frozen=True)
class Array:
    """An array on the GPU: ``shape`` for each frame, after an axis of frames."""

    shape: tuple[int, ...]
    dtype: DTypeLike


@dataclass(frozen=True)
class Step:
    """One kernel. Its arguments are the input, the constants, the bits, the addend and the signal, in this order, as
    far as it has them. Arrays go by the name of the layer that gives them.

    Attributes:
        name: of its first layer, or ``input`` for the preprocessing.
        spec: the kernel for a number of frames.
        source: name of the input; None is what was uploaded.
        constants: arrays that do not change.
        bits: name of the bits (or pixels) that it writes, and what they are; None where it writes none.
        addend: name of the signal that it adds, None without.
        signal: name of the signal or logits that it writes, and what they are; several steps may fill one.
    """

    name: str
    spec: Callable[[int], KernelSpec]
    source: str | None
    constants: Sequence[NDArray[Any]] = ()
    bits: tuple[str, Array] | None = None
    addend: str | None = None
    signal: tuple[str, Array] | None = None

    @property
    def outputs(self) -> list[tuple[str, Array]]:
        """What it writes, in the order of its arguments."""
        return [output for output in (self.bits, self.signal) if output is not None]


def network(model: Model, target: Target, tiles: TileTable) -> list[Step]:
    """The steps of a model: the preprocessing, then those of its layers.

    Raises:
        ValueError: where a layer cannot be run, or the table holds a tile that does not fit it.
    """
    height, width, _ = model.input.shape
    steps = [
        Step(
            "input",
            lambda frames: specs.preprocess(model.input, frames),
            None,
            bits=(IMAGE, Array((height, width), np.uint32)),
        )
    ]
    for fused in fuse(model):
        steps += layer_steps(fused, target, tiles)
    return steps


def layer_steps(fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    """The steps of layers that run together: one, or one for each input that is joined with others.

    Raises:
        ValueError: where they cannot be run, or the table holds a tile that does not fit.
    """
    return LOWER[type(fused.head.layer)](fused.head.layer, fused, target, tiles)


def _source(place: Place, number: int = 0) -> str:
    source = place.sources[number]
    return IMAGE if source is None else source.name


def _words(shape: Shape) -> Array:
    return Array((*shape[:2], words_for(shape[2])), np.uint32)


def _ends(fused: Fused, first: Sequence[NDArray[np.float32]] = ()) -> dict[str, Any]:
    """The fields of a step that ends in an epilogue, but for its own constants.

    Args:
        first: scale and bias that go before the chain.
    """
    rows = list(first)
    for layer in fused.chain:
        rows += layer.array_values().values()
    after = fused.head.after
    sign = fused.sign
    threshold = np.full(after[2], np.inf, np.float32) if sign is None else sign.threshold
    flip = np.zeros(after[2], bool) if sign is None else sign.flip
    return {
        "constants": packing.epilogue(rows, threshold, flip),
        "bits": None if sign is None else (sign.name, _words(after)),
        "addend": fused.addend,
        "signal": None if fused.signal is None else (fused.signal, Array(after, np.float32)),
    }


def _epilogue(fused: Fused, first: tuple[type[Layer], ...] = ()) -> Epilogue:
    kinds = (*first, *(type(layer) for layer in fused.chain))
    return Epilogue(kinds, fused.signal is not None, fused.sign is not None)


def _plain(layer: Layer, fused: Fused, spec: Callable[[int], KernelSpec], *constants: NDArray[Any]) -> Step:
    """The step of a layer that gives bits or logits from integers."""
    if layer.gives == "logits":
        logits = (layer.name, Array((layer.outputs,), np.float32))
        return Step(layer.name, spec, _source(fused.head), constants, signal=logits)
    return Step(layer.name, spec, _source(fused.head), constants, bits=(layer.name, _words(fused.head.after)))


def _thermometer(layer: Thermometer, fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    before = fused.head.before
    return [
        _plain(
            layer,
            fused,
            lambda frames: specs.thermometer(layer, before, frames),
            layer.thresholds.reshape(-1),
        )
    ]


Pack = Callable[[Any, Shape, ConvTile], "list[NDArray[Any]]"]


def _convolution(pack: Pack, layer: Conv2d, fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    """The step of a convolution; ``pack`` gives the constants where it does not run on tensor cores."""
    before = fused.head.before
    tile = tiles.tile(layer, before, target)
    assert not isinstance(tile, DenseTile)
    if not isinstance(layer, Scaled):
        constants = (
            pack(layer, before, tile) if isinstance(tile, ConvTile) else packing.binary_conv2d_mma(layer)  # type: ignore[arg-type]
        )
        return [
            _plain(layer, fused, lambda frames: specs.convolution(layer, before, tile, frames), *constants)
        ]
    assert isinstance(tile, ConvTile)
    epilogue, ends = _epilogue(fused, (Affine,)), _ends(fused, (layer.scale, layer.bias))
    constants = [*pack(layer, before, tile), *ends.pop("constants")]
    return [
        Step(
            layer.name,
            lambda frames: specs.convolution(layer, before, tile, frames, epilogue),
            _source(fused.head),
            constants,
            **ends,
        )
    ]


def _fully_connected(
    pack: Callable[[Any], list[NDArray[Any]]],
    layer: FullyConnected,
    fused: Fused,
    target: Target,
    tiles: TileTable,
) -> list[Step]:
    """The step of a fully connected layer; ``pack`` gives the constants."""
    tile = tiles.tile(layer, fused.head.before, target)
    assert isinstance(tile, DenseTile)
    return [_plain(layer, fused, lambda frames: specs.dense(layer, tile, frames), *pack(layer))]


def _on_signal(
    fused: Fused,
    spec: Callable[[int, Epilogue], KernelSpec],
    constants: Sequence[NDArray[Any]] = (),
    first: Sequence[NDArray[np.float32]] = (),
) -> Step:
    """The step of a layer that gives a signal, from ``spec`` of a number of frames and an epilogue."""
    epilogue, ends = _epilogue(fused, (Affine,) if first else ()), _ends(fused, first)
    constants = [*constants, *ends.pop("constants")]
    return Step(fused.name, lambda frames: spec(frames, epilogue), _source(fused.head), constants, **ends)


def _real_input_conv2d(layer: RealInputConv2d, fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    before = fused.head.before
    return [
        _on_signal(
            fused,
            lambda frames, epilogue: specs.real_input_conv2d(layer, before, frames, epilogue),
            packing.real_input_conv2d(layer, before),
        )
    ]


def _real_conv2d(layer: RealConv2d, fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    before = fused.head.before
    return [
        _on_signal(
            fused,
            lambda frames, epilogue: specs.real_conv2d(layer, before, frames, epilogue),
            packing.real_conv2d(layer),
            (np.ones_like(layer.bias), layer.bias),  # a multiplication by 1 changes nothing
        )
    ]


def _pool2d(layer: Pool2d, fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    before = fused.head.before
    counts = layer.counts(before) if isinstance(layer, AveragePool) else np.zeros(1, np.int32)
    return [
        _on_signal(fused, lambda frames, epilogue: specs.pool2d(layer, before, frames, epilogue), [counts])
    ]


def _binary_pool2d(layer: BinaryMaxPool, fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    before = fused.head.before
    return [_plain(layer, fused, lambda frames: specs.binary_pool2d(layer, before, frames))]


def _stored_signal(layer: Layer, fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    """The step that begins with a signal as it is."""
    before = fused.head.before
    return [_on_signal(fused, lambda frames, epilogue: specs.stored_signal(before, frames, epilogue))]


def _concat(layer: Concat, fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    firsts = np.cumsum([0, *(shape[2] for shape in fused.head.before_all)]).tolist()
    return _joined(layer, fused, firsts[:-1], zeros=False)


def _channel_pad(layer: ChannelPad, fused: Fused, target: Target, tiles: TileTable) -> list[Step]:
    return _joined(layer, fused, [layer.before], zeros=True)


def _joined(layer: Layer, fused: Fused, firsts: Sequence[int], zeros: bool) -> list[Step]:
    """A copy of each input to its channels, and what follows."""
    place = fused.head
    joined = (layer.name, Array(place.after, np.float32))

    def copy(number: int) -> Step:
        before, first = place.before_all[number], firsts[number]
        return Step(
            layer.name,
            lambda frames: specs.copy_channels(before, place.after, first, zeros, frames),
            _source(place, number),
            signal=joined,
        )

    steps = [copy(number) for number in range(len(firsts))]
    if not fused.chain and fused.sign is None:
        return steps
    ends = _ends(fused)
    if fused.signal == layer.name:  # it is there
        ends["signal"] = None
    epilogue = Epilogue(
        tuple(type(member) for member in fused.chain), ends["signal"] is not None, fused.sign is not None
    )
    last = Step(
        fused.layers[1].name,
        lambda frames: specs.stored_signal(place.after, frames, epilogue),
        layer.name,
        ends.pop("constants"),
        **ends,
    )
    return [*steps, last]


#: How each kind of layer becomes the first of a step.
LOWER: dict[type[Layer], Callable[[Any, Fused, Target, TileTable], list[Step]]] = {
    Thermometer: _thermometer,
    InputConv2d: partial(_convolution, packing.input_conv2d),
    ScaledInputConv2d: partial(_convolution, packing.scaled_input_conv2d),
    RealInputConv2d: _real_input_conv2d,
    BinaryConv2d: partial(_convolution, packing.binary_conv2d),
    ScaledBinaryConv2d: partial(_convolution, packing.scaled_binary_conv2d),
    RealConv2d: _real_conv2d,
    Affine: _stored_signal,
    PRelu: _stored_signal,
    Clip: _stored_signal,
    Sign: _stored_signal,
    Add: _stored_signal,
    Concat: _concat,
    ChannelPad: _channel_pad,
    MaxPool: _pool2d,
    BinaryMaxPool: _binary_pool2d,
    AveragePool: _pool2d,
    BinaryDense: partial(_fully_connected, packing.binary_dense),
    OutputDense: partial(_fully_connected, packing.output_dense),
    OutputBits: partial(_fully_connected, packing.output_bits),
}
