"""What the backends on the CPU share."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bnn_perception.backends.protocol import BackendError

#: The most threads; each takes memory before it does anything.
MAX_THREADS = 256


def thread_count(threads: int, useful: int) -> int:
    """The number of threads to run; 0 stands for as many as pay off.

    Args:
        threads: as the user said.
        useful: more than these would not pay off; at most one on each core that this process may use does.

    Raises:
        BackendError: for a negative number, or one over :data:`MAX_THREADS`.
    """
    if not 0 <= threads <= MAX_THREADS:
        raise BackendError(f"threads is {threads}; it must be 0 (as many as pay off) to {MAX_THREADS}")
    return threads or min(useful, len(os.sched_getaffinity(0)))


def device_name(threads: int) -> str:
    """The processor and the threads in use, for logs and diagnostics."""
    name = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():  # x86; most ARM kernels have no such line
                name = value.strip()
                break
    except OSError:
        pass
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
