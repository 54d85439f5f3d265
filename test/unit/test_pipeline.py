"""The inference thread, with engines and a node that do what they are told to; no ROS is needed."""

from __future__ import annotations

import random
import threading
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
from scripted import PATIENCE, Clock, NumberReader, wait_until

from bnn_perception.backends import BackendError
from bnn_perception.ros import pipeline as pipeline_module
from bnn_perception.ros.engine import Engine, EngineSpec
from bnn_perception.ros.parameters import EngineSettings, Settings
from bnn_perception.ros.pipeline import Arrival, Pipeline

#: How many cameras a pipeline serves.
CAMERAS = 4


class Message(SimpleNamespace):
    """An image message of ``rows`` rows; who asks for its height, as the first who reads it does, calls ``on_read``."""

    @property
    def height(self):
        self.on_read()
        return self.rows


def message(number, **fields):
    """A grey 4x4 image that :class:`NumberReader` reads as ``number``; ``fields`` replace what it says of itself."""
    values = {
        "rows": 4,
        "width": 4,
        "encoding": "mono8",
        "step": 4,
        "is_bigendian": 0,
        "on_read": lambda: None,
    }
    return Message(**{**values, "data": bytearray([number]) * 16, "number": number, **fields})


def bad(number, **fields):
    """An image that says less of its rows than it must."""
    return message(number, step=3, **fields)


def make_engine(name="first"):
    """An engine, and the stand-in behind it."""
    reader = NumberReader(name)
    return Engine(EngineSpec(EngineSettings(), None), reader), reader


class Node:
    """What the inference thread sees of the node, and of the loader that closes engines.

    Attributes:
        events: what happened, in order: ``("started", name)``, ``("retired", name)``, ``("failed", name, reason)``,
            ``("refused", number, reason)`` and ``("label", number, camera, label)``.
        lines: what was said of exceptions that nobody foresaw.
        answers: the predictions of each answer.
        publish_times: milliseconds that publishing takes, by the message's number.
        clock: is moved by them.
        on_publish: called with each arrival that is answered.
    """

    def __init__(self):
        self.events = []
        self.lines = []
        self.answers = []
        self.publish_times = {}
        self.clock = Clock()
        self.on_publish = lambda arrival: None

    def answered(self, answer):
        arrival, (predictions,) = answer.arrival, answer.predictions
        self.clock.advance(self.publish_times.get(arrival.message.number, 0))
        self.on_publish(arrival)
        self.answers.append(predictions)
        label = predictions[0].label if predictions else ""
        self.events.append(("label", arrival.message.number, arrival.camera, label))

    def refused(self, arrival, error):
        self.events.append(("refused", arrival.message.number, error.reason))

    def engine_started(self, engine):
        self.events.append(("started", engine.backend.name))

    def engine_failed(self, engine, reason):
        self.events.append(("failed", engine.backend.name, reason))
        engine.close()

    def unexpected(self, line):
        self.lines.append(line)

    def retire(self, engine):
        self.events.append(("retired", engine.backend.name))
        engine.close()

    def of(self, kind):
        """The events of one kind, without it."""
        return [event[1:] for event in list(self.events) if event[0] == kind]

    @property
    def labels(self):
        return self.of("label")


class Bench:
    """A pipeline whose first engine answers, and its node.

    Attributes:
        settings: what a frame takes along when it is put.
    """

    def __init__(self):
        self.node = Node()
        self.settings = Settings(max_pixels=10_000)
        self.pipeline = Pipeline(self.node, self.node.retire, CAMERAS)
        self.pipeline.start()
        self.first = self.swapped("first")
        self.node.events.clear()

    @property
    def counts(self):
        return self.pipeline.counts

    @property
    def done(self):
        """How many frames have come to an end."""
        counts = self.counts
        dropped = counts.skipped + counts.stale + counts.loading + counts.failed
        return counts.classified + dropped + sum(counts.refused.values())

    def put(self, camera, message, received=0.0, age=None):
        self.pipeline.put(Arrival(camera, message, self.settings, received, age))

    def until(self, condition):
        wait_until(condition, lambda: (self.counts, self.node.events))

    def finish(self):
        """Wait until every frame that was put has come to an end, and the node was told of those refused."""
        self.until(lambda: self.done == self.counts.received)
        self.until(lambda: len(self.node.of("refused")) == self.counts.refused.total())

    def ask(self, number, camera=0):
        """Put a frame and wait for its end."""
        self.put(camera, message(number))
        self.finish()

    def hold(self):
        """Let the thread wait in the first engine over a frame of camera 0 with the number 0.

        What is put until :meth:`release` makes one batch.
        """
        self.first.gate.clear()
        self.put(0, message(0))
        assert self.first.entered.wait(PATIENCE)

    def release(self):
        self.first.gate.set()
        self.finish()

    def swap(self, name):
        """Swap to a new engine; returns the stand-in behind it."""
        engine, reader = make_engine(name)
        self.pipeline.swap(engine)
        return reader

    def swapped(self, name):
        """Swap to a new engine and wait until it answers."""
        reader = self.swap(name)
        self.until(lambda: ("started", name) in self.node.events)
        return reader

    def stop(self):
        self.pipeline.stop()
        self.pipeline.close_engines()


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.first.gate.set()
    bench.stop()


# Batches.


def test_a_batch_holds_the_newest_frame_of_every_camera(bench):
    bench.hold()
    for camera, number in ((0, 10), (2, 12), (1, 11)):
        bench.put(camera, message(number))
    bench.release()
    assert bench.first.batches[0] == [0]
    assert sorted(bench.first.batches[1]) == [10, 11, 12]
    assert len(bench.first.batches) == 2
    assert sorted(bench.node.labels[1:]) == [(10, 0, "first:10"), (11, 1, "first:11"), (12, 2, "first:12")]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_bad_frame_in_a_batch_leaves_the_others_their_labels(bench, broken):
    bench.hold()
    for camera in range(3):
        bench.put(camera, (bad if camera == broken else message)(10 + camera))
    bench.release()
    expected = [(10 + camera, camera, f"first:{10 + camera}") for camera in range(3) if camera != broken]
    assert sorted(bench.node.labels[1:]) == expected
    assert bench.node.of("refused") == [(10 + broken, "step")]
    assert sorted(bench.first.batches[1]) == [number for number, _, _ in expected]
    assert bench.counts.classified == 3
    assert bench.counts.refused == {"step": 1}


def test_a_batch_of_bad_frames_asks_nothing_of_the_engine(bench):
    bench.hold()
    bench.put(0, bad(10))
    bench.put(1, message(11, rows=0))
    bench.release()
    assert bench.first.batches == [[0]]
    assert bench.counts.refused == {"step": 1, "zero size": 1}
    assert sorted(bench.node.of("refused")) == [(10, "step"), (11, "zero size")]
    bench.ask(12)
    assert bench.node.labels[-1] == (12, 0, "first:12")


def test_as_many_labels_as_are_wanted(bench):
    for wanted in (1, 3):
        bench.settings = replace(bench.settings, top_k=wanted)
        bench.ask(wanted)
        assert len(bench.node.answers[-1]) == wanted


def test_a_frame_is_answered_by_the_settings_of_the_moment_it_came(bench):
    """Frames of one batch may want different numbers of labels, scores and parts of the picture."""
    bench.hold()
    own = {
        0: replace(bench.settings, top_k=3),
        1: replace(bench.settings, top_k=2),
        2: replace(bench.settings, top_k=3, score_threshold=0.5),  # the stand-in's scores are 1, 1/2 and 1/3
        3: replace(bench.settings, max_pixels=15),
    }
    for camera, settings in own.items():
        bench.settings = settings
        bench.put(camera, message(10 + camera))
    bench.settings = replace(bench.settings, top_k=1, score_threshold=1.0)  # too late for all of them
    bench.release()
    assert [number for number, _, _ in bench.node.labels] == [0, 10, 11, 12]
    assert [len(predictions) for predictions in bench.node.answers] == [1, 3, 2, 2]
    assert bench.node.of("refused") == [(13, "too large")]


def test_the_region_and_the_transport_are_those_of_the_frame(bench):
    bench.settings = replace(bench.settings, region=(0.5, 0.0, 0.5, 1.0))
    bench.ask(1)
    assert bench.first.regions == [(0.5, 0.0, 0.5, 1.0)]
    bench.settings = replace(bench.settings, image_transport="compressed")
    bench.put(0, SimpleNamespace(data=b"", format="png", number=2))
    bench.finish()
    assert bench.node.of("refused") == [(2, "data length")]


def test_scores_below_the_threshold_leave_an_answer_without_labels(bench):
    bench.settings = replace(bench.settings, score_threshold=1.1)
    bench.ask(5)
    assert bench.node.labels == [(5, 0, "")]
    assert bench.counts.classified == 1


# The start.


def test_frames_before_the_first_engine_are_dropped_unread_and_counted(bench):
    """Bad ones too: nothing of a frame is looked at that cannot be answered."""
    node = Node()
    pipeline = Pipeline(node, node.retire, CAMERAS)
    read = []
    try:
        for number in (1, 2):  # a newer one takes the place of one that waits, whether anything runs or not
            pipeline.put(
                Arrival(0, message(number, on_read=lambda: read.append(1)), bench.settings, 0.0, None)
            )
        pipeline.start()
        wait_until(lambda: pipeline.counts.loading == 1)
        assert pipeline.counts.stale == 1
        pipeline.put(Arrival(1, bad(3, on_read=lambda: read.append(3)), bench.settings, 0.0, None))
        wait_until(lambda: pipeline.counts.loading == 2)
        assert (read, node.events, pipeline.is_loading, pipeline.engine) == ([], [], True, None)
        engine, _ = make_engine()
        pipeline.swap(engine)
        wait_until(lambda: node.events == [("started", "first")])
        assert not pipeline.is_loading
        pipeline.put(Arrival(0, message(4), bench.settings, 0.0, None))
        wait_until(lambda: node.labels == [(4, 0, "first:4")])
        wait_until(lambda: pipeline.counts.classified == 1)
        counts = pipeline.counts
        assert (counts.received, counts.stale, counts.loading, counts.failed) == (4, 1, 2, 0)
    finally:
        pipeline.stop()
        pipeline.close_engines()


def test_a_pipeline_that_was_never_started_ends(bench):
    pipeline = Pipeline(bench.node, bench.node.retire, CAMERAS)
    engine, reader = make_engine("early")
    pipeline.swap(engine)
    pipeline.stop()
    pipeline.close_engines()
    assert reader.closed == 1
    assert bench.node.events == []


# Overload.


def test_under_load_the_newest_frame_wins_and_the_others_are_stale(bench):
    bench.hold()
    for number in range(10, 16):
        bench.put(0, message(number))
    for number in range(20, 23):
        bench.put(1, message(number))
    assert bench.counts.received == 10
    assert bench.counts.stale == 5 + 2
    bench.release()
    assert sorted(bench.node.labels[1:]) == [(15, 0, "first:15"), (22, 1, "first:22")]
    assert bench.counts.classified == 3
    assert bench.counts.stale == 7
    # The slots are empty again.
    bench.ask(30)
    assert bench.counts.stale == 7
    assert bench.node.labels[-1] == (30, 0, "first:30")


def test_a_frame_that_is_being_answered_is_not_stale(bench):
    bench.hold()
    bench.put(0, message(10))
    assert bench.counts.stale == 0
    bench.release()
    assert [number for number, _, _ in bench.node.labels] == [0, 10]


# Faults.


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (BackendError("the GPU has fallen off the bus"), "the GPU has fallen off the bus"),
        (MemoryError("of the host"), "MemoryError: of the host"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_fault_costs_its_batch_and_the_engine(bench, fault, reason):
    bench.hold()
    bench.first.faults += [None, fault]
    for camera in range(3):
        bench.put(camera, message(10 + camera))
    bench.release()
    bench.until(lambda: bench.node.of("failed"))
    assert bench.node.of("failed") == [("first", reason)]
    assert bench.pipeline.engine is None
    assert bench.node.labels == [(0, 0, "first:0")]
    assert bench.counts.failed == 3
    # Without an engine: nothing is asked of the broken one, bad frames are refused all the same.
    bench.ask(20)
    bench.put(0, bad(21))
    bench.finish()
    assert bench.counts.failed == 4
    assert bench.counts.refused == {"step": 1}
    assert len(bench.first.batches) == 2
    assert bench.node.of("failed") == [("first", reason)]


def test_after_a_fault_the_next_engine_answers(bench):
    bench.first.faults.append(BackendError("gone"))
    bench.ask(10)
    bench.until(lambda: bench.first.closed)
    second = bench.swapped("second")
    bench.ask(11)
    assert bench.node.labels == [(11, 0, "second:11")]
    assert bench.node.of("retired") == []  # who was told of the fault closes the first
    assert (bench.first.closed, second.closed) == (1, 0)
    assert bench.counts.failed == bench.counts.classified == 1


def test_a_fault_while_a_new_engine_waits(bench):
    bench.hold()
    bench.first.faults.append(BackendError("gone"))
    bench.swap("second")
    bench.put(1, message(11))
    bench.release()
    assert bench.node.labels == [(11, 1, "second:11")]
    assert bench.node.of("failed") == [("first", "gone")]
    assert bench.node.of("retired") == []
    assert bench.first.closed == 1


# Swaps.


def test_a_new_engine_answers_from_the_next_batch_on(bench):
    bench.hold()
    second = bench.swap("second")
    bench.put(1, message(11))
    assert bench.node.events == []  # the batch in hand is the first engine's
    bench.release()
    bench.until(lambda: bench.node.of("retired"))
    assert bench.node.labels == [(0, 0, "first:0"), (11, 1, "second:11")]
    kinds = [event[:2] for event in bench.node.events]
    assert kinds == [("label", 0), ("started", "second"), ("retired", "first"), ("label", 11)]
    assert bench.pipeline.engine is not None
    assert bench.pipeline.engine.backend is second
    assert (bench.first.closed, second.closed) == (1, 0)


def test_a_swap_needs_no_frame(bench):
    bench.swapped("second")
    bench.until(lambda: bench.first.closed)
    assert bench.node.events == [("started", "second"), ("retired", "first")]


def test_an_engine_that_was_passed_over_is_retired(bench):
    bench.hold()
    passed_over = [bench.swap("second"), bench.swap("third")]
    last = bench.swap("last")
    assert bench.node.events == [("retired", "second"), ("retired", "third")]
    bench.release()
    bench.until(lambda: bench.first.closed)
    assert bench.node.of("started") == [("last",)]
    assert [reader.closed for reader in (bench.first, *passed_over, last)] == [1, 1, 1, 0]


def test_every_engine_of_many_swaps_is_closed_once(bench):
    readers = [bench.first]
    for index in range(5):
        readers.append(bench.swapped(f"engine {index}"))
        bench.ask(index)
    bench.until(lambda: sum(reader.closed for reader in readers) == 5)
    bench.stop()
    assert [reader.closed for reader in readers] == [1] * 6
    assert [label for _, _, label in bench.node.labels] == [f"engine {index}:{index}" for index in range(5)]


# The end.


def test_stop_waits_for_the_batch_in_hand_and_begins_no_other(bench):
    bench.hold()
    bench.put(1, message(11))
    waiting = bench.swap("waiting")
    stopper = threading.Thread(target=bench.pipeline.stop)
    stopper.start()
    stopper.join(0.05)
    assert stopper.is_alive()
    bench.first.gate.set()
    stopper.join(PATIENCE)
    assert not stopper.is_alive()
    assert bench.node.labels == [(0, 0, "first:0")]
    assert bench.node.of("started") == []
    assert (bench.first.closed, waiting.closed) == (0, 0)
    bench.pipeline.close_engines()
    assert (bench.first.closed, waiting.closed) == (1, 1)
    bench.pipeline.close_engines()  # does nothing
    assert (bench.first.closed, waiting.closed) == (1, 1)


def test_what_comes_after_the_end_is_closed_too(bench):
    bench.pipeline.stop()
    bench.put(0, message(10))
    late = bench.swap("late")
    bench.pipeline.close_engines()
    assert (bench.first.closed, late.closed) == (1, 1)
    assert bench.node.labels == []


# Times.


def test_times_of_every_stage(monkeypatch):
    """To the microsecond, on a clock that moves only where the script says."""
    bench = Bench()
    added = []
    monkeypatch.setattr(bench.pipeline.latency, "add", lambda times: added.append(dict(times)))
    clock = bench.node.clock
    monkeypatch.setattr(pipeline_module, "time", clock)
    bench.hold()
    # A bad frame stands before the others: its time is not that of another.
    bench.node.publish_times = {11: 1, 12: 3}
    bench.put(0, bad(10, on_read=lambda: clock.advance(5)), received=clock.now)
    bench.put(1, message(11, on_read=lambda: clock.advance(2)), received=clock.now - 0.010, age=30.0)
    bench.put(2, message(12, on_read=lambda: clock.advance(4)), received=clock.now - 0.004)
    bench.first.times = {"upload": 0.5, "preprocess": 5.5, "inference": 12.0}
    calls = iter([0, 20])
    bench.first.on_call = lambda: clock.advance(next(calls))
    try:
        bench.release()
    finally:
        bench.stop()
    _, one, other = added
    backend = {"upload": 0.5, "preprocess": 5.5, "inference": 12.0}
    # From the entry of the callback: 10 of waiting, 5 + 2 + 4 of decoding, 20 of the engine, 1 of publishing.
    assert one == pytest.approx(
        {
            "receive": 30,
            "wait": 10,
            "decode": 2,
            **backend,
            "publish": 1,
            "node": 42,
            "overhead": 24,
            "total": 72,
        },
        abs=1e-3,  # a thousand seconds in float64 are known to 1e-13 s, so this is generous
    )
    # Its stamp says nothing, so neither the time before nor the sum is known; it waits for the other's label too.
    assert other == pytest.approx(
        {"wait": 4, "decode": 4, **backend, "publish": 3, "node": 39, "overhead": 21}, abs=1e-3
    )
    order = ["receive", "wait", "decode", *backend, "publish", "node", "overhead", "total"]
    assert list(one) == order
    assert list(other) == order[1:-1]


def test_a_frame_that_came_in_the_moment_of_its_stamp_has_an_age(bench):
    bench.put(0, message(10), age=0.0)
    bench.until(lambda: bench.pipeline.latency.summary())
    assert bench.pipeline.latency.summary()["receive"].maximum == 0.0
    assert "total" in bench.pipeline.latency.summary()


def test_only_answered_frames_have_times(bench):
    bench.put(0, bad(10))
    bench.finish()
    bench.first.faults.append(BackendError("gone"))
    bench.ask(11)
    bench.ask(12)
    assert bench.pipeline.latency.summary() == {}


# All at once.


def test_nothing_is_lost_counted_twice_or_left_open_under_load(bench):
    """Three cameras, bad frames, faults and swaps from threads of their own."""
    frames = 150
    readers = [bench.first]
    wrong = []

    def check(arrival):
        if arrival.message.number % 7 == 0:
            wrong.append(arrival)

    bench.node.on_publish = check

    def camera(index):
        chance = random.Random(index)
        for count in range(frames):
            number = count % 200
            bench.put(index, (bad if number % 7 == 0 else message)(number))
            if chance.random() < 0.3:
                threading.Event().wait(0.001)

    def loader():
        chance = random.Random(9)
        for index in range(40):
            engine, reader = make_engine(f"engine {index}")
            if chance.random() < 0.5:
                reader.faults.append(BackendError("gone"))
            readers.append(reader)
            bench.pipeline.swap(engine)
            threading.Event().wait(0.001 * chance.random())

    threads = [threading.Thread(target=camera, args=(index,)) for index in range(3)]
    threads.append(threading.Thread(target=loader))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    bench.finish()
    assert bench.counts.received == 3 * frames
    assert bench.counts.classified == len(bench.node.labels)
    assert bench.counts.refused.total() == len(bench.node.of("refused"))
    bench.stop()
    assert [reader.closed for reader in readers] == [1] * len(readers)
    assert wrong == []
    for number, _, label in bench.node.labels:
        assert label.endswith(f":{number}")


# What nobody foresaw.


def fail_once(monkeypatch, owner, name, fault):
    """Let the next call of a method raise."""
    before = getattr(owner, name)

    def fail(*arguments):
        monkeypatch.setattr(owner, name, before)
        raise fault

    monkeypatch.setattr(owner, name, fail)


def test_a_message_whose_reading_raises_costs_itself(bench, monkeypatch):
    def raise_it():
        raise ValueError("not enough values to unpack")

    bench.hold()
    bench.put(0, message(10, on_read=raise_it))
    bench.put(1, message(11))
    bench.release()
    assert bench.node.labels == [(0, 0, "first:0"), (11, 1, "first:11")]
    assert bench.counts.failed == 1
    (line,) = bench.node.lines
    assert line.startswith(
        "reading a frame of camera 0: ValueError: not enough values to unpack (at unit/test_pipe"
    )


@pytest.mark.parametrize("fault", [RuntimeError("of a kind\nnobody foresaw"), MemoryError()])
@pytest.mark.parametrize("name", ["answered", "refused", "engine_started", "engine_failed", "unexpected"])
def test_whatever_the_node_raises_the_next_frame_is_answered(bench, monkeypatch, name, fault):
    """A fault at every call of the node: the message that it came with may be lost, no more."""
    fail_once(monkeypatch, bench.node, name, fault)
    second = bench.swap("second")
    bench.until(lambda: bench.first.closed)
    bench.ask(10)
    bench.put(0, bad(11))
    bench.until(lambda: bench.done == bench.counts.received)
    second.faults.append(BackendError("gone"))
    bench.ask(12) if name != "refused" else bench.put(0, message(12))
    bench.until(lambda: bench.done == bench.counts.received)
    bench.put(0, message(13, on_read=lambda: 1 / 0))
    bench.until(lambda: bench.done == bench.counts.received)
    third = bench.swapped("third") if name != "engine_failed" else second
    bench.put(0, message(14))
    bench.until(lambda: bench.done == bench.counts.received)
    assert bench.node.labels[-1] == (14, 0, f"{third.name}:14")
    # Frame 12 fell to the fault of the engine, 13 to its reading.
    assert bench.counts.failed == 2 + (name == "answered")
    assert bench.counts.refused == {"step": 1}
    assert len(bench.node.lines) == (1 if name == "unexpected" else 2)
    assert all("\n" not in line for line in bench.node.lines)


def test_a_fault_that_could_not_be_reported_is_reported_again(bench, monkeypatch):
    fail_once(monkeypatch, bench.node, "engine_failed", RuntimeError("busy"))
    bench.first.faults += [BackendError("gone"), BackendError("gone again")]
    bench.ask(10)
    bench.ask(11)
    bench.until(lambda: bench.node.of("failed"))
    assert bench.node.of("failed") == [("first", "gone again")]
    assert bench.pipeline.engine is None


def test_an_engine_whose_retiring_raises_is_left_and_the_next_answers(bench, monkeypatch):
    def fail(engine):
        raise OSError("no")

    monkeypatch.setattr(bench.pipeline, "_retire", fail)
    bench.hold()
    bench.swap("passed over")
    bench.swap("second")
    bench.release()
    bench.ask(10)
    assert bench.node.labels[-1] == (10, 0, "second:10")
    assert [line.split(" (at")[0] for line in bench.node.lines] == ["retiring an engine: OSError: no"] * 2


def test_the_times_of_a_frame_cost_nothing_but_themselves(bench, monkeypatch):
    fail_once(monkeypatch, bench.pipeline.latency, "add", ZeroDivisionError("no"))
    bench.ask(10)
    bench.ask(11)
    assert bench.node.labels == [(10, 0, "first:10"), (11, 0, "first:11")]
    assert (bench.counts.classified, bench.counts.failed) == (2, 0)


def test_an_engine_that_cannot_be_closed_does_not_keep_the_other_open(bench, monkeypatch):
    bench.pipeline.stop()
    late = bench.swap("late")
    fail_once(monkeypatch, bench.first, "close", OSError("no"))
    bench.pipeline.close_engines()
    assert (bench.first.closed, late.closed) == (0, 1)


def test_a_thread_that_has_ended_is_brought_back(bench):
    """A library may call for the end of the thread."""
    bench.first.faults.append(SystemExit(3))
    bench.put(0, message(10))
    bench.until(lambda: not bench.pipeline.worker._thread.is_alive())
    assert bench.counts.failed == 1
    reason = bench.pipeline.worker.revive()
    assert reason.startswith("the inference thread ended (SystemExit: 3 (at ")
    assert reason.endswith(") and was started again")
    assert bench.pipeline.worker.revive() == ""
    bench.ask(11)
    assert bench.node.labels == [(11, 0, "first:11")]


def test_the_thread_says_what_it_is_busy_with(bench, monkeypatch):
    worker = bench.pipeline.worker
    assert worker.state == "waiting"
    bench.hold()
    assert worker.state.startswith("evaluating frames for 0.")
    assert not worker.is_stuck
    monkeypatch.setattr(worker, "_patience", 0.0)
    assert worker.is_stuck
    bench.release()
    bench.until(lambda: worker.state == "waiting")
    assert not worker.is_stuck


# Between a deactivation and the next activation.


def test_a_released_pipeline_holds_no_engine_and_takes_none(bench):
    bench.pipeline.release(PATIENCE)
    assert bench.node.of("retired") == [("first",)]
    assert (bench.pipeline.engine, bench.pipeline.is_loading) == (None, True)
    late = bench.swap("late")
    bench.until(lambda: late.closed == 1)
    bench.put(0, message(1))
    bench.until(lambda: bench.counts.loading == 1)
    bench.pipeline.resume()
    bench.swapped("second")
    bench.ask(2)
    assert bench.node.labels == [(2, 0, "second:2")]


def test_a_release_waits_for_the_batch_in_hand(bench):
    bench.hold()
    started = threading.Thread(target=bench.pipeline.release, args=(PATIENCE,))
    started.start()
    assert bench.first.closed == 0
    bench.first.gate.set()
    started.join(PATIENCE)
    assert not started.is_alive()
    assert bench.node.labels == [(0, 0, "first:0")]
    assert bench.first.closed == 1


def test_a_release_waits_no_longer_than_its_patience(bench):
    bench.hold()
    bench.pipeline.release(0.01)
    assert bench.first.closed == 0
    bench.first.gate.set()
    bench.until(lambda: bench.first.closed == 1)


def test_an_engine_that_waits_is_retired_with_the_other(bench):
    bench.hold()
    waiting = bench.swap("waiting")
    bench.pipeline.release(0.01)
    bench.first.gate.set()
    bench.until(lambda: (bench.first.closed, waiting.closed) == (1, 1))
    assert bench.pipeline.engine is None


def test_what_is_skipped_is_counted_by_camera(bench):
    bench.pipeline.skip(2)
    bench.ask(1, camera=1)
    assert [counts.skipped for counts in bench.pipeline.cameras] == [0, 0, 1, 0]
    assert [counts.received for counts in bench.pipeline.cameras] == [0, 1, 1, 0]
    assert (bench.counts.received, bench.counts.skipped, bench.counts.classified) == (2, 1, 1)


def test_nothing_keeps_an_engine_that_was_replaced(bench):
    """Not the camera either that has sent nothing since: the memory of an engine is to go back to the system."""
    bench.ask(1, camera=2)
    replaced = weakref.ref(bench.pipeline.engine)
    bench.swapped("second")
    bench.until(lambda: replaced() is None)
