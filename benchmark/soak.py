"""Whether the classifier node stays as it is, however long it runs and whatever the graph does to it.

``python -m benchmark.soak --minutes 60 --out docs/reliability.md`` (``make soak MINUTES=60``) runs the node as a
process of its own over DDS, and writes the page. Three cameras send: two of this process, whose publishers come and go,
and a ``camera_node`` that is killed and started again. Every tenth frame is damaged. Meanwhile parameters are set by
the hundred, right and wrong ones; models and precisions change. Every answer is held to the frame whose header it
carries: the stamp, the ``frame_id``, and what the frame shows.
"""

from __future__ import annotations

import argparse
import array
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import bnn_perception
from bnn_perception import load_classifier
from bnn_perception.backends.cpu.processor import device_name
from bnn_perception.cli.demo import Child, child
from bnn_perception.errors import CommandError
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.messages import stamp_of
from bnn_perception.ros.process import SHARED_MEMORY, claim_domain, prepare_process, private_graph
from bnn_perception.scenes.drive import Scene

#: The models that take turns.
MODELS = ("road_signs", "quicknet_tiny")
#: Hz of the two cameras of this process.
RATES = {"left": 30, "right": 15}
#: One frame in so many is damaged.
DAMAGED = 10
#: Seconds between: samples of the process; restarts of the own cameras; of the camera_node; storms of parameters;
#: changes of model or precision.
SAMPLE, RESTART, KILL, STORM, SWAP = 2.0, 17.0, 31.0, 5.0, 7.0
#: Requests of one storm.
REQUESTS = 60
#: Seconds to start, and for what is on its way at the end.
PATIENCE, LINGER = 300.0, 2.0
#: Minutes in which every job has had its turn.
SHORTEST = 1.0
#: The share of the run that counts as warming up: allocators and caches fill.
WARM_UP = 0.2


class Sample(NamedTuple):
    """What the process has at a time: MB of memory, threads, open files, and MB of /dev/shm that it maps."""

    memory: float
    threads: int
    files: int
    shared: float


LIMITS = {"memory": 8.0, "threads": 1.0, "files": 2.0, "shared": 1.0}
UNITS = {
    "memory": "MB resident",
    "threads": "threads",
    "files": "open files",
    "shared": "MB of /dev/shm mapped",
}


def sample(pid: int) -> Sample:
    """The process as the system sees it."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    shared = 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if f" {SHARED_MEMORY}/" in line:
            begin, end = line.split(maxsplit=1)[0].split("-")
            shared += int(end, 16) - int(begin, 16)
    return Sample(
        int(status["VmRSS"].split()[0]) / 1024,
        int(status["Threads"]),
        len(os.listdir(f"/proc/{pid}/fd")),
        shared / 1e6,
    )


@dataclass
class Pictures:
    """Rendered frames that every model and precision that takes turns names alike, and by which label."""

    frames: list[tuple[NDArray[np.uint8], str]] = field(default_factory=list)

    @classmethod
    def chosen(cls, wanted: int = 12) -> Pictures:
        result = cls()
        with ExitStack() as stack:
            classifiers = [
                stack.enter_context(load_classifier(name, backend=backend, device="cpu"))
                for name in MODELS
                for backend in ("binary", "float")
            ]
            scene = Scene(3)
            for _ in range(2000):
                pixels, _ = scene.next()
                frame = Frame(pixels, "rgb8", Scene.region)
                answers = [c.predict(frame)[0] for c in classifiers]
                labels = {answer.label for answer in answers}
                if len(labels) == 1 and min(answer.score for answer in answers) > 0.9:
                    result.frames.append((np.ascontiguousarray(pixels), labels.pop()))
                    if len(result.frames) == wanted:
                        return result
        raise CommandError("the models agree on too few pictures")


def damaged(message: Any, rng: random.Random) -> None:
    """Spoil a message in one of the ways in which drivers and attackers do."""
    kind = rng.randrange(7)
    if kind == 0:
        message.step = rng.choice([0, 1, message.step - 1, 2**32 - 1])
    elif kind == 1:
        message.encoding = rng.choice(["", "rgb", "yuv9", "32FC1", "\x1b[2J", "x" * 5000, "16UC7"])
    elif kind == 2:
        message.data = array.array("B", bytes(rng.randrange(100)))
    elif kind == 3:
        message.height, message.width = 2**31, 2**31
    elif kind == 4:
        message.height = message.width = 0
    elif kind == 5:
        message.encoding, message.step = "32FC3", message.width * 12
    else:
        message.step += 1  # more than there is


def requests(rng: random.Random) -> Iterator[tuple[str, Any]]:
    """Parameters as a careless or a hostile peer sets them; the good ones change no answer."""
    good: list[tuple[str, Any]] = [("top_k", k) for k in (1, 2, 5)] + [
        ("score_threshold", 0.0),
        ("threads", 1),
    ]
    bad: list[tuple[str, Any]] = [
        ("model", "/nowhere"),
        ("model", "~nosuchuser/x"),
        ("model", "x" * 5000),
        ("model", "\x1b\x00"),
        ("backend", "quantum"),
        ("device", "cuda"),
        ("device", "tpu"),
        ("top_k", -1),
        ("top_k", "many"),
        ("score_threshold", float("nan")),
        ("region", [0.0, 0.0, 9.0, 9.0]),
        ("region", "all"),
        ("image_topics", ["a b"]),
        ("nothing", 1),
    ]
    while True:
        yield rng.choice(good if rng.random() < 0.5 else bad)


class Soak:
    """One run: sends, changes, listens, counts.

    Args:
        seconds: how long.
        seed: of everything random.
    """

    def __init__(self, seconds: float, seed: int) -> None:
        import rclpy

        self.seconds, self.rng = seconds, random.Random(seed)
        self.pictures = Pictures.chosen()
        self.sent: dict[tuple[int, str], str] = {}
        self.spoilt: set[tuple[int, str]] = set()
        self.answered: set[tuple[int, str]] = set()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.samples: list[Sample] = []
        self.latencies: list[float] = []
        self._futures: list[Any] = []
        self._publishers: dict[str, Any] = {}
        self._third: Child | None = None
        self.node = rclpy.create_node("soak")
        self._spinner = rclpy.executors.SingleThreadedExecutor()
        self._spinner.add_node(self.node)

    def run(self, folder: Path) -> None:
        """The whole of it; the node must end by itself when it is told to.

        Raises:
            CommandError: where the node ends, or never answers.
        """
        from diagnostic_msgs.msg import DiagnosticArray
        from rcl_interfaces.srv import SetParameters
        from vision_msgs.msg import Classification

        self.node.create_subscription(Classification, "/bnn/labels", self._on_label, 1000)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._client: Any = self.node.create_client(SetParameters, "/bnn/classifier/set_parameters")
        parameters = {
            "device": "cpu",
            "model": MODELS[0],
            "region": list(Scene.region),
            "image_topics": "[left, right, third]",
            "diagnostics_period": 1.0,
        }
        with child("classifier_node", parameters, {}, folder) as classifier, ExitStack() as cameras:
            self._classifier = classifier
            for name in RATES:
                self._open(name)
            self._work(lambda: bool(self.answered), PATIENCE, sending=True)
            if not self.answered:
                raise CommandError("the classifier node does not answer")
            self._camera = cameras
            begin = time.monotonic()
            jobs = {
                SAMPLE: self._sample,
                RESTART: self._restart,
                KILL: self._kill,
                STORM: self._storm,
                SWAP: self._swap,
            }
            due = dict.fromkeys(jobs, begin)
            while (now := time.monotonic()) < begin + self.seconds:
                for period, job in jobs.items():
                    if now >= due[period]:
                        due[period] += period
                        job()
                self._work(lambda: False, 0.2, sending=True)
            self._work(lambda: False, LINGER, sending=False)
            # DDS keeps ten requests of a storm, so some of them are never answered; one that comes alone must be.
            self._set("top_k", 1)
            (last,) = self._futures[-1:]
            self._work(last.done, PATIENCE, sending=False)
            self.counts["answers after the last storm"] += last.done()
        if classifier.process.returncode != 0:
            self.wrong.append(f"the node ended with code {classifier.process.returncode}")

    def _open(self, name: str) -> None:
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import Image

        publisher = self.node.create_publisher(Image, f"/bnn/{name}", qos_profile_sensor_data)
        timer = self.node.create_timer(1 / RATES[name], lambda: self._send(name))
        self._publishers[name] = publisher, timer

    def _send(self, name: str) -> None:
        from sensor_msgs.msg import Image

        pixels, label = self.rng.choice(self.pictures.frames)
        message = Image(
            height=pixels.shape[0], width=pixels.shape[1], encoding="rgb8", step=pixels.shape[1] * 3
        )
        message.data = array.array("B", pixels.tobytes())
        message.header.stamp = self.node.get_clock().now().to_msg()
        message.header.frame_id = f"{name} {self.counts['sent']}"
        key = _key(message)
        if self.counts["sent"] % DAMAGED == DAMAGED - 1:
            damaged(message, self.rng)
            self.spoilt.add(key)
        self.sent[key] = label
        self.counts["sent"] += 1
        self._publishers[name][0].publish(message)

    def _on_label(self, message: Any) -> None:
        key = _key(message)
        if key[1] == "camera":  # of the camera_node
            self.counts["answers to the camera_node"] += 1
            return
        if key not in self.sent:
            self.wrong.append(f"an answer to a frame that nobody sent: {key}")
        elif key in self.answered:
            self.wrong.append(f"a second answer to {key}")
        elif key in self.spoilt:
            self.wrong.append(f"an answer to the damaged frame {key}")
        elif [r.class_id for r in message.results][:1] != [self.sent[key]]:
            self.wrong.append(f"{key} shows {self.sent[key]}, the answer is {message.results[:1]}")
        self.answered.add(key)
        self.latencies.append((time.time_ns() - key[0]) * 1e-6)

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            level = status.level[0] if isinstance(status.level, bytes) else status.level
            if level == 2:
                self.wrong.append(f"diagnostics say: {status.message}")

    def _sample(self) -> None:
        self.samples.append(sample(self._classifier.process.pid))

    def _restart(self) -> None:
        name = self.rng.choice(list(RATES))
        publisher, timer = self._publishers.pop(name)
        self.node.destroy_timer(timer)
        self.node.destroy_publisher(publisher)
        self._open(name)
        self.counts["restarts of a camera"] += 1

    def _kill(self) -> None:
        """Kill the camera_node as the system does when it is out of memory, and start another."""
        if self._third is not None:
            self._third.process.kill()
            self._third.process.wait()
            self.counts["kills of a camera_node"] += 1
        self._camera.close()
        folder = Path(self._camera.enter_context(tempfile.TemporaryDirectory()))
        parameters = {"source": "scene:5", "loop": True, "rate": 5.0}
        self._third = self._camera.enter_context(
            child("camera_node", parameters, {"image_raw": "/bnn/third"}, folder)
        )

    def _storm(self) -> None:
        for _, (name, value) in zip(range(REQUESTS), requests(self.rng)):
            self._set(name, value)

    def _swap(self) -> None:
        name, values = self.rng.choice([("model", MODELS), ("backend", ("binary", "float"))])
        self._set(name, self.rng.choice(values))
        self.counts["changes of model or precision"] += 1

    def _set(self, name: str, value: Any) -> None:
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        self._futures.append(self._client.call_async(request))
        self.counts["parameter requests"] += 1

    def _work(self, condition: Callable[[], bool], seconds: float, sending: bool) -> None:
        if not sending:
            for _, timer in self._publishers.values():
                timer.cancel()
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self._classifier.check()
            self._spinner.spin_once(timeout_sec=0.02)
        waiting = []
        for future in self._futures:
            if not future.done():
                waiting.append(future)
                continue
            accepted = future.result().results[0].successful
            self.counts["requests accepted" if accepted else "requests refused"] += 1
        self._futures = waiting

    def growth(self) -> dict[str, tuple[float, float]]:
        """Medians of the first and the last quarter of the samples after the warm-up."""
        settled = self.samples[int(len(self.samples) * WARM_UP) :]
        quarter = max(1, len(settled) // 4)
        return {
            name: (
                median(getattr(s, name) for s in settled[:quarter]),
                median(getattr(s, name) for s in settled[-quarter:]),
            )
            for name in Sample._fields
        }

    def faults(self) -> list[str]:
        """What must not be, in words; empty where all is well."""
        found = list(self.wrong)
        for name, (first, last) in self.growth().items():
            if last - first > LIMITS[name]:
                found.append(f"{UNITS[name]} grew from {first:.1f} to {last:.1f}")
        if not self.counts["answers after the last storm"]:
            found.append("a parameter request after the last storm was not answered")
        return found


def _key(message: Any) -> tuple[int, str]:
    return stamp_of(message.header), message.header.frame_id


PAGE = """# Reliability

The classifier node as a process of its own over DDS, on the CPU, for {minutes:.0f} minutes, written by

```bash
{command}
```

Two cameras of 30 and 15 Hz (640x480 `rgb8`, publishers that come and go) and a `camera_node` that is killed and started
again send to it; one frame in {damaged} of the two is damaged in one of seven ways. Models and precisions change, and
parameters are set in storms of {requests}, half of them wrong.

| | |
| --- | --- |
{counts}

Every answer is held to the frame whose header it carries: stamp, `frame_id`, and what the frame shows. An answer to a
frame that nobody sent, a second one, one to a damaged frame or a wrong label is a fault, as is an ERROR in the
diagnostics, growth beyond the limits below, a request after the last storm without an answer, and an end with another
code than 0.

**Faults: {faults}**

What the process holds, by the system's word every {sample:.0f} s; medians of the first and the last quarter after a
warm-up of {warm_up:.0%}. What a killed `camera_node` leaves in `/dev/shm` the next one removes.

| | first | last | most | grows at most |
| --- | --- | --- | --- | --- |
{growth}

{machine}; {versions}.
"""


def page(run: Soak, command: str) -> str:
    """The page docs/reliability.md."""
    good = [key for key in run.sent if key not in run.spoilt]
    rows = {
        "frames sent": len(run.sent),
        "damaged ones among them": len(run.spoilt),
        "good ones answered": f"{len(run.answered)} of {len(good)}; the others gave way to a newer one, came while an "
        "engine was made, or were sent before the camera was found",
        "latency, stamp to answer, p50 and p99": _latency(run.latencies),
        **{name: run.counts[name] for name in sorted(run.counts) if name != "sent"},
    }
    growth = [
        f"| {UNITS[name]} | {first:.1f} | {last:.1f} | {max(getattr(s, name) for s in run.samples):.1f} "
        f"| {LIMITS[name]:.0f} |"
        for name, (first, last) in run.growth().items()
    ]
    faults = run.faults()
    return PAGE.format(
        minutes=run.seconds / 60,
        command=command,
        damaged=DAMAGED,
        requests=REQUESTS,
        counts="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        faults="none" if not faults else f"{len(faults)}: " + "; ".join(faults[:5]),
        sample=SAMPLE,
        warm_up=WARM_UP,
        growth="\n".join(growth),
        machine=f"{device_name(os.cpu_count() or 1)}, {os.cpu_count()} logical processors",
        versions=_versions(),
    )


def _latency(latencies: Sequence[float]) -> str:
    """The median and the 99th percentile of milliseconds."""
    if not latencies:
        return "no answer"
    ranked = sorted(latencies)
    p50, p99 = (ranked[len(ranked) * share // 100] for share in (50, 99))
    return f"{p50:.1f} ms, {p99:.1f} ms, with everything on this machine"


def _versions() -> str:
    """The versions of all that the node is made of."""
    import cv2
    import numba
    import onnxruntime
    import rclpy

    versions = {
        "bnn_perception": bnn_perception.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "numba": numba.__version__,
        "ONNX Runtime": onnxruntime.__version__,
        "OpenCV": cv2.__version__,
    }
    stated = [f"{name} {version}" for name, version in versions.items()]
    return ", ".join([*stated, rclpy.get_rmw_implementation_identifier()])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything random")
    parser.add_argument("--out", type=Path, help="page to write (default: print it)")
    args = parser.parse_args(argv)
    if not args.minutes >= SHORTEST:
        parser.error(f"--minutes {args.minutes:g}: it takes {SHORTEST:g} or more")
    os.environ.update(private_graph(claim_domain()))
    prepare_process(publishes_images=True)
    import rclpy

    rclpy.init(args=[])
    try:
        run = Soak(args.minutes * 60, args.seed)
        with tempfile.TemporaryDirectory() as folder:
            run.run(Path(folder))
        text = page(run, f"make soak MINUTES={args.minutes:g}")
        faults = run.faults()
    except CommandError as error:
        print(f"benchmark.soak: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    for fault in faults[:20]:
        print(f"benchmark.soak: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
