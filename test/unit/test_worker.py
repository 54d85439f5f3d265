"""The node's own threads by themselves: steps that raise, a report that raises, an end that nobody asked for."""

from __future__ import annotations

import threading

import pytest
from scripted import PATIENCE, wait_until

from bnn_perception.ros import worker as worker_module
from bnn_perception.ros.worker import Unforeseen, Worker, with_place


class Steps:
    """Steps that do what they are told to, one after the other; the last waits to be told of the end."""

    def __init__(self, *steps):
        self.done = 0
        self.end = threading.Event()
        self._steps = steps

    def __call__(self):
        index, self.done = self.done, self.done + 1
        if index < len(self._steps):
            self._steps[index]()
            return True
        assert self.end.wait(PATIENCE)
        return False


def fail(error):
    def step():
        raise error

    return step


def ended(worker, steps):
    steps.end.set()
    return worker.join(PATIENCE)


def test_steps_that_raise_are_said_and_followed_by_others():
    lines = []
    steps = Steps(fail(ValueError("one")), lambda: None, fail(KeyError("two")))
    worker = Worker("any", steps, lines.append, PATIENCE)
    worker.start()
    wait_until(lambda: steps.done == 4)
    assert ended(worker, steps)
    assert [line.split(" (at")[0] for line in lines] == [
        "the any thread: ValueError: one",
        "the any thread: KeyError: 'two'",
    ]
    assert all("(at unit/test_worker.py:" in line for line in lines)


def test_a_report_that_raises_costs_nothing():
    steps = Steps(fail(ValueError("one")))
    worker = Worker("any", steps, lambda line: fail(RuntimeError(f"no log for {line}"))(), PATIENCE)
    worker.start()
    wait_until(lambda: steps.done == 2)
    assert ended(worker, steps)
    assert worker.revive() == ""


def test_a_step_that_always_raises_leaves_the_processor_alone_and_can_be_ended(monkeypatch):
    monkeypatch.setattr(worker_module, "PAUSE", 0.05)
    lines = []
    worker = Worker("any", fail(ValueError("always")), lines.append, PATIENCE)
    worker.start()
    threading.Event().wait(0.3)
    assert worker.join(PATIENCE)
    # A step each 0.05 s, and one that the end finds.
    assert 1 <= len(lines) <= 8


def test_a_thread_ends_unasked_and_comes_back():
    steps = Steps(fail(SystemExit("enough")), lambda: None)
    worker = Worker("any", steps, print, PATIENCE)
    assert worker.revive() == ""  # it was not started
    worker.start()
    wait_until(lambda: not worker._thread.is_alive())
    assert worker.revive().startswith("the any thread ended (SystemExit: enough (at unit/test_worker.py:")
    wait_until(lambda: steps.done == 3)
    assert ended(worker, steps)
    assert worker.revive() == ""


def test_a_thread_that_cannot_be_started_is_tried_again(monkeypatch):
    steps = Steps(fail(SystemExit("enough")))
    worker = Worker("any", steps, print, PATIENCE)
    worker.start()
    wait_until(lambda: not worker._thread.is_alive())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: fail(RuntimeError("can't start new thread"))())
        assert worker.revive()
    assert worker.revive()
    wait_until(lambda: steps.done == 2)
    assert ended(worker, steps)


def test_attempts_may_lie_in_one_another():
    lines = []
    worker = Worker("any", lambda: False, lines.append, PATIENCE)
    states = []

    def inner():
        states.append(worker.state)
        raise OSError("no")

    def outer():
        assert not worker.attempt("inner", inner)
        states.append(worker.state)

    assert worker.attempt("outer", outer)
    assert [state.split(" for ")[0] for state in [*states, worker.state]] == ["inner", "outer", "waiting"]
    assert len(lines) == 1
    assert lines[0].startswith("inner: OSError: no (at ")


def test_what_nobody_foresaw_is_counted_from_any_thread():
    unforeseen = Unforeseen()
    threads = [threading.Thread(target=lambda: [unforeseen.add("x") for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    unforeseen.add("last")
    assert unforeseen.read() == (4001, "last")


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("a\nb"), "ValueError: a b"), (KeyError(), "KeyError")]
)
def test_an_exception_that_was_not_raised_has_no_place(error, line):
    assert with_place(error) == line
