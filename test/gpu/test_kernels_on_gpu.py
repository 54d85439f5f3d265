"""Every kernel gives the same bits as the reference, on the GPU: the cases that the host has run, and larger ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import models
import numpy as np
import pytest
from layer_cases import (
    CONVOLUTIONS,
    DENSE,
    MMA,
    ORIN,
    RNG,
    SIGNALS,
    TILED,
    conv,
    evaluate,
    fused_of,
    input_conv,
    levels_of,
    pixel_words,
    random_input,
    real,
    real_stem,
    scaled,
    tiles_to_test,
)
from numpy.typing import NDArray

from bnn_perception.backends.cuda import specs
from bnn_perception.backends.cuda.compile import Kernels
from bnn_perception.backends.cuda.device import Gpu
from bnn_perception.backends.cuda.network import Array, Step, layer_steps
from bnn_perception.backends.cuda.tiles import TileTable
from bnn_perception.backends.cuda.upload import FrameUpload
from bnn_perception.frames.frame import ENCODINGS, Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.net.layer import Layer, Pool, Shape
from bnn_perception.net.model import InputSpec


class Runner:
    """Launches single steps."""

    def __init__(self) -> None:
        self.gpu = Gpu()
        self.kernels = Kernels(self.gpu)

    def launch(self, step: Step, source: Any, frames: int, times: int = 1) -> NDArray[Any]:
        """What a step makes of (frames, ...) inputs, launched ``times`` times."""
        cupy = self.gpu.cupy
        spec = step.spec(frames)
        constants = [cupy.asarray(constant) for constant in step.constants]
        ((_, array),) = step.outputs
        result = cupy.asarray(np.full((frames, *array.shape), 0x5B, dtype=array.dtype))
        for _ in range(times):
            self.kernels[spec](spec.grid, spec.block, (cupy.asarray(source), *constants, result))
        return np.asarray(result.get())

    def check_layer(
        self, layer: Layer, shape: Shape, tile: specs.Tile | None = None, frames: int = 1, times: int = 1
    ) -> None:
        table = TileTable()
        if tile is not None and specs.is_tiled(layer):
            table.set(layer, shape, self.gpu.target, tile)
        source = random_input(layer, shape, frames, RNG(frames))
        expected = evaluate(layer, source)
        if source.dtype == np.uint8:
            source = pixel_words(source)
        (step,) = layer_steps(fused_of(layer, shape), self.gpu.target, table)
        actual = self.launch(step, source, frames, times)
        np.testing.assert_array_equal(actual, expected, err_msg=f"{layer.name} {shape} {tile}")


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner()
    with made.gpu():
        yield made


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(runner: Runner, name: str, frames: int) -> None:
    runner.check_layer(*CONVOLUTIONS[name], frames=frames)


LARGE = {
    "binary": conv((56, 56, 256), 256, pool=Pool(2, 2)),
    "binary, padded with 0": conv((57, 55, 96), 96, 5, padding_value=0),
    "input": input_conv((224, 224, 3), 64, 7, stride=(2, 2), pool=Pool(3, 2)),
    "scaled": scaled((57, 55, 96), 192, stride=(2, 2)),
    "real stem": real_stem((224, 224, 3), 64, (7, 7), (2, 2), (3, 3)),
    "real 1x1": real((28, 28, 128), 256),
    "depthwise": real((56, 56, 96), 96, (3, 3), (2, 2), (1, 1), 96),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_layer_of_a_signal(runner: Runner, name: str) -> None:
    runner.check_layer(*SIGNALS[name], frames=3)


@pytest.mark.parametrize("name", LARGE)
def test_large_convolution(runner: Runner, name: str) -> None:
    runner.check_layer(*LARGE[name], frames=2)


@pytest.mark.parametrize(("name", "tile"), tiles_to_test(ORIN), ids=str)
def test_tile(runner: Runner, name: str, tile: specs.ConvTile) -> None:
    runner.check_layer(*TILED[name], tile=tile, frames=2)


@pytest.mark.parametrize("name", MMA)
def test_convolution_on_tensor_cores(runner: Runner, name: str) -> None:
    if runner.gpu.target.sm not in specs.MMA_SMS:
        pytest.skip(f"sm_{runner.gpu.target.sm} has no one-bit matrix instruction")
    layer, shape, tile = MMA[name]
    runner.check_layer(layer, shape, tile=tile, frames=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["a curve", "falling", "two", "CNV"])
def test_input_levels(runner: Runner, kind: str, channels: int) -> None:
    layer, shape = input_conv((8, 10, channels), 33)
    object.__setattr__(layer, "levels", levels_of(kind))
    runner.check_layer(layer, shape)


@pytest.mark.parametrize("levels", [1, 11, 32, 255])
def test_thermometer(runner: Runner, levels: int) -> None:
    runner.check_layer(models.thermometer(RNG(3), "levels", (13, 11, 3), levels), (13, 11, 3), frames=2)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("name", DENSE)
def test_dense(runner: Runner, name: str, frames: int) -> None:
    runner.check_layer(*DENSE[name], frames=frames)


@pytest.mark.parametrize("outputs", [8, 16, 32])
@pytest.mark.parametrize("lanes", [4, 16, 32, 64])
def test_dense_tile(runner: Runner, outputs: int, lanes: int) -> None:
    """Blocks that write parts of one word, and warps that share an output, agree from launch to launch."""
    if outputs * lanes > 512:
        pytest.skip("a block has 512 threads at most")
    runner.check_layer(*DENSE["paper 1"], tile=specs.DenseTile(outputs, lanes), frames=4, times=20)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize(("height", "width"), [(7, 5), (480, 640), (1080, 1920), (3, 16384)], ids=str)
def test_preprocess(runner: Runner, height: int, width: int, encoding: str, channels: int) -> None:
    spec = InputSpec(32, 48, channels)
    frame = models.random_frame(RNG(20), height, width, encoding)
    frames = [frame, Frame(frame.pixels, encoding, (0.1, 0.2, 0.6, 0.7))]
    upload = FrameUpload(runner.gpu, spec)
    stream = runner.gpu.cupy.cuda.Stream(non_blocking=True)
    bytes_, _ = upload.stage(frames)
    with stream:
        upload.copy(stream, bytes_)
        stream.synchronize()
    image = Array((32, 48), np.uint32)
    step = Step("input", lambda count: specs.preprocess(spec, count), None, bits=("input", image))
    words = runner.launch(step, upload.device, len(frames))
    for source, pixels in zip(frames, words[..., None].view(np.uint8)):
        np.testing.assert_array_equal(pixels[..., :channels], prepare_reference(source, spec))
