"""Only what ROS 2 Humble has is used of rclpy: there are no wheels of it to run the nodes with."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *(ROOT / "bnn_perception" / "ros").glob("*.py"),
    *(ROOT / "launch").glob("*.py"),
    *(ROOT / "examples").glob("*.py"),
]

#: What is imported from rclpy. rclpy.event_handler is younger; what it holds is taken from rclpy.qos_event there.
MODULES = {
    "rclpy.clock": {"Clock", "ClockType"},
    "rclpy.context": {"Context"},
    "rclpy.duration": {"Duration"},
    "rclpy.exceptions": {"InvalidParameterTypeException", "InvalidParameterValueException"},
    "rclpy.executors": {"ExternalShutdownException", "ShutdownException", "SingleThreadedExecutor"},
    "rclpy.lifecycle": {"LifecycleNode", "TransitionCallbackReturn"},
    "rclpy.node": {"Node"},
    "rclpy.parameter": {"Parameter"},
    "rclpy.qos": {
        "DurabilityPolicy",
        "QoSCompatibility",
        "QoSProfile",
        "ReliabilityPolicy",
        "qos_check_compatible",
        "qos_profile_sensor_data",
    },
    "rclpy.qos_event": {"SubscriptionEventCallbacks", "UnsupportedEventTypeError"},
    "rclpy.qos_overriding_options": {"QoSOverridingOptions"},
    "rclpy.signals": {"uninstall_signal_handlers"},
    "rclpy.utilities": {"remove_ros_args"},
}
YOUNGER = {"rclpy.event_handler": {"SubscriptionEventCallbacks", "UnsupportedEventTypeError"}}

#: What is used of rclpy itself and of its classes. Names are compared, whatever object they are used on.
MEMBERS = {
    "rclpy:": {"create_node", "init", "ok", "shutdown", "spin", "spin_once", "try_shutdown"},
    "rclpy.node:Node": {
        "add_on_set_parameters_callback",
        "context",
        "count_publishers",
        "create_client",
        "create_guard_condition",
        "create_publisher",
        "create_service",
        "create_subscription",
        "create_timer",
        "declare_parameter",
        "destroy_node",
        "destroy_publisher",
        "destroy_subscription",
        "get_clock",
        "get_fully_qualified_name",
        "get_logger",
        "get_parameter",
        "get_publishers_info_by_topic",
        "get_topic_names_and_types",
        "publishers",
        "resolve_topic_name",
        "services",
        "set_parameters",
        "subscriptions",
    },
    "rclpy.publisher:Publisher": {"get_subscription_count", "publish", "topic_name", "wait_for_all_acked"},
    "rclpy.service:Service": {"callback", "srv_type"},
    "rclpy.subscription:Subscription": {"callback", "topic_name"},
    "rclpy.executors:SingleThreadedExecutor": {"add_node", "context", "shutdown", "spin", "spin_once"},
    "rclpy.timer:Timer": {"cancel", "reset"},
    "rclpy.context:Context": {"init", "ok", "shutdown", "try_shutdown"},
    "rclpy.clock:Clock": {"clock_type", "now"},
    "rclpy.time:Time": {"clock_type", "nanoseconds", "to_msg"},
    "rclpy.qos:QoSProfile": {"depth", "durability", "reliability"},
    "rclpy.qos:ReliabilityPolicy": {"BEST_EFFORT", "RELIABLE", "short_key"},
    "rclpy.qos:DurabilityPolicy": {"TRANSIENT_LOCAL", "short_key"},
    "rclpy.parameter:Parameter": {"name", "to_parameter_msg", "value"},
    "rclpy.topic_endpoint_info:TopicEndpointInfo": {"node_name", "qos_profile", "topic_type"},
    "rclpy.impl.rcutils_logger:RcutilsLogger": {"error", "fatal", "info", "log", "warn", "warning"},
}
MEMBERS["rclpy.lifecycle:LifecycleNode"] = MEMBERS["rclpy.node:Node"] | {
    "trigger_activate",
    "trigger_configure",
    "trigger_deactivate",
}


def imported():
    """Names that the sources import, by module of rclpy."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rclpy":
                found.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return found


def attributes():
    """Names that stand behind a point anywhere in the sources."""
    trees = (ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES)
    return {node.attr for tree in trees for node in tree if isinstance(node, ast.Attribute)}


def test_nothing_is_imported_that_humble_lacks():
    lacking = {
        module: names - MODULES.get(module, set()) - YOUNGER.get(module, set())
        for module, names in imported().items()
    }
    assert {module: names for module, names in lacking.items() if names} == {}


def test_what_is_younger_is_looked_for_in_its_older_place():
    """`except ImportError` follows such an import."""
    names = imported()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Try) and any(
                isinstance(line, ast.ImportFrom) and line.module in YOUNGER for line in node.body
            ):
                assert [handler.type.id for handler in node.handlers] == ["ImportError"]
    assert names["rclpy.event_handler"] == names["rclpy.qos_event"]


@pytest.mark.parametrize("place", MEMBERS)
def test_no_member_is_used_that_humble_lacks(place):
    module, _, name = place.partition(":")
    found = importlib.import_module(module)
    owner = getattr(found, name) if name else found
    members = {
        member
        for member in dir(owner)
        if not member.startswith("_") and not inspect.ismodule(getattr(owner, member, None))
    }
    assert (members & attributes()) - MEMBERS[place] == set()
