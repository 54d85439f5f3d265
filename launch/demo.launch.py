"""A camera that drives past road signs, and the node that names them: ``ros2 launch bnn_perception demo.launch.py``.

The other arguments are those of classify.launch.py. Look at the labels with ``ros2 topic echo /bnn/labels``, at the
truth with ``ros2 topic echo /bnn/truth``.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from bnn_perception.resources import resource_folder


def generate_launch_description():
    """Called by `ros2 launch`."""
    classify = str(resource_folder("launch") / "classify.launch.py")
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
            Node(
                package="bnn_perception",
                executable="camera_node",
                name="camera",
                namespace=LaunchConfiguration("namespace"),
                parameters=[{"source": LaunchConfiguration("source"), "decode": True, "loop": True}],
                output="screen",
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(classify), launch_arguments={"image_topic": "image_raw"}.items()
            ),
        ]
    )
