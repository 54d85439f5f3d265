"""Makes layers in the order in which the graph is walked: at its signs, and where a signal is needed as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import ImporterError, RefusalError
from bnn_perception.importers.fold.layers import (
    floats,
    fold,
    negated,
    output_layer,
    plain_layer,
    pool_after_sign,
    real_layer,
    scaled_layer,
    short,
)
from bnn_perception.importers.fold.picked import Picked, places
from bnn_perception.importers.fold.products import real_sums
from bnn_perception.importers.fold.signal import (
    Exact,
    Products,
    RealProducts,
    Signal,
    constant,
    exact,
    is_float_map,
)
from bnn_perception.importers.fold.thresholds import Quantization, Threshold, at_pixels, real_threshold
from bnn_perception.net.checks import MAX_CHANNELS, MAX_KERNEL, MAX_SIGNAL
from bnn_perception.net.layer import Layer, Pads, Pool
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    InputConv2d,
    OutputBits,
    SignConv2d,
    Thermometer,
)
from bnn_perception.net.signals import (
    Add,
    Affine,
    AveragePool,
    BinaryMaxPool,
    ChannelPad,
    Clip,
    Concat,
    MaxPool,
    PRelu,
    RealConv2d,
    Sign,
)

#: No graph that takes pixels in 0..1 needs numbers as large as this for them.
LARGE_PIXEL = 16
#: Less than every float32.
LOWEST = -(Fraction(2) ** 128)
#: Numbers whose order a graph may change, all changes together.
MAX_MOVED = 1 << 26
#: Stands for a limit that is none.
MAX_LIMIT = Fraction(2) ** 120


@dataclass(frozen=True)
class PixelRange:
    """What a net takes for a pixel p of 0 to 255: ``(p / 255 - mean) / std`` in each channel.

    Attributes:
        mean, std: one number a channel, or one for all.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, low: float, high: float) -> PixelRange:
        """The range in which 0 is ``low`` and 255 is ``high``."""
        # The nearest float64; exactly low and high where they are 0 and 1, 0 and 255 or -1 and 1.
        return cls((-low / (high - low) + 0.0,), (1 / (high - low),))

    def scale(self, channels: int) -> Exact:
        """(channels,) by how much the value grows from one pixel level to the next."""
        std = self._spread(self.std, channels)
        # A range of 0 to HIGH is stored as 1 / HIGH, which gives HIGH back.
        return exact(1 / std) / 255 if self.is_plain else 1 / (255 * exact(std))

    def offset(self, channels: int) -> Exact:
        """(channels,) the value of a pixel of 0."""
        mean, std = (exact(self._spread(values, channels)) for values in (self.mean, self.std))
        return -mean / std

    @property
    def is_plain(self) -> bool:
        """Whether it is a scale alone, the same for all channels."""
        return not any(self.mean) and len(set(self.std)) == 1

    @property
    def maximum(self) -> Fraction | None:
        """What a pixel of 255 is where 0 is 0; None for other ranges."""
        return exact(1 / np.float64(self.std[0])).item() if self.is_plain else None

    def stated(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std as :class:`.InputSpec` keeps them: a number a channel; none where a net takes p / 255."""
        if self == UNIT:
            return (), ()
        mean, std = (tuple(self._spread(values, channels).tolist()) for values in (self.mean, self.std))
        return mean, std

    def of_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(height, width, channels) uint8 -> what the net takes for it, computed in float32 as its training did."""
        channels = pixels.shape[2]
        if self.maximum is not None:
            return pixels.astype(np.float32) * np.float32(self.maximum) / np.float32(255)
        mean, std = (self._spread(values, channels).astype(np.float32) for values in (self.mean, self.std))
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std

    @staticmethod
    def _spread(values: Sequence[float], channels: int) -> NDArray[np.float64]:
        if len(values) not in (1, channels):
            raise ImporterError(f"{len(values)} values of mean or std for an image of {channels} channels")
        return np.broadcast_to(np.asarray(values, np.float64), channels)


UNIT, BYTES = PixelRange(), PixelRange.of(0.0, 255.0)


class LayerBuilder:
    """The layers of a net that is read operator by operator.

    Attributes:
        pixels: what the graph takes for pixels; where it is a guess, final after the last operator.
        layers: of the model, after :meth:`finish`.
        outputs: number of logits, after :meth:`finish`.
    """

    def __init__(self, pixels: PixelRange, is_guess: bool) -> None:
        self.pixels = pixels
        self._is_guess = is_guess
        self._layers: dict[str, Layer] = {}
        # Layers like others, by these and what was changed.
        self._copies: dict[tuple[str, Hashable], str] = {}
        self._stems: Counter[str] = Counter()
        # Names of layers that another takes, as they are.
        self._taken: set[str] = set()
        self._moved = 0
        self.layers: list[Layer] = []
        self.outputs = 0

    # -- pixels

    def image(self, axes: str, sizes: dict[str, int], dtype: np.dtype[Any]) -> Signal:
        """The signal that the graph begins with.

        Raises:
            RefusalError: where numbers of this type cannot hold pixels.
        """
        scale, offset = self.pixels.scale(sizes["C"]), self.pixels.offset(sizes["C"])
        levels = np.arange(256, dtype=np.int16)
        return Signal("pixels", axes, sizes, scale, offset, dtype=dtype, levels=levels).in_range()

    def fix_pixel_range(self, signal: Signal, values: Exact) -> Signal:
        """Guess, unless it is known, whether the graph takes pixels in 0..1 or in 0..255.

        The guess is 0..255 where what the graph does first makes sense of no other: it divides pixels by
        :data:`LARGE_PIXEL` or more, or tells pixels apart beyond it.

        Args:
            signal: pixels, or any other signal, which is returned as it is.
            values: (C,) what the pixels, as they have become, are compared with.

        Returns:
            The signal with the scale of the guess.
        """
        if not self._is_guess or signal.kind != "pixels" or any(signal.scale == 0):
            return signal
        self._is_guess = False
        factors = signal.scale * 255
        if any(abs(factors) * LARGE_PIXEL <= 1) or any(abs((values - signal.offset) / factors) > LARGE_PIXEL):
            self.pixels = BYTES
            return replace(signal, scale=factors)
        return signal

    def _in_known_range(self, signal: Signal) -> Signal:
        """Pixels that become real values before weights or thresholds; any other signal, as it is.

        Raises:
            RefusalError: where their range could still be told by what follows.
        """
        was_guess, signal = self._is_guess, self.fix_pixel_range(signal, 0 * signal.scale)
        if signal.kind == "pixels" and was_guess and self.pixels == UNIT:
            raise RefusalError(
                "is of pixels whose range nothing tells; give --pixel-range, or --mean with --std"
            )
        return signal

    @property
    def is_told(self) -> bool:
        """Whether the pixel range was given, or the graph could only mean one."""
        return not self._is_guess and self.pixels != UNIT

    def _thermometer(self, signal: Signal, strict: bool) -> Thermometer:
        assert signal.levels is not None
        threshold, flip = fold(signal.scale, signal.offset, np.full(len(signal.scale), strict))
        if signal.axes not in ("CHW", "CLHW") or np.any(flip):
            raise RefusalError("a sign of pixels takes channels first and a positive scale")
        if np.any(np.diff(signal.levels) < 0):
            raise RefusalError("a sign of pixels whose levels do not ascend")
        if self.pixels.maximum is not None:
            threshold = at_pixels(signal, threshold, strict, self.pixels.maximum / 255)
        # The first pixel that reaches it.
        pixels = np.searchsorted(signal.levels, threshold)
        if np.any(pixels > 255):
            raise RefusalError("no pixel reaches a threshold")
        channels, levels = signal.sizes["C"], signal.sizes.get("L", 1)
        thresholds = pixels.reshape(channels, levels).astype(np.uint8)
        return Thermometer("thermometer", channels, levels, thresholds)

    def quantize(self, asked: Quantization) -> Signal:
        """The levels of the image."""
        highest = constant(asked.high * asked.step, len(asked.signal.scale))
        return asked.of(self.fix_pixel_range(asked.signal, highest))

    # -- layers

    def _append(self, layer: Layer, *inputs: str) -> str:
        """Add a layer that takes those of these names, or the image where there are none."""
        for name in filter(None, inputs):
            self._taken.add(name)
        self._layers[layer.name] = replace(layer, inputs=tuple(filter(None, inputs)))
        return layer.name

    def _name(self, stem: str) -> str:
        self._stems[stem] += 1
        return f"{stem}{self._stems[stem]}"

    def value(self, signal: Signal) -> Signal:
        """The signal as a layer gives it: sums become layers, and what is left of scales and offsets does.

        Raises:
            RefusalError: of pixels and signs, which are no signal.
        """
        products = signal.products
        if signal.kind == "sums":
            assert isinstance(products, Products)
            layer = scaled_layer(self._name("conv"), products, signal.scale, signal.offset)
            return self._clipped(self._value_of(signal, self._append(layer, products.source)), signal.limits)
        if signal.kind == "real sums":
            assert isinstance(products, RealProducts)
            layer = real_layer(self._name("conv"), products, signal.scale, signal.offset)
            return self._value_of(signal, self._append(layer, products.source))
        if signal.kind == "pixels" and is_float_map(signal):
            return self.padded(replace(signal, pad=signal.pad or ((0, 0, 0, 0), Fraction(0))))
        if signal.kind != "values":
            raise RefusalError(f"takes {signal.kind} where a net has real values; only signs of them go on")
        if all(signal.scale == 1) and not any(signal.offset):
            return signal
        name, channels = self._name("affine"), len(signal.scale)
        layer = Affine(name, channels, floats(signal.scale), floats(signal.offset))
        return self._value_of(signal, self._append(layer, signal.layer))

    def _value_of(self, signal: Signal, layer: str) -> Signal:
        """A signal of the same shape, as ``layer`` gives it."""
        one = constant(1, len(signal.scale))
        return replace(
            signal,
            kind="values",
            layer=layer,
            scale=one,
            offset=0 * one,
            products=None,
            limits=None,
            levels=None,
        )

    def _clipped(self, signal: Signal, limits: tuple[Exact, Exact] | None) -> Signal:
        """The values of a signal between limits."""
        if limits is None:
            return signal
        channels = len(signal.scale)
        unlimited = all(high >= MAX_SIGNAL for high in limits[1])
        if unlimited and not any(limits[0]):
            return self.bent(signal, constant(0, channels))
        low, high = (
            np.clip([float(min(max(v, -MAX_LIMIT), MAX_LIMIT)) for v in limit], -MAX_SIGNAL, MAX_SIGNAL)
            for limit in limits
        )
        layer = Clip(self._name("clip"), channels, low.astype(np.float32), high.astype(np.float32))
        return self._value_of(signal, self._append(layer, signal.layer))

    def clip(self, signal: Signal, low: Exact, high: Exact) -> Signal:
        """Values from ``low`` to ``high``."""
        if signal.kind in ("real sums", "values"):
            return self._clipped(self.value(signal), (low, high))
        return signal.clipped(low, high)

    def bent(self, signal: Signal, slope: Exact) -> Signal:
        """Values below 0 times the slope of their channel."""
        signal = self.value(signal)
        layer = PRelu(self._name("prelu"), len(slope), floats(slope))
        return self._value_of(signal, self._append(layer, signal.layer))

    def add(self, first: Signal, second: Signal) -> Signal:
        """The sum of two signals."""
        first, second = self.value(first), self.value(second)
        if first.shape != second.shape or first.axes != second.axes:
            raise RefusalError(f"adds {list(second.shape)} to {list(first.shape)}")
        layer = Add(self._name("add"), len(first.scale))
        return self._value_of(first, self._append(layer, first.layer, second.layer))

    def concat(self, signals: Sequence[Signal]) -> Signal:
        """Signals side by side, along their channels; signs as those of values side by side."""
        if all(signal.kind == "signs" for signal in signals):
            return self._joined_signs(signals)
        signals = [self.value(signal) for signal in signals]
        first, channels = signals[0], sum(len(signal.scale) for signal in signals)
        if channels > MAX_CHANNELS:
            raise RefusalError(f"gives {channels} channels; there can be {MAX_CHANNELS}")
        for signal in signals:
            if {**signal.sizes, "C": 0} != {**first.sizes, "C": 0} or signal.axes != first.axes:
                raise RefusalError(f"joins {list(first.shape)} and {list(signal.shape)}")
        if len(signals) == 1:
            return first
        joined = self._resized(first, C=channels)
        layer = Concat(self._name("concat"), channels)
        return self._value_of(joined, self._append(layer, *(signal.layer for signal in signals)))

    def _joined_signs(self, signals: Sequence[Signal]) -> Signal:
        before, layers = [], []
        for signal in signals:
            layer = self._layers[signal.layer]
            if not isinstance(layer, Sign):
                raise RefusalError("joins signs of whole numbers; only those of real values can be joined")
            before.append(self._value_of(signal, layer.inputs[0]))
            layers.append(layer)
        joined = self.concat(before)
        threshold, flip = (
            np.concatenate([getattr(layer, name) for layer in layers]) for name in ("threshold", "flip")
        )
        name = self._append(Sign(self._name("sign"), len(threshold), threshold, flip), joined.layer)
        scale, offset = (np.concatenate([getattr(s, name) for s in signals]) for name in ("scale", "offset"))
        return replace(joined, kind="signs", layer=name, scale=scale, offset=offset)

    def pad_channels(self, signal: Signal, before: int, after: int) -> Signal:
        """Channels of zeros before and after those of a signal."""
        signal = self.value(signal)
        channels = len(signal.scale) + before + after
        layer = ChannelPad(self._name("pad"), channels, before, after)
        return self._value_of(self._resized(signal, C=channels), self._append(layer, signal.layer))

    def channels(self, signal: Signal, first: int, last: int) -> Signal:
        """Channels ``first`` to ``last`` of a signal: a 1x1 convolution that picks them, exactly."""
        return self._picked_values(self.value(signal), Picked.of_channels(signal, first, last))

    # -- numbers that are moved

    def moved(self, signal: Signal, order: NDArray[np.int32]) -> Signal:
        """A signal whose numbers stand in another order, or some of them.

        Nothing is computed until a layer takes it, see :meth:`settled`.

        Args:
            order: as :attr:`Signal.order`.

        Raises:
            RefusalError: where a graph moves too many numbers.
        """
        self.check_moved(order.size)
        self._moved += order.size
        plain = replace(signal, order=None, flat=False, pixel="", axes="CHW")
        for axes in ("CHW", "HWC"):
            whole = replace(plain, axes=axes)
            for candidate in (whole, replace(whole, flat=True)):
                if candidate.shape == order.shape and np.array_equal(places(candidate), order):
                    return candidate
        return replace(plain, order=order)

    def check_moved(self, count: int) -> None:
        """Check that a graph may move so many more numbers.

        Raises:
            RefusalError: where it may not.
        """
        if self._moved + count > MAX_MOVED:
            raise RefusalError(f"moves {self._moved + count} numbers so far; at most {MAX_MOVED} can be")

    def settled(self, signal: Signal) -> Signal:
        """A signal whose axes say where its numbers are, made by a layer that picks them.

        Raises:
            RefusalError: where no layer picks them so.
        """
        if signal.order is None:
            return signal
        picked = Picked.of_signal(signal)
        if picked is None:
            raise RefusalError(f"takes {list(signal.shape)}, whose numbers are no map of height and width")
        plain = replace(signal, order=None)
        take = self._picked_signs if signal.kind == "signs" else self._picked_values
        return replace(take(plain, picked), axes=picked.axes, flat=picked.flat)

    def _picked_values(self, signal: Signal, picked: Picked) -> Signal:
        """Pixels or values, by a convolution of which each filter has one weight, which is 1."""
        weights, groups = picked.weights(signal.sizes["C"])
        if signal.kind == "pixels":
            pixels = self._in_known_range(signal)
            sums = real_sums(pixels, weights, groups, picked.stride, (0, 0, 0, 0), Fraction(0))
            return self.value(replace(sums, sizes=picked.sizes))
        channels = len(weights)
        layer = RealConv2d(
            self._name("pick"),
            signal.sizes["C"],
            channels,
            picked.kernel,
            picked.stride,
            (0, 0),
            groups,
            weights.astype(np.float32),
            np.zeros(channels, np.float32),
        )
        return self._value_of(self._resized(signal, **picked.sizes), self._append(layer, signal.layer))

    def _picked_signs(self, signal: Signal, picked: Picked) -> Signal:
        """Signs of values that are picked; other signs by a layer of some channels, and a pool of one pixel."""
        layer, channels = self._layers[signal.layer], picked.channels
        scale, offset = signal.scale[channels], signal.offset[channels]
        if isinstance(layer, Sign):
            values = self._picked_values(self._value_of(signal, layer.inputs[0]), picked)
            sign = Sign(self._name("sign"), len(channels), layer.threshold[channels], layer.flip[channels])
            name = self._append(sign, values.layer)
            return replace(values, kind="signs", layer=name, scale=scale, offset=offset)
        if picked.first.any() or not isinstance(layer, SignConv2d):
            raise RefusalError("moves signs; only their channels, and every n-th pixel of all, can be taken")
        changed = replace(
            layer,
            out_channels=len(channels),
            weights=layer.weights[channels],
            threshold=layer.threshold[channels],
            flip=layer.flip[channels],
        )
        name = self._changed(signal.layer, changed, channels.tobytes())
        sizes = {**signal.sizes, "C": len(channels)}
        chosen = replace(signal, layer=name, sizes=sizes, scale=scale, offset=offset)
        if picked.stride == (1, 1):
            return chosen
        return self.pool(chosen, (1, 1), picked.stride, (0, 0, 0, 0), is_shared=True)

    # -- what a Pad has put around a map

    def padded(self, signal: Signal) -> Signal:
        """A signal with its padding, made by a convolution whose one weight a channel is 1.

        Raises:
            RefusalError: of signs, and of values padded with another number than 0.
        """
        if signal.pad is None:
            return signal
        (top, left, bottom, right), value = signal.pad
        if signal.kind == "signs" or (signal.kind != "pixels" and value != 0):
            raise RefusalError(
                f"takes {signal.kind} padded with {float(value):g}; only a convolution or a max pool can"
            )
        channels, kernel = signal.sizes["C"], (top + bottom + 1, left + right + 1)
        if max(kernel) > MAX_KERNEL:
            raise RefusalError(f"takes a map padded by {[top, left, bottom, right]}, which is too much")
        weights = np.zeros((channels, *kernel, 1))
        weights[:, bottom, right] = 1
        around = (kernel[0] - 1, kernel[1] - 1) * 2
        plain, sizes = self._in_known_range(replace(signal, pad=None)), dict(signal.sizes)
        sums = real_sums(plain, weights, channels, (1, 1), around, value)
        sizes.update(H=sizes["H"] + top + bottom, W=sizes["W"] + left + right)
        return replace(self.value(replace(sums, sizes=sizes)), axes=signal.axes)

    def exceeds(self, signal: Signal, value: Fraction) -> bool:
        """Whether no number of a signal can be below ``value``, so that a max pool does not see it beside them."""
        if value <= LOWEST:
            return True
        if signal.kind == "signs":
            return all(signal.offset - abs(signal.scale) >= value)
        layer = self._layers.get(signal.layer)
        while isinstance(layer, MaxPool):
            layer = self._layers[layer.inputs[0]]
        if isinstance(layer, PRelu):
            return value <= 0 and not layer.slope.any()
        return isinstance(layer, Clip) and all(low >= value for low in layer.low.tolist())

    def average(
        self,
        signal: Signal,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        pads: Pads,
        counts_padding: bool,
    ) -> Signal:
        """Means of windows; a kernel of one pixel takes every ``stride``-th."""
        signal = self.value(signal)
        name, channels = self._name("average"), len(signal.scale)
        layer = AveragePool(name, channels, kernel, stride, short(pads), counts_padding)
        return self._pooled(signal, layer)

    def _pooled(self, signal: Signal, layer: Any) -> Signal:
        shape = layer.output_shape((signal.sizes["H"], signal.sizes["W"], signal.sizes["C"]))
        return self._value_of(
            self._resized(signal, H=shape[0], W=shape[1]), self._append(layer, signal.layer)
        )

    def _resized(self, signal: Signal, **sizes: int) -> Signal:
        """A signal of other sizes, scaled by 1."""
        sizes = {**signal.sizes, **sizes}
        one = constant(1, sizes["C"])
        return replace(signal, sizes=sizes, scale=one, offset=0 * one)

    def upright(self, signal: Signal) -> Signal:
        """The signal; signs of negative scale become positive ones of the negated layer."""
        falls = (signal.scale < 0).astype(bool)
        if signal.kind != "signs" or not any(falls):
            return signal
        layer = self._changed(signal.layer, negated(self._layers[signal.layer], falls), falls.tobytes())
        return replace(signal, scale=abs(signal.scale), layer=layer)

    def _changed(self, name: str, changed: Layer, how: Hashable) -> str:
        """The name of a layer like ``name``, which stays for whoever takes it; one for all that ask the same."""
        if (name, how) not in self._copies:
            copy = replace(changed, name=self._name(re.sub(r"\d+$", "", name)))
            self._copies[name, how] = self._append(copy, *self._layers[name].inputs)
        return self._copies[name, how]

    def pool(
        self, signal: Signal, kernel: tuple[int, int], stride: tuple[int, int], pads: Pads, is_shared: bool
    ) -> Signal:
        """The signal behind a max pool.

        Args:
            is_shared: whether another operator takes the signal too.
        """
        signal = self.upright(signal)
        plain = (
            not any(pads) and kernel[0] == kernel[1] <= MAX_KERNEL and stride[0] == stride[1] <= MAX_KERNEL
        )
        if plain:
            pool = Pool(kernel[0], stride[0])
            sizes = {axis: pool.length(size) if axis in "HW" else size for axis, size in signal.sizes.items()}
            if (
                signal.kind == "sums"
                and isinstance(signal.products, Products)
                and signal.products.pool is None
            ):
                return signal.pooled(pool, sizes)
            last = self._layers.get(signal.layer)
            if (
                signal.kind == "signs"
                and isinstance(last, (InputConv2d, BinaryConv2d))
                and last.pool is None
                and not is_shared
            ):
                # Refuses a scale that is not positive: the largest value must be +1.
                signal.one_scale()
                return replace(
                    signal, sizes=sizes, layer=self._changed(last.name, pool_after_sign(last, pool), pool)
                )
        if signal.kind == "signs":
            scale = signal.one_scale()
            layer = BinaryMaxPool(self._name("pool"), len(signal.scale), kernel, stride, short(pads))
            pooled = self._pooled(signal, layer)
            return replace(
                pooled, kind="signs", scale=constant(scale, len(pooled.scale)), offset=signal.offset
            )
        signal = self.value(signal)
        return self._pooled(
            signal, MaxPool(self._name("pool"), len(signal.scale), kernel, stride, short(pads))
        )

    def sign(self, asked: Threshold, source: str) -> Signal:
        """Close a layer at its signs.

        Args:
            source: name of the tensor that is compared, for messages.
        """
        strict = np.full(len(asked.at), asked.strict)
        signal = self.fix_pixel_range(asked.signal, asked.at).shifted(-asked.at).resolve_limits(asked.strict)
        if signal.kind == "real sums":
            signal = self.value(asked.signal).shifted(-asked.at)
        result = Signal(
            "signs",
            signal.axes,
            signal.sizes,
            asked.scale,
            asked.offset,
            signal.layer,
            signal.flat,
            signal.pixel,
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
            if self._layers:
                raise RefusalError(f"takes '{source}', which another layer takes already")
            return replace(result, layer=self._append(self._thermometer(signal, asked.strict)))
        if signal.kind == "values":
            threshold, flip = real_threshold(signal.scale, signal.offset, asked.strict)
            layer: Layer = Sign(self._name("sign"), len(threshold), threshold, flip)
            return replace(result, layer=self._append(layer, signal.layer))
        products = signal.products
        assert isinstance(products, Products)
        name = self._name("dense" if products.dense else "conv")
        layer = plain_layer(name, products, *fold(signal.scale, signal.offset, strict))
        return replace(result, layer=self._append(layer, products.source))

    def finish(self, signal: Signal, source: str, needs_matrix: bool) -> None:
        """Add the last layer, and leave out the layers that no other takes.

        Args:
            signal: the logits.
            source: name of their tensor, for messages.
            needs_matrix: whether their last axis must be that of the classes.

        Raises:
            ImporterError: where the model format has no such net.
        """
        try:
            signal = self.settled(signal)
            last = self._close_output(signal, source, needs_matrix)
        except OverflowError:
            raise ImporterError("a scale or an offset is too large for float64") from None
        except RefusalError as error:
            raise ImporterError(f"the output '{source}' {error}") from None
        self.outputs = len(signal.scale)
        needed = {last}
        for layer in reversed(self._layers.values()):
            if layer.name in needed:
                needed.update(layer.inputs)
        kept = [layer for layer in self._layers.values() if layer.name in needed]
        before = ["", *(layer.name for layer in kept)]
        self.layers = [
            replace(layer, inputs=()) if layer.inputs == (name,) else layer
            for name, layer in zip(before, kept)
        ]

    def _close_output(self, signal: Signal, source: str, needs_matrix: bool) -> str:
        if signal.pad is not None:
            raise ImporterError(f"the output '{source}' is padded")
        if needs_matrix and len(signal.shape) != 2:
            raise ImporterError(f"the last axis of '{source}' is taken for that of the classes")
        last, products = self._layers.get(signal.layer), signal.products
        if (
            signal.kind == "sums"
            and isinstance(products, Products)
            and products.dense
            and signal.limits is None
        ):
            return self._append(output_layer(products, signal.scale, signal.offset), products.source)
        if signal.kind == "signs":
            if not isinstance(last, BinaryDense) or last.name in self._taken:
                raise ImporterError(
                    f"the output '{source}' does not come from a Gemm or MatMul, or from a Conv of the whole map"
                )
            scale, bias = floats(2 * signal.scale), floats(signal.offset - signal.scale)
            shape = last.in_shape, last.out_features, last.weights, last.threshold, last.flip
            del self._layers[last.name]
            return self._append(OutputBits("output", *shape, scale, bias), *last.inputs)
        if any(signal.sizes[axis] != 1 for axis in "HW"):
            raise ImporterError(
                f"the output '{source}' is a map of {signal.sizes['H']}x{signal.sizes['W']}; logits are one number "
                "a class"
            )
        return self.value(signal).layer
