"""What the launch files share; nothing here imports launch or rclpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def as_truth(name: str, text: str) -> bool:
    """A truth value as people write it on a command line.

    Raises:
        ValueError: where it is none, naming the argument.
    """
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise ValueError(f"{name}:={text} must be true or false")
    return values[text.lower()]


def end_with(is_required: bool) -> Callable[[Any, Any], None]:
    """What a launch file does when a node of it ends, as ``on_exit`` of launch's Node.

    Without it ``ros2 launch`` ends with 0 although the node could not start, and whoever started it (systemd, a
    script, a container) takes that for success.

    Args:
        is_required: whether the end of the node with an error is that of the launch.
    """

    def ended(event: Any, context: Any) -> None:
        if is_required and event.returncode > 0 and not context.is_shutdown:
            raise RuntimeError(
                f"{event.process_name} ended with code {event.returncode}; its last line says why. "
                "required:=false lets the other nodes go on"
            )

    return ended
