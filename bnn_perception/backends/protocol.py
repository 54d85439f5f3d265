"""What a backend is: the protocol that all of them have, their error, and the clock of their stages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import Error
from bnn_perception.frames.frame import Frame

#: Kinds of processors.
Device = Literal["cpu", "cuda"]


class BackendError(Error, RuntimeError):
    """A backend that cannot be made, or that failed while it ran and must be made anew.

    Results of the call that raised it do not exist; nothing is ever answered from a failed device.
    """


class Backend(Protocol):
    """Evaluates one model. Owns its weights and scratch memory; used by one thread at a time.

    Attributes:
        name: which backend this is, ``cpu_binary`` say.
        is_float: whether its logits are those of the float twin, not of the binary net.
        device: the kind of processor it runs on.
        device_name: of that processor, for logs and diagnostics.
        times: milliseconds of each stage of the last :meth:`logits`, in order (``preprocess``, ``inference``; a
            GPU adds ``upload`` and the like).
    """

    name: str
    is_float: bool
    device: Device
    device_name: str
    times: dict[str, float]

    def logits(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        """Evaluate 1 or more frames, which may differ in size and encoding.

        Returns:
            (len(frames), classes) float32.

        Raises:
            BackendError: where the device fails.
        """
        ...

    def activations(self, frame: Frame) -> Iterator[tuple[str, NDArray[Any]]]:
        """The input and every layer's output of one frame, by name, for tests.

        ``input``: (H, W, C) uint8; layers: (height, width, words) uint32; the last: (classes,) float32. A layer that
        has a stream is followed by ``<layer>.stream``, (height, width, channels) int32, where the backend keeps it:
        what no shortcut reads may be left out. The float backends yield the input and the last only.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory. Calling it again does nothing."""
        ...


class StageTimer:
    """Takes the time of consecutive stages."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """End ``stage`` here."""
        now = time.perf_counter()
        self.milliseconds[stage] = (now - self._last) * 1e3
        self._last = now
