"""The shim catches what it is there to catch: each seeded fault, in each mode that claims it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from host_module import HostModule, LaunchError

SOURCE = (Path(__file__).parent / "faults" / "faults.cu").read_text(encoding="utf-8")
FAULTS = {name: int(number) for name, number in re.findall(r"#define ([A-Z_]+) (\d+)", SOURCE)}
BLOCKS = 3


def launch(fault: str, mode: str, seed: int = 0, poison: int = 0xCD) -> bool:
    """Whether the result is right."""
    values = np.arange(1, BLOCKS * 64 + 1, dtype=np.uint32)
    result = np.zeros_like(values)
    module = HostModule(SOURCE, (f"-DFAULT={FAULTS[fault]}",), mode)
    args = (values, result, np.int32(63))
    module.launch("reverse", (BLOCKS,), (64,), args, shared_bytes=256, seed=seed, poison=poison)
    return bool(np.all(result.reshape(BLOCKS, 64) == values.reshape(BLOCKS, 64)[:, ::-1]))


# By mode: what its report says, or "wrong" where the result is compared with the reference, in one of the orders.
WRONG = "wrong"
DEADLOCK = "deadlock: threads wait"
CAUGHT: dict[str, dict[str, str]] = {
    "plain": {
        "MISSING_BARRIER": WRONG,
        "WARP_RACE": WRONG,
        "READ_PAST_GLOBAL": WRONG,
        "WRITE_PAST_GLOBAL": "wrote outside argument 1",
        "READ_PAST_DYNAMIC": WRONG,
        "READ_PAST_SHARED": WRONG,
        "UNINITIALISED": WRONG,
        "MISALIGNED": WRONG,
        "OVERFLOWING": WRONG,
        "DIVERGENT_BARRIER": DEADLOCK,
        "ENDED_BEFORE_BARRIER": "after a thread of the block has ended|deadlock",
        "LANE_NOT_IN_MASK": "the calling lane is not in the mask",
        "ENDED_LANE_IN_MASK": "has ended|deadlock",
        "MASKS_DIFFER": "differ in operation or mask|not in the mask|deadlock",
        "TRAP": "__trap",
    },
    "asan": {
        "READ_PAST_GLOBAL": "heap-buffer-overflow",
        "WRITE_PAST_GLOBAL": "heap-buffer-overflow",
        "READ_PAST_SHARED": "global-buffer-overflow|index 64 out of bounds",
        "WRITE_PAST_SHARED": "global-buffer-overflow|index 64 out of bounds",
        "READ_PAST_DYNAMIC": "heap-buffer-overflow",
        "MISALIGNED": "misaligned address",
        "OVERFLOWING": "signed integer overflow",
        "TRAP": "__trap",
    },
    "tsan": {
        "MISSING_BARRIER": "data race",
        "WARP_RACE": "data race",
        "DIVERGENT_BARRIER": "data race",
        "TRAP": "__trap",
    },
}
CASES = [(mode, fault) for mode, faults in CAUGHT.items() for fault in faults]


@pytest.mark.parametrize(("mode", "fault"), CASES)
def test_fault_is_caught(mode: str, fault: str) -> None:
    expected = CAUGHT[mode][fault]
    if expected == WRONG:
        assert not all(launch(fault, mode, seed) for seed in (0, 1))
    else:
        with pytest.raises(LaunchError, match=expected):
            launch(fault, mode)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", list(CAUGHT))
def test_right_kernel_passes(mode: str, seed: int) -> None:
    assert launch("NONE", mode, seed)


def test_every_fault_is_caught_by_some_mode() -> None:
    assert {fault for faults in CAUGHT.values() for fault in faults} == set(FAULTS) - {"NONE"}


@pytest.mark.parametrize("poison", [0x00, 0xFF])
def test_uninitialised_memory_shows_as_a_difference_between_poisons(poison: int) -> None:
    """A kernel that happens to be right with one garbage is wrong with another."""
    assert not launch("UNINITIALISED", "plain", poison=poison)


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((1,), (1025,), "invalid block"),
        ((1,), (0,), "invalid block"),
        ((1, 65536), (64,), "invalid grid"),
        ((0,), (64,), "invalid grid"),
    ],
)
def test_impossible_launches_are_refused(grid: Sequence[int], block: Sequence[int], message: str) -> None:
    values = np.zeros(64, dtype=np.uint32)
    with pytest.raises(LaunchError, match=message):
        HostModule(SOURCE, ("-DFAULT=0",)).launch(
            "reverse", grid, block, (values, values.copy(), np.int32(63)), shared_bytes=256
        )
