"""The crop store: every face decoded once, cropped by one affine, kept as uint8 in a memory map."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Ge
from filelock import FileLock
from tqdm import tqdm

from flr.data.table import FaceTable, leave_out
from flr.errors import UserError
from flr.files import write_json, writing_folder
from flr.landmarks.geometry import BoxPolicy, compose, transform, warp
from flr.parallel import in_order

VERSION = 1  # of what is stored; raise it when the pixels of a crop would change


@dataclass(frozen=True)
class CropSettings:
    """What a net sees of a face.

    Attributes:
        size: the side of the crop, pixels.
        channels: 1 grey, 3 RGB.
        policy: which box, and how much round it.
    """

    size: Annotated[int, Ge(8)]
    channels: Literal[1, 3]
    policy: BoxPolicy


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) RGB as (H, W) for one channel or (H, W, 3) for three."""
    if channels == 1 and image.ndim == 3:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if channels == 3 and image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return image


def crop(image: np.ndarray, affine: np.ndarray, size: int, channels: int) -> np.ndarray:
    """One face of a picture as the net sees it: (size, size, channels) uint8; `affine` (2, 3) picture to crop.

    Whatever a net sees is cropped through here.
    """
    out = warp(to_channels(image, channels), affine, (size, size))
    return out.reshape(size, size, channels)


@dataclass(frozen=True, eq=False)
class CropStore:
    """Crops with a margin, so that augmentation never looks past what was kept.

    Attributes:
        settings: what the net sees.
        images: (N, S, S, C) uint8 memory map; the net's crop is the middle `settings.size` pixels.
        to_store: (N, 2, 3) float64, original-image pixels to store pixels.
    """

    settings: CropSettings
    images: np.ndarray
    to_store: np.ndarray

    @property
    def margin(self) -> int:
        """Pixels kept round the crop on each side."""
        return (self.images.shape[1] - self.settings.size) // 2

    def to_crop(self) -> np.ndarray:
        """(N, 2, 3) original-image pixels to crop pixels."""
        shift = np.array([[1.0, 0.0, -self.margin], [0.0, 1.0, -self.margin]])
        return compose(shift, self.to_store)


def face_boxes(table: FaceTable, policy: BoxPolicy) -> np.ndarray:
    """(N, 4) the box of each face that `policy` names.

    Raises:
        UserError: the set has no boxes of that source.
    """
    box = table.tight if policy.source == "truth" else table.box
    if np.isnan(box).any():
        raise UserError(
            f"{table.form} gives no '{policy.source}' box for every face; set data.crop.policy.source=truth"
        )
    if policy.source == "truth" and (table.labelled.sum(1) < 2).any():
        raise UserError(f"{table.form} has faces with one labelled point, which span no box; name another box policy")
    return box.astype(np.float64)


def open_store(
    table: FaceTable, settings: CropSettings, margin: float, cache: Path, workers: int, strict: bool
) -> tuple[FaceTable, CropStore]:
    """The store of a table, built first where it is not in the cache.

    Args:
        table: the faces, N.
        settings: the crop.
        margin: the store's side over the crop's, as the augmentation declares it; at least 1.
        cache: the folder of all stores.
        workers: processes that decode; 0 for none beside this one.
        strict: whether one picture that cannot be decoded stops the run.

    Returns:
        The table without the faces whose picture cannot be decoded, and their store.

    Raises:
        UserError: the cache cannot be written, or see `leave_out`.
    """
    pad = int(np.ceil(settings.size * (margin - 1) / 2))
    key = hashlib.sha256(
        repr((VERSION, table.fingerprint(), settings, pad)).encode() + table.version.tobytes()
    ).hexdigest()[:16]
    folder = cache.absolute() / "crops" / f"{table.form.split('[')[0]}-{key}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        with lock:
            if not (folder / "meta.json").exists():
                _build(table, settings, pad, folder, workers)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set paths.cache_dir=DIR") from error
    bad = {int(i): reason for i, reason in json.loads((folder / "meta.json").read_text())["faults"].items()}
    images = np.load(folder / "images.npy", mmap_mode="c")  # private pages: torch wants them writable
    kept = leave_out(table, bad, strict)
    keep = np.setdiff1d(np.arange(len(table)), list(bad))
    to_store = _to_store(table, settings, pad)[keep]
    return kept, CropStore(settings, images, to_store)


def _to_store(table: FaceTable, settings: CropSettings, pad: int) -> np.ndarray:
    shift = np.array([[1.0, 0.0, pad], [0.0, 1.0, pad]])
    return compose(shift, settings.policy.crop(face_boxes(table, settings.policy), settings.size))


def _build(table: FaceTable, settings: CropSettings, pad: int, folder: Path, workers: int) -> None:
    side = settings.size + 2 * pad
    to_store = _to_store(table, settings, pad)
    bad: dict[int, str] = {}
    with writing_folder(folder) as aside:
        shape = (len(table), side, side, settings.channels)
        images = np.lib.format.open_memmap(aside / "images.npy", "w+", np.uint8, shape)
        reserve(aside / "images.npy")

        def work(i: int) -> np.ndarray | str:
            try:
                return crop(table.load(i), to_store[i], side, settings.channels)
            except UserError as error:
                return str(error)

        at = 0
        bar = tqdm(total=len(table), desc=f"Cropping {table.form.split('[')[0]}", unit="face", disable=None)
        with bar:
            for i, result in enumerate(in_order(work, len(table), workers)):
                if isinstance(result, str):
                    bad[i] = result
                else:
                    images[at] = result
                    at += 1
                bar.update()
        images.flush()
        if bad:
            np.save(aside / "short.npy", images[:at])
            os.replace(aside / "short.npy", aside / "images.npy")
        write_json(aside / "meta.json", {"form": table.form, "settings": repr(settings), "pad": pad, "faults": bad})


def reserve(path: Path) -> None:
    """Take the disk space now: a full disk then is an error here, and not a bus error in the memory map later."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def crop_labels(table: FaceTable, store: CropStore) -> np.ndarray:
    """(N, K, 2) float32 the points in crop pixels; unlabelled ones at 0, so that no NaN reaches a loss."""
    points = transform(store.to_crop(), np.where(table.labelled[..., None], table.points, 0.0).astype(np.float64))
    return np.where(table.labelled[..., None], points, 0.0).astype(np.float32)
