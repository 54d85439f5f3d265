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


def nodes(context):
    """The camera, and the classifier with what the source tells of its pictures."""
    source = LaunchConfiguration("source").perform(context)
    arguments = {"image_topic": "image_raw"}
    region = region_for(source)
    if region is not None and not LaunchConfiguration("region").perform(context):
        arguments["region"] = str(list(region))
    classify = str(resource_folder("launch") / "classify.launch.py")
    return [
        Node(
            package="bnn_perception",
            executable="camera_node",
            name="camera",
            namespace=LaunchConfiguration("namespace"),
            parameters=[{"source": source, "decode": True, "loop": True}],
            output="screen",
        ),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(classify), launch_arguments=arguments.items()),
    ]


def generate_launch_description():
    """Called by `ros2 launch`."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "source",
                default_value="scene",
                description="scene, webcam:INDEX, or a folder of images, a video or a recording",
            ),
            DeclareLaunchArgument(
                "namespace", default_value="bnn", description="of the nodes and their topics"
            ),
            DeclareLaunchArgument(
                "region",
                default_value="",
                description="part of the image to classify; empty takes the source's",
            ),
            OpaqueFunction(function=nodes),
        ]
    )
