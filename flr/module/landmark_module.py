"""LandmarkModule: model, objective and metrics behind one shared step."""

import copy
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flr.data.batches import Batch
from flr.errors import UserError
from flr.landmarks.geometry import mirror, transform
from flr.landmarks.scheme import Scheme
from flr.landmarks.symmetry import check_mirror
from flr.metrics.errors import LandmarkErrors
from flr.objectives import Objective

Made = TypeVar("Made")
CHECK_EVERY_N_STEPS = 50  # steps between two checks that the losses are finite


def call(key: str, make: Callable[..., Made], *arguments: Any) -> Made:
    """Make the optimizer or the schedule of a config's key.

    Raises:
        UserError: It refuses a value, such as a negative learning rate.
    """
    try:
        return make(*arguments)
    except ValueError as error:
        raise UserError(f"{key}: {error}; set another value") from error


class LandmarkModule(pl.LightningModule):
    """Trains and evaluates a model under an objective.

    Args:
        net: maps (B, C, H, W) to its raw output; names that output's kind in ``output``.
        objective: names the kind it ``takes``; codes, weighs and decodes.
        scheme: of the points.
        size: the side of the crop, pixels.
        mean_face: (K, 2) crop pixels, the baseline.
        optim: ``optim(parameters) -> Optimizer``.
        schedule: ``schedule(optimizer, steps) -> LRScheduler``.
        ema: the decay of an exponential moving average of the weights, which then is what is evaluated; 0 for none.
        seed: of dropout.
        tta: whether evaluation averages the image and its mirror image.
        debias: whether each point is moved by the median of its errors on the validation faces (see `LandmarkErrors.offsets`).

    Attributes:
        about: plain values kept in every checkpoint next to the weights, and ``doubt`` and ``radius90`` (see
            `flr.metrics.conformal`) of the last validation with them.

    Raises:
        UserError: the objective does not take what the model puts out.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        scheme: Scheme,
        size: int,
        mean_face: np.ndarray,
        optim: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        ema: float = 0.0,
        seed: int = 0,
        tta: bool = False,
        debias: bool = False,
    ) -> None:
        super().__init__()
        if net.output != objective.takes:
            raise UserError(
                f"objective {type(objective).__name__} takes {objective.takes}, but {type(net).__name__} puts out "
                f"{net.output}; choose an objective= that takes {net.output}"
            )
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.objective, self.scheme, self.size, self.seed = objective, scheme, size, seed
        self.optim, self.schedule, self.ema = optim, schedule, ema
        self.about: dict[str, Any] = {}
        self.ema_net = copy.deepcopy(self.net).requires_grad_(False) if ema else None
        self.mean_face: Tensor
        self.register_buffer("mean_face", torch.from_numpy(mean_face))
        self.tta = tta
        self.offsets: Tensor | None
        self.register_buffer("offsets", torch.zeros(len(scheme), 2) if debias else None)
        self.errors, self.baseline = LandmarkErrors(), LandmarkErrors()
        self.evaluated: dict[str, np.ndarray] = {}
        self.data_changed = False  # since the checkpoint from which a training goes on
        self._average: WeightAverage | None = None
        self._steps: list[tuple[int, float, Tensor, Tensor]] = []

    @property
    def tta(self) -> bool:
        """Whether evaluation averages each image with its mirror image.

        Raises:
            UserError: It is set, and the scheme's pairs are not those of the mean face (see `check_mirror`).
        """
        return self._tta

    @tta.setter
    def tta(self, value: bool) -> None:
        if value:
            mean = self.mean_face.cpu().numpy()
            check_mirror(np.where(mean.any(1, keepdims=True), mean, np.nan), self.scheme, "tta=true", "tta=false")
        self._tta = value

    @property
    def best_net(self) -> nn.Module:
        """What is evaluated: the averaged weights where there are any."""
        return self.ema_net if self.ema_net is not None else self.net

    @property
    def radius_factors(self) -> np.ndarray | None:
        """(K,) of the weights' validation, NaN where unknown; None for checkpoints of versions without them."""
        factors = self.about.get("radius90")
        return None if factors is None else np.array(factors, np.float64)

    def forward(self, images: Tensor) -> Tensor:
        """(B, K, 2) float32 crop pixels of images (B, C, H, W)."""
        return self.predict_points(images)[0]

    def predict_points(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What evaluation finds on images (B, C, H, W), see `find_points`."""
        order = self.scheme.mirror_order.tolist() if self.tta else None
        return find_points(self.best_net, self.objective, images, self.size, order, self.offsets)

    def _ranks(self, value: Tensor) -> Tensor:
        """(ranks, ...) a tensor of every rank."""
        return torch.as_tensor(self.all_gather(value)).reshape(-1, *value.shape)

    # -- training --------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self._average = None if self.ema_net is None else WeightAverage(self.ema_net, self.net)

    def teardown(self, stage: str) -> None:
        self._average = None  # its tensors are those of the device

    def on_train_epoch_start(self) -> None:
        # Dropout is a function of (seed, epoch, rank): a resumed run draws what an uninterrupted one would have drawn.
        torch.manual_seed(hash((self.seed, self.current_epoch, self.global_rank)) % 2**63)
        self._sum = torch.zeros((), device=self.device)
        self._count = torch.zeros((), device=self.device)
        self._faces, self._since = 0, time.perf_counter()
        self._steps.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        total, count = self._loss_of(self.net(batch.images), batch)
        self._sum += total.detach()
        self._count += count
        self._faces += len(batch.index) * self.trainer.world_size
        if self.trainer.world_size > 1:
            # The global batch's own mean: gradients are averaged over ranks, so each gives its sum over the mean count.
            count = self._ranks(count).sum() / self.trainer.world_size
        loss = total / count.clamp_min(1)
        # Checked now and then: to read the loss of each step would have a GPU wait for it.
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._steps.append((self.trainer.global_step + 1, rate, loss.detach(), batch.index))
        if len(self._steps) == CHECK_EVERY_N_STEPS:
            self._check_finite_loss()
        self.log("train/loss_step", loss.detach())
        return loss

    def _loss_of(self, raw: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a batch and the number of points that it is over."""
        total, count = self.objective.loss(raw, batch.points, batch.labelled, self.size)
        if self.objective.visibility_weight:
            total = total + self.objective.visibility_loss(raw, batch.visible, batch.labelled)
        return total, count

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self._average is not None:
            step = self.trainer.global_step
            self._average.step(min(self.ema, (1 + step) / (10 + step)))

    def on_train_epoch_end(self) -> None:
        seconds = self._until - self._since
        total = self._ranks(torch.stack([self._sum, self._count])).sum(0)
        self._check_finite_loss()
        self.log_dict(
            {
                "train/loss": total[0] / total[1],
                "train/images_per_second": self._faces / seconds,
                "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            }
        )

    def _check_finite_loss(self) -> None:
        """Stop at the first loss that is NaN or infinite.

        Raises:
            UserError: where, and at which learning rate.
        """
        if not self._steps:  # an epoch of a multiple of `CHECK_EVERY_N_STEPS` steps
            return
        losses = self._ranks(torch.stack([loss for _, _, loss, _ in self._steps]))
        bad = (~losses.isfinite()).nonzero().tolist()
        if bad:
            first, rank = min((step, rank) for rank, step in bad)
            step, rate, loss, index = self._steps[first]
            names = self.trainer.datamodule.table.name[index.cpu().numpy()]  # type: ignore[attr-defined]
            where = f"{loss.item()}, over {len(names)} faces ({', '.join(names[:3])}, ...)"
            where = self.trainer.strategy.broadcast(where, src=rank)
            raise UserError(
                f"the loss of step {step} (epoch {self.current_epoch + 1}, lr {rate:.3g}) is not a finite number: {where}; "
                "lower optim.lr or set trainer.gradient_clip_val (the checkpoints of the epochs before are kept)"
            )
        self._steps.clear()

    def on_train_batch_end(self, *args: Any) -> None:
        if self.trainer.is_last_batch:
            self._sum.item()  # waits until the device has done the steps that the time is taken of
        self._until = time.perf_counter()  # validation and images, which follow the last batch, are not training

    def make_optimizer(self) -> Optimizer:
        """Build the optimizer.

        Raises:
            UserError: It refuses one of its arguments, such as a negative learning rate.
        """
        named = [p for part in (self.net, self.objective) for p in part.parameters() if p.requires_grad]
        groups = [{"params": [p for p in named if p.ndim > 1]}, {"params": [p for p in named if p.ndim < 2]}]
        optimizer = call("optim", self.optim, groups)
        # Norms and biases are not decayed: it only fights the normalisation.
        optimizer.param_groups[1]["weight_decay"] = 0.0
        return optimizer

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer()
        schedule = call("schedule", self.schedule, optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- evaluation ------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.errors.reset()
        self.baseline.reset()
        double = torch.float32 if self.device.type == "mps" else torch.float64
        self._loss = torch.zeros(2, device=self.device, dtype=double)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        raw = self.best_net(batch.images)
        total, count = self._loss_of(raw, batch)
        self._loss += torch.stack([total, count]).to(self._loss.dtype)
        self._update_metrics(batch, *(read(raw, self.size) for read in decoders(self.objective)))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._update_metrics(batch, *self.predict_points(batch.images))

    def _update_metrics(self, batch: Batch, points: Tensor, spread: Tensor, visible: Tensor) -> None:
        truth = transform(batch.to_original, batch.points)
        (a, b), (c, d) = (row.unbind(-1) for row in batch.to_original[..., :2].unbind(-2))
        side = self.size * (a * d - b * c).abs().sqrt()  # torch's determinant waits for the device
        spread = spread * (side / self.size)[:, None]
        for metric, predicted in ((self.errors, points), (self.baseline, self.mean_face.expand_as(points))):
            there = transform(batch.to_original, predicted)
            metric.update(
                batch.index, there, truth, batch.labelled, batch.normaliser, side, spread, visible, ~batch.visible
            )

    def on_validation_epoch_end(self) -> None:
        values = {f"val/{name}": value for name, value in self.errors.compute().items()}
        threshold = values.get("val/uncertainty_threshold")
        self.about["doubt"] = None if threshold is None else threshold.item()  # the name that checkpoints have for it
        if self.offsets is not None:
            self.offsets.copy_(torch.from_numpy(self.errors.offsets()))
        self.about["radius90"] = self.errors.radius_factors(self.offsets)
        values["val/baseline_nme"] = self.baseline.compute()["nme"]
        subsets = self.trainer.datamodule.table.subsets  # type: ignore[attr-defined]
        values |= {f"val/{name}/nme": value for name, value in self.errors.by_subset(subsets).items()}
        total, count = self._ranks(self._loss).sum(0)
        values["val/loss"] = total / count
        for name, value in values.items():
            self.log(name, value.float(), prog_bar=name == "val/nme")

    def on_test_epoch_end(self) -> None:
        with self.errors.sync_context():
            self.evaluated = self.errors.gathered()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A run that goes on further than it was planned follows its schedule over the new plan, not the old one's end.
        for state in checkpoint.get("lr_schedulers", []):
            for planned in ("total_steps", "_schedule_phases"):
                state.pop(planned, None)
        self.about["radius90"] = checkpoint.get("flr", {}).get("radius90")  # that of the weights
        if self.data_changed:  # errors on other faces are no measure of what was best
            checkpoint["callbacks"] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["flr"] = self.about


def decoders(objective: Objective) -> tuple[Callable[[Tensor, int], Tensor], ...]:
    """List what is read from a model's raw output: the points, their uncertainty, and the probability that they are visible."""
    return objective.decode, objective.spread, objective.visible


def find_points(
    net: nn.Module,
    objective: Objective,
    images: Tensor,
    size: int,
    mirror_order: list[int] | None,
    offsets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The points of images (B, C, size, size), averaged with the mirror image's by a mirror order, and moved by offsets.

    Offsets (K, 2) are shares of the side.

    Returns:
        (B, K, 2) float32 crop pixels; (B, K) how uncertain each is, see `Objective.spread`; (B, K) the probability that
        each is visible, see `Objective.visible`.
    """
    raw = net(images)
    points, spread, visible = (read(raw, size) for read in decoders(objective))
    if mirror_order is not None:
        back = torch.from_numpy(mirror(size)).to(points)
        raw = net(images.flip(-1))
        points = (points + transform(back, objective.decode(raw, size))[:, mirror_order]) / 2
        spread = (spread + objective.spread(raw, size)[:, mirror_order]) / 2
        visible = (visible + objective.visible(raw, size)[:, mirror_order]) / 2
    if offsets is not None:
        points = points + offsets * size
    return points, spread, visible


class WeightAverage:
    """Move averaged weights towards those that are trained.

    The tensors are listed once: to walk over all modules costs the host as much time as to launch a few kernels.
    """

    def __init__(self, average: nn.Module, current: nn.Module) -> None:
        pairs = list(zip(average.state_dict().values(), current.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.average, self.current = [a for a, _ in floats], [b for _, b in floats]
        self.average_counters, self.counters = [a for a, _ in counters], [b for _, b in counters]

    @torch.no_grad()
    def step(self, decay: float) -> None:
        """Move floats by 1 - decay, and copy counters."""
        torch._foreach_lerp_(self.average, self.current, 1 - decay)
        if self.counters:
            torch._foreach_copy_(self.average_counters, self.counters)
