"""Walks a QONNX graph node by node; :mod:`bnn_perception.importers.onnx.read` says which graphs and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from bnn_perception.importers.errors import ImporterError, RefusalError
from bnn_perception.importers.fold.builder import BYTES, UNIT, LayerBuilder, PixelRange
from bnn_perception.importers.fold.signal import Signal, is_float_map
from bnn_perception.importers.onnx.graph import Graph
from bnn_perception.importers.onnx.node import Node
from bnn_perception.importers.onnx.operators import find
from bnn_perception.net.layer import Layer

if TYPE_CHECKING:
    import onnx


class Walk:
    """Turns a graph into layers.

    Attributes:
        graph: as it was read.
        image_axes, image_sizes: the image's axes and their sizes, after the batch.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        pixels: PixelRange | None,
        shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        """Read the graph.

        Args:
            pixels: what it takes for pixels; None: to be told from the graph.
            shapes: what tensors must have, by their names; their first axis is that of the images.

        Raises:
            ImporterError: naming the reason.
        """
        self._shapes = shapes
        self.graph = Graph(model)
        shape, integers = self.graph.image_shape, self.graph.takes_integers
        self.image_axes = "CHW" if len(shape) == 4 and shape[1] in (1, 3) else "HWC"
        self.image_sizes = dict(zip(self.image_axes, shape[1:]))
        if len(shape) != 4 or self.image_sizes["C"] not in (1, 3) or min(self.image_sizes.values()) < 1:
            raise ImporterError(
                f"input '{self.graph.image}' has shape {shape} (0: any); expected is (N, channels, height, width) or "
                "(N, height, width, channels) with 1 or 3 channels and a fixed height and width"
            )
        is_guess = pixels is None and not integers
        if pixels is None:
            pixels = BYTES if integers else UNIT
        self._builder = LayerBuilder(pixels, is_guess)
        try:
            image = self._builder.image(self.image_axes, self.image_sizes, self.graph.image_dtype)
            # The signals by their names, for nodes to come.
            self._signals: dict[str, Signal] = {}
            self._keep(self.graph.image, image)
        except RefusalError as error:
            raise ImporterError(f"input '{self.graph.image}' {error}") from None

    @property
    def pixels(self) -> PixelRange:
        """What the graph takes for pixels; where it is a guess, final after :meth:`run`."""
        return self._builder.pixels

    @property
    def is_told(self) -> bool:
        """Whether the graph could only mean this range; to be asked where none was given."""
        return self._builder.is_told

    @property
    def layers(self) -> list[Layer]:
        """The layers of the model, after :meth:`run`."""
        return self._builder.layers

    @property
    def outputs(self) -> int:
        """The number of logits, after :meth:`run`."""
        return self._builder.outputs

    def run(self) -> None:
        """Walk the graph.

        Raises:
            ImporterError: naming the node, its operator and the reason.
        """
        for proto in self.graph.nodes:
            with self.graph.at(proto):
                node = self.graph.node(proto, self._signals)
                self._take(node)
                self.graph.check_cancelled(node, self._shape)
        logits = self.graph.logits
        if logits not in self._signals:
            raise ImporterError(f"the output '{logits}' is not computed from the image")
        self._builder.finish(self._signals[logits], logits, self.graph.needs_matrix)

    def _take(self, node: Node[Signal]) -> None:
        if not node.taken:
            self.graph.evaluate(node)
            return
        operator = find(node.proto)
        if operator is None or operator.apply is None:
            raise RefusalError("the model format has no such operation")
        for name in (each for each in node.inputs if each in self._signals):
            if not operator.moves:
                self._signals[name] = self._builder.settled(self._signals[name])
            if not operator.takes_pad:
                self._signals[name] = self._builder.padded(self._signals[name])
        node = replace(node, values=[self._signals.get(name) for name in node.inputs])
        operator.check(node)
        results = operator.apply(node, self._builder)
        if isinstance(results, np.ndarray):
            self.graph.constants[node.outputs[0]] = results
            return
        for name, result in zip(node.outputs, [results] if isinstance(results, Signal) else results):
            self._keep(name, result.in_range())

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor that is known."""
        found = self._signals.get(name, self.graph.constants.get(name))
        return None if found is None else tuple(found.shape)

    def _keep(self, name: str, result: Signal) -> None:
        """Keep a signal for the nodes that take it."""
        stated = self._shapes.get(name, result.shape)
        if result.pad is None and result.shape[1:] != stated[1:]:  # what a Pad adds comes with the next layer
            raise RefusalError(f"gives {list(result.shape)} where the file states {list(stated)}")
        # What two operators take is made once. Signs are there already; pixels are taken by one layer, which then gives
        # them as real values.
        if self.graph.uses[name] > 1 and (
            is_float_map(result) if result.kind == "pixels" else result.kind != "signs"
        ):
            result = self._builder.value(result)
        self._signals[name] = result
