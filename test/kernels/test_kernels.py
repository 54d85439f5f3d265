"""Every kernel gives the same bits as the reference, on the host: odd shapes, all tiles, several frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
from fake_cupy import FakeCupy
from hypothesis import given
from hypothesis import strategies as st
from launches import ORIN, check_layer, launch_step, same_examples

from bnn_perception import bits
from bnn_perception.cuda import specs
from bnn_perception.cuda.device import Gpu
from bnn_perception.cuda.network import Array, Step
from bnn_perception.cuda.upload import FrameUpload
from bnn_perception.model import Conv2d, InputSpec, Layer, Model, OutputBits, Pool, Shape, iter_layers
from bnn_perception.preprocess import CHANNELS, Frame, prepare_reference

RNG = np.random.default_rng


def conv(shape: Shape, filters: int, kernel: int | tuple[int, int] = 3, **options: Any) -> tuple[Conv2d, Shape]:
    """A binary convolution; the padding is half the kernel unless it is given."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    options.setdefault("padding", (kernel[0] // 2, kernel[1] // 2))
    return models.binary_conv(RNG(1), "conv", shape, filters, kernel, **options), shape


def input_conv(shape: Shape, filters: int, kernel: int | tuple[int, int] = 3, **options: Any) -> tuple[Conv2d, Shape]:
    """An input convolution, likewise."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    options.setdefault("padding", (kernel[0] // 2, kernel[1] // 2))
    return models.input_conv(RNG(2), "input", shape, filters, kernel, **options), shape


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
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    check_layer(layer, shape)


@pytest.mark.parametrize("seed", [1, 7])
@pytest.mark.parametrize("name", ["road signs 3", "several stages of channels", "input, grey"])
def test_convolution_in_any_order_of_threads_and_for_several_frames(name: str, seed: int) -> None:
    layer, shape = CONVOLUTIONS[name]
    check_layer(layer, shape, frames=3, seed=seed)


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
TILES = [(name, tile) for name, case in TILED.items() for tile in one_of_each(specs.conv_tiles(*case, ORIN))]


@pytest.mark.parametrize(("name", "tile"), TILES, ids=str)
def test_tile(name: str, tile: specs.ConvTile) -> None:
    check_layer(*TILED[name], tile=tile)


def levels_of(kind: str) -> np.ndarray:
    return {
        "a curve": np.round(np.linspace(0, 15.9, 256) ** 2),
        "falling": np.arange(255, -1, -1),
        "two": np.where(np.arange(256) < 128, -1, 1),
        "CNV": np.clip(np.round(128 * (2 * np.arange(256) / 255 - 1)), -128, 127),
    }[kind].astype(np.int16)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["a curve", "falling", "two", "CNV"])
def test_input_levels(kind: str, channels: int) -> None:
    layer, shape = input_conv((8, 10, channels), 33)
    object.__setattr__(layer, "levels", levels_of(kind))
    check_layer(layer, shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_input_convolution_without_dp4a(channels: int) -> None:
    layer, shape = input_conv((8, 10, channels), 33)
    check_layer(layer, shape, arch=530)


@pytest.mark.parametrize("shape", [(8, 9, 3), (1, 1, 1), (13, 11, 3)])
@pytest.mark.parametrize("levels", [1, 11, 32, 255])
def test_thermometer(shape: Shape, levels: int) -> None:
    check_layer(models.thermometer(RNG(3), "levels", shape, levels), shape, frames=2)


def output_bits(shape: Shape, features: int) -> OutputBits:
    hidden, output = models.binary_dense(RNG(4), "output", shape, features), models.output_dense(RNG(5), "output", shape, features)
    return OutputBits("output", shape, features, hidden.weights, hidden.threshold, hidden.flip, output.scale, output.bias)


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


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str, frames: int) -> None:
    layer, shape = DENSE[name]
    check_layer(layer, shape, frames=frames, seed=7)


@pytest.mark.parametrize("tile", [specs.DenseTile(w, s) for w, s in [(1, 1), (8, 1), (1, 5), (2, 16), (8, 32), (4, 7)]], ids=str)
def test_dense_tile_repeatedly(tile: specs.DenseTile) -> None:
    """Split layers count arrivals and leave the counters as they were, so that the next launch works too."""
    layer, shape = DENSE["wide logits"] if tile.splits > 7 else DENSE["paper 1"]
    check_layer(layer, shape, tile=tile, frames=4, seed=1, times=2)


@same_examples(25)
@given(models.models())
def test_any_layer(model: Model) -> None:
    for layer, before, _ in iter_layers(model):
        check_layer(layer, before)


ENCODINGS = sorted(CHANNELS)


def preprocess(world: FakeCupy, frames: list[Frame], spec: InputSpec) -> np.ndarray:
    gpu = Gpu()
    with gpu():
        stream = world.cuda.Stream(non_blocking=True)
        with stream:
            upload = FrameUpload(gpu, spec)
            bytes_, _ = upload.stage(frames)
            upload.copy(stream, bytes_)
            stream.synchronize()
    step = Step("input", lambda count: specs.preprocess(spec, count), (), Array((spec.height, spec.width), np.uint32))
    words = launch_step(step, upload.device.host, len(frames), seed=7)
    assert np.all(words >> 8 * spec.channels == 0)
    return words[..., None].view(np.uint8)[..., : spec.channels]


def check_preprocess(world: FakeCupy, frames: list[Frame], spec: InputSpec) -> None:
    actual = preprocess(world, frames, spec)
    for frame, pixels in zip(frames, actual):
        np.testing.assert_array_equal(pixels, prepare_reference(frame, spec), err_msg=f"{frame.encoding} {frame.pixels.shape}")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_preprocess_each_encoding(fake_gpu: Callable[..., FakeCupy], encoding: str, channels: int) -> None:
    frames = [models.random_frame(RNG(20), height, width, encoding) for height, width in [(48, 64), (7, 5), (33, 200)]]
    check_preprocess(fake_gpu(), frames, InputSpec(32, 32, channels))


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 16384), (16384, 1), (3, 16384), (97, 1030), (480, 640)], ids=lambda side: str(side)
)
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_preprocess_each_size(fake_gpu: Callable[..., FakeCupy], height: int, width: int, fit: str) -> None:
    check_preprocess(fake_gpu(), [models.random_frame(RNG(21), height, width, "bgr8")], InputSpec(24, 20, 3, fit))


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_preprocess_keeps_a_constant(fake_gpu: Callable[..., FakeCupy], value: int) -> None:
    """Sums of 255 over a large frame are the largest there are; a quotient by floats alone would miss some."""
    pixels = np.full((1500, 1999, 3), value, dtype=np.uint8)
    assert np.all(preprocess(fake_gpu(), [Frame(pixels)], InputSpec(4, 4, 3, "stretch")) == value)


@same_examples(40)
@given(st.data())
def test_preprocess_any_region(fake_gpu: Callable[..., FakeCupy], data: st.DataObject) -> None:
    spec = InputSpec(9, 12, data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from(["crop", "stretch"])))
    sides = st.integers(1, 70)
    frames = []
    for _ in range(data.draw(st.integers(1, 3))):
        x, y = data.draw(st.floats(0, 0.9)), data.draw(st.floats(0, 0.9))
        region = (x, y, data.draw(st.floats(0.01, 1 - x)), data.draw(st.floats(0.01, 1 - y)))
        encoding = data.draw(st.sampled_from(ENCODINGS))
        frame = models.random_frame(RNG(data.draw(st.integers(0, 99))), data.draw(sides), data.draw(sides), encoding)
        frames.append(Frame(frame.pixels, encoding, region))
    check_preprocess(fake_gpu(), frames, spec)


def test_preprocess_reads_rows_any_distance_apart(fake_gpu: Callable[..., FakeCupy]) -> None:
    buffer = RNG(22).integers(0, 256, 40 * 1001, dtype=np.uint8)
    pixels = np.lib.stride_tricks.as_strided(buffer[3:], (39, 250, 3), (1001, 3, 1))
    check_preprocess(fake_gpu(), [Frame(pixels, "rgb8", (0.1, 0.2, 0.5, 0.7))], InputSpec(16, 16))


@pytest.mark.parametrize("kernel", sorted(specs.MAX_REGISTERS))
def test_kernel_without_its_geometry_is_refused(kernel: str) -> None:
    from bnn_perception.cuda.sources import kernel_source
    from host_module import HostModule, LaunchError

    with pytest.raises(LaunchError, match="is not stated; see bnn_perception/cuda/specs.py"):
        HostModule(kernel_source(kernel))


def test_padding_bits_of_thresholds_stay_zero() -> None:
    """Filters that do not exist never fire, whatever the flip."""
    layer, shape = conv((5, 5, 40), 33)
    object.__setattr__(layer, "flip", np.ones(33, dtype=bool))
    object.__setattr__(layer, "threshold", np.full(33, bits.NEVER, dtype=np.int32))
    check_layer(layer, shape)
