"""The ROS 2 side of the package, and the only place that imports rclpy."""
