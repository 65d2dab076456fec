"""Sessions of runs that exist already."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Timer

from flr.config.compose import as_config, key_of, under
from flr.config.schema import Train
from flr.config.validate import check
from flr.errors import UserError
from flr.module.checkpoints import RunFolder, find_run, load_last
from flr.tracking.connection import connect, get_run
from flr.training.session import OpenedRun, TrainingSession

CHANGEABLE = (
    "run", "accept_data", "trainer.max_epochs", "trainer.max_time", "trainer.max_steps", "trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy",
    "trainer.compile", "data.root", "data.workers", "paths", "tracking", "callbacks",
)  # fmt: skip


def resumed_session(cfg: DictConfig, overrides: Sequence[str]) -> TrainingSession:
    """Prepare to resume a run from the end of its last whole epoch, under its own config.

    Args:
        cfg: a checked config of `flr.config.schema.Train` that names the run.
        overrides: what the user typed to get it.

    Raises:
        UserError: the run is not known or finished, or an override is not one that a running training may change.
    """
    keys = [key_of(word) for word in overrides]
    for key in keys:
        if not under(key, CHANGEABLE):
            raise UserError(f"{key} cannot change when a run is resumed; start a new run for that, or leave it out")
    folder = find_run(str(cfg.run), str(cfg.tracking.uri), Path(cfg.paths.output_dir))
    note = folder.note()
    checkpoint = load_last(folder)
    if checkpoint is None:
        values, first_overrides = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder.config))), []
    else:
        values, first_overrides = checkpoint["flr"]["config"], checkpoint["flr"]["overrides"]
    config = as_config(values)
    config.tracking.uri, config.tracking.experiment = folder.store(str(cfg.tracking.uri)), note["experiment"]
    if not Path(config.paths.output_dir).is_dir():  # the run was moved
        config.paths = OmegaConf.merge(cfg.paths, {"output_dir": str(folder.path.parents[1])})
    config.accept_data = cfg.accept_data  # counts once
    for key in keys:
        if key != "run":
            OmegaConf.update(config, key, OmegaConf.select(cfg, key), force_add=True)
    check(config, Train, trusted=False)
    done, limit = (0 if checkpoint is None else checkpoint["epoch"] + 1), config.trainer.max_epochs
    reason = (
        f"its {done} epochs are done; set trainer.max_epochs above {done}"
        if done and done >= (limit or done + 1)
        else ""
    )
    reason = reason or (exhausted(config.trainer, checkpoint) if checkpoint else "")
    # A run that was stopped after its last epoch still has its test to do.
    if reason and get_run(connect(config.tracking.uri, create=False), note["run_id"]).status == "FINISHED":
        raise UserError(f"run={cfg.run}: {reason} to train it further")
    return TrainingSession(config, first_overrides, folder, None if checkpoint is None else checkpoint["flr"])


def exhausted(trainer: DictConfig, checkpoint: Mapping[str, Any]) -> str:
    """Say which limit other than its epochs a training has reached; empty where it has reached none."""
    steps, time = trainer.get("max_steps") or -1, trainer.get("max_time")
    if 0 <= steps <= checkpoint["global_step"]:
        return f"its {checkpoint['global_step']} steps are done; set +trainer.max_steps above that"
    elapsed = checkpoint.get("callbacks", {}).get("Timer", {}).get("time_elapsed", {}).get("train", 0.0)
    limit = cast(Any, OmegaConf.to_object(time) if OmegaConf.is_config(time) else time)
    if limit is not None and elapsed >= (Timer(limit).time_remaining() or 0.0):
        return f"its trainer.max_time={time} is used up; set a longer +trainer.max_time"
    return ""


class RankSession(TrainingSession):
    """One rank of a training that `flr.training.distributed.run_ranks` starts.

    Args:
        training: The run's folder, overrides, name and tags.
    """

    def __init__(self, training: Mapping[str, Any]) -> None:
        folder = RunFolder(Path(training["folder"]))
        config = as_config(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder.config))))
        check(config, Train, trusted=False)
        last = load_last(folder)
        run = OpenedRun(training["name"], training["tags"], folder.note()["run_id"])
        super().__init__(config, training["overrides"], folder, last["flr"] if last else None, run)

    def connect(self) -> None:
        """Write to the run that is open."""
        assert self.job is not None and self.folder is not None
        self.tags = self.job.tags
        if self.first:
            self.tracker.attach(self.job.run_id)
            self.tracker.set_queue_dir(self.folder.path / "queue")

    def report_findings(self) -> None:
        """Do nothing: the process that started this one has reported them, opened the run and recorded it."""

    def open(self) -> None:
        """Do nothing, as for the findings."""

    def record(self) -> None:
        """Do nothing, as for the findings."""

    def close(self, status: str) -> None:
        """Send what is pending; the process that started this one sets the status."""
        if self.first:
            self.tracker.flush()
