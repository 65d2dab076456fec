"""Batches taken whole from the crop store, in an order and with draws that are functions of (seed, epoch, face)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import Ge
from torch import Tensor

from flr.augment.device import Augment
from flr.augment.draws import order
from flr.data.crops import CropSettings, crop_labels, open_store
from flr.data.splits import hold_out
from flr.data.table import FaceTable, check_faces
from flr.errors import UserError
from flr.landmarks.geometry import compose, invert, transform
from flr.landmarks.scheme import Scheme, get_scheme
from flr.parallel import cores


@dataclass(frozen=True)
class Batch:
    """B faces as the net sees them.

    Attributes:
        images: (B, C, H, W) float, in the range that `FaceData.pixels` names.
        points: (B, K, 2) float, crop pixels; anything where not `labelled`.
        labelled: (B, K) bool.
        to_original: (B, 2, 3) float, crop pixels to original-image pixels.
        normaliser: (B,) float, original-image pixels.
        index: (B,) int64, rows of the table.
    """

    images: Tensor
    points: Tensor
    labelled: Tensor
    to_original: Tensor
    normaliser: Tensor
    index: Tensor


@dataclass(frozen=True)
class Protocol:
    """What a number was measured on. Numbers of different protocols never share a column.

    Attributes:
        form: the on-disk form.
        scheme: the landmark scheme's name.
        normaliser: the scheme's default.
        policy: the box policy.
        val: the held-out share, where the set gives no validation part.
        counts: faces per split after skips.
        fingerprint: of the table.
    """

    form: str
    scheme: str
    normaliser: str
    policy: str
    val: str
    counts: dict[str, int]
    fingerprint: str

    @property
    def name(self) -> str:
        """Readable, and different where the numbers must not be compared."""
        counts = "/".join(str(self.counts[part]) for part in ("train", "val", "test"))
        return f"{self.form} {self.scheme} {counts} {self.policy} {self.normaliser} {self.fingerprint}"


class IndexBatches:
    """The rows of each global batch, sliced by rank: what a loader would be if samples were loaded one by one.

    Args:
        rows: (n,) int64, the rows of the table that this part holds.
        batch: faces in a global batch.
        rank: this rank.
        ranks: of how many.
        epoch: the current epoch; None for an evaluation, which keeps the order and the uneven last batch.
        seed: of the order.
    """

    def __init__(
        self, rows: np.ndarray, batch: int, rank: int, ranks: int, epoch: Callable[[], int] | None, seed: int
    ) -> None:
        if epoch is not None:
            batch = min(batch, len(rows) // ranks * ranks)
        if batch < ranks:
            raise UserError(f"a batch of {batch} on {ranks} devices leaves one without a face; raise data.batch_size")
        self.rows, self.batch, self.rank, self.ranks, self.epoch, self.seed = rows, batch, rank, ranks, epoch, seed

    def __len__(self) -> int:
        # Training drops the uneven rest of an epoch: batch norm and the global loss want whole batches.
        return len(self.rows) // self.batch if self.epoch else -(-len(self.rows) // self.batch)

    def __iter__(self) -> Iterator[Tensor]:
        rows = self.rows
        if self.epoch:
            rows = rows[order(self.seed, self.epoch(), len(rows))]
        for step in range(len(self)):
            yield torch.from_numpy(rows[step * self.batch : (step + 1) * self.batch][self.rank :: self.ranks])


class FaceData(pl.LightningDataModule):
    """A data set from its files to batches.

    Args:
        name: the data set's name, said in errors.
        reader: ``reader(root=..., strict=...) -> FaceTable``.
        root: where the set lies.
        crop: what the net sees.
        cache: the folder of crop stores.
        augment: of the training part.
        pixels: what black and white become.
        batch_size: faces in a global batch, all ranks together.
        val_fraction: the share of the training part that is held out where the set has no validation part.
        strict: whether a fault of one face stops the run.
        scheme: a smaller scheme to reduce the labels to; None keeps the set's own.
        seed: of the order and the draws.
        workers: processes that decode pictures; None takes the number of cores.
    """

    def __init__(
        self,
        *,
        name: str,
        reader: Callable[..., FaceTable],
        root: str | None,
        crop: CropSettings,
        cache: str,
        augment: Augment,
        pixels: tuple[float, float] = (-1.0, 1.0),
        batch_size: Annotated[int, Ge(2)] = 32,  # batch norm learns from two faces or more
        val_fraction: float = 0.1,
        strict: bool = False,
        scheme: str | None = None,
        seed: int = 0,
        workers: Annotated[int, Ge(0)] | None = None,
    ) -> None:
        super().__init__()
        if root == "":
            raise UserError(f"data={name} has no folder; set data.root=DIR")
        self.name, self.reader, self.root, self.crop, self.cache = name, reader, root, crop, Path(cache)
        self.augment, self.pixels, self.batch_size, self.val_fraction = augment, pixels, batch_size, val_fraction
        self.strict, self.to_scheme, self.seed = strict, scheme, seed
        self.workers = cores() if workers is None else workers
        self.table: FaceTable | None = None
        self.test_split = "test"  # what a test pass scores; an evaluation may name another part

    # -- reading ---------------------------------------------------------------------------------------------------

    def prepare(self) -> FaceTable:
        """Read, check, split and crop; a second call does nothing.

        Raises:
            UserError: as the reader, `check_faces`, `hold_out` and `open_store`.
        """
        if self.table is not None:
            return self.table
        root = Path(self.root).expanduser() if self.root is not None else None
        table = check_faces(self.reader(root=root, strict=self.strict), self.strict)
        if self.to_scheme:
            table = table.reduce(self.to_scheme, get_scheme(self.to_scheme))
        table, self.store = open_store(table, self.crop, self.augment.margin, self.cache, self.workers, self.strict)
        self.table = table = hold_out(table, self.val_fraction)
        self.labels = crop_labels(table, self.store)
        self.tensors: dict[torch.device, _OnDevice] = {}
        self.normaliser = table.scheme.distance(table.points, table.labelled)
        return table

    @property
    def scheme(self) -> Scheme:
        return self.prepare().scheme

    def rows(self, split: str) -> np.ndarray:
        """(n,) int64: the table's rows of a split."""
        return np.flatnonzero(self.prepare().split == split)

    @property
    def protocol(self) -> Protocol:
        table = self.prepare()
        return Protocol(
            form=table.form,
            scheme=table.scheme.name,
            normaliser=table.scheme.normaliser,
            policy=str(self.crop.policy),
            val=f"{self.val_fraction:g}",
            counts={split: int((table.split == split).sum()) for split in ("train", "val", "test")},
            fingerprint=table.fingerprint(),
        )

    def mean_face(self) -> np.ndarray:
        """(K, 2) the training part's mean points, crop pixels: the zero that every net is held against."""
        rows = self.rows("train")
        known = self.prepare().labelled[rows][..., None]
        total = np.maximum(known.sum(0), 1)
        return (np.where(known, self.labels[rows], 0).sum(0) / total).astype(np.float32)

    def in_original(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Points (n, K, 2) in the crop pixels of `rows` as original-image pixels."""
        return transform(invert(self.store.to_crop()[rows]), points.astype(np.float64))

    # -- batches ---------------------------------------------------------------------------------------------------

    def _batches(self, split: str, training: bool) -> IndexBatches:
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        rows = self.rows(split)
        if not len(rows):
            raise UserError(f"data={self.name} has no {split} faces; name a set or a root that has")
        epoch = (lambda: trainer.current_epoch) if training and trainer else None
        return IndexBatches(rows, self.batch_size, rank, ranks, epoch, self.seed)

    def train_dataloader(self) -> IndexBatches:
        return self._batches("train", training=True)

    def val_dataloader(self) -> IndexBatches:
        return self._batches("val", training=False)

    def test_dataloader(self) -> IndexBatches:
        return self._batches(self.test_split, training=False)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Batch:
        epoch = self.trainer.current_epoch if self.trainer and self.trainer.training else None
        return self.batch(batch, epoch)

    def batch(self, index: Tensor, epoch: int | None) -> Batch:
        """The faces of an index tensor (B,), on its device; augmented for `epoch`, or as they are where None."""
        self.prepare()
        if index.device not in self.tensors:
            self.tensors[index.device] = _OnDevice.of(self, index.device)
        held, size = self.tensors[index.device], self.crop.size
        rows = index.cpu()
        images = held.images[rows.to(held.images.device)].to(index.device).permute(0, 3, 1, 2)
        points, labelled, to_original = held.labels[index], held.labelled[index], held.to_original[index]
        if epoch is None:
            margin = self.store.margin
            images = images[..., margin : margin + size, margin : margin + size].float() / 255
        else:
            draws = self.augment.draw(self.seed, epoch, rows.numpy())
            images, points, labelled, affine = self.augment(images, points, labelled, draws, size, self.scheme)
            to_original = compose(to_original, invert(affine))
        low, high = self.pixels
        return Batch(
            images=(images * (high - low) + low).contiguous(memory_format=torch.channels_last),
            points=points,
            labelled=labelled,
            to_original=to_original,
            normaliser=held.normaliser[index],
            index=index,
        )


@dataclass(frozen=True)
class _OnDevice:
    """The store's tensors where the net runs. Pixels stay on the host when they would fill the device."""

    images: Tensor
    labels: Tensor
    labelled: Tensor
    to_original: Tensor
    normaliser: Tensor

    @staticmethod
    def of(data: FaceData, device: torch.device) -> "_OnDevice":
        table = data.prepare()
        images = torch.from_numpy(data.store.images)
        if device.type == "cuda" and images.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]:
            images = images.to(device)
        return _OnDevice(
            images=images,
            labels=torch.from_numpy(data.labels).to(device),
            labelled=torch.from_numpy(table.labelled).to(device),
            to_original=torch.from_numpy(invert(data.store.to_crop())).float().to(device),
            normaliser=torch.from_numpy(data.normaliser).float().to(device),
        )
