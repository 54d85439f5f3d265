"""The loading thread: wishes, faults and recovery, with backends that fail when they are told to."""

from __future__ import annotations

import time

import numpy as np
import pytest
from models import random_model

from bnn_perception.backends import BackendError
from bnn_perception.ros import engine as engine_module
from bnn_perception.ros.engine import EngineLoader, EngineSpec, build_engine

# Seconds for another thread to do what takes it none.
PATIENCE = 30.0


class Machine:
    """Stands in for the processors: makes backends, breaks the GPU and mends it."""

    def __init__(self):
        self.gpu_works = True
        self.open = []
        self.made = 0

    def make_backend(self, model, backend, device, threads):
        self.made += 1
        if device == "cuda" and not self.gpu_works:
            raise BackendError("no usable GPU")
        where = "cpu" if device == "cpu" or not self.gpu_works else "cuda"
        return Processor(self, f"{where}_{backend}", len(model.labels))


class Processor:
    """A backend without a net."""

    times = {"inference": 0.0}  # noqa: RUF012
    device_name = "a stand-in"

    def __init__(self, machine, name, classes):
        self.name = name
        self._machine = machine
        self._classes = classes
        machine.open.append(self)

    def logits(self, frames):
        if self.name.startswith("cuda") and not self._machine.gpu_works:
            raise BackendError("the GPU has fallen off the bus")
        return np.zeros((len(frames), self._classes), np.float32)

    def close(self):
        self._machine.open.remove(self)


class Heard:
    """What the loader says."""

    def __init__(self):
        self.engines, self.rejections, self.lines = [], [], []

    def until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, (self.engines, self.rejections, self.lines)
            time.sleep(0.005)


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

    def start(device):
        spec = EngineSpec("m", random_model(np.random.default_rng(0)), "binary", device, 0)
        first = build_engine(spec)
        loader = EngineLoader(
            spec,
            deliver=heard.engines.append,
            reject=lambda spec, reason: heard.rejections.append((spec, reason)),
            report=heard.lines.append,
            first_retry=0.05,
        )
        loaders.append(loader)
        return loader, first

    yield start
    for loader in loaders:
        loader.close()


def wish(spec, **changes):
    values = {
        "model_name": "other",
        "model": spec.model,
        "backend": "float",
        "device": spec.device,
        "threads": 1,
    }
    return EngineSpec(**{**values, **changes})


def test_a_wish_is_delivered_and_the_old_engine_closed(start, machine, heard):
    loader, first = start("auto")
    spec = wish(first.spec)
    loader.request(spec)
    heard.until(lambda: heard.engines)
    (engine,) = heard.engines
    assert engine.spec is spec is loader.current
    assert engine.backend.name == "cuda_float"
    assert engine.degraded == ""
    loader.retire(first)
    heard.until(lambda: machine.open == [engine.backend])


def test_a_wish_that_fails_is_rejected_with_the_reason(start, machine, heard):
    loader, first = start("cpu")
    machine.gpu_works = False
    spec = wish(first.spec, device="cuda")
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
    loader.request(wish(first.spec))
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


def test_tries_become_rarer(start, machine, heard):
    loader, first = start("cuda")
    machine.gpu_works = False
    made = machine.made
    loader.fault(first, "gone")
    begin = time.monotonic()
    heard.until(lambda: machine.made >= made + 4)
    # 0.05 + 0.1 + 0.2 + 0.4 s; a busy machine only makes it longer.
    assert time.monotonic() - begin >= 0.74


def test_a_fault_of_a_replaced_engine_changes_nothing(start, machine, heard):
    loader, first = start("cpu")
    spec = wish(first.spec)
    loader.request(spec)
    heard.until(lambda: heard.engines)
    loader.fault(first, "too late")
    heard.until(lambda: machine.open == [heard.engines[0].backend])
    time.sleep(0.2)  # longer than the first retry
    assert len(heard.engines) == 1
    assert heard.lines == []


def test_a_wish_ends_the_tries(start, machine, heard):
    loader, first = start("cuda")
    machine.gpu_works = False
    loader.fault(first, "gone")
    heard.until(lambda: heard.lines)
    loader.request(wish(first.spec, device="cpu"))
    heard.until(lambda: heard.engines)
    assert heard.engines[0].backend.name == "cpu_float"
    machine.gpu_works = True
    time.sleep(0.5)  # several tries long
    assert len(heard.engines) == 1
