"""Numbers of a signal that a graph has moved: which channels, and which pixels of them, a layer would have to pick."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.signal import Signal
from bnn_perception.net.checks import MAX_KERNEL

#: Weights of a layer that picks numbers.
MAX_WEIGHTS = 1 << 24


def places(signal: Signal) -> NDArray[np.int32]:
    """Where the numbers of a tensor lie among those of its layer or image, as :attr:`.Signal.order`.

    Raises:
        RefusalError: of a thermometer whose levels are no channels yet.
    """
    if signal.order is not None:
        return signal.order
    if "L" in signal.axes:
        raise RefusalError("moves a thermometer whose levels are no channels yet")
    sizes = [signal.sizes[axis] for axis in "CHW"]
    whole = np.arange(math.prod(sizes), dtype=np.int32).reshape(sizes)
    named = signal.axes + "".join(axis for axis in "CHW" if axis not in signal.axes)  # of one pixel
    return whole.transpose(["CHW".index(axis) for axis in named]).reshape(signal.shape)


@dataclass(frozen=True, eq=False)
class Picked:
    """The numbers (c, y, x) of a map that are those of channel ``channels[c]`` at ``first[c] + stride * (y, x)``.

    Attributes:
        channels: (out,)
        first: (out, 2) y and x.
        stride, kernel: (y, x); a window as large as this holds all that a convolution has to pick from.
        sizes: of the map.
        axes, flat: how the map stands in its tensor, as those of :class:`.Signal`.
    """

    channels: NDArray[np.int32]
    first: NDArray[np.int32]
    stride: tuple[int, int]
    kernel: tuple[int, int]
    sizes: dict[str, int]
    axes: str
    flat: bool

    @classmethod
    def of_signal(cls, signal: Signal) -> Picked | None:
        """What a signal whose numbers were moved is of the map that they come from; None where it is no such thing."""
        assert signal.order is not None
        return cls.of(signal.order, (signal.sizes["C"], signal.sizes["H"], signal.sizes["W"]))

    @classmethod
    def of_channels(cls, signal: Signal, first: int, last: int) -> Picked:
        """Channels ``first`` to ``last`` of a map, whole."""
        channels = np.arange(first, last, dtype=np.int32)
        origin = np.zeros((last - first, 2), np.int32)
        sizes = {**signal.sizes, "C": last - first}
        return cls(channels, origin, (1, 1), (1, 1), sizes, signal.axes, signal.flat)

    @classmethod
    def of(cls, order: NDArray[np.int32], sizes: tuple[int, int, int]) -> Picked | None:
        """What ``order`` picks of a map of these sizes (C, H, W); None where it is no such thing."""
        if order.ndim == 2 and len(order) == 1:
            return cls._of_map(order.reshape(-1, 1, 1), sizes, "CHW", flat=True)
        if order.ndim != 4 or len(order) != 1:
            return None
        return cls._of_map(order[0], sizes, "CHW") or cls._of_map(order[0].transpose(2, 0, 1), sizes, "HWC")

    @classmethod
    def _of_map(
        cls, order: NDArray[np.int32], sizes: tuple[int, int, int], axes: str, flat: bool = False
    ) -> Picked | None:
        channel, y, x = np.unravel_index(order, sizes)
        height, width = order.shape[1:]
        stride = (
            int(y[0, 1, 0] - y[0, 0, 0]) if height > 1 else 1,
            int(x[0, 0, 1] - x[0, 0, 0]) if width > 1 else 1,
        )
        expected = (
            channel[:, :1, :1],
            y[:, :1, :1] + stride[0] * np.arange(height)[:, None],
            x[:, :1, :1] + stride[1] * np.arange(width),
        )
        if min(stride) < 1 or not all(map(np.all, map(np.equal, (channel, y, x), expected))):
            return None
        kernel = sizes[1] - (height - 1) * stride[0], sizes[2] - (width - 1) * stride[1]
        return cls(
            channel[:, 0, 0].astype(np.int32),
            np.stack([y[:, 0, 0], x[:, 0, 0]], axis=1).astype(np.int32),
            stride,
            kernel,
            {"C": len(order), "H": height, "W": width},
            axes,
            flat,
        )

    def weights(self, channels: int) -> tuple[NDArray[np.float64], int]:
        """The weights (out, y, x, in / groups), each 0 or 1, and the groups of a convolution that picks them.

        Args:
            channels: of its input.

        Raises:
            RefusalError: where it would be too large.
        """
        outputs = len(self.channels)
        each = outputs // channels
        is_depthwise = outputs == each * channels and np.array_equal(
            self.channels, np.arange(outputs) // max(each, 1)
        )
        taken = 1 if is_depthwise else channels
        if (
            max(*self.kernel, *self.stride) > MAX_KERNEL
            or outputs * math.prod(self.kernel) * taken > MAX_WEIGHTS
        ):
            raise RefusalError(
                f"picks {outputs} channels by windows of {list(self.kernel)}, which are too large"
            )
        weights = np.zeros((outputs, *self.kernel, taken))
        at = 0 if is_depthwise else self.channels
        weights[np.arange(outputs), self.first[:, 0], self.first[:, 1], at] = 1
        return weights, channels if is_depthwise else 1
