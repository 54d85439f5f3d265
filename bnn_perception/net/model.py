"""A model is a folder, and this module is its contract: what training and importers write, backends read.

::

    model.yaml   name, labels, input, layers, where it came from, accuracy, sha256 of the files beside it
    binary.npz   packed words and integer thresholds
    float.onnx   the float twin, optional: float32 (N, channels, H, W) in [0, 1] -> logits (N, classes)

A layer is a frozen dataclass. Its scalar fields stand in ``model.yaml``, its arrays in ``binary.npz`` as
``<layer>.<array>``. Activations between layers are (height, width, words) ``uint32`` as :mod:`bnn_perception.net.bits`
defines them; a *stream* layer (:class:`WithResidual`) also hands on an integer of each channel, for the shortcut of
the layer that follows. A model folder is untrusted input: :func:`load_model` checks all of it and names the field
that is wrong.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import reprlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from numpy.typing import NDArray

from bnn_perception.errors import Error, one_line
from bnn_perception.files import replacing
from bnn_perception.net import bits

FORMAT = 1
DESCRIPTION, BINARY, FLOAT_TWIN = "model.yaml", "binary.npz", "float.onnx"

# Limits for untrusted folders: far above any net for a robot, far below what exhausts its memory.
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 28
MAX_ONNX_BYTES = 1 << 30
MAX_SIDE = 4096
MAX_CHANNELS = 1 << 16
MAX_ACTIVATION_BITS = 1 << 28
MAX_LAYERS = 256
MAX_LABEL = 200
#: Of a stream's integers: they fit int32, and none reaches :data:`bnn_perception.net.bits.NEVER`.
MAX_RESIDUAL = np.iinfo(np.int32).max - 1
#: Logits over a temperature, and over its inverse, stay well inside float32.
MAX_TEMPERATURE = 1e6
#: Fields of a model that hold a temperature, each 1 where ``model.yaml`` does not state it.
TEMPERATURES = ("temperature", "float_temperature")

LAYER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

#: What a residual convolution adds of the stream before it; see :class:`ResidualConv2d`.
SHORTCUTS = ("none", "identity", "average_pool")

Shape = tuple[int, int, int]
"""(height, width, channels) of an activation."""


class ModelError(Error, ValueError):
    """A model folder or layer that cannot be used; the message names the file, the field and the reason."""


@dataclass(frozen=True)
class InputSpec:
    """What the first layer takes, and how a frame is brought to it (see :mod:`bnn_perception.frames.preprocess`).

    Attributes:
        height, width: of the model's input, pixels.
        channels: 3 (RGB) or 1 (grey).
        fit: ``stretch`` scales the region of interest as it is, ``crop`` takes its largest centred part that
            has the model's aspect ratio.
    """

    height: int
    width: int
    channels: int = 3
    fit: str = "crop"

    def __post_init__(self) -> None:
        _integer("input.height", self.height, 1, MAX_SIDE)
        _integer("input.width", self.width, 1, MAX_SIDE)
        if self.channels not in (1, 3):
            raise ModelError(f"input.channels is {_show(self.channels)}; it can be 3 (RGB) or 1 (grey)")
        if self.fit not in ("crop", "stretch"):
            raise ModelError(f"input.fit is {_show(self.fit)}; it can be crop or stretch")

    @property
    def shape(self) -> Shape:
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class Pool:
    """Max pooling of the integers before the threshold, without padding; windows are square."""

    size: int
    stride: int

    def length(self, before: int) -> int:
        """How many windows fit into ``before`` pixels."""
        return (before - self.size) // self.stride + 1


@dataclass(frozen=True, eq=False)
class Thermometer:
    """Encodes 8-bit pixels as bits, ``levels`` a channel: bit ``c * levels + l`` is ``p[c] >= thresholds[c, l]``.

    With one level a channel this is the input binarization of arXiv 1808.00209; with 32 levels a channel it is the
    thermometer code of FracBNN (arXiv 2012.12206).

    Attributes:
        thresholds: (channels, levels) uint8.
    """

    kind: ClassVar[str] = "thermometer"
    name: str
    channels: int
    levels: int
    thresholds: NDArray[np.uint8]

    def __post_init__(self) -> None:
        _integer(f"{self.name}.channels", self.channels, 1, MAX_CHANNELS)
        _integer(f"{self.name}.levels", self.levels, 1, 255)
        _check_arrays(self)

    def array_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return {"thresholds": ((self.channels, self.levels), np.uint8)}

    def output_shape(self, shape: Shape) -> Shape:
        _expect(self, "channels", self.channels, shape[2])
        return shape[0], shape[1], self.channels * self.levels

    def macs(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True, eq=False)
class Conv2d:
    """What the two convolutions share: ``bit = (maxpool(conv(x)) >= threshold) ^ flip``.

    Attributes:
        kernel, stride, padding: (y, x) each; padding is symmetric.
        pool: max pooling of the integers, or None.
        weights: (out_channels, kernel y, kernel x, words_for(in_channels)) uint32.
        threshold: (out_channels,) int32.
        flip: (out_channels,) bool.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    pool: Pool | None
    weights: NDArray[np.uint32]
    threshold: NDArray[np.int32]
    flip: NDArray[np.bool_]

    def __post_init__(self) -> None:
        _integer(f"{self.name}.in_channels", self.in_channels, 1, MAX_CHANNELS)
        _integer(f"{self.name}.out_channels", self.out_channels, 1, MAX_CHANNELS)
        for axis in (0, 1):
            _integer(f"{self.name}.kernel", self.kernel[axis], 1, 64)
            _integer(f"{self.name}.stride", self.stride[axis], 1, 64)
            _integer(f"{self.name}.padding", self.padding[axis], 0, self.kernel[axis] - 1)
        if self.pool is not None:
            _integer(f"{self.name}.pool.size", self.pool.size, 1, 64)
            _integer(f"{self.name}.pool.stride", self.pool.stride, 1, 64)
        _check_arrays(self)
        _check_spare(self.name, self.weights, self.in_channels)

    def array_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return {
            "weights": ((self.out_channels, *self.kernel, bits.words_for(self.in_channels)), np.uint32),
            "threshold": ((self.out_channels,), np.int32),
            "flip": ((self.out_channels,), np.bool_),
        }

    @property
    def fan_in(self) -> int:
        """Number of products in one dot product."""
        return self.kernel[0] * self.kernel[1] * self.in_channels

    def conv_shape(self, shape: Shape) -> Shape:
        """Shape of the integers before the pool."""
        _expect(self, "in_channels", self.in_channels, shape[2])
        height, width = (
            (shape[axis] + 2 * self.padding[axis] - self.kernel[axis]) // self.stride[axis] + 1
            for axis in (0, 1)
        )
        if height < 1 or width < 1:
            raise ModelError(
                f"{self.name}: kernel {list(self.kernel)} is larger than its padded input {list(shape[:2])}"
            )
        return height, width, self.out_channels

    def output_shape(self, shape: Shape) -> Shape:
        height, width, channels = self.conv_shape(shape)
        if self.pool is not None:
            height, width = self.pool.length(height), self.pool.length(width)
            if height < 1 or width < 1:
                raise ModelError(f"{self.name}: pool.size {self.pool.size} is larger than its input")
        return height, width, channels

    def macs(self, shape: Shape) -> int:
        return math.prod(self.conv_shape(shape)) * self.fan_in


@dataclass(frozen=True, eq=False)
class InputConv2d(Conv2d):
    """Convolution of 8-bit pixels with +-1 weights; integer adds only.

    A pixel p counts as the integer ``levels[p]``; a padding pixel counts as 0.

    Attributes:
        levels: (256,) int16, all of them in 0..255 or all in -128..127; the identity for nets trained here.
    """

    kind: ClassVar[str] = "input_conv2d"
    levels: NDArray[np.int16] = field(default_factory=lambda: np.arange(256, dtype=np.int16))

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = int(self.levels.min()), int(self.levels.max())
        if not (0 <= low and high <= 255) and not (-128 <= low and high <= 127):
            raise ModelError(f"{self.name}.levels lie in {low}..{high}; they must fit uint8 or int8")

    def array_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return {**super().array_specs(), "levels": ((256,), np.int16)}


@dataclass(frozen=True, eq=False)
class BinaryConv2d(Conv2d):
    """Convolution of bits with bits.

    Attributes:
        padding_value: what lies outside the input: -1 (how nets are trained here) or 0 (nets from elsewhere).
    """

    kind: ClassVar[str] = "binary_conv2d"
    padding_value: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padding_value not in (-1, 0):
            raise ModelError(f"{self.name}.padding_value is {_show(self.padding_value)}; it can be -1 or 0")

    def border_correction(self, shape: Shape) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
        """What to add to a dot product that was padded with -1 so that it is padded with ``padding_value``.

        A tap outside the input gave -w and should give 0, so w is added, the sum over the outside taps. Which taps
        lie outside depends on the row and on the column alone, and few rows and columns differ.

        Args:
            shape: of the layer's input.

        Returns:
            row: (conv height,) index into the table; column: (conv width,) likewise; table: (rows, columns,
            out_channels) int32. Where padding_value is -1 the table is one zero entry.
        """
        height, width, _ = self.conv_shape(shape)
        if self.padding_value == -1 or self.padding == (0, 0):
            return (
                np.zeros(height, dtype=np.intp),
                np.zeros(width, dtype=np.intp),
                np.zeros((1, 1, self.out_channels), dtype=np.int32),
            )
        inside = []
        for axis, length in ((0, height), (1, width)):
            tap = (
                np.arange(length)[:, None] * self.stride[axis]
                - self.padding[axis]
                + np.arange(self.kernel[axis])
            )
            inside.append((tap >= 0) & (tap < shape[axis]))
        patterns_y, row = np.unique(inside[0], axis=0, return_inverse=True)
        patterns_x, column = np.unique(inside[1], axis=0, return_inverse=True)
        tap_sum = bits.signs(self.weights, self.in_channels).sum(axis=-1)  # (out, kernel y, kernel x)
        window = np.einsum(
            "oyx,ry,cx->rco", tap_sum, patterns_y.astype(np.int32), patterns_x.astype(np.int32)
        )
        table = tap_sum.sum(axis=(1, 2)) - window
        return row.reshape(-1), column.reshape(-1), table.astype(np.int32)


@dataclass(frozen=True, eq=False, kw_only=True)
class WithResidual(Conv2d):
    """A convolution whose output is an integer of each channel, the stream, and the bits of it::

        dot    = maxpool(conv(x))
        y      = m * dot + offset (+ shortcut),  m = multiplier where dot >= 0, otherwise negative_multiplier
        bit    = (y >= threshold) ^ flip

    A multiplier and an offset are batch norm in fixed point; where the point lies is for the threshold and the other
    layers to agree on, the format knows integers alone. ``negative_multiplier == multiplier`` is the plain batch norm,
    0 is ReLU before it (QuickNet), any other value PReLU with a slope of its own for each channel. A threshold of
    each channel is RSign of ReActNet (arXiv 2003.03488).

    Attributes:
        multiplier, negative_multiplier, offset: (out_channels,) int32.
        threshold: in units of the stream.
    """

    multiplier: NDArray[np.int32]
    negative_multiplier: NDArray[np.int32]
    offset: NDArray[np.int32]

    def array_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        row = (self.out_channels,)
        return {
            **super().array_specs(),
            "multiplier": (row, np.int32),
            "negative_multiplier": (row, np.int32),
            "offset": (row, np.int32),
        }

    @property
    def max_dot(self) -> int:
        """The largest magnitude of a dot product: of bits unless a subclass says otherwise."""
        return self.fan_in

    def max_magnitudes(self, before: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """The largest magnitude that each channel of the stream, and any sum of some of its terms, can have.

        Args:
            before: those of the stream that the layer gets, (in_channels,) float64; None where it gets none.

        Returns:
            (out_channels,) float64, exact as far as int32 reaches.

        Raises:
            ModelError: where a shortcut gets no stream, or its sums can leave int32.
        """
        multiplier, negative = (
            np.abs(values.astype(np.float64)) for values in (self.multiplier, self.negative_multiplier)
        )
        return self.max_dot * np.maximum(multiplier, negative) + np.abs(self.offset.astype(np.float64))


@dataclass(frozen=True, eq=False)
class InputResidualConv2d(InputConv2d, WithResidual):
    """An :class:`InputConv2d` that begins a stream."""

    kind: ClassVar[str] = "input_stream_conv2d"

    @property
    def max_dot(self) -> int:
        return self.fan_in * int(np.abs(self.levels).max())


@dataclass(frozen=True, eq=False)
class ResidualConv2d(BinaryConv2d, WithResidual):
    """A :class:`BinaryConv2d` with a stream, to which it adds a shortcut from the stream of the layer before it.

    Attributes:
        shortcut: ``none`` adds nothing; ``identity`` the stream as it is; ``average_pool`` the means of its windows of
            2x2, as ``sum >> 2`` (rounded down, of a negative sum too), an odd last row or column left out. Where
            the layer has n times as many channels as the stream, channel c gets channel ``c % in_channels``.
    """

    kind: ClassVar[str] = "residual_conv2d"
    shortcut: str = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortcut not in SHORTCUTS:
            raise ModelError(
                f"{self.name}.shortcut is {_show(self.shortcut)}; it can be {', '.join(SHORTCUTS)}"
            )
        if self.shortcut != "none" and self.out_channels % self.in_channels:
            raise ModelError(
                f"{self.name}: out_channels {self.out_channels} is not a multiple of in_channels {self.in_channels}, "
                "as a shortcut needs"
            )

    def output_shape(self, shape: Shape) -> Shape:
        result = super().output_shape(shape)
        factor = 2 if self.shortcut == "average_pool" else 1
        added = (shape[0] // factor, shape[1] // factor)
        if self.shortcut != "none" and added != result[:2]:
            raise ModelError(
                f"{self.name}: shortcut {self.shortcut} is {list(added)}, but the convolution gives {list(result[:2])}"
            )
        return result

    def max_magnitudes(self, before: NDArray[np.float64] | None) -> NDArray[np.float64]:
        result = super().max_magnitudes(before)
        if self.shortcut == "none":
            return result
        if before is None:
            raise ModelError(
                f"{self.name}: shortcut {self.shortcut} needs a stream, "
                "but the layer before is no input_stream_conv2d and no residual_conv2d"
            )
        if self.shortcut == "average_pool":
            _check_stream(
                self.name, 4 * before, "of the stream that its shortcut averages, summed over 2x2 pixels,"
            )
        return result + np.tile(before, self.out_channels // self.in_channels)


@dataclass(frozen=True, eq=False)
class _DenseBase:
    name: str
    in_shape: Shape
    out_features: int
    weights: NDArray[np.uint32]

    def __post_init__(self) -> None:
        for value in self.in_shape:
            _integer(f"{self.name}.in_shape", value, 1, MAX_CHANNELS)
        _integer(f"{self.name}.out_features", self.out_features, 1, MAX_CHANNELS)
        _check_arrays(self)
        _check_spare(
            self.name, self.weights.reshape(self.out_features, -1, self.pixel_words), self.in_shape[2]
        )

    @property
    def pixel_words(self) -> int:
        """Words that one input pixel takes."""
        return bits.words_for(self.in_shape[2])

    @property
    def fan_in(self) -> int:
        """Number of products in one dot product."""
        return math.prod(self.in_shape)

    def array_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        words = self.in_shape[0] * self.in_shape[1] * self.pixel_words
        return {"weights": ((self.out_features, words), np.uint32)}

    def output_shape(self, shape: Shape) -> Shape:
        _expect(self, "in_shape", list(self.in_shape), list(shape))
        return 1, 1, self.out_features

    def macs(self, shape: Shape) -> int:
        return self.fan_in * self.out_features


@dataclass(frozen=True, eq=False)
class BinaryDense(_DenseBase):
    """Fully connected layer from bits to bits: ``bit = (weights . x >= threshold) ^ flip``.

    The input is flattened as it lies in memory, (height, width, words), each pixel's spare bits included.

    Attributes:
        in_shape: (height, width, channels) of the input.
        weights: (out_features, height * width * words_for(channels)) uint32.
        threshold: (out_features,) int32.
        flip: (out_features,) bool.
    """

    kind: ClassVar[str] = "binary_dense"
    threshold: NDArray[np.int32]
    flip: NDArray[np.bool_]

    def array_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        row = (self.out_features,)
        return {**super().array_specs(), "threshold": (row, np.int32), "flip": (row, np.bool_)}


@dataclass(frozen=True, eq=False)
class OutputDense(_DenseBase):
    """The last layer, from bits to logits: ``logit = scale * (weights . x) + bias``.

    The product and the sum are rounded to float32 one after the other, so that every backend gives the same bits.

    Attributes:
        scale, bias: (out_features,) float32.
    """

    kind: ClassVar[str] = "output_dense"
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_finite(self, "scale", "bias")

    def array_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        row = (self.out_features,)
        return {**super().array_specs(), "scale": (row, np.float32), "bias": (row, np.float32)}


@dataclass(frozen=True, eq=False)
class OutputBits(BinaryDense):
    """A last layer whose outputs are bits, as nets from elsewhere have: ``logit = scale * bit + bias``, bit 0 or 1.

    The logit is ``bias`` for a 0 and the float32 sum ``scale + bias`` for a 1.

    Attributes:
        scale, bias: (out_features,) float32.
    """

    kind: ClassVar[str] = "output_bits"
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_finite(self, "scale", "bias")

    def array_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        row = (self.out_features,)
        return {**super().array_specs(), "scale": (row, np.float32), "bias": (row, np.float32)}


Layer = (
    Thermometer
    | InputConv2d
    | InputResidualConv2d
    | BinaryConv2d
    | ResidualConv2d
    | BinaryDense
    | OutputDense
    | OutputBits
)
LAYER_KINDS: dict[str, type] = {
    cls.kind: cls
    for cls in (
        Thermometer,
        InputConv2d,
        InputResidualConv2d,
        BinaryConv2d,
        ResidualConv2d,
        BinaryDense,
        OutputDense,
        OutputBits,
    )
}


def reads_residual(layer: Layer | None) -> bool:
    """Whether a layer adds the stream of the one before it, which is of no use to any other."""
    return isinstance(layer, ResidualConv2d) and layer.shortcut != "none"


@dataclass(frozen=True, eq=False)
class Model:
    """A binarized classifier: what ``model.yaml`` and ``binary.npz`` say.

    Attributes:
        name: of the model, as shown in logs and diagnostics.
        labels: one for each output, in order.
        input: size and preprocessing.
        layers: in order; the last one is an :class:`OutputDense` or :class:`OutputBits`, no other is.
        temperature: logits of the binary net are divided by it before the softmax (calibration, see
            :mod:`bnn_perception.evaluation.calibration`; 1 changes nothing).
        float_temperature: the same for the float twin.
        info: what else ``model.yaml`` states (description, training, accuracy), untouched.
        folder: where it was loaded from, None for a model made in memory.
    """

    name: str
    labels: tuple[str, ...]
    input: InputSpec
    layers: tuple[Layer, ...]
    temperature: float = 1.0
    float_temperature: float = 1.0
    info: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) > MAX_LAYERS:
            raise ModelError(f"layers: {len(self.layers)} of them; a model has 1 to {MAX_LAYERS}")
        names = [layer.name for layer in self.layers]
        for name in names:
            _checked_name(name)
            if names.count(name) > 1:
                raise ModelError(f"layers: the name '{name}' stands twice")
        last = self.layers[-1]
        if not isinstance(last, (OutputDense, OutputBits)):
            raise ModelError(
                f"{last.name}: the last layer must be an output_dense or output_bits, not a {last.kind}"
            )
        for index, layer in enumerate(self.layers):
            if isinstance(layer, (Thermometer, InputConv2d)) != (index == 0):
                raise ModelError(
                    f"{layer.name}: a {layer.kind} cannot stand at place {index + 1}; "
                    "the first layer, and no other, takes pixels (input_conv2d, input_stream_conv2d or thermometer)"
                )
            if isinstance(layer, (OutputDense, OutputBits)) and layer is not last:
                raise ModelError(f"{layer.name}: a {layer.kind} must be the last layer")
        for layer, shape in zip(self.layers, self.shapes()[1:]):
            if math.prod(shape) > MAX_ACTIVATION_BITS:
                raise ModelError(
                    f"{layer.name}: its output of {list(shape)} is over {MAX_ACTIVATION_BITS} bits"
                )
        self._check_streams()
        if len(self.labels) != last.out_features:
            raise ModelError(
                f"labels: {len(self.labels)} of them, but {last.name} has {last.out_features} outputs"
            )
        for label in self.labels:
            if not isinstance(label, str) or not label.strip() or len(label) > MAX_LABEL:
                raise ModelError(f"labels: {_show(label)} is not a text of 1 to {MAX_LABEL} characters")
        for name in TEMPERATURES:
            value = getattr(self, name)
            if (
                not isinstance(value, (int, float))
                or isinstance(value, bool)
                or not 1 / MAX_TEMPERATURE <= value <= MAX_TEMPERATURE
            ):
                raise ModelError(f"{name} is {_show(value)}; it must be a number from 1e-6 to 1e6")

    def shapes(self) -> list[Shape]:
        """Shape of the input and of each layer's output; one more than there are layers."""
        shapes = [self.input.shape]
        for layer in self.layers:
            shapes.append(layer.output_shape(shapes[-1]))
        return shapes

    def _check_streams(self) -> None:
        """That no integer of a stream, and nothing that is added up on the way to it, can leave int32."""
        before: NDArray[np.float64] | None = None
        for layer in self.layers:
            if not isinstance(layer, WithResidual):
                before = None
                continue
            before = layer.max_magnitudes(before)
            _check_stream(layer.name, before, "of its stream")

    @property
    def float_twin(self) -> Path | None:
        """The float twin's file, None where the model has none."""
        if self.folder is None or not (self.folder / FLOAT_TWIN).is_file():
            return None
        return self.folder / FLOAT_TWIN


def load_model(folder: str | os.PathLike[str]) -> Model:
    """Read and validate a model folder.

    Raises:
        ModelError: naming the file, the field and what is wrong with it.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    description = _read_description(path)
    try:
        files = description["files"]
        if not isinstance(files, dict) or BINARY not in files:
            raise ModelError(f"files: no sha256 of {BINARY}")
        unknown = set(files) - {BINARY, FLOAT_TWIN}
        if unknown:
            raise ModelError(f"files: unknown file {_show(sorted(map(str, unknown))[0])}")
        configs = description["layers"]
        if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
            raise ModelError("layers: not a list of layers")
        if not 0 < len(configs) <= MAX_LAYERS:
            raise ModelError(f"layers: {len(configs)} of them; a model has 1 to {MAX_LAYERS}")
        input_spec = InputSpec(**_known("input", description["input"], InputSpec))
        labels = description["labels"]
        if not isinstance(labels, list):
            raise ModelError("labels: not a list")
        name = description["name"]
        if not isinstance(name, str) or not name.strip():
            raise ModelError(f"name is {_show(name)}; it must be a text")
        temperatures = {key: description[key] for key in TEMPERATURES if key in description}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except KeyError as error:
        raise ModelError(f"{path}: the field {error} is missing") from None
    for file, digest in files.items():
        limit = MAX_ARRAY_BYTES if file == BINARY else MAX_ONNX_BYTES
        _check_digest(folder / file, digest, limit)
    if FLOAT_TWIN not in files and (folder / FLOAT_TWIN).exists():
        raise ModelError(f"{path}: files: no sha256 of {FLOAT_TWIN}, which lies in the folder")
    try:
        with _Arrays(folder / BINARY) as arrays:
            layers = tuple(_layer_from_config(config, arrays) for config in configs)
            arrays.check_all_used()
        known = {"format", "name", "labels", "input", "layers", "files", *TEMPERATURES}
        return Model(
            name=name,
            labels=tuple(labels),
            input=input_spec,
            layers=layers,
            **temperatures,
            info={key: value for key, value in description.items() if key not in known},
            folder=folder,
        )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def save_model(model: Model, folder: str | os.PathLike[str], float_twin: bytes | None = None) -> Model:
    """Write a model folder; what was there under the same names is replaced.

    The files are written beside their places first, so that a full disk leaves the model that was there; ``model.yaml``
    is renamed into its place last, so that an interrupted save never looks like a whole model.

    Args:
        model: what to write.
        folder: made where it does not exist.
        float_twin: the bytes of the ONNX file, None to ship none.

    Returns:
        The model as :func:`load_model` reads it back.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{layer.name}.{array}": getattr(layer, array)
        for layer in model.layers
        for array in layer.array_specs()
    }
    with ExitStack() as files:
        with files.enter_context(replacing(folder / BINARY)).open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        if float_twin is not None:
            files.enter_context(replacing(folder / FLOAT_TWIN)).write_bytes(float_twin)
        (folder / DESCRIPTION).unlink(missing_ok=True)
    if float_twin is None:
        (folder / FLOAT_TWIN).unlink(missing_ok=True)
    _write_description(model, folder)
    return load_model(folder)


def _write_description(model: Model, folder: Path) -> None:
    """Write ``model.yaml`` for the files that lie beside it; at any moment there is the old one or the new one."""
    temperatures = TEMPERATURES if (folder / FLOAT_TWIN).exists() else TEMPERATURES[:1]
    description: dict[str, Any] = {
        "format": FORMAT,
        "name": model.name,
        **model.info,
        "labels": list(model.labels),
        "input": {f.name: getattr(model.input, f.name) for f in fields(InputSpec)},
        **{name: float(getattr(model, name)) for name in temperatures},
        "layers": [_layer_config(layer) for layer in model.layers],
        "files": {
            file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
            for file in (BINARY, FLOAT_TWIN)
            if (folder / file).exists()
        },
    }
    with replacing(folder / DESCRIPTION) as partial:
        partial.write_text(_to_yaml(description), encoding="utf-8")


def update_info(folder: str | os.PathLike[str], **info: Any) -> Model:
    """Set top-level fields of ``model.yaml`` that no backend reads (accuracy, say), or a temperature.

    The other files are left alone, and an interrupted update leaves the model as it was.

    Raises:
        ModelError: for a folder that is no model, or a field that defines the net.
    """
    model = load_model(folder)
    reserved = {"format", "name", "labels", "input", "layers", "files"} & set(info)
    if reserved:
        raise ModelError(f"{sorted(reserved)[0]} defines the net and cannot be updated")
    temperatures = {name: info.pop(name) for name in TEMPERATURES if name in info}
    _write_description(replace(model, info={**model.info, **info}, **temperatures), Path(folder))
    return load_model(folder)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_DESCRIPTION_BYTES:
            raise ModelError(f"{path}: {size} bytes; a description has at most {MAX_DESCRIPTION_BYTES}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file; a model is a folder with {DESCRIPTION} and {BINARY}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read: {_reason(error)}") from None
    try:
        description = yaml.safe_load(text)
    except (
        Exception
    ) as error:  # of PyYAML, or of Python where PyYAML converts a number, a date or a nest of brackets
        raise ModelError(f"{path}: is not YAML: {_reason(error)}") from None
    if not isinstance(description, dict):
        raise ModelError(f"{path}: is not a mapping of fields")
    version = description.get("format")
    if version != FORMAT or isinstance(version, bool):
        newer = isinstance(version, int) and version > FORMAT
        remedy = "; update bnn_perception to read it" if newer else ""
        raise ModelError(f"{path}: format is {_show(version)}; this version reads format {FORMAT}{remedy}")
    return description


def _check_digest(path: Path, digest: object, limit: int) -> None:
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ModelError(
            f"{path.parent / DESCRIPTION}: files: the sha256 of {path.name} is not 64 hexadecimal digits"
        )
    try:
        size = path.stat().st_size
        if size > limit:
            raise ModelError(f"{path}: {size} bytes; at most {limit} are read")
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, but {DESCRIPTION} lists it") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {_reason(error)}") from None
    if actual != digest:
        raise ModelError(
            f"{path}: its sha256 begins {actual[:12]}, {DESCRIPTION} says {digest[:12]}; the file was changed"
        )


class _Arrays:
    """Reads arrays of the expected shape and type out of an npz file, and nothing larger."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._used: set[str] = set()
        self._left = MAX_ARRAY_BYTES

    def __enter__(self) -> _Arrays:
        try:
            self._zip = zipfile.ZipFile(self._path)
        except (
            Exception
        ) as error:  # a damaged directory of the archive raises what its parsing happens to raise
            raise ModelError(f"{BINARY}: is not an npz file: {_reason(error)}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, name: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        wanted = f"{np.dtype(dtype).name} {list(shape)}"
        expected = math.prod(shape) * np.dtype(dtype).itemsize
        self._left -= expected
        if self._left < 0:
            raise ModelError(
                f"{BINARY}: {name} takes {expected} bytes; at most {MAX_ARRAY_BYTES} are read in all"
            )
        try:
            # The header of an npy file is at most 64 KiB; anything longer is not the array that is wanted.
            if self._zip.getinfo(f"{name}.npy").file_size > expected + (1 << 16):
                raise ModelError(f"{BINARY}: {name} is larger than {wanted}")
            with self._zip.open(f"{name}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                if version != (1, 0):
                    raise ModelError(f"{BINARY}: {name} has npy version {version}, not (1, 0)")
                actual_shape, fortran, actual_dtype = np.lib.format.read_array_header_1_0(stream)
                if actual_shape != shape or actual_dtype != np.dtype(dtype) or fortran:
                    raise ModelError(f"{BINARY}: {name} is {actual_dtype} {list(actual_shape)}, not {wanted}")
                content = stream.read(expected)
        except KeyError:
            raise ModelError(f"{BINARY}: the array {name} is missing") from None
        except ModelError:
            raise
        except Exception as error:  # of zipfile, of the decompressors, of NumPy's parser of headers
            raise ModelError(f"{BINARY}: {name} cannot be read: {_reason(error)}") from None
        if len(content) != expected:
            raise ModelError(f"{BINARY}: {name} ends early")
        self._used.add(f"{name}.npy")
        return np.frombuffer(content, dtype=dtype).reshape(shape)

    def check_all_used(self) -> None:
        unused = sorted(set(self._zip.namelist()) - self._used)
        if unused:
            raise ModelError(f"{BINARY}: {_show(unused[0])} belongs to no layer")


def _layer_from_config(config: Mapping[str, Any], arrays: _Arrays) -> Layer:
    name = _checked_name(config.get("name"))
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in LAYER_KINDS:
        raise ModelError(
            f"{name}: kind {_show(kind)} is unknown; this version knows {', '.join(LAYER_KINDS)}"
        )
    cls = LAYER_KINDS[kind]
    values = _known(name, {key: value for key, value in config.items() if key != "kind"}, cls)
    for key in ("kernel", "stride", "padding", "in_shape"):
        if key in values:
            values[key] = _integers(f"{name}.{key}", values[key], 3 if key == "in_shape" else 2)
    if values.get("pool") is not None:
        values["pool"] = Pool(**_known(f"{name}.pool", values["pool"], Pool))
    # The expected shapes follow from the scalar fields, so the layer itself is asked for them before its
    # arrays are there; __post_init__ then runs once, on the whole layer.
    probe: Any = object.__new__(cls)
    for key, value in values.items():
        object.__setattr__(probe, key, value)
    try:
        specs = probe.array_specs()
        sizes = [dimension for shape, _ in specs.values() for dimension in shape]
    except (AttributeError, TypeError) as error:
        raise ModelError(f"{name}: a field is missing or has the wrong type: {error}") from None
    if not all(isinstance(size, int) and 0 < size <= 1 << 31 for size in sizes):
        raise ModelError(f"{name}: its sizes give arrays of {[list(shape) for shape, _ in specs.values()]}")
    values.update({array: arrays.read(f"{name}.{array}", *spec) for array, spec in specs.items()})
    try:
        return cls(**values)
    except TypeError as error:
        raise ModelError(f"{name}: {error}") from None


def _layer_config(layer: Layer) -> dict[str, Any]:
    config: dict[str, Any] = {"name": layer.name, "kind": layer.kind}
    for f in fields(layer):
        value = getattr(layer, f.name)
        if f.name == "name" or isinstance(value, np.ndarray):
            continue
        if isinstance(value, Pool):
            value = {"size": value.size, "stride": value.stride}
        config[f.name] = list(value) if isinstance(value, tuple) else value
    return config


def _known(where: str, config: object, cls: type) -> dict[str, Any]:
    """``config`` as keyword arguments of a dataclass: unknown fields, arrays in YAML and non-mappings are refused."""
    if not isinstance(config, dict):
        raise ModelError(f"{where}: is not a mapping of fields")
    known = {f.name: f for f in fields(cls)}
    for key in config:
        if key not in known or "NDArray" in str(known[key].type):
            raise ModelError(f"{where}: unknown field {_show(key)}")
    required = [
        f.name
        for f in fields(cls)
        if f.default is f.default_factory and "NDArray" not in str(f.type)  # both MISSING: no default
    ]
    for key in required:
        if key not in config:
            raise ModelError(f"{where}: the field '{key}' is missing")
    return dict(config)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlevel = 2


def _show(value: object) -> str:
    """A value in a message: one short line, however long or deeply nested an untrusted value is."""
    try:
        return _short.repr(value)
    except ValueError:  # Python writes no whole number of more than some thousand digits
        return "a very long number"


def _reason(error: Exception) -> str:
    """What an exception says, on one short line."""
    return one_line(error)


def _integer(where: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise ModelError(f"{where} is {_show(value)}; it must be a whole number from {low} to {high}")


def _integers(where: str, value: object, count: int) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ModelError(f"{where} is {_show(value)}; it must be {count} whole numbers")
    for item in value:
        _integer(where, item, 0, MAX_CHANNELS)
    return tuple(value)


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not LAYER_NAME.fullmatch(name):
        raise ModelError(f"layers: the name {_show(name)} is not a word of letters, digits, _ and -")
    return name


def _expect(layer: Layer | Conv2d | _DenseBase, what: str, stated: object, actual: object) -> None:
    if stated != actual:
        raise ModelError(f"{layer.name}: {what} is {stated}, but its input has {actual}")


def _check_arrays(layer: Any) -> None:
    for name, (shape, dtype) in layer.array_specs().items():
        array = getattr(layer, name)
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.dtype(dtype):
            found = (
                f"{array.dtype} {list(array.shape)}"
                if isinstance(array, np.ndarray)
                else type(array).__name__
            )
            raise ModelError(f"{layer.name}.{name} is {found}, not {np.dtype(dtype).name} {list(shape)}")


def _check_stream(name: str, magnitudes: NDArray[np.float64], what: str) -> None:
    if magnitudes.max() > MAX_RESIDUAL:
        channel = int(magnitudes.argmax())
        raise ModelError(
            f"{name}: channel {channel} {what} can reach {magnitudes[channel]:.0f}, but int32 holds "
            f"{MAX_RESIDUAL} safely; use smaller multipliers and offsets"
        )


def _check_finite(layer: Any, *names: str) -> None:
    for name in names:
        if not np.all(np.isfinite(getattr(layer, name))):
            raise ModelError(f"{layer.name}.{name} holds a value that is not finite")


def _check_spare(name: str, weights: NDArray[np.uint32], channels: int) -> None:
    if np.any(weights & ~bits.spare_mask(channels)):
        raise ModelError(f"{name}.weights: a spare bit is set; bits past channel {channels} must be 0")


class _Dumper(yaml.SafeDumper):
    """Block style for mappings, one line for lists of numbers."""


def _represent_list(dumper: yaml.SafeDumper, data: Sequence[Any]) -> yaml.Node:
    flat = all(isinstance(item, (int, float)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)


def _to_yaml(description: Mapping[str, Any]) -> str:
    return yaml.dump(dict(description), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def iter_layers(model: Model) -> Iterator[tuple[Layer, Shape, Shape]]:
    """Each layer with the shape of its input and of its output."""
    shapes = model.shapes()
    yield from zip(model.layers, shapes[:-1], shapes[1:])
