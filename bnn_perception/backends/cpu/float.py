"""The float twin on the CPU, by ONNX Runtime."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.backends.cpu.processor import device_name, thread_count
from bnn_perception.backends.protocol import BackendError, Device, StageTimer
from bnn_perception.errors import one_line
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.preprocess import prepare
from bnn_perception.importers.onnx.twin_file import TwinFileError, check
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import read_twin
from bnn_perception.net.model import Model

#: Multiply-accumulates of a net for each thread that it pays off to wake; a desktop core does these in a third of a
#: millisecond.
MACS_PER_THREAD = 10_000_000

#: The severity from which on ONNX Runtime writes to the terminal.
FATAL = 4

#: Bytes that ONNX Runtime may take for all float twins of a process, weights included: twice the largest twin.
MAX_MEMORY = 1 << 31

#: Seconds for the first frame: a thousand times what a large twin takes. A runtime looks whether to stop between two
#: operators and never within one, whose cost is bounded by its memory and by what the file is held to.
PATIENCE = 60.0


@functools.cache
def _bound_memory() -> bool:
    """Bound what sessions of this process take; whether this ONNX Runtime can.

    A graph of a few hundred bytes can ask for a tensor of gigabytes, and no check of it is as sure as that.
    """
    import onnxruntime

    try:
        place = onnxruntime.OrtMemoryInfo(
            "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        )
        onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({"max_mem": MAX_MEMORY}))
    # The processor has no arena, this version has no such interface, or another part of the process has done it.
    except Exception:
        return False
    return True


def open_session(
    path: Path, threads: int, spinning: bool, profile: Path | None = None, content: bytes | None = None
) -> Any:
    """An ``onnxruntime.InferenceSession`` that runs one operator after another on ``threads`` threads.

    Args:
        path: of the ONNX file.
        threads: to run on, the caller's included.
        spinning: whether idle threads keep a core busy for a while, which shortens the wait for the next operator.
        profile: begins the name of the file that the session's profile is written to; None takes no profile.
        content: of the file, where it was read already; nothing else is opened then.

    Raises:
        BackendError: where ONNX Runtime is missing or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"backend float needs onnxruntime on the CPU ({error}); pip install onnxruntime"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Errors come as exceptions, warnings about the graph are its author's business, and neither is fit for a terminal.
    options.log_severity_level = FATAL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if _bound_memory():
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        source = str(path) if content is None else content
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime has a class for each of its status codes and no common base of its own.
    except Exception as error:
        raise BackendError(f"{path}: ONNX Runtime cannot load it: {one_line(error)}") from None


def to_tensor(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, height, width, channels) uint8 -> (N, channels, height, width) float32 in [0, 1]."""
    tensor = np.empty((len(pixels), pixels.shape[3], *pixels.shape[1:3]), np.float32)
    return np.divide(pixels.transpose(0, 3, 1, 2), np.float32(255), out=tensor, dtype=np.float32)


class CpuFloatBackend:
    """Evaluates the float twin of a model with ONNX Runtime, all frames of a call as one batch."""

    name = "cpu_float"
    is_float = True
    device: Device = "cpu"

    def __init__(self, model: Model, threads: int = 0) -> None:
        """Open the float twin and evaluate a black frame.

        Args:
            model: with a float twin.
            threads: to run on, 0 for as many as pay off. Idle threads sleep: between the frames of a camera, threads
                that spin would keep whole cores busy.

        Raises:
            BackendError: where the model has no float twin, it does not fit the model, or a package is missing.
        """
        threads = thread_count(threads, useful=1 + model.macs // MACS_PER_THREAD)
        if model.float_twin is None:
            raise BackendError(f"model '{model.name}' has no float twin (float.onnx); use backend binary")
        self.model = model
        self.times: dict[str, float] = {}
        self.device_name = device_name(threads)
        self._path = model.float_twin
        try:
            content = read_twin(model)
            check(content)
        except ModelError as error:
            raise BackendError(str(error)) from None
        except TwinFileError as error:
            raise BackendError(f"{self._path}: {error}") from None
        self._session: Any = open_session(self._path, threads, spinning=False, content=content)
        self._input = self._check_interface()
        try:
            self._warm_up()
        except ImportError as error:
            raise BackendError(str(error)) from None

    def _check_interface(self) -> str:
        """The name of the input of a graph that fits the model."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise BackendError(
                f"{self._path}: {len(inputs)} inputs and {len(outputs)} outputs; a float twin has 1 and 1"
            )
        height, width, channels = self.model.input.shape
        for value, wanted in ((inputs[0], [channels, height, width]), (outputs[0], [len(self.model.labels)])):
            shape = list(value.shape)
            # A dimension that the graph leaves open is a name or None here and is checked when it has run.
            fits = len(shape) == len(wanted) + 1 and all(
                not isinstance(actual, int) or actual == size for actual, size in zip(shape[1:], wanted)
            )
            if value.type != "tensor(float)" or not fits:
                raise BackendError(
                    f"{self._path}: {value.name} is {value.type} {shape}, not float {['N', *wanted]}"
                )
            if isinstance(shape[0], int):
                raise BackendError(
                    f"{self._path}: the batch of {value.name} is fixed to {shape[0]}; export it open"
                )
        return str(inputs[0].name)

    def _warm_up(self) -> None:
        """Evaluate a black frame; a twin that takes longer than :data:`PATIENCE` for it is given up."""
        import onnxruntime

        height, width, _ = self.model.input.shape
        tensor = to_tensor(self._pixels([Frame(np.zeros((height, width, 3), np.uint8))]))
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = FATAL
        watchdog = threading.Timer(PATIENCE, setattr, (self._options, "terminate", True))
        watchdog.daemon = True
        watchdog.start()
        try:
            self._run(tensor)
        except BackendError:
            if self._options.terminate:
                raise BackendError(
                    f"{self._path}: takes over {PATIENCE:g} s for a frame; it is no float twin of model "
                    f"'{self.model.name}'"
                ) from None
            raise
        finally:
            watchdog.cancel()

    def logits(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        timer = StageTimer()
        pixels = self._pixels(frames)
        tensor = to_tensor(pixels)
        timer.mark("preprocess")
        rows = self._run(tensor)
        timer.mark("inference")
        self.times = timer.milliseconds
        return rows

    def activations(self, frame: Frame) -> Iterator[tuple[str, NDArray[Any]]]:
        pixels = self._pixels([frame])
        yield "input", pixels[0]
        yield self.model.layers[-1].name, self._run(to_tensor(pixels))[0]

    def close(self) -> None:
        self._session = None

    def _pixels(self, frames: Sequence[Frame]) -> NDArray[np.uint8]:
        pixels = np.empty((len(frames), *self.model.input.shape), np.uint8)
        for frame, out in zip(frames, pixels):
            prepare(frame, self.model.input, out)
        return pixels

    def _run(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, channels, height, width) -> (N, classes)."""
        if self._session is None:
            raise BackendError("the backend is closed")
        try:
            (rows,) = self._session.run(None, {self._input: tensor}, self._options)
        except Exception as error:  # as in open_session
            # The words of its arena; where the system refuses memory it has others, which are shown as they are.
            if "smaller than requested bytes" in str(error):
                raise BackendError(
                    f"{self._path}: takes over {MAX_MEMORY >> 30} GiB of memory; it is no float twin of model "
                    f"'{self.model.name}'"
                ) from None
            raise BackendError(f"{self._path}: ONNX Runtime failed: {one_line(error)}") from None
        expected = (len(tensor), len(self.model.labels))
        if rows.shape != expected:
            raise BackendError(f"{self._path}: its output is {list(rows.shape)}, not {list(expected)}")
        return np.asarray(rows)
