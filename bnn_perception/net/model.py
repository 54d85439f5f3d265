"""A binarized classifier: its input, its layers in order, and what it calls its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.net.checks import (
    MAX_ACTIVATION_BITS,
    MAX_LABEL,
    MAX_LAYERS,
    MAX_SIDE,
    MAX_TEMPERATURE,
    ModelError,
    is_text,
    layer_name,
    show,
)
from bnn_perception.net.fields import check_scalars, choice, whole
from bnn_perception.net.layers import LAYER_KINDS, Layer, Shape

#: The files of a model folder; :mod:`bnn_perception.net.folder` says what they hold.
DESCRIPTION, BINARY, FLOAT_TWIN = "model.yaml", "binary.npz", "float.onnx"
#: Fields of a model that hold a temperature, each 1 where ``model.yaml`` does not state it.
TEMPERATURES = ("temperature", "float_temperature")


@dataclass(frozen=True)
class InputSpec:
    """What the first layer takes, and how a frame is brought to it (see :mod:`bnn_perception.frames.preprocess`).

    Attributes:
        height, width: of the model's input, pixels.
        channels: 3 (RGB) or 1 (grey).
        fit: ``stretch`` scales the region of interest as it is, ``crop`` takes its largest centred part that
            has the model's aspect ratio.
    """

    height: int = field(metadata=whole(1, MAX_SIDE))
    width: int = field(metadata=whole(1, MAX_SIDE))
    channels: int = field(default=3, metadata=choice(3, 1, text="3 (RGB) or 1 (grey)"))
    fit: str = field(default="crop", metadata=choice("crop", "stretch"))

    def __post_init__(self) -> None:
        check_scalars("input", self)

    @property
    def shape(self) -> Shape:
        return self.height, self.width, self.channels


@dataclass(frozen=True, eq=False)
class Model:
    """A binarized classifier: what ``model.yaml`` and ``binary.npz`` say.

    Attributes:
        name: of the model, as shown in logs and diagnostics.
        labels: one for each output, in order.
        input: size and preprocessing.
        layers: in order; the first one takes pixels, the last one gives logits.
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
            layer_name(name)
            if names.count(name) > 1:
                raise ModelError(f"layers: the name '{name}' stands twice")
        self._check_order()
        for layer, shape in zip(self.layers, self.shapes()[1:]):
            if math.prod(shape) > MAX_ACTIVATION_BITS:
                raise ModelError(
                    f"{layer.name}: its output of {list(shape)} is over {MAX_ACTIVATION_BITS} bits"
                )
        self._check_residuals()
        last = self.layers[-1]
        if len(self.labels) != last.outputs:
            raise ModelError(
                f"labels: {len(self.labels)} of them, but {last.name} has {last.outputs} outputs"
            )
        if not is_text(self.name) or not self.name.strip():
            raise ModelError(f"name is {show(self.name)}; it must be a text")
        for label in self.labels:
            if not is_text(label) or not label.strip() or len(label) > MAX_LABEL:
                raise ModelError(f"labels: {show(label)} is not a text of 1 to {MAX_LABEL} characters")
        for name in TEMPERATURES:
            value = getattr(self, name)
            if (
                not isinstance(value, (int, float))
                or isinstance(value, bool)
                or not 1 / MAX_TEMPERATURE <= value <= MAX_TEMPERATURE
            ):
                raise ModelError(f"{name} is {show(value)}; it must be a number from 1e-6 to 1e6")

    def _check_order(self) -> None:
        """Check that the first layer and no other takes pixels, and the last and no other gives logits."""
        last = self.layers[-1]
        if last.gives != "logits":
            kinds = [kind for kind, cls in LAYER_KINDS.items() if cls.gives == "logits"]
            raise ModelError(
                f"{last.name}: the last layer must be an {' or '.join(kinds)}, not a {last.kind}"
            )
        for index, layer in enumerate(self.layers):
            if (layer.takes == "pixels") != (index == 0):
                kinds = [kind for kind, cls in LAYER_KINDS.items() if cls.takes == "pixels"]
                raise ModelError(
                    f"{layer.name}: a {layer.kind} cannot stand at place {index + 1}; "
                    f"the first layer, and no other, takes pixels ({', '.join(kinds[:-1])} or {kinds[-1]})"
                )
            if layer.gives == "logits" and layer is not last:
                raise ModelError(f"{layer.name}: a {layer.kind} must be the last layer")

    def shapes(self) -> list[Shape]:
        """Shape of the input and of each layer's output; one more than there are layers."""
        shapes = [self.input.shape]
        for layer in self.layers:
            shapes.append(layer.output_shape(shapes[-1]))
        return shapes

    def _check_residuals(self) -> None:
        """Check that no residual value, and nothing that is added up on the way to it, can leave int32."""
        before: NDArray[np.float64] | None = None
        for layer in self.layers:
            before = layer.max_residual(before)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one frame."""
        return sum(layer.macs(shape) for layer, shape in zip(self.layers, self.shapes()))

    @property
    def float_twin(self) -> Path | None:
        """The float twin's file, None where the model has none."""
        if self.folder is None or not (self.folder / FLOAT_TWIN).is_file():
            return None
        return self.folder / FLOAT_TWIN


class Place(NamedTuple):
    """A layer where it stands in its model.

    Attributes:
        layer: which.
        before: shape of its input.
        after: shape of its output.
        following: the layer that takes its output, None for the last.
    """

    layer: Layer
    before: Shape
    after: Shape
    following: Layer | None

    @property
    def residual_is_read(self) -> bool:
        """Whether the layer that follows adds this one's residual; one that nobody adds need not be stored."""
        return self.following is not None and self.following.reads_residual


def iter_layers(model: Model) -> Iterator[Place]:
    """Each layer in its place, in order."""
    shapes = model.shapes()
    for place in zip(model.layers, shapes[:-1], shapes[1:], (*model.layers[1:], None)):
        yield Place(*place)
