"""Writes scikit-learn's handwritten digits as a folder of images, to try training on without a download.

``python -m bnn_perception.training.digits FOLDER`` makes ``FOLDER/train`` and ``FOLDER/test``, each with a folder for
each digit. The 1,797 images are 8x8 grey (UCI "Optical Recognition of Handwritten Digits"); they are enlarged fourfold.
The last fifth is the test part.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def write_digits(folder: Path) -> tuple[int, int]:
    """Write the images; returns how many there are to train and to test."""
    import cv2
    from sklearn.datasets import load_digits

    digits = load_digits()
    first_test = len(digits.target) * 4 // 5
    for index, (image, label) in enumerate(zip(digits.images, digits.target)):
        path = folder / ("train" if index < first_test else "test") / str(label) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.rint(image * (255 / 16)).astype(np.uint8)  # 0 to 16 in the source
        large = cv2.resize(grey, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        path.write_bytes(cv2.imencode(".png", large)[1].tobytes())  # cv2.imwrite says nothing of a full disk
    return first_test, len(digits.target) - first_test


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bnn_perception.training.digits FOLDER")
    try:
        train, test = write_digits(Path(sys.argv[1]))
    except ImportError as error:
        sys.exit(
            f"bnn_perception.training.digits: {error.name} is not installed; pip install '.[train]' brings it"
        )
    except OSError as error:
        sys.exit(f"bnn_perception.training.digits: {error.filename or sys.argv[1]}: {error.strerror}")
    print(f"{train} images in {sys.argv[1]}/train, {test} in {sys.argv[1]}/test")
