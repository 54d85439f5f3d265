"""What a process must set before it handles images: the DDS transport and the memory allocator."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

from bnn_perception.resources import resource_folder

#: Distributions with Fast DDS 2, which reads its profiles where the older variable says.
FAST_DDS_2 = {"humble", "iron", "jazzy"}

#: Larger blocks come from the system and go back to it at once. 32 MiB is the most that every glibc takes.
KEEP_BELOW = 32 << 20

# mallopt(3) of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def profile_path() -> Path:
    """The Fast DDS profile with a shared memory segment that images fit into."""
    return resource_folder("config") / "fastdds.xml"


def transport_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variable that makes Fast DDS read :func:`profile_path`; empty where the user names a profile."""
    if environment.get("FASTRTPS_DEFAULT_PROFILES_FILE") or environment.get("FASTDDS_DEFAULT_PROFILES_FILE"):
        return {}
    name = "FASTRTPS" if environment.get("ROS_DISTRO") in FAST_DDS_2 else "FASTDDS"
    return {f"{name}_DEFAULT_PROFILES_FILE": str(profile_path())}


def private_graph(domain: int) -> dict[str, str]:
    """The variables that keep a ROS graph on this machine and apart from others.

    Args:
        domain: 1 to 101; Linux keeps the ports of these free, those above lie where outgoing connections take theirs.
    """
    limit = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    if os.environ.get("ROS_DISTRO") == "humble":
        limit = {"ROS_LOCALHOST_ONLY": "1"}
    return {"ROS_DOMAIN_ID": str(domain), **limit}


def prepare_process() -> None:
    """Set both for this process and its children, where the user has not. To be called before ``rclpy.init``."""
    os.environ.update(transport_environment())
    keep_image_buffers()


def keep_image_buffers() -> None:
    """Let glibc keep freed image buffers instead of returning each to the system and faulting it in anew.

    It halves the time and the CPU of receiving images. The user's MALLOC_MMAP_THRESHOLD_ and
    MALLOC_TRIM_THRESHOLD_ are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return
    for variable, parameter, value in (
        ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD, KEEP_BELOW),
        ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD, 2 * KEEP_BELOW),
    ):
        if variable not in os.environ:
            mallopt(parameter, value)
