"""Brings a detector's boxes and the image that they were found in together again: by their stamps."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

#: Messages of each kind that wait for their partners at most, and bytes of them: three seconds of a 30 Hz camera of
#: 640x480, one of 1280x720.
MAX_WAITING, MAX_BYTES = 90, 90 << 20

#: A stamp so far behind the newest (nanoseconds) is that of a source that has started again.
RESTART = 1_000_000_000


@dataclass
class Unpaired:
    """Messages that found no partner.

    Attributes:
        images: without boxes: the detector skips frames, or its answers come too late.
        detections: without image.
        distance: nanoseconds between the newest such detections and the nearest image that waited; None where none did.
    """

    images: int = 0
    detections: int = 0
    distance: int | None = None


class Waiting:
    """Messages in the order of their stamps; the oldest make room for new ones."""

    def __init__(self) -> None:
        self._stamps: list[int] = []
        self._items: list[tuple[Any, int]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def newest(self) -> int | None:
        """Stamp of the newest."""
        return self._stamps[-1] if self._stamps else None

    def add(self, stamp: int, item: Any, size: int) -> int:
        """Keep a message; returns how many older ones made room for it."""
        place = bisect_left(self._stamps, stamp)
        self._stamps.insert(place, stamp)
        self._items.insert(place, (item, size))
        self._bytes += size
        dropped = 0
        while len(self._stamps) > 1 and (len(self._stamps) > MAX_WAITING or self._bytes > MAX_BYTES):
            self._drop_oldest()
            dropped += 1
        return dropped

    def nearest(self, stamp: int) -> int | None:
        """The stamp that is nearest to another one; of two as near the older."""
        place = bisect_left(self._stamps, stamp)
        around = self._stamps[max(0, place - 1) : place + 1]
        return min(around, key=lambda other: abs(other - stamp), default=None)

    def take(self, stamp: int) -> tuple[Any, int]:
        """The message with this stamp, and how many older ones have been given up over it."""
        older = self.give_up(stamp)
        return self._drop_oldest(), older

    def give_up(self, before: int | None = None) -> int:
        """Give up the messages whose stamps lie before this one, or all; returns how many they were."""
        count = len(self._stamps) if before is None else bisect_left(self._stamps, before)
        for _ in range(count):
            self._drop_oldest()
        return count

    def _drop_oldest(self) -> Any:
        del self._stamps[0]
        item, size = self._items.pop(0)
        self._bytes -= size
        return item


class Pairing:
    """The images and detections of one camera. Used in one thread.

    Both carry the stamp of the moment in which the image was taken, but a detector that makes a header of its own may
    round it. Images wait as they came, and are decoded only when their boxes are there.

    Args:
        unpaired: is told what found no partner.
    """

    def __init__(self, unpaired: Unpaired) -> None:
        self.unpaired = unpaired
        self._images = Waiting()
        self._detections = Waiting()

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._images) + len(self._detections)

    def image(self, stamp: int, message: Any, size: int, tolerance: int) -> tuple[Any, Any] | None:
        """An image has come.

        Args:
            stamp: of its header, nanoseconds.
            message: the image.
            size: bytes of it.
            tolerance: nanoseconds by which the stamps of a pair may differ.

        Returns:
            The image and the detections that are a pair now; None where its partner has not come.
        """
        self._notice_restart(self._images, stamp)
        waits = self._detections.nearest(stamp)
        if waits is None or abs(waits - stamp) > tolerance:
            self.unpaired.images += self._images.add(stamp, message, size)
            return None
        detections, older = self._detections.take(waits)
        self.unpaired.detections += older
        self.unpaired.images += self._images.give_up(stamp)
        return message, detections

    def detections(self, stamp: int, message: Any, size: int, tolerance: int) -> tuple[Any, Any] | None:
        """Detections have come; arguments and what is returned as those of :meth:`image`."""
        self._notice_restart(self._detections, stamp)
        nearest = self._images.nearest(stamp)
        if nearest is None or abs(nearest - stamp) > tolerance:
            self.unpaired.distance = None if nearest is None else abs(nearest - stamp)
            self.unpaired.detections += self._detections.add(stamp, message, size)
            return None
        # Older messages will not be asked for any more: both kinds come in the order of their stamps.
        image, older = self._images.take(nearest)
        self.unpaired.images += older
        self.unpaired.detections += self._detections.give_up(stamp)
        return image, message

    def _notice_restart(self, waiting: Waiting, stamp: int) -> None:
        """Give up what waits where a stamp lies far behind another of its kind."""
        if waiting.newest is not None and stamp < waiting.newest - RESTART:
            self.clear()

    def clear(self) -> None:
        """Give up all that waits: nobody takes pairs any more, or the source has started again."""
        self.unpaired.images += self._images.give_up()
        self.unpaired.detections += self._detections.give_up()
