"""Labels the images of a camera: ``ros2 launch bnn_perception classify.launch.py image_topic:=/camera/image_raw``."""

import yaml
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from bnn_perception.ros.launching import as_truth, end_with

# Arguments that set a parameter unless they are empty: what is not given is left to params_file, to the launch file
# that includes this one (SetParameter, SetParametersFromFile), and to the defaults of the node.
OVERRIDES = {
    "model": "model folder, or the name of a model that comes with the package",
    "backend": "binary or float",
    "device": "auto, cpu or cuda",
    "image_transport": "raw or compressed",
    "region": "part of the image that is classified: [x, y, width, height] as fractions of it",
    "autostart": "configure and activate the node: true or false",
    "use_sim_time": "take the time from /clock: true or false",
}

# Those of them that are true or false.
TRUTHS = ("autostart", "use_sim_time")

# Seconds until a node that has ended is started again.
RESPAWN_DELAY = 2.0


def as_region(text):
    """The four numbers of a region, as ROS wants them."""
    try:
        numbers = [float(number) for number in yaml.safe_load(text)]
    except (TypeError, ValueError, yaml.YAMLError):
        numbers = []
    if len(numbers) != 4:
        raise ValueError(f"region:={text} must be four numbers in brackets, [x, y, width, height]")
    return numbers


def classifier(context):
    """The node, with the arguments as they were given."""
    image_topic = LaunchConfiguration("image_topic").perform(context)
    overrides = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    parameters = {name: value for name, value in overrides.items() if value}
    if "region" in parameters:
        parameters["region"] = as_region(parameters["region"])
    for name in parameters.keys() & set(TRUTHS):
        parameters[name] = as_truth(name, parameters[name])
    respawn = as_truth("respawn", LaunchConfiguration("respawn").perform(context))
    detection_topic = LaunchConfiguration("detection_topic").perform(context)
    if detection_topic:
        parameters["detection_topics"] = [detection_topic]
    required = as_truth("required", LaunchConfiguration("required").perform(context))
    file = LaunchConfiguration("params_file").perform(context)
    return [
        Node(
            package="bnn_perception",
            executable="classifier_node",
            name="classifier",
            namespace=LaunchConfiguration("namespace"),
            parameters=[source for source in (file, parameters) if source],
            remappings=[("image", image_topic), ("image/compressed", f"{image_topic}/compressed")],
            output="screen",
            respawn=respawn,
            respawn_delay=RESPAWN_DELAY,
            on_exit=end_with(required and not respawn),
        )
    ]


def generate_launch_description():
    """Called by `ros2 launch`."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("image_topic", default_value="image", description="topic of the images"),
            DeclareLaunchArgument(
                "detection_topic",
                default_value="",
                description="topic of a detector's boxes, which are labelled instead of the image; empty: none",
            ),
            DeclareLaunchArgument("namespace", default_value="bnn", description="of the node and its topics"),
            DeclareLaunchArgument(
                "params_file",
                default_value="",
                description="YAML of parameters; config/classify.yaml lists them with the values that hold without one",
            ),
            *(
                DeclareLaunchArgument(name, default_value="", description=f"{text}; empty leaves it as it is")
                for name, text in OVERRIDES.items()
            ),
            DeclareLaunchArgument(
                "required",
                default_value="true",
                description="end the whole launch, with an error, where the node ends with one: true or false",
            ),
            DeclareLaunchArgument(
                "respawn",
                default_value="false",
                description="start the node again where it has ended, two seconds later: true or false",
            ),
            OpaqueFunction(function=classifier),
        ]
    )
