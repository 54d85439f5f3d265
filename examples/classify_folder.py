"""Label every image of a folder: python examples/classify_folder.py FOLDER [MODEL]"""

from __future__ import annotations

import sys

import bnn_perception


def main(folder: str, model: str = "road_signs") -> None:
    with bnn_perception.load_classifier(model) as classifier:
        for path in bnn_perception.find_images(folder):
            try:
                image = bnn_perception.read_image(path)
            except bnn_perception.ImageError as error:
                print(error, file=sys.stderr)
                continue
            (best,) = classifier.predict(image)
            print(f"{path.name}: {best.label} ({best.score:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
