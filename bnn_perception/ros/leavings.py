"""Removes the shared memory that killed processes have left.

Fast DDS gives it back when a process ends, but not where it is killed, and up to 35 MB each time add up to a full
``/dev/shm``. Its own tool, ``fastdds shm clean``, finds them by their locks; this does the same for segments. Ports,
which several processes share and Fast DDS itself mends, are left alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from bnn_perception.ros.process import SHARED_MEMORY

#: The lock beside a segment of Fast DDS 2 or 3, which its process holds as long as it lives.
LOCK = re.compile(r"(fast(?:rtps|dds)_[0-9a-f]{16})_el")

#: Seconds for which a lock may stand unheld: it is made first and held then.
YOUNG = 10.0


def remove_leavings(place: Path = SHARED_MEMORY) -> str:
    """Remove segments whose processes have ended; returns what was removed in a sentence, empty where nothing was."""
    count = size = 0
    with suppress(OSError):
        for name in os.listdir(place):
            match = LOCK.fullmatch(name)
            if match:
                removed = _remove(place / name, place / match[1])
                count += removed is not None
                size += removed or 0
    if not count:
        return ""
    return f"removed {size / 1e6:.1f} MB of shared memory that {count} killed process(es) had left in {place}"


def _remove(lock: Path, segment: Path) -> int | None:
    """Remove a segment that nobody holds; returns its bytes, None where it stays."""
    # It may belong to another user, or vanish meanwhile.
    with suppress(OSError):
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if time.time() - os.fstat(descriptor).st_mtime < YOUNG:
                return None
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = segment.stat().st_size if segment.exists() else 0
            segment.unlink(missing_ok=True)
            lock.unlink()
        finally:
            os.close(descriptor)
        return size
    return None
