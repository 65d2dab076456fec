"""One training of the detector, from its checked config to the exported file."""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from flr.config.compose import plain
from flr.config.instantiate import build
from flr.detection.export import export
from flr.detection.module import DetectorModule
from flr.errors import UserError
from flr.module.checkpoints import RunFolder
from flr.module.landmark_module import call
from flr.system import keep_memory
from flr.tracking import provenance
from flr.tracking.tracker import Tracker
from flr.training import precision
from flr.training.recipe import record_origin


def train(cfg: DictConfig, overrides: list[str]) -> Path:
    """Train, track and export a detector.

    Args:
        cfg: A checked config of `flr.config.detector_schema.TrainDetector`.
        overrides: What the user typed to get it.

    Returns:
        The ONNX file.

    Raises:
        UserError: The config, the store or the disk cannot do it.
        KeyboardInterrupt: Ctrl-C; the run is KILLED.
        SystemExit: With 143 after SIGTERM.
    """
    keep_memory()
    output = Path(cfg.paths.output_dir).absolute()
    tracker: Tracker = build(cfg.tracking, artifacts=output / "artifacts")
    precision.resolve_precision_and_fusion(cfg, "cuda" if torch.cuda.is_available() else "cpu")
    pl.seed_everything(cfg.seed, verbose=False)
    data = build(cfg.data, seed=cfg.seed, cache=cfg.paths.cache_dir)
    module = DetectorModule(build(cfg.model), build(cfg.optim), build(cfg.schedule))
    if cfg.weights is not None:
        _load_weights(module, Path(cfg.weights))
    call("optim", module.optim, module.parameters())  # so that a value which the optimizer refuses starts no run
    # A first Trainer, so that what Lightning rejects leaves no run behind.
    if precision.trainer_of(cfg, logger=False, enable_checkpointing=False).world_size > 1:
        raise UserError("trainer.devices: the detector trains on one device; set trainer.devices=1")
    tracker.open()
    code, diff = provenance.code_state()
    tags = {"model": "DetectorNet", "data": "scenes", "lock": provenance.lock_hash(), **code}
    run_id = tracker.start(cfg.name or f"detector seed {cfg.seed}", tags)
    folder = output / "runs" / run_id
    tracker.set_queue_dir(folder / "queue")
    print(f"run {run_id}", flush=True)
    status = "FAILED"
    try:
        record_origin(tracker, RunFolder(folder), plain(cfg), overrides, diff)
        trainer = precision.trainer_of(
            cfg, logger=tracker, default_root_dir=str(folder), reload_dataloaders_every_n_epochs=1, enable_progress_bar=sys.stderr.isatty(),
            callbacks=[ModelCheckpoint(str(folder / "checkpoints"), "last", enable_version_counter=False,
                                       save_on_train_epoch_end=True)],
        )  # fmt: skip
        trainer.fit(module, data)
        if trainer.interrupted or trainer.state.status != "finished":
            raise KeyboardInterrupt
        file = export(module.net, folder / "detector.onnx", cfg.threshold, {"run": run_id, "seed": cfg.seed, **code})
        tracker.file(file)
        status = "FINISHED"
        return file
    except SIGTERMException:
        status = "KILLED"
        sys.exit(143)
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.end(status)


def _load_weights(module: DetectorModule, path: Path) -> None:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
    except OSError as error:
        raise UserError(f"weights={path}: cannot be read ({error.strerror}); name a last.ckpt of a run") from error
    except Exception as error:  # of a dozen classes without a common base
        raise UserError(f"weights={path}: not a checkpoint of this network; name a last.ckpt of a run") from error
