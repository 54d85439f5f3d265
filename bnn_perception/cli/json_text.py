"""What ``--json`` prints: JSON, whatever a model's own fields hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

#: Bits of the whole numbers that are numbers in JSON; readers take longer ones for infinity, and Python writes none.
MAX_BITS = 1024


def to_json(value: Any) -> str:
    """A value on one line of JSON: what is no number there (infinity, say) is null, what it does not know a text."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= MAX_BITS else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) else str(_plain(key)): _plain(item) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)
