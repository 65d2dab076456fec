"""Faces a second from the disk to the net's door: 300-W's training faces at 128 px grey, rotation, scale, shift, mirror,
brightness, contrast, noise, blur and erasing, on two cores, as float batches of 64.

    python -m benchmarks.input_path data.root=DIR

The peers read each picture anew in every epoch, as public landmark code does:

- usual: OpenCV reads, crops and resizes; albumentations does the same stages; DataLoader of two workers.
- numpy: what published system 4 does, which is less: rescale, random crop, grey, normalise, to tensor; two workers.
"""

import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import config, rate, report, rounds
from flr.config.instantiate import build
from flr.data.batches import IndexBatches
from flr.data.datamodule import FaceData
from flr.data.table import FaceTable
from flr.system import keep_memory

SIZE, BATCH, CORES = 128, 64, 2
ROUNDS, SECONDS = 5, 4.0


class Usual(Dataset[Any]):
    """A face by OpenCV and albumentations, with the stages of `augment=standard`."""

    def __init__(self, table: FaceTable, boxes: np.ndarray, folder: str) -> None:
        self.pictures = [f"{folder}/{name}" for name in table.image]
        self.points, self.boxes = table.points, boxes
        self.bend = A.Compose(
            [
                A.Resize(SIZE, SIZE),
                A.Affine(rotate=(-30, 30), scale=(0.87, 1.15), translate_percent=(-0.05, 0.05), p=1),
                A.HorizontalFlip(p=0.5),
                A.RandomBrightnessContrast(0.3, 0.3, p=1),
                A.GaussianBlur(blur_limit=(3, 5), sigma_limit=(0.05, 1), p=1),
                A.GaussNoise(std_range=(0, 0.04), p=1),
                A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(0.1, 0.4), hole_width_range=(0.1, 0.4), p=0.5),
            ],
            keypoint_params=A.KeypointParams("xy", remove_invisible=False),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, face: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = cv2.imread(self.pictures[face], cv2.IMREAD_GRAYSCALE)
        left, top, right, bottom = self.boxes[face].round().astype(int)
        pad = max(0, -left, -top, right - image.shape[1], bottom - image.shape[0])
        if pad:
            image = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        crop = image[top + pad : bottom + pad, left + pad : right + pad]
        bent = self.bend(image=crop, keypoints=self.points[face] - (left, top))
        return torch.from_numpy(bent["image"])[None].float() / 255, torch.from_numpy(bent["keypoints"]).float()


class Numpy(Usual):
    """A face by the chain of published system 4: rescale to an eighth more, a random crop, pixels / 255."""

    def __getitem__(self, face: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = cv2.imread(self.pictures[face])
        height, width = image.shape[:2]
        side = SIZE * 9 // 8
        height, width = (side * height // width, side) if height > width else (side, side * width // height)
        points = self.points[face] * (width / image.shape[1], height / image.shape[0])
        image = cv2.resize(image, (width, height))
        top, left = (random.randint(0, side - SIZE) for side in (height, width))
        image = image[top : top + SIZE, left : left + SIZE]
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
        return torch.from_numpy(grey)[None], torch.from_numpy((points - (left, top) - 100) / 50).float()


def loaded(faces: Dataset[Any]) -> Callable[[], float]:
    """The rate of a DataLoader, its workers started before the clock runs."""

    def batches() -> Iterator[int]:
        loader = DataLoader(faces, BATCH, shuffle=True, num_workers=CORES, drop_last=True, persistent_workers=True)
        while True:
            for images, _ in loader:
                yield len(images)

    # The clock starts when what the workers made ahead while it stood still is used up.
    return lambda: rate(batches(), SECONDS, warm=2 * CORES + 1)


def ours(data: FaceData) -> Callable[[], float]:
    """The rate of `FaceData`, an epoch's order and draws after another's."""

    def batches() -> Iterator[int]:
        for epoch in itertools.count():
            for index in IndexBatches(data.rows("train"), BATCH, 0, 1, lambda: epoch, seed=0):  # noqa: B023  # used up here
                yield len(data.batch(index, epoch).images)

    return lambda: rate(batches(), SECONDS, warm=3)


def main() -> None:
    keep_memory()
    torch.set_num_threads(CORES)
    cv2.setNumThreads(1)  # a worker a core
    cfg = config("data=ibug", "augment=standard", f"data.crop.size={SIZE}", f"data.batch_size={BATCH}", *sys.argv[1:])
    data: FaceData = build(cfg.data, augment=build(cfg.augment), seed=0, cache=cfg.paths.cache_dir)
    start = time.perf_counter()
    table = data.prepare()
    built = time.perf_counter() - start
    train = table.take(data.rows("train"))
    centre, half = (
        (train.tight[:, :2] + train.tight[:, 2:]) / 2,
        (train.tight[:, 2:] - train.tight[:, :2]).max(1) * 0.625,
    )
    boxes = np.concatenate([centre - half[:, None], centre + half[:, None]], 1)
    folder = str(cfg.data.root)
    figures = rounds(
        {
            "ours": ours(data),
            "usual": loaded(Usual(train, boxes, folder)),
            "numpy": loaded(Numpy(train, boxes, folder)),
        },
        ROUNDS,
    )
    print(f"{len(train)} faces; reading, checking and the crop store took {built:.1f} s, once")
    report("input_path", "faces/s", figures, "python -m benchmarks.input_path data.root=DIR", store_seconds=built)


if __name__ == "__main__":
    main()
