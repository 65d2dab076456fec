"""The crop store: every face decoded once, cropped by one affine, kept as uint8 in a memory map."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Ge
from filelock import FileLock
from tqdm import tqdm

from flr.data.boxes import BoxPolicy, face_boxes, faces_by_image
from flr.data.images import Files
from flr.data.table import FaceTable, leave_out
from flr.errors import UserError
from flr.files import write_json, writing_folder
from flr.landmarks.geometry import box_crop, compose, transform, warp
from flr.system import parallel_map

VERSION = 5  # of what is stored; raise it when the pixels of a crop would change

CHUNK = 1024  # faces moved at once
# What is seen of a face's image: its size in pixels, a digest of its pixels (see `STRIDE`), a thumbnail of the face, and
# the EXIF orientation of the file.
THUMBNAIL = 8
STRIDE = 4  # every fourth pixel either way tells an image from any other, and takes a sixteenth of the time
SEEN = np.dtype([("width", "i4"), ("height", "i4"), ("digest", "u8"), ("thumbnail", "u1", THUMBNAIL**2),
                 ("orientation", "u1")])  # fmt: skip


@dataclass(frozen=True)
class CropSettings:
    """What a model sees of a face.

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
    """One face of an image as the model sees it: (size, size, channels) uint8; `affine` (2, 3) image to crop.

    Whatever a model sees is cropped through here.
    """
    out = warp(to_channels(image, channels), affine, (size, size))
    return out.reshape(size, size, channels)


@dataclass(frozen=True, eq=False)
class CropStore:
    """Crops with a margin, so that augmentation never looks past what was kept.

    Attributes:
        settings: what the model sees.
        images: (N, S, S, C) uint8 memory map; the model's crop is the middle `settings.size` pixels.
        to_store: (N, 2, 3) float64, original-image pixels to store pixels.
        image_info: (N,) structured: what was seen of each face's image when it was decoded (see `SEEN`).
        missed: split -> its faces that the box policy's detector did not find.
        offset: see `flr.data.boxes.Haar.offset`.
        folder: where all this lies.
    """

    settings: CropSettings
    images: np.ndarray
    to_store: np.ndarray
    image_info: np.ndarray
    missed: Mapping[str, int]
    offset: tuple[float, ...] | None
    folder: Path

    @property
    def margin(self) -> int:
        """Pixels kept round the crop on each side."""
        return (self.images.shape[1] - self.settings.size) // 2

    def crops(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy (n, size, size, C) uint8 of the crops of rows (n,), without their margin."""
        inner = slice(self.margin, self.margin + self.settings.size)
        return np.array(self.images[rows][:, inner, inner])

    def to_crop(self) -> np.ndarray:
        """(N, 2, 3) original-image pixels to crop pixels."""
        shift = np.array([[1.0, 0.0, -self.margin], [0.0, 1.0, -self.margin]])
        return compose(shift, self.to_store)


def open_store(
    table: FaceTable, settings: CropSettings, margin: float, cache: Path, workers: int, strict: bool
) -> tuple[FaceTable, CropStore]:
    """The store of a table, built first where it is not in the cache.

    Args:
        table: the faces, N.
        settings: the crop.
        margin: the store's side over the crop's, as the augmentation declares it; at least 1.
        cache: the folder of all stores.
        workers: threads that decode.
        strict: whether one image that cannot be decoded stops the run.

    Returns:
        The table without the faces whose image cannot be decoded or does not show them, and without those that the
        box policy leaves out; and their store.

    Raises:
        UserError: the cache cannot be written, or see `leave_out` and `face_boxes`.
    """
    pad = int(np.ceil(settings.size * (margin - 1) / 2))
    key = hashlib.sha256(
        repr((VERSION, table.fingerprint(), settings, pad)).encode() + table.version.tobytes() + table.points.tobytes()
    ).hexdigest()[:16]
    folder = cache.absolute() / "crops" / f"{table.form.split('[')[0]}-{key}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "meta.json").exists():
                _build(table, settings, pad, folder, cache, workers)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set paths.cache_dir=DIR") from error
    meta = json.loads((folder / "meta.json").read_text())
    rows = np.load(folder / "rows.npy")
    bad = {int(i): reason for i, reason in meta["faults"].items()}
    checked = leave_out(table, bad, strict)  # which also says what is at fault
    if not len(rows):
        raise UserError(f"{table.form}: the detector finds none of its {len(table)} faces; name another box policy")
    kept = dataclasses.replace(table.take(rows), faults=checked.faults)
    store = CropStore(
        settings=settings,
        # Private pages: torch wants them writable.
        images=np.memmap(folder / "images.u8", np.uint8, "c", shape=tuple(meta["shape"])),
        to_store=np.load(folder / "to_store.npy"),
        image_info=np.load(folder / "pictures.npy"),
        missed=meta["missed"],
        offset=meta["offset"],
        folder=folder,
    )
    return kept, store


def _build(table: FaceTable, settings: CropSettings, pad: int, folder: Path, cache: Path, workers: int) -> None:
    boxes = face_boxes(table, settings.policy, cache, workers)
    shift = np.array([[1.0, 0.0, pad], [0.0, 1.0, pad]])
    to_store = compose(shift, settings.policy.crop(boxes.box, settings.size))
    with writing_folder(folder) as aside:
        path = aside / "images.u8"
        side = settings.size + 2 * pad
        rows, image_info, bad = _crop_all(table, settings, side, to_store, ~np.isnan(boxes.box).any(1), path, workers)
        shape = (len(rows), side, side, settings.channels)
        os.truncate(path, max(1, int(np.prod(shape))))
        for name, column in (("rows", rows), ("to_store", to_store[rows]), ("pictures", image_info[rows])):
            np.save(aside / f"{name}.npy", column)
        missed = {split: int((boxes.missed & (table.split == split)).sum()) for split in ("train", "val", "test")}
        write_json(
            aside / "meta.json",
            {
                "form": table.form, "settings": repr(settings), "pad": pad, "shape": shape, "offset": boxes.offset,
                "missed": missed if settings.policy.finder else {}, "faults": bad,
            },
        )  # fmt: skip


def _crop_all(
    table: FaceTable, settings: CropSettings, side: int, to_store: np.ndarray, wanted: np.ndarray, path: Path, workers: int
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:  # fmt: skip
    """Crop the wanted faces into a file, which is mapped no longer at the return: Windows neither cuts nor renames a map.

    Returns:
        (n,) the rows of the faces that the file holds, in order; (N,) what was seen of their images; row -> fault.
    """
    tight, units, bad = table.tight, faces_by_image(table), dict[int, str]()
    images = np.memmap(path, np.uint8, "w+", shape=(len(table), side, side, settings.channels))
    reserve(path)
    image_info = np.zeros(len(table), SEEN)

    def work(u: int) -> tuple[dict[int, tuple[int, int, int, np.ndarray, int]], dict[int, str]]:
        """Crop the faces of one image into the map."""
        rows: list[int] = units[u].tolist()
        try:
            image = table.load(rows[0])
        except UserError as error:
            return {}, dict.fromkeys(rows, str(error))
        height, width = image.shape[:2]
        digest = int.from_bytes(hashlib.blake2b(image[::STRIDE, ::STRIDE].tobytes(), digest_size=8).digest())
        grey, image = to_channels(image, 1), to_channels(image, settings.channels)
        files = table.read_image
        orientation = files.orientation(str(table.image[rows[0]])) if isinstance(files, Files) else 1
        seen, faults = {}, {}
        for row in rows:
            left, top, right, bottom = tight[row]
            if right < 0 or bottom < 0 or left > width - 1 or top > height - 1:
                faults[row] = f"all its points lie outside its image of {width} x {height} pixels"
            elif wanted[row]:
                images[row] = crop(image, to_store[row], side, settings.channels)
                seen[row] = width, height, digest, thumbnail(grey, tight[row]), orientation
        return seen, faults

    with tqdm(total=len(table), desc=f"Cropping {table.form.split('[')[0]}", unit="face", disable=None) as bar:
        for seen, faults in parallel_map(work, len(units), workers):
            for row, values in seen.items():
                image_info[row] = values
            bad |= faults
            bar.update(len(seen) + len(faults))
    rows = np.setdiff1d(np.flatnonzero(wanted), list(bad))
    if len(rows) < len(table):
        for at in range(0, len(rows), CHUNK):  # downwards, so that nothing is overwritten before it is moved
            some = rows[at : at + CHUNK]
            images[at : at + len(some)] = images[some]
    images.flush()
    return rows, image_info, bad


def thumbnail(grey: np.ndarray, tight: np.ndarray) -> np.ndarray:
    """Make an image of a face so small that copies of it stay alike when they are saved anew.

    It depends on the image and its labels alone, so that every crop size, margin and box policy finds the same copies.

    Args:
        grey: (H, W) uint8.
        tight: (4,) the tight box of the face's points; NaN or of no size for the whole image.

    Returns:
        (THUMBNAIL * THUMBNAIL,) uint8.
    """
    height, width = grey.shape
    box = tight if (tight[2:] > tight[:2]).all() else np.array([-0.5, -0.5, width - 0.5, height - 0.5])
    face = warp(grey, box_crop(box, 1.25, True, 12 * THUMBNAIL), (12 * THUMBNAIL, 12 * THUMBNAIL))
    return cv2.resize(face, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).ravel()


def reserve(path: Path) -> None:
    """Take the disk space now: a full disk then is an error here, and not a bus error in the memory map later.

    Where the system cannot reserve space (macOS, Windows), zeros are written.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        zeros = bytes(min(size, 2**20))
        for start in range(0, size, 2**20):
            file.write(zeros[: size - start])


def crop_labels(table: FaceTable, store: CropStore) -> np.ndarray:
    """(N, K, 2) float32 the points in crop pixels; unlabelled ones at 0, so that no NaN reaches a loss."""
    points = transform(store.to_crop(), np.where(table.labelled[..., None], table.points, 0.0).astype(np.float64))
    return np.where(table.labelled[..., None], points, 0.0).astype(np.float32)
