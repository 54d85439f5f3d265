"""Modules that nets are built of, beside PyTorch's own: signs, binary weights, blocks of several parts.

The light modules of this file train: they state the estimator in a few lines and need PyTorch alone. The same topology
with Brevitas' quantizers takes their weights for the QONNX export; that both answer alike is tested. A training step
costs the same in either (0.35 s of one core for 64 road signs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class _SignSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # The derivative of hardtanh is 1 inside (-1, 1), else 0: the clipped estimator, in one pass over memory.
        return torch.ops.aten.hardtanh_backward(grads[0], x, -1.0, 1.0)


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1; the gradient passes where \\|x\\| < 1."""
    return _SignSTE.apply(x)


class Sign(nn.Module):
    """:func:`sign` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)


class BinaryWeightConv2d(nn.Conv2d):
    """Convolution by the signs of its latent weights."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, sign(self.weight), None, self.stride, self.padding)


class BinaryWeightLinear(nn.Linear):
    """Matrix product by the signs of its latent weights."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, sign(self.weight))


class ChannelShift(nn.Module):
    """Subtracts a learnt number from each channel; with the sign behind it, RSign (arXiv 2003.03488)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.threshold.view(-1, 1, 1)


class Block(nn.Module):
    """Several parts with names, and a function that computes with them.

    Args:
        function: takes this block and the input, and gives the output.
        parts: modules, and tensors that training does not change; None for a part that is missing.
    """

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module | Tensor | None) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


class Quantizers(NamedTuple):
    """How to build the three quantized parts of a binary net."""

    conv: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]
    sign: Callable[[], nn.Module]


LIGHT = Quantizers(BinaryWeightConv2d, BinaryWeightLinear, Sign)


def brevitas_quantizers() -> Quantizers:
    """The same three parts from Brevitas: W1A1, scale 1, exported as ``BipolarQuant``."""
    from brevitas import nn as qnn
    from brevitas.core.zero_point import ZeroZeroPoint
    from brevitas.inject import ExtendedInjector
    from brevitas.inject.enum import (
        BitWidthImplType,
        FloatToIntImplType,
        QuantType,
        RestrictValueType,
        ScalingImplType,
    )
    from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver

    class Bipolar(ExtendedInjector):
        quant_type = QuantType.BINARY
        bit_width_impl_type = BitWidthImplType.CONST
        bit_width = 1
        scaling_impl_type = ScalingImplType.CONST
        restrict_scaling_type = RestrictValueType.FP
        scaling_per_output_channel = False
        scaling_const = 1.0
        zero_point_impl = ZeroZeroPoint
        float_to_int_impl_type = FloatToIntImplType.ROUND
        narrow_range = True
        signed = True

    class BipolarWeight(Bipolar, WeightQuantSolver):
        pass

    class BipolarActivation(Bipolar, ActQuantSolver):
        min_val = -1.0
        max_val = 1.0

    def conv(*args: Any, **kwargs: Any) -> nn.Module:
        return qnn.QuantConv2d(*args, **kwargs, weight_quant=BipolarWeight)

    def linear(*args: Any, **kwargs: Any) -> nn.Module:
        return qnn.QuantLinear(*args, **kwargs, weight_quant=BipolarWeight)

    return Quantizers(conv, linear, lambda: qnn.QuantIdentity(act_quant=BipolarActivation))
