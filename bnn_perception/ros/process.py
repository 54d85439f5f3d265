"""What a process must set before it handles images: the DDS transport and the memory allocator."""

from __future__ import annotations

import ctypes
import os
import random
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bnn_perception.errors import CommandError
from bnn_perception.resources import resource_folder

#: The variables that name a profile: of Fast DDS 2 (ROS 2 Humble to Jazzy), and of Fast DDS 3.
OLD_VARIABLE, NEW_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"

#: Distributions with Fast DDS 2.
FAST_DDS_2 = {"humble", "iron", "jazzy"}

#: Where Fast DDS keeps its segments.
SHARED_MEMORY = Path("/dev/shm")

#: The profiles for publishers of images, and bytes of the segment of each; the largest that fits is taken.
PROFILES = {"fastdds.xml": 32 << 20, "fastdds_16mb.xml": 16 << 20, "fastdds_8mb.xml": 8 << 20}

#: What to do where none fits.
SHORTAGE = "give /dev/shm 128 MB or more (docker run --shm-size=128m)"

#: Bytes that other DDS need for receiving images.
BUFFERS = 16 << 20

#: Larger blocks come from the system and go back to it at once. 32 MiB is the most that every glibc takes.
KEEP_BELOW = 32 << 20

#: ROS domains whose ports Linux keeps free; those above lie where outgoing connections take theirs.
DOMAINS = range(1, 102)

#: The first port of domain 0, and how many each domain has, as the standard of DDS says.
FIRST_PORT, PORTS = 7400, 250

# mallopt(3) of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def profile_path(name: str | None = None) -> Path:
    """A Fast DDS profile with a segment of shared memory that images fit into, by default the largest."""
    return resource_folder("config") / (name or next(iter(PROFILES)))


def profile_variable(environment: Mapping[str, str] = os.environ) -> str:
    """The variable by which the Fast DDS that is installed finds its profile."""
    distribution = environment.get("ROS_DISTRO")
    if distribution:
        return OLD_VARIABLE if distribution in FAST_DDS_2 else NEW_VARIABLE
    # Wheels of ROS do not set it.
    prefixes = [*filter(None, environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    return OLD_VARIABLE if any(Path(p, "share", "fastrtps").is_dir() for p in prefixes) else NEW_VARIABLE


def uses_fast_dds(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the DDS is Fast DDS, which it is unless the user chooses another."""
    return "fastrtps" in (environment.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp")


def has_profile(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a profile is named, by the user or by :func:`prepare_process`."""
    return bool(environment.get(OLD_VARIABLE) or environment.get(NEW_VARIABLE))


def free_shared_memory() -> int:
    """Bytes that are free where Fast DDS makes its segments; 0 where there is no such place."""
    try:
        place = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return place.f_bavail * place.f_frsize


def fitting_profile() -> str | None:
    """The name of the largest of :data:`PROFILES` that leaves a third of the free shared memory to other processes."""
    free = free_shared_memory()
    return next((name for name, segment in PROFILES.items() if 3 * segment <= 2 * free), None)


def transport_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variable that gives a publisher of images a large segment; empty where none fits or the user names a profile.

    A segment belongs to its sender. Who only receives images needs none, and must not take the camera's room.
    """
    name = fitting_profile()
    if name is None or has_profile(environment) or not uses_fast_dds(environment):
        return {}
    return {profile_variable(environment): str(profile_path(name))}


def transport_remedy(environment: Mapping[str, str] = os.environ) -> str:
    """What to do where images are lost between a camera's process and this one."""
    if not uses_fast_dds(environment):
        return f"{environment['RMW_IMPLEMENTATION']} takes larger buffers: sudo sysctl -w net.core.rmem_max={BUFFERS}"
    name = fitting_profile()
    remedy = f"start the camera's process with {profile_variable(environment)}={profile_path(name)}"
    if name is None:
        remedy = f"{SHORTAGE}, then {remedy}"
    if large := _count_segments():
        remedy += (
            f"; {large} process(es) here have such a segment: where the camera's is among them, lower its rate or the "
            "size of its images"
        )
    return remedy


def why_small(environment: Mapping[str, str] = os.environ) -> str:
    """Why this process, which publishes images, has no segment that they fit into; empty where it has one."""
    if has_profile(environment) or not uses_fast_dds(environment):
        return ""
    return f"/dev/shm has {free_shared_memory() >> 20} MB free, and images will get lost; {SHORTAGE}"


def _count_segments() -> int:
    """Processes on this machine whose segment is one of those for images."""
    count = 0
    for file in SHARED_MEMORY.glob("fast*_*"):  # fastrtps_ up to Fast DDS 2, fastdds_ from 3 on
        with suppress(OSError):  # it has ended meanwhile
            count += file.stat().st_size >= min(PROFILES.values())
    return count


def claim_domain() -> int:
    """A ROS domain in which nobody on this machine is, and that no other process has claimed in this way.

    It is free again when this process ends: what holds it is a socket without a file, whose name one process has at a
    time.

    Raises:
        CommandError: where all are taken.
    """
    inhabited = _inhabited_domains()
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        if domain in inhabited:
            continue
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0bnn_perception/domain/{domain}")
        except OSError:
            claim.close()
            continue
        claim.detach()  # open as long as this process
        return domain
    raise CommandError(
        f"all {len(DOMAINS)} ROS domains of this machine are taken; end some of its nodes, demos or tests"
    )


def _inhabited_domains() -> set[int]:
    """The domains at whose ports some process of this machine listens; empty where the system does not tell."""
    try:
        _, *rows = Path("/proc/net/udp").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    ports = [int(row.split()[1].rpartition(":")[2], 16) for row in rows]
    return {(port - FIRST_PORT) // PORTS for port in ports if port >= FIRST_PORT}


def private_graph(domain: int) -> dict[str, str]:
    """The variables that keep a ROS graph on this machine and apart from others.

    Args:
        domain: one of :data:`DOMAINS`.
    """
    limit = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    if os.environ.get("ROS_DISTRO") == "humble":
        limit = {"ROS_LOCALHOST_ONLY": "1"}
    return {"ROS_DOMAIN_ID": str(domain), **limit}


def prepare_process(publishes_images: bool = False) -> None:
    """Set both for this process, where the user has not. To be called before ``rclpy.init``.

    Args:
        publishes_images: whether the process needs :func:`transport_environment`.
    """
    if publishes_images:
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


def return_freed_memory() -> None:
    """Give the system what glibc keeps of freed memory, that of an engine that was replaced above all.

    Without it each change of engine may leave some megabytes between what lives on, in the heap of whichever thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
