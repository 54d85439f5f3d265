"""The measured peaks are of the order that the hardware's documentation gives: a wrong count would be off by far."""

from __future__ import annotations

from benchmark.gpu.peaks import measure_peaks
from bnn_perception.backends.cuda.device import Gpu


def test_peaks_are_plausible() -> None:
    gpu = Gpu()
    with gpu():
        clock = gpu.cupy.cuda.runtime.getDeviceProperties(gpu.index).get("clockRate", 0) * 1e3
        peaks = measure_peaks(gpu)
    assert 1e9 < peaks.copy < 2e13
    for rate in (peaks.popc, peaks.lop3, *peaks.binary_mma.values()):
        assert rate > 0
    if clock:
        # A clock and SM: 8 to 32 POPC (CUDA programming guide), 64 to 128 LOP3; clocks may fall below the stated one.
        cycles = clock * gpu.target.multiprocessors
        assert 3 < peaks.popc / cycles < 36
        assert 20 < peaks.lop3 / cycles < 140
        assert peaks.lop3 > 2 * peaks.popc
    if gpu.target.sm in (80, 86, 87, 89, 90):
        assert peaks.binary_mma["b1 mma m16n8k256 and"] > peaks.popc_macs
