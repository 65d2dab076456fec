"""One training from its checked config to its tested end."""

import errno
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from flr.config.compose import flat, plain, store_words
from flr.config.instantiate import build
from flr.data.protocol import Protocol
from flr.errors import CommandFailed, UserError
from flr.evaluation.report import log_result, show_next, show_result, write_result
from flr.evaluation.score import Result, score
from flr.module.assembly import assemble, build_data
from flr.module.checkpoints import VERSION, RunFolder
from flr.system import keep_memory
from flr.tracking import provenance
from flr.tracking.tracker import Tracker
from flr.training import distributed, precision
from flr.training.callbacks import AtomicCheckpointIO, BestCheckpoint
from flr.training.memory import explain_memory, free_device
from flr.training.recipe import data_name, default_name, model_name, objective_name, recipe, record_origin

# Batches are 32 bit, whatever the products inside the model.
PRECISIONS = ("32-true", "32", "bf16-mixed", "16-mixed")
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass
class OpenedRun:
    """A run that was created before its training: by a sweep, a study, or the process that starts the ranks.

    Attributes:
        label: What distinguishes it in its sweep or study.
        tags: Its tags.
        run_id: Its id in the store; empty before it is created.
        callbacks: Callbacks of the training, in addition to the config's.
        score_test: Whether the training scores the test part at its end.
        stop_reason: Why the training ended early; empty where it did not.
        name: Its name in the store and in the checkpoint; empty for `label`.
    """

    label: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    run_id: str = ""
    callbacks: list[pl.Callback] = field(default_factory=list)
    score_test: bool = True
    stop_reason: str = ""
    name: str = ""


class TrainingSession:
    """One training: validate, prepare, open the run, fit, test, publish, close.

    Args:
        cfg: a checked config of `flr.config.schema.Train`.
        overrides: what the user typed to get it.
        folder: of the run to resume; None starts one.
        checkpoint: the ``flr`` part of the checkpoint to resume from; None for a run that was stopped in its first epoch.
        job: the run, where it was created before.
        sweep: the name of the sweep that this training is a part of, where the sweep has no run of its own.
    """

    def __init__(
        self,
        cfg: DictConfig,
        overrides: list[str],
        folder: RunFolder | None = None,
        checkpoint: Mapping[str, Any] | None = None,
        job: OpenedRun | None = None,
        sweep: str | None = None,
    ) -> None:
        self.cfg, self.overrides, self.folder, self.checkpoint, self.job = cfg, overrides, folder, checkpoint, job
        self.sweep, self.first = sweep, distributed.is_first_rank()
        self.output = Path(cfg.paths.output_dir).absolute()
        self.lock: FileLock | None = None
        self.result: Result | None = None

    def run(self) -> None:
        """Train, test and publish.

        Raises:
            UserError: the config, the data, the memory or the disk cannot do it; a run that was opened is FAILED then.
            CommandFailed: another process of the training failed or was killed.
            KeyboardInterrupt: Ctrl-C; the run is KILLED and can be resumed.
            SystemExit: with 143 after SIGTERM.
        """
        keep_memory()
        self.validate()
        self.connect()
        self.prepare()
        self.open()
        status = "FAILED"
        with distributed.restored_signals():
            try:
                self.record()
                self.train()
                if self.first and not self.job:
                    print(self.tracker.pages())
                    show_next(self.tracker.run_id, store_words(self.overrides), self.data)
                status = "KILLED" if self.job and self.job.stop_reason else "FINISHED"
            except SIGTERMException:
                status = "KILLED"
                sys.exit(143)
            except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
                status = "KILLED"
                if self.first and not self.job:
                    words = f"run={self.tracker.run_id}{store_words(self.overrides)}"
                    print(f"stopped; python -m flr.train {words} resumes it", flush=True)
                raise KeyboardInterrupt from None
            except RuntimeError as error:
                if explained := explain_memory(error, self.data, self.device):
                    raise explained from error
                raise
            except OSError as error:
                if error.errno not in NOT_WRITABLE:
                    raise
                # An error of two files names the target second.
                where = error.filename2 or error.filename or self.output
                raise UserError(f"{where}: {error.strerror}; free space or set paths.output_dir") from error
            finally:
                self.close(status)

    def train(self) -> None:
        """Train in this process, or in one for each device where nobody else starts them."""
        if self.world_size > 1 and not distributed.started_outside():
            assert self.folder is not None
            training = {
                "folder": str(self.folder.path),
                "overrides": self.overrides,
                "name": self.name,
                "tags": self.tags,
            }
            distributed.run_ranks(self.world_size, training)
            return
        self.fit()
        self.test()
        self.publish()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    # -- before the run --------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Refuse what cannot be trained, and settle what the config leaves to the device."""
        cfg, trainer = self.cfg, self.cfg.trainer
        precision.check_trainer(trainer)
        if str(trainer.precision) not in PRECISIONS:
            raise UserError(f"trainer.precision={trainer.precision}: set one of {', '.join(PRECISIONS)}")
        if any(word in str(trainer.strategy) for word in ("spawn", "fork", "notebook")):
            raise UserError(f"trainer.strategy={trainer.strategy} leaves ranks behind when one dies; set ddp")
        self.tracker: Tracker = build(cfg.tracking, artifacts=self.output / "artifacts")
        # A first Trainer, so that what Lightning refuses leaves no run behind, nor spoils the one that is resumed.
        trial = precision.trainer_of(cfg, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        distributed.check_ranks(cfg.trainer, trial)
        self.world_size, self.device = trial.world_size, trial.strategy.root_device.type
        precision.settle_batch_norm(cfg, self.device, self.world_size)
        self.recipe = recipe(cfg)
        precision.resolve_precision_and_fusion(cfg, self.device)
        self.values = plain(cfg)

    def connect(self) -> None:
        """Connect to the store before any work, so that a store which cannot be reached costs nothing."""
        if self.first:
            self.tracker.open()

    def prepare(self) -> None:
        """Read the data and build the module."""
        cfg = self.cfg
        pl.seed_everything(cfg.seed, verbose=False)
        self.data = build_data(cfg)
        self.data.prepare()
        self.data.refuse_ranks(self.world_size)
        if self.first:
            self.report_findings()
        changed = self.data_change is not None
        if changed and not cfg.accept_data:
            self.refuse_changed_data()
        resumed = self.checkpoint is not None
        self.module = assemble(cfg, self.data.scheme, self.data.crop, self.data.mean_face(), weights_follow=resumed)
        self.module.make_optimizer()  # so that a value which the optimizer refuses starts no run
        if self.module.objective.visibility_weight:
            self.data.check_visibility()
        self.module.data_changed = changed
        if cfg.trainer.sync_batchnorm:
            precision.check_batch_norm(self.module.net)
        precision.compile_net(self.module.net, cfg.trainer.get("compile"), self.device, self.world_size)
        self.name = (self.job.name or self.job.label) if self.job else default_name(cfg, self.overrides)
        self.module.about = {
            "version": VERSION,
            "config": self.values,
            "overrides": self.overrides,
            "scheme": self.data.scheme.plain(),
            "protocol": asdict(self.protocol),
            "name": self.name,
            "offset": None if self.data.store.offset is None else list(self.data.store.offset),
        }

    def report_findings(self) -> None:
        """Print the skipped faces and what speaks against training on these data."""
        for finding in self.data.card["findings"]:
            print(f"note: {finding}", file=sys.stderr)

    @cached_property
    def protocol(self) -> Protocol:
        return self.data.protocol

    @property
    def data_change(self) -> str | None:
        """``OLD to NEW`` fingerprints where the data of a resumed run are not those that it began with."""
        if self.checkpoint is None:
            return None
        before, now = self.checkpoint["protocol"]["fingerprint"], self.protocol.fingerprint
        return None if before == now else f"{before} to {now}"

    def refuse_changed_data(self) -> None:
        assert self.checkpoint is not None
        before = self.checkpoint["protocol"]["fingerprint"]
        if "-" not in before:
            raise UserError(
                f"the fingerprint of this run's data, {before}, is of flr 0.1 and cannot be compared with "
                f"{self.protocol.fingerprint}; if the data are the same, resume with accept_data=true"
            )
        raise UserError(
            f"the data of this run have changed since it stopped ({self.data_change}); restore them, start a new run, or "
            "resume with accept_data=true"
        )

    # -- the run ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Create the run in the store, or set a resumed one RUNNING, and take its lock."""
        if not self.first:
            return
        code, self.diff = provenance.code_state()
        self.lock_run()
        self.tags = {
            "model": model_name(self.cfg.model._target_), "data": data_name(self.cfg), "seed": str(self.cfg.seed),
            "objective": objective_name(self.cfg.objective), "protocol": self.protocol.name, "lock": provenance.lock_hash(), **code,
            "recipe": self.recipe, "code": provenance.code_digest(),
        }  # fmt: skip
        if self.job:
            self.tags |= self.job.tags
            if not self.job.score_test:
                del self.tags["recipe"]  # by which a sweep would take it for a job that is done
        elif self.sweep:
            self.tags["sweep"] = self.sweep
        known = self.job.run_id if self.job else self.folder.note()["run_id"] if self.folder else None
        run_id = self.tracker.start(self.name, self.tags, known)
        self.folder = self.folder or RunFolder(self.output / "runs" / run_id)
        self.tracker.set_queue_dir(self.folder.path / "queue")
        print(f"run {run_id}; run={run_id} resumes it after a stop", flush=True)
        if self.data_change:
            print(
                f"note: the data have changed, {self.data_change}; the best checkpoint is chosen anew", file=sys.stderr
            )
            self.tracker.tag(data_changed=self.data_change)

    def lock_run(self) -> None:
        """Take the lock of the run's folder, once there is one; the system releases it at the latest with the process.

        Raises:
            UserError: another process holds it.
        """
        if self.folder is None or self.lock is not None:
            return
        lock = FileLock(self.folder.path / "run.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{self.folder.path}: another process is training this run; wait for it or stop it"
            ) from error
        self.lock = lock

    def record(self) -> None:
        """Write what is known of the run before it trains: its folder's notes, and all of it in the store."""
        distributed.exit_on_signals(self.first)
        if not self.first:
            return
        assert self.folder is not None and self.data.table is not None
        self.lock_run()
        for unfinished in (self.folder.path / "checkpoints").glob(".*.ckpt"):
            unfinished.unlink()  # of a process that was killed
        cfg, folder, tracker = self.cfg, self.folder, self.tracker
        record_origin(tracker, folder, self.values, self.overrides, self.diff)
        # By which speed=auto chose the precision.
        tracker.params({"hardware.bf16": precision.bf16_hardware(self.device)})
        if self.world_size > 1:
            tracker.tag(ranks=str(self.world_size))
        faults = [str(fault) for fault in self.data.table.faults]
        if faults:
            tracker.text("\n".join(faults) + "\n", "left_out.txt")
        tracker.text(json.dumps(self.data.card, indent=2) + "\n", "card.json")
        profile = {**self.protocol.counts, "left out": len(faults)}
        tracker.dataset(cfg.data.name, self.protocol.fingerprint, str(cfg.data.root), profile)

    def fit(self) -> None:
        """Train, from the last checkpoint where the run is resumed.

        Raises:
            KeyboardInterrupt: the training was stopped before its end.
        """
        cfg = self.cfg
        callbacks = [build(node) for node in (cfg.callbacks or {}).values() if node is not None]
        callbacks += self.job.callbacks if self.job else []
        progress = any(isinstance(callback, pl.callbacks.ProgressBar) for callback in callbacks)
        # Where torchrun or SLURM started a rank, it takes the folder of a new run from rank 0, by Lightning.
        checkpoints = str(self.folder.path / "checkpoints") if self.folder else None
        self.best = BestCheckpoint(checkpoints)
        last = ModelCheckpoint(checkpoints, "last", enable_version_counter=False, save_on_train_epoch_end=True)
        self.trainer = precision.trainer_of(
            cfg, logger=self.tracker, callbacks=[*callbacks, self.best, last, distributed.OwnSigterm()],
            default_root_dir=str(self.folder.path if self.folder else self.output), enable_progress_bar=progress,
            plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        resumed = self.folder is not None and self.checkpoint is not None
        self.trainer.fit(self.module, self.data, ckpt_path=str(self.folder.last) if self.folder and resumed else None)
        if self.trainer.interrupted or self.trainer.state.status != "finished":
            raise KeyboardInterrupt
        done, planned = self.trainer.current_epoch, self.trainer.max_epochs or 0
        if self.first and done < planned and not (self.job and self.job.stop_reason):
            why = "a limit of time or steps, or a callback"
            print(f"note: {why} ended the training after {done} of {planned} epochs", file=sys.stderr)

    def test(self) -> None:
        """Score the best weights on the test part, once."""
        if self.best.save_last_weights(self.trainer) and self.first:
            self.tracker.tag(weights="last epoch")
            print("note: no validation gave a finite val/nme; best.ckpt has the last epoch's weights", file=sys.stderr)
        if self.job is None or self.job.score_test:
            self.result = score(self.trainer, self.module, self.data, self.best.best_model_path)

    def publish(self) -> None:
        """Write the result to the folder, the store and the terminal, and register the best checkpoint."""
        if not self.first:
            return
        assert self.folder is not None
        folder, tracker, best = self.folder, self.tracker, self.best.best_model_score
        if self.result:
            write_result(self.result, folder.path, str(folder.best))
            log_result(self.result, tracker, folder.path)
        if best is not None:
            tracker.tag(val_nme=f"{float(best):.5g}")  # the metric ends with the last epoch's
        if self.job and self.job.stop_reason:
            tracker.tag(end=self.job.stop_reason)
        else:
            tracker.file(folder.best, "checkpoints")
        if self.result:
            show_result(self.result)
            self.register(self.result, {} if best is None else {"val/nme": float(best)})
        print(f"run {tracker.run_id}  {folder.path}", flush=True)

    def register(self, result: Result, scores: dict[str, float]) -> None:
        """Make the best checkpoint a model version that carries its scores."""
        scores |= {f"test/{key}": result.metrics[key] for key in ("nme", "fr8", "auc8")}
        scores |= {f"cost/{key}": result.cost[key] for key in ("parameters", "latency_ms")}
        tags = {key: f"{value:.5g}" for key, value in scores.items()}
        tags |= {key: tag for key, tag in self.tags.items() if key not in ("lock", "dirty", "recipe", "code", "job")}
        tags |= {f"model.{key}": str(value) for key, value in flat(self.values["model"]) if key != "_target_"}
        packages = ("timm",) if "timm" in self.cfg.model._target_ else ()
        name = f"{self.tags['data']}-{self.tags['model']}"
        self.tracker.register(name, len(self.data.scheme), tags, packages)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self, status: str) -> None:
        """Set the run's status, release its lock and free the device."""
        error = sys.exception()
        try:
            if self.first:
                distributed.ignore_signals()
                if error is not None and self.folder:
                    self.tracker.upload_checkpoints(self.folder.path)
                if isinstance(error, CommandFailed):
                    self.tracker.tag(end=str(error))
                self.tracker.end(status)
        finally:
            if self.lock:
                self.lock.release()
            free_device(self)
