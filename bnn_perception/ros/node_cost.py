"""What the classifier node itself costs: from the entry of its image callback to the published label."""

from __future__ import annotations

import array
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import CommandError

#: Frames that are measured after some that are not, at the pace of a fast camera.
FRAMES, UNCOUNTED, PERIOD = 600, 60, 0.01


def measure(model: Path, threads: int, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Give a live node image messages, one after the other, as its executor would.

    The node runs in this process with its threads and publishers; the messages do not travel over DDS to it.

    Args:
        model: folder.
        threads: of the node's backend.
        pixels: (height, width, 3) uint8 of the frames.

    Returns:
        Milliseconds by stage, ``{stage: {"median": ..., "p95": ...}}``; ``own`` is all from the entry of the
        callback to the published label, but for the inference.

    Raises:
        ImportError: where ROS 2 is not installed.
        BackendError: where the node's engine cannot be made.
        CommandError: where the node does not answer.
    """
    import rclpy
    from rclpy.context import Context
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.parameter import Parameter
    from sensor_msgs.msg import Image

    from bnn_perception.ros.classifier_node import ClassifierNode
    from bnn_perception.ros.latency import LatencyWindow
    from bnn_perception.ros.process import prepare_process

    class Recorder(LatencyWindow):
        """Keeps the stages of each frame together."""

        def __init__(self) -> None:
            super().__init__()
            self.frames: list[dict[str, float]] = []

        def add(self, milliseconds: Any) -> None:
            super().add(milliseconds)
            self.frames.append(dict(milliseconds))

    height, width, channels = pixels.shape
    message = Image(height=height, width=width, encoding="rgb8", step=width * channels)
    message.data = array.array("B", pixels.tobytes())
    prepare_process()
    context = Context()
    rclpy.init(context=context)
    parameters = {"model": str(model), "backend": "binary", "device": "cpu", "threads": threads}
    node = ClassifierNode(
        context=context,
        parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()],
    )
    try:
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        node.start()
        while node.pipeline.is_loading:
            executor.spin_once(timeout_sec=0.05)
        recorder = node.pipeline.latency = Recorder()
        callback: Any
        (callback,) = [s.callback for s in node.subscriptions if s.topic_name.endswith("image")]
        for count in range(1, UNCOUNTED + FRAMES + 1):
            begin = time.perf_counter()
            message.header.stamp = node.get_clock().now().to_msg()
            callback(message)
            while len(recorder.frames) < count:
                if time.perf_counter() - begin > 5:
                    raise CommandError("the node gave no answer to a frame for 5 s")
                time.sleep(PERIOD / 20)
            time.sleep(max(0.0, begin + PERIOD - time.perf_counter()))
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)
    frames = recorder.frames[UNCOUNTED:]
    stages = {stage: [frame[stage] for frame in frames] for stage in frames[0]}
    stages["own"] = [frame["node"] - frame["inference"] for frame in frames]
    return {
        stage: {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}
        for stage, values in stages.items()
    }
