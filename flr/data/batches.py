"""Batches of faces, by index, and the tensors that they are taken from."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flr.augment.draws import order, uniform
from flr.augment.transfer import to_device
from flr.data.crops import CropStore
from flr.errors import UserError
from flr.landmarks.geometry import invert
from flr.system import start_worker

SPARE = 0.1  # share of a GPU's memory that crops leave free: the optimiser's state, validation, other libraries


@dataclass(frozen=True)
class Batch:
    """B faces as the model sees them.

    Attributes:
        images: (B, C, H, W) float, in the range that `FaceData.pixels` names.
        points: (B, K, 2) float, crop pixels; anything where not `labelled`.
        labelled: (B, K) bool.
        visible: (B, K) bool, whether the image shows the point; meaningful where `labelled`.
        to_original: (B, 2, 3) float, crop pixels to original-image pixels.
        normaliser: (B,) float, original-image pixels.
        index: (B,) int64, rows of the table.
    """

    images: Tensor
    points: Tensor
    labelled: Tensor
    visible: Tensor
    to_original: Tensor
    normaliser: Tensor
    index: Tensor


class IndexBatches:
    """The faces of each global batch, sliced by rank: what a loader would be if samples were loaded one by one.

    A face is named by its row of the table; its second visit in an epoch by its row + `total`, and so on, so that each
    visit is augmented anew.

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


class PrefetchedBatches:
    """`IndexBatches` with their crops, which a thread copies into pinned memory one batch ahead of the device.

    Args:
        batches: The batches of indices.
        crops: Returns the crops of all faces (N, S, S, C) uint8 where they are on the host; None where the device has them.
        total: Rows of the whole table.
    """

    def __init__(self, batches: IndexBatches, crops: Callable[[], np.ndarray | None], total: int) -> None:
        self.batches, self.crops, self.total = batches, crops, total

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        ahead: deque[tuple[Tensor, Tensor | None, Future[Any] | None]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for index in self.batches:
                source, target, copied = self.crops(), None, None
                if source is not None:
                    target = torch.empty((len(index), *source.shape[1:]), dtype=torch.uint8, pin_memory=True)
                    rows = index.numpy() % self.total
                    copied = pool.submit(np.take, source, rows, 0, target.numpy(), "clip")  # other modes copy twice
                ahead.append((index, target, copied))
                if len(ahead) > 1:
                    yield _copied(*ahead.popleft())
            while ahead:
                yield _copied(*ahead.popleft())


def _copied(index: Tensor, target: Tensor | None, copied: "Future[Any] | None") -> Tensor | tuple[Tensor, Tensor]:
    if target is None or copied is None:
        return index
    copied.result()
    return index, target


class AugmentedBatches:
    """`IndexBatches` with their images, which worker processes augment ahead of the training.

    Args:
        batches: The batches of indices.
        augment: Takes the visits (n,) of an epoch in their order; returns what makes image i of them, (H, W, C) uint8.
        workers: Number of processes; 0 for none, as on systems without fork.
    """

    def __init__(
        self, batches: IndexBatches, augment: Callable[[np.ndarray], Callable[[int], np.ndarray]], workers: int
    ) -> None:
        self.batches, self.augment = batches, augment
        self.workers = workers if sys.platform == "linux" else 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts, parent = list(self.batches), os.getpid()
        last = np.cumsum([len(part) for part in parts])
        loader: DataLoader[np.ndarray] = DataLoader(
            _Images(self.augment(torch.cat(parts).numpy())),
            batch_sampler=[list(range(end - len(part), end)) for part, end in zip(parts, last, strict=True)],
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=lambda _: start_worker(parent),
            multiprocessing_context="fork" if self.workers else None,  # which shares the store without a copy
            generator=torch.Generator(),  # else it draws from the training's own
        )
        # A fork copies the lock of OpenCV's thread pool but not its threads: a child that meets it waits for ever.
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            for part, images in zip(parts, loader, strict=True):
                if errors := [image for image in images if isinstance(image, UserError)]:
                    raise errors[0]
                yield part, torch.from_numpy(np.stack(images))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "a worker process was killed, as happens when memory runs out; lower data.workers"
            ) from error
        finally:
            cv2.setNumThreads(threads)


@dataclass(frozen=True)
class _Images(Dataset[Any]):
    """The images of an epoch. Errors are returned, since a DataLoader would raise them with a traceback in their text."""

    make: Callable[[int], np.ndarray]

    def __getitem__(self, i: int) -> np.ndarray | UserError:
        try:
            return self.make(i)
        except UserError as error:
            return error


def take_rows(values: Tensor, rows: np.ndarray, index: Tensor) -> Tensor:
    """Take rows of a tensor to the device of `index`, which holds the same numbers as `rows`, without waiting for the device.

    On the host numpy does it: torch's gather wakes OpenMP's threads for it, and where the cores are busy it waits for them, up to
    a hundred times as long as the copy takes.
    """
    return values[index] if values.device.type != "cpu" else to_device(index.device, values.numpy()[rows])[0]


@dataclass(frozen=True)
class StoreTensors:
    """The tensors of N faces where the model runs.

    Attributes:
        images: (N, S, S, C) uint8, the crops with their margin; on the host unless `with_crops` moves them.
        labels: (N, K, 2) float, crop pixels.
        labelled: (N, K) bool.
        visible: (N, K) bool.
        to_original: (N, 2, 3) float, crop pixels to original-image pixels.
        normaliser: (N,) float, original-image pixels.
    """

    images: Tensor
    labels: Tensor
    labelled: Tensor
    visible: Tensor
    to_original: Tensor
    normaliser: Tensor

    @staticmethod
    def of(
        store: CropStore, labels: np.ndarray, labelled: np.ndarray, visible: np.ndarray, normaliser: np.ndarray,
        device: torch.device,
    ) -> "StoreTensors":  # fmt: skip
        """Copy arrays of N faces to a device, all but the crops."""
        return StoreTensors(
            images=torch.from_numpy(store.images),
            labels=torch.from_numpy(labels).to(device),
            labelled=torch.from_numpy(labelled).to(device),
            visible=torch.from_numpy(visible).to(device),
            to_original=torch.from_numpy(invert(store.to_crop())).float().to(device),
            normaliser=torch.from_numpy(normaliser).float().to(device),
        )

    def with_crops(self) -> "StoreTensors":
        """Move the crops to the CUDA device of the labels, if they fit.

        Call it after a training step: PyTorch then keeps the memory that a step needs at its peak, so that the device's free
        memory is what steps do not need.
        """
        device, size = self.labels.device, self.images.nbytes
        free, total = torch.cuda.mem_get_info(device)
        if size < free - SPARE * total:
            return replace(self, images=self.images.to(device))
        print(
            f"note: the crops ({size / 2**30:.1f} GiB) stay in host memory, from where each batch is copied: {device} has "
            f"{free / 2**30:.1f} GiB free next to a training step, and {SPARE:.0%} of {total / 2**30:.1f} GiB are spared",
            file=sys.stderr,
        )
        return self
