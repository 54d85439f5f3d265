"""What killed processes leave in shared memory, and what those that live hold."""

from __future__ import annotations

import fcntl
import os
import time

from bnn_perception.ros.leavings import remove_leavings


def segment(place, number, size=1_000_000, prefix="fastdds", age=60):
    """A segment and its lock, as Fast DDS makes them."""
    name = f"{prefix}_{number:016x}"
    (place / name).write_bytes(bytes(size))
    lock = place / f"{name}_el"
    lock.touch()
    os.utime(lock, (time.time() - age,) * 2)
    return lock


def test_segments_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    for number, prefix in enumerate(("fastdds", "fastrtps")):
        segment(tmp_path, number, 1_200_000, prefix)
    (tmp_path / "fastdds_0000000000000000").unlink()  # its lock alone is left
    held = segment(tmp_path, 7)
    young = segment(tmp_path, 8, age=0)
    others = [
        tmp_path / name for name in ("fastdds_port7411_el", "fastdds_port7411", "sem.x", "fastdds_1_el")
    ]
    for other in others:
        other.touch()
        os.utime(other, (0, 0))
    (tmp_path / "fastdds_00000000000000ff_el").symlink_to(others[0])
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = remove_leavings(tmp_path)
        assert said == f"removed 1.2 MB of shared memory that 2 killed process(es) had left in {tmp_path}"
        assert remove_leavings(tmp_path) == ""
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        *(name for lock in (held, young) for name in (lock.name, lock.name[:-3])),
        *(other.name for other in others),
        "fastdds_00000000000000ff_el",
    }


def test_what_cannot_be_removed_stays(tmp_path, monkeypatch):
    segment(tmp_path, 1)

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    assert remove_leavings(tmp_path) == ""
    assert len(list(tmp_path.iterdir())) == 2
    assert remove_leavings(tmp_path / "nowhere") == ""
