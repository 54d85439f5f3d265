"""What a field of a configuration can be, stated in its metadata: the bounds of a number or the choices of a text."""

from __future__ import annotations

from typing import NamedTuple


class Bounds(NamedTuple):
    """Lowest and highest value of a number."""

    low: float
    high: float


def within(low: float, high: float) -> dict[str, Bounds]:
    """The metadata of a field that holds a number, or numbers, of a range."""
    return {"bounds": Bounds(low, high)}


def one_of(*choices: str) -> dict[str, tuple[str, ...]]:
    """The metadata of a field that holds one of some words."""
    return {"choices": choices}
