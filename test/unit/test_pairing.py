"""Images and a detector's boxes find each other by their stamps, whatever order they come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnn_perception.ros.pairing import MAX_BYTES, MAX_WAITING, RESTART, Pairing, Unpaired

MS = 1_000_000


class Bench:
    """A pairing, its pairs so far as ``(image, boxes)`` stamps in milliseconds, and a tolerance in milliseconds."""

    def __init__(self, tolerance=0):
        self.pairing = Pairing(Unpaired())
        self.pairs = []
        self.tolerance = tolerance * MS

    def image(self, *stamps, size=1):
        for stamp in stamps:
            self._keep(self.pairing.image(stamp * MS, stamp, size, self.tolerance))

    def boxes(self, *stamps, size=1):
        for stamp in stamps:
            self._keep(self.pairing.detections(stamp * MS, stamp, size, self.tolerance))

    def _keep(self, pair):
        if pair is not None:
            self.pairs.append(pair)

    @property
    def unpaired(self):
        return self.pairing.unpaired.images, self.pairing.unpaired.detections


def test_equal_stamps_are_a_pair_whichever_comes_first():
    bench = Bench()
    bench.image(1)
    bench.boxes(1, 2)
    bench.image(2)
    assert bench.pairs == [(1, 1), (2, 2)]
    assert bench.unpaired == (0, 0)
    assert len(bench.pairing) == 0


def test_boxes_that_take_long_find_their_image():
    """A detector of 300 ms at 30 Hz, which looks at every tenth frame."""
    bench = Bench()
    for frame in range(100):
        bench.image(33 * frame)
        if frame >= 9 and frame % 10 == 9:
            bench.boxes(33 * (frame - 9))
    assert bench.pairs == [(stamp, stamp) for stamp in range(0, 33 * 91, 330)]
    assert bench.unpaired == (9 * 9, 0)  # those that were skipped, up to the last pair


def test_boxes_older_than_a_pair_are_given_up():
    bench = Bench()
    bench.boxes(1, 2)
    bench.image(3)
    bench.boxes(3)
    assert bench.pairs == [(3, 3)]
    assert bench.unpaired == (0, 2)
    assert len(bench.pairing) == 0


def test_an_image_that_is_a_little_late_gives_up_none_that_waits():
    """A transport may reorder images; only a source that has started again goes back further."""
    bench = Bench()
    bench.image(2000, 1000)
    bench.boxes(1000, 2000)
    assert bench.pairs == [(1000, 1000), (2000, 2000)]
    bench.image(2000, 999)
    assert bench.unpaired == (1, 0)


def test_without_tolerance_stamps_are_equal_or_no_pair():
    bench = Bench()
    bench.image(10)
    bench.boxes(11)
    assert bench.pairs == []
    assert bench.pairing.unpaired.distance == MS
    bench.image(11)
    assert bench.pairs == [(11, 11)]
    assert bench.unpaired == (1, 0)


@pytest.mark.parametrize(("stamp", "nearest"), [(36, 33), (60, 66), (50, None), (95, 99)])
def test_the_nearest_within_the_tolerance_is_taken(stamp, nearest):
    bench = Bench(tolerance=10)
    bench.image(0, 33, 66, 99)
    bench.boxes(stamp)
    assert bench.pairs == ([(nearest, stamp)] if nearest is not None else [])


def test_an_equal_stamp_goes_before_a_near_one():
    bench = Bench(tolerance=50)
    bench.image(30, 40, 50)
    bench.boxes(40)
    assert bench.pairs == [(40, 40)]


def test_an_image_has_one_partner():
    bench = Bench(tolerance=5)
    bench.image(1)
    bench.boxes(1, 1, 2)
    assert bench.pairs == [(1, 1)]
    bench.image(2)
    assert bench.pairs == [(1, 1), (2, 2)]
    assert bench.unpaired == (0, 1)


def test_a_recording_that_starts_again_leaves_what_waited():
    bench = Bench()
    bench.image(5000, 5033)
    bench.boxes(5050)
    bench.image(0)
    assert bench.unpaired == (2, 1)
    bench.boxes(0)
    assert bench.pairs == [(0, 0)]


def test_what_waits_is_bounded_in_number():
    bench = Bench()
    bench.image(*range(1000))
    bench.boxes(*range(1100, 1900))
    assert len(bench.pairing) == 2 * MAX_WAITING
    assert bench.unpaired == (1000 - MAX_WAITING, 800 - MAX_WAITING)
    bench.boxes(999)
    assert bench.pairs == [(999, 999)]


def test_what_waits_is_bounded_in_bytes():
    bench = Bench()
    bench.image(1, 2, 3, size=MAX_BYTES // 2)
    assert bench.unpaired == (1, 0)
    bench.image(4, size=10 * MAX_BYTES)  # one may always wait
    assert bench.unpaired == (3, 0)
    bench.boxes(4)
    assert bench.pairs == [(4, 4)]
    bench.image(5, 6, size=MAX_BYTES // 2)
    assert bench.unpaired == (3, 0)


def test_boxes_wait_in_bounded_memory_too():
    bench = Bench()
    bench.boxes(1, 2, 3, size=MAX_BYTES // 2)
    assert bench.unpaired == (0, 1)


def test_stamps_of_the_far_future_do_not_keep_out_those_of_today():
    bench = Bench()
    bench.boxes(*range(10**9, 10**9 + MAX_WAITING))
    bench.boxes(5)
    bench.image(5)
    assert bench.pairs == [(5, 5)]


def test_what_nobody_takes_is_given_up():
    bench = Bench()
    bench.image(1, 2)
    bench.boxes(7)
    bench.pairing.clear()
    assert (len(bench.pairing), bench.unpaired) == (0, (2, 1))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4 * RESTART // MS)), max_size=300),
    st.integers(0, 100),
)
def test_nothing_is_lost_or_used_twice(events, tolerance):
    bench = Bench(tolerance)
    for is_image, stamp in events:
        (bench.image if is_image else bench.boxes)(stamp)
        assert all(abs(image - boxes) <= tolerance for image, boxes in bench.pairs)
    images, boxes = bench.unpaired
    waiting = len(bench.pairing)
    assert len(events) == 2 * len(bench.pairs) + images + boxes + waiting
    bench.pairing.clear()
    assert sum(is_image for is_image, _ in events) == len(bench.pairs) + bench.unpaired[0]
