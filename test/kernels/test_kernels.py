"""Every kernel gives the same bits as the reference, on the host: odd shapes, all tiles, several frames."""

from __future__ import annotations

from collections.abc import Callable

import models
import numpy as np
import pytest
from fake_cupy import FakeCupy
from host_module import HostModule, LaunchError
from hypothesis import given
from hypothesis import strategies as st
from launches import check_layer, launch_step, same_examples
from layer_cases import (
    CONVOLUTIONS,
    DENSE,
    MMA,
    ORIN,
    RNG,
    SCALED,
    SIGNALS,
    TILED,
    conv,
    input_conv,
    levels_of,
    scaled,
    tiles_to_test,
)

from bnn_perception.backends.cuda import specs
from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.network import Array, Step
from bnn_perception.backends.cuda.sources import kernel_source
from bnn_perception.backends.cuda.upload import FrameUpload
from bnn_perception.frames.boxes import Box, region_of
from bnn_perception.frames.frame import ENCODINGS, Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.net import bits
from bnn_perception.net.checks import ModelError
from bnn_perception.net.layer import Shape
from bnn_perception.net.model import InputSpec, Model, iter_layers


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    check_layer(layer, shape)


@pytest.mark.parametrize("seed", [1, 7])
@pytest.mark.parametrize("name", ["road signs 3", "several stages of channels", "input, grey"])
def test_convolution_in_any_order_of_threads_and_for_several_frames(name: str, seed: int) -> None:
    layer, shape = CONVOLUTIONS[name]
    check_layer(layer, shape, frames=3, seed=seed)


@pytest.mark.parametrize("seed", [1, 7])
@pytest.mark.parametrize("name", ["24 -> 48", "pooled, padded with 0", "stem"])
def test_scaled_convolution_in_any_order_of_threads_and_for_several_frames(name: str, seed: int) -> None:
    check_layer(*SCALED[name], frames=3, seed=seed)


@pytest.mark.parametrize("tile", [specs.ConvTile(patch=4, rows=2), specs.ConvTile(1, 2, 2, 2, 1, 1)], ids=str)
def test_tiles_that_pass_the_edges_of_a_signal(tile: specs.ConvTile) -> None:
    check_layer(*scaled((9, 7, 24), 48), tile=tile, frames=2)


@pytest.mark.parametrize("name", SIGNALS)
def test_layer_of_a_signal(name: str) -> None:
    check_layer(*SIGNALS[name], frames=2, seed=3)


def test_real_weights_of_pixels_without_dp4a() -> None:
    check_layer(*SIGNALS["real stem"], arch=530)


@pytest.mark.parametrize(("name", "tile"), tiles_to_test(ORIN), ids=str)
def test_tile(name: str, tile: specs.ConvTile) -> None:
    check_layer(*TILED[name], tile=tile)


@pytest.mark.parametrize("name", MMA)
def test_convolution_on_tensor_cores(name: str) -> None:
    layer, shape, tile = MMA[name]
    check_layer(layer, shape, tile=tile, frames=2, seed=7)


@same_examples(15)
@given(st.data())
def test_any_convolution_on_tensor_cores(data: st.DataObject) -> None:
    shape = (
        data.draw(st.integers(5, 13)),
        data.draw(st.integers(5, 13)),
        data.draw(st.sampled_from([1, 33, 64, 96])),
    )
    layer = models.binary_conv(RNG(9), "conv", shape, **data.draw(models.convolutions()))
    try:
        layer.output_shape(shape)
    except ModelError:
        return  # a pool larger than what it pools
    check_layer(layer, shape, tile=data.draw(st.sampled_from(specs.mma_tiles(layer, shape, ORIN))))


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


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str, frames: int) -> None:
    layer, shape = DENSE[name]
    check_layer(layer, shape, frames=frames, seed=7)


DENSE_TILES = [(8, 4), (8, 16), (8, 32), (8, 64), (16, 2), (16, 8), (16, 32), (32, 1), (32, 4), (32, 16)]


@pytest.mark.parametrize("tile", [specs.DenseTile(*tile) for tile in DENSE_TILES], ids=str)
@pytest.mark.parametrize("name", ["paper 1", "spare bits", "wide logits", "bits as logits"])
def test_dense_tile(name: str, tile: specs.DenseTile) -> None:
    check_layer(*DENSE[name], tile=tile, frames=4, seed=1)


@pytest.mark.parametrize("lanes", [8, 32, 128])
def test_four_logits_of_a_block(lanes: int) -> None:
    check_layer(*DENSE["wide logits"], tile=specs.DenseTile(4, lanes), frames=2, seed=1)


def test_dense_without_reduction_of_a_warp() -> None:
    check_layer(*DENSE["paper 1"], tile=specs.DenseTile(8, 64), frames=2, arch=530)


@same_examples(25)
@given(models.models())
def test_any_layer(model: Model) -> None:
    for place in iter_layers(model):
        check_layer(place.layer, place.before)


ENCODING_NAMES = sorted(ENCODINGS)


def preprocess(world: FakeCupy, frames: list[Frame], spec: InputSpec) -> np.ndarray:
    gpu = Gpu()
    with gpu():
        stream = world.cuda.Stream(non_blocking=True)
        with stream:
            upload = FrameUpload(gpu, spec)
            bytes_, _ = upload.stage(frames)
            upload.copy(stream, bytes_)
            stream.synchronize()
    image = Array((spec.height, spec.width), np.uint32)
    step = Step("input", lambda count: specs.preprocess(spec, count), None, bits=("input", image))
    words = launch_step(step, upload.device.host, len(frames), seed=7)
    assert np.all(words >> 8 * spec.channels == 0)
    return words[..., None].view(np.uint8)[..., : spec.channels]


def check_preprocess(world: FakeCupy, frames: list[Frame], spec: InputSpec) -> None:
    actual = preprocess(world, frames, spec)
    for frame, pixels in zip(frames, actual):
        np.testing.assert_array_equal(
            pixels, prepare_reference(frame, spec), err_msg=f"{frame.encoding} {frame.pixels.shape}"
        )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ENCODING_NAMES)
def test_preprocess_each_encoding(fake_gpu: Callable[..., FakeCupy], encoding: str, channels: int) -> None:
    frames = [
        models.random_frame(RNG(20), height, width, encoding)
        for height, width in [(48, 64), (7, 5), (33, 200)]
    ]
    check_preprocess(fake_gpu(), frames, InputSpec(32, 32, channels))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ENCODING_NAMES)
def test_preprocess_of_the_outputs_own_size(
    fake_gpu: Callable[..., FakeCupy], encoding: str, channels: int
) -> None:
    """Such frames are copied: whole, as a region of a wider one, and beside one that is not of this size."""
    whole, wider, other = (
        models.random_frame(RNG(23), height, width, encoding)
        for height, width in [(33, 21), (44, 63), (34, 21)]
    )
    frames = [whole, Frame(wider.pixels, encoding, (1 / 3, 0.25, 1 / 3, 0.75)), other]
    check_preprocess(fake_gpu(), frames, InputSpec(33, 21, channels))


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 16384), (16384, 1), (3, 16384), (97, 1030), (480, 640)],
    ids=str,
)
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_preprocess_each_size(fake_gpu: Callable[..., FakeCupy], height: int, width: int, fit: str) -> None:
    check_preprocess(
        fake_gpu(), [models.random_frame(RNG(21), height, width, "bgr8")], InputSpec(24, 20, 3, fit)
    )


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_preprocess_keeps_a_constant(fake_gpu: Callable[..., FakeCupy], value: int) -> None:
    """Sums of 255 over a large frame are the largest there are; a quotient by floats alone would miss some."""
    pixels = np.full((1500, 1999, 3), value, dtype=np.uint8)
    assert np.all(preprocess(fake_gpu(), [Frame(pixels)], InputSpec(4, 4, 3, "stretch")) == value)


@same_examples(40)
@given(st.data())
def test_preprocess_any_region(fake_gpu: Callable[..., FakeCupy], data: st.DataObject) -> None:
    spec = InputSpec(
        9, 12, data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from(["crop", "stretch"]))
    )
    sides = st.integers(1, 70)
    frames = []
    for _ in range(data.draw(st.integers(1, 3))):
        x, y = data.draw(st.floats(0, 0.9)), data.draw(st.floats(0, 0.9))
        region = (x, y, data.draw(st.floats(0.01, 1 - x)), data.draw(st.floats(0.01, 1 - y)))
        encoding = data.draw(st.sampled_from(ENCODING_NAMES))
        frame = models.random_frame(
            RNG(data.draw(st.integers(0, 99))), data.draw(sides), data.draw(sides), encoding
        )
        frames.append(Frame(frame.pixels, encoding, region))
    check_preprocess(fake_gpu(), frames, spec)


@same_examples(30)
@given(st.data())
def test_preprocess_boxes_of_one_image(fake_gpu: Callable[..., FakeCupy], data: st.DataObject) -> None:
    """Overlapping regions are read in place from one copy, wherever in a word they begin."""
    encoding = data.draw(st.sampled_from(ENCODING_NAMES))
    width, height = data.draw(st.integers(20, 90)), data.draw(st.integers(20, 90))
    pixels = models.random_frame(RNG(data.draw(st.integers(0, 99))), height, width, encoding).pixels
    spec = InputSpec(
        9, 12, data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from(["crop", "stretch"]))
    )
    numbers = st.floats(1, 90)
    boxes = data.draw(st.lists(st.builds(Box, numbers, numbers, numbers, numbers), min_size=4, max_size=12))
    regions = [region_of(box, width, height) for box in boxes]
    frames = [Frame(pixels, encoding, region) for region in regions if region is not None]
    # One of the output's own size, which is copied, at any byte of a word.
    x = data.draw(st.integers(0, width - 12))
    frames.append(Frame(pixels, encoding, (x / width, 0.0, 12 / width, 9 / height)))
    check_preprocess(fake_gpu(), frames, spec)


def test_preprocess_reads_rows_any_distance_apart(fake_gpu: Callable[..., FakeCupy]) -> None:
    buffer = RNG(22).integers(0, 256, 40 * 1001, dtype=np.uint8)
    pixels = np.lib.stride_tricks.as_strided(buffer[3:], (39, 250, 3), (1001, 3, 1))
    check_preprocess(fake_gpu(), [Frame(pixels, "rgb8", (0.1, 0.2, 0.5, 0.7))], InputSpec(16, 16))


@pytest.mark.parametrize(
    "kernel",
    [
        *("bconv2d_b1mma", "bconv2d_popc", "binary_pool2d", "copy_channels", "dense", "input_conv2d"),
        *("pool2d", "preprocess", "real_conv2d", "real_input_conv2d", "stored_signal", "thermometer"),
    ],
)
def test_kernel_without_its_geometry_is_refused(kernel: str) -> None:

    with pytest.raises(LaunchError, match=r"is not stated; see bnn_perception/backends/cuda/specs\.py"):
        HostModule(kernel_source(kernel))


def test_padding_bits_of_thresholds_stay_zero() -> None:
    """Filters that do not exist never fire, whatever the flip."""
    layer, shape = conv((5, 5, 40), 33)
    object.__setattr__(layer, "flip", np.ones(33, dtype=bool))
    object.__setattr__(layer, "threshold", np.full(33, bits.NEVER, dtype=np.int32))
    check_layer(layer, shape)
