"""Average precision of the hidden points: rendered faces, and 300-W's helen test photos with pasted occluders.

    python -m benchmarks.visibility [RUN] [SHEET.jpg]

RUN is a value of ``run=`` (by default the included model), SHEET an image of the first photos to write. An occluder is a
patch of another photo's background in the shape of an ellipse; a point is hidden where the ellipse covers it.

300-W does not mark points that hair, hands or hats hide, so over all photos a point that is hidden in the photo and found
counts as a false alarm. `helen_all_visible.txt` names the photos, of the first 240, that show all 68 points; they were
chosen by eye, from the photos with the labelled points and without any prediction. On rendered faces the truth is exact.
"""

import os
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import record
from flr.data.readers import ibug
from flr.data.synthetic.renderer import render
from flr.data.table import FaceTable
from flr.errors import UserError
from flr.inference.faces import VISIBLE
from flr.inference.landmarker import Landmarker
from flr.inference.loading import INCLUDED, find_model, load_file
from flr.landmarks.draw import draw_landmarks, sheet
from flr.landmarks.geometry import tight_box
from flr.metrics.functional import hidden_precision

RENDERED = 500
FIRST = 10**6  # of the rendered faces' numbers, past those of any training
ALL_VISIBLE = Path(__file__).with_name("helen_all_visible.txt")
SHOWN = {
    "pasted": "photos with pasted occluders",
    "pasted_all_visible": "the same, photos that show all points",
    "rendered": "rendered faces",
    "rendered_pasted": "rendered faces with pasted occluders",
}


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


def average_precision(visible: list[np.ndarray], hidden: list[np.ndarray]) -> float:
    """Return the average precision over faces, of which all points are labelled."""
    truth = np.array(hidden)
    return hidden_precision(np.array(visible), truth, np.ones(truth.shape, bool))


def background(image: np.ndarray) -> np.ndarray:
    """Return the top of a photo, which is background more often than not."""
    return image[: max(8, len(image) // 8)]


def rendered(model: Landmarker, patches: list[np.ndarray]) -> dict[str, float]:
    """Return the average precision on rendered faces without and with pasted occluders (N, M, 3)."""
    random, found, truth = np.random.default_rng(0), defaultdict(list), defaultdict(list)
    for i in range(RENDERED):
        face = render(0, FIRST + i, 208, 1, 0.5)
        box = tight_box(face.points[None].astype(np.float64), np.ones((1, 68), bool))
        image, covered = face.image.copy(), np.zeros(68, bool)
        found["rendered"].append(model.find([image], box)[2][0])
        truth["rendered"].append(~face.visible)
        if patches:
            covered = paste(image, face.points, cv2.cvtColor(patches[i % len(patches)], cv2.COLOR_RGB2GRAY), random)
            found["rendered_pasted"].append(model.find([image], box)[2][0])
            truth["rendered_pasted"].append(~face.visible | covered)
    return {name: average_precision(found[name], truth[name]) for name in found}


def pasted(model: Landmarker, table: FaceTable, out: str | None) -> dict[str, float]:
    """Return the average precision on photos with pasted occluders, and write a sheet of 24 of them."""
    rows, random = np.flatnonzero(table.split == "test"), np.random.default_rng(0)
    found, hidden, shown = [], [], []
    for i, row in enumerate(rows):
        image, points = table.load(int(row)).copy(), table.points[row].astype(np.float64)
        hidden.append(paste(image, points, background(table.load(int(rows[i - 1]))), random))
        box = tight_box(points[None], np.ones((1, len(points)), bool))
        predicted, _, visible, _ = model.find([image], box)
        found.append(visible[0])
        if out is not None and len(shown) < 24:
            picture = draw_landmarks(image, predicted, hidden=visible < VISIBLE)
            left, top = np.maximum(box[0, :2] - 0.25 * np.ptp(points, axis=0), 0).astype(int)
            right, bottom = (box[0, 2:] + 0.25 * np.ptp(points, axis=0)).astype(int)
            shown.append(cv2.resize(picture[top:bottom, left:right], (240, 240), interpolation=cv2.INTER_AREA))
    if out is not None:
        cv2.imwrite(out, sheet(shown, 6)[..., ::-1])
    names = ALL_VISIBLE.read_text().split()
    kept = [i for i, row in enumerate(rows) if table.name[row] in names]
    return {
        "pasted": average_precision(found, hidden),
        "pasted_all_visible": average_precision([found[i] for i in kept], [hidden[i] for i in kept]),
    }


def main() -> None:
    """Print and record the average precisions."""
    run, out = (*sys.argv[1:3], *(INCLUDED, None)[len(sys.argv[1:3]) :])
    model = load_file(find_model(str(run), "", Path()))
    figures, patches = {}, []
    try:
        table = ibug.read(Path(os.environ.get("FLR_DATA", "data")) / "300w")
        patches = [background(table.load(int(row))) for row in np.flatnonzero(table.split == "test")]
        figures = pasted(model, table, out)
    except UserError as error:
        print(f"note: {error}", file=sys.stderr)
    figures |= rendered(model, patches)
    for name, value in figures.items():
        print(f"{SHOWN[name]}: average precision {value:.3f}")
    if run == INCLUDED:
        record("visibility", "python -m benchmarks.visibility", **figures)


if __name__ == "__main__":
    main()
