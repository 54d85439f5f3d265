"""Turns a QONNX graph into layers; :mod:`bnn_perception.importers.qonnx` says which graphs and how."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers import ImporterError
from bnn_perception.importers.qonnx_layers import (
    StreamLayer,
    floats,
    fold,
    output_layer,
    plain_layer,
    pool_after_sign,
    stream_units,
)
from bnn_perception.importers.qonnx_signal import Exact, Products, Signal, constant, exact
from bnn_perception.importers.quantizers import QUANT_DOMAINS, RefusalError, evaluate_node
from bnn_perception.model import (
    MAX_CHANNELS,
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    InputConv2d,
    Layer,
    ModelError,
    OutputBits,
    Pool,
    Thermometer,
)

if TYPE_CHECKING:
    import onnx

#: Types of a tensor's numbers (``onnx.TensorProto``): none stated; float32, float16, float64 and bfloat16.
UNDEFINED, FLOATS = 0, (1, 10, 11, 16)
#: No graph that takes pixels in 0..1 needs numbers as large as this for them.
LARGE_PIXEL = 16
#: What may follow the logits and chooses the same class as they do.
TAIL = ("Softmax", "LogSoftmax", "ArgMax", "TopK", "Identity")
#: What may stand between a Clip and the signs that are taken of its values.
BEFORE_SIGNS = (
    *("BipolarQuant", "IntQuant", "MultiThreshold", "Quant", "Sign"),
    *("Add", "BatchNormalization", "Clip", "Div", "MaxPool", "Mul", "Neg", "Sub"),
    *("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose"),
)
#: Stands for the limit that a Clip does not have: beyond every float64.
UNLIMITED = Fraction(2) ** 1024
#: What a graph with damaged attributes or constants can raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Walk:
    """Turns a graph into layers.

    Attributes:
        image: name of the graph's input.
        image_axes, image_sizes: of it, after the batch.
        image_dtype: of its numbers.
        batch: how many images the graph takes at once; 1 where it leaves that open.
        pixel_maximum: what the graph takes for a pixel of 255; where it is a guess, after :meth:`run`.
        logits: name of the tensor that the model's logits are.
        layers: of the model, after :meth:`run`.
        outputs: how many logits there are, after :meth:`run`.
        units: of each layer with a stream: how many of its integers are a value of 1, in each channel; after
            :meth:`run`.
    """

    def __init__(self, model: onnx.ModelProto, pixel_maximum: float | None) -> None:
        from onnx import helper, numpy_helper

        self.graph = model.graph
        self.opset = next(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 13
        )
        self.constants: dict[str, NDArray[Any]] = {}
        for tensor in self.graph.initializer:
            try:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
            except MALFORMED as error:
                raise ImporterError(f"the constant '{tensor.name}' cannot be read: {error}") from None
        inputs = [value for value in self.graph.input if value.name not in self.constants]
        outputs = sorted({self._before_tail(output.name) for output in self.graph.output})
        if len(inputs) != 1 or len(outputs) != 1:
            raise ImporterError(
                f"the graph has {len(inputs)} inputs and {len(outputs)} outputs; it must have one each"
            )
        self.image, self.logits = inputs[0].name, outputs[0]
        shape = [dimension.dim_value for dimension in inputs[0].type.tensor_type.shape.dim]
        integers = self._takes_integers(inputs[0])
        self._guesses = pixel_maximum is None and not integers
        self.pixel_maximum = pixel_maximum if pixel_maximum is not None else 255.0 if integers else 1.0
        # The signal that a node takes, and its name; the others are kept for nodes to come.
        self._tensor, self._signal = self.image, self._image(shape)
        self._signals = {self._tensor: self._signal}
        self._nodes = self._needed()
        self._uses = Counter(
            name for node in self._nodes if node.op_type != "Shape" for name in dict.fromkeys(node.input)
        )
        self._begun = 0  # layers that have their products
        self._closed: list[Layer | StreamLayer] = []  # those that have their signs too
        self.image_axes, self.image_sizes = self._signal.axes, self._signal.sizes
        self.image_dtype = helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type or FLOATS[0])
        self.batch = max(shape[0], 1)
        self.layers: list[Layer] = []
        self.outputs = 0
        self.units: dict[str, Exact] = {}

    def _image(self, shape: list[int]) -> Signal:
        axes = "CHW" if len(shape) == 4 and shape[1] in (1, 3) else "HWC"
        sizes = dict(zip(axes, shape[1:]))
        if len(shape) != 4 or sizes["C"] not in (1, 3) or min(sizes.values()) < 1:
            raise ImporterError(
                f"input '{self.image}' has shape {shape} (0: any); expected is (N, channels, height, width) or "
                "(N, height, width, channels) with 1 or 3 channels and a fixed height and width"
            )
        scale = np.full(sizes["C"], Fraction(self.pixel_maximum) / 255, dtype=object)
        offset = np.full(sizes["C"], Fraction(0), dtype=object)
        return Signal("pixels", axes, sizes, scale, offset, levels=np.arange(256, dtype=np.int16))

    def _before_tail(self, name: str) -> str:
        """The tensor of which ``name`` is the scores, or the class that has the highest."""
        producers = {output: node for node in self.graph.node for output in node.output}
        while name in producers and _keeps_class(producers[name]):
            name = producers.pop(name).input[0]
        return name

    def _needed(self) -> list[onnx.NodeProto]:
        """The nodes that the logits depend on, in their order."""
        needed, names = [], {self.logits}
        for node in reversed(self.graph.node):
            if names.intersection(node.output):
                needed.append(node)
                names.update(filter(None, node.input))
        return needed[::-1]

    def _takes_integers(self, image: onnx.ValueInfoProto) -> bool:
        """Whether the image is of integers, by its type or by the annotation that QONNX tools write."""
        annotated = any(
            entry.key == "finn_datatype" and entry.value == "UINT8"
            for annotation in self.graph.quantization_annotation
            if annotation.tensor_name == image.name
            for entry in annotation.quant_parameter_tensor_names
        )
        return annotated or image.type.tensor_type.elem_type not in (UNDEFINED, *FLOATS)

    def _settle_pixels(self, values: Exact) -> None:
        """Guess, where nobody said it, whether the graph takes pixels in 0..1 or in 0..255.

        In 0..255 where what it does first makes sense of no other: it divides them by :data:`LARGE_PIXEL` or more,
        or tells pixels apart beyond it.

        Args:
            values: (C,) what the pixels, as they have become, are compared with.
        """
        signal = self._signal
        if not self._guesses or signal.kind != "pixels" or any(signal.scale == 0):
            return
        self._guesses = False
        factors = signal.scale * 255
        if any(abs(factors) * LARGE_PIXEL <= 1) or any(abs((values - signal.offset) / factors) > LARGE_PIXEL):
            self.pixel_maximum = 255.0
            self._signal = replace(signal, scale=factors)

    # -- the walk

    def run(self) -> None:
        for node in self._nodes:
            where = f"node '{node.name or node.output[0]}' ({node.op_type})"
            try:
                self._step(node)
            except (RefusalError, ModelError) as error:
                raise ImporterError(f"{where}: {error}") from None
            except MALFORMED as error:
                raise ImporterError(f"{where}: its attributes or constants are malformed: {error}") from None
        if self.logits not in self._signals:
            raise ImporterError(f"the output '{self.logits}' is not computed from the image")
        try:
            self._finish(self._signals[self.logits])
            self.units = stream_units(self._closed)
        except OverflowError:
            raise ImporterError("a scale or an offset is too large for float64") from None
        self.layers = [
            layer.fixed(self.units[layer.name]) if isinstance(layer, StreamLayer) else layer
            for layer in self._closed
        ]

    def _step(self, node: onnx.NodeProto) -> None:
        if node.domain not in ("", "ai.onnx", *QUANT_DOMAINS):
            raise RefusalError(f"its domain '{node.domain}' is unknown")
        for name in filter(None, node.output):
            if name in self.constants or name in self._signals:
                raise RefusalError(f"gives '{name}', which is there already")
        used = [name for name in node.input if name]
        if all(name in self.constants for name in used):
            values = [self.constants.get(name) for name in node.input]
            self.constants.update(zip(node.output, evaluate_node(node, values, self.opset)))
            return
        for name in used:
            if name not in self.constants and name not in self._signals:
                raise RefusalError(f"takes '{name}', which no node before it gives")
        signals = [name for name in used if name in self._signals]
        self._tensor, self._signal = signals[0], self._signals[signals[0]]
        if node.op_type == "Shape":
            part = slice(_attribute(node, "start", 0), _attribute(node, "end", None))
            self.constants[node.output[0]] = np.asarray(self._signal.shape[part], dtype=np.int64)
            return
        if node.op_type not in _HANDLERS:
            raise RefusalError("the model format has no such operation")
        if len(signals) > 1 and node.op_type not in ("Add", "Sum", "Concat"):
            raise RefusalError("combines two activations; only Add and Concat can")
        if self._signal.pad is not None and node.op_type != "Conv":
            raise RefusalError("stands between a Pad and its Conv")
        limited = any(self._signals[name].limits is not None for name in signals)
        if limited and (len(signals) > 1 or node.op_type not in BEFORE_SIGNS):
            raise RefusalError("takes values that a Clip has limited, of which only signs can be expressed")
        result = _HANDLERS[node.op_type](self, node)
        if result.kind == "sums" and result.is_map and self._uses[node.output[0]] > 1:
            if result.limits is not None:
                raise RefusalError(
                    "has limited values that two nodes take; only one sign of them can be expressed"
                )
            result = result.branched()
        self._signals[node.output[0]] = result

    def _finish(self, signal: Signal) -> None:
        """The last layer."""
        last = self._closed[-1] if self._closed else None
        if signal.limits is not None:
            raise ImporterError(f"the output '{self.logits}' is limited by a Clip")
        if signal.kind == "sums" and signal.products is not None and signal.products.dense:
            self._check_order(signal.products)
            self._closed.append(output_layer(signal.products, signal.scale, signal.offset))
        elif signal.kind == "signs" and isinstance(last, BinaryDense) and signal.place == len(self._closed):
            scale, bias = floats(2 * signal.scale), floats(signal.offset - signal.scale)
            shape = last.in_shape, last.out_features, last.weights, last.threshold, last.flip
            self._closed[-1] = OutputBits("output", *shape, scale, bias)
        else:
            raise ImporterError(f"the output '{self.logits}' does not come from a Gemm or MatMul")
        self.outputs = len(signal.scale)

    def _constant(self, node: onnx.NodeProto, index: int) -> NDArray[Any]:
        if index >= len(node.input) or node.input[index] not in self.constants:
            raise RefusalError(f"input {index + 1} is missing or not a constant")
        return self.constants[node.input[index]]

    # -- affine maps

    def _per_channel(self, values: NDArray[Any]) -> Exact:
        """A constant that meets the signal, as one number a channel; a new size of L spreads the signal over it."""
        signal = self._signal
        if values.size == 1:
            return np.full(len(signal.scale), exact(values.reshape(()))[()], dtype=object)
        mismatch = f"a constant of shape {list(values.shape)} on an activation of {list(signal.shape)}"
        if signal.flat:
            if (
                values.size != signal.shape[1]
                or values.shape[-1] != values.size
                or len(signal.scale) != values.size
            ):
                raise RefusalError(f"{mismatch} is not one number a channel")
            return exact(values.reshape(-1))
        if values.ndim > len(signal.shape):
            raise RefusalError(mismatch)
        shape = (1,) * (len(signal.shape) - values.ndim) + values.shape
        sizes = dict(zip("N" + signal.axes, shape))
        if sizes["N"] != 1 or sizes["H"] != 1 or sizes["W"] != 1:
            raise RefusalError(f"{mismatch} is not one number a channel")
        levels = sizes.get("L", 1)
        if sizes["C"] not in (1, signal.sizes["C"]) or signal.sizes.get("L", 1) not in (1, levels):
            raise RefusalError(mismatch)
        channels = values.reshape(sizes["C"], levels)  # where there is an L, it stands behind C
        if levels > signal.sizes.get("L", 1):
            self._signal = replace(
                signal,
                sizes={**signal.sizes, "L": levels},
                scale=np.repeat(signal.scale, levels),
                offset=np.repeat(signal.offset, levels),
            )
        return exact(np.broadcast_to(channels, (signal.sizes["C"], levels)).reshape(-1))

    def _other(self, node: onnx.NodeProto) -> Exact:
        """The constant of a node that combines it with the signal."""
        return self._per_channel(self._constant(node, 1 if node.input[0] == self._tensor else 0))

    def add(self, node: onnx.NodeProto) -> Signal:
        if len(node.input) != 2:
            raise RefusalError(f"adds {len(node.input)} tensors; only two can be")
        first, second = (self._signals.get(name) for name in node.input)
        if first is not None and second is not None:
            if first.pad is not None or second.pad is not None:
                raise RefusalError("stands between a Pad and its Conv")
            return first.plus(second)
        other = self._other(node)
        return self._signal.shifted(other)

    def sub(self, node: onnx.NodeProto) -> Signal:
        other = self._other(node)
        if node.input[0] == self._tensor:
            return self._signal.shifted(-other)
        return self._signal.scaled(0 * other - 1).shifted(other)

    def mul(self, node: onnx.NodeProto) -> Signal:
        other = self._other(node)
        return self._signal.scaled(other)

    def div(self, node: onnx.NodeProto) -> Signal:
        if node.input[0] != self._tensor:
            raise RefusalError("divides by the activation")
        other = self._other(node)
        if np.any(other == 0):
            raise RefusalError("divides by zero")
        return self._signal.scaled(1 / other)

    def negate(self, node: onnx.NodeProto) -> Signal:
        return self._signal.scaled(constant(-1, len(self._signal.scale)))

    def batch_norm(self, node: onnx.NodeProto) -> Signal:
        if _attribute(node, "training_mode", 0):
            raise RefusalError("is in training mode; export the net in evaluation mode")
        if not self._signal.flat and self._signal.axes[0] != "C":
            raise RefusalError("normalizes along another axis than the channels")
        gamma, beta, mean, variance = (self._constant(node, index).reshape(-1) for index in (1, 2, 3, 4))
        if not len(gamma) == len(beta) == len(mean) == len(variance) == len(self._signal.scale):
            raise RefusalError(f"has {len(gamma)} channels, its input {len(self._signal.scale)}")
        epsilon = _attribute(node, "epsilon", 1e-5)
        if np.any(variance.astype(np.float64) + epsilon <= 0):
            raise RefusalError("a variance is not positive")
        factor = exact(gamma) / exact(np.sqrt(variance.astype(np.float64) + epsilon))
        return self._signal.shifted(-exact(mean)).scaled(factor).shifted(exact(beta))

    # -- streams

    def clip(self, node: onnx.NodeProto) -> Signal:
        """Hardtanh, which nets are trained with, before a sign; or limits that no value reaches."""
        count = len(self._signal.scale)
        limits = []
        for index, name, unlimited in ((1, "min", -UNLIMITED), (2, "max", UNLIMITED)):
            if self.opset < 11:
                value = _attribute(node, name, None)
            else:
                given = len(node.input) > index and node.input[index]
                value = self._constant(node, index).item() if given else None
            limits.append(constant(unlimited if value is None else exact(value).item(), count))
        self._settle_pixels(limits[1])
        return self._signal.clipped(*limits)

    def relu(self, node: onnx.NodeProto) -> Signal:
        return self._signal.bent(constant(0, len(self._signal.scale)))

    def leaky_relu(self, node: onnx.NodeProto) -> Signal:
        slope = Fraction(_attribute(node, "alpha", 0.01))
        return self._signal.bent(constant(slope, len(self._signal.scale)))

    def prelu(self, node: onnx.NodeProto) -> Signal:
        if node.input[0] != self._tensor:
            raise RefusalError("takes the activation as its slope")
        slope = self._other(node)
        return self._signal.bent(slope)

    def average_pool(self, node: onnx.NodeProto) -> Signal:
        signal = self._stream()
        kernel, strides = _attribute(node, "kernel_shape", []), _attribute(node, "strides", [1, 1])
        if list(kernel) != [2, 2] or list(strides) != [2, 2] or not _is_plain(node):
            raise RefusalError("only windows of 2x2 with stride 2, without padding, can be expressed")
        if _attribute(node, "ceil_mode", 0) and any(signal.sizes[axis] % 2 for axis in "HW"):
            raise RefusalError("its windows reach over the edge (ceil_mode)")
        if signal.averaged:
            raise RefusalError("averages a second time")
        sizes = {**signal.sizes, "H": signal.sizes["H"] // 2, "W": signal.sizes["W"] // 2}
        if sizes["H"] < 1 or sizes["W"] < 1:
            raise RefusalError("its window is larger than its input")
        return replace(signal, sizes=sizes, averaged=True)

    def concat(self, node: onnx.NodeProto) -> Signal:
        signal = self._stream()
        if any(self._signals.get(name) is not signal for name in node.input):
            raise RefusalError(
                "joins different tensors; only one tensor with itself, along its channels, can be"
            )
        if _attribute(node, "axis", None) not in (1, -3):
            raise RefusalError("does not join channels")
        return self._repeat(signal, len(node.input))

    def tile(self, node: onnx.NodeProto) -> Signal:
        signal = self._stream()
        repeats = [int(times) for times in self._constant(node, 1).reshape(-1)]
        if len(repeats) != 4 or [*repeats[:1], *repeats[2:]] != [1, 1, 1] or repeats[1] < 1:
            raise RefusalError(f"repeats {repeats}; only channels can be repeated")
        return self._repeat(signal, repeats[1])

    def _stream(self) -> Signal:
        signal = self._signal
        if signal.kind != "stream" or not signal.is_map:
            raise RefusalError(
                f"takes {signal.kind}; only the shortcut of a real-valued stream, (N, channels, height, width), can "
                "be averaged or repeated"
            )
        return signal

    def _repeat(self, signal: Signal, times: int) -> Signal:
        if times * signal.sizes["C"] > MAX_CHANNELS:
            raise RefusalError(f"gives {times * signal.sizes['C']} channels; there can be {MAX_CHANNELS}")
        return replace(
            signal,
            sizes={**signal.sizes, "C": times * signal.sizes["C"]},
            scale=np.tile(signal.scale, times),
            offset=np.tile(signal.offset, times),
            repeated=signal.repeated or times > 1,
        )

    # -- signs

    def bipolar(self, node: onnx.NodeProto) -> Signal:
        magnitude = self._per_channel(self._constant(node, 1))
        if any(value <= 0 for value in magnitude):
            raise RefusalError("its scale is not positive")
        return self._threshold(0 * magnitude, magnitude, 0 * magnitude)

    def sign(self, node: onnx.NodeProto) -> Signal:
        if _can_be_zero(self._signal):
            raise RefusalError("its input can be 0, where Sign gives 0; use a quantizer that gives +1 or -1")
        one = constant(1, len(self._signal.scale))
        return self._threshold(0 * one, one, 0 * one)

    def multi_threshold(self, node: onnx.NodeProto) -> Signal:
        thresholds = self._constant(node, 1)
        if thresholds.ndim != 2 or thresholds.shape[1] != 1:
            raise RefusalError(
                f"has thresholds of shape {list(thresholds.shape)}; one a channel can be expressed"
            )
        if not self._signal.flat and self._signal.axes != (
            "HWC" if _attribute(node, "data_layout", b"") == b"NHWC" else "CHW"
        ):
            raise RefusalError("its data layout is another one than its input's")
        if len(thresholds) not in (1, len(self._signal.scale)):
            raise RefusalError(f"has {len(thresholds)} thresholds for {len(self._signal.scale)} channels")
        at = exact(np.broadcast_to(thresholds[:, 0], len(self._signal.scale)))
        step = Fraction(_attribute(node, "out_scale", 1.0))
        if step <= 0:
            raise RefusalError("its out_scale is not positive")
        low = np.full(len(at), Fraction(_attribute(node, "out_bias", 0.0)), dtype=object)
        return self._threshold(at, low * 0 + step / 2, low + step / 2)

    def quant(self, node: onnx.NodeProto) -> Signal:
        scale, zero_point, bit_width = (self._constant(node, index) for index in (1, 2, 3))
        signed, narrow = bool(_attribute(node, "signed", 1)), bool(_attribute(node, "narrow", 0))
        mode = _attribute(node, "rounding_mode", b"ROUND")
        if scale.size != 1 or float(scale.item()) <= 0 or np.any(zero_point != 0) or mode.upper() != b"ROUND":
            raise RefusalError(
                "takes one positive scale, zero point 0 and rounding mode ROUND to be expressed"
            )
        step = Fraction(float(scale.item()))
        width = float(bit_width.item()) if bit_width.size == 1 else math.nan
        if self._signal.kind == "pixels" and width in range(2, 9):
            return self._quantize_pixels(step, int(width), signed, narrow)
        if width != 1:
            raise RefusalError(
                f"quantizes to {width:g} bits; activations must have 1 bit (the image up to 8)"
            )
        half = constant(step / 2, len(self._signal.scale))
        if signed:  # a sign, see quantize()
            return self._threshold(0 * half, 2 * half, 0 * half)
        if narrow:
            raise RefusalError("is narrow, unsigned and of 1 bit, which leaves no number but 0")
        # 0 and 1, times the scale. ROUND rounds a half to even, here to 0.
        return self._threshold(half, half, half, strict=True)

    def _quantize_pixels(self, step: Fraction, width: int, signed: bool, narrow: bool) -> Signal:
        low = -(2 ** (width - 1)) + narrow if signed else 0
        high = 2 ** (width - 1) - 1 if signed else 2**width - 1 - narrow
        self._settle_pixels(constant(high * step, len(self._signal.scale)))
        signal = self._signal
        if any(offset != signal.offset[0] for offset in signal.offset):
            raise RefusalError("quantizes channels of different offsets")
        scale, offset = signal.one_scale() / step, Fraction(signal.offset[0]) / step
        assert signal.levels is not None
        levels = []
        for level in signal.levels.tolist():
            value = scale * level + offset
            # The graph computes in float32; closer to a half than this it may round either way.
            if low < value < high and abs(abs(value - math.floor(value)) - Fraction(1, 2)) < Fraction(
                1, 10**4
            ):
                raise RefusalError(f"a pixel of level {level} lies on the border of two quantization steps")
            levels.append(min(max(math.floor(value + Fraction(1, 2)), low), high))
        ones = np.full(len(signal.scale), step, dtype=object)
        return replace(signal, levels=np.asarray(levels, dtype=np.int16), scale=ones, offset=0 * ones)

    def _threshold(self, at: Exact, scale: Exact, offset: Exact, strict: bool = False) -> Signal:
        """Close the layer: signs of ``value - at``, which count as ``scale * sign + offset`` from here on.

        Args:
            strict: whether +1 takes ``value > at`` instead of ``value >= at``.
        """
        self._settle_pixels(at)
        signal = self._signal.shifted(-at)
        if signal.limits is not None:
            low, high = signal.limits
            if not all((low <= 0) & (high > 0) if strict else (low < 0) & (high >= 0)):
                raise RefusalError("takes signs of values that a Clip has left on one side of its threshold")
            signal = replace(signal, limits=None)
        result = Signal("signs", signal.axes, signal.sizes, scale, offset, signal.place, signal.flat)
        if signal.kind == "signs":
            high, low = signal.offset + abs(signal.scale), signal.offset - abs(signal.scale)
            if (
                any(signal.scale <= 0)
                or not all(low < 0)
                or not all((high > 0) | ((high == 0) & (not strict)))
            ):
                raise RefusalError("changes activations that are signs already")
            return result
        if signal.kind == "pixels":
            self._begin(signal)
            self._closed.append(self._thermometer(signal, *fold(signal.scale, signal.offset, strict)))
        else:
            self._closed.append(self._layer(signal, strict))
        return replace(result, place=len(self._closed))

    def _thermometer(
        self, signal: Signal, threshold: NDArray[np.int32], flip: NDArray[np.bool_]
    ) -> Thermometer:
        assert signal.levels is not None
        if signal.axes not in ("CHW", "CLHW") or np.any(flip):
            raise RefusalError("a sign of pixels takes channels first and a positive scale")
        if np.any(np.diff(signal.levels) < 0):
            raise RefusalError("a sign of pixels whose levels do not ascend")
        pixels = np.searchsorted(signal.levels, threshold)  # the first pixel that reaches it
        if np.any(pixels > 255):
            raise RefusalError("no pixel reaches a threshold")
        channels, levels = signal.sizes["C"], signal.sizes.get("L", 1)
        thresholds = pixels.reshape(channels, levels).astype(np.uint8)
        return Thermometer("thermometer", channels, levels, thresholds)

    def _layer(self, signal: Signal, strict: bool) -> Layer | StreamLayer:
        """The layer whose signs are those of ``signal``, sums or a stream."""
        if signal.averaged or signal.repeated:
            raise RefusalError("takes signs of a shortcut; only those of the stream itself can be expressed")
        if signal.negative is not None:  # a sum of either side can reach the threshold
            signal = signal.branched()
        products = signal.products if signal.stream is None else signal.stream.products
        assert products is not None
        self._check_order(products)
        kind, stem = (BinaryDense, "dense") if products.dense else ((Conv2d, StreamLayer), "conv")
        name = f"{stem}{sum(isinstance(layer, kind) for layer in self._closed) + 1}"
        if signal.stream is not None:
            return StreamLayer(name, signal.stream, signal.scale, signal.offset, strict)
        return plain_layer(name, products, *fold(signal.scale, signal.offset, strict))

    def _begin(self, signal: Signal) -> int:
        """The place of the layer that takes ``signal``; no other may take it."""
        if signal.place != self._begun:
            raise RefusalError(
                f"takes '{self._tensor}', which another layer takes already; only a real-valued stream can branch, "
                "into the signs for a convolution and the shortcut around it"
            )
        self._begun += 1
        return signal.place

    def _check_order(self, products: Products) -> None:
        if products.place != len(self._closed):
            raise RefusalError(
                "is a second sign of the same values; a layer of the format has one threshold a channel"
            )

    # -- products

    def _weights(self, values: NDArray[Any]) -> tuple[NDArray[np.int8], Exact]:
        """(out, ...) floats of one magnitude an output -> ±1 and the magnitudes."""
        magnitude = np.abs(values).reshape(len(values), -1)
        if (
            np.any(magnitude != magnitude[:, :1])
            or np.any(magnitude == 0)
            or not np.all(np.isfinite(magnitude))
        ):
            raise RefusalError(
                "its weights are not +c and -c with one c an output; only binary weights can be expressed"
            )
        return np.where(values > 0, 1, -1).astype(np.int8), exact(magnitude[:, 0])

    def _sums(self, products: Products, magnitude: Exact, bias: Exact) -> Signal:
        """The signal of ``magnitude * sum(weight * value) + bias``."""
        signal = self._signal
        scale = signal.one_scale()
        # weights * (scale * integer + offset): the offsets add up to a constant, the same at the border, where
        # `outside` stands for the integer whose value is the padding.
        taps = products.weights.astype(object).sum(axis=(1, 2)) if not products.dense else None
        if taps is None:
            if any(offset != signal.offset[0] for offset in signal.offset):
                raise RefusalError("its input channels have different offsets")
            total = (
                products.weights.reshape(len(products.weights), -1).astype(object).sum(axis=1)
                * signal.offset[0]
            )
        else:
            total = (taps * signal.offset).sum(axis=1)
        sizes = {"C": len(magnitude), "H": 1, "W": 1}
        return replace(
            signal,
            kind="sums",
            axes="CHW",
            sizes=sizes,
            scale=magnitude * scale,
            offset=magnitude * total + bias,
            flat=products.dense,
            levels=None,
            products=products,
            pad=None,
        )

    def conv(self, node: onnx.NodeProto) -> Signal:
        self._settle_pixels(0 * self._signal.scale)
        signal = self._signal
        weights, magnitude = self._weights(self._constant(node, 1))
        if weights.ndim != 4 or signal.flat or signal.axes != "CHW":
            raise RefusalError("is not a two-dimensional convolution of (N, channels, height, width)")
        if signal.kind in ("sums", "stream"):
            raise RefusalError("its input is not binary; a quantizer must stand before it")
        if _attribute(node, "group", 1) != 1 or any(d != 1 for d in _attribute(node, "dilations", [1, 1])):
            raise RefusalError("has groups or dilations; the format supports group=1 and dilations=1")
        if weights.shape[1] != signal.sizes["C"]:
            raise RefusalError(f"takes {weights.shape[1]} channels, its input has {signal.sizes['C']}")
        stride = tuple(_attribute(node, "strides", [1, 1]))
        padding, value = self._padding(self._pads(node, weights.shape[2:], stride))
        outside, levels, offset = self._outside(padding, value)
        bias = exact(self._constant(node, 2)) if len(node.input) > 2 and node.input[2] else 0 * magnitude
        place = self._begin(signal)
        products = Products(
            weights.transpose(0, 2, 3, 1), False, place, stride, padding, outside, None, levels
        )
        self._signal = replace(signal, offset=offset)
        result = self._sums(products, magnitude, bias)
        height, width = (
            (signal.sizes[axis] + 2 * pad - kernel) // step + 1
            for axis, pad, kernel, step in zip("HW", padding, weights.shape[2:], stride)
        )
        if height < 1 or width < 1:
            raise RefusalError("its kernel is larger than its input")
        return replace(result, sizes={**result.sizes, "H": height, "W": width})

    def _pads(self, node: onnx.NodeProto, kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
        """What a Conv adds: top, left, bottom, right."""
        auto_pad = _attribute(node, "auto_pad", b"NOTSET")
        if auto_pad == b"NOTSET":
            return list(_attribute(node, "pads", [0, 0, 0, 0]))
        if auto_pad == b"VALID":
            return [0, 0, 0, 0]
        before = self._signal.pad[:2] if self._signal.pad is not None else (0, 0)
        sizes = [self._signal.sizes[axis] + 2 * pad for axis, pad in zip("HW", before)]
        # SAME: as many windows as steps begin in the input
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, stride)]
        less, more = [total // 2 for total in totals], [-(-total // 2) for total in totals]
        return less + more if auto_pad == b"SAME_UPPER" else more + less

    def _padding(self, pads: Sequence[int]) -> tuple[tuple[int, int], Fraction]:
        """What a Pad before and the Conv itself add: (y, x) and the value there."""
        if list(pads[:2]) != list(pads[2:]):
            raise RefusalError(f"pads {list(pads)} are not symmetric")
        if self._signal.pad is None:
            return (pads[0], pads[1]), Fraction(0)
        if any(pads):
            raise RefusalError("pads what a Pad has padded already")
        return self._signal.pad[:2], self._signal.pad[2]

    def _outside(
        self, padding: tuple[int, int], value: Fraction
    ) -> tuple[int, NDArray[np.int16] | None, Exact]:
        """The integer whose value is the padding; of pixels, the levels and offsets that make it 0."""
        signal = self._signal
        if padding == (0, 0):
            return 0, signal.levels, signal.offset
        integers = {(value - offset) / signal.one_scale() for offset in signal.offset}
        outside = integers.pop()
        if signal.levels is None:
            if integers or outside not in (-1, 0):
                raise RefusalError(
                    f"pads with {float(value):g}; only the values of -1 and of 0 can be expressed"
                )
            return int(outside), None, signal.offset
        shifted = signal.levels.astype(np.int64) - int(outside)
        fits = (shifted.min() >= 0 and shifted.max() <= 255) or (
            shifted.min() >= -128 and shifted.max() <= 127
        )
        if integers or outside.denominator != 1 or not fits:
            raise RefusalError(
                f"pads pixels with {float(value):g}, which is no level that 8-bit integers can count as 0"
            )
        offset = signal.offset + signal.one_scale() * outside
        return 0, shifted.astype(np.int16), offset

    def pad(self, node: onnx.NodeProto) -> Signal:
        signal = self._signal
        if self.opset < 11:
            pads, value = list(_attribute(node, "pads", [])), np.asarray(_attribute(node, "value", 0.0))
        else:
            pads = [int(p) for p in self._constant(node, 1).reshape(-1)]
            value = self._constant(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(())
        if _attribute(node, "mode", b"constant") != b"constant" or (len(node.input) > 3 and node.input[3]):
            raise RefusalError("only constant padding of all axes can be expressed")
        if not any(pads):
            return signal
        if (
            len(pads) != 8
            or signal.axes != "CHW"
            or any(pads[i] for i in (0, 1, 4, 5))
            or pads[2:4] != pads[6:8]
        ):
            raise RefusalError(f"pads {pads} are not symmetric in height and width alone")
        if min(pads) < 0 or signal.kind in ("sums", "stream"):
            raise RefusalError("crops, or pads what is not binary")
        return replace(signal, pad=(pads[2], pads[3], Fraction(float(value.item()))))

    def gemm(self, node: onnx.NodeProto) -> Signal:
        if _attribute(node, "transA", 0):
            raise RefusalError("transposes its input")
        matrix = self._constant(node, 1)
        if not _attribute(node, "transB", 0):
            matrix = matrix.T
        bias = self._constant(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        return self._dense(matrix * _attribute(node, "alpha", 1.0), bias * _attribute(node, "beta", 1.0))

    def matmul(self, node: onnx.NodeProto) -> Signal:
        if node.input[0] != self._tensor:
            raise RefusalError("multiplies from the left")
        return self._dense(self._constant(node, 1).T, np.zeros(1))

    def _dense(self, matrix: NDArray[Any], bias: NDArray[Any]) -> Signal:
        signal = self._signal
        if signal.kind != "signs":
            raise RefusalError("its input is not binary; a quantizer must stand before it")
        if matrix.ndim != 2 or not signal.flat or matrix.shape[1] != signal.shape[1]:
            raise RefusalError(f"a matrix of {list(matrix.T.shape)} on an activation of {list(signal.shape)}")
        weights, magnitude = self._weights(matrix)
        ordered = weights.reshape(len(weights), *(signal.sizes[axis] for axis in signal.axes))
        ordered = ordered.transpose(0, *(1 + signal.axes.index(axis) for axis in "HWC"))
        products = Products(ordered, True, self._begin(signal))
        return self._sums(products, magnitude, exact(np.broadcast_to(bias.reshape(-1), len(weights))))

    def max_pool(self, node: onnx.NodeProto) -> Signal:
        signal = self._signal
        kernel, strides = _attribute(node, "kernel_shape", []), _attribute(node, "strides", [1, 1])
        square = len(kernel) == 2 and kernel[0] == kernel[1] and strides[0] == strides[1]
        if not square or not _is_plain(node):
            raise RefusalError("only square windows without padding and dilation can be expressed")
        if signal.flat or signal.axes != "CHW":
            raise RefusalError("does not pool height and width")
        pool = Pool(kernel[0], strides[0])
        if _attribute(node, "ceil_mode", 0) and any(
            (signal.sizes[a] - pool.size) % pool.stride for a in "HW"
        ):
            raise RefusalError("its windows reach over the edge (ceil_mode)")
        sizes = {**signal.sizes, "H": pool.length(signal.sizes["H"]), "W": pool.length(signal.sizes["W"])}
        if sizes["H"] < 1 or sizes["W"] < 1:
            raise RefusalError("its window is larger than its input")
        if signal.kind == "sums" and signal.products is not None and signal.products.pool is None:
            return signal.pooled(pool, sizes)
        last = self._closed[-1] if self._closed else None
        if signal.kind == "signs" and self._uses[self._tensor] > 1:
            raise RefusalError("pools signs that another node takes too")
        if signal.kind == "signs" and isinstance(last, (InputConv2d, BinaryConv2d)) and last.pool is None:
            signal.one_scale()  # positive, so that the largest value is +1
            self._closed[-1] = pool_after_sign(last, pool)
            return replace(signal, sizes=sizes)
        raise RefusalError("pools what is not the output of a convolution, or was pooled already")

    # -- no arithmetic

    def keep(self, node: onnx.NodeProto) -> Signal:
        return self._signal

    def cast(self, node: onnx.NodeProto) -> Signal:
        if _attribute(node, "to", 1) not in FLOATS:
            raise RefusalError("casts to integers")
        return self._signal

    def dropout(self, node: onnx.NodeProto) -> Signal:
        if len(node.input) > 2 and node.input[2] and np.any(self._constant(node, 2)):
            raise RefusalError("is in training mode; export the net in evaluation mode")
        return self._signal

    def transpose(self, node: onnx.NodeProto) -> Signal:
        signal = self._signal
        permutation = _attribute(node, "perm", list(range(len(signal.shape)))[::-1])
        if signal.flat or permutation[0] != 0 or "L" in signal.axes:
            raise RefusalError("moves the batch axis, or transposes a matrix of activations")
        return replace(signal, axes="".join(signal.axes[axis - 1] for axis in permutation[1:]))

    def flatten(self, node: onnx.NodeProto) -> Signal:
        if _attribute(node, "axis", 1) not in (1, 1 - len(self._signal.shape)):
            raise RefusalError("does not flatten to (N, features)")
        return self._flat()

    def _flat(self) -> Signal:
        if "L" in self._signal.axes:
            raise RefusalError("flattens a thermometer whose levels are no channels yet")
        return replace(self._signal, flat=True)

    def squeeze(self, node: onnx.NodeProto) -> Signal:
        shape = self._signal.shape
        axes = {axis % len(shape) for axis in self._axes(node)}
        if 0 in axes or len(axes) != len(shape) - 2 or any(shape[axis] != 1 for axis in axes):
            raise RefusalError(f"squeezes axes {sorted(axes)} of {list(shape)} to what is not (N, features)")
        return self._flat()

    def reshape(self, node: onnx.NodeProto) -> Signal:
        signal = self._signal
        asked = [int(size) for size in self._constant(node, 1).reshape(-1)]
        if asked and asked[0] == self.batch:
            asked[0] = 1
        kept = [
            signal.shape[i] if size == 0 and i < len(signal.shape) else size for i, size in enumerate(asked)
        ]
        total = math.prod(signal.shape)
        if kept.count(-1) == 1:
            known = -math.prod(kept)
            kept[kept.index(-1)] = total // known if known else 0
        shape = tuple(kept)
        if shape == signal.shape:
            return signal
        if shape == (1, total):
            return self._flat()
        if signal.axes == "CLHW" and shape == (1, signal.shape[1] * signal.shape[2], *signal.shape[3:]):
            return replace(signal, axes="CHW", sizes={"C": shape[1], "H": shape[2], "W": shape[3]})
        raise RefusalError(f"reshapes {list(signal.shape)} to {asked}")

    def _axes(self, node: onnx.NodeProto) -> list[int]:
        """Of Squeeze and Unsqueeze: an input since opset 13, before that an attribute."""
        return list(self._constant(node, 1).tolist() if len(node.input) > 1 else _attribute(node, "axes", []))

    def unsqueeze(self, node: onnx.NodeProto) -> Signal:
        if self._signal.kind != "pixels" or self._signal.axes != "CHW" or self._axes(node) != [2]:
            raise RefusalError(
                "only the axis of a thermometer's levels, behind the channels of the image, can be added"
            )
        return replace(self._signal, axes="CLHW", sizes={**self._signal.sizes, "L": 1})


_HANDLERS: dict[str, Callable[[Walk, Any], Signal]] = {
    "Add": Walk.add,
    "Sum": Walk.add,
    "Sub": Walk.sub,
    "Mul": Walk.mul,
    "Div": Walk.div,
    "Neg": Walk.negate,
    "BatchNormalization": Walk.batch_norm,
    "Relu": Walk.relu,
    "LeakyRelu": Walk.leaky_relu,
    "PRelu": Walk.prelu,
    "AveragePool": Walk.average_pool,
    "Concat": Walk.concat,
    "Tile": Walk.tile,
    "BipolarQuant": Walk.bipolar,
    "Sign": Walk.sign,
    "MultiThreshold": Walk.multi_threshold,
    "Quant": Walk.quant,
    "IntQuant": Walk.quant,
    "Conv": Walk.conv,
    "Pad": Walk.pad,
    "Gemm": Walk.gemm,
    "MatMul": Walk.matmul,
    "MaxPool": Walk.max_pool,
    "Clip": Walk.clip,
    "Identity": Walk.keep,
    "Dropout": Walk.dropout,
    "Cast": Walk.cast,
    "Transpose": Walk.transpose,
    "Flatten": Walk.flatten,
    "Squeeze": Walk.squeeze,
    "Reshape": Walk.reshape,
    "Unsqueeze": Walk.unsqueeze,
}


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _keeps_class(node: onnx.NodeProto) -> bool:
    """Whether a node, of logits (N, classes), gives their scores, their order or the class of the highest."""
    return (
        node.op_type in TAIL
        and _attribute(node, "axis", 0 if node.op_type == "ArgMax" else -1) in (1, -1)
        and _attribute(node, "largest", 1) == 1
        and _attribute(node, "select_last_index", 0) == 0
    )


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a pool has neither padding nor dilation."""
    return (
        not any(_attribute(node, "pads", [0]))
        and all(dilation == 1 for dilation in _attribute(node, "dilations", [1]))
        and _attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    )


def _can_be_zero(signal: Signal) -> bool:
    """Whether sums or a stream can be exactly 0 in some channel.

    A stream with a shortcut adds up numbers of many layers. It hits 0 where all of them lie on a coarse grid, as
    without batch norm; otherwise it practically never does, nor could the source's float32 tell.
    """
    stream = signal.stream
    products = signal.products if stream is None else stream.products
    if products is None:
        return False
    if stream is None:
        negative = signal.scale if signal.negative is None else signal.negative
        scale, offset = signal.scale, signal.offset
    else:
        scale, negative = signal.scale * stream.scale, signal.scale * stream.negative
        offset = signal.scale * stream.offset + signal.offset
    if stream is not None and stream.shortcut != "none":
        return any(max(value.denominator for value in row) <= 256 for row in zip(scale, negative, offset))
    for above, factors in ((True, scale), (False, negative)):
        for factor, shift in zip(factors, offset):
            if factor == 0:
                if shift == 0:
                    return True
                continue
            zero = -shift / factor
            if zero.denominator == 1 and (zero >= 0) == above and products.reaches(int(zero)):
                return True
    return False
