"""Batches taken whole from the crop store, in an order and with draws that are functions of (seed, epoch, face)."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import Ge
from torch import Tensor

from flr.augment.affine import Affine
from flr.augment.albumentations import Albumentations
from flr.augment.draws import order, uniform
from flr.data.crops import CropSettings, crop_labels, open_store
from flr.data.download import Download
from flr.data.quality import open_card, refuse_nonsense
from flr.data.splits import hold_out
from flr.data.table import FaceTable, check_faces
from flr.errors import UserError
from flr.landmarks.geometry import compose, invert, transform
from flr.landmarks.scheme import Scheme, get_scheme
from flr.system import cores, in_order


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
        held_out: part -> the share of the training faces that it was made of, where the set itself gives no such part.
        counts: faces per split after skips.
        fingerprint: of the table.
    """

    form: str
    scheme: str
    normaliser: str
    policy: str
    held_out: dict[str, float]
    counts: dict[str, int]
    fingerprint: str

    @property
    def name(self) -> str:
        """Readable, and different where the numbers must not be compared."""
        counts = "/".join(str(self.counts[part]) for part in ("train", "val", "test"))
        return f"{self.form} {self.scheme} {counts} {self.policy} {self.normaliser} {self.fingerprint}"


class IndexBatches:
    """The faces of each global batch, sliced by rank: what a loader would be if samples were loaded one by one.

    A face is named by its row of the table; its second visit in an epoch by its row + `total`, and so on, so that each
    visit is bent anew.

    Args:
        rows: (n,) int64, the rows of the table that this part holds.
        batch: faces in a global batch.
        rank: this rank.
        ranks: of how many.
        epoch: the current epoch; None for an evaluation, which keeps the order and the uneven last batch.
        seed: of the order.
        weight: (n,) how often each face is visited in an epoch, on average; None for once.
        total: rows of the whole table.
    """

    def __init__(
        self, rows: np.ndarray, batch: int, rank: int, ranks: int, epoch: Callable[[], int] | None, seed: int,
        weight: np.ndarray | None = None, total: int = 0,
    ) -> None:  # fmt: skip
        self.weight, self.total = weight, total
        self.visits = len(rows) if weight is None or epoch is None else round(float(weight.sum()))
        if epoch is not None:
            batch = min(batch, self.visits)
        # Batch norm learns from two faces or more.
        if batch < ranks * (1 if epoch is None else 2):
            raise UserError(
                f"a batch of {batch} on {ranks} device(s) leaves one with too few faces; raise data.batch_size, or add faces"
            )
        self.rows, self.batch, self.rank, self.ranks, self.epoch, self.seed = rows, batch, rank, ranks, epoch, seed

    def __len__(self) -> int:
        # Training drops the uneven rest of an epoch: batch norm and the global loss want whole batches.
        return self.visits // self.batch if self.epoch else -(-self.visits // self.batch)

    def __iter__(self) -> Iterator[Tensor]:
        faces = self.rows
        if self.epoch:
            faces = self._visited(self.epoch())
            faces = faces[order(self.seed, self.epoch(), len(faces))]
        for step in range(len(self)):
            yield torch.from_numpy(faces[step * self.batch : (step + 1) * self.batch][self.rank :: self.ranks])

    def _visited(self, epoch: int) -> np.ndarray:
        """(visits,) the faces of an epoch: systematic sampling, so that each weight has its share in every epoch."""
        if self.weight is None:
            return self.rows
        shuffled = order(self.seed + 1, epoch, len(self.rows))
        shuffled = shuffled[np.argsort(self.weight[shuffled], kind="stable")]
        reached = np.cumsum(self.weight[shuffled]) * (self.visits / self.weight.sum())
        reached[-1] = self.visits
        start = uniform(self.seed, epoch, np.zeros(1), 1)[0, 0]
        times = np.diff(np.floor(reached + start).astype(int), prepend=0)
        nth = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        return np.repeat(self.rows[shuffled], times) + nth * self.total


class BentBatches:
    """`IndexBatches` beside their pictures, which worker processes bend ahead of the training.

    Args:
        batches: what they go with.
        bend: takes the visits (n,) of an epoch in their order; gives what makes picture i of them, (H, W, C) uint8.
        workers: processes; below 2 for none beside this one.
    """

    def __init__(
        self, batches: IndexBatches, bend: Callable[[np.ndarray], Callable[[int], np.ndarray]], workers: int
    ) -> None:
        self.batches, self.bend, self.workers = batches, bend, workers

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = list(self.batches)
        visits = torch.cat(parts).numpy()
        share = -(-len(parts[0]) // max(1, self.workers))  # so that the next batch is made while this one is learned
        with contextlib.closing(in_order(self.bend(visits), len(visits), self.workers, share)) as pictures:
            for part in parts:
                yield part, torch.from_numpy(np.stack([next(pictures) for _ in part]))


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
        test_fraction: as much for a set without a test part, held out first.
        strict: whether a fault of one face stops the run.
        scheme: a smaller scheme to reduce the labels to; None keeps the set's own.
        seed: of the order and the draws.
        workers: processes that decode pictures, and bend them under ``augment=albumentations``; None takes the
            number of cores.
        download: where to fetch the set from; None where it has no direct address.
    """

    def __init__(
        self,
        *,
        name: str,
        reader: Callable[..., FaceTable],
        root: str | None,
        crop: CropSettings,
        cache: str,
        augment: Affine,
        pixels: tuple[float, float] = (-1.0, 1.0),
        batch_size: Annotated[int, Ge(2)] = 32,  # batch norm learns from two faces or more
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        strict: bool = False,
        scheme: str | None = None,
        seed: int = 0,
        workers: Annotated[int, Ge(0)] | None = None,
        download: Download | None = None,
    ) -> None:
        super().__init__()
        if root == "":
            raise UserError(f"data={name} has no folder; set data.root=DIR")
        self.name, self.reader, self.root, self.crop, self.cache = name, reader, root, crop, Path(cache)
        self.augment, self.pixels, self.batch_size = augment, pixels, batch_size
        self.held_out = {"test": test_fraction, "val": val_fraction}
        self.strict, self.to_scheme, self.seed = strict, scheme, seed
        self.workers = cores() if workers is None else workers
        self.download = download
        self.table: FaceTable | None = None
        self.test_split = "test"  # what a test pass scores; an evaluation may name another part

    def fetch(self) -> None:
        """Bring the set under its root, where its publisher has a direct address.

        Raises:
            UserError: it has none, or see `Download.fetch`.
        """
        if self.download is None:
            raise UserError(
                f"data={self.name} has no direct address to fetch from; leave download=true out to be told where to get it"
            )
        if self.root is None:
            raise UserError("data.root is null; set data.root=DIR")
        self.download.fetch(Path(self.root).expanduser())

    # -- reading ---------------------------------------------------------------------------------------------------

    def prepare(self, refuse: bool = True) -> FaceTable:
        """Read, check, split and crop; a second call does nothing.

        Args:
            refuse: whether labels that cannot be true stop it; else its card tells of them.

        Raises:
            UserError: as the augmentation's check, the reader, `check_faces`, `hold_out`, `open_store` and `refuse_nonsense`.
        """
        if self.table is not None:
            return self.table
        self.augment.check(self.crop.size, self.crop.channels)
        root = Path(self.root).expanduser() if self.root is not None else None
        table = check_faces(self.reader(root=root, strict=self.strict), self.strict)
        if self.to_scheme:
            table = table.reduce(self.to_scheme, get_scheme(self.to_scheme))
        # Before the crops, so that a detector's offset is learned on training faces alone.
        self.held_out = {part: share for part, share in self.held_out.items() if not (table.split == part).any()}
        for part, share in self.held_out.items():
            table = hold_out(table, share, part)
        table, self.store = open_store(table, self.crop, self.augment.margin, self.cache, self.workers, self.strict)
        self.card = open_card(table, self.store)
        if refuse:
            refuse_nonsense(self.card, str(self.name))
        self.table = table
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
            held_out=self.held_out,
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

    def refuse_ranks(self, ranks: int) -> None:
        """Raises `UserError` where a part is empty, or its batches leave one of so many ranks with too few faces."""
        for split in ("train", "val", "test"):
            self._batches(split, split == "train", ranks)

    def _batches(self, split: str, training: bool, ranks: int | None = None) -> IndexBatches:
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, ranks or 1)
        rows = self.rows(split)
        if not len(rows):
            raise UserError(f"data={self.name} has no {split} faces; name a set or a root that has")
        epoch = (lambda: trainer.current_epoch if trainer else 0) if training else None
        weight = self.prepare().weight
        weight = None if weight is None else weight[rows]
        return IndexBatches(rows, self.batch_size, rank, ranks, epoch, self.seed, weight, len(self.prepare()))

    def train_dataloader(self) -> IndexBatches | BentBatches:
        batches = self._batches("train", training=True)
        if self.trainer is None or not isinstance(self.augment, Albumentations):
            return batches
        return BentBatches(batches, self._bend, self.workers // self.trainer.num_devices)  # this machine's ranks share

    def _bend(self, visits: np.ndarray) -> Callable[[int], np.ndarray]:
        """What makes the pictures of the visits (n,) to this epoch's faces, as `batch` would."""
        augment, size, images = self.augment, self.crop.size, self.store.images
        assert isinstance(augment, Albumentations) and self.trainer is not None
        draws = augment.draw(self.seed, self.trainer.current_epoch, visits)
        maps, rows = draws.from_store(size, self.store.margin), visits % len(self.prepare())
        return lambda i: augment.picture(images[rows[i]], maps[i], int(draws.key[i]), size)

    def val_dataloader(self) -> IndexBatches:
        return self._batches("val", training=False)

    def test_dataloader(self) -> IndexBatches:
        return self._batches(self.test_split, training=False)

    def on_after_batch_transfer(self, batch: Tensor | tuple[Tensor, Tensor], dataloader_idx: int) -> Batch:
        epoch = self.trainer.current_epoch if self.trainer and self.trainer.training else None
        index, bent = (batch, None) if isinstance(batch, Tensor) else batch
        return self.batch(index, epoch, bent)

    def batch(self, index: Tensor, epoch: int | None, bent: Tensor | None = None) -> Batch:
        """The faces of an index tensor (B,) of `IndexBatches`, on its device; bent for `epoch`, or as they are.

        Args:
            index: the faces' names.
            epoch: whose draws bend them; None for none.
            bent: (B, H, W, C) uint8, their pictures where these are bent already.
        """
        visits, index = index, index % len(self.prepare())
        if index.device not in self.tensors:
            self.tensors[index.device] = _OnDevice.of(self, index.device)
        held, size, margin = self.tensors[index.device], self.crop.size, self.store.margin
        points, labelled, to_original = (_rows(all, index) for all in (held.labels, held.labelled, held.to_original))

        def stored() -> Tensor:
            return _rows(held.images, index).to(index.device).permute(0, 3, 1, 2)

        def levelled(images: Tensor) -> Tensor:
            return images * ((self.pixels[1] - self.pixels[0]) / 255) + self.pixels[0]

        if epoch is None:
            images = levelled(stored()[..., margin : margin + size, margin : margin + size])
        else:
            draws = self.augment.draw(self.seed, epoch, visits.cpu().numpy())
            points, labelled, affine = self.augment.points(points, labelled, draws, size, self.scheme)
            to_original = compose(to_original, invert(affine))
            if bent is None:
                images = self.augment.pixels(stored(), draws, size, self.pixels)
            else:
                images = levelled(bent.permute(0, 3, 1, 2))
        return Batch(
            images=images.contiguous(memory_format=torch.channels_last),
            points=points,
            labelled=labelled,
            to_original=to_original,
            normaliser=_rows(held.normaliser, index),
            index=index,
        )


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor, where it lies. On a CPU by numpy: torch's gather wakes OpenMP's threads for it, and where the
    cores are busy it waits for them, up to a hundred times as long as the copy takes.
    """
    return values[index] if values.is_cuda else torch.from_numpy(values.numpy()[index.cpu().numpy()])


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
