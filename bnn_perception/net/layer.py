"""What every layer has: its record's fields, shapes and operations, and what it takes and gives.

Whoever needs to know something about a layer asks its record: a backend lowers it by a table of its own from
:data:`~bnn_perception.net.signals.LAYER_KINDS` to functions, and nothing else distinguishes between kinds.
``test/unit/test_layer_kinds.py`` names what a new kind still lacks.

A layer is a frozen dataclass. Its scalars stand in ``model.yaml``, its arrays in ``binary.npz`` as
``<layer>.<array>``. What passes between layers is one of

=========  ===============================================================================
pixels     (height, width, channels) uint8, the image that a model is given
bits       (height, width, words) uint32, signs as :mod:`bnn_perception.net.bits` packs them
signal     (height, width, channels) float32, real values between two signs
logits     (classes,) float32, the answer
=========  ===============================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net.checks import MAX_KERNEL, ModelError
from bnn_perception.net.fields import arrays, check_arrays, check_scalars, names, whole

Shape = tuple[int, int, int]
"""(height, width, channels) of an activation."""

Pads = tuple[int, int, int, int]
"""Rows above, columns left, rows below and columns right of an input."""


@dataclass(frozen=True)
class Pool:
    """Max pooling of the integers before the threshold, without padding; windows are square."""

    size: int = field(metadata=whole(1, MAX_KERNEL))
    stride: int = field(metadata=whole(1, MAX_KERNEL))

    def length(self, before: int) -> int:
        """How many windows fit into ``before`` pixels."""
        return (before - self.size) // self.stride + 1


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """What every layer is asked for.

    Attributes:
        kind: its name in ``model.yaml``.
        takes: ``pixels`` (the first layer, and no other), ``bits`` or ``signal``.
        gives: ``bits``, ``signal`` or ``logits`` (the last layer, and no other). The last layer may also give a signal
            of one pixel, whose channels are then the logits.
        operands: what it multiplies: ``bits`` by bits, ``bytes`` by signs or by whole numbers, ``reals`` by reals, or
            ``nothing``.
        precision: bits of activation x weight -> output, as ``inspect`` prints them; 32 is float32.
        fewest, most: inputs that it takes.
        name: of the layer, unique in its model.
        inputs: names of the layers whose outputs it takes; empty means the layer before it (the image, for the first).
    """

    kind: ClassVar[str]
    takes: ClassVar[Literal["pixels", "bits", "signal"]] = "bits"
    gives: ClassVar[Literal["bits", "signal", "logits"]] = "bits"
    operands: ClassVar[Literal["bits", "bytes", "reals", "nothing"]] = "bits"
    precision: ClassVar[str] = "1 x 1 -> 1"
    fewest: ClassVar[int] = 1
    most: ClassVar[int] = 1
    name: str
    inputs: tuple[str, ...] = field(default=(), kw_only=True, metadata=names())

    def __post_init__(self) -> None:
        check_scalars(self.name, self)
        check_arrays(self.name, self)

    @property
    @abstractmethod
    def fan_in(self) -> int:
        """Number of products in one dot product."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Channels of its output: filters, features or classes."""

    @abstractmethod
    def output_shape(self, shape: Shape, *others: Shape) -> Shape:
        """Shape of its output for inputs of these shapes.

        Raises:
            ModelError: where it cannot take such inputs.
        """

    @abstractmethod
    def macs(self, shape: Shape, *others: Shape) -> int:
        """Multiply-accumulates for inputs of these shapes."""

    def operations(self, shape: Shape, *others: Shape) -> int:
        """What it costs to evaluate, in multiply-accumulates or what takes about as long."""
        return self.macs(shape, *others) + math.prod(self.output_shape(shape, *others))

    @property
    def detail(self) -> str:
        """Its geometry in a few characters, for a table."""
        return ""

    @property
    def has_weights(self) -> bool:
        """Whether it multiplies: a float net has a layer for it."""
        return self.operands != "nothing"

    @property
    def border(self) -> Pads:
        """Pixels that it reads around its input."""
        return (0, 0, 0, 0)

    def bound(self, before: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Largest magnitude of each channel of the signal that it gives, and of any partial sum on the way to it.

        Args:
            before: that of each of its inputs, (channels,) float64; of pixels and bits they are 255 and 1.

        Returns:
            (outputs,) float64; ones for a layer that gives bits.
        """
        return np.ones(self.outputs)

    def array_values(self) -> dict[str, NDArray[Any]]:
        """Its arrays by name, in the order in which they are stored."""
        return {name: getattr(self, name) for name in arrays(type(self))}

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the arrays that training chose."""
        return sum(getattr(self, name).nbytes for name, a in arrays(type(self)).items() if a.is_parameter)

    def _expect(self, what: str, stated: object, actual: object) -> None:
        if stated != actual:
            raise ModelError(f"{self.name}: {what} is {stated}, but its input has {actual}")
