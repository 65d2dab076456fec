"""Batches taken whole from the crop store, in an order and with draws that are functions of (seed, epoch, face)."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import Ge
from torch import Tensor

from flr.augment.affine import Affine
from flr.augment.albumentations import Albumentations
from flr.augment.transfer import to_device
from flr.data.batches import AugmentedBatches, Batch, IndexBatches, PrefetchedBatches, StoreTensors, take_rows
from flr.data.crops import CropSettings, crop_labels, open_store
from flr.data.download import Download
from flr.data.findings import nonsense
from flr.data.protocol import Protocol
from flr.data.quality import lying, mean_face, open_card, undefined_normaliser
from flr.data.splits import hold_out
from flr.data.table import UNLABELLED, FaceTable, check_faces
from flr.errors import UserError
from flr.landmarks.geometry import compose, invert, transform
from flr.landmarks.scheme import Scheme, get_scheme
from flr.landmarks.symmetry import check_mirror
from flr.system import cores


class FaceData(pl.LightningDataModule):
    """A dataset from its files to batches.

    Args:
        name: Name of the dataset, for errors.
        reader: ``reader(root=..., strict=...) -> FaceTable``.
        root: where the set lies; ``data=mix`` does not read it, since its sets have roots of their own.
        crop: what the model sees.
        cache: the folder of crop stores.
        augment: of the training part.
        pixels: what black and white become.
        batch_size: faces in a global batch, all ranks together.
        val_fraction: the share of the training part that is held out where the set has no validation part.
        test_fraction: as much for a set without a test part, held out first.
        strict: whether a fault of one face stops the run.
        scheme: a smaller scheme to reduce the labels to; None keeps the set's own.
        seed: of the order and the draws.
        workers: threads that decode images, and processes that augment them under ``augment=albumentations``; None
            takes the number of cores.
        download: where to fetch the set from; None where it has no direct address.
    """

    def __init__(
        self,
        *,
        name: str,
        reader: Callable[..., FaceTable],
        root: str,
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
        self.name, self.reader, self.crop, self.cache = name, reader, crop, Path(cache)
        self.root = Path(root).expanduser()
        self.augment, self.pixels, self.batch_size = augment, pixels, batch_size
        self.held_out = {"test": test_fraction, "val": val_fraction}
        self.strict, self.to_scheme, self.seed = strict, scheme, seed
        self.workers = cores() if workers is None else workers
        self.download = download
        self.table: FaceTable | None = None
        self.tensors: dict[torch.device, StoreTensors] = {}
        self._placed = False  # whether a training step has shown if its device has room for the crops
        self.test_split = "test"  # what a test pass scores; an evaluation may name another part

    def fetch(self) -> None:
        """Bring the set under its root, where its publisher has a direct address.

        Raises:
            UserError: it has none, or see `Download.fetch`.
        """
        if self.download is None:
            raise UserError(
                f"data={self.name} has no direct address to fetch from; leave download=true out to see where to get it"
            )
        self.download.fetch(self.root)

    # -- reading ---------------------------------------------------------------------------------------------------

    def prepare(self, refuse: bool = True) -> FaceTable:
        """Read, check, split and crop; a second call does nothing.

        Args:
            refuse: whether labels that cannot be true stop it; else its card tells of them.

        Raises:
            UserError: as the augmentation's check, the reader, `check_faces`, `hold_out`, `open_store` and `label_problem`.
        """
        if self.table is not None:
            return self.table
        self.augment.check(self.crop.size, self.crop.channels)
        table = check_faces(self.reader(root=self.root, strict=self.strict), self.strict)
        if self.to_scheme:
            table = table.reduce(self.to_scheme, get_scheme(self.to_scheme))
        # Before the crops, so that a detector's offset is learned on training faces alone.
        self.held_out = {part: share for part, share in self.held_out.items() if not (table.split == part).any()}
        for part, share in self.held_out.items():
            table = hold_out(table, share, part)
        table, self.store = open_store(table, self.crop, self.augment.margin, self.cache, self.workers, self.strict)
        self.card = open_card(table, self.store)
        if refuse and (problem := self.label_problem(table)):
            raise UserError(problem)
        self.table = table
        self.labels = crop_labels(table, self.store)
        self.normaliser = table.normaliser()
        return table

    def label_problem(self, table: FaceTable) -> str:
        """Return why a table cannot be trained on; empty where nothing is known against it."""
        if why := nonsense(self.card):
            return f"data={self.name}: {why}"
        if self.augment.mirror:
            labels = table.labelled & ((table.split == "train") & ~lying(table, self.store.image_info))[:, None]
            option = f"data={self.name}: augment.mirror={self.augment.mirror:g}"
            try:
                check_mirror(mean_face(table.points, labels), table.scheme, option, "augment.mirror=0")
            except UserError as error:
                return str(error)
        return ""

    def problems(self) -> list[str]:
        """Return all that stops a training on this dataset."""
        found = [self.label_problem(self.prepare(refuse=False))]
        for split in ("train", "val", "test"):
            try:
                self._batches(split, split == "train")
            except UserError as error:
                found.append(str(error))
        return [line for line in found if line]

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
        """(K, 2) the training part's mean points, crop pixels: the mean-shape baseline."""
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

    def check_visibility(self) -> None:
        """Raise `UserError` where no training face has a hidden point, so that there is no visibility to learn."""
        table, rows = self.prepare(), self.rows("train")
        if not (table.labelled[rows] & ~table.visible[rows]).any():
            raise UserError(
                f"objective.visibility_weight: no training face of data={self.name} has a hidden point; set it to 0, or take "
                "a dataset with visibility labels (data=synthetic or cofw)"
            )

    def _batches(self, split: str, training: bool, ranks: int | None = None) -> IndexBatches:
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, ranks or 1)
        rows = self.rows(split)
        if not len(rows):
            raise UserError(f"data={self.name} has no {split} faces; name a set or a root that has")
        if not training and split != UNLABELLED and not np.isfinite(self.normaliser[rows]).any():
            raise UserError(f"data={self.name}: {undefined_normaliser(self.prepare(), rows, split)}")
        epoch = (lambda: trainer.current_epoch if trainer else 0) if training else None
        weight = self.prepare().weight
        weight = None if weight is None else weight[rows]
        return IndexBatches(rows, self.batch_size, rank, ranks, epoch, self.seed, weight, len(self.prepare()))

    def _loader(self, batches: IndexBatches) -> IndexBatches | PrefetchedBatches:
        if self.trainer is None or self.trainer.strategy.root_device.type != "cuda":
            return batches
        return PrefetchedBatches(batches, self._crops_on_host, len(self.prepare()))

    def _crops_on_host(self) -> np.ndarray | None:
        """(N, S, S, C) uint8, the crops where they are not on the trainer's device."""
        assert self.trainer is not None
        held = self.tensors.get(self.trainer.strategy.root_device)
        return self.store.images if held is None or held.images.device.type == "cpu" else None

    def train_dataloader(self) -> IndexBatches | PrefetchedBatches | AugmentedBatches:
        batches = self._batches("train", training=True)
        if self.trainer is None or not isinstance(self.augment, Albumentations):
            return self._loader(batches)
        return AugmentedBatches(
            batches, self._augment_visits, self.workers // self.trainer.num_devices
        )  # this machine's ranks share

    def _augment_visits(self, visits: np.ndarray) -> Callable[[int], np.ndarray]:
        """What makes the images of the visits (n,) to this epoch's faces, as `batch` would."""
        augment, size, images = self.augment, self.crop.size, self.store.images
        assert isinstance(augment, Albumentations) and self.trainer is not None
        draws = augment.draw(self.seed, self.trainer.current_epoch, visits)
        maps, rows = draws.from_store(size, self.store.margin), visits % len(self.prepare())
        return lambda i: augment.augment_image(images[rows[i]], maps[i], int(draws.key[i]), size)

    def val_dataloader(self) -> IndexBatches | PrefetchedBatches:
        return self._loader(self._batches("val", training=False))

    def test_dataloader(self) -> IndexBatches | PrefetchedBatches:
        return self._loader(self._batches(self.test_split, training=False))

    def transfer_batch_to_device(
        self, batch: Tensor | tuple[Tensor, Tensor], device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Make a batch from what the batches of `train_dataloader`, `val_dataloader` or `test_dataloader` yield."""
        epoch = self.trainer.current_epoch if self.trainer and self.trainer.training else None
        index, images = (batch, None) if isinstance(batch, Tensor) else batch
        if epoch is not None:
            self.place_crops(device)
        if epoch is not None and isinstance(self.augment, Albumentations):
            return self.batch(index, epoch, augmented=images, device=device)
        return self.batch(index, epoch, crops=images, device=device)

    def place_crops(self, device: torch.device) -> None:
        """Move the crops to a CUDA device if they fit; called after the first training step, and does nothing before or again."""
        if device.type == "cuda" and device in self.tensors and not self._placed:
            self.tensors[device], self._placed = self.tensors[device].with_crops(), True

    def _tensors_on(self, device: torch.device) -> StoreTensors:
        """Return the tensors of all faces, which are copied to a device at its first batch."""
        if device not in self.tensors:
            table = self.prepare()
            self.tensors[device] = StoreTensors.of(
                self.store, self.labels, table.labelled, table.visible, self.normaliser, device
            )
        return self.tensors[device]

    def batch(
        self, index: Tensor, epoch: int | None, *, augmented: Tensor | None = None, crops: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Batch:  # fmt: skip
        """Make a batch of the faces of an index tensor (B,) of `IndexBatches`, augmented for `epoch` or not at all.

        The draws and the rows come from the host's own copy of the index: to ask a device for it would wait for all its work.

        Args:
            index: the faces' names, on the host.
            epoch: whose draws augment them; None for no augmentation.
            augmented: (B, H, W, C) uint8, their images if a worker has augmented them; None for their crops.
            crops: (B, S, S, C) uint8 in pinned memory, their crops; None for those of the store.
            device: of the batch; None for the host.
        """
        visits, device = index.numpy(), device or torch.device("cpu")
        rows = visits % len(self.prepare())
        (index,) = to_device(device, rows)
        held, size, margin = self._tensors_on(device), self.crop.size, self.store.margin
        points, labelled, visible, to_original, normaliser = (
            take_rows(all, rows, index)
            for all in (held.labels, held.labelled, held.visible, held.to_original, held.normaliser)
        )
        if augmented is not None:
            stored = to_device(device, augmented.numpy())[0]
        elif crops is not None:
            stored = crops.to(device, non_blocking=True)
        else:
            stored = take_rows(held.images, rows, index)
        images = stored.permute(0, 3, 1, 2)
        if epoch is not None:
            draws = self.augment.draw(self.seed, epoch, visits)
            flags = torch.stack([labelled, visible], -1)
            points, flags, affine = self.augment.points(points, flags, draws, size, self.scheme)
            labelled, visible = flags.unbind(-1)
            visible = visible & ~self.augment.hidden(points, draws, size)
            to_original = compose(to_original, invert(affine))
        if epoch is not None and augmented is None:
            images = self.augment.pixels(images, draws, size, self.pixels)
        else:
            inner = slice(None) if augmented is not None else slice(margin, margin + size)
            black, white = self.pixels
            images = images[..., inner, inner] * ((white - black) / 255) + black
        inside = ((points > -0.5) & (points < size - 0.5)).all(-1)
        return Batch(
            images=images.contiguous(memory_format=torch.channels_last),
            points=points,
            labelled=labelled,
            visible=visible & inside,
            to_original=to_original,
            normaliser=normaliser,
            index=index,
        )
