"""Makes the README's picture: rendered faces with their points (`make pictures`)."""

import sys
from pathlib import Path

import cv2
import numpy as np

from flr.data.boxes import BoxPolicy
from flr.data.crops import crop
from flr.data.synthetic.renderer import render
from flr.landmarks.draw import draw_face, sheet
from flr.landmarks.geometry import tight_box, transform

COUNT, COLUMNS, SIDE = 24, 8, 150


def main(path: Path) -> None:
    """Writes the sheet of the first faces of series 0, as a net sees them."""
    faces = []
    for i in range(COUNT):
        face = render(0, i, 256, 3, 0.5)
        box = tight_box(face.points, np.ones(68, bool)).astype(float)
        to_crop = BoxPolicy().crop(box, SIDE)
        image = crop(face.image, to_crop, SIDE, 3)
        faces.append(draw_face(image, transform(to_crop, face.points), None, np.ones(68, bool), SIDE))
    cv2.imwrite(str(path), sheet(faces, COLUMNS)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
