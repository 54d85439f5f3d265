"""Values of parameters: what is taken, what is refused and how it is said; no ROS is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bnn_perception.ros.parameters import (
    PARAMETERS,
    Parameter,
    ParameterError,
    Settings,
    check,
    declare,
    declare_parameters,
)

DEFAULTS = {parameter.name: parameter.default for parameter in PARAMETERS}


def test_defaults_can_be_used():
    settings = Settings.from_values(DEFAULTS)
    assert settings.values() == DEFAULTS
    assert settings.image_topics == ("image",)
    assert settings.region == (0.0, 0.0, 1.0, 1.0)


def test_what_is_set_at_start_up_only():
    """The subscriptions and the timer are made once."""
    assert {parameter.name for parameter in PARAMETERS if parameter.read_only} == {
        "autostart",
        "compare_folder",
        "detection_topics",
        "image_topics",
        "image_transport",
        "model_root",
        "max_pixels",
        "diagnostics_period",
    }


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("model", "", "model is empty; it must be a model folder or the name of a model"),
        ("backend", "double", "backend 'double' is not one of binary, float, reference"),
        ("backend", "", "backend '' is not one of"),
        ("device", "gpu", "device 'gpu' is not one of auto, cpu, cuda"),
        ("image_transport", "theora", "image_transport 'theora' is not one of raw, compressed"),
        ("image_topics", [], "image_topics \\[\\] must be one or more different topics"),
        ("image_topics", [""], "image_topics \\[''\\] must be one or more different topics"),
        ("image_topics", ["a", ""], "must be one or more different topics"),
        ("image_topics", ["a", "b", "a"], "must be one or more different topics"),
        ("detection_topics", ["a", "b"], r"\['a', 'b'\] must be as many as image_topics, 1; '' for a camera"),
        ("detection_topics", ["a", "", "a"], "must be different topics, or ''"),
        ("detection_topics", ["a-b"], "'a-b' is not a topic"),
        ("region", [0.0, 0.0, 1.0], "region has 3 numbers"),
        ("region", [0.0, 0.5, 1.0, 0.6], "does not lie inside the image"),
        ("region", [0.5, 0.0, 0.6, 1.0], "does not lie inside the image"),
        ("region", [0.0, 0.0, 0.0, 1.0], "does not lie inside the image"),
    ],
)
def test_what_cannot_be_used_is_named(name, value, reason):
    with pytest.raises(ParameterError, match=reason):
        Settings.from_values({**DEFAULTS, name: value})
    settings = Settings.from_values(DEFAULTS)
    with pytest.raises(ParameterError, match=reason):
        settings.with_values({name: value})
    assert settings.values() == DEFAULTS


def test_some_values_change_and_the_others_stay():
    before = Settings.from_values(DEFAULTS)
    changes = {"top_k": 3, "region": [0.0, 0.0, 0.5, 1.0], "image_topics": ["a", "b"]}
    after = before.with_values({**changes, "use_sim_time": True})  # a parameter, but none of these
    assert after.values() == {**DEFAULTS, **changes}
    assert before.values() == DEFAULTS


def test_any_text_is_taken_where_there_are_no_choices():
    parameter = Parameter("source", "scene", "where from")
    assert check(parameter, "") == ""
    assert check(parameter, "anything") == "anything"


class Stranger:
    """A node whose user gave parameters of the wrong kind; raises what rclpy would."""

    def __init__(self, error):
        self.error = error
        self.declared = []

    def declare_parameter(self, name, default, descriptor):
        self.declared.append((name, default, descriptor))
        if self.error is not None:
            raise self.error
        return SimpleNamespace(value=default)


def test_every_parameter_is_declared_once_with_its_default():
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    node = Stranger(None)
    assert declare_parameters(node, Settings) == Settings.from_values(DEFAULTS)
    assert [(name, default) for name, default, _ in node.declared] == list(DEFAULTS.items())
    assert [descriptor.read_only for _, _, descriptor in node.declared] == [p.read_only for p in PARAMETERS]


@pytest.mark.parametrize(
    ("default", "said"),
    [
        (True, "true or false, like True"),
        (3, "a whole number like 3"),
        (0.5, "a number with a decimal point like 0.5"),
        ("x", "a text like 'x'"),
        ([1.0], "a list like \\[1.0\\]"),
    ],
)
def test_a_value_of_the_wrong_kind_is_answered_with_the_right_one(default, said):
    exceptions = pytest.importorskip("rclpy.exceptions", reason="rclpy is not installed")
    # Its arguments differ between distributions; nothing of it is read.
    error = exceptions.InvalidParameterTypeException.__new__(exceptions.InvalidParameterTypeException)
    with pytest.raises(ParameterError, match=f"^p must be {said}$"):
        declare(Stranger(error), Parameter("p", default, "a parameter"))


def test_a_value_out_of_range_is_answered_with_the_bounds():
    exceptions = pytest.importorskip("rclpy.exceptions", reason="rclpy is not installed")
    error = exceptions.InvalidParameterValueException.__new__(exceptions.InvalidParameterValueException)
    with pytest.raises(ParameterError, match="^p must lie between 2 and 7$"):
        declare(Stranger(error), Parameter("p", 3, "a parameter", bounds=(2, 7)))
