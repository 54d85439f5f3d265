"""The real kernels once more under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer."""

from __future__ import annotations

import models
import numpy as np
import pytest
from launches import check_layer, launch_step
from layer_cases import CONVOLUTIONS, DENSE, MMA, SCALED, SIGNALS, conv, input_conv

from bnn_perception.backends.cuda import specs
from bnn_perception.backends.cuda.network import Array, Step
from bnn_perception.backends.cuda.specs import FRAME
from bnn_perception.frames.frame import ENCODINGS, Frame
from bnn_perception.frames.preprocess import prepare_reference
from bnn_perception.net.layer import Pool
from bnn_perception.net.model import InputSpec

# Small layers that reach every part of the kernels: the sanitizers make them some fifty times slower.
SMALL = {
    "pool, tail of channels": conv((7, 9, 40), 70, pool=Pool(2, 2)),
    "border correction": conv((6, 5, 33), 33, padding_value=0, pool=Pool(2, 2)),
    "strided": conv((9, 8, 33), 31, 5, stride=(2, 3)),
    "large pool, several stages": conv((6, 6, 4096), 32, pool=Pool(5, 5)),
    "several stages of rows": conv((34, 33, 20), 32, (32, 33), padding=(0, 0)),
    "colour": input_conv((7, 9, 3), 40, 5, pool=Pool(2, 2)),
    "grey, signed": input_conv((7, 9, 1), 33, 3, signed=True),
    "scaled, growing channels": SCALED["24 -> 48"],
    "scaled, pooled": SCALED["pooled, padded with 0"],
    "scaled, of pixels": SCALED["stem"],
    **SIGNALS,
}


@pytest.fixture(params=["asan", "tsan"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", SMALL)
def test_convolution(name: str, mode: str) -> None:
    check_layer(*SMALL[name], mode=mode)


def test_convolution_on_tensor_cores(mode: str) -> None:
    layer, shape, tile = MMA["no pool"]
    check_layer(layer, shape, tile=tile, mode=mode)


def test_convolution_of_several_frames(mode: str) -> None:
    check_layer(*CONVOLUTIONS["1x1"], mode=mode, frames=2, seed=7)


@pytest.mark.parametrize("name", ["spare bits", "wide logits", "bits as logits", "one bit"])
def test_dense(name: str, mode: str) -> None:
    check_layer(*DENSE[name], mode=mode, frames=2)


@pytest.mark.parametrize("name", ["paper 1", "spare bits"])
def test_dense_of_several_warps_an_output(name: str, mode: str) -> None:
    check_layer(*DENSE[name], tile=specs.DenseTile(outputs=8, lanes=64), mode=mode, frames=4, seed=7)


def test_thermometer(mode: str) -> None:
    check_layer(models.thermometer(np.random.default_rng(3), "levels", (5, 9, 3), 11), (5, 9, 3), mode=mode)


@pytest.mark.parametrize("channels", [1, 3])
def test_preprocess(channels: int, mode: str) -> None:
    """An upload buffer that ends with the last byte of the last frame: nothing behind it may be read."""
    spec = InputSpec(6, 20, channels, "stretch")
    rng = np.random.default_rng(5)
    frames = [models.random_frame(rng, 9, 31, "mono8"), models.random_frame(rng, 5, 700, "bgr8")]
    table, parts, offset = np.zeros(len(frames), dtype=FRAME), [], len(frames) * FRAME.itemsize
    for index, frame in enumerate(frames):
        height, width, bytes_ = frame.pixels.shape
        step = -(-width * bytes_ // 4) * 4
        table[index] = (
            offset,
            step,
            ENCODINGS[frame.encoding].channels,
            *ENCODINGS[frame.encoding].rgb,
            height,
            width,
            0,
        )
        rows = np.zeros((height, step), dtype=np.uint8)
        rows[:, : width * bytes_] = frame.pixels.reshape(height, -1)
        parts.append(rows.reshape(-1))
        offset += rows.size
    upload = np.concatenate([table.view(np.uint8), *parts])
    image = Array((spec.height, spec.width), np.uint32)
    preprocess = Step("input", lambda count: specs.preprocess(spec, count), None, bits=("input", image))
    words = launch_step(preprocess, upload, len(frames), mode=mode)
    for frame, actual in zip(frames, words[..., None].view(np.uint8)):
        np.testing.assert_array_equal(
            actual[..., :channels], prepare_reference(Frame(frame.pixels, frame.encoding), spec)
        )
