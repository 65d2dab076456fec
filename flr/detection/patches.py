"""Training batches: patches of scenes and the maps that the network should answer."""

import math
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import Ge
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flr.data.finders.votes import LARGEST, SMALLEST, STRIDE, UNIT
from flr.detection.scenes import EMPTY, FACE, NO_FACE, Scenes, open_scenes
from flr.detection.textures import log_uniform

Count = Annotated[int, Ge(1)]
PATCH = 96  # pixels
_CELLS = PATCH // STRIDE
_MIDDLES = (np.arange(_CELLS) + 0.5) * STRIDE
_VALIDATION_SEED = 2_000_000  # series of the validation scenes, the same for every training


def cut_patch(rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a patch at a random place and scale, mostly near a box.

    Args:
        rng: Draws the place, the scale and the augmentation.
        image: (SIDE, SIDE) uint8 scene.
        boxes: (M, 4), see `flr.detection.scenes.Scenes`.

    Returns:
        (PATCH, PATCH) uint8; (6, cells, cells) float32 targets, see `targets`.
    """
    side, boxes = len(image), boxes[boxes[:, 3] != EMPTY]
    if len(boxes) and rng.random() < 0.85:
        x, y, size, _ = boxes[int(rng.integers(len(boxes)))]
        width = PATCH / min(log_uniform(rng, SMALLEST - 2, LARGEST + 4) / size, 1.6)
        centre = np.array([x, y]) + rng.uniform(-0.5, 0.5, 2) * max(width - 0.5 * size, 1)
    else:
        width = PATCH / log_uniform(rng, 0.45, 1.5)
        centre = rng.uniform(0, side, 2)
    start = centre - width / 2
    if width < side and rng.random() < 0.8:
        start = np.clip(start, 0, side - width)
    start, width = np.rint(start).astype(int), round(width)
    low, high = np.maximum(start, 0), np.minimum(start + width, side)
    if (high - low).min() < 8:
        return cut_patch(rng, image, boxes)
    patch = np.asarray(image[low[1] : high[1], low[0] : high[0]])
    before, after = low - start, start + width - high
    if before.any() or after.any():
        border = cv2.BORDER_CONSTANT if rng.random() < 0.5 else cv2.BORDER_REPLICATE
        level = 0.0 if rng.random() < 0.7 else rng.uniform(0, 255)
        patch = cv2.copyMakeBorder(patch, before[1], after[1], before[0], after[0], border, value=level)
    scale = PATCH / width
    enlarging = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
    patch = cv2.resize(patch, (PATCH, PATCH), interpolation=cv2.INTER_AREA if scale < 1 else enlarging)
    seen = np.concatenate([low, high]).astype(float)
    placed = boxes.astype(np.float64)
    placed[:, :2] = (boxes[:, :2] - start + 0.5) * scale  # from pixel centres to edges
    placed[:, 2] *= scale
    edges = (seen - np.tile(start, 2)) * scale
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
        placed[:, 0] = PATCH - placed[:, 0]
        edges = np.array([PATCH - edges[2], edges[1], PATCH - edges[0], edges[3]])
    return _augment(rng, patch), targets(placed, edges)


def _augment(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """Change contrast and brightness, and add noise and motion blur to some."""
    levels = patch.astype(np.float32)
    if rng.random() < 0.7:
        pivot = rng.uniform(60, 190)
        levels = (levels - pivot) * np.float32(np.exp(rng.normal(0, 0.35))) + np.float32(pivot + rng.normal(0, 25))
    if rng.random() < 0.15:
        levels += rng.normal(0, rng.uniform(2, 12), levels.shape).astype(np.float32)
    if rng.random() < 0.15:
        length = int(rng.choice([3, 5]))
        levels = np.asarray(cv2.blur(levels, (length, 1) if rng.random() < 0.5 else (1, length)), np.float32)
    return np.clip(levels, 0, 255).astype(np.uint8)


def targets(boxes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return (6, cells, cells) float32: heat, its weight, the weight of the box, and the box as `DetectorNet` codes it.

    Args:
        boxes: (M, 4) centre x, y and size in patch pixels, counted from the patch's edge, and state.
        edges: (4,) left, top, right and bottom of the scene in the patch.
    """
    out = np.zeros((6, _CELLS, _CELLS), np.float32)
    heat, weight, inside = out[:3]
    weight[:] = 1
    for x, y, size, state in boxes[boxes[:, 3] != NO_FACE]:
        across, down = _MIDDLES[None] - x, _MIDDLES[:, None] - y
        distance = np.maximum(np.abs(across), np.abs(down))
        half = size / 2
        shown = np.minimum([x + half, y + half], edges[2:]) - np.maximum([x - half, y - half], edges[:2])
        shown = np.minimum(shown, np.minimum([x + half, y + half], PATCH) - np.maximum([x - half, y - half], 0))
        visible = float(shown.clip(0).prod()) / size**2
        if state == FACE and SMALLEST <= size <= LARGEST and visible > 0.75:
            cell = tuple(np.clip((np.array([y, x]) / STRIDE).astype(int), 0, _CELLS - 1))
            peak = np.exp(-(across**2 + down**2) / (2 * (0.11 * size) ** 2)).astype(np.float32)
            peak[cell] = 1
            np.maximum(heat, peak, out=heat)
            near = distance < max(0.2 * size, 5)
            near[cell] = True
            inside[near] = 1
            out[3][near] = (-across / STRIDE + 0 * down)[near]
            out[4][near] = (-down / STRIDE + 0 * across)[near]
            out[5][near] = math.log2(size / UNIT)
        elif visible > 0.35 and SMALLEST * 0.6 < size < LARGEST * 1.7:  # neither a face to find nor background
            weight[distance < 0.45 * size] = 0
    weight[heat > 0.2] = 1
    return out


class PatchBatches(Dataset[tuple[Tensor, Tensor]]):
    """The batches of one epoch; a batch is a function of the seed, the epoch and its number."""

    def __init__(self, scenes: Scenes, seed: int, epoch: int, batches: int, batch_size: int) -> None:
        self.scenes, self.seed, self.epoch, self.batches, self.batch_size = scenes, seed, epoch, batches, batch_size

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        cv2.setNumThreads(1)
        rng = np.random.default_rng([self.seed, self.epoch, index])
        rows = rng.integers(len(self.scenes.images), size=self.batch_size)
        cut = [cut_patch(rng, self.scenes.images[row], self.scenes.boxes[row]) for row in rows]
        images, maps = (np.stack(arrays) for arrays in zip(*cut, strict=True))
        return torch.from_numpy(images[:, None].astype(np.float32)), torch.from_numpy(maps)


class SceneData(pl.LightningDataModule):
    """Rendered scenes as training patches, and whole scenes for validation.

    Args:
        cache: Folder of the scenes.
        seed: Series of the scenes, and seed of the patches.
        scenes: Scenes to train on.
        validation_scenes: Scenes to validate on.
        batches: Batches in an epoch.
        batch_size: Patches in a batch.
        workers: Processes that draw scenes, and then patches.
    """

    def __init__(
        self, cache: str, seed: int, scenes: Count = 24_000, validation_scenes: Count = 500, batches: Count = 200,
        batch_size: Annotated[int, Ge(2)] = 128, workers: Count = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cache, self.seed, self.scenes, self.validation_scenes = Path(cache), seed, scenes, validation_scenes
        self.batches, self.batch_size, self.workers = batches, batch_size, workers

    def setup(self, stage: str) -> None:
        self.train = open_scenes(self.seed, self.scenes, self.cache, self.workers)
        self.val = open_scenes(_VALIDATION_SEED, self.validation_scenes, self.cache, self.workers)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        batches = PatchBatches(self.train, self.seed, self.trainer.current_epoch, self.batches, self.batch_size)
        return DataLoader(batches, batch_size=None, num_workers=self.workers, prefetch_factor=4)

    def val_dataloader(self) -> DataLoader:
        images = torch.from_numpy(np.array(self.val.images))[:, None].float()
        boxes = torch.from_numpy(self.val.boxes)
        return DataLoader(torch.utils.data.TensorDataset(images, boxes), batch_size=50)
