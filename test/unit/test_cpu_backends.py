"""The CPU backends against the reference."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import (
    models,
    random_frame,
)

from bnn_perception.backends import Backend
from bnn_perception.backends.cpu_binary import CpuBinaryBackend
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.model import Model


def assert_same(model: Model, backend: Backend, rng: np.random.Generator, count: int = 1) -> None:
    """Every layer of ``backend`` equals the reference's, bit for bit, the float logits included."""
    for _ in range(count):
        frame = random_frame(rng, 23, 31)
        expected = list(ReferenceBackend(model).activations(frame))
        actual = list(backend.activations(frame))
        assert [name for name, _ in actual] == [name for name, _ in expected]
        for (name, ours), (_, theirs) in zip(actual, expected):
            assert ours.dtype == theirs.dtype, name
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


@given(models(), st.integers(1, 3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_layer_equals_the_reference(model: Model, threads: int) -> None:
    backend = CpuBinaryBackend(model, threads)
    try:
        assert_same(model, backend, np.random.default_rng(7), count=2)
    finally:
        backend.close()
