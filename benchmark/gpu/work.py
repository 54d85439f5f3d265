"""How much there is to do: multiply-accumulates and bytes of every kernel of a net.

Bytes are the least that must move: every input, weight and output once, as if caches were perfect. A kernel that reads
something twice from memory reaches a smaller share of the bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bnn_perception.backends.cuda import float_specs
from bnn_perception.backends.cuda.float_specs import aligned, columns
from bnn_perception.backends.fusion import fuse
from bnn_perception.importers.stage import Stage
from bnn_perception.net.bits import words_for
from bnn_perception.net.layer import Shape
from bnn_perception.net.model import Model
from bnn_perception.net.signals import ChannelPad, Concat

#: Bytes of a frame's description and of a model input's pixel, as the preprocessing passes them.
_DESCRIPTION, _PIXEL = 48, 4


@dataclass(frozen=True)
class Work:
    """What one kernel does for a batch.

    Attributes:
        layer: its name.
        binary_macs: of bits with bits; each is two binary operations (XOR, count).
        byte_macs: of 8-bit pixels with +-1.
        float_macs: of floats.
        bytes: read and written.
    """

    layer: str
    bytes: int
    binary_macs: int = 0
    byte_macs: int = 0
    float_macs: int = 0


def binary_work(model: Model, frames: int, frame_bytes: int) -> list[Work]:
    """The work of each kernel of a binary net, in the order in which they run.

    Args:
        model: the net.
        frames: of a batch.
        frame_bytes: of one camera frame's region of interest.
    """
    height, width, _ = model.input.shape
    pixels = height * width * _PIXEL
    work = [Work("input", frames * (frame_bytes + _DESCRIPTION + pixels))]
    # Bytes of what each layer gives.
    given = {
        layer.name: _activation_bytes(after) if layer.gives == "bits" else 4 * math.prod(after)
        for layer, after in zip(model.layers, model.shapes()[1:])
    }
    for fused in fuse(model):
        place, layers = fused.head, fused.layers
        source = sum(pixels if layer is None else given[layer.name] for layer in place.sources)
        if isinstance(place.layer, (Concat, ChannelPad)):  # a copy of each input, and then what follows
            copied = [given[layer.name] for layer in place.sources if layer is not None]
            work += [Work(place.layer.name, frames * 2 * count) for count in copied]
            if len(layers) == 1:
                continue
            source = given[place.layer.name]
            layers = layers[1:]
        source += given[fused.addend] if fused.addend and len(place.sources) == 1 else 0
        names = {fused.signal, fused.sign.name if fused.sign else None} - {None}
        if place.layer.gives != "signal":
            names.add(place.layer.name)
        names.discard(place.layer.name if layers[0] is not place.layer and fused.has_head else None)
        target = sum(given[name] for name in names if name is not None)
        constants = sum(array.nbytes for layer in layers for array in layer.array_values().values())
        head = layers[0]
        macs = frames * head.macs(*place.before_all) if head is place.layer else 0
        work.append(
            Work(
                layers[0].name,
                frames * (source + target) + constants,
                binary_macs=macs if head.operands == "bits" else 0,
                byte_macs=macs if head.operands == "bytes" else 0,
                float_macs=macs if head.operands == "reals" else 0,
            )
        )
    return work


def _activation_bytes(shape: Shape) -> int:
    return shape[0] * shape[1] * words_for(shape[2]) * 4


def float_work(
    model: Model, stages: Sequence[Stage], half: bool, frames: int, frame_bytes: int
) -> list[Work]:
    """The work of each kernel of a float twin; products count without their padding. See :func:`binary_work`."""
    height, width, _ = model.input.shape
    pixels = height * width * _PIXEL
    size = 2 if half else 4
    matrix = frames * _rows(stages[0]) * columns(stages[0], first=True) * size
    work = [
        Work("input", frames * (frame_bytes + _DESCRIPTION + pixels)),
        Work(stages[0].name, frames * pixels + matrix),
    ]
    for index, stage in enumerate(stages):
        filters = aligned(stage.out_channels)
        product = frames * _rows(stage) * filters * size
        weights = filters * columns(stage, first=index == 0) * size
        work.append(Work(stage.name, matrix + weights + product, float_macs=frames * stage.macs))
        following = stages[index + 1] if index + 1 < len(stages) else None
        if following is not None:
            matrix = frames * _rows(following) * columns(following, first=False) * size
            target = matrix
        else:
            target = frames * stage.out_channels * 4
        residuals = 0
        if float_specs.reads_residual(stage):
            residuals += _residual_bytes(stage.input_shape)
        if float_specs.reads_residual(following):
            residuals += _residual_bytes(stage.output_shape)
        work.append(Work(stage.name, product + 2 * 4 * filters + target + frames * residuals))
    return work


def _residual_bytes(shape: Shape) -> int:
    return shape[0] * shape[1] * aligned(shape[2]) * 4


def _rows(stage: Stage) -> int:
    return stage.conv_shape[0] * stage.conv_shape[1]
