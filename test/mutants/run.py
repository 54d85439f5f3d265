"""Puts small faults into the package, one at a time, and counts those that the tests notice.

    make mutants                                        every module of the table, 25 faults each
    make mutants ARGS="--module net/model --per-module 50"  a part of them

The faults are made in a copy under build/mutants, never in the checkout. Of a module's faults a number is drawn by a
seed, so that two runs on the same sources draw the same. A fault is noticed where a test of its module fails, or takes
far longer than without it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import os
import queue
import random
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import cache_from_source
from pathlib import Path

import yaml
from mutate import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "bnn_perception"
WORK = ROOT / "build" / "mutants"
EQUIVALENT = Path(__file__).with_name("equivalent.yaml")

#: What a run needs of the checkout.
COPIED = (
    PACKAGE,
    "benchmark",
    "config",
    "docs",
    "kernels",
    "launch",
    "models",
    "msgs",
    "resource",
    "scripts",
    "test",
)

#: Seconds, and multiples of what the tests take without a fault, after which a fault counts as noticed.
PATIENCE, SLOWER = 20.0, 4.0


@dataclass(frozen=True)
class Target:
    """Modules that are tested by the same files.

    Attributes:
        files: of the package, or of launch/; globs allowed.
        tests: files of test/ (or ``file::test``), those first that notice most in least time.
        without: tests of them that take long and notice little that the others do not.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    without: tuple[str, ...] = ()


#: A whole net on the stand-in for a GPU, as far as it takes little time.
CUDA_NET = tuple(
    f"kernels/test_cuda_binary.py::{name}"
    for name in (
        "test_a_camera_takes_one_capture_then_one_launch_and_one_wait_a_frame",
        "test_a_fault_is_one_backend_error_and_the_end_of_the_backend",
        "test_a_fault_while_it_is_made",
        "test_a_driver_that_refuses_events_in_graphs",
        "test_closed",
    )
)

#: The one place that says which tests answer for which module.
TARGETS: dict[str, Target] = {
    "net/bits": Target(("net/bits.py",), ("unit/test_bits.py",)),
    "net/model": Target(
        (
            "net/model.py",
            "net/layers.py",
            "net/fields.py",
            "net/checks.py",
            "net/description.py",
            "net/folder.py",
        ),
        ("unit/test_model.py", "unit/test_layer_kinds.py"),
        tuple(
            f"unit/test_model.py::{name}"
            for name in (
                "test_fields_of_any_value",
                "test_descriptions_of_any_bytes",
                "test_arrays_of_any_bytes",
                "test_array_headers_of_any_bytes",
            )
        ),
    ),
    "frames/preprocess": Target(
        ("frames/preprocess.py", "frames/frame.py"),
        (
            "unit/test_preprocess.py",
            "unit/test_cpu_backends.py::test_a_missing_package_is_named",
            "kernels/test_cuda_parts.py::test_regions_are_staged_one_after_the_other",
        ),
    ),
    "frames/images": Target(("frames/images.py", "frames/dataset.py"), ("unit/test_images.py",)),
    "frames/sources": Target(
        ("frames/source.py", "frames/sources.py", "frames/recordings.py", "frames/bags.py"),
        ("unit/test_sources.py",),
    ),
    "cli/replay": Target(
        ("cli/replay.py", "cli/unpacking.py", "cli/recorded_boxes.py", "cli/label_files.py"),
        ("unit/test_replay.py",),
    ),
    "cli/labelled_frames": Target(("cli/labelled_frames.py",), ("unit/test_labelled_frames.py",)),
    "classifier": Target(
        ("classifier.py",),
        ("unit/test_classifier.py", "unit/test_face.py::test_grey_images_and_frames_are_taken"),
    ),
    "evaluation": Target(
        ("evaluation/evaluate.py", "evaluation/scores.py", "evaluation/calibration.py"),
        ("unit/test_evaluation.py", "unit/test_calibration.py"),
    ),
    "backends": Target(
        ("backends/choose.py", "backends/protocol.py", "backends/cpu/processor.py"),
        (
            "unit/test_cpu_float.py",
            "kernels/test_cuda_parts.py",
            "unit/test_cpu_backends.py",
            "kernels/test_cuda_binary.py::test_auto_takes_the_gpu_where_it_is_usable",
        ),
    ),
    "backends/cpu/binary": Target(
        ("backends/cpu/binary.py", "backends/cpu/program.py", "backends/cpu/threads.py"),
        ("unit/test_cpu_backends.py",),
        tuple(
            f"unit/test_cpu_backends.py::{name}"
            for name in (
                "test_processors_without_the_table_instruction",
                "test_without_a_place_for_the_cache",
                "test_memory_is_steady",
            )
        ),
    ),
    "backends/cpu/float": Target(
        ("backends/cpu/float.py",),
        (
            "unit/test_cpu_float.py",
            "unit/test_cpu_backends.py::test_as_many_threads_as_pay_off",
            "unit/test_cpu_backends.py::test_a_missing_package_is_named",
        ),
    ),
    "cuda/backend": Target(
        ("backends/cuda/backend.py", "backends/cuda/binary.py", "backends/cuda/float.py"),
        ("kernels/test_cuda_binary.py", "kernels/test_cuda_float.py"),
    ),
    "cuda/device": Target(
        ("backends/cuda/device.py", "backends/cuda/memory.py"), ("kernels/test_cuda_parts.py", *CUDA_NET)
    ),
    "cuda/graph": Target(("backends/cuda/graph.py",), ("kernels/test_cuda_parts.py", *CUDA_NET)),
    "cuda/upload": Target(("backends/cuda/upload.py",), ("kernels/test_cuda_parts.py",)),
    "cuda/tiles": Target(("backends/cuda/tiles.py",), ("kernels/test_cuda_parts.py",)),
    "cuda/network": Target(
        (
            "backends/cuda/network.py",
            "backends/cuda/packing.py",
            "backends/cuda/compile.py",
            "backends/cuda/sources.py",
        ),
        ("kernels/test_cuda_binary.py", "kernels/test_kernels.py"),
    ),
    "cuda/specs": Target(
        ("backends/cuda/specs.py",), ("kernels/test_cuda_binary.py", "kernels/test_kernels.py")
    ),
    "cuda/float": Target(
        ("backends/cuda/float_*.py", "backends/cuda/cublas.py"),
        ("kernels/test_cuda_float.py", "kernels/test_float_kernels.py"),
    ),
    "importers/float_twin": Target(
        (
            "importers/onnx/float_twin.py",
            "importers/onnx/twin_file.py",
            "importers/onnx/stages.py",
            "importers/stage.py",
        ),
        ("unit/test_float_twin.py", "unit/test_twin_file.py", "unit/test_cpu_float.py"),
    ),
    "importers/onnx": Target(
        (
            "importers/__init__.py",
            "importers/fold/*.py",
            "importers/onnx/[!fst]*.py",
            "importers/onnx/file.py",
            "importers/onnx/shapes.py",
            "importers/onnx/signs.py",
        ),
        (
            "unit/test_import_cancel.py",
            "unit/test_import_limits.py",
            "unit/test_import_moved.py",
            "unit/test_import_qonnx.py",
            "unit/test_import_fold.py",
            "unit/test_import_operators.py",
        ),
    ),
    "importers/tflite": Target(("importers/tflite/*.py",), ("unit/test_import_tflite.py",)),
    "importers/bnn_pynq": Target(("importers/bnn_pynq.py",), ("unit/test_import_bnn_pynq.py",)),
    "training/settings": Target(
        (
            "training/config.py",
            "training/fields.py",
            "training/stages.py",
            "training/run.py",
            "training/study.py",
            "training/curves.py",
        ),
        ("unit/test_training_recipe.py", "unit/test_study.py"),
    ),
    "training/data": Target(("training/data.py",), ("unit/test_training_data.py",)),
    "frames/encoded": Target(("frames/encoded.py",), ("unit/test_encoded.py",)),
    "ros/image_msg": Target(("ros/image_msg.py",), ("unit/test_image_msg.py",)),
    "ros/latency": Target(("ros/latency.py",), ("unit/test_latency.py",)),
    "ros/engine": Target(("ros/engine.py",), ("unit/test_engine.py",)),
    "ros/parameters": Target(
        ("ros/parameters.py",),
        (
            "unit/test_parameters.py",
            "unit/test_packaging.py::test_defaults_are_the_yaml_file",
            "unit/test_packaging.py::test_the_page_of_the_node_has_a_row_for_every_parameter",
            "unit/test_packaging.py::test_every_parameter_describes_itself",
        ),
    ),
    "ros/pipeline": Target(
        ("ros/pipeline.py", "ros/worker.py"), ("unit/test_pipeline.py", "unit/test_worker.py")
    ),
    "ros/refusals": Target(("ros/refusals.py",), ("unit/test_refusals.py",)),
    "ros/diagnostics": Target(
        ("ros/diagnostics.py",), ("unit/test_diagnostics.py", "ros/test_classifier_in_process.py")
    ),
    "ros/classifier_node": Target(
        ("ros/classifier_node.py", "ros/entry.py", "ros/health.py"),
        ("ros/test_classifier_in_process.py", "ros/test_classifier_node.py"),
    ),
    "ros/camera_node": Target(
        ("ros/camera_node.py",), ("ros/test_camera_in_process.py", "ros/test_camera_node.py")
    ),
    "ros/process": Target(("ros/process.py",), ("unit/test_process.py",)),
    "launch": Target(("launch/*.py",), ("unit/test_launch_files.py", "ros/test_launch.py")),
}


def files_of(target: Target, root: Path = ROOT) -> list[Path]:
    """The sources of a target, relative to ``root``.

    Raises:
        FileNotFoundError: for an entry of the table that names no file.
    """
    found: list[Path] = []
    for pattern in target.files:
        # launch/ stands beside the package.
        folder = root if pattern.startswith("launch/") else root / PACKAGE
        files = sorted(folder.glob(pattern))
        if not files:
            raise FileNotFoundError(
                f"{folder / pattern}: no such file; the table in {Path(__file__).name} names it"
            )
        found += [file.relative_to(root) for file in files]
    return found


def known_equivalents() -> dict[tuple[str, str, str], str]:
    """The reason of each fault that nobody can notice, by :attr:`Mutant.key`."""
    entries = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8"))
    return {(entry["where"], entry["before"], entry["after"]): entry["why"] for entry in entries}


def draw(faults: Sequence[tuple[Path, Mutant]], count: int, seed: str) -> list[tuple[Path, Mutant]]:
    """A number of faults, the same ones for the same seed, in the order in which they stand."""
    chosen = random.Random(seed).sample(range(len(faults)), min(count, len(faults)))
    return [faults[index] for index in sorted(chosen)]


class Copy:
    """A copy of the checkout, in which one fault stands at a time.

    The copy keeps its place and the files their times of change, so that numba finds what it compiled before.
    """

    def __init__(self) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        for index in itertools.count():  # the first that no other run has
            self._lock = (WORK / f"copy-{index}.lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self._lock.close()
        self.root = WORK / f"copy-{index}"
        self._cache = WORK / f"numba-{index}"
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ROOT.iterdir():
            if file.is_file():
                shutil.copy2(file, self.root)
        # Kernels for the host are kept by the digest of all that they are made of.
        (ROOT / "build" / "host_kernels").mkdir(parents=True, exist_ok=True)
        (self.root / "build").mkdir()
        (self.root / "build" / "host_kernels").symlink_to(ROOT / "build" / "host_kernels")

    def test(self, target: Target, limit: float | None = None, fresh: bool = False) -> str | None:
        """Run tests.

        Args:
            target: whose tests.
            limit: seconds; None: there is no fault, and it takes as long as it takes.
            fresh: compile with numba anew.

        Returns:
            None where all pass, otherwise the first that does not.
        """
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "NUMBA_CACHE_DIR": str(self._cache),
            # Found beside the checkout, not beside the copy.
            "BNN_DATA": os.environ.get("BNN_DATA") or str(ROOT.parent / "shared" / "data"),
        }
        if limit is not None:
            # A fault often leaves size and second of its file as they were, which is all that Python looks at.
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        if fresh:
            environment["NUMBA_CACHE_DIR"] = str(self.root / "build" / "numba")
            shutil.rmtree(environment["NUMBA_CACHE_DIR"], ignore_errors=True)
        # Random examples that differ from run to run would make the result of a run differ.
        arguments = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        arguments += [*target.tests, *(f"--deselect=test/{test}" for test in target.without)]
        output = self.root / "build" / "output.txt"
        code = _in_child(lambda: self._pytest(arguments, environment, output), limit)
        shutil.rmtree(self.root / ".hypothesis", ignore_errors=True)
        if code == 0:
            return None
        if code is None:
            return "took too long"
        text = output.read_text(encoding="utf-8", errors="replace").splitlines()
        return (
            [line for line in text if line.startswith(("FAILED", "ERROR"))] or text or [f"ended with {code}"]
        )[-1]

    def _pytest(self, arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> int:
        """Become a process that runs pytest in the copy; returns its exit code."""
        with output.open("wb") as stream, open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.chdir(self.root / "test")
        os.environ.clear()
        os.environ.update(environment)
        sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
        sys.path[0] = str(self.root)
        if "numba" in sys.modules:
            sys.modules["numba"].core.config.reload_config()
        import pytest

        try:
            return int(pytest.main([*arguments, "--rootdir", str(self.root)]))
        finally:
            sys.stdout.flush()

    def notices(self, path: Path, mutant: Mutant, target: Target, limit: float) -> str | None:
        """What notices a fault, None where nothing does."""
        file = self.root / path
        whole, status = file.read_bytes(), file.stat()
        Path(cache_from_source(str(file))).unlink(missing_ok=True)
        file.write_text(mutant.source, encoding="utf-8")
        try:
            # Compiled code holds the constants of the modules that it was compiled with.
            return self.test(target, limit, fresh=path.name == "native.py" or is_compiled_in(path, mutant))
        finally:
            file.write_bytes(whole)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def is_compiled_in(path: Path, mutant: Mutant) -> bool:
    """Whether a fault is in a constant of a module that compiled code takes constants from."""
    native = next((ROOT / PACKAGE).rglob("native.py"))
    module = ".".join(path.with_suffix("").parts)
    return not mutant.where and f"from {module} import" in native.read_text(encoding="utf-8")


def preload() -> None:
    """Import what nearly every test imports, none of it this package, so that the children find it there.

    Nothing that starts threads when it is imported may be among them.
    """
    for name in ("pytest", "hypothesis.strategies", "numpy", "numba", "onnx.reference"):
        with contextlib.suppress(ImportError):
            import_module(name)
    assert PACKAGE not in sys.modules


def _in_child(function: Callable[[], int], limit: float | None) -> int | None:
    """Call a function in a forked process with a group of its own, and end all of that group.

    Returns:
        The exit code, or minus the signal that ended it; None where it took longer than ``limit`` seconds.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            code = function()
        finally:
            os._exit(code)
    handle = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([handle], [], [], limit)
        # Also what a test left running.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(status) if ended else None


@dataclass
class Result:
    """What became of the faults of one target."""

    name: str
    equivalent: int
    noticed: int
    survivors: list[tuple[Path, Mutant]]

    @property
    def drawn(self) -> int:
        return self.noticed + len(self.survivors)


def measure(name: str, count: int, seed: int, copies: Sequence[Copy], verbose: bool) -> Result:
    """Draw faults of a target and try each.

    Raises:
        RuntimeError: where its tests fail without a fault.
    """
    target = TARGETS[name]
    known = known_equivalents()
    faults = [
        (path, mutant)
        for path in files_of(target)
        for mutant in mutants((ROOT / path).read_text(encoding="utf-8"))
    ]
    told = [fault for fault in faults if fault[1].key not in known]
    drawn = draw(told, count, f"{seed} {name}")
    seconds = 0.0
    for copy_ in copies:
        for _ in range(2):  # the second run finds everything compiled
            start = time.monotonic()
            failure = copy_.test(target)
            seconds = max(1.0, time.monotonic() - start)
            if failure is not None:
                raise RuntimeError(f"{name}: its tests fail without a fault: {failure}")
            if seconds < 30:
                break
    limit = PATIENCE + SLOWER * seconds
    waiting: queue.SimpleQueue[tuple[int, tuple[Path, Mutant]]] = queue.SimpleQueue()
    for item in enumerate(drawn):
        waiting.put(item)
    answers: dict[int, str | None] = {}

    def work(copy_: Copy) -> None:
        while True:
            try:
                index, (path, mutant) = waiting.get_nowait()
            except queue.Empty:
                return
            answers[index] = copy_.notices(path, mutant, target, limit)
            if verbose:
                print(
                    f"{path}:{mutant.line}: {mutant.after}\n    {answers[index] or 'NOT NOTICED'}", flush=True
                )

    threads = [threading.Thread(target=work, args=(copy_,)) for copy_ in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    survivors = [drawn[index] for index in range(len(drawn)) if answers[index] is None]
    return Result(name, len(faults) - len(told), len(drawn) - len(survivors), survivors)


def show(result: Result) -> None:
    """Print the row of a target and what was not noticed."""
    share = f"{100 * result.noticed / result.drawn:.0f} %" if result.drawn else "-"
    print(f"{result.name:22}{result.drawn:8}{result.noticed:9}{share:>8}{result.equivalent:12}")
    for path, mutant in result.survivors:
        print(f"    {path}:{mutant.line} {mutant.where}\n        - {mutant.before}\n        + {mutant.after}")
    sys.stdout.flush()


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--module", action="append", choices=list(TARGETS), help="of the table; default: all")
    parser.add_argument("--per-module", type=int, default=25, metavar="N", help="faults of each (default 25)")
    parser.add_argument("--seed", type=int, default=0, help="draws other faults")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="copies that are tested at a time")
    parser.add_argument("--verbose", action="store_true", help="print each fault and what notices it")
    options = parser.parse_args(None if arguments is None else list(arguments))
    preload()
    copies = [Copy() for _ in range(options.jobs)]
    print(f"{'module':22}{'faults':>8}{'noticed':>9}{'share':>8}{'equivalent':>12}", flush=True)
    results = []
    failed = False
    for name in options.module or TARGETS:
        try:
            results.append(measure(name, options.per_module, options.seed, copies, options.verbose))
        except RuntimeError as error:
            failed = True
            print(error, file=sys.stderr, flush=True)
            continue
        show(results[-1])
    drawn, noticed = sum(r.drawn for r in results), sum(r.noticed for r in results)
    if drawn:
        print(f"{'all':22}{drawn:8}{noticed:9}{100 * noticed / drawn:6.0f} %")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
