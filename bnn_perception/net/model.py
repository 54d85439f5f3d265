"""A binarized classifier: its input, its layers in order, and what it calls its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnn_perception.net.checks import (
    MAX_ACTIVATION_BITS,
    MAX_LABEL,
    MAX_LAYERS,
    MAX_OPERATIONS,
    MAX_SIDE,
    MAX_SIGNAL,
    MAX_TEMPERATURE,
    MAX_TOTAL_BITS,
    ModelError,
    is_text,
    layer_name,
    show,
)
from bnn_perception.net.fields import check_scalars, choice, reals, whole
from bnn_perception.net.layer import Layer, Shape
from bnn_perception.net.signals import LAYER_KINDS

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
        mean, std: how the net that was imported takes a pixel p of 0..255, channel by channel:
            ``(p / 255 - mean) / std``. They are part of the first layer already and stand here to be read; empty where
            a net takes p / 255.
    """

    height: int = field(metadata=whole(1, MAX_SIDE))
    width: int = field(metadata=whole(1, MAX_SIDE))
    channels: int = field(default=3, metadata=choice(3, 1, text="3 (RGB) or 1 (grey)"))
    fit: str = field(default="crop", metadata=choice("crop", "stretch"))
    mean: tuple[float, ...] = field(default=(), metadata=reals(3, -1e6, 1e6))
    std: tuple[float, ...] = field(default=(), metadata=reals(3, -1e6, 1e6))

    def __post_init__(self) -> None:
        check_scalars("input", self)
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, self.channels):
            raise ModelError(
                f"input: {len(self.mean)} values of mean and {len(self.std)} of std; "
                f"both have one for each of {self.channels} channels, or none"
            )
        if 0 in self.std:
            raise ModelError("input.std holds a 0")

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
        twin_digest: sha256 of the float twin in ``folder``, empty where there is none.
    """

    name: str
    labels: tuple[str, ...]
    input: InputSpec
    layers: tuple[Layer, ...]
    temperature: float = 1.0
    float_temperature: float = 1.0
    info: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    twin_digest: str = ""

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) > MAX_LAYERS:
            raise ModelError(f"layers: {len(self.layers)} of them; a model has 1 to {MAX_LAYERS}")
        names = [layer.name for layer in self.layers]
        for name in names:
            layer_name(name)
            if names.count(name) > 1:
                raise ModelError(f"layers: the name '{name}' stands twice")
        sources = self._check_order()
        self._check_costs(sources)
        self._check_bounds(sources)
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

    def _check_order(self) -> list[tuple[int, ...]]:
        """Check that each layer takes what layers before it give, and that each is taken by another but for the last.

        Returns:
            The places of each layer's inputs; -1 is the image.
        """
        places = {layer.name: index for index, layer in enumerate(self.layers)}
        sources: list[tuple[int, ...]] = []
        last = self.layers[-1]
        for index, layer in enumerate(self.layers):
            for name in layer.inputs:
                if places.get(name, index) >= index:
                    raise ModelError(f"{layer.name}.inputs: no layer before it has the name {show(name)}")
            found = tuple(places[name] for name in layer.inputs) or (index - 1,)
            if not layer.fewest <= len(found) <= layer.most:
                number = (
                    f"{layer.fewest}" if layer.fewest == layer.most else f"{layer.fewest} to {layer.most}"
                )
                raise ModelError(f"{layer.name}.inputs: {len(found)} of them; a {layer.kind} takes {number}")
            if (layer.takes == "pixels") != (index == 0):
                kinds = [kind for kind, cls in LAYER_KINDS.items() if cls.takes == "pixels"]
                raise ModelError(
                    f"{layer.name}: a {layer.kind} cannot stand at place {index + 1}; "
                    f"the first layer, and no other, takes pixels ({', '.join(kinds[:-1])} or {kinds[-1]})"
                )
            if layer.gives == "logits" and layer is not last:
                raise ModelError(f"{layer.name}: a {layer.kind} must be the last layer")
            for place in found:
                if place >= 0 and self.layers[place].gives != layer.takes:
                    raise ModelError(
                        f"{layer.name}: a {layer.kind} takes {layer.takes}, but {self.layers[place].name} "
                        f"gives {self.layers[place].gives}"
                    )
            sources.append(found)
        if last.gives == "bits":
            kinds = [kind for kind, cls in LAYER_KINDS.items() if cls.gives == "logits"]
            raise ModelError(
                f"{last.name}: the last layer must give a signal or be an {' or '.join(kinds)}, not a {last.kind}"
            )
        read = {place for found in sources for place in found}
        for index, layer in enumerate(self.layers[:-1]):
            if index not in read:
                raise ModelError(f"{layer.name}: no layer takes its output")
        return sources

    def _shapes(self, sources: Sequence[tuple[int, ...]]) -> list[Shape]:
        shapes = [self.input.shape]
        for layer, places in zip(self.layers, sources):
            shapes.append(layer.output_shape(*(shapes[place + 1] for place in places)))
        last = self.layers[-1]
        if last.gives == "signal" and shapes[-1][:2] != (1, 1):
            raise ModelError(
                f"{last.name}: the last layer gives {list(shapes[-1])}; logits are a signal of one pixel"
            )
        return shapes

    def sources(self) -> list[tuple[int, ...]]:
        """For each layer the places of those that it takes, by their order in :attr:`layers`; -1 is the image."""
        places = {layer.name: index for index, layer in enumerate(self.layers)}
        return [
            tuple(places[name] for name in layer.inputs) or (index - 1,)
            for index, layer in enumerate(self.layers)
        ]

    def shapes(self) -> list[Shape]:
        """Shape of the input and of each layer's output; one more than there are layers."""
        return self._shapes(self.sources())

    def _check_costs(self, sources: Sequence[tuple[int, ...]]) -> None:
        """Check that neither a frame's activations nor its operations are more than a robot can bear."""
        shapes = self._shapes(sources)
        total = operations = 0
        for layer, places, shape in zip(self.layers, sources, shapes[1:]):
            bits = math.prod(shape) * (32 if layer.gives == "signal" else 1)
            if bits > MAX_ACTIVATION_BITS:
                raise ModelError(
                    f"{layer.name}: its output of {list(shape)} is over {MAX_ACTIVATION_BITS} bits"
                )
            total += bits
            operations += layer.operations(*(shapes[place + 1] for place in places))
            if total > MAX_TOTAL_BITS:
                raise ModelError(
                    f"{layer.name}: the outputs of the layers up to it are over {MAX_TOTAL_BITS} bits"
                )
            if operations > MAX_OPERATIONS:
                raise ModelError(
                    f"{layer.name}: the layers up to it take over {MAX_OPERATIONS} operations for a frame"
                )

    def _check_bounds(self, sources: Sequence[tuple[int, ...]]) -> None:
        """Check that no signal, and nothing that is added up on the way to it, can leave float32."""
        bounds = [np.full(self.input.channels, 255.0)]
        for layer, places in zip(self.layers, sources):
            bounds.append(layer.bound([bounds[place + 1] for place in places]))
            if not bounds[-1].max() <= MAX_SIGNAL:
                channel = int(bounds[-1].argmax())
                raise ModelError(
                    f"{layer.name}: channel {channel} of its signal can reach {bounds[-1][channel]:.3g}; "
                    f"float32 holds {MAX_SIGNAL:g} safely; use smaller scales"
                )

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one frame."""
        return sum(place.layer.macs(*place.before_all) for place in iter_layers(self))

    @property
    def float_twin(self) -> Path | None:
        """The float twin's file, None where the model has none.

        Who evaluates it takes :func:`bnn_perception.net.folder.read_twin`: the file may have changed meanwhile.
        """
        if self.folder is None or not (self.folder / FLOAT_TWIN).is_file():
            return None
        return self.folder / FLOAT_TWIN


class Place(NamedTuple):
    """A layer where it stands in its model.

    Attributes:
        layer: which.
        before: shape of its first input.
        after: shape of its output.
        sources: the layers that it takes, in the order of its inputs; None is the image.
        readers: the layers that take its output, in their order in the model; none for the last.
        before_all: shapes of all of its inputs.
    """

    layer: Layer
    before: Shape
    after: Shape
    sources: tuple[Layer | None, ...]
    readers: tuple[Layer, ...]
    before_all: tuple[Shape, ...]


def iter_layers(model: Model) -> Iterator[Place]:
    """Each layer in its place, in order."""
    shapes, sources = model.shapes(), model.sources()
    readers: list[list[Layer]] = [[] for _ in model.layers]
    for layer, places in zip(model.layers, sources):
        for place in dict.fromkeys(places):
            if place >= 0:
                readers[place].append(layer)
    for index, (layer, places) in enumerate(zip(model.layers, sources)):
        before = tuple(shapes[place + 1] for place in places)
        taken = tuple(None if place < 0 else model.layers[place] for place in places)
        yield Place(layer, before[0], shapes[index + 1], taken, tuple(readers[index]), before)
