"""A model made by hand: which side of an image is brighter? Written to a folder, read back, and asked.

    python examples/handmade_model.py FOLDER

The net sees the image as two grey pixels. A convolution subtracts one from the other, once each way, and compares the
difference with a threshold of 10 grey levels. The last layer turns the two bits into three logits.
"""

from __future__ import annotations

import sys

import numpy as np

import bnn_perception
from bnn_perception.net.bits import pack
from bnn_perception.net.layers import InputConv2d, OutputDense


def make_model() -> bnn_perception.Model:
    # Weights are signs: True is +1, False is -1. The last axis counts channels and is packed, 32 to a word.
    left_minus_right, right_minus_left = [[True, False]], [[False, True]]
    sides = InputConv2d(
        name="sides",
        in_channels=1,
        out_channels=2,
        kernel=(1, 2),
        stride=(1, 1),
        padding=(0, 0),
        pool=None,
        weights=pack(np.array([left_minus_right, right_minus_left])[..., None]),
        threshold=np.array([10, 10], np.int32),
        flip=np.array([False, False]),
    )
    # Bits count as +1 and -1 here: (+1, -1) and (-1, +1) give 2 with the row that equals them, (-1, -1) with the third.
    answer = OutputDense(
        name="answer",
        in_shape=(1, 1, 2),
        out_features=3,
        weights=pack(np.array([[True, False], [False, True], [False, False]])),
        scale=np.array([1, 1, 1], np.float32),
        bias=np.array([0, 0, 0], np.float32),
    )
    return bnn_perception.Model(
        name="sides",
        labels=("left is brighter", "right is brighter", "both alike"),
        input=bnn_perception.InputSpec(height=1, width=2, channels=1, fit="stretch"),
        layers=(sides, answer),
    )


def main(folder: str) -> None:
    bnn_perception.save_model(make_model(), folder)
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    with bnn_perception.load_classifier(folder) as classifier:
        for image in (ramp, ramp[:, ::-1], ramp.T):
            (best,) = classifier.predict(image)
            print(f"{best.label} ({best.score:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
