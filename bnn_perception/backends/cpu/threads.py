"""The threads that run a program of :mod:`bnn_perception.native`."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cpu.program import Program, aligned_zeros


class Workers:
    """The threads that run steps of a program: the one that calls, and its helpers."""

    def __init__(self, program: Program, steps: NDArray[Any], threads: int) -> None:
        """Start the helpers.

        Args:
            program: owns the memory that the steps refer to.
            steps: all of them, or those of some layers.
            threads: to run on, the caller's included.
        """
        native = program.native
        self._native = native
        self._program = program
        self._steps = np.ascontiguousarray(steps)
        self._state = aligned_zeros((native.state_bytes(len(steps)),), np.uint8)
        self._address = self._state.ctypes.data
        native.open_state(self._address)
        self._scratch = [aligned_zeros((program.scratch_bytes,), np.uint8) for _ in range(threads)]
        # Daemons, so that an interpreter which ends without close() does not wait for them.
        self._helpers = [
            threading.Thread(target=self._run, args=(index, True), name=f"cpu_binary {index}", daemon=True)
            for index in range(1, threads)
        ]
        for helper in self._helpers:
            helper.start()

    def _run(self, thread: int, helper: bool) -> None:
        self._native.evaluate(self._steps, self._address, self._scratch[thread].ctypes.data, helper)

    def evaluate(self) -> None:
        """Run the steps once."""
        self._run(0, False)

    def stop(self) -> None:
        """End the helpers and wait for them."""
        self._native.close_state(self._address)
        for helper in self._helpers:
            helper.join()
