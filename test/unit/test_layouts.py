"""The layouts under config/layouts are whole, and name only topics and fields that exist."""

from __future__ import annotations

import ast
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ROOT / "config" / "layouts"

#: Topics of the node without namespace and their types, as docs/node.md has them.
PAGE = (ROOT / "docs" / "node.md").read_text(encoding="utf-8")
TOPICS = dict(re.findall(r"^\| `([a-z_/]+)` \| `([A-Za-z0-9_/]+)` \|", PAGE, re.MULTILINE))


def field(kind, path):
    """The class of a field of a message type, ``results[0].score`` say; fails where there is none."""
    package, name = kind.split("/")
    message = getattr(pytest.importorskip(f"{package}.msg"), name)
    for part in path.split(".") if path else ():
        name, _, _ = part.partition("[")
        types = message.get_fields_and_field_types()
        assert name in types, f"{message.__name__} has no field {name}"
        kind = types[name]
        if match := re.fullmatch(r"sequence<(\w+)/(\w+)>", kind):
            assert "[" in part, f"{name} holds several"
            message = getattr(pytest.importorskip(f"{match[1]}.msg"), match[2])
        elif match := re.fullmatch(r"(\w+)/(\w+)", kind):
            message = getattr(pytest.importorskip(f"{match[1]}.msg"), match[2])
        else:
            message = None
    return message


def exists(path):
    """Whether a topic, with a path of fields behind a point, is one of the node's."""
    topic, _, fields = path.partition(".")
    name = topic if topic == "/diagnostics" else topic.removeprefix("/bnn/")
    assert name in TOPICS, f"the node has no topic {topic}"
    field(TOPICS[name], fields)
    return True


def test_the_page_of_the_node_tells_the_topics():
    assert TOPICS["image_annotated"] == "sensor_msgs/Image"
    assert TOPICS["latency"] == "std_msgs/Float32"
    with pytest.raises(AssertionError, match="no field"):
        field("std_msgs/Float32", "value")
    with pytest.raises(AssertionError, match="no topic"):
        exists("/bnn/nothing")


def test_foxglove():
    layout = json.loads((LAYOUTS / "foxglove.json").read_text(encoding="utf-8"))
    panels = layout["configById"]

    def shown(node):
        if isinstance(node, str):
            return [node]
        assert node["direction"] in ("row", "column")
        assert 0 < node["splitPercentage"] < 100
        return shown(node["first"]) + shown(node["second"])

    assert sorted(shown(layout["layout"])) == sorted(panels)
    paths = [
        *(path["value"] for panel in panels.values() for path in panel.get("paths", ())),
        *(panel["topicToRender"] for panel in panels.values() if "topicToRender" in panel),
        *(panel["topicPath"] for panel in panels.values() if "topicPath" in panel),
        *(panel["imageMode"]["imageTopic"] for panel in panels.values() if "imageMode" in panel),
    ]
    assert len(paths) == len(panels)
    assert all(map(exists, paths))


def test_plotjuggler():
    root = ET.parse(LAYOUTS / "plotjuggler.xml").getroot()
    (selected,) = root.iter("selected_topics")
    topics = selected.get("value").split(";")
    assert all(map(exists, topics))
    curves = [curve.get("name") for curve in root.iter("curve")]
    assert len(curves) == 2
    for curve in curves:
        (topic,) = (topic for topic in topics if curve.startswith(f"{topic}/"))
        assert exists(topic + "." + curve[len(topic) + 1 :].replace("/", "."))
    (streamer,) = root.iter("previouslyLoaded_Streamer")
    assert streamer.get("name") in {plugin.get("ID") for plugin in root.iter("plugin")}


def test_rqt():
    layout = json.loads((LAYOUTS / "rqt.perspective").read_text(encoding="utf-8"))
    manager = layout["groups"]["pluginmanager"]
    running = ast.literal_eval(manager["keys"]["running-plugins"]["repr"])
    for plugin in manager["groups"]:
        _, package, name, number = plugin.split("__")
        assert int(number) in running[f"{package}/{name}"]
    keys = [group["groups"]["plugin"]["keys"] for group in manager["groups"].values()]
    paths = [ast.literal_eval(key["topic"]["repr"]) for key in keys if "topic" in key]
    for key in keys:
        # Of a plot the field follows the topic behind a slash.
        paths += [
            ".".join(p.rsplit("/", 1)) for p in ast.literal_eval(key.get("topics", {"repr": "[]"})["repr"])
        ]
    assert len(paths) == 2
    assert all(map(exists, paths))
