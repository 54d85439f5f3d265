"""Turns a QONNX graph into layers; :mod:`bnn_perception.importers.onnx.read` says which graphs and how."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers import ImporterError
from bnn_perception.importers.onnx import affine as qonnx_affine
from bnn_perception.importers.onnx import products as qonnx_products
from bnn_perception.importers.onnx import shapes as qonnx_shapes
from bnn_perception.importers.onnx import signs as qonnx_signs
from bnn_perception.importers.onnx.graph import MALFORMED, Graph, Node
from bnn_perception.importers.onnx.layers import (
    StreamLayer,
    floats,
    fold,
    output_layer,
    plain_layer,
    pool_after_sign,
    stream_units,
    turned,
)
from bnn_perception.importers.onnx.quantizers import RefusalError
from bnn_perception.importers.onnx.signal import Exact, Products, Signal, constant
from bnn_perception.importers.onnx.signs import Steps, Threshold
from bnn_perception.importers.onnx.types import cast, check_input, check_range
from bnn_perception.net.checks import ModelError
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    InputConv2d,
    Layer,
    OutputBits,
    Thermometer,
)

if TYPE_CHECKING:
    import onnx

#: No graph that takes pixels in 0..1 needs numbers as large as this for them.
LARGE_PIXEL = 16
#: Nodes that can combine two signals.
JOINS = ("Add", "Sum", "Concat")
#: Nodes whose signal may be any of their inputs.
EITHER_SIDE = (
    *JOINS,
    "Sub",
    "Mul",
    "Div",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "PRelu",
    "Where",
)
#: What may stand between a Clip or ReLU and the signs that are taken of its values.
BEFORE_SIGNS = (
    *qonnx_signs.OPERATIONS,
    *("Add", "BatchNormalization", "Clip", "Div", "MaxPool", "Mul", "Neg", "Sub"),
    *("Relu", "Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose"),
)


class Walk:
    """Turns a graph into layers.

    Attributes:
        graph: as it was read.
        image_axes, image_sizes: of its image, after the batch.
        pixel_maximum: what the graph takes for a pixel of 255; where it is a guess, after :meth:`run`.
        layers: of the model, after :meth:`run`.
        outputs: how many logits there are, after :meth:`run`.
        units: of each layer with a stream: how many of its integers are a value of 1, in each channel; after
            :meth:`run`.
    """

    def __init__(self, model: onnx.ModelProto, pixel_maximum: float | None) -> None:
        self.graph = Graph(model)
        integers = self.graph.takes_integers
        self._guesses = pixel_maximum is None and not integers
        self.pixel_maximum = pixel_maximum if pixel_maximum is not None else 255.0 if integers else 1.0
        image = self._image()
        self.image_axes, self.image_sizes = image.axes, image.sizes
        self._signals = {self.graph.image: image}  # by their names, for nodes to come
        self._begun = 0  # layers that have their products
        self._closed: list[Layer | StreamLayer] = []  # those that have their signs too
        self.layers: list[Layer] = []
        self.outputs = 0
        self.units: dict[str, Exact] = {}

    def _image(self) -> Signal:
        shape = self.graph.image_shape
        axes = "CHW" if len(shape) == 4 and shape[1] in (1, 3) else "HWC"
        sizes = dict(zip(axes, shape[1:]))
        if len(shape) != 4 or sizes["C"] not in (1, 3) or min(sizes.values()) < 1:
            raise ImporterError(
                f"input '{self.graph.image}' has shape {shape} (0: any); expected is (N, channels, height, width) or "
                "(N, height, width, channels) with 1 or 3 channels and a fixed height and width"
            )
        scale = constant(Fraction(self.pixel_maximum) / 255, sizes["C"])
        levels, dtype = np.arange(256, dtype=np.int16), self.graph.image_dtype
        image = Signal("pixels", axes, sizes, scale, 0 * scale, dtype=dtype, levels=levels)
        try:
            return check_range(image)
        except RefusalError as error:
            raise ImporterError(f"input '{self.graph.image}' {error}") from None

    def run(self) -> None:
        for proto in self.graph.nodes:
            where = f"node '{proto.name or proto.output[0]}' ({proto.op_type})"
            try:
                self._step(self.graph.node(proto, self._signals))
            except (RefusalError, ModelError) as error:
                raise ImporterError(f"{where}: {error}") from None
            except MALFORMED as error:
                raise ImporterError(f"{where}: its attributes or constants are malformed: {error}") from None
        logits = self.graph.logits
        if logits not in self._signals:
            raise ImporterError(f"the output '{logits}' is not computed from the image")
        try:
            self._finish(self._signals[logits])
            self.units = stream_units(self._closed)
        except OverflowError:
            raise ImporterError("a scale or an offset is too large for float64") from None
        self.layers = [
            layer.fixed(self.units[layer.name]) if isinstance(layer, StreamLayer) else layer
            for layer in self._closed
        ]

    def _step(self, node: Node) -> None:
        if not node.taken:
            self.graph.evaluate(node)
            return
        if node.op == "Shape":
            part = slice(node.attribute("start", 0), node.attribute("end", None))
            self.graph.constants[node.outputs[0]] = np.asarray(node.signal.shape[part], dtype=np.int64)
            return
        if len(node.taken) > 1 and node.op not in JOINS:
            raise RefusalError("combines two activations; only Add and Concat can")
        if node.place != 0 and node.op not in EITHER_SIDE:
            raise RefusalError(f"takes the activation as its input {node.place + 1}")
        check_input(node)
        if any(signal.pad is not None for signal in node.taken) and node.op != "Conv":
            raise RefusalError("stands between a Pad and its Conv")
        limited = any(signal.limits is not None for signal in node.taken)
        if limited and (len(node.taken) > 1 or node.op not in BEFORE_SIGNS):
            raise RefusalError(
                "takes values that a Clip or ReLU has limited, of which only signs can be expressed"
            )
        result = check_range(self._apply(node))
        if result.kind == "sums" and result.is_map and self.graph.uses[node.outputs[0]] > 1:
            if result.limits is not None:
                raise RefusalError(
                    "has limited values that two nodes take; only one sign of them can be expressed"
                )
            result = result.branched()
        self._signals[node.outputs[0]] = result

    def _apply(self, node: Node) -> Signal:
        """What a node makes of its signal."""
        for operations in (qonnx_affine.OPERATIONS, qonnx_shapes.OPERATIONS):
            if node.op in operations:
                return operations[node.op](node)
        if node.op == "Cast":
            return cast(node)
        if node.op == "Clip":
            low, high = qonnx_affine.limits(node)
            return self._settled(node.signal, high).clipped(low, high)
        if node.op == "MaxPool":
            return self._pool(node)
        if node.op in qonnx_products.OPERATIONS:
            return self._products(node)
        if node.op in qonnx_signs.OPERATIONS:
            asked = qonnx_signs.OPERATIONS[node.op](node)
            if isinstance(asked, Threshold):
                return self._threshold(node, asked)
            return self._steps(node, asked)
        raise RefusalError("the model format has no such operation")

    def _finish(self, signal: Signal) -> None:
        """The last layer."""
        last = self._closed[-1] if self._closed else None
        if signal.limits is not None:
            raise ImporterError(f"the output '{self.graph.logits}' is limited by a Clip or ReLU")
        if signal.negative is not None:
            raise ImporterError(f"the output '{self.graph.logits}' is bent by a ReLU or PReLU")
        if self.graph.needs_matrix and not signal.flat:
            raise ImporterError(f"the last axis of '{self.graph.logits}' is taken for that of the classes")
        if signal.kind == "sums" and signal.products is not None and signal.products.dense:
            self._check_order(signal.products)
            self._closed.append(output_layer(signal.products, signal.scale, signal.offset))
        elif signal.kind == "signs" and isinstance(last, BinaryDense) and signal.place == len(self._closed):
            scale, bias = floats(2 * signal.scale), floats(signal.offset - signal.scale)
            shape = last.in_shape, last.out_features, last.weights, last.threshold, last.flip
            self._closed[-1] = OutputBits("output", *shape, scale, bias)
        else:
            raise ImporterError(
                f"the output '{self.graph.logits}' does not come from a Gemm or MatMul, or from a Conv of the whole map"
            )
        self.outputs = len(signal.scale)

    # -- pixels

    def _settled(self, signal: Signal, values: Exact) -> Signal:
        """Guess, where nobody said it, whether the graph takes pixels in 0..1 or in 0..255.

        In 0..255 where what it does first makes sense of no other: it divides them by :data:`LARGE_PIXEL` or more,
        or tells pixels apart beyond it.

        Args:
            values: (C,) what the pixels, as they have become, are compared with.

        Returns:
            The signal, its scale that of the guess.
        """
        if not self._guesses or signal.kind != "pixels" or any(signal.scale == 0):
            return signal
        self._guesses = False
        factors = signal.scale * 255
        if any(abs(factors) * LARGE_PIXEL <= 1) or any(abs((values - signal.offset) / factors) > LARGE_PIXEL):
            self.pixel_maximum = 255.0
            return replace(signal, scale=factors)
        return signal

    def _steps(self, node: Node, steps: Steps) -> Signal:
        highest = constant(steps.high * steps.step, len(node.signal.scale))
        return steps.of(self._settled(node.signal, highest))

    def _thermometer(self, signal: Signal, strict: bool) -> Thermometer:
        assert signal.levels is not None
        threshold, flip = fold(signal.scale, signal.offset, np.full(len(signal.scale), strict))
        if signal.axes not in ("CHW", "CLHW") or np.any(flip):
            raise RefusalError("a sign of pixels takes channels first and a positive scale")
        if np.any(np.diff(signal.levels) < 0):
            raise RefusalError("a sign of pixels whose levels do not ascend")
        unit = Fraction(self.pixel_maximum) / 255
        threshold = qonnx_signs.at_pixels(signal, threshold, strict, unit)
        pixels = np.searchsorted(signal.levels, threshold)  # the first pixel that reaches it
        if np.any(pixels > 255):
            raise RefusalError("no pixel reaches a threshold")
        channels, levels = signal.sizes["C"], signal.sizes.get("L", 1)
        thresholds = pixels.reshape(channels, levels).astype(np.uint8)
        return Thermometer("thermometer", channels, levels, thresholds)

    # -- layers

    def _products(self, node: Node) -> Signal:
        """Begin a layer."""
        signal = self._upright(node.signal)
        if node.op == "Conv":
            signal = self._settled(signal, 0 * signal.scale)
        result = qonnx_products.OPERATIONS[node.op](node.of(signal))
        self._begin(node, signal)
        return result

    def _pool(self, node: Node) -> Signal:
        signal = self._upright(node.signal)
        pool, sizes = qonnx_products.pool_of(node)
        if signal.kind == "sums" and signal.products is not None and signal.products.pool is None:
            return signal.pooled(pool, sizes)
        last = self._closed[-1] if self._closed else None
        if signal.kind == "signs" and self.graph.uses[node.inputs[node.place]] > 1:
            raise RefusalError("pools signs that another node takes too")
        if signal.kind == "signs" and isinstance(last, (InputConv2d, BinaryConv2d)) and last.pool is None:
            signal.one_scale()  # positive, so that the largest value is +1
            self._closed[-1] = pool_after_sign(last, pool)
            return replace(signal, sizes=sizes)
        raise RefusalError("pools what is not the output of a convolution, or was pooled already")

    def _upright(self, signal: Signal) -> Signal:
        """Signs whose scale is not negative: where it is, the layer that gives them is turned over."""
        falls = (signal.scale < 0).astype(bool)
        if signal.kind != "signs" or not any(falls) or signal.place != len(self._closed):
            return signal
        self._closed[-1] = turned(self._closed[-1], falls)
        return replace(signal, scale=abs(signal.scale))

    def _threshold(self, node: Node, asked: Threshold) -> Signal:
        """Close the layer."""
        strict = np.full(len(asked.at), asked.strict)
        signal = self._settled(asked.signal, asked.at).shifted(-asked.at).decided(asked.strict)
        result = Signal(
            "signs",
            signal.axes,
            signal.sizes,
            asked.scale,
            asked.offset,
            signal.place,
            signal.flat,
            asked.dtype,
        )
        if signal.kind == "signs":
            high, low = signal.offset + abs(signal.scale), signal.offset - abs(signal.scale)
            if (
                any(signal.scale <= 0)
                or not all(low < 0)
                or not all((high > 0) | ((high == 0) & (not asked.strict)))
            ):
                raise RefusalError("changes activations that are signs already")
            return result
        if signal.kind == "pixels":
            self._begin(node, signal)
            self._closed.append(self._thermometer(signal, asked.strict))
        else:
            self._closed.append(self._layer(signal, strict))
        return replace(result, place=len(self._closed))

    def _layer(self, signal: Signal, strict: NDArray[np.bool_]) -> Layer | StreamLayer:
        """The layer whose signs are those of ``signal``, sums or a stream."""
        if signal.averaged or signal.repeated:
            raise RefusalError("takes signs of a shortcut; only those of the stream itself can be expressed")
        if signal.negative is not None:  # a sum of either side can reach the threshold
            signal = signal.branched()
        products = signal.products if signal.stream is None else signal.stream.products
        assert products is not None
        self._check_order(products)
        is_matrix = products.dense and signal.stream is None
        kind, stem = (BinaryDense, "dense") if is_matrix else ((Conv2d, StreamLayer), "conv")
        name = f"{stem}{sum(isinstance(layer, kind) for layer in self._closed) + 1}"
        if signal.stream is not None:
            return StreamLayer(name, signal.stream, signal.scale, signal.offset, strict)
        return plain_layer(name, products, *fold(signal.scale, signal.offset, strict))

    def _begin(self, node: Node, signal: Signal) -> None:
        """Give ``signal`` to a layer; no other may take it."""
        if signal.place != self._begun:
            raise RefusalError(
                f"takes '{node.inputs[node.place]}', which another layer takes already; only a real-valued stream can "
                "branch, into the signs for a convolution and the shortcut around it"
            )
        self._begun += 1

    def _check_order(self, products: Products) -> None:
        if products.place != len(self._closed):
            raise RefusalError(
                "is a second sign of the same values; a layer of the format has one threshold a channel"
            )
