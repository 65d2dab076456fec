"""Makes the README's pictures (`make pictures`): rendered faces with their points, and effects on them."""

import sys
from pathlib import Path

import cv2
import numpy as np

from flr.data.boxes import BoxPolicy
from flr.data.crops import crop
from flr.data.synthetic.renderer import Face, render
from flr.inference.effects import Blur, Mask, Overlay, Paint, apply
from flr.landmarks.draw import draw_face, draw_picture, sheet
from flr.landmarks.geometry import tight_box, transform
from flr.landmarks.scheme import IBUG68

COUNT, COLUMNS, SIDE, SMALL = 24, 8, 150, 132
SHOWN = (13, 23)  # of series 0: faces on which effects can be seen
PALETTE = np.array(
    [
        [0, 0, 0],
        [255, 205, 170],
        [120, 70, 20],
        [200, 140, 60],
        [0, 120, 255],
        [0, 220, 255],
        [230, 30, 80],
        [90, 0, 30],
    ],
    np.uint8,
)


def cropped(face: Face, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A face as a net sees it, (side, side, 3), and its points (68, 2) there."""
    box = tight_box(face.points, np.ones(68, bool)).astype(float)
    to_crop = BoxPolicy().crop(box, side)
    return crop(face.image, to_crop, side, 3), transform(to_crop, face.points)


def faces() -> np.ndarray:
    """The sheet of the first faces of series 0."""
    shown = [cropped(render(0, i, 256, 3, 0.5), SIDE) for i in range(COUNT)]
    return sheet([draw_face(image, points, None, np.ones(68, bool), SIDE) for image, points in shown], COLUMNS)


def effects() -> np.ndarray:
    """A row a face: lines, sunglasses, lips and eyes, blur, mask."""
    painted = [Paint("lips", (190, 20, 60)), Paint("eyes", (60, 140, 255), 0.4)]
    shown = []
    for i in SHOWN:
        face = render(0, i, 2 * SIDE, 3, 0.55)
        inner = slice(SIDE // 4, SIDE // 4 + 3 * SIDE // 2)
        image, points = face.image[inner, inner], (face.points - SIDE // 4)[None].astype(np.float64)
        whole = [draw_picture(image, points, scheme=IBUG68, lines=True)]
        whole += [apply(chosen, image, points, IBUG68) for chosen in ([Overlay()], painted, [Blur()])]
        whole.append(PALETTE[apply([Mask()], image, points, IBUG68)])
        shown += [cv2.resize(picture, (SMALL, SMALL), interpolation=cv2.INTER_AREA) for picture in whole]
    return sheet(shown, 5)


def main(folder: Path) -> None:
    """Writes them into a folder."""
    for name, picture in (("faces", faces()), ("effects", effects())):
        cv2.imwrite(str(folder / f"{name}.png"), picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
