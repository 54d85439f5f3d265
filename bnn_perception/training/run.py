"""The folder of a training run: what is in it, and how it survives an interruption.

::

    config.yaml          what is trained; only the same configuration resumes the run
    records.jsonl        one line an epoch: stage, epoch, learning rate, loss, accuracies, device, seconds
    <stage>.pt           checkpoint, replaced after every epoch
    <stage>_final.pt     the chosen weights of a finished stage
    rendered.npz         rendered road signs, where the configuration asks for them
    validation.npz       the validation images, for ``evaluate``
    data.sha256          digest of the names and sizes of all images; only the same ones resume the run
    binary.onnx          the binary net as QONNX
    float.onnx           the float twin
    curves.png           drawn from the records
    lock                 held by the process that trains

Files are replaced by :func:`bnn_perception.files.replacing`: whenever the process ends, and whatever ends it, each is
either the old one or the new one.
"""

from __future__ import annotations

import fcntl
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from bnn_perception.files import naming, replacing
from bnn_perception.training.config import Config, ConfigError, load_config, to_mapping

#: Files of the run that other modules write or read.
QONNX, VALIDATION = "binary.onnx", "validation.npz"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep every other process out of the run folder, which is made where it does not exist.

    The system takes the lock back when this process ends, whatever ends it.

    Raises:
        ConfigError: where another process has the lock.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run}: another process is training in it; let that one end, or name another folder with --run"
            ) from None
        except OSError as error:  # a network file system, say
            reason = error.strerror or error
            warnings.warn(
                f"{run}: cannot be locked ({reason}); see to it that no other process trains in it",
                stacklevel=1,
            )
        for partial in run.glob(".*.partial"):  # of a process that was killed
            partial.unlink()
        yield


def open_run(run: Path, config: Config) -> None:
    """Make the run folder, or make sure that it belongs to this configuration (threads may differ).

    Raises:
        ConfigError: where it holds a run of another configuration.
    """
    path = run / "config.yaml"
    content = to_mapping(config)
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(content))  # tuples as lists
        with replacing(path) as partial:
            partial.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return
    before = to_mapping(load_config(path))
    differing = [key for key in content if key != "threads" and before[key] != content[key]]
    if differing:
        what = _difference(before, content, differing)
        raise ConfigError(f"{run}: holds a run with {what} (see {path.name}); name another folder with --run")


#: Fields that an option of ``train`` sets.
OPTIONS = {"binary.epochs": "--epochs", "float_twin.epochs": "--float-epochs", "seed": "--seed"}


def _difference(before: dict[str, Any], now: dict[str, Any], differing: list[str]) -> str:
    """The first field that differs, and both of its values where they are short."""
    # What --epochs sets in the binary stage, it only bounds in the stages before it.
    key = "binary" if "binary" in differing else differing[0]
    old, new = before[key], now[key]
    if isinstance(new, dict):
        part = next(name for name in new if old[name] != new[name])
        key, old, new = f"{key}.{part}", old[part], new[part]
    if not isinstance(new, (int, float, bool)):
        return f"another '{key}'"
    option = f" ({OPTIONS[key]})" if key in OPTIONS else ""
    return f"{key}{option} {old}, not {new}"


def is_new(run: Path) -> bool:
    """Whether nothing has been trained yet."""
    return not any(run.glob("*.pt"))


def keep_digest(run: Path, digest: str, source: str) -> None:
    """Write down which images are trained on, or make sure that they are the same.

    Other images would be split in another way, and the net be measured on some that it was trained on.

    Args:
        digest: :attr:`bnn_perception.training.data.PreparedImages.digest`.
        source: what the message calls the images.

    Raises:
        ConfigError: where the run was trained on others.
    """
    path = run / "data.sha256"
    if is_new(run) or not path.exists():
        if not is_new(run):  # by a version that kept no digest; to refuse it would throw hours away
            warnings.warn(
                f"{run}: does not say which images it was trained on; those in {source} are taken for the same",
                stacklevel=2,
            )
        with replacing(path) as partial:
            partial.write_text(digest + "\n", encoding="utf-8")
    elif path.read_text(encoding="utf-8").strip() != digest:
        raise ConfigError(
            f"{run}: holds a run with other images than there are now in {source}; name another folder with --run"
        )


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Raises:
        OSError: naming the file, where the disk is full; the checkpoint before it is then still there.
    """
    # Through memory: where PyTorch writes a file by itself, a full disk comes as a RuntimeError without a reason.
    content = io.BytesIO()
    torch.save(state, content)
    with replacing(path) as partial:
        partial.write_bytes(content.getbuffer())


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, onto the CPU; None where there is none.

    Raises:
        ConfigError: where it cannot be read.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{path}: cannot be read ({reason}); delete it to start the stage anew") from None
    return state


def append_record(run: Path, record: dict[str, Any]) -> None:
    """Add one line to the records."""
    path = run / "records.jsonl"
    with naming(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def read_records(run: Path) -> list[dict[str, Any]]:
    """The records of a run, in order; a last line that was cut short is left out."""
    path = run / "records.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def drop_records(run: Path, stage: str, epochs: int) -> None:
    """Drop the records of epochs that no checkpoint holds: the run was interrupted between the two."""
    kept = [r for r in read_records(run) if r["stage"] != stage or r["epoch"] <= epochs]
    with replacing(run / "records.jsonl") as partial:
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
