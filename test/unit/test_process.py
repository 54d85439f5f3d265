"""What a process sets before it handles images, and what of it the user decides."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

from bnn_perception.ros.process import (
    keep_image_buffers,
    private_graph,
    profile_path,
    transport_environment,
)

OLD, NEW = "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"


@pytest.mark.parametrize(
    ("distribution", "variable"),
    [("humble", OLD), ("iron", OLD), ("jazzy", OLD), ("kilted", NEW), ("rolling", NEW), (None, NEW)],
)
def test_the_profile_is_named_where_this_fast_dds_looks(distribution, variable):
    environment = {} if distribution is None else {"ROS_DISTRO": distribution}
    assert transport_environment(environment) == {variable: str(profile_path())}


@pytest.mark.parametrize("distribution", ["humble", "kilted"])
@pytest.mark.parametrize("variable", [OLD, NEW])
def test_a_profile_of_the_user_stays(distribution, variable):
    assert transport_environment({"ROS_DISTRO": distribution, variable: "/home/me/profile.xml"}) == {}


def test_an_empty_variable_names_no_profile():
    assert transport_environment({OLD: "", NEW: ""}) == {NEW: str(profile_path())}


def test_images_fit_into_the_segment_of_the_profile():
    root = ET.parse(profile_path()).getroot()
    name = {"dds": "http://www.eprosima.com"}
    sizes = {
        tag: int(root.findtext(f".//dds:{tag}", namespaces=name))
        for tag in ("segment_size", "maxMessageSize")
    }
    vga, full_hd = 640 * 480 * 3, 1920 * 1080 * 3
    assert sizes["maxMessageSize"] > vga
    assert sizes["segment_size"] >= 5 * full_hd
    participant = root.find(".//dds:participant", name)
    assert participant.get("is_default_profile") == "true"
    used = [entry.text for entry in participant.iterfind(".//dds:userTransports/dds:transport_id", name)]
    defined = [entry.text for entry in root.iterfind(".//dds:transport_descriptor/dds:transport_id", name)]
    assert used == defined


@pytest.mark.parametrize(
    ("distribution", "limit"),
    [
        ("humble", {"ROS_LOCALHOST_ONLY": "1"}),
        ("jazzy", {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}),
        (None, {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}),
    ],
)
def test_a_private_graph_stays_on_this_machine(monkeypatch, distribution, limit):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    if distribution is not None:
        monkeypatch.setenv("ROS_DISTRO", distribution)
    assert private_graph(7) == {"ROS_DOMAIN_ID": "7", **limit}


#: A process that is prepared and then takes large blocks as OpenCV and NumPy do: from malloc, in the main thread.
BLOCKS = """
import ctypes, os
from bnn_perception.ros.process import prepare_process

prepare_process()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in names.split()]


libc.mallinfo.restype = Mallinfo


def mapped(size):
    "Whether a block is mapped apart from the heap, and so goes back to the system when it is freed."
    before = libc.mallinfo().hblks
    block = libc.malloc(size)
    after = libc.mallinfo().hblks
    libc.free(block)
    return after > before


def kept(size):
    "Whether the heap keeps so much when it was taken in small blocks and all of it is freed."
    before = libc.mallinfo().arena
    blocks = [libc.malloc(100_000) for _ in range(size // 100_000)]
    taken = libc.mallinfo().arena - before
    for block in blocks:
        libc.free(block)
    return 2 * (libc.mallinfo().arena - before) > taken
"""


def printed(lines, **environment):
    """What a process prints that is prepared as a node's, with the user's variables in its environment."""
    ours = ("FASTRTPS_", "FASTDDS_", "MALLOC_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS + lines],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo") or ctypes.sizeof(ctypes.c_void_p) < 8,
    reason="the allocator is not that of glibc on 64 bits",
)

MIB = 1 << 20


@glibc
def test_a_process_keeps_image_buffers_below_32_mib_and_64_mib_of_them():
    # The larger block first, for what the heap has kept is taken from the heap whatever its size. A header of malloc
    # stands before each block.
    lines = f"print(mapped({32 * MIB}), mapped({32 * MIB - 64}), kept({56 * MIB}), kept({72 * MIB}))"
    assert printed(lines) == ["True", "False", "True", "False"]


@glibc
def test_sizes_that_the_user_sets_stay():
    assert printed(
        f"print(mapped({MIB}), mapped({MIB - 64}), kept({24 * MIB}))", MALLOC_MMAP_THRESHOLD_=str(MIB)
    ) == ["True", "False", "True"]
    assert printed(
        f"print(mapped({32 * MIB - 64}), kept({8 * MIB}), kept({24 * MIB}))",
        MALLOC_TRIM_THRESHOLD_=str(16 * MIB),
    ) == ["False", "True", "False"]


def test_an_allocator_that_cannot_be_told_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_image_buffers()


def test_a_prepared_process_reads_the_profile():
    lines = f"print(os.environ.get('{OLD}'), os.environ.get('{NEW}'))"
    assert printed(lines, ROS_DISTRO="humble") == [str(profile_path()), "None"]
    assert printed(lines, ROS_DISTRO="humble", **{NEW: "mine"}) == ["None", "mine"]
