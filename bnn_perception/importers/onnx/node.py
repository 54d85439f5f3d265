"""A node of an ONNX graph: its attributes with their defaults, its constants, the geometry of its window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import RefusalError
from bnn_perception.net.layer import Pads, Pool

if TYPE_CHECKING:
    import onnx

#: Element types (``onnx.TensorProto``): none stated; float32, float16, float64 and bfloat16.
UNDEFINED, FLOATS = 0, (1, 10, 11, 16)

#: What a reader knows of a tensor that depends on the image.
Value = TypeVar("Value")


class Window(NamedTuple):
    """The window of a convolution or pool, without dilation.

    Attributes:
        kernel, stride: (y, x).
        pads: (top, left, bottom, right).
        ceil_mode: whether windows may reach over the edge.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    ceil_mode: bool

    def __str__(self) -> str:
        return (
            f"window {list(self.kernel)}, strides {list(self.stride)}, pads {list(self.pads)}, "
            f"ceil_mode {int(self.ceil_mode)}"
        )

    def whole(self, size: tuple[int, int]) -> Pads:
        """The pads of this window as a pool on a map of ``size``, those among them that ceil_mode adds.

        Raises:
            RefusalError: where not one window fits, or one lies outside altogether.
        """
        pads = list(self.pads)
        for axis in (0, 1):
            kernel, stride = self.kernel[axis], self.stride[axis]
            extent = size[axis] + pads[axis] + pads[axis + 2]
            if extent < kernel:
                raise RefusalError(f"its window is larger than its input {list(size)}")
            rest = (extent - kernel) % stride
            # A window that would begin behind the input and its first padding is none.
            if self.ceil_mode and rest and extent - rest - kernel + stride < size[axis] + pads[axis]:
                pads[axis + 2] += stride - rest
        top, left, bottom, right = pads
        if any(pad >= kernel for pad, kernel in zip(pads, (*self.kernel, *self.kernel))):
            raise RefusalError(f"{self}; pads as large as the window cannot be expressed")
        return top, left, bottom, right

    def max_pool(self, size: tuple[int, int]) -> Pool:
        """This window as the pool of a float twin's stage, on a map of ``size``.

        Raises:
            RefusalError: where such a stage has no such pool.
        """
        if any(self.pads) or len(set(self.kernel)) != 1 or len(set(self.stride)) != 1:
            raise RefusalError(f"{self}; only square windows without padding can be expressed")
        pool = Pool(self.kernel[0], self.stride[0])
        self._check_edges(size)
        return pool

    def check_halving(self, size: tuple[int, int] | None) -> None:
        """Check that this window averages 2x2 with stride 2, as the shortcuts of the model format do.

        Args:
            size: of the map; None where it is not known.

        Raises:
            RefusalError: where it averages anything else.
        """
        if (
            (*self.kernel, *self.stride) != (2, 2, 2, 2)
            or any(self.pads)
            or (size is None and self.ceil_mode)
        ):
            raise RefusalError(
                f"{self}; only windows of 2x2 with stride 2, without padding, can be expressed"
            )
        if size is not None:
            self._check_edges(size)

    def _check_edges(self, size: tuple[int, int]) -> None:
        if any(extent < kernel for extent, kernel in zip(size, self.kernel)):
            raise RefusalError(f"its window is larger than its input {list(size)}")
        rest = [(extent - kernel) % stride for extent, kernel, stride in zip(size, self.kernel, self.stride)]
        if self.ceil_mode and any(rest):
            raise RefusalError("its windows reach over the edge (ceil_mode)")


class Normalization(NamedTuple):
    """The constants of a batch norm, (channels,) each, as the graph has them."""

    gamma: NDArray[Any]
    beta: NDArray[Any]
    mean: NDArray[Any]
    variance: NDArray[Any]
    epsilon: float


@dataclass(frozen=True, eq=False)
class Node(Generic[Value]):
    """A node and what is known of its inputs.

    Attributes:
        proto: as the file has it.
        constants: for each input; None where it is none.
        values: for each input, what the reader knows of it; None where it is a constant or missing.
        opset: version of the standard's operators.
        batch: how many images the graph takes at once.
        is_shared: whether another node takes the numbers of an input that is no constant.
    """

    proto: onnx.NodeProto
    constants: Sequence[NDArray[Any] | None]
    values: Sequence[Value | None]
    opset: int
    batch: int
    is_shared: bool

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def where(self) -> str:
        """The node and its operator, as messages name them."""
        return where(self.proto)

    @property
    def inputs(self) -> Sequence[str]:
        return self.proto.input

    @property
    def outputs(self) -> Sequence[str]:
        return self.proto.output

    @property
    def taken(self) -> list[Value]:
        """The values among the inputs."""
        return [value for value in self.values if value is not None]

    @property
    def signal(self) -> Value:
        """The first of them."""
        return self.taken[0]

    @property
    def place(self) -> int:
        """Which input it is."""
        return next(index for index, value in enumerate(self.values) if value is not None)

    @property
    def source(self) -> str:
        """The name of its tensor."""
        return self.inputs[self.place]

    def attribute(self, name: str, default: Any) -> Any:
        return attribute(self.proto, name, default)

    def constant(self, index: int) -> NDArray[Any]:
        """The constant that an input must be.

        Raises:
            RefusalError: where it is none.
        """
        value = self.constants[index] if index < len(self.constants) else None
        if value is None:
            raise RefusalError(f"input {index + 1} is missing or not a constant")
        return value

    def option(self, index: int, default: NDArray[Any]) -> NDArray[Any]:
        """The constant that an input must be where it is given."""
        return self.constant(index) if index < len(self.inputs) and self.inputs[index] else default

    # -- what several operators, or both readers, take in the same way

    def window(self, size: tuple[int, int] | None, kernel: Sequence[int] = ()) -> Window:
        """The window of a convolution or pool.

        Args:
            size: (height, width) of the map, for auto_pad; None where pads must be stated.
            kernel: of the weights; empty for a pool, which states its own.

        Raises:
            RefusalError: where it is not two-dimensional or has dilations.
        """
        stated, stride = self.attribute("kernel_shape", kernel), self.attribute("strides", [1, 1])
        pads, dilations = self.attribute("pads", [0, 0, 0, 0]), self.attribute("dilations", [1, 1])
        if kernel and list(stated) != list(kernel):
            raise RefusalError(f"its kernel_shape is another one than its weights', {list(kernel)}")
        if (len(stated), len(stride), len(pads)) != (2, 2, 4) or min(*stated, *stride) < 1 or min(pads) < 0:
            raise RefusalError(
                f"window {list(stated)}, strides {list(stride)}, pads {list(pads)}; only two-dimensional windows "
                "without negative pads can be expressed"
            )
        if any(dilation != 1 for dilation in dilations):
            raise RefusalError(f"dilations {list(dilations)}; only 1 can be expressed")
        auto_pad = self.attribute("auto_pad", b"NOTSET")
        if auto_pad == b"VALID":
            pads = [0, 0, 0, 0]
        elif auto_pad != b"NOTSET":
            if size is None:
                raise RefusalError(f"auto_pad {auto_pad.decode()}; state pads instead")
            less, more = same_pads(size, stated, stride)
            pads = less + more if auto_pad == b"SAME_UPPER" else more + less
        top, left, bottom, right = (int(pad) for pad in pads)
        return Window(
            (int(stated[0]), int(stated[1])),
            (int(stride[0]), int(stride[1])),
            (top, left, bottom, right),
            bool(self.attribute("ceil_mode", 0)),
        )

    def convolution(self, size: tuple[int, int] | None) -> tuple[NDArray[Any], Window, int]:
        """The weights (out, in / groups, y, x), the window and the groups of a Conv; ``size``: see :meth:`window`."""
        weights, groups = self.constant(1), int(self.attribute("group", 1))
        if weights.ndim != 4 or groups < 1:
            raise RefusalError(
                f"group {groups}, weights {list(weights.shape)}; only two-dimensional convolutions can be expressed"
            )
        return weights, self.window(size, weights.shape[2:]), groups

    def gemm(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The matrix (out, in) and the bias of a Gemm."""
        if self.attribute("transA", 0):
            raise RefusalError("transposes its input")
        matrix = self.constant(1) if self.attribute("transB", 0) else self.constant(1).T
        bias = self.option(2, np.zeros(1))
        # What becomes infinite, or no number, is refused where it is folded.
        with np.errstate(invalid="ignore", over="ignore"):
            return matrix * self.attribute("alpha", 1.0), bias * self.attribute("beta", 1.0)

    def normalization(self, channels: int) -> Normalization:
        """The constants of a BatchNormalization on so many channels."""
        if self.attribute("training_mode", 0):
            raise RefusalError("is in training mode; export the net in evaluation mode")
        if len(self.outputs) > 1 and self.opset < 14:
            raise RefusalError("gives the statistics of a batch; export the net in evaluation mode")
        found = [self.constant(index).reshape(-1) for index in (1, 2, 3, 4)]
        if any(len(values) != channels for values in found):
            raise RefusalError(f"has {len(found[0])} channels, its input {channels}")
        gamma, beta, mean, variance = found
        norm = Normalization(gamma, beta, mean, variance, self.attribute("epsilon", 1e-5))
        if np.any(norm.variance.astype(np.float64) + norm.epsilon <= 0):
            raise RefusalError("a variance is not positive")
        return norm

    def limits(self) -> tuple[float, float]:
        """The lowest and highest value that a Clip leaves; infinite where it has no such limit."""
        found = []
        for index, name, unlimited in ((1, "min", -math.inf), (2, "max", math.inf)):
            default = np.asarray(unlimited)
            # Attributes up to opset 10, since then inputs.
            value = self.option(index, default) if self.opset >= 11 else self.attribute(name, default)
            found.append(float(np.asarray(value).reshape(())))
        low, high = found
        return low, high


def same_pads(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The smaller and the larger half (y, x) of the padding SAME: as many windows as steps begin in the input."""
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride)]
    return [total // 2 for total in totals], [-(-total // 2) for total in totals]


def attribute(proto: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute, ``default`` where the node does not state it."""
    from onnx import helper

    for stated in proto.attribute:
        if stated.name == name:
            return helper.get_attribute_value(stated)
    return default


def where(proto: onnx.NodeProto) -> str:
    """A node and its operator, as messages name them."""
    return f"node '{proto.name or proto.output[0]}' ({proto.op_type})"
