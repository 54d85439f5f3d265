"""The bit convention of the whole package, and the arithmetic that rests on it.

A binary tensor holds +1 and -1. Bit 1 stands for +1, bit 0 for -1. The last axis (channels) is packed
into ``uint32`` words, little-endian: channel ``c`` is bit ``c % 32`` of word ``c // 32``. The spare bits
of the last word are 0 in activations and in weights alike, so that they cancel in ``a ^ w``.

Dot product of K pairs of +-1::

    sum(a * w) = K - 2 * popcount(a ^ w),   popcount(a ^ w) being their Hamming distance

Folding batch norm into an integer threshold
--------------------------------------------
The layer computes ``sign(gamma * (x - mean) / sigma + beta)`` of an integer x, with sigma > 0 and
``sign(0) = +1``. Let ``t = mean - beta * sigma / gamma``.

==========  =========================  ===========================
gamma > 0   +1  <=>  x >= t            threshold ceil(t), flip 0
gamma < 0   +1  <=>  x <= t            threshold floor(t) + 1, flip 1
gamma = 0   +1  <=>  beta >= 0         constant
==========  =========================  ===========================

so that every case reads ``bit = (x >= threshold) ^ flip``. Because the comparison is monotonic in x, a
max pool of x before it is an OR of the comparison bits, and the flip is applied after the pool.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 32

#: A threshold that no integer dot product reaches: the bit is 0 whatever the input.
NEVER = np.iinfo(np.int32).max
#: A threshold that every integer dot product reaches: the bit is 1 whatever the input.
ALWAYS = np.iinfo(np.int32).min


def words_for(channels: int) -> int:
    """Number of ``uint32`` words that hold ``channels`` bits."""
    return -(-channels // WORD_BITS)


def pack(bits: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Pack the last axis of a boolean (or 0/1) array into words.

    Args:
        bits: (..., channels); true stands for +1.

    Returns:
        (..., words_for(channels)) uint32, spare bits 0.
    """
    bits = np.asarray(bits).astype(bool)
    channels = bits.shape[-1]
    spare = words_for(channels) * WORD_BITS - channels
    if spare:
        bits = np.concatenate([bits, np.zeros((*bits.shape[:-1], spare), dtype=bool)], axis=-1)
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u4").astype(np.uint32, copy=False)


def unpack(words: NDArray[np.uint32], channels: int) -> NDArray[np.bool_]:
    """Inverse of :func:`pack`.

    Args:
        words: (..., words_for(channels)) uint32.
        channels: how many bits of the last axis are meant.

    Returns:
        (..., channels) bool.
    """
    as_bytes = np.ascontiguousarray(words, dtype="<u4").view(np.uint8)
    return np.unpackbits(as_bytes, axis=-1, count=channels, bitorder="little").astype(bool)


def signs(words: NDArray[np.uint32], channels: int) -> NDArray[np.int32]:
    """The +1 and -1 that ``words`` stand for: (..., channels) int32."""
    return np.where(unpack(words, channels), np.int32(1), np.int32(-1))


def spare_mask(channels: int) -> NDArray[np.uint32]:
    """Words with a 1 in every bit that holds a channel: (words_for(channels),) uint32."""
    return pack(np.ones(channels, dtype=bool))


def popcount(words: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Number of ones in each word, same shape, int32 (NumPy before 2.0 has no ``bitwise_count``)."""
    as_bytes = np.ascontiguousarray(words, dtype=np.uint32).view(np.uint8)
    return _ONES_IN_BYTE[as_bytes].reshape(*np.shape(words), 4).sum(axis=-1, dtype=np.int32)


_ONES_IN_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.int32)


def fold_batch_norm(
    gamma: NDArray[np.floating],
    beta: NDArray[np.floating],
    mean: NDArray[np.floating],
    sigma: NDArray[np.floating],
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Turn ``sign(gamma * (x - mean) / sigma + beta)`` of an integer x into a threshold and a flip.

    The derivation is at the top of this module. Everything is computed in float64.

    Args:
        gamma, beta, mean, sigma: (channels,) each; ``sigma`` is the standard deviation, epsilon included.

    Returns:
        threshold: (channels,) int32; flip: (channels,) bool. The sign is +1 iff ``(x >= threshold) ^ flip``.

    Raises:
        ValueError: where a value is not finite or a sigma is not positive.
    """
    gamma, beta, mean, sigma = (np.asarray(v, dtype=np.float64) for v in (gamma, beta, mean, sigma))
    for name, value in (("gamma", gamma), ("beta", beta), ("mean", mean), ("sigma", sigma)):
        if not np.all(np.isfinite(value)):
            raise ValueError(
                f"batch norm: {name} of channel {int(np.argmin(np.isfinite(value)))} is not finite"
            )
    if np.any(sigma <= 0):
        raise ValueError(f"batch norm: sigma of channel {int(np.argmax(sigma <= 0))} is not positive")
    constant = gamma == 0
    # What overflows float64 is clipped to int32 like all that lies beyond it.
    with np.errstate(over="ignore"):
        crossing = mean - beta * sigma / np.where(constant, 1.0, gamma)
    negative = gamma < 0
    threshold = np.where(negative, np.floor(crossing) + 1, np.ceil(crossing))
    threshold = np.where(constant, np.where(beta >= 0, float(ALWAYS), float(NEVER)), threshold)
    return np.clip(threshold, ALWAYS, NEVER).astype(np.int32), negative
