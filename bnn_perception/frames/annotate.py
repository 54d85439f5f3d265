"""Draws on a copy of a frame what was found in it: labels, scores, the part that was looked at.

OpenCV draws, imported when the first picture is made. Its letters are those of ASCII, see :func:`ascii_text`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnn_perception.errors import printable
from bnn_perception.frames.frame import Frame

#: Pixels of the shorter side from which on text is legible; a smaller frame is enlarged by a whole number.
SMALLEST = 240

#: Height of a capital letter as a part of the shorter side, and its bounds in pixels.
LETTER, LETTER_BOUNDS = 0.03, (10, 60)

#: Height of a capital letter of OpenCV's plain font at scale 1, pixels.
FONT_HEIGHT = 21

#: Colours as RGB: of scores 0, 0.5 and 1, of what has no label, of text, and of what stands below notes.
COLOURS = ((235, 70, 60), (245, 200, 50), (70, 205, 95))
GREY, BLACK, WHITE = (170, 170, 170), (15, 15, 15), (240, 240, 240)

#: Letters without a decomposition that have a common way to be written in ASCII.
SPELLINGS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "–": "-", "—": "-", "’": "'"}
)

#: What stands in place of a label where there is none.
NO_LABEL = "no label"

Pixels = NDArray[np.uint8]


class Mark(NamedTuple):
    """What was found in a part of a frame.

    Attributes:
        region: (x, y, width, height) as fractions of the frame.
        labels: with their scores, best first; none where no score was high enough.
    """

    region: tuple[float, float, float, float]
    labels: Sequence[tuple[str, float]]


def annotate(frame: Frame, marks: Sequence[Mark], note: str = "") -> Pixels:
    """A copy of the frame with marks drawn on it: a rectangle around each region, its labels on a tag.

    Args:
        frame: is left as it is.
        marks: what is in it.
        note: a line that stands in the lower left corner.

    Returns:
        (height, width, 3) uint8 RGB, of the frame's size or, where its shorter side is below :data:`SMALLEST`, a whole
        number of times as large.

    Raises:
        ImportError: where OpenCV is not installed.
    """
    picture = _copy(frame)
    pen = _Pen(picture)
    # The surest lie on top, and tags above all rectangles.
    ascending = sorted(marks, key=_best_score)
    for mark in ascending:
        pen.draw_rectangle(mark)
    for mark in ascending:
        pen.write_labels(mark)
    if note:
        pen.write_note(note)
    return picture


def ascii_text(text: str) -> str:
    """A text in letters that OpenCV has: accents are taken off, and what is no ASCII letter then is escaped."""
    decomposed = unicodedata.normalize("NFKD", printable(text).translate(SPELLINGS))
    plain = "".join(char for char in decomposed if not unicodedata.combining(char))
    return plain.encode("ascii", "backslashreplace").decode("ascii")


def colour_of(score: float) -> tuple[int, int, int]:
    """From red by yellow to green, as RGB."""
    score = min(max(score, 0.0), 1.0) if score == score else 0.0
    low, high = (COLOURS[0], COLOURS[1]) if score < 0.5 else (COLOURS[1], COLOURS[2])
    part = (score % 0.5) * 2 if score < 1 else 1.0
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high))
    return red, green, blue


def _colour(mark: Mark) -> tuple[int, int, int]:
    return colour_of(mark.labels[0][1]) if mark.labels else GREY


def _best_score(mark: Mark) -> float:
    return mark.labels[0][1] if mark.labels else -1.0


def _copy(frame: Frame) -> Pixels:
    """The pixels as RGB in memory of their own."""
    import cv2

    codes = {"bgr8": "BGR2RGB", "rgba8": "RGBA2RGB", "bgra8": "BGRA2RGB", "mono8": "GRAY2RGB"}
    if frame.encoding in codes:
        picture = np.asarray(
            cv2.cvtColor(frame.pixels, getattr(cv2, f"COLOR_{codes[frame.encoding]}")), np.uint8
        )
    else:
        picture = frame.pixels.copy()
    factor = -(-SMALLEST // min(picture.shape[:2]))
    return picture if factor == 1 else picture.repeat(factor, axis=0).repeat(factor, axis=1)


class _Pen:
    """Draws into a picture, with lines and letters that suit its size."""

    def __init__(self, picture: Pixels) -> None:
        self._picture = picture
        self._height, self._width = picture.shape[:2]
        letter = min(max(LETTER * min(self._height, self._width), LETTER_BOUNDS[0]), LETTER_BOUNDS[1])
        self._scale = letter / FONT_HEIGHT
        self._weight = max(1, round(letter / 9))
        self._line = max(2, round(letter / 7))
        self._letter = round(letter)
        self._pad = max(2, round(letter * 0.45))

    def draw_rectangle(self, mark: Mark) -> None:
        """Draw a line around a region, inside the picture."""
        import cv2

        left, top, right, bottom = self._corners(mark.region)
        inset = self._line // 2 + 1
        first = max(left, inset), max(top, inset)
        last = min(right, self._width - 1 - inset), min(bottom, self._height - 1 - inset)
        cv2.rectangle(self._picture, first, last, BLACK, self._line + 2)
        cv2.rectangle(self._picture, first, last, _colour(mark), self._line)

    def write_labels(self, mark: Mark) -> None:
        """Write the labels of a region on a tag above it, or inside where there is no room."""
        lines = [(label, f" {score:.2f}") for label, score in mark.labels] or [(NO_LABEL, "")]
        left, top, _, _ = self._corners(mark.region)
        height = self._line_height * len(lines)
        self._write(lines, left, top - height if top >= height else top, _colour(mark), BLACK)

    def _corners(self, region: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """The first and the last pixel of a region: x, y, x, y."""
        x, y, width, height = region
        left, top = round(x * self._width), round(y * self._height)
        right, bottom = round((x + width) * self._width), round((y + height) * self._height)
        return left, top, max(left, right - 1), max(top, bottom - 1)

    def write_note(self, note: str) -> None:
        """Write a line into the lower left corner, light on dark."""
        self._write([(note, "")], 0, self._height - self._line_height, BLACK, WHITE)

    @property
    def _line_height(self) -> int:
        return self._letter + 2 * self._pad

    def _write(
        self, lines: Sequence[tuple[str, str]], left: int, top: int, below: tuple[int, ...], colour: Any
    ) -> None:
        """Write lines on a filled tag that is moved to where it lies in the picture.

        Args:
            lines: what may be cut, and what follows it and stays.
            left, top: of the tag.
            below, colour: of the tag and of the letters.
        """
        import cv2

        texts = [self._fit(text, rest) for text, rest in lines]
        width = max(self._length(text) for text in texts) + 2 * self._pad
        left = max(0, min(left, self._width - width))
        height = self._line_height * len(texts)
        top = max(0, min(top, self._height - height))
        cv2.rectangle(self._picture, (left, top), (left + width - 1, top + height - 1), below, cv2.FILLED)
        for number, text in enumerate(texts):
            base = top + number * self._line_height + self._pad + self._letter
            place = (left + self._pad, base)
            font = cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(self._picture, text, place, font, self._scale, colour, self._weight, cv2.LINE_AA)

    def _fit(self, text: str, rest: str) -> str:
        """The text in ASCII and what follows it, the text cut where both are wider than the picture."""
        text, cut = ascii_text(text), ""
        room = self._width - 2 * self._pad
        while text and self._length(text + cut + rest) > room:
            text, cut = text[:-1], ".."
        return text + cut + rest

    def _length(self, text: str) -> int:
        import cv2

        (length, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, self._scale, self._weight)
        return int(length)
