"""The policy of SROS 2 has what the classifier needs: no wheel of ROS 2 could enforce it here."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from nodes import FINDING

from bnn_perception.resources import resource_folder

NAMESPACE, NODE = "/bnn", "classifier"

#: What a node takes part in by a parameter, or by the distribution.
OPTIONAL = {
    "/clock",
    "/bnn/labeled_detections",
    "/bnn/labels_float",
    "/bnn/classifier/get_type_description",
}


def allowed(kind, access):
    """The full names of topics or services that the policy lets the node take part in so."""
    policy = ET.parse(resource_folder("config") / "sros2" / "classifier.policy.xml")
    (profile,) = policy.iter("profile")
    assert profile.attrib == {"ns": NAMESPACE, "node": NODE}
    names = [name.text for part in profile.findall(f"{kind}s[@{access}='ALLOW']") for name in part]
    private = {name: name.replace("~", f"{NAMESPACE}/{NODE}") for name in names}
    return {full if full.startswith("/") else f"{NAMESPACE}/{full}" for full in private.values()}


@pytest.mark.parametrize(
    ("kind", "access", "ask"),
    [
        ("topic", "publish", "get_publisher_names_and_types_by_node"),
        ("topic", "subscribe", "get_subscriber_names_and_types_by_node"),
        ("service", "reply", "get_service_names_and_types_by_node"),
    ],
)
def test_the_policy_names_what_the_node_takes_part_in(peer, host, kind, access, ask):
    host(image_topics=["/camera/image_raw"])

    def names():
        return {name for name, _ in getattr(peer.node, ask)(NODE, NAMESPACE)}

    policy = allowed(kind, access)
    with contextlib.suppress(AssertionError):  # which does not say what differs
        peer.until(lambda: names() - OPTIONAL == policy - OPTIONAL, patience=FINDING)
    assert names() - OPTIONAL == policy - OPTIONAL
