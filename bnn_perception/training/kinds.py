"""The kinds of layers that can be trained, in one record a kind; :data:`LAYER_SPECS` is the table of them.

A kind has the name of the layer of a model folder that it becomes, or ``residual_conv2d``, the block of a sign, a
convolution, an activation, a batch norm and a shortcut, which becomes several.

A record is a layer of a configuration's network. It states the layer's fields and what they can be, the size of its
output, its modules in the binary net and in the float twin, and its nodes in the twin's ONNX graph; nothing else in
training distinguishes between kinds. The modules of the binary net are made three times, with other
:class:`~bnn_perception.training.modules.Quantizers` each time: with binary activations alone, with binary weights too,
and in Brevitas for the QONNX export.

A configuration is read without PyTorch, so each method that makes modules imports it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from bnn_perception.training.fields import one_of, within

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bnn_perception.training.float_graph import FloatGraph
    from bnn_perception.training.modules import Quantizers

#: What a block adds of its input, with the side of the square window that it averages; 0 adds nothing. ``real`` takes
#: the average through a 1x1 convolution of real weights and a batch norm, as ResNet-D does (arXiv 1812.01187).
SHORTCUTS = {"none": 0, "identity": 1, "average_pool": 2, "real": 2}

#: The highest number of channels, features or levels, and the largest side of a window.
MAX_SIZE = 65536


class Signal(NamedTuple):
    """What one layer hands to the next: pixels, signs, or real numbers.

    Attributes:
        flat: whether it is a row of features, no picture; its channels are the features then.
        residual: whether it is real numbers: a shortcut may add them, and a layer that takes signs gets theirs.
    """

    height: int
    width: int
    channels: int
    flat: bool = False
    residual: bool = False

    @property
    def features(self) -> int:
        """How many numbers it has."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class LayerSpec(ABC):
    """What every layer of a network is asked for.

    Its modules are given in order, each under the name of its part: in the layer ``conv1`` the part ``norm`` becomes
    the module ``conv1_norm``, and the part without a name ``conv1``. Checkpoints hold these names.

    Attributes:
        kind: of the layer that it becomes in a model folder.
        stem: its name there without the number: ``conv`` of conv1, conv2, ...
        numbered: whether its name has a number.
        takes: ``pixels`` (the first layer, and no other); ``signs``, a picture of them; ``residual``, a picture of real
            numbers or signs; or ``features``, a row of signs.
        gives: ``signs``, a ``residual``, or ``logits`` (the last layer, and no other).
        in_twin: whether the float twin has this layer; where it has not, the next layer takes its input.
    """

    kind: ClassVar[str]
    stem: ClassVar[str]
    numbered: ClassVar[bool] = True
    takes: ClassVar[Literal["pixels", "signs", "residual", "features"]] = "signs"
    gives: ClassVar[Literal["signs", "residual", "logits"]] = "signs"
    in_twin: ClassVar[bool] = True

    @abstractmethod
    def output(self, before: Signal) -> Signal:
        """What it gives where it takes ``before``; a height or width below 1 says that nothing is left."""

    def problem(self, before: Signal, after: Signal) -> str | None:
        """Why it cannot take ``before`` and give ``after``, or None where it can."""
        return None

    @abstractmethod
    def binary(self, before: Signal, classes: int, quantizers: Quantizers) -> dict[str, nn.Module]:
        """Its modules in a net of binary activations, built from ``quantizers``."""

    @abstractmethod
    def twin(self, before: Signal, classes: int) -> dict[str, nn.Module]:
        """Its modules in the float twin."""

    @abstractmethod
    def add_twin_nodes(
        self, graph: FloatGraph, name: str, modules: Mapping[str, nn.Module], before: Signal
    ) -> None:
        """Add its nodes to the float twin's ONNX graph.

        Args:
            name: of the layer.
            modules: all modules of the trained twin, by their names.
        """


@dataclass(frozen=True)
class ThermometerSpec(LayerSpec):
    """Thermometer code of the pixels, ``levels`` bits a channel; one level is the paper's input binarization.

    Channel ``c * levels + l`` is the sign of ``x[c] - threshold[l]``. The thresholds divide the range of a pixel evenly
    and lie half way between two pixel values, so that rounding cannot matter; one level gives 127.5. The float twin
    takes the pixels as they are.
    """

    kind: ClassVar[str] = "thermometer"
    stem: ClassVar[str] = "thermometer"
    numbered: ClassVar[bool] = False
    takes: ClassVar[Any] = "pixels"
    in_twin: ClassVar[bool] = False
    levels: int = field(default=8, metadata=within(1, MAX_SIZE))

    def output(self, before: Signal) -> Signal:
        return before._replace(channels=before.channels * self.levels)

    def binary(self, before: Signal, classes: int, quantizers: Quantizers) -> dict[str, nn.Module]:
        import torch

        from bnn_perception.training.modules import Block

        thresholds = torch.round(torch.arange(1, self.levels + 1) * (256.0 / (self.levels + 1)))
        offset = thresholds.sub(0.5).div(255.0).view(self.levels, 1, 1)
        return {"": Block(_compare_with_levels, offset=offset, sign=quantizers.sign())}

    def twin(self, before: Signal, classes: int) -> dict[str, nn.Module]:
        return {}

    def add_twin_nodes(
        self, graph: FloatGraph, name: str, modules: Mapping[str, nn.Module], before: Signal
    ) -> None:
        pass


def _compare_with_levels(block: Any, x: Tensor) -> Tensor:
    return block.sign(x.unsqueeze(2) - block.offset).flatten(1, 2)


@dataclass(frozen=True)
class ConvSpec(LayerSpec):
    """Binary convolution, max pool where ``pool`` is not 0, batch norm, sign."""

    kind: ClassVar[str] = "binary_conv2d"
    stem: ClassVar[str] = "conv"
    channels: int = field(metadata=within(1, MAX_SIZE))
    kernel: int = field(default=3, metadata=within(1, MAX_SIZE))
    stride: int = field(default=1, metadata=within(1, MAX_SIZE))
    padding: int = field(default=1, metadata=within(0, MAX_SIZE))
    pool: int = field(default=0, metadata=within(0, MAX_SIZE))

    def output(self, before: Signal) -> Signal:
        def length(side: int) -> int:
            after = (side + 2 * self.padding - self.kernel) // self.stride + 1
            return after // self.pool if self.pool else after

        height, width = length(before.height), length(before.width)
        return Signal(height, width, self.channels, residual=self.gives == "residual")

    def binary(self, before: Signal, classes: int, quantizers: Quantizers) -> dict[str, nn.Module]:
        from torch import nn

        modules: dict[str, nn.Module] = {}
        padding = self.padding
        if padding and self.takes != "pixels":
            modules["pad"] = nn.ConstantPad2d(padding, -1.0)
            padding = 0
        modules[""] = quantizers.conv(
            before.channels, self.channels, self.kernel, stride=self.stride, padding=padding, bias=False
        )
        self._add_pool_and_norm(modules)
        if self.gives == "signs":
            modules["sign"] = quantizers.sign()
        return modules

    def twin(self, before: Signal, classes: int) -> dict[str, nn.Module]:
        from torch import nn

        modules: dict[str, nn.Module] = {"": self._twin_conv(before)}
        self._add_pool_and_norm(modules)
        if self.gives == "signs":
            modules["relu"] = nn.ReLU(inplace=True)
        return modules

    def _twin_conv(self, before: Signal) -> nn.Module:
        from torch import nn

        return nn.Conv2d(
            before.channels, self.channels, self.kernel, stride=self.stride, padding=self.padding, bias=False
        )

    def _add_pool_and_norm(self, modules: dict[str, nn.Module]) -> None:
        from torch import nn

        if self.pool:
            modules["pool"] = nn.MaxPool2d(self.pool)
        modules["norm"] = nn.BatchNorm2d(self.channels)

    def add_twin_nodes(
        self, graph: FloatGraph, name: str, modules: Mapping[str, nn.Module], before: Signal
    ) -> None:
        """ReLU is written right behind the convolution, where runtimes fuse it; max pool and ReLU can change places."""
        graph.conv(name, modules[name], modules[f"{name}_norm"])
        if self.gives == "signs":
            graph.add("Relu", f"{name}_relu")
        if self.pool:
            graph.max_pool(f"{name}_pool", self.pool)


@dataclass(frozen=True)
class InputConvSpec(ConvSpec):
    """The same on 8-bit pixels; must come first."""

    kind: ClassVar[str] = "input_conv2d"
    takes: ClassVar[Any] = "pixels"


@dataclass(frozen=True)
class InputResidualConvSpec(InputConvSpec):
    """Convolution of 8-bit pixels, max pool, batch norm, no sign: its real values are a net's first residual."""

    kind: ClassVar[str] = "scaled_input_conv2d"
    gives: ClassVar[Any] = "residual"


@dataclass(frozen=True)
class RealInputConvSpec(InputResidualConvSpec):
    """The same with real weights, as the first layer of most published binary nets; 24 bits of each are kept."""

    kind: ClassVar[str] = "real_input_conv2d"

    def binary(self, before: Signal, classes: int, quantizers: Quantizers) -> dict[str, nn.Module]:
        return self.twin(before, classes)


@dataclass(frozen=True)
class ResidualConvSpec(ConvSpec):
    """RSign, binary convolution, max pool, activation, batch norm; plus a shortcut of the residual before it.

    RSign, the sign with a learnt threshold a channel, is that of ReActNet (arXiv 2003.03488, section 4.2); the
    real-valued shortcut around every convolution is that of Bi-Real Net (arXiv 1808.00278, section 3.1). The float twin
    has ReLU in place of RSign, and no activation.

    Attributes:
        shortcut: what is added: ``identity``; ``average_pool``, 2x2, where the size halves; ``real``, the same through
            a 1x1 convolution and a batch norm; or ``none``. A layer may have a multiple of the residual's channels,
            which are then repeated; behind ``real`` it may have any number.
        activation: what the sums go through: ``relu`` as in QuickNet (arXiv 2011.09398), ``prelu`` with a slope a
            channel, or ``none``.
    """

    kind: ClassVar[str] = "residual_conv2d"
    takes: ClassVar[Any] = "residual"
    gives: ClassVar[Any] = "residual"
    shortcut: str = field(default="identity", metadata=one_of(*SHORTCUTS))
    activation: str = field(default="none", metadata=one_of("none", "relu", "prelu"))

    def problem(self, before: Signal, after: Signal) -> str | None:
        if self.shortcut == "none":
            return None
        if not before.residual:
            sources = " or a ".join(kind for kind, spec in LAYER_SPECS.items() if spec.gives == "residual")
            return f"the layer before it has no residual to add; it must be an {sources}"
        if self.shortcut != "real" and self.channels % before.channels:
            return f"{self.channels} channels are no multiple of the shortcut's {before.channels}"
        side = SHORTCUTS[self.shortcut]
        expected = before.height // side, before.width // side
        if (after.height, after.width) != expected:
            return (
                f"its result is {after.height}x{after.width}, the shortcut {self.shortcut} "
                f"{expected[0]}x{expected[1]}"
            )
        return None

    def binary(self, before: Signal, classes: int, quantizers: Quantizers) -> dict[str, nn.Module]:
        from torch import nn

        from bnn_perception.training.modules import ChannelShift

        front = nn.Sequential()
        front.add_module("shift", ChannelShift(before.channels))
        front.add_module("sign", quantizers.sign())
        if self.padding:
            front.add_module("pad", nn.ConstantPad2d(self.padding, -1.0))
        conv = quantizers.conv(before.channels, self.channels, self.kernel, stride=self.stride, bias=False)
        activation = {"none": None, "relu": nn.ReLU(), "prelu": nn.PReLU(self.channels)}[self.activation]
        return {"": self._block(before, front, conv, activation)}

    def twin(self, before: Signal, classes: int) -> dict[str, nn.Module]:
        from torch import nn

        return {"": self._block(before, nn.Sequential(nn.ReLU()), self._twin_conv(before), None)}

    def _block(
        self, before: Signal, front: nn.Module, conv: nn.Module, activation: nn.Module | None
    ) -> nn.Module:
        from torch import nn

        from bnn_perception.training.modules import Block

        through = None
        if self.shortcut == "real":
            through = nn.Sequential(
                nn.Conv2d(before.channels, self.channels, 1, bias=False), nn.BatchNorm2d(self.channels)
            )
        return Block(
            partial(_add_shortcut, shortcut=self.shortcut, channels=self.channels),
            front=front,
            conv=conv,
            pool=nn.MaxPool2d(self.pool) if self.pool else None,
            activation=activation,
            norm=nn.BatchNorm2d(self.channels),
            average=nn.AvgPool2d(2) if SHORTCUTS[self.shortcut] == 2 else None,
            through=through,
        )

    def add_twin_nodes(
        self, graph: FloatGraph, name: str, modules: Mapping[str, nn.Module], before: Signal
    ) -> None:
        block: Any = modules[name]
        residual = graph.tensor
        graph.add("Relu", f"{name}_relu_before")
        graph.conv(name, block.conv, block.norm)
        if self.pool:
            graph.max_pool(f"{name}_pool", self.pool)
        if self.shortcut == "none":
            return
        result, graph.tensor = graph.tensor, residual
        if SHORTCUTS[self.shortcut] == 2:
            graph.add("AveragePool", f"{name}_average", kernel_shape=[2, 2], strides=[2, 2])
        if block.through is not None:
            graph.conv(f"{name}_through", block.through[0], block.through[1])
        repeats = self.channels // before.channels
        if repeats > 1 and block.through is None:
            graph.join("Concat", f"{name}_repeat", *[graph.tensor] * repeats, axis=1)
        graph.join("Add", f"{name}_add", result, graph.tensor)


def _add_shortcut(block: Any, x: Tensor, shortcut: str, channels: int) -> Tensor:
    import torch

    y = block.conv(block.front(x))
    for module in (block.pool, block.activation, block.norm):
        if module is not None:
            y = module(y)
    if shortcut == "none":
        return y
    if block.average is not None:
        x = block.average(x)
    if block.through is not None:
        return y + block.through(x)
    repeats = channels // x.shape[1]
    return y + (torch.cat([x] * repeats, dim=1) if repeats > 1 else x)


@dataclass(frozen=True)
class DenseSpec(LayerSpec):
    """Binary fully connected layer, batch norm, sign."""

    kind: ClassVar[str] = "binary_dense"
    stem: ClassVar[str] = "dense"
    takes: ClassVar[Any] = "features"
    features: int = field(metadata=within(1, MAX_SIZE))

    def output(self, before: Signal) -> Signal:
        return Signal(1, 1, self.features, flat=True)

    def binary(self, before: Signal, classes: int, quantizers: Quantizers) -> dict[str, nn.Module]:
        from torch import nn

        return {
            "": quantizers.linear(before.features, self.features, bias=False),
            "norm": nn.BatchNorm1d(self.features),
            "sign": quantizers.sign(),
        }

    def twin(self, before: Signal, classes: int) -> dict[str, nn.Module]:
        from torch import nn

        return {
            "": nn.Linear(before.features, self.features, bias=False),
            "norm": nn.BatchNorm1d(self.features),
            "relu": nn.ReLU(inplace=True),
        }

    def add_twin_nodes(
        self, graph: FloatGraph, name: str, modules: Mapping[str, nn.Module], before: Signal
    ) -> None:
        graph.linear(name, modules[name], modules[f"{name}_norm"])
        graph.add("Relu", f"{name}_relu")


@dataclass(frozen=True)
class OutputSpec(LayerSpec):
    """Binary fully connected layer, batch norm: the logits. Must come last.

    The logits are a batch norm of integers, which exports as one scale and one bias a class; the float twin has a bias.
    """

    kind: ClassVar[str] = "output_dense"
    stem: ClassVar[str] = "output"
    numbered: ClassVar[bool] = False
    takes: ClassVar[Any] = "features"
    gives: ClassVar[Any] = "logits"

    def output(self, before: Signal) -> Signal:
        """An empty signal: no layer follows, and a configuration does not know the number of classes."""
        return Signal(1, 1, 0, flat=True)

    def binary(self, before: Signal, classes: int, quantizers: Quantizers) -> dict[str, nn.Module]:
        from torch import nn

        return {
            "": quantizers.linear(before.features, classes, bias=False),
            "norm": nn.BatchNorm1d(classes),
        }

    def twin(self, before: Signal, classes: int) -> dict[str, nn.Module]:
        from torch import nn

        return {"": nn.Linear(before.features, classes)}

    def add_twin_nodes(
        self, graph: FloatGraph, name: str, modules: Mapping[str, nn.Module], before: Signal
    ) -> None:
        graph.linear(name, modules[name])


#: The layers that can be trained, by their kinds.
LAYER_SPECS: dict[str, type[LayerSpec]] = {
    spec.kind: spec
    for spec in (
        ThermometerSpec,
        InputConvSpec,
        ConvSpec,
        InputResidualConvSpec,
        RealInputConvSpec,
        ResidualConvSpec,
        DenseSpec,
        OutputSpec,
    )
}
