"""Error of the included model by how a person looks, on rendered faces: skin tone, beard, glasses, age, turn of the head.

    python -m benchmarks.fairness [RUN] [SHEET.jpg]

RUN is a value of ``run=`` (by default the included model), SHEET an image of the first face in each form to write. Each
face is rendered again with another skin, without its beard or with a full one, and without its glasses; all else about it
stays. So each difference is one of pairs. Age and yaw make another face: their groups hold different ones.
The error is that of the points over the tight box (the root of its area), since eyes draw near when a head turns.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.common import record
from flr.data.synthetic import scene, skin
from flr.data.synthetic.draws import Draws
from flr.data.synthetic.renderer import Face, Person, photograph
from flr.inference.landmarker import Landmarker
from flr.inference.loading import INCLUDED, find_model, load_file
from flr.landmarks.draw import sheet
from flr.landmarks.geometry import tight_box
from flr.landmarks.scheme import IBUG68
from flr.metrics.functional import nme, point_errors

FACES, FIRST = 1000, 2 * 10**6  # past the numbers of any training
SIZE, SHARE = 208, 0.5
TONES = [f"skin {i} of {len(skin.TONES)}" for i in range(1, len(skin.TONES) + 1)]
FORMS = ("as drawn", *TONES, "no beard", "full beard", "no glasses")
YAWS = (0, 15, 30, 45, 90)  # degrees
GLASSES = scene.paint_glasses


def paint_no_glasses(canvas: np.ndarray, cover: np.ndarray, *rest: Any) -> None:
    """Draw the glasses on copies, so that what follows is drawn with the same random numbers."""
    GLASSES(canvas.copy(), cover.copy(), *rest)


def photo(index: int, form: str) -> tuple[Person, Face]:
    """Return a person in one of `FORMS`, and their image."""
    person = Person(Draws(0, index), SIZE, SHARE)
    if form in TONES:
        person.tone = skin.TONES[TONES.index(form)]
    elif form == "no beard":
        person.beard.kind, person.beard.strength = 0, 0.0
    elif form == "full beard":
        person.beard.kind, person.beard.strength = 2, 0.8
    with mock.patch.object(scene, "paint_glasses", paint_no_glasses if form == "no glasses" else GLASSES):
        return person, photograph(person)


def errors(model: Landmarker, faces: list[Face]) -> np.ndarray:
    """Return the mean error of each face over the side of its tight box, percent."""
    points = np.array([face.points for face in faces], np.float64)
    labelled = np.ones(points.shape[:2], bool)
    found = model([face.image for face in faces], tight_box(points, labelled))
    return 100 * nme(point_errors(found, points, labelled), IBUG68.distance(points, labelled, "box"))


def row(values: np.ndarray, kind: str) -> dict[str, Any]:
    """Return the mean over faces with its 95 % interval, drawn 2,000 times with replacement."""
    random = np.random.default_rng(0)
    means = values[random.integers(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"kind": kind, "faces": len(values), "mean": float(values.mean()), "low": float(low), "high": float(high)}


def measure(model: Landmarker, out: str | None) -> dict[str, dict[str, Any]]:
    """Return, for each group, its error, or by how much it differs from the same faces as they were drawn."""
    people = [photo(FIRST + i, FORMS[0]) for i in range(FACES)]
    drawn = errors(model, [face for _, face in people])
    children = np.array([person.shape.child > 0 for person, _ in people])
    yaw = np.abs(np.degrees([person.view.yaw for person, _ in people]))
    rows = {
        "all": row(drawn, "error"),
        "adults": row(drawn[~children], "error"),
        "children": row(drawn[children], "error"),
    }
    for low, high in pairwise(YAWS):
        rows[f"yaw {low} to {high}"] = row(drawn[(yaw >= low) & (yaw < high)], "error")
    shown = [people[0][1].image]
    for form in tqdm(FORMS[1:], "Rendering", unit="form", disable=None):
        faces = [photo(FIRST + i, form)[1] for i in range(FACES)]
        shown.append(faces[0].image)
        # Who has no beard or no glasses is in no pair without them.
        changed = [not np.array_equal(face.image, one.image) for face, (_, one) in zip(faces, people, strict=True)]
        rows[form] = row((errors(model, faces) - drawn)[changed], "difference")
    if out is not None:
        cv2.imwrite(out, sheet([cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) for image in shown], 5))
    return rows


def main() -> None:
    """Print a row a group, and record them."""
    run, out = (*sys.argv[1:3], *(INCLUDED, None)[len(sys.argv[1:3]) :])
    rows = measure(load_file(find_model(str(run), "", Path())), out)
    for name, one in rows.items():
        print(
            f"{name:>12}  {one['kind']:<10} {one['mean']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]  {one['faces']} faces"
        )
    if run == INCLUDED:
        record("fairness", "python -m benchmarks.fairness", groups=rows)


if __name__ == "__main__":
    main()
