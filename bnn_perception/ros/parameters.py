"""Every parameter of the classifier node: name, type, default, range and description, stated once.

:class:`InputSettings` are those that other nodes which take images have as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from bnn_perception.backends import BACKENDS, DEVICES
from bnn_perception.errors import Error, shown
from bnn_perception.frames.frame import check_region
from bnn_perception.net.checks import is_text

if TYPE_CHECKING:
    from rcl_interfaces.msg import ParameterDescriptor
    from rclpy.node import Node


#: A topic as ROS 2 takes it, in full, relative, or private (``~/image``).
TOPIC = re.compile(r"(/|~/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)


#: Characters of a label that stands for none.
MAX_LABEL = 200


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


def parameter(default: Any, description: str, **declaration: Any) -> Any:
    """A field of :class:`Settings` and the declaration of its :class:`Parameter`; lists are kept as tuples."""
    kept = tuple(default) if isinstance(default, list) else default
    return field(default=kept, metadata={"default": default, "description": description, **declaration})


AnySettings = TypeVar("AnySettings", bound="InputSettings")


@dataclass(frozen=True)
class InputSettings:
    """The parameters of every node that takes images, each valid by itself."""

    region: tuple[float, float, float, float] = parameter(
        [0.0, 0.0, 1.0, 1.0],
        "part of the image that is classified: x, y, width, height as fractions of it",
    )
    max_rate: float = parameter(
        0.0, "most frames of a camera that are answered a second; 0 answers all", bounds=(0.0, 1000.0)
    )
    box_margin: float = parameter(
        0.0,
        "by which a detector's boxes are enlarged on each side, as a fraction of them",
        bounds=(0.0, 10.0),
    )
    sync_tolerance: float = parameter(
        0.0, "seconds by which the stamps of an image and of its boxes may differ", bounds=(0.0, 10.0)
    )
    image_topics: tuple[str, ...] = parameter(
        ["image"], "topics of the cameras, relative or absolute", read_only=True
    )
    detection_topics: tuple[str, ...] = parameter(
        [""],
        "topics of a detector's boxes (vision_msgs/Detection2DArray), one for each of image_topics; each box is "
        "labelled instead of the image; empty takes none",
        read_only=True,
    )
    image_transport: str = parameter(
        "raw",
        "raw subscribes sensor_msgs/Image, compressed sensor_msgs/CompressedImage on <topic>/compressed",
        choices=("raw", "compressed"),
        read_only=True,
    )
    max_pixels: int = parameter(40_000_000, "larger images are refused", bounds=(1, 1 << 27), read_only=True)
    diagnostics_period: float = parameter(
        1.0, "seconds between /diagnostics messages", bounds=(0.1, 60.0), read_only=True
    )

    @classmethod
    def from_values(cls: type[AnySettings], values: Mapping[str, Any]) -> AnySettings:
        """Check the values of all parameters.

        Raises:
            ParameterError: naming the first that cannot be used.
        """
        return cls(
            **{parameter.name: check(parameter, values[parameter.name]) for parameter in declared(cls)}
        )

    def __post_init__(self) -> None:
        """What several parameters say together.

        Raises:
            ParameterError: where that makes no sense.
        """
        cameras, detectors = len(self.image_topics), len(self.detection_topics)
        if any(self.detection_topics) and detectors != cameras:
            raise ParameterError(
                f"detection_topics {list(self.detection_topics)} must be as many as image_topics, {cameras}; '' for "
                "a camera whose whole image is labelled"
            )

    def boxes_of(self, camera: int) -> str:
        """The topic of a camera's boxes; empty where its whole image is labelled."""
        return self.detection_topics[camera] if any(self.detection_topics) else ""

    def with_values(self: AnySettings, values: Mapping[str, Any]) -> AnySettings:
        """These settings with some values changed; names that are none of theirs are passed over.

        Raises:
            ParameterError: naming the first that cannot be used.
        """
        changes = {
            parameter.name: check(parameter, values[parameter.name])
            for parameter in declared(type(self))
            if parameter.name in values
        }
        return replace(self, **changes)

    def values(self) -> dict[str, Any]:
        """The values as ROS takes them: lists instead of tuples."""
        named = {parameter.name: getattr(self, parameter.name) for parameter in declared(type(self))}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


@dataclass(frozen=True)
class EngineSettings:
    """The parameters whose change needs another engine."""

    model: str = parameter("road_signs", "model folder, or the name of a model that comes with the package")
    backend: str = parameter(
        "binary", "what evaluates the model: its binarized net or its float twin", choices=BACKENDS
    )
    device: str = parameter(
        "auto", "where: auto takes the GPU where there is a usable one, else the CPU", choices=DEVICES
    )
    threads: int = parameter(0, "threads of the CPU backends; 0 takes as many as pay off", bounds=(0, 256))

    def engine_values(self) -> dict[str, Any]:
        """The values of these parameters by name."""
        return {name: getattr(self, name) for name in ENGINE_PARAMETERS}

    def __str__(self) -> str:
        return f"model {self.model} with backend {self.backend} on device {self.device}"


@dataclass(frozen=True)
class Settings(InputSettings, EngineSettings):
    """Every parameter of the classifier node, each valid by itself. A field here is all that a new parameter needs."""

    top_k: int = parameter(1, "most labels to publish for a frame, best first", bounds=(1, 1000))
    score_threshold: float = parameter(
        0.0,
        "labels with a lower score are left out; a frame with none left is published with empty results",
        bounds=(0.0, 1.0),
    )
    enabled: bool = parameter(True, "whether images are taken; the engine stays ready where they are not")
    compare: bool = parameter(
        False, "let the float twin answer the same frames on labels_float, and tell where the two differ"
    )
    lazy: bool = parameter(False, "take images only while somebody subscribes the answers")
    min_rate: float = parameter(
        0.0, "labels of a camera a second below which diagnostics warn; 0 is off", bounds=(0.0, 1000.0)
    )
    max_age: float = parameter(
        0.0, "seconds from stamp to labels above which diagnostics warn (p99); 0 is off", bounds=(0.0, 3600.0)
    )
    max_p99: float = parameter(
        0.0, "seconds in the node above which diagnostics warn (p99); 0 is off", bounds=(0.0, 3600.0)
    )
    unknown_label: str = parameter(
        "", "what is published where no label reaches score_threshold, with score 0; empty publishes no label"
    )
    smoothing: float = parameter(
        0.0, "seconds over which the scores behind state are averaged; 0 is off", bounds=(0.0, 60.0)
    )
    hysteresis: float = parameter(
        0.0, "seconds that another label must lead before state changes to it", bounds=(0.0, 60.0)
    )
    min_brightness: float = parameter(
        10.0, "mean luma of the net's pixels below which diagnostics warn; 0 is off", bounds=(0.0, 255.0)
    )
    max_brightness: float = parameter(
        245.0, "mean luma of the net's pixels above which diagnostics warn; 255 is off", bounds=(0.0, 255.0)
    )
    min_sharpness: float = parameter(
        0.08, "sharpness of the net's pixels below which diagnostics warn; 0 is off", bounds=(0.0, 1.0)
    )
    frozen_after: float = parameter(
        10.0, "seconds of equal pixels after which diagnostics warn; 0 is off", bounds=(0.0, 3600.0)
    )
    autostart: bool = parameter(
        True,
        "configure and activate the node when it starts; a lifecycle manager does so where it is false",
        read_only=True,
    )
    compare_folder: str = parameter(
        "",
        "where ~/save_difference writes the picture on which the two differ; empty refuses it",
        read_only=True,
    )
    model_root: str = parameter(
        "", "folder that models must lie in, but for those of the package; empty takes any", read_only=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compare and self.backend != "binary":
            raise ParameterError(
                f"compare puts the float twin beside the binary net; backend is {self.backend}, set it to binary"
            )


def declared(settings: type[InputSettings | EngineSettings]) -> tuple[Parameter, ...]:
    """The parameters that the fields of settings declare."""
    return tuple(Parameter(entry.name, **entry.metadata) for entry in fields(settings))


PARAMETERS = declared(Settings)

#: Names of the parameters whose change needs another engine.
ENGINE_PARAMETERS = tuple(parameter.name for parameter in declared(EngineSettings))

#: Names of the parameters that are lists of topics.
TOPIC_LISTS = ("image_topics", "detection_topics")

#: Names of the parameters that say whether images are subscribed.
INPUT_PARAMETERS = ("enabled", "lazy")


def check(parameter: Parameter, value: Any) -> Any:
    """The value in the form in which :class:`Settings` keeps it. Type and range are checked by rclpy already.

    Raises:
        ParameterError: naming the parameter and what it can be.
    """
    name = parameter.name
    for text in [value] if isinstance(value, str) else value if name in TOPIC_LISTS else []:
        if not is_text(text):
            raise ParameterError(
                f"{name} {shown(ascii(text))} holds a character that is none (NUL, half of a surrogate pair)"
            )
    if parameter.choices and value not in parameter.choices:
        raise ParameterError(f"{name} '{shown(value)}' is not one of {', '.join(parameter.choices)}")
    if name == "region":
        try:
            return check_region(value)
        except ValueError as error:
            raise ParameterError(str(error)) from None
    if name == "image_topics":
        topics = tuple(value)
        if not topics or not all(topics) or len(set(topics)) != len(topics):
            raise ParameterError(f"{name} {list(topics)} must be one or more different topics")
    if name == "detection_topics":
        named = [topic for topic in value if topic]
        if len(set(named)) != len(named):
            raise ParameterError(f"{name} {list(value)} must be different topics, or ''")
    if name in TOPIC_LISTS:
        for topic in filter(None, value):
            if not TOPIC.fullmatch(topic):
                raise ParameterError(
                    f"{name}: '{shown(topic)}' is not a topic; words of letters, digits and _ with / between them are"
                )
        return tuple(value)
    if name == "unknown_label" and len(value) > MAX_LABEL:
        raise ParameterError(f"{name} has {len(value)} characters; at most {MAX_LABEL} are taken")
    if name == "model" and not value:
        raise ParameterError("model is empty; it must be a model folder or the name of a model")
    return value


def declare_parameters(node: Node, settings: type[AnySettings]) -> AnySettings:
    """Declare the parameters of a node and return their values, overrides from files and the command line included.

    Raises:
        ParameterError: naming the parameter whose value has a wrong type, is out of range or cannot be used.
    """
    return settings.from_values(
        {parameter.name: declare(node, parameter) for parameter in declared(settings)}
    )


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
