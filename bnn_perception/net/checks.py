"""Limits for untrusted model folders, the error that names what is wrong, and the checks of single values."""

from __future__ import annotations

import re
import reprlib

import numpy as np

from bnn_perception.errors import Error

# Far above any net for a robot, far below what exhausts its memory.
MAX_SIDE = 4096
MAX_CHANNELS = 1 << 16
MAX_KERNEL = 64
MAX_ACTIVATION_BITS = 1 << 28
MAX_LAYERS = 2048
#: Of all layers together, for one frame: at 224 pixels VGG-16 takes a quarter of these operations, and ResNet-152 a
#: third of these activations.
MAX_OPERATIONS = 1 << 36
MAX_TOTAL_BITS = 1 << 34
MAX_INPUTS = 64
MAX_LABEL = 200
#: Largest magnitude of a signal, and of the sums on the way to it; float32 holds 3.4e38.
MAX_SIGNAL = 1e37
#: Logits over a temperature, and over its inverse, stay well inside float32.
MAX_TEMPERATURE = 1e6

LAYER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlevel = 2


class ModelError(Error, ValueError):
    """A model folder or layer that cannot be used; the message names the file, the field and the reason."""


def show(value: object) -> str:
    """A value in a message: one short line, however long or deeply nested an untrusted value is."""
    try:
        return _short.repr(value)
    except ValueError:  # Python writes no whole number of more than some thousand digits
        return "a very long number"


def is_text(value: object) -> bool:
    """Whether a value is a text that files, logs and messages can hold: no NUL, and no half of a surrogate pair."""
    return isinstance(value, str) and not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value)


def check_whole(where: str, value: object, low: int, high: int) -> None:
    """Refuse what is no whole number from ``low`` to ``high``; ``where`` names it."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise ModelError(f"{where} is {show(value)}; it must be a whole number from {low} to {high}")


def layer_name(value: object) -> str:
    """``value``, which must be the name of a layer."""
    if not isinstance(value, str) or not LAYER_NAME.fullmatch(value):
        raise ModelError(f"layers: the name {show(value)} is not a word of letters, digits, _ and -")
    return value
