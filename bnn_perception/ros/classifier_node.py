"""The classifier node: images in, labels out.

Three threads: the executor's takes messages, parameters and the timer, none of which takes long; the inference
thread answers frames (:mod:`~bnn_perception.ros.pipeline`); the loading thread makes engines
(:mod:`~bnn_perception.ros.engine`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Classification, LabelInfo, ObjectHypothesis, VisionClass

from bnn_perception.backends import BackendError, check_choice
from bnn_perception.backends.cuda.device import why_unusable
from bnn_perception.classifier import Prediction
from bnn_perception.frames.preprocess import Frame
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import load_model
from bnn_perception.resources import find_model
from bnn_perception.ros import image_msg
from bnn_perception.ros.diagnostics import ERROR, WARN, Report
from bnn_perception.ros.engine import Engine, EngineLoader, EngineSpec, build_engine
from bnn_perception.ros.entry import run_node
from bnn_perception.ros.image_msg import RefusedFrame
from bnn_perception.ros.parameters import ParameterError, Settings, declare_parameters
from bnn_perception.ros.pipeline import Arrival, Pipeline
from bnn_perception.ros.process import profile_path

#: Seconds between two warnings of the same kind.
THROTTLE = 5.0

#: Seconds without a frame, while a camera publishes, after which diagnostics ask where they are.
SILENCE = 2.0

#: A stamp further from the clock than this (milliseconds) belongs to another time: a recording, or simulated time.
CLOCK_TOLERANCE = 60_000.0

#: What to do where frames are lost between the camera and this node.
TRANSPORT_REMEDY = f"start the camera's process with FASTRTPS_DEFAULT_PROFILES_FILE={profile_path()}"

#: Parameters that need another engine.
ENGINE_PARAMETERS = ("model", "backend", "device", "threads")


class ClassifierNode(Node):
    """Subscribes images, publishes labels, label info and diagnostics.

    Raises:
        ModelError, BackendError, ParameterError: where it cannot start, with the reason in one line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("classifier", namespace="bnn", **options)
        # What the parameters say. Replaced as a whole, so that the inference thread never sees half a change.
        self._settings = declare_parameters(self)
        self._spec = make_spec(self._settings)
        self._rejected: tuple[EngineSpec, str] | None = None
        self._last_rejection = ""
        self._restoring = False
        self._foreign_stamps = 0
        self._last_refusal = ""
        self._why_cpu = ""
        self._last_frame = [time.monotonic()] * len(self._settings.image_topics)
        self._lost = [0] * len(self._settings.image_topics)
        self._totals: dict[str, int] = {}
        self._totals_at = time.monotonic()

        engine = build_engine(self._spec)
        self._labels = self.create_publisher(Classification, "labels", 10)
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        self._label_info = self.create_publisher(LabelInfo, "label_info", latched)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)

        self._loader = EngineLoader(
            self._spec,
            deliver=self._take_engine,
            reject=self._note_rejection,
            report=self._warn,
        )
        self._pipeline = Pipeline(engine, self, self._loader.retire)
        self._restore = self.create_guard_condition(self._restore_parameters)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.engine_started(engine)
        self._cameras = [
            self._subscribe(camera, topic) for camera, topic in enumerate(self._settings.image_topics)
        ]
        # Steady time: the state is reported also where simulated time stands still.
        self.create_timer(
            self._settings.diagnostics_period, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def destroy_node(self) -> None:
        """End the threads and give back the engines, then what every node holds."""
        self._pipeline.stop()
        self._loader.close()
        self._pipeline.close_engines()
        super().destroy_node()

    # Executor thread: messages.

    def _subscribe(self, camera: int, topic: str) -> Any:
        kind, name = Image, topic
        if self._settings.image_transport == "compressed":
            kind, name = CompressedImage, f"{topic}/compressed"
        # Best effort takes every camera's frames; depth 1 is the newest frame and not one that waited its turn.
        create = partial(
            self.create_subscription,
            kind,
            name,
            partial(self._on_image, camera),
            QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        try:
            return create(event_callbacks=_message_lost_callback(partial(self._on_lost, camera)))
        except Exception as error:
            if type(error).__name__ != "UnsupportedEventTypeError":
                raise
            self.get_logger().info("this DDS does not tell of lost messages; diagnostics will not count them")
            return create()

    def _on_image(self, camera: int, message: Image | CompressedImage) -> None:
        received = time.perf_counter()
        self._last_frame[camera] = time.monotonic()
        stamp = message.header.stamp
        now = self.get_clock().now().nanoseconds
        age = (now - stamp.sec * 1_000_000_000 - stamp.nanosec) * 1e-6
        known = abs(age) <= CLOCK_TOLERANCE
        self._foreign_stamps += not known
        self._pipeline.put(Arrival(camera, message, received, age if known else None))

    def _on_lost(self, camera: int, event: Any) -> None:
        self._lost[camera] = event.total_count

    # Executor thread: parameters.

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Validate and note the wish; the engine for it is loaded elsewhere."""
        if self._restoring:
            return SetParametersResult(successful=True)
        changes = {parameter.name: parameter.value for parameter in parameters}
        try:
            settings = self._settings.with_values(changes)
            if any(name in changes for name in ENGINE_PARAMETERS):
                # The same model set again is read again: it may have been trained further.
                spec = make_spec(settings, None if "model" in changes else self._spec)
                self._spec = spec
                self._loader.request(spec)
        except (ParameterError, ModelError, BackendError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        new_info = settings.score_threshold != self._settings.score_threshold
        self._settings = settings
        if new_info:
            self._publish_label_info(self._loader.current)
        return SetParametersResult(successful=True)

    def _restore_parameters(self) -> None:
        """After a wish that could not be met: let the parameters say what is running."""
        if self._rejected is None:
            return
        (spec, reason), self._rejected = self._rejected, None
        running = self._loader.current
        self._last_rejection = f"kept {describe(running)}, for {describe(spec)} was refused: {reason}"
        self.get_logger().error(self._last_rejection)
        if spec is not self._spec:  # another wish has come meanwhile
            return
        self._spec = running
        values = {
            "model": running.model_name,
            "backend": running.backend,
            "device": running.device,
            "threads": running.threads,
        }
        self._settings = self._settings.with_values(values)
        self._restoring = True
        try:
            self.set_parameters([Parameter(name, value=value) for name, value in values.items()])
        finally:
            self._restoring = False

    # Loading thread.

    def _take_engine(self, engine: Engine) -> None:
        self._pipeline.swap(engine)

    def _warn(self, line: str) -> None:
        self.get_logger().warning(line)

    def _note_rejection(self, spec: EngineSpec, reason: str) -> None:
        self._rejected = (spec, reason)
        self._restore.trigger()

    # Inference thread: see pipeline.Sink.

    def read(self, message: Image | CompressedImage) -> Frame:
        settings = self._settings
        unpack = image_msg.view if settings.image_transport == "raw" else image_msg.decode
        return unpack(message, settings.max_pixels, settings.region)

    def top_k(self) -> int:
        return self._settings.top_k

    def publish(self, arrival: Arrival, predictions: Sequence[Prediction]) -> None:
        threshold = self._settings.score_threshold
        answer = Classification(
            header=arrival.message.header,
            results=[
                ObjectHypothesis(class_id=prediction.label, score=prediction.score)
                for prediction in predictions
                if prediction.score >= threshold
            ],
        )
        self._publish(self._labels, answer)

    def refused(self, arrival: Arrival, error: RefusedFrame) -> None:
        topic = self._settings.image_topics[arrival.camera]
        self._last_refusal = f"{topic}: {error}"
        self.get_logger().warning(f"frame refused: {self._last_refusal}", throttle_duration_sec=THROTTLE)

    def engine_started(self, engine: Engine) -> None:
        self._why_cpu = ""
        if engine.spec.device == "auto" and engine.spec.backend != "reference" and not engine.degraded:
            self._why_cpu = why_unusable() or ""
        choice = f"auto took the CPU, {self._why_cpu}" if self._why_cpu else engine.spec.device
        self.get_logger().info(f"answering with {engine.name}; device {choice}")
        self._last_rejection = ""
        self._publish_label_info(engine.spec)

    def engine_failed(self, engine: Engine, reason: str) -> None:
        self._loader.fault(engine, reason)

    def _publish_label_info(self, spec: EngineSpec) -> None:
        info = LabelInfo(
            class_map=[
                VisionClass(class_id=i, class_name=label) for i, label in enumerate(spec.model.labels)
            ],
            threshold=self._settings.score_threshold,
        )
        info.header.stamp = self.get_clock().now().to_msg()
        self._publish(self._label_info, info)

    def _publish(self, publisher: Any, message: Any) -> None:
        try:
            publisher.publish(message)
        except Exception:
            if self.context.ok():  # otherwise Ctrl-C was faster than this frame
                raise

    # Executor thread: diagnostics.

    def _report(self) -> None:
        """Publish /diagnostics."""
        counts = self._pipeline.counts
        totals = {
            "received": counts.received,
            "classified": counts.classified,
            "dropped as stale": counts.stale,
            "lost in transport": sum(self._lost),
            "failed": counts.failed,
            "refused": sum(counts.refused.values()),
        }
        now = time.monotonic()
        seconds, self._totals_at = now - self._totals_at, now
        new = {name: total - self._totals.get(name, 0) for name, total in totals.items()}
        self._totals = totals

        engine = self._pipeline.engine
        running = self._loader.current
        report = Report(self.get_fully_qualified_name(), engine.backend.device_name if engine else "")
        if engine is None:
            report.find(ERROR, f"no answers: {describe(running)} failed and is being made anew")
        elif engine.degraded:
            report.find(WARN, engine.degraded)
        if self._last_rejection:
            report.find(WARN, self._last_rejection)
        if new["failed"]:
            report.find(ERROR, f"{new['failed']} frames got no answer")
        if new["refused"]:
            report.find(WARN, f"{new['refused']} frames refused, the last on {self._last_refusal}")
        if new["lost in transport"]:
            report.find(WARN, f"{new['lost in transport']} frames lost in transport: {TRANSPORT_REMEDY}")
        for camera, subscription in enumerate(self._cameras):
            self._find_silence(report, subscription.topic_name, now - self._last_frame[camera])
        if self._foreign_stamps:
            self._foreign_stamps = 0
            report.find(
                WARN, "stamps of frames and the clock are over a minute apart; is use_sim_time right?"
            )

        report.add(
            {
                "model": running.model.name,
                "backend": engine.backend.name if engine else "none",
                "device": engine.backend.device_name if engine else "none",
                "device wanted": running.device,
                **({"why not the GPU": self._why_cpu} if self._why_cpu else {}),
                "rate in (Hz)": new["received"] / seconds,
                "rate out (Hz)": new["classified"] / seconds,
            }
        )
        report.add({f"frames {name}": total for name, total in totals.items()})
        report.add({f"frames refused: {reason}": n for reason, n in sorted(counts.refused.items())})
        report.add_latency(self._pipeline.latency.summary())
        self._publish(self._diagnostics, report.message(self.get_clock().now().to_msg()))

    def _find_silence(self, report: Report, topic: str, seconds: float) -> None:
        if seconds < SILENCE:
            return
        publishers = self.count_publishers(topic)
        if publishers == 0:
            report.find(WARN, f"nobody publishes {topic}")
        else:
            report.find(
                WARN,
                f"no frame on {topic} for {seconds:.0f} s, though it has {publishers} publisher(s); "
                f"if it should have sent some, {TRANSPORT_REMEDY}",
            )


def make_spec(settings: Settings, loaded: EngineSpec | None = None) -> EngineSpec:
    """What the settings ask for, checked as far as it can be without making an engine.

    Args:
        settings: of the node.
        loaded: holds the model already; None reads it.

    Raises:
        ModelError: where the model cannot be used.
        BackendError: where the backend cannot evaluate it.
    """
    model = loaded.model if loaded is not None else load_model(find_model(settings.model))
    check_choice(model, settings.backend, settings.device)
    return EngineSpec(settings.model, model, settings.backend, settings.device, settings.threads)


def describe(spec: EngineSpec) -> str:
    """A wish in a few words."""
    return f"model {spec.model_name} with backend {spec.backend} on device {spec.device}"


def _message_lost_callback(callback: Any) -> Any:
    try:
        from rclpy.event_handler import SubscriptionEventCallbacks
    except ImportError:  # its name until ROS 2 Humble
        from rclpy.qos_event import SubscriptionEventCallbacks
    return SubscriptionEventCallbacks(message_lost=callback)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; see :func:`~bnn_perception.ros.entry.run_node`."""
    return run_node(
        "classifier_node",
        argv,
        make=ClassifierNode,
        work=lambda node, executor: executor.spin(),
        expected=(ModelError, BackendError, ParameterError),
    )


if __name__ == "__main__":
    sys.exit(main())
