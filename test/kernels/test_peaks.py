"""The kernels that measure peaks repeat the counted instruction and little else: seen in their SASS."""

from __future__ import annotations

import pytest

from benchmark.gpu import nvrtc, sass
from benchmark.gpu.peaks import CHAINS, PRODUCTS, THREADS, UNROLL
from bnn_perception.backends.cuda.sources import kernel_source
from bnn_perception.errors import CommandError


def loops(sm: int) -> dict[str, list[dict[str, int]]]:
    """The instructions of each kernel's innermost loops."""
    options = (f"-DTHREADS={THREADS}", f"-DUNROLL={UNROLL}", f"-DCHAINS={CHAINS}")
    try:
        text = nvrtc.disassemble(nvrtc.compile_cubin(kernel_source("peaks"), options, sm))
    except CommandError as error:
        if "not found" in str(error):
            pytest.skip(str(error))
        raise
    code = sass.kernels(text)
    return {
        kernel: [dict(sass.count(body)) for body in sass.innermost_loops(code[kernel])] for kernel in code
    }


@pytest.mark.parametrize("sm", [75, 86, 87, 89, 90])
def test_a_loop_is_the_counted_instruction(sm: int) -> None:
    found = loops(sm)
    expected = {"peak_popc": "POPC", "peak_lop3": "LOP3"}
    # Where they are native: the others are built from several instructions (Hopper's xor) or trap (before sm_80).
    native = {75: ("peak_mma_xor_128",), 90: ("peak_mma_and_256",)}
    mma = native.get(sm, tuple(product.kernel for product in PRODUCTS.values()))
    expected |= dict.fromkeys(mma, "BMMA")
    for kernel, instruction in expected.items():
        (body,) = found[kernel]
        assert body.pop(instruction) == UNROLL * CHAINS, kernel
        assert sum(body.values()) <= 3, kernel  # count, compare, branch


@pytest.mark.parametrize("sm", [53, 62, 72, 80, 100, 120])
def test_every_sm_compiles_them(sm: int) -> None:
    try:
        nvrtc.compile_cubin(kernel_source("peaks"), ("-DTHREADS=256", "-DUNROLL=16", "-DCHAINS=8"), sm)
    except CommandError as error:
        if "not found" in str(error):
            pytest.skip(str(error))
        raise


def test_products_that_an_sm_lacks_trap() -> None:
    for kernel in ("peak_mma_xor_256", "peak_mma_and_256"):
        assert loops(75)[kernel] == []  # BPT.TRAP ends it before its loop
