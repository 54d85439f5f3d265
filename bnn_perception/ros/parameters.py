"""Every parameter of the classifier node, once: name, default, range, description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from bnn_perception.backends import BACKENDS, DEVICES
from bnn_perception.errors import Error
from bnn_perception.frames.frame import check_region

if TYPE_CHECKING:
    from rcl_interfaces.msg import ParameterDescriptor
    from rclpy.node import Node


class ParameterError(Error, ValueError):
    """A parameter that cannot be used; the message names it and says what it can be."""


@dataclass(frozen=True)
class Parameter:
    """A parameter's declaration.

    Attributes:
        bounds: lowest and highest value of a number, None for texts and lists.
        choices: what a text can be, empty for any.
        read_only: set at start-up only.
    """

    name: str
    default: Any
    description: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False

    def descriptor(self) -> ParameterDescriptor:
        """For ``declare_parameter``."""
        from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

        descriptor = ParameterDescriptor(description=self.description, read_only=self.read_only)
        if self.choices:
            descriptor.additional_constraints = f"one of {', '.join(self.choices)}"
        if self.bounds is not None:
            low, high = self.bounds
            if isinstance(self.default, int):
                descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
            else:
                descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        return descriptor


PARAMETERS = (
    Parameter("model", "road_signs", "model folder, or the name of a model that comes with the package"),
    Parameter("backend", "binary", "what evaluates the model: its binarized net or its float twin", choices=BACKENDS),
    Parameter(
        "device", "auto", "where: auto takes the GPU where there is a usable one, else the CPU", choices=DEVICES
    ),
    Parameter("threads", 0, "threads of the CPU backends; 0 takes as many as pay off", bounds=(0, 256)),
    Parameter("top_k", 1, "most labels to publish for a frame, best first", bounds=(1, 1000)),
    Parameter(
        "score_threshold",
        0.0,
        "labels with a lower score are left out; a frame with none left is published with empty results",
        bounds=(0.0, 1.0),
    ),
    Parameter(
        "region",
        [0.0, 0.0, 1.0, 1.0],
        "part of the image that is classified: x, y, width, height as fractions of it",
    ),
    Parameter("image_topics", ["image"], "topics of the cameras, relative or absolute", read_only=True),
    Parameter(
        "image_transport",
        "raw",
        "raw subscribes sensor_msgs/Image, compressed sensor_msgs/CompressedImage on <topic>/compressed",
        choices=("raw", "compressed"),
        read_only=True,
    ),
    Parameter(
        "max_pixels", 40_000_000, "larger images are refused", bounds=(1, 1 << 27), read_only=True
    ),
    Parameter(
        "diagnostics_period", 1.0, "seconds between /diagnostics messages", bounds=(0.1, 60.0), read_only=True
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The values of :data:`PARAMETERS`, each valid by itself."""

    model: str
    backend: str
    device: str
    threads: int
    top_k: int
    score_threshold: float
    region: tuple[float, float, float, float]
    image_topics: tuple[str, ...]
    image_transport: str
    max_pixels: int
    diagnostics_period: float

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Settings:
        """Check the values of all parameters.

        Raises:
            ParameterError: naming the first that cannot be used.
        """
        return cls(**{parameter.name: check(parameter, values[parameter.name]) for parameter in PARAMETERS})

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """These settings with some values changed; names that are no parameters of :data:`PARAMETERS` are passed over.

        Raises:
            ParameterError: naming the first that cannot be used.
        """
        changes = {
            parameter.name: check(parameter, values[parameter.name])
            for parameter in PARAMETERS
            if parameter.name in values
        }
        return replace(self, **changes)

    def values(self) -> dict[str, Any]:
        """As parameter values; lists instead of tuples."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


def check(parameter: Parameter, value: Any) -> Any:
    """The value in the form in which :class:`Settings` keeps it. Type and range are checked by rclpy already.

    Raises:
        ParameterError: naming the parameter and what it can be.
    """
    name = parameter.name
    if parameter.choices and value not in parameter.choices:
        raise ParameterError(f"{name} '{value}' is not one of {', '.join(parameter.choices)}")
    if name == "region":
        try:
            return check_region(value)
        except ValueError as error:
            raise ParameterError(str(error)) from None
    if name == "image_topics":
        topics = tuple(value)
        if not topics or not all(topics) or len(set(topics)) != len(topics):
            raise ParameterError(f"{name} {list(topics)} must be one or more different topics")
        return topics
    if name == "model" and not value:
        raise ParameterError("model is empty; it must be a model folder or the name of a model")
    return value


def declare_parameters(node: Node) -> Settings:
    """Declare every parameter on the node and return their values, overrides from files and the command line included.

    Raises:
        ParameterError: naming the parameter whose value has a wrong type, is out of range or cannot be used.
    """
    return Settings.from_values({parameter.name: declare(node, parameter) for parameter in PARAMETERS})


#: What ROS makes of a value decides its type: 1 is a whole number even where 1.0 is wanted.
KINDS = {
    bool: "true or false,",
    int: "a whole number",
    float: "a number with a decimal point",
    str: "a text",
    list: "a list",
}


def declare(node: Node, parameter: Parameter) -> Any:
    """Declare one parameter on the node and return its value.

    Raises:
        ParameterError: where an override has a wrong type or is out of range.
    """
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    try:
        return node.declare_parameter(parameter.name, parameter.default, parameter.descriptor()).value
    except InvalidParameterTypeException:
        kind = KINDS[type(parameter.default)]
        raise ParameterError(f"{parameter.name} must be {kind} like {parameter.default!r}") from None
    except InvalidParameterValueException:
        low, high = parameter.bounds or ("", "")
        raise ParameterError(f"{parameter.name} must lie between {low} and {high}") from None
