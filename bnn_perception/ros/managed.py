"""A managed node whose transitions say what went wrong: rclpy keeps to itself what their callbacks raise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from lifecycle_msgs.srv import ChangeState
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

from bnn_perception.errors import one_line, printable, shown
from bnn_perception.ros.worker import with_place

#: The states of a managed node.
UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = "unconfigured", "inactive", "active", "finalized"

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class ManagedNode(LifecycleNode):
    """Has the states of a lifecycle; a subclass does the work of the transitions between them.

    Attributes:
        expected: exceptions that say in one line why a transition is refused.
        lifecycle: the state.
        failure: why the last transition failed, empty where it did not.
        has_started_itself: whether nobody manages it. What it cannot do then is raised, and not only told.
    """

    expected: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.lifecycle = UNCONFIGURED
        self.failure = ""
        self.has_started_itself = False
        self._cause: Exception | None = None
        (transitions,) = (service for service in self.services if service.srv_type is ChangeState)
        transitions.callback = partial(self._on_change_state, transitions.callback)

    def destroy_node(self) -> None:
        """Take the node off the graph, and give back its shared memory."""
        super().destroy_node()
        # rclpy leaves it, and with it all that a participant of DDS has.
        self._state_machine.destroy_when_not_in_use()

    # The work. Each may raise; what is not expected leads to `give_back` and to the state unconfigured.

    def configure(self) -> None:
        """From unconfigured to inactive."""

    def activate(self) -> None:
        """From inactive to active."""

    def deactivate(self) -> None:
        """From active to inactive."""

    def clean_up(self) -> None:
        """From inactive to unconfigured."""

    def give_back(self) -> None:
        """From any state to the end, or to unconfigured after an error."""

    def unexpected(self, line: str) -> None:
        """An exception that nobody foresaw has cost what the line says."""

    def start(self) -> None:
        """Configure and activate the node.

        Raises:
            ExternalShutdownException: where ROS has been shut down meanwhile.
            Exception: what the transition has raised.
        """
        self.has_started_itself = True
        for trigger in (self.trigger_configure, self.trigger_activate):
            if trigger() != SUCCESS:
                if not self.context.ok():
                    raise ExternalShutdownException
                raise self._cause or RuntimeError(self.failure)

    def fall_back(self, reason: str) -> None:
        """Deactivate for a reason, which is kept."""
        self.get_logger().error(printable(f"deactivated: {reason}"))
        self.trigger_deactivate()
        self.failure = reason

    def on_configure(self, _: Any) -> TransitionCallbackReturn:
        return self._transition("configured", self.configure, INACTIVE)

    def on_activate(self, _: Any) -> TransitionCallbackReturn:
        return self._transition("activated", self.activate, ACTIVE)

    def on_deactivate(self, _: Any) -> TransitionCallbackReturn:
        return self._transition("deactivated", self.deactivate, INACTIVE)

    def on_cleanup(self, _: Any) -> TransitionCallbackReturn:
        return self._transition("cleaned up", self.clean_up, UNCONFIGURED)

    def on_shutdown(self, _: Any) -> TransitionCallbackReturn:
        return self._transition("shut down", self.give_back, FINALIZED)

    def on_error(self, _: Any) -> TransitionCallbackReturn:
        failure = self.failure
        result = self._transition("brought back", self.give_back, UNCONFIGURED)
        self.failure = self.failure or failure
        return result

    def _on_change_state(
        self, answer: Callable[..., Any], request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Refuse a transition that the state does not allow, to which rclpy before Kilted gives no answer."""
        try:
            return answer(request, response)
        except RuntimeError as error:  # what rcl reports
            wanted = shown(request.transition.label) or request.transition.id
            self.get_logger().error(
                printable(f"transition {wanted} is refused while {self.lifecycle}: {one_line(error)}")
            )
            response.success = False
            return response

    def _transition(self, name: str, step: Callable[[], None], state: str) -> TransitionCallbackReturn:
        before, self.lifecycle = self.lifecycle, state
        try:
            step()
        except self.expected as error:
            self._fail(error, f"cannot be {name}: {error}", before)
            if not self.has_started_itself:  # otherwise it ends with this line
                self.get_logger().error(printable(self.failure))
            return FAILURE
        except ExternalShutdownException:
            return FAILURE
        except Exception as error:
            if not self.context.ok():  # a signal has ended ROS between two calls into it
                return FAILURE
            self._fail(error, f"cannot be {name}: unexpected error: {with_place(error)}", before)
            self.unexpected(self.failure)
            return TransitionCallbackReturn.ERROR
        self.failure = ""
        return SUCCESS

    def _fail(self, cause: Exception, reason: str, state: str) -> None:
        self._cause, self.failure, self.lifecycle = cause, reason, state
