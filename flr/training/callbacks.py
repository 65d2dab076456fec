"""Callbacks of a training: progress with the time left, an early end, checkpoints, validation images."""

import io
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.plugins import TorchCheckpointIO
from tqdm import tqdm

from flr.data.datamodule import FaceData
from flr.evaluation.report import face_sheet
from flr.files import writing
from flr.landmarks.draw import with_legend
from flr.module.landmark_module import LandmarkModule
from flr.tracking.tracker import Tracker

SHOWN = ("train/loss", "val/nme", "train/images_per_second")  # in the line of an epoch


class Progress(TQDMProgressBar):
    """Lightning's bar, with the time left to the end of the whole training; in a pipe or a file, a line an epoch."""

    def setup(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        super().setup(trainer, *args, **kwargs)
        if not sys.stdout.isatty():
            self.disable()

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self._start, self._first = time.monotonic(), self.trainer.current_epoch
        self._loss: dict[str, float] = {}

    def _left(self) -> str:
        """Return the time left to the end of the training; empty while no epoch has ended."""
        epoch, total = self.trainer.current_epoch, self.trainer.max_epochs or 0
        done = epoch - self._first
        if not done or total <= epoch:
            return ""
        return f", {tqdm.format_interval((time.monotonic() - self._start) / done * (total - epoch))} left"

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        epoch = trainer.current_epoch
        self.train_progress_bar.set_description(f"Epoch {epoch + 1}/{trainer.max_epochs or 0}{self._left()}")
        if epoch > self._first:
            self._print_line()

    def on_train_end(self, *args: Any) -> None:
        super().on_train_end(*args)
        self._print_line()

    def _print_line(self) -> None:
        """Print the epoch that has ended, where no bar can be drawn; its training loss is known only after its hooks."""
        if not sys.stdout.isatty() and self.trainer.is_global_zero:
            values = self.trainer.callback_metrics
            numbers = ", ".join(f"{name} {float(values[name]):.4g}" for name in SHOWN if name in values)
            print(
                f"Epoch {self.trainer.current_epoch}/{self.trainer.max_epochs or 0}{self._left()}: {numbers}",
                flush=True,
            )

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        metrics = super().get_metrics(*args)
        metrics.pop("v_num", None)  # a run's id tells nothing while it trains
        trainer: Any = self.trainer  # whose `log_every_n_steps` has no type
        name = "train/loss_step"
        # Read as often as the logger reads it: to read the loss of each step would wait for a GPU.
        if trainer.global_step % trainer.log_every_n_steps == 0 and name in trainer.logged_metrics:
            self._loss = {name: float(trainer.logged_metrics[name])}
        return self._loss | metrics


class Stop(pl.Callback):
    """Ends a training of one device after a validation.

    Args:
        hopeless: asked with the epoch, from 0, and its ``val/nme``, where that is a number.

    Attributes:
        begun: whether the training came to its first step.
    """

    def __init__(self, hopeless: Callable[[int, float], bool]) -> None:
        self.hopeless, self.begun = hopeless, False

    def on_train_batch_start(self, *args: Any) -> None:
        self.begun = True

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        nme = float(trainer.callback_metrics["val/nme"])
        if math.isfinite(nme) and self.hopeless(trainer.current_epoch, nme):
            trainer.should_stop = True


class BestCheckpoint(ModelCheckpoint):
    """Keep the weights with the lowest finite ``val/nme`` as ``best.ckpt``.

    Args:
        folder: Folder of the checkpoints; None on a rank that takes it from rank 0.
    """

    def __init__(self, folder: str | None) -> None:
        super().__init__(
            folder, "best", monitor="val/nme", save_weights_only=True, enable_version_counter=False,
            save_on_train_epoch_end=False,
        )  # fmt: skip

    @property
    def state_key(self) -> str:
        """Keep the key of earlier checkpoints, so that a resumed run knows its best."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Refuse a metric that is NaN or infinite, which Lightning would keep as the best of the first epoch."""
        return current is not None and bool(torch.isfinite(current)) and super().check_monitor_top_k(trainer, current)

    def save_last_weights(self, trainer: pl.Trainer) -> bool:
        """Save the weights at the end of a training whose validation chose none; return whether that was so."""
        if self.best_model_path:
            return False
        self.best_model_path = self.format_checkpoint_name({})
        trainer.save_checkpoint(self.best_model_path, weights_only=True)
        return True


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that become visible whole, in whatever moment the process ends or the disk is full.

    ``last.ckpt`` leaves the one before as ``before.ckpt``. (Lightning writes through the system's temporary folder, often on
    another disk, from which a file is copied, not renamed.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path, content = Path(path), io.BytesIO()
        torch.save(checkpoint, content)  # torch's own writing to a full disk ends in its C++ code
        with writing(path) as aside:
            aside.write_bytes(content.getbuffer())
            if path.name == "last.ckpt" and path.exists():
                with writing(path.with_name("before.ckpt")) as link:
                    link.unlink()
                    try:
                        os.link(path, link)
                    except OSError:  # a file system without links
                        shutil.copyfile(path, link)


class ValidationImages(pl.Callback):
    """A grid of validation faces, truth green and prediction magenta, in MLflow's image grid.

    Args:
        every: epochs between two grids.
        faces: in a grid, spread over the validation part.
        side: pixels of a face.
    """

    def __init__(self, every: int = 5, faces: int = 16, side: int = 192) -> None:
        self.every, self.faces, self.side = every, faces, side

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch, last = trainer.current_epoch + 1, trainer.current_epoch + 1 == trainer.max_epochs
        tracker, data = trainer.logger, trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not isinstance(tracker, Tracker) or not (epoch % self.every == 0 or last):
            return
        assert isinstance(data, FaceData) and isinstance(module, LandmarkModule)
        rows = data.rows("val")
        rows = rows[np.linspace(0, len(rows) - 1, min(self.faces, len(rows))).astype(int)]
        was = module.training
        module.eval()
        with trainer.precision_plugin.forward_context():
            points = module(data.batch(torch.from_numpy(rows), None, device=module.device).images).cpu().numpy()
        module.train(was)
        image = with_legend(face_sheet(data, rows, points, self.side), f"epoch {epoch}")
        tracker.image(image, f"validation/epoch_{epoch:03}.png")
        tracker.image_of_step(image, "validation", trainer.global_step)
