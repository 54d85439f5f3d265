"""What every argument of the launch files does, read by stand-ins of launch and launch_ros."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from launch_reader import launch, shown

from bnn_perception.ros.parameters import PARAMETERS, Settings
from bnn_perception.scenes.drive import Scene

ROOT = Path(__file__).resolve().parents[2]
CLASSIFY, DEMO = (ROOT / "launch" / f"{name}.launch.py" for name in ("classify", "demo"))
SHIPPED = str(ROOT / "config" / "classify.yaml")


def classifier(path=CLASSIFY, **arguments):
    """The classifier node that the file starts."""
    (node,) = [n for n in launch(path, **arguments).started if n.executable == "classifier_node"]
    return node


def parameters(**arguments):
    """What the arguments set over the parameter file."""
    given = classifier(**arguments).parameters
    return given[-1] if given else {}


def test_classify_starts_one_node_and_sets_nothing_that_is_not_given():
    """What a bringup sets for all of its nodes, by SetParameter or a file of its own, would otherwise be replaced."""
    (node,) = launch(CLASSIFY).started
    assert (node.package, node.executable, node.name) == ("bnn_perception", "classifier_node", "classifier")
    assert node.namespace == "bnn"
    assert node.parameters == []
    assert dict(node.remappings) == {"image": "image", "image/compressed": "image/compressed"}
    assert node.output == "screen"


def test_image_topic_is_remapped_for_both_transports():
    node = classifier(image_topic="/camera/image_raw")
    assert dict(node.remappings) == {
        "image": "/camera/image_raw",
        "image/compressed": "/camera/image_raw/compressed",
    }
    assert node.parameters == []


def test_namespace():
    assert classifier(namespace="robot").namespace == "robot"


def test_params_file_comes_before_what_arguments_set():
    node = classifier(params_file="/etc/mine.yaml", model="signs")
    assert node.parameters == ["/etc/mine.yaml", {"model": "signs"}]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model", "/models/mine", "/models/mine"),
        ("backend", "float", "float"),
        ("device", "cuda", "cuda"),
        ("image_transport", "compressed", "compressed"),
        ("region", "[0.25, 0, 0.5, 1]", [0.25, 0.0, 0.5, 1.0]),
    ],
)
def test_arguments_that_replace_a_parameter(name, value, expected):
    assert parameters(**{name: value}) == {name: expected}
    assert parameters(**{name: ""}) == {}
    # The node takes it: the name is a parameter's, and the value one that it can have.
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    assert Settings.from_values({**defaults, name: expected}).values()[name] == expected


def test_boxes_are_asked_for_where_a_topic_is_given():
    assert parameters(detection_topic="/boxes") == {"detection_topics": ["/boxes"]}


def test_numbers_of_a_region_have_a_fraction():
    """ROS takes a list of whole numbers for another type."""
    assert [type(number) for number in parameters(region="[0, 0, 1, 1]")["region"]] == [float] * 4


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("True", True), ("1", True), ("false", False), ("False", False), ("0", False)],
)
def test_truth_values_are_written_as_people_write_them(value, expected):
    assert parameters(use_sim_time=value, autostart=value) == {
        "use_sim_time": expected,
        "autostart": expected,
    }
    (node,) = launch(CLASSIFY, respawn=value).started
    assert node.respawn is expected


@pytest.mark.parametrize(
    ("argument", "value", "remedy"),
    [
        ("use_sim_time", "maybe", "use_sim_time:=maybe must be true or false"),
        ("required", "perhaps", "required:=perhaps must be true or false"),
        ("autostart", "2", "autostart:=2 must be true or false"),
        ("respawn", "always", "respawn:=always must be true or false"),
        ("region", "5", r"region:=5 must be four numbers in brackets"),
        ("region", "left", r"region:=left must be four numbers in brackets"),
        ("region", "[0, 0, 1]", r"region:=\[0, 0, 1\] must be four numbers in brackets"),
        ("region", "[0, 0, 1, x]", r"region:=\[0, 0, 1, x\] must be four numbers in brackets"),
        ("region", "[0, 0", r"region:=\[0, 0 must be four numbers in brackets"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(argument, value, remedy):
    with pytest.raises(ValueError, match=remedy):
        parameters(**{argument: value})


def test_the_shipped_file_states_what_holds_without_one():
    (values,) = yaml.safe_load(Path(SHIPPED).read_text(encoding="utf-8")).values()
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    assert values["ros__parameters"] == defaults


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (
            CLASSIFY,
            {
                "image_topic",
                "detection_topic",
                "namespace",
                "params_file",
                "model",
                "backend",
                "device",
                "image_transport",
                "region",
                "use_sim_time",
                "required",
                "autostart",
                "respawn",
            },
        ),
        (DEMO, {"source", "namespace", "region"}),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_arguments_describe_themselves(path, names):
    told = launch(path).arguments
    assert names <= set(told)
    assert all(told.values())


def test_a_node_that_is_started_again_ends_no_launch():
    (node,) = launch(CLASSIFY, respawn="true").started
    event = SimpleNamespace(returncode=1, process_name="node-1")
    assert node.on_exit(event, SimpleNamespace(is_shutdown=False)) is None
    assert node.respawn_delay > 0


@pytest.mark.parametrize("path", [CLASSIFY, DEMO])
@pytest.mark.parametrize(
    ("required", "code", "is_shutdown", "is_error"),
    [
        ({}, 1, False, True),
        ({}, 2, False, True),
        ({}, 0, False, False),
        ({}, -2, False, False),  # by a signal
        ({}, 1, True, False),  # at the end of the launch
        ({"required": "true"}, 1, False, True),
        ({"required": "false"}, 1, False, False),
        ({"respawn": "false"}, 1, False, True),
    ],
)
def test_a_node_that_cannot_start_ends_the_launch_with_an_error(path, required, code, is_shutdown, is_error):
    """launch ends with 1 where a handler of it raises; with 0 whatever its nodes end with."""
    event = SimpleNamespace(returncode=code, process_name="node-1")
    context = SimpleNamespace(is_shutdown=is_shutdown)
    for node in launch(path, **required).started:
        if is_error:
            with pytest.raises(RuntimeError, match=f"node-1 ended with code {code}; its last line says why"):
                node.on_exit(event, context)
        else:
            assert node.on_exit(event, context) is None


def test_the_demo_shows_every_argument_that_it_takes():
    """`ros2 launch --show-args` runs no OpaqueFunction."""
    assert shown(DEMO) == {"source", *(shown(CLASSIFY) - {"image_topic"})}
    assert shown(DEMO) == set(launch(DEMO).arguments) - {"image_topic"}


def test_the_demo_s_camera_and_classifier_meet():
    context = launch(DEMO)
    node, camera = context.started
    assert (camera.package, camera.executable, camera.name) == ("bnn_perception", "camera_node", "camera")
    assert camera.parameters == [{"source": "scene", "decode": True, "loop": True}]
    assert (camera.namespace, node.namespace) == ("bnn", "bnn")
    assert camera.output == "screen"
    # The camera's topic, relative as the classifier's is: both lie in the namespace.
    assert dict(node.remappings)["image"] == "image_raw"
    assert node.parameters == [{"region": list(Scene.region)}]


def test_the_demo_s_namespace_is_that_of_both():
    assert [node.namespace for node in launch(DEMO, namespace="robot").started] == ["robot", "robot"]


@pytest.mark.parametrize(
    ("source", "region", "expected"),
    [
        ("scene", "", list(Scene.region)),
        ("scene:5", "", list(Scene.region)),
        ("scene", "[0.0, 0.0, 0.5, 0.5]", [0.0, 0.0, 0.5, 0.5]),
        ("/data/images", "", None),
        ("/data/images", "[0.0, 0.0, 0.5, 0.5]", [0.0, 0.0, 0.5, 0.5]),
        ("webcam:0", "", None),
    ],
)
def test_the_demo_s_region_is_the_source_s_unless_one_is_given(source, region, expected):
    node, camera = launch(DEMO, source=source, region=region).started
    assert camera.parameters[0]["source"] == source
    assert [given.get("region") for given in node.parameters] == ([expected] if expected else [])


def test_the_demo_hands_on_the_arguments_of_classify():
    node = classifier(
        DEMO, model="signs", backend="float", device="cpu", params_file="/etc/mine.yaml", use_sim_time="true"
    )
    given = {"model": "signs", "backend": "float", "device": "cpu", "use_sim_time": True}
    assert node.parameters == ["/etc/mine.yaml", {**given, "region": list(Scene.region)}]


def test_the_shipped_file_is_for_the_node_in_any_namespace():
    """A file that names the node would not be read under another name."""
    assert list(yaml.safe_load(Path(SHIPPED).read_text(encoding="utf-8"))) == ["/**"]
