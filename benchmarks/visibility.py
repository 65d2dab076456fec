"""Average precision of the hidden points: rendered faces, and 300-W's helen test photos with pasted occluders.

    python -m benchmarks.visibility [RUN] [SHEET.jpg]

RUN is a value of ``run=`` (by default the included model), SHEET an image of the first photos to write. An occluder is a
patch of another photo's background in the shape of an ellipse; a point is hidden where the ellipse covers it. Points that
the photos themselves hide are labelled as visible, since 300-W does not mark them, so the figure is a lower bound.
"""

import os
import sys
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import record
from flr.data.readers import ibug
from flr.data.synthetic.renderer import render
from flr.errors import UserError
from flr.inference.faces import VISIBLE
from flr.inference.landmarker import Landmarker
from flr.inference.loading import INCLUDED, find_model, load_file
from flr.landmarks.draw import draw_landmarks, sheet
from flr.landmarks.geometry import tight_box
from flr.metrics.functional import hidden_precision

RENDERED = 500
FIRST = 10**6  # of the rendered faces' numbers, past those of any training


def paste(image: np.ndarray, points: np.ndarray, patch: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Paste an elliptic occluder over part of a face (K, 2) in place, and return (K,) bool which points it covers."""
    box = tight_box(points[None], np.ones((1, len(points)), bool))[0]
    size = box[2:] - box[:2]
    centre = box[:2] + random.uniform(0.1, 0.9, 2) * size
    axes, angle = random.uniform(0.12, 0.35, 2) * size.mean(), random.uniform(0, 180)
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.ellipse(mask, (centre.tolist(), (2 * axes).tolist(), angle), 255, -1, cv2.LINE_AA)
    image[mask > 127] = cv2.resize(patch, image.shape[1::-1])[mask > 127]
    turn = np.radians(angle)
    x, y = (points - centre).T
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return (along / axes[0]) ** 2 + (across / axes[1]) ** 2 < 1


def rendered(model: Landmarker) -> float:
    """Return the average precision on rendered faces."""
    faces = [render(0, FIRST + i, 208, 1, 0.5) for i in range(RENDERED)]
    points = np.array([face.points for face in faces], np.float64)
    labelled = np.ones(points.shape[:2], bool)
    visible = model.find([face.image for face in faces], tight_box(points, labelled))[2]
    return hidden_precision(visible, ~np.array([face.visible for face in faces]), labelled)


def pasted(model: Landmarker, root: Path, out: str | None) -> tuple[float, int]:
    """Return the average precision on photos with pasted occluders, and the number of photos; write a sheet of 24 of them."""
    table, random = ibug.read(root), np.random.default_rng(0)
    rows = np.flatnonzero(table.split == "test")
    found, hidden, shown = [], [], []
    for i, row in enumerate(rows):
        image, points = table.load(int(row)).copy(), table.points[row].astype(np.float64)
        other = table.load(int(rows[i - 1]))
        patch = other[: max(8, len(other) // 8)]  # the top of a photo is background more often than not
        hidden.append(paste(image, points, patch, random))
        box = tight_box(points[None], np.ones((1, len(points)), bool))
        predicted, _, visible, _ = model.find([image], box)
        found.append(visible[0])
        if len(shown) < 24:
            picture = draw_landmarks(image, predicted, hidden=visible < VISIBLE)
            left, top = np.maximum(box[0, :2] - 0.25 * np.ptp(points, axis=0), 0).astype(int)
            right, bottom = (box[0, 2:] + 0.25 * np.ptp(points, axis=0)).astype(int)
            shown.append(cv2.resize(picture[top:bottom, left:right], (240, 240), interpolation=cv2.INTER_AREA))
    if out is not None:
        cv2.imwrite(out, sheet(shown, 6)[..., ::-1])
    return hidden_precision(np.array(found), np.array(hidden), np.ones((len(rows), table.points.shape[1]), bool)), len(
        rows
    )


def main() -> None:
    """Print the average precisions and the share of hidden points."""
    run, out = (*sys.argv[1:3], *(INCLUDED, None)[len(sys.argv[1:3]) :])
    model = load_file(find_model(str(run), "", Path()))
    figures = {"rendered": rendered(model)}
    root = Path(os.environ.get("FLR_DATA", "data")) / "300w"
    try:
        figures["pasted"], photos = pasted(model, root, out)
        print(f"{photos} photos with pasted occluders: average precision {figures['pasted']:.3f}")
    except UserError as error:
        print(f"note: {error}", file=sys.stderr)
    print(f"{RENDERED} rendered faces: average precision {figures['rendered']:.3f}")
    record("visibility", "python -m benchmarks.visibility", **figures)


if __name__ == "__main__":
    main()
