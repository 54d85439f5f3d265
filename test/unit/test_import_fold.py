"""The arithmetic of the importers, which knows no file format."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnn_perception.importers import fold
from bnn_perception.importers.errors import RefusalError
from bnn_perception.importers.fold.products import convolve, weighted_sums
from bnn_perception.importers.fold.signal import Signal, constant, exact
from bnn_perception.importers.fold.thresholds import real_threshold

#: Floats of nets, among them some whose common denominator is far beyond int64, and fractions that are no floats.
RATIONALS = st.one_of(
    st.floats(-1e3, 1e3).map(Fraction),
    st.integers(-2, 2).map(Fraction),
    st.fractions(-10, 10, max_denominator=1000),
)


@given(data=st.data())
def test_weighted_sums_are_those_of_the_fractions(data: st.DataObject) -> None:
    inputs = data.draw(st.integers(1, 6), "inputs")
    row = st.lists(st.integers(-(2**31), 2**31), min_size=inputs, max_size=inputs)
    taps = data.draw(st.lists(row, min_size=1, max_size=4), "taps")
    values = data.draw(st.lists(RATIONALS, min_size=inputs, max_size=inputs), "values")

    sums = weighted_sums(np.array(taps, dtype=np.int64), np.array(values, dtype=object))

    assert sums.tolist() == [sum(tap * value for tap, value in zip(row, values)) for row in taps]


def test_the_folder_knows_no_file_format() -> None:
    """A reader of another format must be able to use it."""
    for path in Path(fold.__file__).parent.glob("*.py"):
        assert "import onnx" not in path.read_text(encoding="utf-8"), path
        assert "importers.onnx" not in path.read_text(encoding="utf-8"), path


def test_weighted_sums_beyond_int64() -> None:
    """Each term fits int64, the sum of the two does not."""
    sums = weighted_sums(
        np.array([[2, 2], [1, -1]], dtype=np.int64), np.array([Fraction(2**61)] * 2, dtype=object)
    )
    assert sums.tolist() == [2**63, 0]


#: The largest float32, its neighbours, and numbers between and beyond them.
MAX = Fraction(float(np.finfo(np.float32).max))
EDGES = [edge * sign for edge in (MAX, MAX - 1, MAX + 1, 2 * MAX, Fraction(10) ** 400) for sign in (1, -1)]


@given(
    at=st.one_of(RATIONALS, st.sampled_from(EDGES), st.floats(width=32, allow_nan=False).filter(np.isfinite)),
    factor=st.sampled_from([Fraction(1), Fraction(-1), Fraction(1, 3), Fraction(-7, 10)]),
    strict=st.booleans(),
)
def test_thresholds_of_floats_are_exact_and_warn_of_nothing(
    at: Fraction | float, factor: Fraction, strict: bool
) -> None:
    """At every float32 around the threshold, up to the largest."""
    at = Fraction(at)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threshold, flip = real_threshold(constant(factor, 1), constant(-factor * at, 1), strict)

    with np.errstate(over="ignore"):
        near = np.float32(float(np.clip(float(max(min(at, 2 * MAX), -2 * MAX)), -float(MAX), float(MAX))))
        around = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    for x in [*around, np.float32(0), np.float32(float(MAX)), np.float32(-float(MAX))]:
        if np.isfinite(x):
            value = factor * (Fraction(float(x)) - at)
            assert ((x >= threshold[0]) ^ flip[0]) == (value > 0 if strict else value >= 0), x


def test_padding_asks_once_for_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once a channel, 2048 channels took 15 seconds: each question looks at all channels."""
    asked, one_scale = [], Signal.one_scale
    monkeypatch.setattr(Signal, "one_scale", lambda signal: asked.append(signal) or one_scale(signal))
    signal = Signal("signs", "CHW", {"C": 64, "H": 3, "W": 3}, constant(1, 64), constant(0, 64))

    result = convolve(signal, np.ones((2, 64, 3, 3)), np.zeros(2), pads=(1, 1, 1, 1))

    assert result.shape == (1, 2, 3, 3)
    assert len(asked) < 4


def test_a_nan_that_signals_is_refused_without_a_warning() -> None:
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RefusalError, match="a constant is not finite"):
            exact(signalling)
