"""A user's own five points, with drawn faces: as labels.csv, as COCO keypoints or dlib XML a split, or as .pts."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from flr.landmarks.scheme import IBUG68
from tests.fakes import ibug

NAMES = ("eye r", "eye l", "nose", "mouth-r", "mouth-l")
SCHEME = """\
name: mine # a comment
names: [eye r, eye l, nose, mouth-r, mouth-l]
pairs: [[eye r, eye l], [3, 4]]
normaliser: eyes
distances: {eyes: [eye r, [eye l]]}
regions: {mouth: [mouth-r, mouth-l]}
reductions: {celeba5: [[eye r], eye l, 2, mouth-r, mouth-l]}
"""
PARTS = {"train": 5, "val": 2, "test": 3}
HEADER = ["image", "split", *(f"{name}_{axis}" for name in NAMES for axis in "xy")]


def write(root: Path, form: str = "csv", parts: Mapping[str, int] = PARTS) -> np.ndarray:
    """Write a set of so many faces a split in the form ``csv``, ``coco``, ``xml`` or ``pts``; their points (N, 5, 2)."""
    points = IBUG68.reduce(ibug.faces(sum(parts.values())), "celeba5").round(3)
    images, splits = [], [split for split, count in parts.items() for _ in range(count)]
    for i, split in enumerate(splits):
        (root / split).mkdir(parents=True, exist_ok=True)
        images.append(f"{split}/{i:03d}.jpg")
        ibug.save(root / images[i], ibug.picture(points[i], seed=i, grey=i % 5 == 4))
    (root / "scheme.yaml").write_text(SCHEME)
    faces = [(image, split, own.tolist()) for image, split, own in zip(images, splits, points, strict=True)]
    if form == "csv":
        rows = [[image, split, *(f"{value}" for mark in own for value in mark)] for image, split, own in faces]
        (root / "labels.csv").write_text("".join(",".join(row) + "\n" for row in [HEADER, *rows]))
    for image, _, own in faces if form == "pts" else ():
        ibug.write_pts((root / image).with_suffix(".pts"), np.array(own))
    for split in parts if form == "coco" else ():
        part = [(image, own) for image, of, own in faces if of == split]
        (root / f"labels_{split}.json").write_text(json.dumps(coco(part)))
    for split in parts if form == "xml" else ():
        body = "".join(f'<image file="{image}">{box(own)}</image>\n' for image, of, own in faces if of == split)
        (root / f"labels_{split}.xml").write_text(f"<dataset><name>x</name><images>\n{body}</images></dataset>\n")
    return points


def write_turned(root: Path, orientation: int, count: int) -> None:
    """Write labels.json of ibug68 for photos that are stored turned: by EXIF 3 or 6; labels are of the stored pixels."""
    (width, height), images, annotations = ibug.SIZE, [], []
    exif = Image.Exif()
    exif[274] = orientation
    for i, points in enumerate(ibug.faces(count)):
        stored = np.rot90(ibug.picture(points, seed=i), 2 if orientation == 3 else 1)
        Image.fromarray(np.ascontiguousarray(stored)).save(root / f"{i}.png", exif=exif)
        x, y = points.T
        points = np.stack([width - 1 - x, height - 1 - y] if orientation == 3 else [y, width - 1 - x], 1)
        images.append({"id": i, "file_name": f"{i}.png", "width": stored.shape[1], "height": stored.shape[0]})
        keypoints = np.c_[points, np.full(68, 2)].ravel().tolist()
        annotations.append({"id": i, "image_id": i, "category_id": 1, "keypoints": keypoints})
    category = {"id": 1, "name": "face", "keypoints": []}
    document = {"images": images, "annotations": annotations, "categories": [category]}
    (root / "labels.json").write_text(json.dumps(document))


def coco(faces: list[tuple[str, list[list[float]]]]) -> dict:
    """A COCO file, whose category names the points in another order than the scheme does."""
    size = {"width": ibug.SIZE[0], "height": ibug.SIZE[1]}
    return {
        "info": {}, "licenses": [],
        "images": [{"id": 100 + i, "file_name": image, **size} for i, (image, _) in enumerate(faces)],
        "annotations": [
            {"id": 7 + i, "image_id": 100 + i, "category_id": 3, "bbox": [1, 2, 30, 40], "iscrowd": 0, "area": 1200,
             "keypoints": [value for x, y in own[::-1] for value in (x, y, 2)], "num_keypoints": 5}
            for i, (_, own) in enumerate(faces)
        ],
        "categories": [{"id": 1, "name": "hat"}, {"id": 3, "name": "face", "keypoints": list(NAMES[::-1]), "skeleton": []}],
    }  # fmt: skip


def box(points: list[list[float]]) -> str:
    """A <box> of dlib's, its parts named by place."""
    parts = "".join(f"<part name='{k:02d}' x='{x}' y='{y}'/>" for k, (x, y) in enumerate(points))
    return f"<box top='2' left='1' width='30' height='40'>{parts}</box>"
