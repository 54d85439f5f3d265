"""The bit convention and the folding of batch norm into integer thresholds."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_perception.net import bits

WIDTHS = (1, 3, 16, 31, 32, 33, 63, 64, 65, 96, 128)


@pytest.mark.parametrize("width", WIDTHS)
def test_pack_and_unpack(width: int) -> None:
    rng = np.random.default_rng(width)
    values = rng.integers(0, 2, (3, 5, width)).astype(bool)
    words = bits.pack(values)
    assert words.dtype == np.uint32
    assert words.shape == (3, 5, bits.words_for(width))
    np.testing.assert_array_equal(bits.unpack(words, width), values)


@pytest.mark.parametrize("width", WIDTHS)
def test_spare_bits_are_zero(width: int) -> None:
    words = bits.pack(np.ones((2, width), dtype=bool))
    total = sum(int(word) << (32 * index) for index, word in enumerate(words[0]))
    assert total == (1 << width) - 1
    np.testing.assert_array_equal(words[1], bits.spare_mask(width))


@pytest.mark.parametrize("channel", [0, 1, 31, 32, 63, 64, 95])
def test_a_channel_is_a_bit_counted_from_the_lowest(channel: int) -> None:
    values = np.zeros(96, dtype=bool)
    values[channel] = True
    words = bits.pack(values)
    assert words[channel // 32] == 1 << channel % 32
    assert np.count_nonzero(words) == 1


def test_pack_takes_zeros_and_ones_of_any_type() -> None:
    values = np.array([0, 1, 0, 1, 1])
    for dtype in (np.uint8, np.int64, np.float32, bool):
        assert bits.pack(values.astype(dtype)) == [0b11010]


def test_unpack_of_a_view_that_is_not_contiguous() -> None:
    words = bits.pack(np.random.default_rng(0).integers(0, 2, (4, 6, 40)).astype(bool))
    view = words[::2, 1::2]
    np.testing.assert_array_equal(bits.unpack(view, 40), bits.unpack(words, 40)[::2, 1::2])


def test_unpack_takes_words_of_any_integer_type() -> None:
    words = bits.pack(np.random.default_rng(0).integers(0, 2, (4, 40)).astype(bool))
    for dtype in (np.int64, ">u4"):
        np.testing.assert_array_equal(bits.unpack(words.astype(dtype), 40), bits.unpack(words, 40))


def test_popcount() -> None:
    words = np.array([[0, 1, 0xFFFFFFFF], [0x80000000, 0xAAAAAAAA, 0x0F0F00FF]], dtype=np.uint32)
    ones = bits.popcount(words)
    np.testing.assert_array_equal(ones, [[0, 1, 32], [1, 16, 16]])
    assert ones.dtype == np.int32
    assert bits.popcount(words[0, 2]) == 32
    np.testing.assert_array_equal(bits.popcount(words[::-1, ::2].astype(np.int64)), [[1, 16], [0, 32]])


@pytest.mark.parametrize("width", WIDTHS)
def test_dot_product_from_disagreements(width: int) -> None:
    """The identity at the top of the module; spare bits cancel."""
    rng = np.random.default_rng(width)
    a, w = rng.integers(0, 2, (2, 50, width)).astype(bool)
    words = bits.pack(a) ^ bits.pack(w)
    expected = (np.where(a, 1, -1) * np.where(w, 1, -1)).sum(axis=1)
    np.testing.assert_array_equal(width - 2 * bits.popcount(words).sum(axis=1), expected)
    np.testing.assert_array_equal(bits.signs(bits.pack(a), width), np.where(a, 1, -1))


def exact_sign(gamma: float, beta: float, mean: float, sigma: float, x: int) -> bool:
    """Whether batch norm gives +1, in rational arithmetic."""
    return Fraction(gamma) * (x - Fraction(mean)) / Fraction(sigma) + Fraction(beta) >= 0


# Multiples of 1/8, so that many crossings lie exactly on an integer, where ceil and floor + 1 matter; the crossing
# mean - beta * sigma / gamma stays exact in float64 because gamma is a power of two.
eighths = st.integers(-800, 800).map(lambda n: n / 8)
exact_gammas = st.sampled_from([-4.0, -1.0, -0.5, 0.0, 0.5, 1.0, 4.0])
sigmas = st.integers(1, 80).map(lambda n: n / 8)


@given(exact_gammas, eighths, eighths, sigmas)
@settings(max_examples=200, deadline=None)
def test_folding_where_the_crossing_is_exact(gamma: float, beta: float, mean: float, sigma: float) -> None:
    threshold, flip = bits.fold_batch_norm(*(np.array([value]) for value in (gamma, beta, mean, sigma)))
    crossing = mean if gamma == 0 else mean - beta * sigma / gamma
    for x in {-9000, 0, 9000, *(int(np.floor(crossing)) + step for step in range(-2, 4))}:
        assert ((x >= threshold[0]) ^ flip[0]) == exact_sign(gamma, beta, mean, sigma, x), x


finite = st.floats(-1e4, 1e4)


@given(finite, finite, finite, st.floats(1e-3, 1e4), st.lists(st.integers(-40000, 40000), min_size=20))
@settings(max_examples=200, deadline=None)
def test_folding_of_any_floats(
    gamma: float, beta: float, mean: float, sigma: float, values: list[int]
) -> None:
    threshold, flip = bits.fold_batch_norm(*(np.array([value]) for value in (gamma, beta, mean, sigma)))
    for x in values:
        if gamma != 0:
            crossing = Fraction(mean) - Fraction(beta) * Fraction(sigma) / Fraction(gamma)
            # Three roundings of float64 stand between this crossing and the computed one.
            if abs(x - crossing) <= 4e-16 * (abs(mean) + abs(beta * sigma / gamma)):
                continue
        assert ((x >= threshold[0]) ^ flip[0]) == exact_sign(gamma, beta, mean, sigma, x), x


def test_folding_of_many_channels() -> None:
    rng = np.random.default_rng(3)
    n = 10_000
    gamma, beta, mean = rng.normal(0, 1, (3, n))
    gamma[::50] = 0
    mean *= 100
    sigma = rng.uniform(0.1, 50, n)
    threshold, flip = bits.fold_batch_norm(gamma, beta, mean, sigma)
    x = rng.integers(-300, 300, n)
    expected = gamma * (x - mean) / sigma + beta >= 0
    # Random reals: none lies within rounding of its crossing (checked: the least distance is far above 1e-9).
    assert np.abs(gamma * (x - mean) / sigma + beta)[gamma != 0].min() > 1e-9
    np.testing.assert_array_equal((x >= threshold) ^ flip, expected)


@pytest.mark.parametrize(("beta", "bit"), [(1.0, True), (0.0, True), (-0.0, True), (-1e-300, False)])
def test_gamma_of_zero_is_a_constant(beta: float, bit: bool) -> None:
    threshold, flip = bits.fold_batch_norm(np.zeros(1), np.array([beta]), np.array([5.0]), np.ones(1))
    for x in (-(2**31) + 1, -1, 0, 1, 2**31 - 2):
        assert ((x >= threshold[0]) ^ flip[0]) == bit


def test_a_crossing_beyond_int32_is_never_or_always_reached() -> None:
    gamma = np.array([1e-12, 1e-12, -1e-12, -1e-12])
    beta = np.array([-1.0, 1.0, -1.0, 1.0])
    threshold, flip = bits.fold_batch_norm(gamma, beta, np.zeros(4), np.ones(4))
    assert threshold.dtype == np.int32
    for x in (-(2**30), 0, 2**30):
        np.testing.assert_array_equal((x >= threshold) ^ flip, [False, True, False, True])


@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "sigma"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_folding_refuses_what_is_not_finite(name: str, value: float) -> None:
    values = {"gamma": np.ones(3), "beta": np.ones(3), "mean": np.ones(3), "sigma": np.ones(3)}
    values[name][1] = value
    with pytest.raises(ValueError, match=f"{name} of channel 1 is not finite"):
        bits.fold_batch_norm(**values)


def test_folding_refuses_a_sigma_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="sigma of channel 2 is not positive"):
        bits.fold_batch_norm(np.ones(3), np.ones(3), np.ones(3), np.array([1.0, 1.0, 0.0]))
