"""Every kind of layer that a model can have."""

from __future__ import annotations

from bnn_perception.net.layer import Layer
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    InputConv2d,
    OutputBits,
    OutputDense,
    Thermometer,
)
from bnn_perception.net.signals import (
    Add,
    Affine,
    AveragePool,
    BinaryMaxPool,
    ChannelPad,
    Clip,
    Concat,
    MaxPool,
    PRelu,
    RealConv2d,
    RealInputConv2d,
    ScaledBinaryConv2d,
    ScaledInputConv2d,
    Sign,
)

#: Every kind of layer, by its name in ``model.yaml``.
LAYER_KINDS: dict[str, type[Layer]] = {
    cls.kind: cls
    for cls in (
        Thermometer,
        InputConv2d,
        ScaledInputConv2d,
        RealInputConv2d,
        BinaryConv2d,
        ScaledBinaryConv2d,
        RealConv2d,
        Affine,
        PRelu,
        Clip,
        Sign,
        Add,
        Concat,
        ChannelPad,
        MaxPool,
        BinaryMaxPool,
        AveragePool,
        BinaryDense,
        OutputDense,
        OutputBits,
    )
}
