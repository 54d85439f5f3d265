"""A camera that drives past road signs, and the node that names them: ``ros2 launch bnn_perception demo.launch.py``.

The other arguments are those of classify.launch.py. Look at the labels with ``ros2 topic echo /bnn/labels``, at the
truth with ``ros2 topic echo /bnn/truth``.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from bnn_perception.cli.demo import region_for
from bnn_perception.resources import resource_folder
from bnn_perception.ros.launching import as_truth, end_with

CLASSIFY = str(resource_folder("launch") / "classify.launch.py")


def region(context):
    """Let the classifier look where the source's pictures show something, unless a region is given."""
    wanted = region_for(LaunchConfiguration("source").perform(context))
    if wanted is not None and not context.launch_configurations.get("region"):
        context.launch_configurations["region"] = str(list(wanted))


def camera(context):
    """The node that plays the source."""
    source = LaunchConfiguration("source").perform(context)
    required = as_truth("required", LaunchConfiguration("required").perform(context))
    return [
        Node(
            package="bnn_perception",
            executable="camera_node",
            name="camera",
            namespace=LaunchConfiguration("namespace"),
            parameters=[{"source": source, "decode": True, "loop": True}],
            output="screen",
            on_exit=end_with(required),
        )
    ]


def generate_launch_description():
    """Called by `ros2 launch`. The other file is included here, where `--show-args` finds its arguments."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "source",
                default_value="scene",
                description="scene, webcam:INDEX, or a folder of images, a video or a recording",
            ),
            OpaqueFunction(function=region),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(CLASSIFY), launch_arguments=[("image_topic", "image_raw")]
            ),
            OpaqueFunction(function=camera),
        ]
    )
