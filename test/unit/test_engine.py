"""The loading thread: requests, faults and recovery, with backends that fail when they are told to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from models import random_model
from scripted import PATIENCE, Machine, Processor, wait_until

from bnn_perception.backends import BackendError
from bnn_perception.ros import engine as engine_module
from bnn_perception.ros.engine import EngineLoader, EngineSpec, build_engine
from bnn_perception.ros.parameters import EngineSettings

ROOT = Path(__file__).resolve().parents[2]

#: Seconds from a fault to the first new try, in tests that wait for it.
FIRST_RETRY = 0.05


class Heard:
    """What the loader says."""

    def __init__(self):
        self.engines, self.rejections, self.lines = [], [], []

    def until(self, condition):
        wait_until(condition, lambda: (self.engines, self.rejections, self.lines))

    def delays(self):
        """The pauses, in seconds, that were announced after a try in vain."""
        return [
            float(line.split("next try in ")[1].split(" s")[0]) for line in self.lines if "next try" in line
        ]


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(engine_module, "make_backend", machine.make_backend)
    return machine


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def start(machine, heard):
    """A function that starts a loader whose first engine runs."""
    loaders = []

    def start(device, first_retry=FIRST_RETRY):
        loader = EngineLoader(
            deliver=heard.engines.append,
            reject=lambda spec, reason: heard.rejections.append((spec, reason)),
            report=heard.lines.append,
            first_retry=first_retry,
        )
        loaders.append(loader)
        loader.start()
        loader.request(
            EngineSpec(EngineSettings("m", "binary", device), random_model(np.random.default_rng(0)))
        )
        heard.until(lambda: heard.engines)
        return loader, heard.engines.pop()

    yield start
    for loader in loaders:
        loader.close()


def request(spec, **changes):
    """A spec that differs from ``spec`` in all but the device, and in the changes."""
    values = {"model": "other", "backend": "float", "device": spec.asked.device, "threads": 1}
    return EngineSpec(EngineSettings(**{**values, **changes}), spec.model)


def test_nothing_is_made_before_the_start(machine, heard, start):
    _, first = start("cpu")
    loader = EngineLoader(heard.engines.append, lambda *_: None, heard.lines.append)
    loader.request(first.spec)
    time.sleep(0.05)
    assert machine.made == 1
    assert loader.close()  # there is no thread to wait for
    assert heard.engines == []


def test_the_first_request_may_fail_and_the_next_be_met(machine, heard):
    machine.gpu_works = False
    loader = EngineLoader(heard.engines.append, lambda *rejection: heard.rejections.append(rejection), print)
    loader.start()
    spec = EngineSpec(EngineSettings("m", "binary", "cuda"), random_model(np.random.default_rng(0)))
    loader.request(spec)
    heard.until(lambda: heard.rejections)
    assert heard.rejections == [(spec, "no usable GPU")]
    assert loader.current is None
    other = request(spec, device="cpu")
    loader.request(other)
    heard.until(lambda: heard.engines)
    assert loader.current is other
    assert loader.close()


def test_the_end_does_not_wait_longer_than_its_patience(machine, heard):
    begun, go_on = threading.Event(), threading.Event()

    def compile_for_long():
        begun.set()
        assert go_on.wait(PATIENCE)

    machine.before_making = compile_for_long
    loader = EngineLoader(heard.engines.append, lambda *_: None, print)
    loader.start()
    loader.request(EngineSpec(EngineSettings("m"), random_model(np.random.default_rng(0))))
    assert begun.wait(PATIENCE)
    assert not loader.close(0.05)
    go_on.set()
    assert loader.close()


def test_a_process_ends_though_its_loader_is_in_a_compiler():
    program = (
        "import sys, threading\n"
        "sys.path.append('test')\n"
        "import numpy as np\n"
        "from models import random_model\n"
        "from scripted import Machine\n"
        "from bnn_perception.ros import engine\n"
        "begun, machine = threading.Event(), Machine()\n"
        "machine.before_making = lambda: (begun.set(), threading.Event().wait())\n"
        "engine.make_backend = machine.make_backend\n"
        "loader = engine.EngineLoader(print, print, print)\n"
        "loader.start()\n"
        "asked = engine.EngineSettings('m')\n"
        "loader.request(engine.EngineSpec(asked, random_model(np.random.default_rng(0))))\n"
        "assert begun.wait(20)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, timeout=PATIENCE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_requested_is_delivered_and_the_old_engine_closed(start, machine, heard):
    loader, first = start("auto")
    spec = request(first.spec)
    loader.request(spec)
    heard.until(lambda: heard.engines)
    (engine,) = heard.engines
    assert engine.spec is spec is loader.current
    assert engine.backend.name == "cuda_float"
    assert engine.degraded == ""
    loader.retire(first)
    heard.until(lambda: machine.open == [engine.backend])
    loader.request(first.spec)
    heard.until(lambda: len(heard.engines) == 2)
    assert machine.closed == ["cuda_binary"]


def test_a_request_that_fails_is_rejected_with_the_reason(start, machine, heard):
    loader, first = start("cpu")
    machine.gpu_works = False
    spec = request(first.spec, device="cuda")
    loader.request(spec)
    heard.until(lambda: heard.rejections)
    assert heard.rejections == [(spec, "no usable GPU")]
    assert loader.current is first.spec
    assert machine.open == [first.backend]


def test_what_is_no_backend_error_is_named(start, machine, heard, monkeypatch):
    loader, first = start("cpu")

    def explode(self, frames):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(Processor, "logits", explode)
    loader.request(request(first.spec))
    heard.until(lambda: heard.rejections)
    assert heard.rejections[0][1] == "backend float: ZeroDivisionError: by zero"
    assert machine.open == [first.backend]  # the half-made one has been closed


def test_auto_answers_from_the_cpu_until_the_gpu_works_again(start, machine, heard):
    loader, first = start("auto")
    assert first.backend.name == "cuda_binary"
    machine.gpu_works = False
    loader.fault(first, "the GPU has fallen off the bus")
    heard.until(lambda: heard.engines)
    substitute = heard.engines[0]
    assert substitute.backend.name == "cpu_binary"
    assert "cuda_binary failed: the GPU has fallen off the bus" in substitute.degraded
    heard.until(lambda: any("cannot be used yet" in line for line in heard.lines))
    assert len(heard.engines) == 1
    machine.gpu_works = True
    heard.until(lambda: len(heard.engines) == 2)
    assert heard.engines[1].backend.name == "cuda_binary"
    assert heard.engines[1].degraded == ""
    loader.retire(substitute)
    heard.until(lambda: machine.open == [heard.engines[1].backend])


def test_explicit_cuda_is_never_answered_by_another(start, machine, heard):
    loader, first = start("cuda")
    machine.gpu_works = False
    loader.fault(first, "the GPU has fallen off the bus")
    heard.until(lambda: any("cannot be used yet" in line for line in heard.lines))
    assert heard.engines == []
    assert machine.open == []
    machine.gpu_works = True
    heard.until(lambda: heard.engines)
    assert heard.engines[0].backend.name == "cuda_binary"
    assert heard.lines[-1] == "cuda_binary works again"


def test_each_try_in_vain_doubles_the_pause_up_to_the_longest(start, machine, heard, monkeypatch):
    monkeypatch.setattr(engine_module, "LAST_RETRY", 0.3)
    loader, first = start("cuda")
    machine.gpu_works = False
    begin = time.monotonic()
    loader.fault(first, "gone")
    heard.until(lambda: len(heard.delays()) >= 5)
    # The fifth try came after 0.05 + 0.1 + 0.2 + 0.3 + 0.3 s; a busy machine only makes it longer.
    assert time.monotonic() - begin >= 0.95
    assert heard.delays()[:5] == [0.1, 0.2, 0.3, 0.3, 0.3]
    assert loader.current is first.spec


def recovered(loader, machine, heard, engine):
    """The engine that comes after a fault."""
    before = len(heard.engines)
    loader.fault(engine, "gone")
    heard.until(lambda: len(heard.engines) > before)
    return heard.engines[-1]


def test_faults_soon_after_each_other_double_the_first_pause(start, machine, heard):
    loader, engine = start("cuda", first_retry=0.01)
    for _ in range(3):  # tries after 0.01, 0.02 and 0.04 s
        engine = recovered(loader, machine, heard, engine)
    machine.gpu_works = False
    loader.fault(engine, "gone")  # a try after 0.08 s
    heard.until(heard.delays)
    assert heard.delays()[0] == pytest.approx(0.16)


def test_an_engine_that_ran_well_for_long_starts_over(start, machine, heard, monkeypatch):
    monkeypatch.setattr(engine_module, "LAST_RETRY", 0.2)
    loader, engine = start("cuda", first_retry=0.02)
    for _ in range(2):
        engine = recovered(loader, machine, heard, engine)
    time.sleep(0.25)
    machine.gpu_works = False
    loader.fault(engine, "gone")
    heard.until(heard.delays)
    assert heard.delays()[0] == pytest.approx(0.04)


def test_a_fault_of_a_replaced_engine_changes_nothing(start, machine, heard):
    loader, first = start("cpu")
    spec = request(first.spec)
    loader.request(spec)
    heard.until(lambda: heard.engines)
    loader.fault(first, "too late")
    heard.until(lambda: machine.open == [heard.engines[0].backend])
    time.sleep(0.2)  # longer than the first retry
    assert len(heard.engines) == 1
    assert heard.lines == []


def test_a_request_ends_the_tries(start, machine, heard):
    loader, first = start("cuda")
    machine.gpu_works = False
    loader.fault(first, "gone")
    heard.until(lambda: heard.lines)
    loader.request(request(first.spec, device="cpu"))
    heard.until(lambda: heard.engines)
    assert heard.engines[0].backend.name == "cpu_float"
    machine.gpu_works = True
    time.sleep(0.5)  # several tries long
    assert len(heard.engines) == 1


def test_an_engine_is_made_as_the_spec_says_and_warmed_up(machine):
    spec = EngineSpec(EngineSettings("m", "float", "cuda", 3), random_model(np.random.default_rng(0)))
    engine = build_engine(spec)
    assert machine.calls == [("float", "cuda", 3)]
    assert machine.open == [engine.backend]
    assert engine.backend.frames == [
        (480, 640, "rgb8")
    ]  # compilation and allocation are not left to the first
    assert (engine.spec, engine.degraded) == (spec, "")
    assert engine.classifier.model is spec.model
    assert engine.name == f"{spec.model.name} on cuda_float (a stand-in cuda)"
    engine.close()
    assert machine.open == []
    other = build_engine(spec, "cpu", "because")
    assert machine.calls[-1] == ("float", "cpu", 3)
    assert (other.spec, other.degraded) == (spec, "because")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_what_is_made_anew_is_what_was_requested(start, machine, heard, device):
    loader, first = start(device)
    spec = request(first.spec, threads=5)
    loader.request(spec)
    heard.until(lambda: heard.engines)
    engine = recovered(loader, machine, heard, heard.engines[0])
    heard.until(lambda: machine.calls[-1] == ("float", device, 5))
    assert engine.spec is spec
    if device == "auto":  # the CPU was asked at once
        assert machine.calls[-2] == ("float", "cpu", 5)


def test_only_the_newest_request_is_met(start, machine, heard):
    loader, first = start("cpu")
    begun, go_on = threading.Event(), threading.Event()

    def wait():
        begun.set()
        assert go_on.wait(PATIENCE)

    machine.before_making = wait
    requests = [request(first.spec, threads=threads) for threads in (1, 2, 3, 4)]
    loader.request(requests[0])
    assert begun.wait(PATIENCE)
    for later in requests[1:]:
        loader.request(later)
    go_on.set()
    heard.until(lambda: heard.engines)
    assert [engine.spec for engine in heard.engines] == [requests[3]]
    assert [threads for _, _, threads in machine.calls] == [0, 1, 4]
    assert loader.current is requests[3]
    assert machine.closed == ["cpu_float"]  # it was made, and not warmed up
    assert heard.lines == [f"{requests[0].asked} was given up: it is wanted no longer"]
    assert heard.rejections == []


def test_a_request_that_was_rejected_leaves_all_as_it_was(start, machine, heard):
    """The running engine is still the one that is made anew after a fault, and the request is not tried again."""
    loader, first = start("auto")
    machine.before_making = lambda: fail_float(machine)
    spec = request(first.spec)
    loader.request(spec)
    heard.until(lambda: heard.rejections)
    assert heard.rejections == [(spec, "no float today")]
    assert loader.current is first.spec
    loader.fault(first, "gone")
    heard.until(lambda: len(heard.engines) == 2)  # the CPU, and the GPU again
    assert [engine.spec for engine in heard.engines] == [first.spec] * 2
    assert len(heard.rejections) == 1
    assert first.backend.name in machine.closed


def fail_float(machine):
    if machine.calls[-1][0] == "float":
        raise BackendError("no float today")


def test_a_rejected_request_does_not_end_the_tries(start, machine, heard):
    loader, first = start("cuda")
    machine.gpu_works = False
    loader.fault(first, "gone")
    heard.until(heard.delays)
    loader.request(request(first.spec))
    heard.until(lambda: heard.rejections)
    machine.gpu_works = True
    heard.until(lambda: heard.engines)
    assert heard.engines[0].spec is first.spec
    assert heard.lines[0] == "cuda_binary failed: gone"
    assert heard.lines[1].startswith("cuda_binary cannot be used yet, next try in 0.1 s: no usable GPU")


def test_a_failed_engine_is_closed_before_another_is_made(start, machine, heard):
    """A GPU's memory may hold one only."""
    loader, first = start("auto")
    open_then = []
    machine.before_making = lambda: open_then.append(list(machine.open))
    loader.fault(first, "gone")
    heard.until(lambda: heard.engines)
    assert open_then[0] == []


def test_the_substitute_says_why_it_answers(start, machine, heard):
    loader, first = start("auto")
    machine.gpu_works = False
    loader.fault(first, "gone")
    heard.until(lambda: heard.engines)
    (engine,) = heard.engines
    assert engine.degraded == "the CPU answers because cuda_binary failed: gone"
    assert engine.spec is first.spec is loader.current
    assert heard.lines[:2] == ["cuda_binary failed: gone", engine.degraded]
    # With device auto a try gives another CPU engine; it is closed again.
    heard.until(heard.delays)
    assert heard.lines[2].endswith("device auto still gives cpu_binary")
    assert machine.open == [engine.backend]


def test_a_cpu_that_cannot_stand_in_costs_nothing_else(start, machine, heard):
    loader, first = start("auto")
    machine.cpu_works = False
    loader.fault(first, "gone")
    heard.until(lambda: heard.engines)
    (engine,) = heard.engines
    assert engine.backend.name == "cuda_binary"
    assert engine.degraded == ""
    assert heard.lines == [
        "cuda_binary failed: gone",
        "the CPU cannot stand in: the CPU has caught fire",
        "cuda_binary works again",
    ]
    assert machine.open == [engine.backend]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_cpu_engine_is_made_anew_and_has_no_substitute(start, machine, heard, device):
    machine.gpu_works = False
    loader, first = start(device)
    assert first.backend.name == "cpu_binary"
    loader.fault(first, "gone")
    heard.until(lambda: heard.engines)
    (engine,) = heard.engines
    assert engine.degraded == ""
    assert heard.lines == ["cpu_binary failed: gone", "cpu_binary works again"]
    assert machine.open == [engine.backend]


def test_at_the_end_what_was_retired_is_closed_and_nothing_is_tried_any_more(start, machine, heard):
    loader, first = start("cuda")
    machine.gpu_works = False
    loader.fault(first, "gone")
    heard.until(lambda: heard.lines)
    machine.gpu_works = True
    extra = [build_engine(first.spec) for _ in range(3)]
    for engine in extra:
        loader.retire(engine)
    loader.close()
    made = machine.made
    assert not set(machine.open) & {engine.backend for engine in extra}
    time.sleep(4 * FIRST_RETRY)
    assert machine.made == made
    assert machine.closed.count("cuda_binary") == 4


def test_retired_engines_are_closed_in_order_and_held_by_nothing_when_their_memory_goes_back(
    start, monkeypatch
):
    loader, _ = start("cuda")
    closed, alive = [], []

    class Retired:
        def __init__(self, number):
            self.number = number

        def close(self):
            closed.append(self.number)

    engines = [Retired(number) for number in range(3)]
    references = [weakref.ref(engine) for engine in engines]
    monkeypatch.setattr(
        engine_module, "return_freed_memory", lambda: alive.extend(each() is not None for each in references)
    )
    with loader._condition:  # it begins with all of them at once
        for engine in engines:
            loader.retire(engine)
    del engine
    engines.clear()
    wait_until(lambda: alive)
    assert closed == [0, 1, 2]
    assert alive == [False] * 3


# What nobody foresaw.


class Exploding:
    """A function that raises an exception the first time, and then does what it stands for."""

    def __init__(self, function, error):
        self._function = function
        self._errors = [error]

    def __call__(self, *arguments):
        if self._errors:
            raise self._errors.pop()
        return self._function(*arguments)


@pytest.fixture
def unexpected():
    return []


@pytest.fixture
def watched(machine, heard, unexpected):
    """A loader whose calls of the node can be made to raise by name, its first engine running."""
    calls = {
        "deliver": heard.engines.append,
        "reject": lambda spec, reason: heard.rejections.append((spec, reason)),
        "report": heard.lines.append,
    }
    loader = EngineLoader(
        **{name: lambda *arguments, name=name: calls[name](*arguments) for name in calls},
        first_retry=FIRST_RETRY,
        unexpected=unexpected.append,
    )
    loader.calls = calls
    loader.start()
    loader.request(EngineSpec(EngineSettings("m", "binary", "auto"), random_model(np.random.default_rng(0))))
    heard.until(lambda: heard.engines)
    yield loader
    assert loader.close(PATIENCE)


def test_an_engine_that_cannot_be_closed_costs_nothing_else(watched, machine, heard, unexpected, monkeypatch):
    """Neither where it is retired, nor where it failed, nor where it is not wanted, nor half made."""
    first = heard.engines.pop()

    def fail(self):
        raise RuntimeError("cudaErrorIllegalAddress")

    monkeypatch.setattr(Processor, "close", fail)
    watched.retire(first)
    watched.fault(first, "gone")
    heard.until(lambda: len(heard.engines) == 2)  # the CPU, and the GPU again
    machine.gpu_works = False
    watched.fault(heard.engines[-1], "gone")
    heard.until(heard.delays)  # the CPU's engine, which auto gives, is closed in vain
    machine.gpu_works = machine.cpu_works = True
    heard.until(lambda: heard.engines[-1].backend.name == "cuda_binary")
    monkeypatch.setattr(Processor, "logits", lambda self, frames: fail(self))
    watched.request(request(first.spec, device="cpu"))
    heard.until(lambda: heard.rejections)
    assert heard.rejections[0][1] == "backend float: RuntimeError: cudaErrorIllegalAddress"
    assert len(unexpected) >= 4
    assert {line.split(" (at")[0] for line in unexpected} == {
        "closing an engine: RuntimeError: cudaErrorIllegalAddress"
    }


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyError("what")])
def test_an_engine_that_cannot_be_delivered_is_a_request_that_failed(
    watched, machine, heard, unexpected, error
):
    first = heard.engines.pop()
    watched.calls["deliver"] = Exploding(heard.engines.append, error)
    spec = request(first.spec)
    watched.request(spec)
    heard.until(lambda: heard.rejections)
    assert heard.rejections[0][0] is spec
    assert heard.rejections[0][1].startswith(f"unexpected error: {type(error).__name__}: ")
    assert watched.current is first.spec
    heard.until(lambda: machine.open == [first.backend])
    watched.request(spec)
    heard.until(lambda: heard.engines)
    assert watched.current is spec
    assert len(unexpected) == 1
    assert unexpected[0].startswith(f"making {spec.asked}: {type(error).__name__}")


@pytest.mark.parametrize("name", ["report", "deliver"])
def test_recovery_goes_on_whatever_the_node_raises(watched, machine, heard, unexpected, name):
    first = heard.engines.pop()
    watched.calls[name] = Exploding(watched.calls[name], RuntimeError("no"))
    watched.fault(first, "gone")
    heard.until(lambda: heard.engines and heard.engines[-1].backend.name == "cuda_binary")
    assert watched.current is first.spec
    assert len(unexpected) == 1


def test_a_try_in_vain_for_a_reason_nobody_foresaw_is_followed_by_others(watched, machine, heard):
    first = heard.engines.pop()
    machine.cpu_works = False  # so that the engine made anew is the first that is delivered
    watched.calls["deliver"] = Exploding(heard.engines.append, RuntimeError("no"))
    watched.fault(first, "gone")
    heard.until(lambda: heard.engines)
    assert heard.delays() == [2 * FIRST_RETRY]
    assert heard.engines[0].backend.name == "cuda_binary"


def test_a_rejection_that_cannot_be_told_is_said(watched, machine, heard, unexpected):
    first = heard.engines.pop()
    watched.calls["reject"] = Exploding(watched.calls["reject"], RuntimeError("no"))
    machine.before_making = lambda: fail_float(machine)
    watched.request(request(first.spec))
    heard.until(lambda: unexpected)
    assert unexpected[0].startswith("refusing a request: RuntimeError: no (at ")
    watched.request(request(first.spec))
    heard.until(lambda: heard.rejections)


def test_a_loading_thread_that_has_ended_is_brought_back_and_its_request_refused(watched, machine, heard):
    first = heard.engines.pop()
    machine.before_making = Exploding(lambda: None, SystemExit("enough"))
    spec = request(first.spec)
    watched.request(spec)
    heard.until(lambda: not watched.worker._thread.is_alive())
    assert heard.rejections[0][0] is spec
    assert "SystemExit: enough" in heard.rejections[0][1]
    assert watched.worker.revive().startswith("the loading thread ended (SystemExit: enough (at ")
    watched.request(spec)
    heard.until(lambda: heard.engines)


# A GPU that is there and cannot be used.


def test_auto_takes_the_cpu_where_the_gpu_fails_while_it_is_warmed_up(machine, monkeypatch):
    real = Processor.logits

    def logits(self, frames):
        if self.device == "cuda":
            raise RuntimeError("libnvrtc.so.12: cannot open shared object file")
        return real(self, frames)

    monkeypatch.setattr(Processor, "logits", logits)
    spec = EngineSpec(EngineSettings("m", "binary", "auto"), random_model(np.random.default_rng(0)))
    engine = build_engine(spec)
    assert engine.backend.name == "cpu_binary"
    assert (
        engine.why_not_gpu == "backend binary: RuntimeError: libnvrtc.so.12: cannot open shared object file"
    )
    assert engine.degraded == ""
    assert machine.open == [engine.backend]
    with pytest.raises(BackendError, match="libnvrtc"):
        build_engine(spec, "cuda")
    assert machine.open == [engine.backend]


def test_what_make_backend_says_of_the_gpu_is_kept(machine, monkeypatch):
    def make_backend(model, backend, device, threads, report):
        report("no NVRTC")
        return machine.make_backend(model, backend, "cpu", threads, report)

    monkeypatch.setattr(engine_module, "make_backend", make_backend)
    spec = EngineSpec(EngineSettings("m", "binary", "auto"), random_model(np.random.default_rng(0)))
    assert build_engine(spec).why_not_gpu == "no NVRTC"


def test_nothing_is_made_anew_once_no_engine_is_wanted(start, machine, heard, monkeypatch):
    loader, first = start("cuda", first_retry=0.05)
    machine.gpu_works = False
    loader.fault(first, "gone")
    heard.until(lambda: any("cannot be used yet" in line for line in heard.lines))
    loader.forget()
    machine.gpu_works = True
    time.sleep(0.3)  # several times the pause
    assert (heard.engines, machine.open, loader.current) == ([], [], None)
    loader.request(first.spec)
    heard.until(lambda: heard.engines)


def held_up(machine, loader, spec):
    """Request an engine and wait until it is being made; the event that lets its maker go on."""
    entered, go_on = threading.Event(), threading.Event()

    def wait():
        entered.set()
        assert go_on.wait(PATIENCE)

    machine.before_making = wait
    loader.request(spec)
    assert entered.wait(PATIENCE)
    return go_on


def test_an_engine_that_is_wanted_no_longer_is_given_up(start, machine, heard):
    loader, first = start("cpu")
    go_on = held_up(machine, loader, request(first.spec))
    loader.forget()
    go_on.set()
    heard.until(lambda: heard.lines)
    assert heard.lines[0].endswith("was given up: it is wanted no longer")
    assert (heard.engines, heard.rejections, loader.current) == ([], [], None)


def test_an_engine_that_is_given_up_at_the_end_is_no_news(start, machine, heard):
    loader, first = start("cpu")
    go_on = held_up(machine, loader, request(first.spec))
    assert not loader.close(0)
    go_on.set()
    assert loader.close()
    assert (heard.lines, heard.engines, heard.rejections) == ([], [], [])
