"""Layers and nets that the tests of the kernels run, on the host and on a GPU."""

from __future__ import annotations

import time
from typing import Any

import models
import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends import Backend, reference
from bnn_perception.backends.cuda import specs
from bnn_perception.backends.cuda.specs import Target
from bnn_perception.backends.fusion import CHAINED, Fused, fuse
from bnn_perception.frames.frame import Frame
from bnn_perception.net import bits
from bnn_perception.net.layer import Layer, Pool, Shape
from bnn_perception.net.layers import Conv2d, OutputBits
from bnn_perception.net.model import InputSpec, Model, Place
from bnn_perception.net.signals import AveragePool, BinaryMaxPool, ChannelPad, Concat, MaxPool, Sign

#: AGX Orin.
ORIN = Target(87, 16)


RNG = np.random.default_rng


def conv(
    shape: Shape, filters: int, kernel: int | tuple[int, int] = 3, **options: Any
) -> tuple[Conv2d, Shape]:
    """A binary convolution; the padding is half the kernel unless it is given."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    options.setdefault("padding", (kernel[0] // 2, kernel[1] // 2))
    return models.binary_conv(RNG(1), "conv", shape, filters, kernel, **options), shape


def input_conv(
    shape: Shape, filters: int, kernel: int | tuple[int, int] = 3, **options: Any
) -> tuple[Conv2d, Shape]:
    """An input convolution, likewise."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    options.setdefault("padding", (kernel[0] // 2, kernel[1] // 2))
    return models.input_conv(RNG(2), "input", shape, filters, kernel, **options), shape


def scaled(
    shape: Shape, filters: int, kernel: int | tuple[int, int] = 3, **options: Any
) -> tuple[Conv2d, Shape]:
    """A binary convolution that gives a signal, likewise."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    options.setdefault("padding", (kernel[0] // 2, kernel[1] // 2))
    return models.scaled_conv(RNG(3), "scaled", shape, filters, kernel, **options), shape


def stem(shape: Shape, filters: int, **options: Any) -> tuple[Conv2d, Shape]:
    """An input convolution of 3x3 that gives a signal."""
    return models.scaled_input_conv(RNG(4), "stem", shape, filters, **options), shape


def real_stem(shape: Shape, filters: int, *args: Any, **options: Any) -> tuple[Layer, Shape]:
    """A convolution of pixels with real weights."""
    return models.real_input_conv(RNG(13), "real stem", shape, filters, *args, **options), shape


def real(shape: Shape, filters: int, *args: Any, **options: Any) -> tuple[Layer, Shape]:
    """A convolution of a signal with real weights."""
    return models.real_conv(RNG(14), "real", shape, filters, *args, **options), shape


SCALED = {
    "24 -> 48": scaled((9, 7, 24), 48),
    "33 filters, 1x1": scaled((7, 9, 33), 33, 1),
    "pooled, padded with 0": scaled((6, 7, 33), 66, 4, pool=Pool(2, 1), padding_value=0),
    "strided, padded with 1": scaled((9, 11, 24), 72, stride=(2, 2), padding_value=1),
    "padded on two sides": scaled((9, 8, 40), 40, padding=(0, 0, 2, 1), padding_value=0),
    "large pool, several stages": scaled((12, 12, 2048), 32, pool=Pool(5, 5)),
    "of the whole map": scaled((7, 5, 64), 33, (7, 5), padding=(0, 0)),
    "stem": stem((11, 12, 3), 33, pool=Pool(3, 2)),
    "stem, grey, signed": stem((9, 10, 1), 24, stride=(2, 2), signed=True),
}

#: Layers that give a signal, or take one, by kernels of their own.
SIGNALS: dict[str, tuple[Layer, Shape]] = {
    "real stem": real_stem((11, 13, 3), 33, (7, 5), (2, 2), (3, 2)),
    "real stem, grey": real_stem((9, 7, 1), 40),
    "real stem, depthwise, padded on two sides": real_stem((9, 8, 3), 6, padding=(0, 2, 1, 0), groups=3),
    "real stem, one pixel": real_stem((5, 5, 3), 3, (5, 5), padding=(0, 0)),
    "real 1x1": real((7, 9, 40), 33),
    "real 3x3, strided": real((9, 8, 33), 65, (3, 3), (2, 1), (1, 1)),
    "real, padded on two sides": real((5, 6, 5), 7, (2, 3), (1, 1), (0, 2, 1, 0)),
    "depthwise": real((7, 7, 40), 40, (3, 3), (2, 2), (1, 1), 40),
    "grouped": real((5, 7, 6), 66, (3, 2), (1, 1), (1, 1), 3),
    "matrix": real((4, 5, 33), 10, (4, 5)),
    "max pool": (MaxPool("pool", 33, (3, 3), (2, 2), (1, 1)), (8, 9, 33)),
    "max pool of all": (MaxPool("pool", 5, (6, 7), (1, 1), (0, 0)), (6, 7, 5)),
    "average": (AveragePool("pool", 40, (2, 2), (2, 2), (0, 0, 1, 1), False), (5, 7, 40)),
    "average with its padding": (AveragePool("pool", 8, (3, 2), (1, 2), (1, 0), True), (6, 7, 8)),
    "every second pixel": (AveragePool("pool", 35, (1, 1), (2, 2), (0, 0), True), (7, 8, 35)),
    "affine": (models.affine(RNG(15), "affine", 33), (3, 5, 33)),
    "prelu": (models.prelu(RNG(16), "prelu", 32), (3, 5, 32)),
    "clip": (models.clip(RNG(17), "clip", 7), (3, 5, 7)),
    "sign": (models.sign(RNG(18), "sign", 70), (3, 5, 70)),
    "bits": (BinaryMaxPool("pool", 70, (3, 2), (2, 1), (1, 1)), (7, 6, 70)),
    "zeros": (ChannelPad("zeros", 45, 3, 9), (3, 4, 33)),
}

CONVOLUTIONS = {
    "paper": conv((48, 48, 32), 32, 5, pool=Pool(2, 2)),
    "road signs 2": conv((16, 16, 64), 128, pool=Pool(2, 2)),
    "road signs 3": conv((8, 8, 128), 256, pool=Pool(2, 2)),
    "CNV": conv((5, 5, 256), 256, padding=(0, 0)),
    "padded with 0": conv((9, 7, 65), 70, padding_value=0, pool=Pool(2, 2)),
    "padded with 0, strided": conv((9, 8, 33), 31, 5, padding_value=0, stride=(2, 3)),
    "1x1": conv((7, 9, 128), 33, 1),
    "one channel, one filter": conv((4, 4, 1), 1),
    "one pixel": conv((1, 1, 40), 40, 3),
    "unequal sides": conv((6, 13, 40), 40, (1, 7), stride=(1, 2)),
    "5 words": conv((6, 6, 160), 40),
    "33 words": conv((4, 5, 1056), 33),
    "kernel of 11": conv((13, 12, 16), 32, 11),
    "several stages of channels": conv((6, 6, 2048), 32, 3),
    "several stages of rows": conv((66, 65, 20), 32, 64, padding=(0, 0)),
    "pool 3/2": conv((11, 12, 32), 64, pool=Pool(3, 2)),
    "pool 2/3": conv((11, 12, 32), 64, pool=Pool(2, 3)),
    "pool 5/3": conv((12, 12, 32), 40, pool=Pool(5, 3)),
    "large pool, several stages": conv((12, 12, 2048), 32, pool=Pool(5, 5), padding_value=0),
    "large stride": conv((70, 70, 8), 8, 5, stride=(40, 33), padding=(0, 0)),
    "input, paper": input_conv((96, 96, 3), 32, 5, pool=Pool(2, 2)),
    "input, road signs": input_conv((32, 32, 3), 64, pool=Pool(2, 2)),
    "input, grey": input_conv((14, 15, 1), 40, 5),
    "input, grey, strided": input_conv((14, 15, 1), 40, (3, 9), stride=(2, 3), signed=True),
    "input, signed": input_conv((9, 9, 3), 33, signed=True, pool=Pool(3, 1)),
    "input, kernel of 11": input_conv((23, 24, 3), 32, 11, stride=(4, 4)),
    **SCALED,
}


def one_of_each(tiles: list[specs.ConvTile]) -> list[specs.ConvTile]:
    """A few tiles in which every value of every field occurs."""
    chosen: dict[specs.ConvTile, None] = {}
    for field in specs.tile_fields(tiles[0]):
        for value in sorted({specs.tile_fields(tile)[field] for tile in tiles}):
            chosen[next(tile for tile in tiles if specs.tile_fields(tile)[field] == value)] = None
    return list(chosen)


TILED = {
    "binary": conv((21, 19, 128), 128, pool=Pool(2, 2), padding_value=0),
    "input": input_conv((21, 19, 3), 128, 5, pool=Pool(2, 2)),
}

#: Binary convolutions for tensor cores, with a tile: every number of groups, every width of a group, tails everywhere.
MMA: dict[str, tuple[Conv2d, Shape, specs.MmaTile]] = {
    "paper": (*conv((48, 48, 32), 32, 5, pool=Pool(2, 2)), specs.MmaTile(8, 2, 3, 1)),
    "road signs 2": (*conv((16, 16, 64), 128, pool=Pool(2, 2)), specs.MmaTile(4, 1, 2, 4)),
    "road signs 3": (*conv((8, 8, 128), 256, pool=Pool(2, 2)), specs.MmaTile(4, 1, 1, 2)),
    "no pool": (*conv((9, 7, 65), 70), specs.MmaTile(2, 1, 2, 3)),
    "pool 3/2, strided": (
        *conv((23, 21, 40), 33, (3, 5), stride=(2, 1), pool=Pool(3, 2)),
        specs.MmaTile(1, 1, 4, 2),
    ),
    "pool 4/3": (*conv((13, 14, 33), 31, pool=Pool(4, 3)), specs.MmaTile(8, 1, 1, 1)),
    "one channel": (*conv((5, 5, 1), 1, 1), specs.MmaTile(8, 1, 1, 1)),
}


def tiles_to_test(target: Target) -> list[tuple[str, specs.ConvTile]]:
    """Layers of :data:`TILED`, each with the tiles of :func:`one_of_each`."""
    return [
        (name, tile) for name, case in TILED.items() for tile in one_of_each(specs.conv_tiles(*case, target))
    ]


def levels_of(kind: str) -> np.ndarray:
    return {
        "a curve": np.round(np.linspace(0, 15.9, 256) ** 2),
        "falling": np.arange(255, -1, -1),
        "two": np.where(np.arange(256) < 128, -1, 1),
        "CNV": np.clip(np.round(128 * (2 * np.arange(256) / 255 - 1)), -128, 127),
    }[kind].astype(np.int16)


def output_bits(shape: Shape, features: int) -> OutputBits:
    hidden, output = (
        models.binary_dense(RNG(4), "output", shape, features),
        models.output_dense(RNG(5), "output", shape, features),
    )
    return OutputBits(
        "output", shape, features, hidden.weights, hidden.threshold, hidden.flip, output.scale, output.bias
    )


DENSE: dict[str, tuple[Layer, Shape]] = {
    "paper 1": (models.binary_dense(RNG(6), "dense", (24, 24, 32), 100), (24, 24, 32)),
    "paper 2": (models.binary_dense(RNG(7), "dense", (1, 1, 100), 100), (1, 1, 100)),
    "paper 3": (models.output_dense(RNG(8), "dense", (1, 1, 100), 4), (1, 1, 100)),
    "road signs": (models.binary_dense(RNG(9), "dense", (4, 4, 256), 512), (4, 4, 256)),
    "spare bits": (models.binary_dense(RNG(10), "dense", (3, 5, 33), 65), (3, 5, 33)),
    "one bit": (models.output_dense(RNG(11), "dense", (1, 1, 1), 1), (1, 1, 1)),
    "wide logits": (models.output_dense(RNG(12), "dense", (7, 7, 40), 43), (7, 7, 40)),
    "bits as logits": (output_bits((3, 3, 64), 64), (3, 3, 64)),
}


def fused_of(layer: Layer, shape: Shape) -> Fused:
    """A layer that stands alone, and whose signal another reads."""
    place = Place(layer, shape, layer.output_shape(shape), (None,), (), (shape,))
    sign = layer if isinstance(layer, Sign) else None
    chain = (layer,) if isinstance(layer, CHAINED) else ()
    return Fused(place, chain, None, sign, layer.name if layer.gives == "signal" else None)


def pixel_words(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(frames, height, width, 1 or 3) uint8 -> (frames, height, width) uint32, as preprocess.cu leaves them."""
    four = np.zeros((*pixels.shape[:3], 4), dtype=np.uint8)
    four[..., : pixels.shape[3]] = pixels
    return four.view("<u4")[..., 0].astype(np.uint32)


def random_input(layer: Layer, shape: Shape, frames: int, rng: np.random.Generator) -> NDArray[Any]:
    """(frames, height, width, channels) pixels or signals, or (frames, height, width, words) bits."""
    if layer.takes == "pixels":
        return rng.integers(0, 256, (frames, *shape), dtype=np.uint8)
    if layer.takes == "signal":
        return rng.normal(0, 1, (frames, *shape)).astype(np.float32)
    return bits.pack(rng.integers(0, 2, (frames, *shape), dtype=np.uint8).astype(bool))


def evaluate(layer: Layer, source: NDArray[Any]) -> NDArray[Any]:
    """What the reference makes of several frames."""
    return np.stack([reference.evaluate(layer, frame) for frame in source])


def check_activations(backend: Backend, frame: Frame) -> None:
    """Assert that what a backend keeps is what the reference gives: nothing of what is fused, all of all else."""
    model = backend.model
    expected = dict(reference.ReferenceBackend(model).activations(frame))
    actual = dict(backend.activations(frame))
    kept = {"input"}
    for fused in fuse(model):
        head = fused.head.layer
        kept.update(name for name in (fused.signal, fused.sign.name if fused.sign else None) if name)
        if head.gives != "signal":
            kept.add(head.name)
        elif isinstance(head, (Concat, ChannelPad)):  # they may be made before what follows
            actual.pop(head.name, None) if head.name not in kept else None
    assert set(actual) == kept
    for name, value in actual.items():
        wanted = expected[name]
        assert (value.shape, value.dtype) == (wanted.shape, wanted.dtype), name
        np.testing.assert_array_equal(value, wanted, err_msg=name)


def share_of_stages(backend: Backend, frames: list[Frame]) -> float:
    """What part of a call its stages took: nearly all, but for what else the machine does. It is never more."""
    shares = []
    for _ in range(5):
        begin = time.perf_counter()
        backend.logits(frames)
        passed = (time.perf_counter() - begin) * 1e3
        assert list(backend.times) == ["preprocess", "inference"]
        assert min(backend.times.values()) > 0
        shares.append(sum(backend.times.values()) / passed)
    assert max(shares) <= 1
    return max(shares)


def paper_model() -> Model:
    """Random weights in the topology of arXiv 1808.00209."""
    rng = RNG(1)
    layers: list[Layer] = [
        models.input_conv(rng, "conv1", (96, 96, 3), 32, (5, 5), padding=(2, 2), pool=Pool(2, 2))
    ]
    layers.append(models.binary_conv(rng, "conv2", (48, 48, 32), 32, (5, 5), padding=(2, 2), pool=Pool(2, 2)))
    layers.append(models.binary_dense(rng, "dense1", (24, 24, 32), 100))
    layers.append(models.binary_dense(rng, "dense2", (1, 1, 100), 100))
    layers.append(models.output_dense(rng, "dense3", (1, 1, 100), 4))
    return models.make_model(InputSpec(96, 96), layers)


def thermometer_model() -> Model:
    rng = np.random.default_rng(2)
    layers: list[Layer] = [models.thermometer(rng, "levels", (32, 32, 3), 32)]
    layers.append(models.binary_conv(rng, "conv1", (32, 32, 96), 64, pool=Pool(2, 2)))
    layers.append(models.binary_conv(rng, "conv2", (16, 16, 64), 64, padding_value=0))
    layers.append(models.output_dense(rng, "dense1", (16, 16, 64), 10))
    return models.make_model(InputSpec(32, 32, fit="stretch"), layers)


def frames_of(*sizes: tuple[int, int, str]) -> list[Frame]:
    return [models.random_frame(RNG(index), *size) for index, size in enumerate(sizes)]
