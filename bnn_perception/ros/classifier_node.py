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
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Classification, LabelInfo, ObjectHypothesis, VisionClass

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # where they are until ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

from bnn_perception.backends import BackendError, check_choice
from bnn_perception.backends.cuda.device import why_unusable
from bnn_perception.classifier import Prediction
from bnn_perception.net.model import ModelError, load_model
from bnn_perception.resources import find_model
from bnn_perception.ros import diagnostics
from bnn_perception.ros.diagnostics import ERROR, WARN, Report, State
from bnn_perception.ros.engine import Engine, EngineLoader, EngineSpec
from bnn_perception.ros.entry import run_node, settle
from bnn_perception.ros.image_msg import RefusedFrame
from bnn_perception.ros.parameters import ENGINE_PARAMETERS, ParameterError, Settings, declare_parameters
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

#: Seconds that the end waits for an engine that is being made. A compiler cannot be interrupted.
ENDING = 1.0


class ClassifierNode(Node):
    """Subscribes images, publishes labels, label info and diagnostics.

    It answers once :meth:`start` was called and the first engine has been loaded; until then diagnostics say so. Where
    that engine cannot be made, the executor that spins the node raises the BackendError.

    Raises:
        ModelError, BackendError, ParameterError: where it cannot start, with the reason in one line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("classifier", namespace="bnn", **options)
        # What the parameters say. Replaced as a whole, and a frame takes along what held when it came.
        self._settings = declare_parameters(self)
        self._spec = make_spec(self._settings)
        self._rejected: tuple[EngineSpec, str] | None = None
        self._last_rejection = ""
        self._restoring = False
        self._foreign_stamps = 0
        self._last_refusal = ""
        self._why_cpu = ""
        self._started_at = time.monotonic()
        self._last_frame = [time.monotonic()] * len(self._settings.image_topics)
        self._lost = [0] * len(self._settings.image_topics)
        self._totals: dict[str, int] = {}
        self._totals_at = time.monotonic()

        self._labels = self.create_publisher(Classification, "labels", 10)
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        self._label_info = self.create_publisher(LabelInfo, "label_info", latched)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)

        self._loader = EngineLoader(deliver=self._take_engine, reject=self._note_rejection, report=self._warn)
        self.pipeline = Pipeline(self, self._loader.retire)
        self._judge = self.create_guard_condition(self._on_rejection)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._cameras = [
            self._subscribe(camera, topic) for camera, topic in enumerate(self._settings.image_topics)
        ]
        # Steady time: the state is reported also where simulated time stands still.
        self.create_timer(
            self._settings.diagnostics_period, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def start(self) -> None:
        """Start the threads and load the first engine. To be called once."""
        self._started_at = time.monotonic()
        self.pipeline.start()
        self._loader.start()
        self._loader.request(self._spec)

    def destroy_node(self) -> None:
        """End the threads and give back the engines, then what every node holds.

        An engine that is being made is not waited for longer than :data:`ENDING`; its thread ends with the process.
        """
        self.pipeline.stop()
        self._loader.close(ENDING)
        self.pipeline.close_engines()
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
            return create(
                event_callbacks=SubscriptionEventCallbacks(message_lost=partial(self._on_lost, camera))
            )
        except UnsupportedEventTypeError:
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
        self.pipeline.put(Arrival(camera, message, self._settings, received, age if known else None))

    def _on_lost(self, camera: int, event: Any) -> None:
        self._lost[camera] = event.total_count

    # Executor thread: parameters.

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Validate the values; an engine that they need is only requested here, and loaded elsewhere."""
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
        if new_info and self._loader.current is not None:
            self._publish_label_info(self._loader.current)
        return SetParametersResult(successful=True)

    def _on_rejection(self) -> None:
        """A request could not be met: end where nothing runs, otherwise let the parameters say what does.

        Raises:
            BackendError: where the first engine of all cannot be made.
        """
        if self._rejected is None:
            return
        (spec, reason), self._rejected = self._rejected, None
        newer = spec is not self._spec  # another request has come meanwhile
        running = self._loader.current
        if running is None and not newer:
            raise BackendError(reason)
        self.get_logger().error(reason)
        if running is not None and not newer:
            self._spec = running
            self._restore(running.asked.engine_values())

    def _restore(self, values: dict[str, Any]) -> None:
        self._settings = self._settings.with_values(values)
        self._restoring = True
        try:
            self.set_parameters([Parameter(name, value=value) for name, value in values.items()])
        finally:
            self._restoring = False

    # Loading thread.

    def _take_engine(self, engine: Engine) -> None:
        self.pipeline.swap(engine)

    def _warn(self, line: str) -> None:
        self.get_logger().warning(line)

    def _note_rejection(self, spec: EngineSpec, reason: str) -> None:
        running = self._loader.current
        if running is not None:
            reason = f"kept {running.asked}, for {spec.asked} was refused: {reason}"
            # Now: the engine of a newer request, whose start clears it, cannot be there yet.
            self._last_rejection = reason
        self._rejected = (spec, reason)
        self._judge.trigger()

    # Inference thread: see pipeline.Sink.

    def answered(self, arrival: Arrival, predictions: Sequence[Prediction]) -> None:
        results = [ObjectHypothesis(class_id=label, score=score) for _, label, score in predictions]
        self._publish(self._labels, Classification(header=arrival.message.header, results=results))

    def refused(self, arrival: Arrival, error: RefusedFrame) -> None:
        topic = arrival.settings.image_topics[arrival.camera]
        self._last_refusal = f"{topic}: {error}"
        self.get_logger().warning(f"frame refused: {self._last_refusal}", throttle_duration_sec=THROTTLE)

    def engine_started(self, engine: Engine) -> None:
        self._why_cpu = ""
        asked = engine.spec.asked
        if asked.device == "auto" and asked.backend != "reference" and not engine.degraded:
            self._why_cpu = why_unusable() or ""
        choice = f"auto took the CPU, {self._why_cpu}" if self._why_cpu else asked.device
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
        counts = self.pipeline.counts
        totals = {
            diagnostics.RECEIVED: counts.received,
            diagnostics.CLASSIFIED: counts.classified,
            diagnostics.STALE: counts.stale,
            diagnostics.LOADING: counts.loading,
            diagnostics.LOST: sum(self._lost),
            diagnostics.FAILED: counts.failed,
            diagnostics.REFUSED: sum(counts.refused.values()),
        }
        now = time.monotonic()
        seconds, self._totals_at = now - self._totals_at, now
        new = {name: total - self._totals.get(name, 0) for name, total in totals.items()}
        self._totals = totals

        engine = self.pipeline.engine
        spec = self._loader.current or self._spec
        state = State(
            model=spec.model.name,
            backend=engine.backend.name if engine else diagnostics.NOTHING,
            device=engine.backend.device_name if engine else diagnostics.NOTHING,
            device_wanted=spec.asked.device,
            why_not_gpu=self._why_cpu,
            rate_in=new[diagnostics.RECEIVED] / seconds,
            rate_out=new[diagnostics.CLASSIFIED] / seconds,
            frames=totals,
            refused=dict(counts.refused),
            latency=self.pipeline.latency.summary(),
        )
        report = Report(self.get_fully_qualified_name(), engine.backend.device_name if engine else "")
        self._find(report, engine, spec, new)
        report.add(state.values())
        self._publish(self._diagnostics, report.message(self.get_clock().now().to_msg()))

    def _find(self, report: Report, engine: Engine | None, spec: EngineSpec, new: dict[str, int]) -> None:
        """Note what the user should know.

        Args:
            report: to note it in.
            engine: that answers, if one does.
            spec: of the engine, or of the one that is being made.
            new: what became of frames since the last report.
        """
        now = time.monotonic()
        if self.pipeline.is_loading:
            report.find(WARN, f"loading {spec.asked} for {now - self._started_at:.0f} s")
        elif engine is None:
            report.find(ERROR, f"no answers: {spec.asked} failed and is being made anew")
        elif engine.degraded:
            report.find(WARN, engine.degraded)
        if self._last_rejection:
            report.find(WARN, self._last_rejection)
        if new[diagnostics.FAILED]:
            report.find(ERROR, f"{new[diagnostics.FAILED]} frames got no answer")
        if new[diagnostics.REFUSED]:
            report.find(WARN, f"{new[diagnostics.REFUSED]} frames refused, the last on {self._last_refusal}")
        if new[diagnostics.LOST]:
            report.find(WARN, f"{new[diagnostics.LOST]} frames lost in transport: {TRANSPORT_REMEDY}")
        for camera, subscription in enumerate(self._cameras):
            self._find_silence(report, subscription.topic_name, now - self._last_frame[camera])
        if self._foreign_stamps:
            self._foreign_stamps = 0
            report.find(
                WARN, "stamps of frames and the clock are over a minute apart; is use_sim_time right?"
            )

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
    return EngineSpec(settings, model)


def work(node: ClassifierNode, executor: SingleThreadedExecutor) -> None:
    """Start the node and spin it until it is told to stop.

    Raises:
        BackendError: where its first engine cannot be made.
    """
    node.start()
    while node.pipeline.is_loading:
        executor.spin_once(timeout_sec=0.05)
    settle()
    executor.spin()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; see :func:`~bnn_perception.ros.entry.run_node`."""
    return run_node(
        "classifier_node",
        argv,
        make=ClassifierNode,
        work=work,
        expected=(ModelError, BackendError, ParameterError),
    )


if __name__ == "__main__":
    sys.exit(main())
