"""What the fuzz tests share: how many cases, how inputs are damaged, and what one case may take.

``make fuzz`` runs as many cases as :data:`CASES` says, ``make test`` a share of them. A case is told by its number: it
draws from a generator of its own, so that one that fails is repeated by ``FUZZ_CASE=<number>``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

#: Cases of a whole run.
CASES = {"messages": 100_000, "model folders": 20_000, "onnx": 5_000, "bnn_pynq": 5_000, "float twins": 5_000}

#: How many of them run where no whole run is asked for: each kind takes a few seconds.
SHARE = {"messages": 0.05, "model folders": 0.02, "onnx": 0.2, "bnn_pynq": 0.1, "float twins": 0.1}

#: Seconds of processor time, and bytes beside what the tests themselves take, for one case.
SECONDS, MEMORY = 10.0, 1 << 30

#: Seconds after which a case that hangs ends the tests, with the place where it hangs.
HANGING = 120.0

#: Numbers at which programs go wrong.
EDGES = (
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    255,
    256,
    4096,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)

Generator = np.random.Generator


def run(kind: str, case: Callable[[Generator], None]) -> None:
    """Run the cases of a kind; one that raises is named."""
    count = CASES[kind] if os.environ.get("FUZZ") else int(CASES[kind] * SHARE[kind])
    only = os.environ.get("FUZZ_CASE")
    # Others each day would find more; the same find what was broken today.
    for number in range(count) if only is None else [int(only)]:
        with limited(f"{kind}, FUZZ_CASE={number}"):
            case(np.random.default_rng([number, len(kind)]))


@contextlib.contextmanager
def limited(name: str) -> Iterator[None]:
    """Bound time and memory of what runs inside."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    faulthandler.dump_traceback_later(HANGING, exit=True)
    started = time.process_time()
    try:
        yield
    except BaseException as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, before)
    seconds = time.process_time() - started
    assert seconds < SECONDS, f"{name}: took {seconds:.1f} s"


def one_of(rng: Generator, values: Sequence[object]) -> object:
    """A value out of a sequence, which may be of different kinds."""
    return values[int(rng.integers(len(values)))]


def number(rng: Generator) -> int:
    """A number at or beside an edge, of either sign, or any."""
    edge = EDGES[int(rng.integers(len(EDGES)))]
    return int(rng.choice([edge, edge - 1, -edge, int(rng.integers(0, 300)), int(rng.integers(0, 2**32))]))


def damaged(rng: Generator, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes with a few faults: changed, cut, doubled, overwritten by numbers at edges or by other content."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(data) + 1))
        length = int(rng.integers(1, 1 + min(64, max(len(data), 1))))
        fault = rng.integers(8)
        if fault == 0:
            data[at : at + 1] = rng.bytes(1)
        elif fault == 1:
            data[at : at + length] = rng.bytes(length)
        elif fault == 2:
            del data[at : at + length]
        elif fault == 3:
            data[at:at] = data[at : at + length]
        elif fault == 4:
            order = "little" if rng.random() < 0.5 else "big"
            size = int(rng.choice([1, 2, 4, 8]))
            data[at : at + size] = (number(rng) % 256**size).to_bytes(size, order)
        elif fault == 5:
            del data[at:]
        elif fault == 6 and others:
            other = others[int(rng.integers(len(others)))]
            start = int(rng.integers(0, len(other) + 1))
            data[at : at + length] = other[start : start + length]
        else:
            data[at:at] = bytes([255 * int(rng.integers(2))]) * length
    return bytes(data)


def assert_one_line(error: Exception) -> None:
    """A refusal is one line, and not endless."""
    text = str(error)
    assert text
    assert "\n" not in text, text
    assert len(text) < 3000, len(text)
