"""Backends evaluate a model. One file each, one protocol, one :func:`make_backend`."""

from __future__ import annotations

from bnn_perception.backends.choose import BACKENDS, DEVICES, check_choice, make_backend
from bnn_perception.backends.protocol import Backend, BackendError, StageTimer

__all__ = ["BACKENDS", "DEVICES", "Backend", "BackendError", "StageTimer", "check_choice", "make_backend"]
