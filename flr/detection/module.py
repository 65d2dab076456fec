"""The detector's loss, and how well it finds faces in rendered scenes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flr.data.finders.votes import SMALLEST, find_votes, merge
from flr.detection.network import DetectorNet
from flr.detection.scenes import FACE, IGNORED
from flr.module.landmark_module import call

_FALSE_ALARMS = 0.05  # false alarms a scene at which the recall is measured


class DetectorModule(pl.LightningModule):
    """Train a `DetectorNet` on patches; validate it on scenes, decoded as in use.

    Args:
        net: The network.
        optim: Makes the optimizer of parameters.
        schedule: Makes the learning-rate schedule of an optimizer and the number of steps.
    """

    def __init__(
        self, net: DetectorNet, optim: Callable[[Any], Optimizer], schedule: Callable[[Optimizer, int], LRScheduler]
    ) -> None:
        super().__init__()
        self.net, self.optim, self.schedule = net, optim, schedule
        self.hits: list[float] = []  # score of each face; 0 where it was not found
        self.false_alarms: list[float] = []  # scores
        self.scenes = 0

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, targets = batch
        maps = self.net(images.contiguous(memory_format=torch.channels_last)).float()
        heat, box = losses(maps, targets)
        self.log_dict({"train/loss": heat + box, "train/heat": heat, "train/box": box}, on_step=True)
        return heat + box

    def on_validation_epoch_start(self) -> None:
        self.hits, self.false_alarms, self.scenes = [], [], 0

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        for image, boxes in zip(*batch, strict=True):
            faces = merge(find_votes(image[0].byte().cpu().numpy(), self.maps))
            truth = boxes.cpu().double().numpy()
            hits, false = judge(faces, truth[truth[:, 3] == FACE], truth[truth[:, 3] == IGNORED])
            large = truth[truth[:, 3] == FACE, 2] >= SMALLEST
            self.hits += hits[large].tolist()
            self.false_alarms += false.tolist()
            self.scenes += 1

    def maps(self, level: np.ndarray) -> np.ndarray:
        """Run the network on a level, as `flr.data.finders.votes.Network`."""
        image = torch.from_numpy(level)[None, None].to(self.device, torch.float32)
        return self.net(image)[0].float().cpu().numpy()

    def on_validation_epoch_end(self) -> None:
        allowed = int(_FALSE_ALARMS * self.scenes)
        threshold = sorted([*self.false_alarms, *([0.0] * (allowed + 1))], reverse=True)[allowed]
        recall = 100 * np.mean(np.array(self.hits) > threshold) if self.hits else 0.0
        self.log_dict({"val/recall": float(recall), "val/threshold": threshold})

    def configure_optimizers(self) -> Any:
        optimizer = call("optim", self.optim, self.parameters())
        schedule = call("schedule", self.schedule, optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def losses(maps: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of the heat map and that of the boxes.

    The heat map has the penalty-reduced focal loss of Law and Deng 2018, arXiv:1808.01244.

    Args:
        maps: (B, 4, h, w) of the network.
        targets: (B, 6, h, w), see `flr.detection.patches.targets`.
    """
    heat, weight, inside, box = targets[:, 0], targets[:, 1], targets[:, 2], targets[:, 3:]
    logit = maps[:, 0]
    probability, peak = torch.sigmoid(logit), (heat > 0.999).float()
    found = functional.logsigmoid(logit) * (1 - probability) ** 2 * peak
    quiet = functional.logsigmoid(-logit) * probability**2 * (1 - heat) ** 4 * weight * (1 - peak)
    distance = functional.smooth_l1_loss(maps[:, 1:], box, reduction="none", beta=0.1).sum(1)
    heat_loss = -(found.sum() + quiet.sum()) / peak.sum().clamp(min=1)
    return heat_loss, (distance * inside).sum() / inside.sum().clamp(min=1)


def judge(faces: np.ndarray, truth: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of each true face, 0 where it is not found, and the scores of the false alarms.

    A face is found where its centre is in the box and the sizes differ by less than a factor 1.8. A false alarm comes near no
    face at all.

    Args:
        faces: (M, 4) centre x, y, size and score.
        truth: (N, 3+) centre x, y and size.
        ignored: As `truth`, faces that need not be found.
    """
    hits, near = np.zeros(len(truth)), np.zeros(len(faces), bool)
    for k, (x, y, size) in enumerate(truth[:, :3]):
        away = np.abs(faces[:, :2] - (x, y)).max(1)
        found = (away < faces[:, 2] / 2) & (np.abs(np.log(faces[:, 2] / size)) < np.log(1.8))
        hits[k] = faces[found, 3].max(initial=0)
    for x, y, size in np.concatenate([truth, ignored])[:, :3]:
        near |= np.abs(faces[:, :2] - (x, y)).max(1) < (faces[:, 2] + size) * 0.4
    return hits, faces[~near, 3]
