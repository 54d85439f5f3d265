"""Studies: variants of a configuration, their record, and the page made of records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import bnn_perception
from benchmark.accuracy import page as accuracy
from bnn_perception.cli import study as tool
from bnn_perception.errors import CommandError
from bnn_perception.training.config import ConfigError
from bnn_perception.training.progress import short_warnings
from bnn_perception.training.study import float_key, load_study, merged

TINY: dict[str, Any] = {
    "input": {"height": 8, "width": 8},
    "network": [{"kind": "input_conv2d", "channels": 4, "pool": 2}, {"kind": "output_dense"}],
    "data": {"train": "set.npz", "test": "set.npz"},
    "batch": 16,
    "epoch_images": 0,
    "float_twin": {"epochs": 1, "learning_rate": 1e-3},
    "binary": {"epochs": 1, "learning_rate": 1e-3},
    "study": {
        "title": "A title",
        "text": "One paragraph.\n\nAnother.",
        "baseline": "plain",
        "seeds": [1, 2],
        "variants": {
            "plain": {},
            "one threshold": {
                "network": [
                    {"kind": "thermometer", "levels": 1},
                    {"kind": "binary_conv2d", "channels": 4, "pool": 2},
                    {"kind": "output_dense"},
                ]
            },
            "longer": {"binary": {"epochs": 2}, "seeds": [1]},
            "grey": {"input": {"channels": 1}, "seeds": [2]},
        },
    },
}


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def test_runs_are_merged_and_ordered_by_seed(tmp_path: Path) -> None:
    runs = load_study(write(tmp_path / "tiny.yaml", TINY)).runs
    assert [(run.variant, run.config.seed) for run in runs] == [
        ("plain", 1),
        ("one threshold", 1),
        ("longer", 1),
        ("plain", 2),
        ("one threshold", 2),
        ("grey", 2),
    ]
    longer = runs[2].config
    assert (longer.binary.epochs, longer.binary.learning_rate) == (2, 1e-3)
    assert runs[1].folder == "one_threshold-1"


def test_mappings_are_merged_and_lists_replaced() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merged(base, {"a": {"c": [5]}, "e": 6}) == {"a": {"b": 1, "c": [5]}, "d": 3, "e": 6}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_float_twins_are_shared_where_they_are_equal(tmp_path: Path) -> None:
    runs = load_study(write(tmp_path / "tiny.yaml", TINY)).runs
    key = {(run.variant, run.config.seed): float_key(run.config) for run in runs}
    assert key["plain", 1] == key["one threshold", 1] == key["longer", 1]
    assert key["plain", 1] != key["plain", 2]
    assert key["plain", 2] != key["grey", 2]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (None, "study: must have seeds, text, title, variants"),
        ({**TINY["study"], "variants": {}}, "study.variants: must be a mapping"),
        ({**TINY["study"], "variants": {"a": {"seeds": "1"}}}, "study.variants.a: seeds must be a list"),
        ({**TINY["study"], "seeds": []}, "study.variants.plain: seeds must be a list of different"),
        ({**TINY["study"], "seeds": [2, 2]}, "study.variants.plain: seeds must be a list of different"),
        ({**TINY["study"], "seeds": [-1]}, "study.variants.plain: seed is -1; it must be from 0"),
        (
            {**TINY["study"], "variants": {"a b": {}, "a_b": {}}},
            "study.variants.a_b: its runs and those of another variant share the folder a_b-1",
        ),
        ({**TINY["study"], "variants": {"a": {"batch": 0}}}, "study.variants.a: batch is 0"),
        ({**TINY["study"], "baseline": "none"}, "study.baseline is 'none'"),
    ],
)
def test_errors_name_the_file_and_the_variant(tmp_path: Path, study: object, message: str) -> None:
    path = write(tmp_path / "tiny.yaml", {**TINY, "study": study})
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_page_shows_spread_and_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {
        "images": 100,
        "packed_bytes": 2048,
        "float_bytes": 65536,
        "macs": 3_000_000,
        "input_macs": 1_000_000,
    }
    record = {
        "study": "tiny",
        "title": "A title",
        "text": "One paragraph.\n\nAnother.",
        "baseline": "plain",
        "command": "python -m bnn_perception study tiny --data DATA",
        "machine": "CPU, x86_64",
        "versions": {"torch": "2.0"},
        "variants": ["plain", "longer", "never run"],
        "seeds": [1, 2],
        "results": [
            {"variant": "plain", "seed": 1, "float": 0.9, "binary": 0.8, **sizes},
            {"variant": "plain", "seed": 2, "float": 0.92, "binary": 0.84, **sizes},
            {"variant": "longer", "seed": 2, "float": 0.92, "binary": 0.85, **sizes},
        ],
    }
    (tmp_path / "tiny.json").write_text(json.dumps(record), encoding="utf-8")
    assert accuracy.main(["--records", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 0
    lines = (tmp_path / "page.md").read_text(encoding="utf-8").splitlines()
    plain, longer = (
        next(line for line in lines if line.startswith(f"| {name} ")) for name in ("plain", "longer")
    )
    assert plain == (
        "| plain | 2 | 91.00 (90.00 to 92.00) | 82.00 (80.00 to 84.00) |  | 9.00 (8.00 to 10.00) | 2.0 | 2.0 | 1.0 |"
    )
    assert longer == "| longer | 1 | 92.00 | 85.00 | +1.00 | 7.00 | 2.0 | 2.0 | 1.0 |"
    assert not any("never run" in line for line in lines)
    assert any(line.startswith("| `road_signs` | 12,630 | ") for line in lines)


def test_page_without_records_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--records", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 1
    assert "holds no record" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_study_command_trains_records_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed (extra [train])")
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 20)
    images = rng.integers(0, 100, (40, 8, 8, 3)) + 100 * labels[:, None, None, None]
    np.savez(tmp_path / "set.npz", x=images.astype(np.uint8), y=labels)
    config = write(tmp_path / "tiny.yaml", TINY)
    record = tmp_path / "records" / "tiny.json"
    argv = [str(config), "--data", str(tmp_path), "--run", str(tmp_path / "runs"), "--record", str(record)]

    assert run_tool([*argv, "--only", "plain", "--jobs", "2"]) == 0
    content = json.loads(record.read_text(encoding="utf-8"))
    assert [(r["variant"], r["seed"]) for r in content["results"]] == [("plain", 1), ("plain", 2)]
    assert content["results"][0]["images"] == 40
    assert content["machine"] == content["results"][0]["machine"]
    info = yaml.safe_load(
        (tmp_path / "runs" / "plain-1" / "model" / "model.yaml").read_text(encoding="utf-8")
    )
    assert content["machine"] == info["training"]["machine"]
    assert content["results"][0]["macs"] == content["results"][0]["input_macs"] + 2 * 4 * 4 * 4

    weights = tmp_path / "runs" / "plain-1" / "binary_final.pt"
    before = weights.stat().st_mtime_ns
    assert run_tool([*argv, "--only", "plain", "--only", "one threshold"]) == 0
    assert weights.stat().st_mtime_ns == before
    content = json.loads(record.read_text(encoding="utf-8"))
    assert [r["variant"] for r in content["results"]] == ["plain", "one threshold"] * 2
    # The twin is the other variant's, and was not trained again.
    assert content["results"][0]["float"] == content["results"][1]["float"]
    with pytest.raises(CommandError, match="has no variant 'other'"):
        run_tool([*argv, "--only", "other"])

    # Images that change between the twin and the net: the net would be measured on some that its teacher has seen.
    np.savez(tmp_path / "set.npz", x=images[::-1].astype(np.uint8), y=labels[::-1])
    runs = {run.folder: run for run in load_study(config).runs}
    with pytest.raises(ConfigError, match="longer-1: holds a run with other images"):
        tool._train(runs["longer-1"], runs["plain-1"], str(tmp_path), tmp_path / "runs", 1)


def test_a_study_takes_one_process_or_more(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--jobs 0: it takes 1 or more"):
        run_tool([str(write(tmp_path / "tiny.yaml", TINY)), "--jobs", "0"])


#: Two processes that give signs of life until they are ended.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from bnn_perception.cli.study import _pool

def live(folder):
    while True:
        (Path(folder) / str(os.getpid())).write_text(str(time.time()))
        time.sleep(0.02)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off
    with _pool(2) as (pool, _):
        for job in [pool.submit(live, sys.argv[1]) for _ in range(2)]:
            job.result()
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_study_ends_its_processes(tmp_path: Path, end: signal.Signals) -> None:
    program, signs = tmp_path / "program.py", tmp_path / "signs"
    program.write_text(PROGRAM, encoding="utf-8")
    signs.mkdir()

    def read() -> list[str]:
        return [path.read_text() for path in sorted(signs.iterdir())]

    root = Path(bnn_perception.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, str(program), str(signs)], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 600  # imports take long on a busy machine
        while len(read()) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(end)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
    before, deadline = None, time.monotonic() + 60
    while before != read():
        assert time.monotonic() < deadline, "the processes live on"
        before = read()
        time.sleep(1)


def test_warnings_about_files_take_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def warn(filename: str) -> None:
        warnings.warn_explicit("photo.png is broken", UserWarning, filename, lineno=7)

    with short_warnings("study, plain-1"):
        warn(bnn_perception.__file__)
        warn("/elsewhere.py")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "bnn_perception study, plain-1: photo.png is broken"
    assert lines[1] == "/elsewhere.py:7: UserWarning: photo.png is broken"


def run_tool(argv: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    tool.add_parser(parser.add_subparsers())
    return tool.run(parser.parse_args(["study", *argv]))
