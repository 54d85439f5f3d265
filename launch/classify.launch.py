"""Labels the images of a camera: ``ros2 launch bnn_perception classify.launch.py image_topic:=/camera/image_raw``."""

import yaml
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from bnn_perception.resources import resource_folder

# Arguments that replace a parameter of params_file unless they are empty.
OVERRIDES = {
    "model": "model folder, or the name of a model that comes with the package",
    "backend": "binary or float",
    "device": "auto, cpu or cuda",
    "image_transport": "raw or compressed",
    "region": "part of the image that is classified: [x, y, width, height] as fractions of it",
}


def classifier(context):
    """The node, with the arguments as they were given."""
    image_topic = LaunchConfiguration("image_topic").perform(context)
    overrides = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    parameters = {name: value for name, value in overrides.items() if value}
    if "region" in parameters:
        parameters["region"] = [float(value) for value in yaml.safe_load(parameters["region"])]
    parameters["use_sim_time"] = LaunchConfiguration("use_sim_time").perform(context).lower() in ("true", "1")
    return [
        Node(
            package="bnn_perception",
            executable="classifier_node",
            name="classifier",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), parameters],
            remappings=[("image", image_topic), ("image/compressed", f"{image_topic}/compressed")],
            output="screen",
        )
    ]


def generate_launch_description():
    """Called by `ros2 launch`."""
    params_file = str(resource_folder("config") / "classify.yaml")
    return LaunchDescription(
        [
            DeclareLaunchArgument("image_topic", default_value="image", description="topic of the images"),
            DeclareLaunchArgument("namespace", default_value="bnn", description="of the node and its topics"),
            DeclareLaunchArgument("params_file", default_value=params_file, description="YAML of parameters"),
            *(
                DeclareLaunchArgument(
                    name, default_value="", description=f"{text}; empty takes params_file's"
                )
                for name, text in OVERRIDES.items()
            ),
            DeclareLaunchArgument(
                "use_sim_time", default_value="false", description="take the time from /clock"
            ),
            OpaqueFunction(function=classifier),
        ]
    )
