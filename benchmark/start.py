"""How long the classifier node takes from its command to its first label, cold and warm.

``python -m benchmark.start --out docs/start-up.md`` writes the page. Cold: numba's cache is empty, as after an
installation that compiled nothing ahead. Warm: it holds what the cold start compiled. A camera of 30 Hz sends all the
while, as on a robot that starts everything at once.
"""

from __future__ import annotations

import argparse
import array
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bnn_perception.backends.cpu.processor import device_name
from bnn_perception.cli.demo import child, wait
from bnn_perception.errors import CommandError
from bnn_perception.ros.process import claim_domain, prepare_process, private_graph

#: Seconds after which a start has failed.
PATIENCE = 300.0
#: Seconds between frames of the camera.
PERIOD = 1 / 30


class Start(NamedTuple):
    """Seconds from the command to the first diagnostics, the first engine (label_info) and the first label."""

    diagnostics: float
    engine: float
    label: float


def measure(model: str, cache: Path) -> Start:
    """Start a node on the CPU with numba's cache in a folder, and end it after its first label."""
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    from bnn_perception.ros.watcher import Watcher, listening

    os.environ["NUMBA_CACHE_DIR"] = str(cache)
    parameters = {"model": model, "device": "cpu", "diagnostics_period": 0.1}
    frame = Image(height=480, width=640, encoding="rgb8", step=3 * 640)
    frame.data = array.array("B", bytes(3 * 640 * 480))
    times = []
    with listening(lambda: Watcher(1, knows_truth=False)) as watcher, tempfile.TemporaryDirectory() as folder:
        images = watcher.create_publisher(Image, "/bnn/image", qos_profile_sensor_data)

        def send() -> None:
            frame.header.stamp = watcher.get_clock().now().to_msg()
            images.publish(frame)

        watcher.create_timer(PERIOD, send)
        begin = time.perf_counter()
        with child("classifier_node", parameters, {}, Path(folder)) as node:
            for event in (
                lambda: watcher.state is not None,
                lambda: watcher.labels is not None,
                lambda: watcher.answers,
            ):
                wait(watcher, event, PATIENCE, [node])
                times.append(time.perf_counter() - begin)
    return Start(*times)


def page(cold: Sequence[Start], warm: Sequence[Start], command: str) -> str:
    """The page docs/start-up.md."""
    rows = [
        f"| {name} | {len(starts)} | "
        + " | ".join(f"{median(start[i] for start in starts):.1f} s" for i in range(3))
        + f" | {min(start.label for start in starts):.1f} to {max(start.label for start in starts):.1f} s |"
        for name, starts in (("cold", cold), ("warm", warm))
    ]
    import numba

    load = os.getloadavg()[0]
    return PAGE.format(
        rows="\n".join(rows),
        command=command,
        machine=f"{device_name(os.cpu_count() or 1)}, {os.cpu_count()} logical processors, load average {load:.1f}",
        versions=f"Python {platform.python_version()}, numba {numba.__version__}",
    )


PAGE = """# Start-up

How long the classifier node takes from its command to its first label, while a camera of 30 Hz sends. Medians;
written by

```bash
{command}
```

| start | starts | first diagnostics | engine ready (`label_info`) | first label | fastest and slowest |
| --- | --- | --- | --- | --- | --- |
{rows}

{machine}; {versions}; model `road_signs`, backend
`binary` on the CPU. The other load of the machine is part of the figures: read them as a ratio of cold to warm.

## What is compiled when

- **The CPU's kernels** (`bnn_perception/native.py`) are compiled by numba, once for each processor and version of the
  source. They are the same for every model: four functions with one signature each. A cold start compiles them. They
  are kept beside the source where that folder can be written, otherwise in the user's cache, or in `NUMBA_CACHE_DIR`.
- **The GPU's kernels** are compiled by NVRTC for the GPU that is there and the model that is loaded; CuPy keeps them in
  `~/.cupy/kernel_cache`.
- **`python -m bnn_perception compile`** does both ahead. `make` runs it in the environment that it makes, and
  `colcon build` (without `--symlink-install`) at the end of the installation, if numba is there.
- **`pip install .`** compiles nothing: a wheel may be meant for another machine. Run the command once after it, as the
  user who runs the node: what another user (root, say) has compiled is not found where that folder cannot be written.
- An image for many robots is made on one processor and run on another: numba notices, and compiles anew at the first
  start. Keep its cache in a volume (`NUMBA_CACHE_DIR`) there.

Whatever has to be compiled, the node is there at once: it takes parameters, and `/diagnostics` says "loading" with the
seconds; frames that come meanwhile are counted as `frames dropped while loading`. A model or device that cannot be used
ends the node with one line.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.start", description=__doc__)
    parser.add_argument("--cold", type=int, default=3, help="cold starts (default: %(default)s)")
    parser.add_argument("--warm", type=int, default=5, help="warm starts (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="page to write (default: print it)")
    args = parser.parse_args(argv)
    os.environ.update(private_graph(claim_domain()))
    prepare_process(publishes_images=True)
    cold: list[Start] = []
    warm: list[Start] = []
    try:
        for _ in range(args.cold):
            with tempfile.TemporaryDirectory(prefix="bnn_perception-cache-") as cache:
                cold.append(measure("road_signs", Path(cache)))
                print("cold", *(f"{seconds:.1f} s" for seconds in cold[-1]), flush=True)
                while len(warm) < args.warm * len(cold) / args.cold:
                    warm.append(measure("road_signs", Path(cache)))
                    print("warm", *(f"{seconds:.1f} s" for seconds in warm[-1]), flush=True)
    except CommandError as error:
        print(f"benchmark.start: {error}", file=sys.stderr)
        return 1
    text = page(cold, warm, "python -m benchmark.start --out docs/start-up.md")
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
