"""What a process sets before it handles images, and what of it the user decides."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

from bnn_perception.errors import CommandError
from bnn_perception.ros import process
from bnn_perception.ros.process import (
    claim_domain,
    keep_image_buffers,
    private_graph,
    profile_path,
    transport_environment,
    transport_remedy,
    why_small,
)

OLD, NEW = "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"
MIB = 1 << 20


@pytest.fixture
def free(monkeypatch):
    """A function that sets the bytes of shared memory that are free; 128 MiB before it is called."""

    def set_(size):
        blocks = SimpleNamespace(f_bavail=size // 4096, f_frsize=4096)
        monkeypatch.setattr(process.os, "statvfs", lambda path: blocks)

    set_(128 * MIB)
    return set_


@pytest.mark.parametrize(
    ("distribution", "variable"),
    [("humble", OLD), ("iron", OLD), ("jazzy", OLD), ("kilted", NEW), ("rolling", NEW)],
)
def test_the_profile_is_named_where_this_fast_dds_looks(free, distribution, variable):
    environment = {"ROS_DISTRO": distribution}
    assert transport_environment(environment) == {variable: str(profile_path())}


@pytest.mark.parametrize(("share", "variable"), [("fastrtps", OLD), ("fastdds", NEW), (None, NEW)])
@pytest.mark.parametrize("is_sourced", [False, True])
def test_without_a_distribution_the_installed_fast_dds_tells_the_variable(
    free, monkeypatch, tmp_path, share, variable, is_sourced
):
    """Wheels of ROS set no ROS_DISTRO."""
    (tmp_path / "ros" / "share" / (share or "none")).mkdir(parents=True)
    monkeypatch.setattr(process.sys, "prefix", str(tmp_path / ("none" if is_sourced else "ros")))
    environment = {"AMENT_PREFIX_PATH": f"/nowhere:{tmp_path / 'ros'}" if is_sourced else ""}
    assert transport_environment(environment) == {variable: str(profile_path())}


@pytest.mark.parametrize("distribution", ["humble", "kilted"])
@pytest.mark.parametrize("variable", [OLD, NEW])
def test_a_profile_of_the_user_stays(free, distribution, variable):
    assert transport_environment({"ROS_DISTRO": distribution, variable: "/home/me/profile.xml"}) == {}


def test_another_dds_has_no_profile(free):
    assert transport_environment({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}) == {}
    assert why_small({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}) == ""
    assert transport_environment({"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp", "ROS_DISTRO": "jazzy"}) != {}
    assert transport_remedy({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}) == (
        "rmw_cyclonedds_cpp takes larger buffers: sudo sysctl -w net.core.rmem_max=16777216"
    )


def test_an_empty_variable_names_no_profile(free):
    environment = {OLD: "", NEW: "", "ROS_DISTRO": "kilted"}
    assert transport_environment(environment) == {NEW: str(profile_path())}


@pytest.mark.parametrize(
    ("mebibytes", "name"),
    [
        (64, "fastdds.xml"),
        (48, "fastdds.xml"),
        (47, "fastdds_16mb.xml"),
        (24, "fastdds_16mb.xml"),
        (23, "fastdds_8mb.xml"),
        (12, "fastdds_8mb.xml"),
        (11, None),
        (0, None),
    ],
)
def test_the_segment_leaves_a_third_of_what_is_free(free, mebibytes, name):
    free(mebibytes * MIB)
    expected = {} if name is None else {NEW: str(profile_path(name))}
    assert transport_environment({"ROS_DISTRO": "kilted"}) == expected
    small = why_small({"ROS_DISTRO": "kilted", **expected})
    if name is None:
        assert small == (
            f"/dev/shm has {mebibytes} MB free, and images will get lost; "
            "give /dev/shm 128 MB or more (docker run --shm-size=128m)"
        )
    else:
        assert small == ""


def test_a_machine_without_shared_memory_takes_no_segment(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "SHARED_MEMORY", tmp_path / "none")
    assert transport_environment({"ROS_DISTRO": "kilted"}) == {}


def test_what_to_do_about_lost_images_depends_on_the_memory_there_is(free, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "SHARED_MEMORY", tmp_path)
    kilted = {"ROS_DISTRO": "kilted"}
    assert transport_remedy(kilted) == f"start the camera's process with {NEW}={profile_path()}"
    free(24 * MIB)
    assert transport_remedy(kilted).endswith("fastdds_16mb.xml")
    free(MIB)
    assert transport_remedy({"ROS_DISTRO": "humble"}) == (
        "give /dev/shm 128 MB or more (docker run --shm-size=128m), "
        f"then start the camera's process with {OLD}={profile_path()}"
    )


@pytest.mark.parametrize("name", ["fastdds_0123456789abcdef", "fastrtps_0123456789abcdef"])
def test_a_segment_that_is_there_already_is_not_recommended_again(free, monkeypatch, tmp_path, name):
    monkeypatch.setattr(process, "SHARED_MEMORY", tmp_path)
    for file, size in ((name, 8 * MIB), ("fastdds_default", MIB), ("other", 9 * MIB)):
        with open(tmp_path / file, "wb") as segment:
            segment.truncate(size)
    assert transport_remedy({"ROS_DISTRO": "kilted"}) == (
        f"start the camera's process with {NEW}={profile_path()}; 1 process(es) here have such a segment: "
        "where the camera's is among them, lower its rate or the size of its images"
    )


@pytest.mark.parametrize("name", process.PROFILES)
def test_images_fit_into_the_segment_of_the_profile(name):
    root = ET.parse(profile_path(name)).getroot()
    namespace = {"dds": "http://www.eprosima.com"}
    sizes = {
        tag: int(root.findtext(f".//dds:{tag}", namespaces=namespace))
        for tag in ("segment_size", "maxMessageSize")
    }
    vga, full_hd = 640 * 480 * 3, 1920 * 1080 * 3
    assert sizes["segment_size"] == process.PROFILES[name]
    assert sizes["segment_size"] == 8 * sizes["maxMessageSize"]
    assert sizes["maxMessageSize"] > vga
    assert sizes["segment_size"] > full_hd
    assert name != "fastdds.xml" or sizes["segment_size"] >= 5 * full_hd
    participant = root.find(".//dds:participant", namespace)
    assert participant.get("is_default_profile") == "true"
    used = [entry.text for entry in participant.iterfind(".//dds:userTransports/dds:transport_id", namespace)]
    defined = [
        entry.text for entry in root.iterfind(".//dds:transport_descriptor/dds:transport_id", namespace)
    ]
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
    process.return_freed_memory()


def test_freed_memory_between_what_lives_goes_back():
    """As of an engine that was replaced: of 40 MB in blocks, one of a hundred lives on."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("not glibc")
    lines = """
def resident():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1]) // 1024
from bnn_perception.ros.process import return_freed_memory
before = resident()
blocks = [bytearray(b"x") * 40_000 for _ in range(1000)]
blocks = blocks[::100]
print(resident() - before)
return_freed_memory()
print(resident() - before)"""
    kept, left = (int(line) for line in printed(lines))
    assert kept > 30
    assert left < 10


def test_a_process_that_publishes_images_reads_the_profile_and_no_other():
    if process.fitting_profile() is None:
        pytest.skip("no profile fits into /dev/shm")
    lines = f"""
prepare_process(publishes_images=True)
print(os.environ.get('{OLD}'), os.environ.get('{NEW}'))"""
    named = str(profile_path(process.fitting_profile()))
    assert printed(lines, ROS_DISTRO="humble") == [named, "None"]
    assert printed(lines, ROS_DISTRO="humble", **{NEW: "mine"}) == ["None", "mine"]
    lines = f"print(os.environ.get('{OLD}'), os.environ.get('{NEW}'))"
    assert printed(lines, ROS_DISTRO="humble") == ["None", "None"]


def test_no_two_processes_have_one_domain(monkeypatch):
    """What another process has claimed is passed over until that one ends."""
    program = (
        "from bnn_perception.ros.process import claim_domain; print(claim_domain(), flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    taken = int(other.stdout.readline())
    monkeypatch.setattr(process, "_inhabited_domains", set)
    monkeypatch.setattr(process, "DOMAINS", range(taken, taken + 1))
    with pytest.raises(CommandError, match="all 1 ROS domains of this machine are taken"):
        claim_domain()
    other.communicate("\n")
    assert claim_domain() == taken
    with pytest.raises(CommandError):
        claim_domain()  # nor has one process a domain twice


def test_a_domain_in_which_somebody_is_already_is_passed_over(monkeypatch):
    """Whoever it is: a robot's nodes claim nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
        somebody.bind(("127.0.0.1", 0))
        domain = (somebody.getsockname()[1] - 7400) // 250
        monkeypatch.setattr(process, "DOMAINS", range(domain, domain + 1))
        with pytest.raises(CommandError):
            claim_domain()


def test_the_tests_have_claimed_the_domain_that_they_are_in(monkeypatch):
    own = int(os.environ["ROS_DOMAIN_ID"])
    assert own in process.DOMAINS
    monkeypatch.setattr(process, "DOMAINS", range(own, own + 1))
    with pytest.raises(CommandError):
        claim_domain()
