"""Nets of others, as their tools wrote them: each was refused, or imported wrongly, by an earlier version."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.cli.parity import pixel_range
from bnn_perception.frames.frame import Frame
from bnn_perception.importers import read, source_logits

pytest.importorskip("onnx", reason="onnx is not installed")

CASES = (
    Path(os.environ.get("BNN_DATA", Path(__file__).parents[3] / "shared" / "data")).parent
    / "cases"
    / "import"
)

#: Largest difference of a logit, of its magnitude: the last layer's scale is rounded once more than in the source.
FILES = {
    "finn_tfc_w1a1.onnx": ("thermometer", "binary_dense", "binary_dense", "binary_dense", "output_dense"),
    "zoo_tfc_1w1a.onnx": ("thermometer", "binary_dense", "binary_dense", "binary_dense", "output_dense"),
    "larq_mnist.onnx": ("input_conv2d", "binary_conv2d", "binary_conv2d", "binary_dense", "output_dense"),
    "mini_conv28_on_pixels_torchscript.onnx": ("input_conv2d", "output_dense"),
    "mini_dense_on_pixels_torchscript.onnx": ("input_conv2d", "output_dense"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_net_of_others_gives_the_logits_of_its_graph(name: str) -> None:
    path = CASES / name
    if not path.is_file():
        pytest.skip(
            f"no {name} in {CASES}; CONTRIBUTING.md says what the data are, the variable BNN_DATA where"
        )
    model = read(path)
    assert tuple(layer.kind for layer in model.layers) == FILES[name]
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, model.input.shape, dtype=np.uint8) for _ in range(16)]
    expected = source_logits(path, images, pixel_range(model))
    encoding = "mono8" if model.input.channels == 1 else "rgb8"
    actual = ReferenceBackend(model).logits([Frame(image, encoding) for image in images])
    np.testing.assert_array_equal(actual.argmax(axis=1), expected.argmax(axis=1))
    # Two roundings of float32: a product and a sum.
    np.testing.assert_allclose(actual, expected, rtol=2**-22, atol=2**-22 * np.abs(expected).max())
