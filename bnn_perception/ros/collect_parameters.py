"""Every parameter of the collect node; those about images are the classifier's."""

from __future__ import annotations

from dataclasses import dataclass

from bnn_perception.collection import (
    DIFFERENCE,
    MAX_BYTES,
    MAX_IMAGES,
    CollectionError,
    Limits,
    check_label,
)
from bnn_perception.ros.parameters import InputSettings, ParameterError, declared, parameter


@dataclass(frozen=True)
class CollectSettings(InputSettings):
    """Every parameter of the collect node."""

    region: tuple[float, float, float, float] = parameter(
        [0.0, 0.0, 1.0, 1.0], "part of the image that is saved: x, y, width, height as fractions of it"
    )
    detection_topics: tuple[str, ...] = parameter(
        [""],
        "topics of a detector's boxes (vision_msgs/Detection2DArray), one for each of image_topics; each box is saved "
        "instead of the region; empty takes none",
        read_only=True,
    )
    max_rate: float = parameter(
        0.0, "most frames of a camera that are looked at a second; 0 looks at all", bounds=(0.0, 1000.0)
    )
    label: str = parameter("", "what the cameras show now, the class of what is saved; empty saves nothing")
    every: int = parameter(10, "every so many frames of a camera one is looked at", bounds=(1, 1_000_000))
    difference: float = parameter(
        DIFFERENCE,
        "what differs by less from a recent image of the label is left out, 255 is black against white; 0 saves all",
        bounds=(0.0, 255.0),
    )
    folder: str = parameter(
        "collected", "gets a folder of images for each label; train --data takes it", read_only=True
    )
    # Whoever reaches the node could fill the disk if they were not.
    max_images: int = parameter(
        MAX_IMAGES,
        "that the folder holds at most; more are not saved",
        bounds=(1, 100_000_000),
        read_only=True,
    )
    max_bytes: int = parameter(
        MAX_BYTES,
        "that the images of the folder take at most; more are not saved",
        bounds=(1, 2**62),
        read_only=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.folder:
            raise ParameterError("folder is empty; it must be a folder that images can be saved in")
        if self.label:
            try:
                check_label(self.label)
            except CollectionError as error:
                raise ParameterError(str(error)) from None

    @property
    def limits(self) -> Limits:
        """What is kept of the images that come."""
        return Limits(self.difference, self.max_images, self.max_bytes)


PARAMETERS = declared(CollectSettings)
