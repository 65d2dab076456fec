"""Faces found, false alarms and time of detectors of faces, on photos of 300-W and on the group photos among dlib's examples.

    python -m benchmarks.detectors [part=test] [root=DIR] [sheet=DIR] [sizes=16,24,48] [DETECTOR ...]

A DETECTOR is a choice of `detector=` with its keys, as `builtin`, `builtin,work=640` or `yunet,model=FILE`; by default builtin and haar.
`root` is the folder of the datasets, FLR_DATA by default. `part` is test (helen, 330 photos, which choose nothing), train (the training photos) or groups. A face is found where its centre lies in
the box and their sizes differ by less than a factor 1.8; a false alarm overlaps no labelled face, though it may be a face without label:
`sheet` writes the false alarms as images to look at. Time is that of one thread at 640 x 480. `sizes` shrinks each photo until its face has
that many pixels and lays it on a grey image of 640 x 480.
"""

import os
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from benchmarks.common import record
from flr.config.compose import CONF
from flr.config.instantiate import build
from flr.data.boxes import OFFSETS, BoxPolicy
from flr.data.crops import CropSettings
from flr.data.readers import ibug
from flr.data.synthetic.draws import Draws
from flr.data.synthetic.shape import sample_shape
from flr.detection.module import judge
from flr.inference.detectors import Detector
from flr.landmarks.scheme import IBUG68

WORDS = ("part", "root", "sheet", "sizes")
YAWS = (0, 15, 30, 45, 91)  # degrees
Photo = tuple[str, np.ndarray, np.ndarray]  # name, image, (N, 3) centre and size of its faces


class Target:
    """What a detector needs to know of a model: boxes are tight boxes of 68 points."""

    scheme, crop, offset = IBUG68, CropSettings(128, 1, BoxPolicy()), OFFSETS["ibug68"]

    def __init__(self, mean_face: np.ndarray) -> None:
        self.mean_face = mean_face


def of_config(name: str) -> Detector:
    """The detector of a choice with its keys."""
    choice, *keys = name.split(",")
    detector: Detector = build(
        OmegaConf.merge(OmegaConf.load(CONF / "detector" / f"{choice}.yaml"), OmegaConf.from_dotlist(keys))
    )
    return detector


def squares(boxes: np.ndarray) -> np.ndarray:
    """(N, 3) centre and larger side of boxes (N, 4)."""
    side = (boxes[:, 2:] - boxes[:, :2]).max(1)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, side[:, None]], 1)


def group_photos(root: Path) -> Iterator[Photo]:
    """The photos of dlib's example, whose two files name some photos twice."""
    faces: dict[str, list[np.ndarray]] = {}
    for file in sorted(root.glob("*_with_face_landmarks.xml")):
        for image in ElementTree.parse(file).getroot().iter("image"):
            for box in image.iter("box"):
                points = np.array([(float(part.get("x")), float(part.get("y"))) for part in box.iter("part")])  # type: ignore[arg-type]
                if not len(points):
                    left, top, width, height = (float(box.get(key)) for key in ("left", "top", "width", "height"))  # type: ignore[arg-type]
                    points = np.array([(left, top), (left + width, top + height)])
                faces.setdefault(str(image.get("file")), []).append(np.concatenate([points.min(0), points.max(0)]))
    for name, boxes in faces.items():
        if (root / name).is_file():
            yield name, cv2.imread(str(root / name))[..., ::-1], squares(np.array(boxes))


def laid_out(photo: Photo, size: int) -> Photo:
    """A photo with its face of `size` pixels on a grey image of 640 x 480."""
    name, image, faces = photo
    factor = size / faces[0, 2]
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)[:480, :640]
    canvas = np.full((480, 640, 3), 128, np.uint8)
    rng = np.random.default_rng([size, *name.encode()])
    y, x = (int(rng.integers(0, room + 1)) for room in (480 - small.shape[0], 640 - small.shape[1]))
    canvas[y : y + small.shape[0], x : x + small.shape[1]] = small
    return name, canvas, np.concatenate([(faces[:, :2] + 0.5) * factor - 0.5 + (x, y), faces[:, 2:] * factor], 1)


def measure(detector: Detector, photos: list[Photo], target: Target, sheet: Path | None) -> dict[str, Any]:
    """Which faces are found, how many false alarms there are, and what a photo of 640 x 480 takes."""
    found, false, took, size_error = [], [], [], []
    for name, image, faces in photos:
        image = np.ascontiguousarray(image)
        boxes, scores = detector(image, name, target)  # type: ignore[arg-type]
        detected = np.concatenate([squares(boxes), scores[:, None]], 1)
        hits, alarms = judge(detected, faces, np.zeros((0, 3)))
        found += (hits > 0).tolist()
        false += [(name, image, box) for box in detected[np.isin(detected[:, 3], alarms)]] if len(alarms) else []
        filled = cv2.resize(image, None, fx=(f := max(640 / image.shape[1], 480 / image.shape[0])), fy=f)[:480, :640]
        start = time.perf_counter()
        detector(np.ascontiguousarray(filled), name, target)  # type: ignore[arg-type]
        took.append(1000 * (time.perf_counter() - start))
        size_error += [
            abs(np.log2(d[2] / g[2])) for d in detected for g in faces if np.abs(d[:2] - g[:2]).max() < d[2] / 2
        ]
    if sheet:
        sheet.mkdir(parents=True, exist_ok=True)
        for k, (_, image, (x, y, side, _)) in enumerate(false):
            low = np.maximum(np.array([x, y]) - side, 0).astype(int)
            part = image[low[1] : int(y + side) + 1, low[0] : int(x + side) + 1, ::-1]
            cv2.imwrite(str(sheet / f"{k:03d}.png"), cv2.resize(part, (96, 96)))
    return {
        "found": int(np.sum(found)), "faces": len(found), "false": len(false), "photos": len(photos),
        "ms": [min(took), median(took)], "size_error": float(np.median(size_error)), "each": found,
    }  # fmt: skip


def yaws(points: np.ndarray) -> np.ndarray:
    """(N,) degrees to the viewer's right of (N, 68, 2) points: the nearest scaled-orthographic view of the renderer's mean face."""
    shapes = [sample_shape(Draws(0, i)) for i in range(100)]
    # without the jaw, whose points slide along the outline as the head turns
    solid = np.mean([shape.lift(shape.points) for shape in shapes], 0).astype(np.float64)[17:]
    flat = points[:, 17:] - points[:, 17:].mean(1, keepdims=True)
    view = flat.transpose(0, 2, 1) @ np.linalg.pinv(solid - solid.mean(0)).T
    left, _, right = np.linalg.svd(view, full_matrices=False)
    depth = np.cross(*np.moveaxis(left @ right, 1, 0))
    return np.degrees(np.arctan2(-depth[:, 0], depth[:, 2]))


def main() -> None:
    cv2.setNumThreads(1)
    words = dict(word.split("=", 1) for word in sys.argv[1:] if word.partition("=")[0] in WORDS)
    names = [word for word in sys.argv[1:] if word.partition("=")[0] not in WORDS]
    part, root = words.get("part", "test"), Path(words.get("root", os.environ.get("FLR_DATA", "data")))
    table = ibug.read(root / "300w")
    unit = (table.points - table.points.mean(1, keepdims=True)) / np.ptp(table.points, axis=1).max(-1)[:, None, None]
    target = Target(unit.mean(0) * 100 + 100)
    rows = np.flatnonzero(table.split == part)
    yaw = np.abs(yaws(table.points[rows]))
    if part == "groups":
        photos = list(group_photos(root / "dlib_faces"))
    else:
        photos = [(str(table.name[row]), table.load(row), squares(table.tight[row][None])) for row in rows]
    shown = Table(title=f"{part}: {len(photos)} photos")
    sized = [int(size) for size in words["sizes"].split(",")] if "sizes" in words else []
    turned = [f"yaw {a} to {b}" for a, b in pairwise(YAWS)] if part != "groups" else []
    for column in (
        "detector",
        "found",
        "false alarms",
        "ms, min",
        "median",
        *turned,
        *(f"{size} px" for size in sized),
    ):
        shown.add_column(column, justify="left" if column == "detector" else "right")
    results = {}
    for name in names or ["builtin", "haar"]:
        detector = of_config(name)
        sheet = Path(words["sheet"]) / name.replace("/", "_") if "sheet" in words else None
        result = measure(detector, photos, target, sheet)
        each = np.array(result.pop("each"))
        for (a, b), column in zip(pairwise(YAWS), turned, strict=False):
            result[column] = [int(each[(yaw >= a) & (yaw < b)].sum()), int(((yaw >= a) & (yaw < b)).sum())]
        for size in sized:
            result[f"{size} px"] = measure(detector, [laid_out(photo, size) for photo in photos], target, None)["found"]
        results[name] = result
        shown.add_row(
            name, f"{result['found']} of {result['faces']}", str(result["false"]), *(f"{ms:.1f}" for ms in result["ms"]),
            *(f"{result[column][0]} of {result[column][1]}" for column in turned),
            *(f"{result[f'{size} px']}" for size in sized),
        )  # fmt: skip
    Console(width=200).print(shown)
    if part != "train":
        record(f"detectors_{part}", f"python -m benchmarks.detectors part={part} {' '.join(names)}", detectors=results)


if __name__ == "__main__":
    main()
