"""How a node of this package starts and ends as a process."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import rclpy
import rclpy.logging
from rcl_interfaces.msg import Log
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import uninstall_signal_handlers
from rclpy.utilities import remove_ros_args

from bnn_perception.errors import one_line, printable
from bnn_perception.ros.leavings import remove_leavings
from bnn_perception.ros.process import prepare_process, uses_fast_dds
from bnn_perception.ros.worker import PAUSE, with_place

#: The level of a line on /rosout: of Log.FATAL, which is bytes in some distributions and a number in others.
FATAL = 50

#: How long an ending node waits for who listens to /rosout (seconds), and then for the line to reach them.
FINDING, ARRIVING = 2.0, Duration(seconds=2)

AnyNode = TypeVar("AnyNode", bound=Node)


def run_node(
    name: str,
    argv: Sequence[str] | None,
    make: Callable[[], AnyNode],
    work: Callable[[AnyNode, SingleThreadedExecutor], None],
    expected: tuple[type[Exception], ...],
    publishes_images: bool = False,
) -> int:
    """Run a node until its work is done or it is told to stop.

    Args:
        name: of the executable, for messages.
        argv: arguments after the program's name, ``--ros-args`` and what follows it included; None takes sys.argv.
        make: makes the node.
        work: spins the executor, which the node has been added to.
        expected: exceptions that say in one line why the node cannot start or go on.
        publishes_images: whether it needs a large segment of shared memory.

    Returns:
        0 at the end and after Ctrl-C or SIGTERM, 1 after an expected exception, 2 for arguments that make no sense.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Before the room for segments is looked at.
    removed = remove_leavings() if uses_fast_dds() else ""
    prepare_process(publishes_images)
    try:
        unknown = remove_ros_args([name, *arguments])[1:]
        if unknown:
            print(f"{name}: '{unknown[0]}' is no argument; parameters follow --ros-args -p", file=sys.stderr)
            return 2
        rclpy.init(args=arguments)
    except RuntimeError as error:  # what rclpy says of arguments that it cannot parse
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return 2
    if removed:
        rclpy.logging.get_logger(name).info(removed)
    node = None
    code = 0
    threads_before = set(threading.enumerate())
    try:
        node = make()
        settle()
        # A thread that waits for the interpreter asks for it after 0.5 ms instead of 5: a frame takes less than that.
        sys.setswitchinterval(5e-4)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        work(node, executor)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except expected as error:
        print(f"{name}: {error}", file=sys.stderr)
        tell_rosout(name, str(error))
        code = 1
    except Exception:
        if rclpy.ok():
            raise
        # Otherwise a signal has ended ROS between two calls into it, and the second of them said so. What that call had
        # half made complains when it is freed.
        sys.unraisablehook = lambda _: None
    finally:
        # Ctrl-C reaches a process group twice, once through the launcher, which loses patience after a while. What
        # comes now must not break the ending. rclpy's handlers go first: at shutdown they would restore the old ones.
        uninstall_signal_handlers()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    if any(thread.daemon for thread in set(threading.enumerate()) - threads_before):
        # The node has left a thread in a compiler, which nothing can interrupt; an interpreter that ends under it may
        # crash. All that others could miss has been given back.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def tell_rosout(name: str, line: str) -> None:
    """Publish why a node ends on ``/rosout``, for those who see no terminal of it.

    A node whose making failed has no logger that does; whoever listens has to find this process first.
    """
    with suppress(Exception):  # the reason has been printed, and is all that counts
        node = Node(f"{name}_end", enable_rosout=False, start_parameter_services=False)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        publisher = node.create_publisher(Log, "/rosout", latched)
        until = time.monotonic() + FINDING
        while publisher.get_subscription_count() == 0 and time.monotonic() < until and rclpy.ok():
            time.sleep(0.02)
        stamp = node.get_clock().now().to_msg()
        publisher.publish(Log(stamp=stamp, level=FATAL, name=name, msg=printable(line)))
        publisher.wait_for_all_acked(ARRIVING)
        node.destroy_node()


def spin_once(
    executor: SingleThreadedExecutor,
    report: Callable[[str], None],
    timeout: float | None = None,
    fatal: tuple[type[Exception], ...] = (),
) -> None:
    """Let the executor handle one thing. What a callback raises costs that message or request, and not the node.

    rclpy's own callbacks are among them: one raises over a parameter whose type is none that it knows.

    Args:
        executor: to spin.
        report: called with a line about an exception that nobody foresaw.
        timeout: seconds to wait for something to do; None waits as long as it takes.
        fatal: exceptions that are to end the node.

    Raises:
        ExternalShutdownException, ShutdownException: where ROS has been shut down.
    """
    try:
        executor.spin_once(timeout_sec=timeout)
    except Exception as error:
        expected = isinstance(error, (ExternalShutdownException, ShutdownException, *fatal))
        if expected or not executor.context.ok():  # a signal has ended ROS between two calls into it
            raise
        report(f"a callback: {with_place(error)}")
        time.sleep(PAUSE)


def settle() -> None:
    """Take what has been built up so far, which lives as long as the process, out of the garbage collector's sight.

    There it costs neither pauses between frames nor seconds at the end.
    """
    gc.collect()
    gc.freeze()
