"""The CPU backends: the binary one equals the reference bit for bit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import share_of_stages
from models import (
    binary_conv,
    binary_dense,
    input_conv,
    input_residual_conv,
    make_model,
    models,
    output_dense,
    random_frame,
    random_model,
    residual_conv,
    residual_model,
    residual_models,
    road_sign_model,
    thermometer,
)

from bnn_perception import native
from bnn_perception.backends import Backend, BackendError, make_backend, reference
from bnn_perception.backends.cpu.binary import CpuBinaryBackend
from bnn_perception.backends.cpu.program import Program, aligned_zeros
from bnn_perception.backends.reference import ReferenceBackend
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare
from bnn_perception.net import bits
from bnn_perception.net.folder import load_model
from bnn_perception.net.layer import Layer, Pool
from bnn_perception.net.model import InputSpec, Model, iter_layers
from bnn_perception.resources import find_model


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(23)


@pytest.fixture(scope="module")
def shipped() -> Model:
    """The model that comes with the package, which has a float twin."""
    return load_model(find_model("road_signs"))


def assert_same(model: Model, backend: Backend, rng: np.random.Generator, count: int = 1) -> None:
    """Every layer of ``backend`` equals the reference's, bit for bit, the float logits and residuals included."""
    unread = {f"{place.layer.name}.residual" for place in iter_layers(model) if not place.residual_is_read}
    for _ in range(count):
        frame = random_frame(rng, 23, 31)
        outputs = ReferenceBackend(model).activations(frame)
        expected = [(name, value) for name, value in outputs if name not in unread]
        actual = list(backend.activations(frame))
        assert [name for name, _ in actual] == [name for name, _ in expected]
        for (name, ours), (_, theirs) in zip(actual, expected):
            assert ours.dtype == theirs.dtype, name
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


@given(models(), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_every_layer_equals_the_reference(model: Model, threads: int) -> None:
    backend = CpuBinaryBackend(model, threads)
    try:
        assert_same(model, backend, np.random.default_rng(7), count=2)
    finally:
        backend.close()


def check(model: Model, threads: int = 1) -> None:
    backend = CpuBinaryBackend(model, threads)
    assert_same(model, backend, np.random.default_rng(7), count=2)
    backend.close()


@given(residual_models(), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_every_residual_equals_the_reference(model: Model, threads: int) -> None:
    check(model, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("side", [16, 17, 33])
@pytest.mark.parametrize("channels", [5, 24, 32, 40, 64, 96])
def test_residual_nets(rng: np.random.Generator, side: int, channels: int, threads: int) -> None:
    """Every kind of shortcut; channels that grow within a word, at its edge and from one vector to another."""
    check(residual_model(rng, side, channels=channels), threads)


@pytest.mark.parametrize(
    ("channels", "factor"), [(1, 2), (1, 32), (1, 65), (3, 3), (31, 2), (31, 3), (33, 2), (64, 2), (64, 3)]
)
def test_channels_that_grow(rng: np.random.Generator, channels: int, factor: int) -> None:
    layers: list[Layer] = [input_residual_conv(rng, "stem", (7, 9, 1), channels)]
    layers.append(residual_conv(rng, "wide", (7, 9, channels), factor * channels))
    shape = (7, 9, factor * channels)
    layers.append(
        residual_conv(
            rng, "down", shape, 2 * shape[2], (2, 2), (2, 2), padding=(0, 0), shortcut="average_pool"
        )
    )
    layers.append(residual_conv(rng, "same", (3, 4, 2 * shape[2]), 2 * shape[2], (1, 1), padding=(0, 0)))
    layers.append(output_dense(rng, "output", (3, 4, 2 * shape[2]), 3))
    check(make_model(InputSpec(7, 9, 1), layers))


@pytest.mark.parametrize("pool", [Pool(2, 2), Pool(3, 2), Pool(2, 1), Pool(1, 2), Pool(4, 3)])
def test_pools_before_multipliers(rng: np.random.Generator, pool: Pool) -> None:
    """The maximum of the dot products: negative multipliers would make it the minimum. Items of several rows, too."""
    layers: list[Layer] = [
        input_residual_conv(rng, "stem", (64, 65, 3), 33, pool=pool, activation="prelu", signed=True)
    ]
    shape = layers[0].output_shape((64, 65, 3))
    layers.append(residual_conv(rng, "block", shape, 66, (4, 4), pool=Pool(2, 1), padding=(2, 2)))
    pooled = residual_conv(rng, "pooled", (*shape[:2], 66), 40, pool=pool, padding_value=0, shortcut="none")
    layers.append(pooled)
    layers.append(output_dense(rng, "output", pooled.output_shape((*shape[:2], 66)), 3))
    for threads in (1, 2):
        check(make_model(InputSpec(64, 65), layers), threads)


def test_residuals_beyond_16_bit_dot_products(rng: np.random.Generator) -> None:
    """More taps in the stem, and more units in the block, than 16 bits hold; residuals over much of int32."""
    stem = input_residual_conv(rng, "stem", (16, 16, 3), 65, kernel=(7, 7), padding=(3, 3))
    block = residual_conv(rng, "block", (16, 16, 65), 65, (31, 31), padding=(15, 15))
    stem = replace(stem, multiplier=np.full(65, 20_000, np.int32), negative_multiplier=-stem.multiplier)
    block = replace(block, multiplier=np.full(65, -20_000, np.int32))
    layers: list[Layer] = [stem, block, output_dense(rng, "output", (16, 16, 65), 3)]
    check(make_model(InputSpec(16, 16), layers), threads=2)


def test_a_thermometer_before_a_residual(rng: np.random.Generator) -> None:
    """A residual may begin behind any layer, where it gets no shortcut."""
    layers: list[Layer] = [thermometer(rng, "levels", (12, 12, 3), 8)]
    layers.append(residual_conv(rng, "first", (12, 12, 24), 32, shortcut="none", activation="relu"))
    layers.append(residual_conv(rng, "second", (12, 12, 32), 32))
    layers.append(binary_conv(rng, "plain", (12, 12, 32), 40))
    layers.append(output_dense(rng, "output", (12, 12, 40), 3))
    check(make_model(InputSpec(12, 12), layers), threads=2)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_road_sign_net(rng: np.random.Generator, threads: int) -> None:
    check(road_sign_model(rng), threads)


def test_the_net_of_the_paper(rng: np.random.Generator) -> None:
    """arXiv 1808.00209: one threshold a colour, 5x5 convolutions with 32 filters, a dense layer of 18,432 inputs."""
    layers: list[Layer] = [
        thermometer(rng, "binarize", (96, 96, 3), 1),
        binary_conv(rng, "conv1", (96, 96, 3), 32, (5, 5), padding=(2, 2), pool=Pool(2, 2)),
        binary_conv(rng, "conv2", (48, 48, 32), 32, (5, 5), padding=(2, 2), pool=Pool(2, 2)),
        binary_dense(rng, "dense1", (24, 24, 32), 100),
        binary_dense(rng, "dense2", (1, 1, 100), 100),
        output_dense(rng, "dense3", (1, 1, 100), 4),
    ]
    check(make_model(InputSpec(96, 96), layers), threads=2)


@pytest.mark.parametrize("value", [0, 255])
def test_values_beyond_16_bits(rng: np.random.Generator, value: int) -> None:
    """More taps (7 x 7 x 3) and more units (64 x 64 x 16 bytes) than 16 bits hold, thresholds right at the sums."""
    shape = (64, 64, 128)
    first = input_conv(rng, "first", (64, 64, 3), 128, (7, 7), padding=(3, 3))
    first = replace(
        first,
        weights=first.weights | bits.spare_mask(3),  # all +1: the largest sums on white pixels
        threshold=np.arange(-64, 64, dtype=np.int32) + 147 * value,
    )
    ones = bits.unpack(reference.input_conv2d(first, np.full((64, 64, 3), value, np.uint8)), 128).sum()
    dense = binary_dense(rng, "dense", shape, 40)
    dense = replace(
        dense,
        weights=np.full_like(dense.weights, 0xFFFFFFFF),
        threshold=np.arange(-20, 20, dtype=np.int32) + np.int32(2 * int(ones) - 64 * 64 * 128),
    )
    model = make_model(InputSpec(64, 64), [first, dense, output_dense(rng, "output", (1, 1, 40), 2)])
    frame = Frame(np.full((64, 64, 3), value, np.uint8))
    expected = dict(ReferenceBackend(model).activations(frame))
    fires = bits.unpack(expected["dense"], 40) ^ dense.flip
    np.testing.assert_array_equal(fires[0, 0], np.arange(-20, 20) <= 0)
    backend = CpuBinaryBackend(model, 1)
    for name, output in backend.activations(frame):
        np.testing.assert_array_equal(output, expected[name], err_msg=name)


def test_results_do_not_depend_on_threads(rng: np.random.Generator) -> None:
    model = road_sign_model(rng)
    frames = [random_frame(rng, 60, 80) for _ in range(5)]
    expected = ReferenceBackend(model).logits(frames)
    for threads in (1, 2, 3, 8):
        backend = CpuBinaryBackend(model, threads)
        for _ in range(20):
            np.testing.assert_array_equal(backend.logits(frames), expected)
        backend.close()


def test_two_backends_at_the_same_time(rng: np.random.Generator) -> None:
    """As in the node while it swaps models; each is used by one thread, and has threads of its own."""
    nets = [road_sign_model(rng), random_model(rng), random_model(rng, side=20, classes=9)]
    frames = [random_frame(rng, 40, 50) for _ in range(3)]
    expected = [ReferenceBackend(model).logits(frames) for model in nets]
    backends = [CpuBinaryBackend(model, 2) for model in nets]

    def work(index: int) -> None:
        for _ in range(100):
            np.testing.assert_array_equal(backends[index].logits(frames), expected[index])

    with ThreadPoolExecutor(len(nets)) as pool:
        for future in [pool.submit(work, index) for index in range(len(nets))]:
            future.result(timeout=120)
    for backend in backends:
        backend.close()


def helpers() -> int:
    return sum(thread.name.startswith("cpu_binary") for thread in threading.enumerate())


def test_threads_end_with_the_backend(rng: np.random.Generator) -> None:
    model = random_model(rng)
    before = helpers()
    backend = CpuBinaryBackend(model, 4)
    assert helpers() == before + 3
    backend.close()
    backend.close()
    assert helpers() == before
    with pytest.raises(BackendError, match="closed"):
        backend.logits([random_frame(rng, 12, 12)])
    forgotten = CpuBinaryBackend(model, 3)
    assert helpers() == before + 2
    del forgotten
    gc.collect()
    assert helpers() == before


def test_times_are_sums_over_the_frames_of_the_last_call(rng: np.random.Generator) -> None:
    backend = CpuBinaryBackend(road_sign_model(rng), 1)
    frame = random_frame(rng, 240, 320)
    assert share_of_stages(backend, [frame] * 10) > 0.6
    assert share_of_stages(backend, [frame]) > 0.6
    backend.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_steps_stay_in_their_scratch_memory(rng: np.random.Generator, threads: int) -> None:
    """A step that needs more than the program says would write over what lies behind, here over a guard of 1 MiB."""
    pooled = input_residual_conv(rng, "stem", (40, 300, 3), 33, pool=Pool(3, 2))
    wide = make_model(
        InputSpec(40, 300), [pooled, output_dense(rng, "last", pooled.output_shape((40, 300, 3)), 2)]
    )
    plain = input_conv(rng, "first", (300, 40, 3), 33, pool=Pool(3, 1))
    high = make_model(
        InputSpec(300, 40), [plain, output_dense(rng, "last", plain.output_shape((300, 40, 3)), 2)]
    )
    for model in (wide, high, random_model(rng), residual_model(rng)):
        program = Program(model, threads, native)
        program.pixels[...] = rng.integers(0, 256, program.pixels.shape)
        state = aligned_zeros((native.state_bytes(len(program.steps)),), np.uint8)
        native.open_state(state.ctypes.data)
        memory = aligned_zeros((program.scratch_bytes + (1 << 20),), np.uint8)
        guard = memory[program.scratch_bytes :]
        guard[...] = 0xA5
        native.evaluate(program.steps, state.ctypes.data, memory.ctypes.data, False)
        assert (guard == 0xA5).all(), model.layers[0].name
        frame = Frame(program.pixels.copy())
        np.testing.assert_array_equal(
            program.outputs[model.layers[-1].name], ReferenceBackend(model).logits([frame])[0]
        )


def test_a_closed_backend_says_so(rng: np.random.Generator) -> None:
    backend = CpuBinaryBackend(random_model(rng), 2)
    assert (backend.name, backend.is_float) == ("cpu_binary", False)
    assert backend.device_name.endswith(", 2 threads")
    backend.close()
    backend.close()
    for call in (backend.logits, lambda frames: list(backend.activations(frames[0]))):
        with pytest.raises(BackendError, match="the backend is closed"):
            call([random_frame(rng, 12, 12)])


def run_python(code: str, **environment: str) -> tuple[int, str, str]:
    """Exit code and both outputs of an interpreter of its own, which finds the package and the tests' modules."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "HOME": str(Path.home()), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_an_interpreter_ends_without_close() -> None:
    code = (
        "from bnn_perception.backends.cpu.binary import CpuBinaryBackend;"
        "from bnn_perception.net.folder import load_model; from bnn_perception.resources import find_model;"
        "backend = CpuBinaryBackend(load_model(find_model('road_signs')), 3); print('made')"
    )
    assert run_python(code) == (0, "made\n", "")


def test_inference_leaves_the_interpreter_to_others(rng: np.random.Generator) -> None:
    """Another Python thread goes on while a long frame is evaluated; it would stand still if the lock were held."""
    layers: list[Layer] = [input_conv(rng, "a", (512, 512, 3), 64)]
    layers.append(binary_conv(rng, "b", (512, 512, 64), 64, (5, 5), padding=(2, 2)))
    layers.append(output_dense(rng, "c", (512, 512, 64), 2))
    backend = CpuBinaryBackend(make_model(InputSpec(512, 512), layers), 1)
    done, ticks = threading.Event(), []

    def tick() -> None:
        while not done.is_set():
            time.sleep(0.0005)
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    backend.workers.evaluate()
    end = time.perf_counter()
    done.set()
    thread.join()
    # The one call takes a hundred milliseconds, enough for over a hundred ticks on an idle machine.
    assert sum(begin < moment < end for moment in ticks) >= 5


def test_memory_is_steady(rng: np.random.Generator) -> None:
    backend = CpuBinaryBackend(road_sign_model(rng), 2)
    frames = [random_frame(rng, 480, 640)]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(200):
        backend.logits(frames)
    before = resident()
    for _ in range(2000):
        backend.logits(frames)
    # Pages of 4 KiB; a leak of one small array a frame would be 1000 pages and more.
    assert resident() - before < 250


def test_processors_without_the_table_instruction() -> None:
    """Bits are counted by a vector popcount there, as on every ARM; numba compiles for a plain x86-64 here."""
    code = (
        "import numpy as np\n"
        "from numba.core.registry import cpu_target\n"
        "from models import random_frame, random_model, residual_model\n"
        "from bnn_perception import native\n"
        "from bnn_perception.backends.cpu.binary import CpuBinaryBackend\n"
        "from bnn_perception.backends.reference import ReferenceBackend\n"
        "assert not native._table_lookup(cpu_target.target_context)\n"
        "rng = np.random.default_rng(0)\n"
        "frames = [random_frame(rng, 30, 20) for _ in range(5)]\n"
        "for model in random_model(rng), residual_model(rng):\n"
        "    backends = CpuBinaryBackend(model, 2), ReferenceBackend(model)\n"
        "    assert np.array_equal(*(backend.logits(frames) for backend in backends))\n"
    )
    assert run_python(code, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == (0, "", "")


def test_without_a_place_for_the_cache() -> None:
    """numba has nowhere to keep what it compiled: the package's folder, the home and its own are not writable."""
    code = (
        "from numba.core import caching\n"
        "def refuse(self): raise OSError('read-only')\n"
        "for locator in caching.CacheImpl._locator_classes: locator.ensure_cache_path = refuse\n"
        "import numpy as np\n"
        "from bnn_perception.net.model import InputSpec\n"
        "from bnn_perception.frames.frame import Frame\n"
        "from bnn_perception.frames.preprocess import prepare, prepare_reference\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)\n"
        "frame, spec = Frame(pixels), InputSpec(8, 8)\n"
        "assert np.array_equal(prepare(frame, spec), prepare_reference(frame, spec))\n"
    )
    # What is compiled is kept nowhere, so that it need not be fast.
    assert run_python(code, NUMBA_OPT="0") == (0, "", "")


@pytest.mark.parametrize("package", ["numba", "onnxruntime"])
def test_a_missing_package_is_named(
    rng: np.random.Generator, shipped: Model, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "bnn_perception.native", raising=False)
    monkeypatch.delattr("bnn_perception.native", raising=False)
    choices = ["binary", "float"] if package == "numba" else ["float"]
    for backend in choices:
        with pytest.raises(BackendError, match=f"pip install {package}"):
            make_backend(shipped, backend, device="cpu")
    if package == "numba":
        with pytest.raises(ImportError, match="pip install numba"):
            prepare(random_frame(rng, 8, 8), shipped.input)


@pytest.mark.parametrize("backend", ["binary", "float"])
def test_a_negative_number_of_threads(shipped: Model, backend: str) -> None:
    with pytest.raises(BackendError, match="threads is -1"):
        make_backend(shipped, backend, device="cpu", threads=-1)


def test_as_many_threads_as_pay_off(shipped: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The road-sign net takes 41.6 million multiply-accumulates: less than it pays to wake a thread for."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    for backend, work, count in (
        ("binary", 100e6, "1 thread"),
        ("binary", 10e6, "5 threads"),
        ("float", 1e6, "6 threads"),
    ):
        monkeypatch.setattr(f"bnn_perception.backends.cpu.{backend}.MACS_PER_THREAD", int(work))
        made = make_backend(shipped, backend, "cpu")
        assert made.device_name.endswith(f", {count}")
        made.close()


def test_the_shipped_model(shipped: Model, rng: np.random.Generator) -> None:
    check(shipped, threads=2)
