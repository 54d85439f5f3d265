"""Opens a layer at its weights and closes it at its signs, in the order in which the graph is walked."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.importers.errors import ImporterError, RefusalError
from bnn_perception.importers.fold.layers import (
    PendingResidual,
    floats,
    fold,
    negated,
    output_layer,
    plain_layer,
    pool_after_sign,
    residual_units,
)
from bnn_perception.importers.fold.signal import Exact, Products, Signal, constant
from bnn_perception.importers.fold.thresholds import Quantization, Threshold, at_pixels
from bnn_perception.net.layer import Layer, Pool
from bnn_perception.net.layers import (
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    InputConv2d,
    OutputBits,
    Thermometer,
)

#: No graph that takes pixels in 0..1 needs numbers as large as this for them.
LARGE_PIXEL = 16


class LayerBuilder:
    """The layers of a net that is read operator by operator.

    Attributes:
        pixel_maximum: what the graph takes for a pixel of 255; where it is a guess, final after the last operator.
        layers: of the model, after :meth:`finish`.
        outputs: number of logits, after :meth:`finish`.
        units: for each layer with a residual, how many of its integers are a value of 1 in each channel, after
            :meth:`finish`.
    """

    def __init__(self, pixel_maximum: float, is_guess: bool) -> None:
        self.pixel_maximum = pixel_maximum
        self._is_guess = is_guess
        # Layers that have their products, and those that have their signs too.
        self._opened = 0
        self._closed: list[Layer | PendingResidual] = []
        self.layers: list[Layer] = []
        self.outputs = 0
        self.units: dict[str, Exact] = {}

    # -- pixels

    def image(self, axes: str, sizes: dict[str, int], dtype: np.dtype[Any]) -> Signal:
        """The signal that the graph begins with.

        Raises:
            RefusalError: where numbers of this type cannot hold pixels.
        """
        scale = constant(Fraction(self.pixel_maximum) / 255, sizes["C"])
        levels = np.arange(256, dtype=np.int16)
        return Signal("pixels", axes, sizes, scale, 0 * scale, dtype=dtype, levels=levels).in_range()

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
            self.pixel_maximum = 255.0
            return replace(signal, scale=factors)
        return signal

    def _thermometer(self, signal: Signal, strict: bool) -> Thermometer:
        assert signal.levels is not None
        threshold, flip = fold(signal.scale, signal.offset, np.full(len(signal.scale), strict))
        if signal.axes not in ("CHW", "CLHW") or np.any(flip):
            raise RefusalError("a sign of pixels takes channels first and a positive scale")
        if np.any(np.diff(signal.levels) < 0):
            raise RefusalError("a sign of pixels whose levels do not ascend")
        unit = Fraction(self.pixel_maximum) / 255
        threshold = at_pixels(signal, threshold, strict, unit)
        # The first pixel that reaches it.
        pixels = np.searchsorted(signal.levels, threshold)
        if np.any(pixels > 255):
            raise RefusalError("no pixel reaches a threshold")
        channels, levels = signal.sizes["C"], signal.sizes.get("L", 1)
        thresholds = pixels.reshape(channels, levels).astype(np.uint8)
        return Thermometer("thermometer", channels, levels, thresholds)

    # -- layers

    def open(self, signal: Signal, source: str) -> None:
        """Give a signal to the next layer; no other layer may take it.

        Args:
            source: name of the tensor, for the message.
        """
        if signal.place != self._opened:
            raise RefusalError(
                f"takes '{source}', which another layer takes already; only a residual can branch, into the signs for "
                "a convolution and the shortcut around it"
            )
        self._opened += 1

    def upright(self, signal: Signal) -> Signal:
        """The signal; signs of negative scale become positive ones of the negated layer."""
        falls = (signal.scale < 0).astype(bool)
        if signal.kind != "signs" or not any(falls) or signal.place != len(self._closed):
            return signal
        self._closed[-1] = negated(self._closed[-1], falls)
        return replace(signal, scale=abs(signal.scale))

    def pool(self, signal: Signal, pool: Pool, is_shared: bool) -> Signal:
        """The signal behind a max pool.

        Args:
            is_shared: whether another operator takes the signal too.
        """
        signal = self.upright(signal)
        sizes = {axis: pool.length(size) if axis in "HW" else size for axis, size in signal.sizes.items()}
        if signal.kind == "sums" and signal.products is not None and signal.products.pool is None:
            return signal.pooled(pool, sizes)
        last = self._closed[-1] if self._closed else None
        if signal.kind == "signs" and is_shared:
            raise RefusalError("pools signs that another node takes too")
        if signal.kind == "signs" and isinstance(last, (InputConv2d, BinaryConv2d)) and last.pool is None:
            # Refuses a scale that is not positive: the largest value must be +1.
            signal.one_scale()
            self._closed[-1] = pool_after_sign(last, pool)
            return replace(signal, sizes=sizes)
        raise RefusalError("pools what is not the output of a convolution, or was pooled already")

    def quantize(self, asked: Quantization) -> Signal:
        """The levels of the image."""
        highest = constant(asked.high * asked.step, len(asked.signal.scale))
        return asked.of(self.fix_pixel_range(asked.signal, highest))

    def sign(self, asked: Threshold, source: str) -> Signal:
        """Close the open layer at its signs.

        Args:
            source: name of the tensor that is compared, for messages.
        """
        strict = np.full(len(asked.at), asked.strict)
        signal = self.fix_pixel_range(asked.signal, asked.at).shifted(-asked.at).resolve_limits(asked.strict)
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
            self.open(signal, source)
            self._closed.append(self._thermometer(signal, asked.strict))
        else:
            self._closed.append(self._layer(signal, strict))
        return replace(result, place=len(self._closed))

    def _layer(self, signal: Signal, strict: NDArray[np.bool_]) -> Layer | PendingResidual:
        """The layer whose signs are those of ``signal``, sums or a residual."""
        if signal.averaged or signal.repeated:
            raise RefusalError(
                "takes signs of a shortcut; only those of the residual itself can be expressed"
            )
        # With another scale below 0 a sum on either side can reach the threshold.
        if signal.negative is not None:
            signal = signal.as_residual()
        products = signal.products if signal.residual is None else signal.residual.products
        assert products is not None
        self._check_order(products)
        is_matrix = products.dense and signal.residual is None
        kind, stem = (BinaryDense, "dense") if is_matrix else ((Conv2d, PendingResidual), "conv")
        name = f"{stem}{sum(isinstance(layer, kind) for layer in self._closed) + 1}"
        if signal.residual is not None:
            return PendingResidual(name, signal.residual, signal.scale, signal.offset, strict)
        return plain_layer(name, products, *fold(signal.scale, signal.offset, strict))

    def _check_order(self, products: Products) -> None:
        if products.place != len(self._closed):
            raise RefusalError(
                "is a second sign of the same values; a layer of the format has one threshold a channel"
            )

    def finish(self, signal: Signal, source: str, needs_matrix: bool) -> None:
        """Add the last layer and choose the units of the residuals.

        Args:
            signal: the logits.
            source: name of their tensor, for messages.
            needs_matrix: whether their last axis must be that of the classes.

        Raises:
            ImporterError: where the model format has no such net.
        """
        try:
            self._close_output(signal, source, needs_matrix)
            self.units = residual_units(self._closed)
        except OverflowError:
            raise ImporterError("a scale or an offset is too large for float64") from None
        except RefusalError as error:
            raise ImporterError(f"the output '{source}' {error}") from None
        self.outputs = len(signal.scale)
        self.layers = [
            layer.fixed(self.units[layer.name]) if isinstance(layer, PendingResidual) else layer
            for layer in self._closed
        ]

    def _close_output(self, signal: Signal, source: str, needs_matrix: bool) -> None:
        last = self._closed[-1] if self._closed else None
        if signal.limits is not None:
            raise ImporterError(f"the output '{source}' is limited by a Clip or ReLU")
        if signal.negative is not None:
            raise ImporterError(f"the output '{source}' is bent by a ReLU or PReLU")
        if needs_matrix and not signal.flat:
            raise ImporterError(f"the last axis of '{source}' is taken for that of the classes")
        if signal.kind == "sums" and signal.products is not None and signal.products.dense:
            self._check_order(signal.products)
            self._closed.append(output_layer(signal.products, signal.scale, signal.offset))
        elif signal.kind == "signs" and isinstance(last, BinaryDense) and signal.place == len(self._closed):
            scale, bias = floats(2 * signal.scale), floats(signal.offset - signal.scale)
            shape = last.in_shape, last.out_features, last.weights, last.threshold, last.flip
            self._closed[-1] = OutputBits("output", *shape, scale, bias)
        else:
            raise ImporterError(
                f"the output '{source}' does not come from a Gemm or MatMul, or from a Conv of the whole map"
            )
