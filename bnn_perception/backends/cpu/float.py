"""The float twin on the CPU, by ONNX Runtime."""

from __future__ import annotations

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
from bnn_perception.net.model import Model, iter_layers

#: Multiply-accumulates of a net for each thread that it pays off to wake; a desktop core does these in a third of a
#: millisecond.
MACS_PER_THREAD = 10_000_000

#: The key under which a tensor of an ONNX file names another file that holds its data, as protobuf writes it. The
#: digests of the model folder do not cover such a file, and old versions of ONNX Runtime open any.
EXTERNAL_DATA = b"\x0a\x08location"


def open_session(path: Path, threads: int, spinning: bool, profile: Path | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` that runs one operator after another on ``threads`` threads.

    Args:
        path: of the ONNX file.
        threads: to run on, the caller's included.
        spinning: whether idle threads keep a core busy for a while, which shortens the wait for the next operator.
        profile: begins the name of the file that the session's profile is written to; None takes no profile.

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
    options.log_severity_level = (
        3  # errors come as exceptions, warnings about the graph are its author's business
    )
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        Exception
    ) as error:  # ONNX Runtime has a class for each of its status codes and no common base of its own
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
        work = sum(layer.macs(shape) for layer, shape, _ in iter_layers(model))
        threads = thread_count(threads, useful=1 + work // MACS_PER_THREAD)
        if model.float_twin is None:
            raise BackendError(f"model '{model.name}' has no float twin (float.onnx); use backend binary")
        self.model = model
        self.times: dict[str, float] = {}
        self.device_name = device_name(threads)
        self._path = model.float_twin
        if EXTERNAL_DATA in self._path.read_bytes():
            raise BackendError(f"{self._path}: keeps weights in another file; a float twin is one file")
        self._session: Any = open_session(self._path, threads, spinning=False)
        self._input = self._check_interface()
        height, width, _ = model.input.shape
        try:
            self.logits([Frame(np.zeros((height, width, 3), np.uint8))])
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
        if self._session is None:
            raise BackendError("the backend is closed")
        try:
            (rows,) = self._session.run(None, {self._input: tensor})
        except Exception as error:  # as in open_session
            raise BackendError(f"{self._path}: ONNX Runtime failed: {one_line(error)}") from None
        expected = (len(tensor), len(self.model.labels))
        if rows.shape != expected:
            raise BackendError(f"{self._path}: its output is {list(rows.shape)}, not {list(expected)}")
        return rows
