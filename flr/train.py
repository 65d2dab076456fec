"""``python -m flr.train``: train, track and test a landmark net, or go on with a run (``run=ID|DIR``)."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from flr.config import (
    SWEEP,
    Train,
    as_config,
    assemble,
    build,
    check,
    door,
    flat,
    plain,
    quiet,
    sweep_folder,
    task_overrides,
)
from flr.errors import UserError
from flr.sweeps.launchers.base import PARENT

if TYPE_CHECKING:
    from filelock import FileLock

    from flr.checkpoints import RunFolder
    from flr.data.datamodule import FaceData
    from flr.sweeps.job import ChildRun
    from flr.tracking.mlflow import Tracker

# Batches are 32 bit, whatever the products inside the net.
PRECISIONS = ("32-true", "32", "bf16-mixed", "16-mixed")

RESUME_MAY_CHANGE = (
    "run", "accept_data", "trainer.max_epochs", "trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy",
    "trainer.compile", "data.root", "data.workers", "paths", "tracking", "callbacks",
)  # fmt: skip


def main(cfg: DictConfig) -> None:
    """Train from a composed config, or as a rank of a training that another process has begun."""
    if given := os.environ.pop("FLR_RUN_FOLDER", None):
        follow(given)
        return
    if parent := os.environ.pop(PARENT, None):
        # Only the job of a sweep needs this import.
        from flr.parallel import end_with

        end_with(int(parent), signal.SIGTERM)
    if identity := os.environ.get(SWEEP):
        from flr.sweeps.job import run_job

        run_job(cfg, identity, run)
        return
    # Said at once: what comes next imports torch, which takes seconds.
    print(f"Training {cfg.name or cfg.model._target_} on {cfg.data.name}" if cfg.run is None else f"Resuming {cfg.run}")
    if cfg.run is None:
        # As strict as for a run's own config: what could not be loaded again must not be trained for hours.
        check(cfg, Train, trusted=False)
        run(cfg, task_overrides())
    else:
        resume(cfg)


def resume(cfg: DictConfig) -> None:
    """Go on with a run from the end of its last whole epoch, under its own config.

    Raises:
        UserError: the run is not known, finished, or an override is not one that a running training may change.
    """
    from flr.checkpoints import find_run, load_last
    from flr.tracking.store import connect, get_run

    check(cfg, Train)
    typed = [word.lstrip("+~").split("=", 1)[0] for word in task_overrides()]
    for key in typed:
        if not any(key == allowed or key.startswith(allowed + ".") for allowed in RESUME_MAY_CHANGE):
            raise UserError(f"{key} cannot change while a run goes on; start a new run for that, or leave it out")
    folder = find_run(str(cfg.run), str(cfg.tracking.uri), Path(cfg.paths.output_dir))
    note = folder.note()
    checkpoint = load_last(folder)
    if checkpoint is not None:
        values, overrides = checkpoint["flr"]["config"], checkpoint["flr"]["overrides"]
    else:
        values = OmegaConf.to_container(OmegaConf.load(folder.config))
        overrides = []
    own = as_config(values)
    own.tracking.uri, own.tracking.experiment = note["uri"], note["experiment"]
    own.accept_data = cfg.accept_data  # counts once
    for key in typed:
        if key != "run":
            OmegaConf.update(own, key, OmegaConf.select(cfg, key), force_add=True)
    check(own, Train, trusted=False)
    trained = checkpoint is not None and checkpoint["epoch"] + 1 >= own.trainer.max_epochs
    # One that was stopped after its last epoch has its test before it.
    if trained and get_run(connect(str(own.tracking.uri), create=False), note["run_id"]).status == "FINISHED":
        raise UserError(
            f"run={cfg.run}: its {own.trainer.max_epochs} epochs are done; raise trainer.max_epochs to train it further"
        )
    run(own, overrides, folder, None if checkpoint is None else checkpoint["flr"])


def follow(given: str) -> None:
    """Be one of a run's other ranks, which rank 0 has started when it had made the run's folder."""
    from flr.checkpoints import RunFolder, load_last

    folder = RunFolder(Path(given))
    own = as_config(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder.config))))
    check(own, Train, trusted=False)
    last = load_last(folder)
    run(own, [], folder, last["flr"] if last else None)


def run(
    cfg: DictConfig, overrides: list[str], folder: "RunFolder | None" = None, before: dict[str, Any] | None = None,
    job: "ChildRun | None" = None,
) -> None:  # fmt: skip
    """One training from start to tested end, under a checked config.

    Args:
        cfg: the config.
        overrides: what the user typed to get it.
        folder: of the run to go on with; None starts one.
        before: the ``flr`` part of the checkpoint to go on from; None for a run that was stopped in its first epoch.
        job: of a sweep or a study, which has begun the run.
    """
    import errno
    from dataclasses import asdict

    import pytorch_lightning as pl
    from pytorch_lightning.accelerators import CPUAccelerator
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    from flr import evaluate
    from flr.callbacks import WholeCheckpoints
    from flr.checkpoints import VERSION, RunFolder
    from flr.parallel import cores, keep_memory
    from flr.ranks import GlobalBatchNorm, Ranks
    from flr.speed import compile_net, settle, trainer_of
    from flr.tracking import provenance
    from flr.tracking.mlflow import Tracker
    from flr.tracking.pictures import curves_figure
    from flr.training.recipe import default_name, recipe

    quiet()
    keep_memory()
    if cfg.trainer.max_epochs is not None and cfg.trainer.max_epochs < 1:
        raise UserError(f"trainer.max_epochs={cfg.trainer.max_epochs} trains nothing; set 1 or more")
    if str(cfg.trainer.precision) not in PRECISIONS:
        raise UserError(f"trainer.precision={cfg.trainer.precision}: set one of {', '.join(PRECISIONS)}")
    if any(word in str(cfg.trainer.strategy) for word in ("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy={cfg.trainer.strategy} leaves ranks behind when one dies; set ddp")
    output = Path(cfg.paths.output_dir).absolute()
    tracker: Tracker = build(cfg.tracking, artifacts=output / "artifacts")

    def stopped(status: str, word: str = "") -> None:
        try:
            if folder:
                tracker.keep_checkpoints(folder.path)
            if word:
                exit_code, _, why = word.partition(" ")
                tracker.tag(end=why or "another rank ended", exit=exit_code)
        finally:
            tracker.end(status)

    ranks = Ranks(lost=lambda word: stopped("FAILED", word))
    # A first one, so that what Lightning refuses leaves no run behind, nor spoils the one that goes on.
    plugins: list[Any] = [GlobalBatchNorm()] if cfg.trainer.get("sync_batchnorm") else []
    trial = trainer_of(cfg, logger=False, enable_checkpointing=False, enable_progress_bar=False, plugins=plugins)
    devices, outside = cfg.trainer.devices, ranks.environment.creates_processes_externally  # by torchrun or SLURM
    if isinstance(devices, int) and devices not in (-1, trial.num_devices):
        raise UserError(
            f"trainer.strategy={cfg.trainer.strategy} trains on {trial.num_devices} device(s), not {devices}; set ddp"
        )
    if isinstance(trial.accelerator, CPUAccelerator) and trial.num_devices > cores() and not outside:
        raise UserError(f"trainer.devices={devices}: this machine has {cores()} cores; set that or fewer")
    device = trial.strategy.root_device.type
    own_recipe = recipe(cfg)
    settle(cfg, device)
    values = plain(cfg)
    if ranks.first:
        tracker.open()  # before any work, so that a store which cannot be reached costs nothing

    pl.seed_everything(cfg.seed, verbose=False)
    data = build(cfg.data, augment=build(cfg.augment), seed=cfg.seed, cache=cfg.paths.cache_dir)
    data.prepare()
    data.refuse_ranks(trial.world_size)
    if ranks.first:
        for fault in data.table.faults[:5]:
            print(f"left out {fault}", file=sys.stderr)
        for finding in data.card["findings"]:
            print(f"note: {finding}", file=sys.stderr)
    protocol = data.protocol
    changed = before is not None and before["protocol"]["fingerprint"] != protocol.fingerprint
    if before is not None and changed and not cfg.accept_data:
        raise UserError(
            f"the data of this run have changed since it stopped ({before['protocol']['fingerprint']} to "
            f"{protocol.fingerprint}); restore them, start a new run, or go on with accept_data=true"
        )
    module = assemble(cfg, data.scheme, data.crop, data.mean_face(), weights_follow=before is not None)
    module.data_changed = changed
    compile_net(module.net, cfg.trainer.get("compile"), device, trial.world_size)
    name = job.label if job else default_name(cfg)
    module.about = {
        "version": VERSION,
        "config": values,
        "overrides": overrides,
        "scheme": data.scheme.plain(),
        "protocol": asdict(protocol),
        "name": name,
        "offset": None if data.store.offset is None else list(data.store.offset),
    }

    if ranks.first:
        code, diff = provenance.code_state()
        lock = _hold(folder) if folder else None
        tags = {
            "model": cfg.model._target_.rsplit(".", 1)[1], "data": cfg.data.name, "seed": str(cfg.seed),
            "protocol": protocol.name, "lock": provenance.lock_hash(), **code,
            "recipe": own_recipe, "code": provenance.code_digest(),
        }  # fmt: skip
        if job:
            tags |= job.tags
            if not job.score_test:
                del tags["recipe"]  # by which a sweep would take it for a job that is done
        elif sweep := sweep_folder():
            tags["sweep"] = sweep.name
        known = job.run_id if job else folder.note()["run_id"] if folder else None
        run_id = tracker.start(name, tags, known)
        folder = folder or RunFolder(output / "runs" / run_id)
        tracker.wait_in(folder.path / "outbox")
        print(f"run {run_id}; after a stop run={run_id} goes on", flush=True)
        if before is not None and changed:
            told = f"{before['protocol']['fingerprint']} to {protocol.fingerprint}"
            print(f"note: the data have changed, {told}; the best checkpoint is chosen anew", file=sys.stderr)
            tracker.tag(data_changed=told)
    status = "FAILED"
    try:
        ranks.hear()
        if ranks.first:
            assert folder
            lock = lock or _hold(folder)
            for aside in (folder.path / "checkpoints").glob(".*.ckpt"):
                aside.unlink()  # half written by a process that was killed
            _record(tracker, cfg, values, overrides, folder, data, diff)

        # Where torchrun or SLURM started a rank, it takes the folder of a new run from rank 0, by Lightning.
        checkpoints = str(folder.path / "checkpoints") if folder else None
        best = ModelCheckpoint(
            checkpoints, "best", monitor="val/nme", save_weights_only=True, enable_version_counter=False,
            save_on_train_epoch_end=False,
        )  # fmt: skip
        last = ModelCheckpoint(checkpoints, "last", enable_version_counter=False, save_on_train_epoch_end=True)
        extra = [build(node) for node in (cfg.callbacks or {}).values() if node is not None]
        extra += job.callbacks if job else []
        trainer = trainer_of(
            cfg, logger=tracker, callbacks=[*extra, best, last, ranks],
            default_root_dir=str(folder.path if folder else output),
            enable_progress_bar=any(isinstance(callback, pl.callbacks.ProgressBar) for callback in extra),
            plugins=[WholeCheckpoints(), *plugins],
        )  # fmt: skip
        if ranks.first and trainer.world_size > 1:
            tracker.tag(ranks=str(trainer.world_size))
        ranks.launch(trainer, folder.path if folder else None)
        trainer.fit(module, data, ckpt_path=str(folder.last) if folder and before is not None else None)
        if trainer.interrupted or trainer.state.status != "finished":
            raise KeyboardInterrupt
        result = None
        if job is None or job.score_test:
            result = evaluate.score(trainer, module, data, best.best_model_path or None)
        if ranks.first:
            assert folder
            if result:
                evaluate.write(result, folder.path, str(folder.best))
                evaluate.log(result, tracker, folder.path, step=trainer.global_step)
            tracker.figure(curves_figure(tracker.history), "curves.png")
            if best.best_model_score is not None:
                tracker.tag(val_nme=f"{float(best.best_model_score):.5g}")  # the metric ends with the last epoch's
            if job and job.stop_reason:
                tracker.tag(end=job.stop_reason)
            else:
                tracker.file(folder.best, "checkpoints")
            if result:
                evaluate.show(result)
                scores = {} if best.best_model_score is None else {"val/nme": float(best.best_model_score)}
                scores |= {f"test/{key}": result.metrics[key] for key in ("nme", "fr8", "auc8")}
                scores |= {f"cost/{key}": result.cost[key] for key in ("parameters", "latency_ms")}
                about = {key: f"{value:.5g}" for key, value in scores.items()}
                about |= {key: tags[key] for key in tags if key not in ("lock", "dirty", "recipe", "code", "job")}
                about |= {f"model.{key}": str(value) for key, value in flat(values["model"]) if key != "_target_"}
                more = ("timm",) if "timm" in cfg.model._target_ else ()
                tracker.register(f"{cfg.data.name}-{tags['model'].lower()}", len(data.scheme), about, more)
            print(f"run {run_id}  {folder.path}")
        status = "KILLED" if job and job.stop_reason else "FINISHED"
    except SIGTERMException:
        status = "KILLED"
        sys.exit(143)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        status = "KILLED"
        raise KeyboardInterrupt from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        # Of two files that is where the first was to go.
        where = error.filename2 or error.filename or output
        raise UserError(f"{where}: {error.strerror}; free space or set paths.output_dir") from error
    finally:
        end = sys.exception()
        ranks.hold(end)
        try:
            if ranks.first:
                tracker.end(status) if end is None else stopped(status)
        finally:
            if ranks.first and lock:
                lock.release()
            ranks.close(end)


def _hold(folder: "RunFolder") -> "FileLock":
    """One process a run: a lock that is let go at the latest when its holder dies.

    Raises:
        UserError: another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.path / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder.path}: another process is training this run; wait for it or stop it") from error
    return lock


def _record(
    tracker: "Tracker", cfg: DictConfig, values: dict[str, Any], overrides: list[str], folder: "RunFolder",
    data: "FaceData", diff: str,
) -> None:  # fmt: skip
    """What is known of a run before it trains: its folder's notes, and all of it in MLflow."""
    import json

    from flr.files import write_json, writing
    from flr.tracking import provenance

    assert data.table is not None
    note = {"run_id": tracker.run_id, "uri": cfg.tracking.uri, "experiment": tracker.experiment}
    write_json(folder.path / "run.json", note)
    with writing(folder.config) as aside:
        aside.write_text(OmegaConf.to_yaml(OmegaConf.create(values)), encoding="utf-8")
    tracker.tag(folder=str(folder.path))
    tracker.params({**dict(flat(values)), "overrides": " ".join(overrides)})
    tracker.params({f"version.{key}": value for key, value in provenance.versions().items()})
    tracker.params({f"hardware.{key}": value for key, value in provenance.hardware().items()})
    tracker.file(folder.config)
    tracker.file(folder.path / "run.json")
    if diff:
        tracker.text(diff, "code.diff")
    faults = [str(fault) for fault in data.table.faults]
    if faults:
        tracker.text("\n".join(faults) + "\n", "left_out.txt")
    tracker.text(json.dumps(data.card, indent=2) + "\n", "card.json")
    profile = {**data.protocol.counts, "left out": len(faults)}
    tracker.dataset(cfg.data.name, data.protocol.fingerprint, str(cfg.data.root), profile)


if __name__ == "__main__":
    door(main, "train")
