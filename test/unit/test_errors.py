"""Texts of others in messages: whatever they hold, a message is one line that a terminal can show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bnn_perception.__main__ import main
from bnn_perception.errors import MAX_TEXT, CommandError, Error, one_line, printable
from bnn_perception.frames.images import ImageError, read_image
from bnn_perception.net.checks import ModelError

HOSTILE = "a\x1b[2J\r\nb\0\x9b31m\u202e\ud800" + "x" * 3_000_000


def test_every_message_can_be_shown() -> None:
    for kind in (Error, CommandError, ModelError, ImageError):
        text = str(kind(f"{HOSTILE}: the remedy"))
        assert text.isprintable()
        assert text.startswith("a\\x1b[2J\\r\\nb?\\x9b31m\\u202e?x")
        assert text.endswith("x: the remedy")
        assert len(text) < MAX_TEXT + 100
    once = str(CommandError(HOSTILE[:100]))
    assert printable(once) == once  # nothing is escaped twice


def test_what_libraries_say_can_be_shown() -> None:
    text = one_line(ValueError("expected\n  \x1b[31m'key'\t" + HOSTILE))
    assert text.startswith("expected \\x1b[31m'key' a")
    assert text.isprintable()
    assert len(text) < 400


def test_names_of_files_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\n.png"
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\\x1b\[2J\\n\.png: is not an image"):
        read_image(path)


def test_a_model_shows_no_more_than_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2
    import models
    import numpy as np

    from bnn_perception.net.folder import save_model

    model = models.random_model(np.random.default_rng(0))
    model = replace(model, name="m\x1b[2J", labels=tuple(f"{label}\x1b[2J" for label in model.labels))
    model.info["description"] = "sees\x1b[2J\nall"
    model.info["accuracy"] = {"binary\x1b[2J": "0.9\x1b[2J"}
    save_model(model, tmp_path / "model")
    assert main(["inspect", str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "sees\\x1b[2J all" in out
    image = tmp_path / "a\x1b[2J.png"
    image.write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    assert main(["classify", str(image), "--model", str(tmp_path / "model"), "--backend", "reference"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert captured.out.startswith(f"{tmp_path}/a\\x1b[2J.png: ")
