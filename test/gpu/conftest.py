"""Tests on a GPU: without ROS, and skipped, with the reason, where there is no usable GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnn_perception.backends.cuda.device import why_unusable


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Needs a GPU; tiles that were tuned on this machine are not read, so that runs on equal GPUs are equal."""
    reason = why_unusable()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
