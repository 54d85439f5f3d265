"""The classifier node: images in, labels out.

A managed node. Unconfigured it has its parameters and diagnostics; configured it has read its model and made its
topics; active it takes images and answers them; deactivated it has given back engine and subscriptions.

Four threads: the executor's takes messages, parameters, transitions and timers, none of which takes long; the
inference thread answers frames (:mod:`~bnn_perception.ros.pipeline`); the loading thread makes engines
(:mod:`~bnn_perception.ros.engine`); the drawing thread makes pictures of answers for who looks
(:mod:`~bnn_perception.ros.annotated`). A model folder is read in a thread that ends with it
(:mod:`~bnn_perception.ros.reading`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from bnn_perception.backends import BackendError, check_choice
from bnn_perception.backends.cuda.device import why_not_installed, why_unusable
from bnn_perception.errors import printable
from bnn_perception.frames.jpeg import compile_ahead
from bnn_perception.net.checks import ModelError
from bnn_perception.ros.annotated import AnnotatedImages
from bnn_perception.ros.compare import Comparison, Unsaved
from bnn_perception.ros.diagnostics import ERROR, as_message
from bnn_perception.ros.engine import Engine, EngineLoader, EngineSpec
from bnn_perception.ros.entry import run_node, settle, spin_once
from bnn_perception.ros.health import Health, Situation
from bnn_perception.ros.image_msg import RefusedFrame
from bnn_perception.ros.inputs import Cameras, cameras_of
from bnn_perception.ros.managed import ACTIVE, ManagedNode
from bnn_perception.ros.outputs import Outputs
from bnn_perception.ros.parameters import (
    ENGINE_PARAMETERS,
    INPUT_PARAMETERS,
    ParameterError,
    Settings,
    declare_parameters,
)
from bnn_perception.ros.pipeline import Answer, Arrival, Pipeline
from bnn_perception.ros.publishing import publish
from bnn_perception.ros.reading import Reading, ReadingError
from bnn_perception.ros.refusals import Refusals
from bnn_perception.ros.requests import EngineRequests
from bnn_perception.ros.worker import with_place

#: Seconds between two warnings of the same kind.
THROTTLE = 5.0

#: Seconds between two lines about silent cameras or lost frames, which diagnostics tell once a second.
NEWS_THROTTLE = 30.0

#: Seconds that the end, or a deactivation, waits for a batch that is being evaluated and, at the end, for an engine
#: that is being made. Neither a compiler nor a large net can be interrupted.
ENDING = 1.0

#: Seconds between two looks at who subscribes the answers, where ``lazy`` is set.
LOOKING = 0.2

#: What says in one line why the node cannot be configured or activated.
EXPECTED = (ModelError, BackendError, ParameterError, ReadingError)


class ClassifierNode(ManagedNode):
    """Subscribes images, publishes labels, label info and diagnostics.

    An active node answers once its engine has been loaded; until then diagnostics say so. Where that engine cannot be
    made, the node is inactive again; one that has configured and activated itself ends instead: the executor that
    spins it raises the BackendError.

    Raises:
        ParameterError: where a parameter cannot be used, with the reason in one line.
    """

    expected = EXPECTED

    def __init__(self, **options: Any) -> None:
        super().__init__("classifier", namespace="bnn", **options)
        # First of all: rclpy ends a node that could not be made whole as well.
        self._loader = EngineLoader(
            deliver=self._take_engine,
            reject=self._note_rejection,
            report=self._warn,
            unexpected=self.unexpected,
        )
        self._annotated = AnnotatedImages(self, self._warn, self.unexpected)
        # What the parameters say. Replaced as a whole, and a frame takes along what held when it came.
        self._settings = declare_parameters(self, Settings)
        self._restoring = False
        cameras = cameras_of(self, self._settings)
        self.pipeline = Pipeline(self, self._loader.retire, len(cameras))
        self._refusals = Refusals()
        self._cameras = Cameras(self, lambda: self._settings, self._take, self.pipeline.skip, cameras)
        self._comparison = Comparison(self, [camera.topic for camera in cameras], self._warn, self.unexpected)
        self._health = Health(
            self.pipeline,
            (self._loader.worker, self._annotated.worker),
            self._refusals,
            cameras,
            self._cameras.why_silent,
            self._cameras.why_no_boxes,
            self._comparison,
        )
        self._judge = self.create_guard_condition(self._on_news)
        self._requests = EngineRequests(
            self._loader, self._refusals, self._restore, self._wake, self.unexpected, self._error
        )
        self._outputs: Outputs | None = None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/health", self._on_health)
        self.create_service(Trigger, "~/save_difference", self._on_save_difference)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        # Steady time: the state is reported also where simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self._settings.diagnostics_period, self._report, clock=steady)
        self._look = self.create_timer(LOOKING, self._adjust, clock=steady)
        self._look.cancel()

    @property
    def settings(self) -> Settings:
        """What the parameters say."""
        return self._settings

    def destroy_node(self) -> None:
        """End the threads and give back the engines, then what every node holds.

        A thread that does not end is not waited for longer than :data:`ENDING`; it ends with the process.
        """
        deadline = time.monotonic() + ENDING
        if hasattr(self, "pipeline") and self.pipeline.stop(ENDING):
            self.pipeline.close_engines()
        self._loader.close(max(0.0, deadline - time.monotonic()))
        if hasattr(self, "_comparison"):
            self._comparison.close(max(0.0, deadline - time.monotonic()))
        self._annotated.stop(max(0.0, deadline - time.monotonic()))
        super().destroy_node()

    # Executor thread: the work of a managed node's transitions.

    def configure(self) -> None:
        """Read the model and make the topics."""
        self._requests.read(self._settings, self.context.ok)
        cameras = self._health.cameras
        self._outputs = Outputs(
            self,
            [camera.topic for camera in cameras],
            [bool(camera.boxes_topic) for camera in cameras],
            self._annotated,
            lambda: self._settings.score_threshold,
        )

    def activate(self) -> None:
        """Take images, and have the engine made that answers them."""
        self._health.loading_since = time.monotonic()
        if not self.pipeline.worker.has_started:
            self.pipeline.start()
            self._loader.start()
        self.pipeline.resume()
        self._requests.start()
        self._adjust()
        self._adjust_comparison()

    def deactivate(self) -> None:
        """Take no more images and give back the engine: a GPU is free for others."""
        self._adjust()
        self._adjust_comparison()
        self._requests.stop()
        self.pipeline.release(ENDING)

    def clean_up(self) -> None:
        """Give up the model and the topics."""
        self._requests.forget()
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None

    def give_back(self) -> None:
        """Give up all that a state holds."""
        self.deactivate()
        self.clean_up()

    # Executor thread: whether images are taken.

    @property
    def _idle(self) -> str:
        """Why an active node takes no images, empty where it does."""
        if not self._settings.enabled:
            return "idle: enabled is false"
        if self._settings.lazy and self._outputs is not None and not self._has_audience():
            return "idle: nobody subscribes the answers (lazy)"
        return ""

    def _has_audience(self) -> bool:
        return self._topics.has_audience() or self._comparison.has_audience()

    def _adjust(self) -> None:
        """Subscribe where images are wanted, and only there."""
        is_active = self.lifecycle == ACTIVE
        if is_active and self._settings.lazy:
            self._look.reset()
        else:
            self._look.cancel()
        wanted = is_active and not self._idle
        if wanted and not self._cameras.are_subscribed:
            self._cameras.subscribe()
            for number, line in enumerate(self._cameras.describe()):
                self.get_logger().info(f"images from {line}; answers on {self._topics.topic_of(number)}")
        elif not wanted and self._cameras.are_subscribed:
            self._cameras.unsubscribe()

    def _adjust_comparison(self) -> None:
        """Compare where that is wanted, and only there."""
        if not (self.lifecycle == ACTIVE and self._settings.compare):
            self._comparison.stop(ENDING)
            return
        self._comparison.start()
        followed = None
        # The inference thread may change engines meanwhile, and follows the new one itself, before or after this.
        while (engine := self.pipeline.engine) is not followed and engine is not None:
            self._comparison.follow(engine.spec)
            followed = engine

    def _take(self, camera: int, image: Any, detections: Any, received: float, age: float | None) -> None:
        self.pipeline.put(Arrival(camera, image, self._settings, received, age, detections))

    @property
    def _topics(self) -> Outputs:
        assert self._outputs is not None, "an active node has been configured"
        return self._outputs

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
                self._requests.change(settings, "model" in changes)
            if changes.get("compare") and (spec := self._requests.spec) is not None:
                check_choice(spec.model, "float", settings.device)
        except EXPECTED as error:
            return SetParametersResult(successful=False, reason=printable(str(error)))
        except Exception as error:
            self.unexpected(f"a request for parameters: {with_place(error)}")
            return SetParametersResult(
                successful=False, reason=printable(f"unexpected error: {with_place(error)}")
            )
        new_info = settings.score_threshold != self._settings.score_threshold
        self._settings = settings
        try:  # the values hold, whatever this raises
            if new_info and self._outputs is not None:
                self._outputs.tell_labels()
            if any(name in changes for name in INPUT_PARAMETERS):
                self._adjust()
            if "compare" in changes:
                self._adjust_comparison()
        except Exception as error:
            self.unexpected(f"following a change of parameters: {with_place(error)}")
        return SetParametersResult(successful=True)

    def _restore(self, values: dict[str, Any]) -> None:
        self._settings = self._settings.with_values(values)
        self._restoring = True
        try:
            self.set_parameters([Parameter(name, value=value) for name, value in values.items()])
        finally:
            self._restoring = False

    def _on_news(self) -> None:
        """Other threads have something for the executor's.

        Raises:
            BackendError: where the first engine of all cannot be made and nobody manages the node.
        """
        try:
            self._requests.take_news()
        except BackendError as error:
            if self.has_started_itself:
                raise
            self.fall_back(str(error))

    # Loading thread.

    def _take_engine(self, engine: Engine) -> None:
        if self._settings.image_transport == "compressed":
            compile_ahead()  # here, and not with the first frame
        self.pipeline.swap(engine)

    def _note_rejection(self, spec: EngineSpec, reason: str) -> None:
        self._requests.note_rejection(spec, reason)

    def _warn(self, line: str) -> None:
        self.get_logger().warning(printable(line))

    # Inference thread: see pipeline.Sink.

    def answered(self, answer: Answer) -> None:
        if (outputs := self._outputs) is not None:  # otherwise the batch has outlasted the state
            outputs.publish_answer(answer)
            self._comparison.put(answer)

    def refused(self, arrival: Arrival, error: RefusedFrame) -> None:
        camera = self._health.cameras[arrival.camera]
        camera.last_refusal = str(error)
        self.get_logger().warning(
            printable(f"frame refused: {camera.topic}: {error}"), throttle_duration_sec=THROTTLE
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
        self.has_started_itself = False  # from now on a request that cannot be met ends nothing
        self._topics.tell_labels(engine.spec.model)
        self._comparison.follow(engine.spec)

    def engine_failed(self, engine: Engine, reason: str) -> None:
        self._loader.fault(engine, reason)

    # Any thread.

    def unexpected(self, line: str) -> None:
        """Count and log an exception that nobody foresaw."""
        self._health.unforeseen.add(line)
        self.get_logger().error(printable(f"unexpected error: {line}"), throttle_duration_sec=THROTTLE)

    def _error(self, line: str) -> None:
        self.get_logger().error(printable(line))

    def _wake(self) -> None:
        # The node may have ended meanwhile.
        with suppress(Exception):
            self._judge.trigger()

    # Executor thread: what the node says of itself.

    def _report(self) -> None:
        """Publish /diagnostics."""
        if self._outputs is not None:
            self._outputs.end_states()
        idle = self._idle if self.lifecycle == ACTIVE else ""
        spec = self._loader.current or self._requests.spec
        situation = Situation(self.lifecycle, self.failure, idle, self._settings, spec)
        reports = self._health.report(self.get_fully_qualified_name(), situation)
        publish(self, self._diagnostics, as_message(reports, self.get_clock().now().to_msg()))
        if self._health.news:
            self.get_logger().warning(
                printable("; ".join(self._health.news)), throttle_duration_sec=NEWS_THROTTLE
            )

    def _on_health(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        """Tell a supervisor whether the node answers, and what the last error was."""
        level, text = self._health.newest
        answer.success = self.lifecycle == ACTIVE and self.pipeline.engine is not None and level != ERROR
        if self._health.last_error is not None and level != ERROR:
            at, error = self._health.last_error
            text += f"; the last error, {time.monotonic() - at:.0f} s ago: {error}"
        answer.message = printable(text)
        return answer

    def _on_save_difference(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        """Save the last picture on which binary net and float twin differ."""
        try:
            writing = Reading(lambda: self._comparison.save(self._settings.compare_folder))
            if not writing.wait(ENDING):
                raise Unsaved(
                    f"the disk of {self._settings.compare_folder} is slow; the picture may come yet"
                )
            answer.success, answer.message = True, printable(str(writing.result()))
        except (Unsaved, ReadingError) as error:
            answer.success, answer.message = False, printable(str(error))
        return answer


def work(node: ClassifierNode, executor: SingleThreadedExecutor) -> None:
    """Start the node, unless somebody else manages it, and spin it until it is told to stop.

    Raises:
        ModelError, BackendError, ReadingError: where it starts itself and cannot.
    """
    if node.settings.autostart:
        node.start()
    while node.pipeline.is_loading:
        spin_once(executor, node.unexpected, 0.05, fatal=(BackendError,))
    settle()
    while node.context.ok():
        spin_once(executor, node.unexpected)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; see :func:`~bnn_perception.ros.entry.run_node`."""
    return run_node("classifier_node", argv, make=ClassifierNode, work=work, expected=EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
