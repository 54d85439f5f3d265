"""The results of the GPU benchmark as tables."""

from __future__ import annotations

from typing import Any

from bnn_perception.cli.markdown import table

BINARY = "cuda_binary"
#: What the paper compares with: a float net whose kernels are launched one by one.
PAPERS_BASELINE = ("cuda_float fp32", "gpu_without_graph")
#: The kernel on tensor cores, and the peak that goes with its instruction.
TENSOR_KERNEL, TENSOR_PEAK = "bconv2d_b1mma", "b1 mma m16n8k256 and"


def markdown(results: dict[str, Any]) -> str:
    """All tables, with what they were measured on and what failed."""
    lines = _heading(results)
    if results.get("tests"):
        lines += ["", f"Tests on this GPU: {results['tests']['summary'].strip('= ')}."]
    lines += _peaks(results)
    lines += _convolutions(results)
    for net, content in results["nets"].items():
        entries = {name: entry for name, entry in content["entries"].items() if entry}
        lines += ["", f"## {net}", "", f"Weights: {content['origin']}."]
        checked = entries.get("correctness")
        if checked:
            lines.append(
                f"{BINARY} equals the reference in {checked['words']} words of {checked['frames']} frames."
            )
        else:
            lines.append(f"**{BINARY} was not found equal to the reference in this run.**")
        lines += _papers_claim(entries)
        lines += _comparison(entries)
        for name, entry in entries.items():
            lines += _kernels(name, entry, results.get("peaks"))
    lines += _parts(results)
    return "\n".join(lines) + "\n"


def _heading(results: dict[str, Any]) -> list[str]:
    environment = results.get("environment") or {}
    gpu = environment.get("gpu", "unknown GPU")
    stated = {
        "compute capability": environment.get("sm"),
        "SMs": environment.get("multiprocessors"),
        "driver": environment.get("driver"),
        "CUDA of the driver": environment.get("driver_cuda"),
        "CUDA of CuPy": environment.get("runtime_cuda"),
        "CuPy": environment.get("cupy"),
        "PyTorch": environment.get("torch"),
        "NumPy": environment.get("numpy"),
        "Python": environment.get("python"),
    }
    facts = ", ".join(f"{name} {value}" for name, value in stated.items() if value is not None)
    return [
        f"# {gpu}",
        "",
        f"`python -m benchmark.gpu.benchmark`, {results['date']}, commit {results['commit'] or 'unknown'}.",
        f"{facts}.",
        "",
        "Times are microseconds for a batch, median and 99th percentile. *GPU*: uploaded frames to logits, by CUDA",
        "events around rounds of different batches. *Call*: frames in the host's memory to logits there, by the clock.",
        "Frames have the net's own size. Entries run in a CUDA graph unless they say otherwise.",
    ]


def _peaks(results: dict[str, Any]) -> list[str]:
    peaks = results.get("peaks")
    if not peaks:
        return []
    rows = [
        ("POPC", f"{peaks['popc'] / 1e12:.3f} T/s", f"{2 * 32 * peaks['popc'] / 1e12:.1f}"),
        ("LOP3", f"{peaks['lop3'] / 1e12:.3f} T/s", ""),
        ("copy, read and written", f"{peaks['copy'] / 1e9:.0f} GB/s", ""),
        *((name, "", f"{2 * rate / 1e12:.1f}") for name, rate in peaks["binary_mma"].items()),
    ]
    return ["", "## Peaks, measured in the same run", *table(("", "rate", "binary TOPS"), rows)]


def _convolutions(results: dict[str, Any]) -> list[str]:
    measured = (results.get("convolutions") or {}).get("convolutions")
    if not measured:
        return []
    rows = [
        (
            f"{item['layer']}, {item['frames']} frames",
            item["kernel"],
            f"{item['microseconds']:.2f}",
            f"{2 * item['binary_macs'] / item['microseconds'] / 1e6:.1f}",
            _binary_share(item, results.get("peaks")),
            " ".join(f"{name} {value}" for name, value in item["tile"].items()),
        )
        for item in measured
    ]
    return [
        "",
        "## Binary convolutions, the fastest of the tiles that were tried",
        *table(("", "kernel", "µs", "binary TOPS", "of binary peak", "tile"), rows),
    ]


def _binary_share(kernel: dict[str, Any], peaks: dict[str, Any] | None) -> str:
    """Share of the peak of the instruction that counts, empty for a kernel without binary products."""
    if not peaks or not kernel["binary_macs"]:
        return ""
    tensor = kernel["kernel"] == TENSOR_KERNEL
    peak = peaks["binary_mma"].get(TENSOR_PEAK) if tensor else 32 * peaks["popc"]
    return f"{kernel['binary_macs'] / kernel['microseconds'] * 1e6 / peak:.1%}" if peak else ""


def _time(timing: dict[str, Any] | None) -> str:
    return f"{timing['median']:.1f} / {timing['p99']:.1f}" if timing else "–"


def _papers_claim(entries: dict[str, Any]) -> list[str]:
    """How the claim of the paper comes out: binary against float at batch 1."""
    name, what = PAPERS_BASELINE
    baseline = (entries.get(name) or {}).get("batches", {}).get("1", {}).get(what)
    lines = []
    for binary in (BINARY, f"{BINARY} tuned"):
        measured = (entries.get(binary) or {}).get("batches", {}).get("1")
        if baseline and measured:
            ratio = baseline["median"] / measured["gpu"]["median"]
            lines.append(
                f"At batch 1, {name} launched kernel by kernel takes {ratio:.1f} times as long as {binary} in a graph."
            )
    if lines:
        lines.append("The paper (arXiv 1808.00209) states up to 7.4 times for its own pair.")
    return lines


def _comparison(entries: dict[str, Any]) -> list[str]:
    """One table a batch size: every entry with the ratio of its GPU time to the binary net's."""
    lines: list[str] = []
    batches = sorted({int(batch) for entry in entries.values() for batch in entry.get("batches", ())})
    for batch in batches:
        at = {name: entry["batches"].get(str(batch)) for name, entry in entries.items() if "batches" in entry}
        binary = at.get(BINARY)
        rows = []
        for name, entry in at.items():
            if entry is None:
                continue
            variants = [(name, entry["gpu"], entry["call"])]
            if "gpu_without_graph" in entry:
                variants.append(
                    (f"{name}, no graph", entry["gpu_without_graph"], entry["call_without_graph"])
                )
            for title, gpu, call in variants:
                ratios = ["–", "–"]
                if binary:
                    ratios = [
                        f"{gpu['median'] / binary['gpu']['median']:.2f}",
                        f"{call['median'] / binary['call']['median']:.2f}",
                    ]
                rows.append((title, _time(gpu), ratios[0], _time(call), ratios[1]))
        lines += ["", f"### Batch {batch}"]
        lines += table(("", "GPU", "× binary", "call", "× binary"), rows)
    return lines


def _kernels(name: str, entry: dict[str, Any], peaks: dict[str, Any] | None) -> list[str]:
    lines: list[str] = []
    for measured in entry.get("batches", {}).values():
        if "kernels" not in measured:
            continue
        rows = [_kernel_row(kernel, peaks) for kernel in measured["kernels"]]
        lines += ["", f"### {name}, {measured['kernel_frames']} frames, kernel by kernel"]
        lines += table(("", "µs", "million MACs", "kB", "of binary peak", "of copy peak"), rows)
    if lines:
        lines += [
            "",
            "Each kernel repeated by itself, its data in the caches as far as it fits; bytes count every input, weight",
            "and output once. The binary peak is that of one POPC for 32 binary multiply-accumulates, which carry-save",
            f"adders may pass, or for {TENSOR_KERNEL} that of {TENSOR_PEAK}.",
        ]
    return lines


def _kernel_row(kernel: dict[str, Any], peaks: dict[str, Any] | None) -> tuple[str, ...]:
    seconds = kernel["microseconds"] / 1e6
    macs = kernel["binary_macs"] or kernel["byte_macs"] or kernel["float_macs"]
    row = (
        f"{kernel['layer']} {kernel['kernel']}",
        f"{kernel['microseconds']:.2f}",
        f"{macs / 1e6:.2f}" if macs else "",
        f"{kernel['bytes'] / 1e3:.1f}",
    )
    if not peaks:
        return (*row, "", "")
    return (*row, _binary_share(kernel, peaks), f"{kernel['bytes'] / seconds / peaks['copy']:.1%}")


def _parts(results: dict[str, Any]) -> list[str]:
    lines = ["", "## Parts of this run"]
    lines += table(
        ("", "result", "s"),
        [
            (item["part"], "ok" if item["ok"] else f"**failed**: {item['error']}", f"{item['seconds']}")
            for item in results["parts"]
        ],
    )
    return lines + [f"\nLeft out: {reason}." for reason in results["left_out"]]
