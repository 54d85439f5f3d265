"""``compile``: compiles ahead what the first start of the node would otherwise wait for.

numba keeps the CPU's kernels beside their source where it can write there (or in NUMBA_CACHE_DIR, or in the user's
cache), for this processor and this version of the source. They are the same for every model. CuPy keeps the GPU's,
which depend on the model, in the user's cache.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from bnn_perception.backends import make_backend
from bnn_perception.backends.cuda.device import why_unusable
from bnn_perception.frames.frame import Frame
from bnn_perception.frames.jpeg import compile_ahead
from bnn_perception.net.folder import load_model
from bnn_perception.resources import find_model


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("compile")
    parser.add_argument(
        "--model",
        default="road_signs",
        help="model folder or name, for which a GPU's kernels are compiled (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="for what (default: auto, the CPU and the GPU if there is one)",
    )


def run(args: argparse.Namespace) -> int:
    model = load_model(find_model(args.model))
    devices = [args.device]
    if args.device == "auto":
        devices = ["cpu"] if why_unusable() else ["cpu", "cuda"]
    for device in devices:
        begin = time.perf_counter()
        backend = make_backend(model, "binary", device)
        backend.logits([Frame(np.zeros((480, 640, 3), np.uint8))])
        backend.close()
        if device == "cpu":
            compile_ahead()
        print(
            f"{backend.name} is ready after {time.perf_counter() - begin:.1f} s{_cache(device)}", flush=True
        )
    return 0


def _cache(device: str) -> str:
    """Whether the CPU's kernels were compiled just now, and where they are kept."""
    if device != "cpu":
        return ""
    from bnn_perception import native

    stats = native.evaluate.stats
    if stats.cache_path is None:
        return ": compiled, and kept nowhere, for numba finds no directory to write to; set NUMBA_CACHE_DIR"
    return f": {'compiled into' if stats.cache_misses else 'found in'} {stats.cache_path}"
