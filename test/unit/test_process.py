"""What a process sets before it handles images, and what of it the user decides."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from bnn_perception.ros.process import private_graph, profile_path, transport_environment

OLD, NEW = "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"


@pytest.mark.parametrize(
    ("distribution", "variable"),
    [("humble", OLD), ("iron", OLD), ("jazzy", OLD), ("kilted", NEW), ("rolling", NEW), (None, NEW)],
)
def test_the_profile_is_named_where_this_fast_dds_looks(distribution, variable):
    environment = {} if distribution is None else {"ROS_DISTRO": distribution}
    assert transport_environment(environment) == {variable: str(profile_path())}


@pytest.mark.parametrize("distribution", ["humble", "kilted"])
@pytest.mark.parametrize("variable", [OLD, NEW])
def test_a_profile_of_the_user_stays(distribution, variable):
    assert transport_environment({"ROS_DISTRO": distribution, variable: "/home/me/profile.xml"}) == {}


def test_an_empty_variable_names_no_profile():
    assert transport_environment({OLD: "", NEW: ""}) == {NEW: str(profile_path())}


def test_images_fit_into_the_segment_of_the_profile():
    root = ET.parse(profile_path()).getroot()
    name = {"dds": "http://www.eprosima.com"}
    sizes = {
        tag: int(root.findtext(f".//dds:{tag}", namespaces=name))
        for tag in ("segment_size", "maxMessageSize")
    }
    vga, full_hd = 640 * 480 * 3, 1920 * 1080 * 3
    assert sizes["maxMessageSize"] > vga
    assert sizes["segment_size"] >= 5 * full_hd
    participant = root.find(".//dds:participant", name)
    assert participant.get("is_default_profile") == "true"
    used = [entry.text for entry in participant.iterfind(".//dds:userTransports/dds:transport_id", name)]
    defined = [entry.text for entry in root.iterfind(".//dds:transport_descriptor/dds:transport_id", name)]
    assert used == defined


@pytest.mark.parametrize(
    ("distribution", "limit"),
    [
        ("humble", {"ROS_LOCALHOST_ONLY": "1"}),
        ("jazzy", {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}),
        (None, {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}),
    ],
)
def test_a_private_graph_stays_on_this_machine(monkeypatch, distribution, limit):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    if distribution is not None:
        monkeypatch.setenv("ROS_DISTRO", distribution)
    assert private_graph(7) == {"ROS_DOMAIN_ID": "7", **limit}
