"""The classifier node: images in, labels out.

Three threads: the executor's takes messages, parameters and the timer, none of which takes long; the inference
thread answers frames (:mod:`~bnn_perception.ros.pipeline`); the loading thread makes engines
(:mod:`~bnn_perception.ros.engine`). A model folder is read in a thread that ends with it
(:mod:`~bnn_perception.ros.reading`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
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
from bnn_perception.backends.cuda.device import why_not_installed, why_unusable
from bnn_perception.classifier import Prediction
from bnn_perception.errors import printable
from bnn_perception.frames.jpeg import compile_ahead
from bnn_perception.net.checks import ModelError
from bnn_perception.net.folder import load_model
from bnn_perception.ros.engine import Engine, EngineLoader, EngineSpec
from bnn_perception.ros.entry import run_node, settle, spin_once
from bnn_perception.ros.health import Health
from bnn_perception.ros.image_msg import RefusedFrame
from bnn_perception.ros.model_root import model_folder
from bnn_perception.ros.parameters import ENGINE_PARAMETERS, ParameterError, Settings, declare_parameters
from bnn_perception.ros.pipeline import Arrival, Pipeline
from bnn_perception.ros.reading import Reading, ReadingError
from bnn_perception.ros.refusals import Refusals
from bnn_perception.ros.silence import SUFFIX, why_silent
from bnn_perception.ros.worker import with_place

#: Seconds between two warnings of the same kind.
THROTTLE = 5.0

#: Seconds between two lines about silent cameras or lost frames, which diagnostics tell once a second.
NEWS_THROTTLE = 30.0

#: A stamp further from the clock than this (milliseconds) belongs to another time: a recording, or simulated time.
CLOCK_TOLERANCE = 60_000.0

#: Seconds that the end waits for a batch that is being evaluated and an engine that is being made, together. Neither a
#: compiler nor a large net can be interrupted.
ENDING = 1.0

#: Seconds that a request for a model waits for it to be read, so that what is wrong with it is known at once. No frame
#: is taken meanwhile. A model that takes longer is refused or taken later, as one whose engine must be made is.
READING = 0.5


class ClassifierNode(Node):
    """Subscribes images, publishes labels, label info and diagnostics.

    It answers once :meth:`start` was called and the first engine has been loaded; until then diagnostics say so. Where
    that engine cannot be made, the executor that spins the node raises the BackendError.

    Raises:
        ModelError, BackendError, ParameterError: where it cannot start, with the reason in one line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("classifier", namespace="bnn", **options)
        # First of all: rclpy ends a node that could not be made whole as well.
        self._loader = EngineLoader(
            deliver=self._take_engine,
            reject=self._note_rejection,
            report=self._warn,
            unexpected=self.unexpected,
        )
        self.pipeline = Pipeline(self, self._loader.retire)
        # What the parameters say. Replaced as a whole, and a frame takes along what held when it came.
        self._settings = declare_parameters(self)
        self._spec = self._read_first()
        # The model of the newest request, while it is being read.
        self._late: Reading[EngineSpec] | None = None
        self._late_settings = self._settings
        self._refusals = Refusals()
        self._restoring = False

        self._labels = self.create_publisher(Classification, "labels", 10)
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        self._label_info = self.create_publisher(LabelInfo, "label_info", latched)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)

        self._health = Health(
            self.pipeline,
            self._loader.worker,
            self._refusals,
            len(self._settings.image_topics),
            lambda topic: why_silent(self, next(c for c in self._cameras if c.topic_name == topic)),
        )
        self._judge = self.create_guard_condition(self._on_news)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._cameras = [
            self._subscribe(camera, topic) for camera, topic in enumerate(self._settings.image_topics)
        ]
        # Where there are several, each camera's answers have a topic of their own too.
        self._labels_of = [
            self.create_publisher(Classification, f"{camera.topic_name.removesuffix(SUFFIX)}/labels", 10)
            for camera in self._cameras
            if len(self._cameras) > 1
        ]
        # Steady time: the state is reported also where simulated time stands still.
        self.create_timer(
            self._settings.diagnostics_period, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def start(self) -> None:
        """Start the threads and load the first engine. To be called once."""
        self._health.started_at = time.monotonic()
        self.pipeline.start()
        self._loader.start()
        self._loader.request(self._spec)
        for camera in self._cameras:
            profile = camera.qos_profile
            self.get_logger().info(
                f"images from {camera.topic_name} ({profile.reliability.short_key}, depth {profile.depth}); "
                f"labels on {self._labels.topic_name}"
            )

    def destroy_node(self) -> None:
        """End the threads and give back the engines, then what every node holds.

        A thread that does not end is not waited for longer than :data:`ENDING`; it ends with the process.
        """
        deadline = time.monotonic() + ENDING
        answered = self.pipeline.stop(ENDING)
        self._loader.close(max(0.0, deadline - time.monotonic()))
        if answered:
            self.pipeline.close_engines()
        super().destroy_node()

    def _read_first(self) -> EngineSpec:
        """What the parameters ask for, read while signals are heeded."""
        settings = self._settings
        reading = Reading(lambda: make_spec(settings))
        while not reading.wait(0.05):
            if not self.context.ok():
                raise ExternalShutdownException
        return reading.result()

    # Executor thread: messages.

    def _subscribe(self, camera: int, topic: str) -> Any:
        kind, name = Image, topic
        if self._settings.image_transport == "compressed":
            kind, name = CompressedImage, f"{topic}{SUFFIX}"
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
        self._health.received[camera] += 1
        self._health.last_frame[camera] = time.monotonic()
        stamp = message.header.stamp
        now = self.get_clock().now().nanoseconds
        age = (now - stamp.sec * 1_000_000_000 - stamp.nanosec) * 1e-6
        known = abs(age) <= CLOCK_TOLERANCE
        self._health.foreign_stamps += not known
        self.pipeline.put(Arrival(camera, message, self._settings, received, age if known else None))

    def _on_lost(self, camera: int, event: Any) -> None:
        self._health.lost[camera] = event.total_count

    # Executor thread: parameters.

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Validate the values; an engine that they need is only requested here, and loaded elsewhere."""
        if self._restoring:
            return SetParametersResult(successful=True)
        changes = {parameter.name: parameter.value for parameter in parameters}
        try:
            settings = self._settings.with_values(changes)
            if any(name in changes for name in ENGINE_PARAMETERS):
                if settings.device == "cuda" and (missing := why_not_installed()):
                    raise BackendError(f"device cuda cannot be used: {missing}")
                self._request(settings, "model" in changes)
        except (ParameterError, ModelError, BackendError, ReadingError) as error:
            return SetParametersResult(successful=False, reason=printable(str(error)))
        except Exception as error:
            self.unexpected(f"a request for parameters: {with_place(error)}")
            return SetParametersResult(
                successful=False, reason=printable(f"unexpected error: {with_place(error)}")
            )
        new_info = settings.score_threshold != self._settings.score_threshold
        self._settings = settings
        if new_info and self._loader.current is not None:
            try:
                self._publish_label_info(self._loader.current)
            except Exception as error:  # the value holds all the same
                self.unexpected(f"publishing label info: {with_place(error)}")
        return SetParametersResult(successful=True)

    def _request(self, settings: Settings, reads: bool) -> None:
        """Request an engine; what is wrong with the request and known soon is raised.

        Args:
            settings: that ask for it.
            reads: whether the model is read, as one that is set again is: it may have been trained further.
        """
        # A model that is still being read is that of these settings too.
        if not reads and self._late is None:
            spec = make_spec(settings, self._spec)
        else:
            reading = Reading(lambda: make_spec(settings), self._wake)
            if not reading.wait(READING):
                self._late, self._late_settings = reading, settings
                return
            spec = reading.result()
            self._late = None
        self._spec = spec
        self._loader.request(spec)

    def _wake(self) -> None:
        # The node may have ended meanwhile.
        with suppress(Exception):
            self._judge.trigger()

    def _on_news(self) -> None:
        """Other threads have something for the executor's: a model that was read late, a request that was not met."""
        self._take_late()
        self._on_rejection()

    def _take_late(self) -> None:
        reading, settings = self._late, self._late_settings
        if reading is None or not reading.has_ended:
            return
        self._late = None
        try:
            self._spec = reading.result()
        except Exception as error:
            known = isinstance(error, (ModelError, BackendError))
            if not known:
                self.unexpected(f"reading a model: {with_place(error)}")
            reason = str(error) if known else f"unexpected error: {with_place(error)}"
            self.get_logger().error(printable(self._refusals.keep(self._spec, settings, reason)))
            self._restore(self._spec.asked.engine_values())
            if self._loader.current is not None:
                return
        # Where the first engine has been refused meanwhile, this says so anew.
        self._loader.request(self._spec)

    def _on_rejection(self) -> None:
        """A request could not be met: end where nothing runs, otherwise let the parameters say what does.

        Raises:
            BackendError: where the first engine of all cannot be made.
        """
        for spec, reason in self._refusals.take():
            # Another request has come meanwhile.
            newer = spec is not self._spec or self._late is not None
            running = self._loader.current
            if running is None and not newer:
                raise BackendError(reason)
            self.get_logger().error(printable(reason))
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
        if self._settings.image_transport == "compressed":
            compile_ahead()  # here, and not with the first frame
        self.pipeline.swap(engine)

    def _warn(self, line: str) -> None:
        self.get_logger().warning(printable(line))

    def _note_rejection(self, spec: EngineSpec, reason: str) -> None:
        self._refusals.note(spec, reason, self._loader.current)
        self._judge.trigger()

    # Inference thread: see pipeline.Sink.

    def answered(self, arrival: Arrival, predictions: Sequence[Prediction]) -> None:
        results = [ObjectHypothesis(class_id=label, score=score) for _, label, score in predictions]
        message = Classification(header=arrival.message.header, results=results)
        self._publish(self._labels, message)
        if self._labels_of:
            self._publish(self._labels_of[arrival.camera], message)

    def refused(self, arrival: Arrival, error: RefusedFrame) -> None:
        topic = self._cameras[arrival.camera].topic_name
        self._health.last_refusal = f"{topic}: {error}"
        self.get_logger().warning(
            printable(f"frame refused: {topic}: {error}"), throttle_duration_sec=THROTTLE
        )

    def engine_started(self, engine: Engine) -> None:
        why_cpu = engine.why_not_gpu
        asked = engine.spec.asked
        if not why_cpu and asked.device == "auto" and asked.backend != "reference" and not engine.degraded:
            why_cpu = why_unusable() or ""
        self._health.why_not_gpu = why_cpu
        choice = f"auto took the CPU, {why_cpu}" if why_cpu else asked.device
        self.get_logger().info(f"answering with {engine.name}; device {choice}")
        if engine.why_not_gpu:
            self.get_logger().warning(f"auto took the CPU though there is a GPU: {engine.why_not_gpu}")
        self._refusals.engine_started(engine.spec)
        self._publish_label_info(engine.spec)

    def engine_failed(self, engine: Engine, reason: str) -> None:
        self._loader.fault(engine, reason)

    # Any thread.

    def unexpected(self, line: str) -> None:
        """Count and log an exception that nobody foresaw."""
        self._health.unforeseen.add(line)
        self.get_logger().error(printable(f"unexpected error: {line}"), throttle_duration_sec=THROTTLE)

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
        self._health.topics = [camera.topic_name for camera in self._cameras]
        report = self._health.report(self.get_fully_qualified_name(), self._loader.current or self._spec)
        self._publish(self._diagnostics, report.message(self.get_clock().now().to_msg()))
        if self._health.news:
            self.get_logger().warning(
                printable("; ".join(self._health.news)), throttle_duration_sec=NEWS_THROTTLE
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
    model = (
        loaded.model if loaded is not None else load_model(model_folder(settings.model, settings.model_root))
    )
    check_choice(model, settings.backend, settings.device)
    return EngineSpec(settings, model)


def work(node: ClassifierNode, executor: SingleThreadedExecutor) -> None:
    """Start the node and spin it until it is told to stop.

    Raises:
        BackendError: where its first engine cannot be made.
    """
    node.start()
    while node.pipeline.is_loading:
        spin_once(executor, node.unexpected, 0.05, fatal=(BackendError,))
    settle()
    while node.context.ok():
        spin_once(executor, node.unexpected)


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
