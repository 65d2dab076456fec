"""``python -m flr.train``: train, track and test a landmark net, or go on with a run (``run=ID|DIR``)."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flr.config import (
    AT_END,
    SWEEP,
    Grid,
    Train,
    as_config,
    assemble,
    build,
    check,
    check_launcher,
    door,
    ending,
    flat,
    grid_of,
    key_of,
    label_of,
    plain,
    quiet,
    sweep_folder,
    task_overrides,
    under,
)
from flr.errors import UserError

if TYPE_CHECKING:
    from filelock import FileLock

    from flr.checkpoints import RunFolder
    from flr.data.datamodule import FaceData
    from flr.sweep import Child, Row
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
    if given := os.environ.get(SWEEP):
        job(cfg, given)
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
    job: "Child | None" = None,
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
    from flr.speed import bf16_hardware, compile_net, settle, trainer_of
    from flr.sweep import recipe
    from flr.tracking import provenance
    from flr.tracking.mlflow import Tracker
    from flr.tracking.pictures import curves_figure

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
            if not job.tested:
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
            tracker.params({"hardware.bf16": bf16_hardware(device)})  # why trainer.speed=auto chose the precision
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
        if job is None or job.tested:
            result = evaluate.score(trainer, module, data, best.best_model_path or None)
        if ranks.first:
            assert folder
            if result:
                evaluate.write(result, folder.path, str(folder.best))
                evaluate.log(result, tracker, folder.path, step=trainer.global_step)
            tracker.figure(curves_figure(tracker.history), "curves.png")
            if best.best_model_score is not None:
                tracker.tag(val_nme=f"{float(best.best_model_score):.5g}")  # the metric ends with the last epoch's
            if job and job.cut:
                tracker.tag(end=job.cut)
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
        status = "KILLED" if job and job.cut else "FINISHED"
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


def default_name(cfg: DictConfig) -> str:
    return cfg.name or f"{cfg.model._target_.rsplit('.', 1)[1]} {cfg.data.name} seed {cfg.seed}"


# -- sweeps ------------------------------------------------------------------------------------------------------------


class Sweep(Callback):
    """What Hydra calls where ``-m`` begins."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with ending():
            sweep(config)


def sweep(config: DictConfig) -> None:
    """Begin a sweep: its run in MLflow, by which the jobs find each other; its table when it ends.

    Args:
        config: composed, with its ``hydra`` node, where the jobs are told of the sweep.

    Raises:
        UserError: it cannot be one sweep, or another process is at it.
    """
    import logging

    from flr.ranks import started_outside

    logging.getLogger("hydra").setLevel(logging.WARNING)  # the jobs name themselves
    quiet()
    grid, outside = grid_of(config), started_outside()
    check_launcher(config)
    if outside and not str(config.hydra.launcher._target_).endswith(".BasicLauncher"):
        raise UserError("hydra/launcher starts the jobs itself; leave out torchrun or srun, or hydra/launcher")
    if any(key_of(word) == "run" for word in [*config.hydra.overrides.task, *grid.values]) or outside:
        return  # runs that go on have their sweeps; torchrun's ranks have no master
    if odd := [key for key in grid.values if under(key, ("tracking", "paths", "again", "name"))]:
        raise UserError(f"{odd[0]} cannot vary in a sweep, which is one table in one place; set it to one value")
    from flr.sweep import name_of

    words = config.hydra.overrides.hydra
    if any(key_of(word) == "hydra.sweep.dir" for word in words):
        folder = Path(config.hydra.sweep.dir).absolute()
    else:
        name = name_of(grid, str(config.tracking.experiment), config.again)
        folder = Path(config.paths.output_dir).absolute() / "sweeps" / name
        words.append("hydra.sweep.dir='{}'".format(str(folder).replace("\\", "\\\\").replace("'", "\\'")))
        config.hydra.sweep.dir = str(folder)
    run_id = AT_END.enter_context(sweeping(config, grid, folder))
    words.append(f"++hydra.job.env_set.{SWEEP}='{run_id}/${{hydra.job.num}}'")


@contextlib.contextmanager
def sweeping(cfg: DictConfig, grid: Grid, folder: Path) -> Iterator[str]:
    """The id of a sweep's run while its jobs run; then the table, and the exit code where not all of them finished."""
    from filelock import FileLock, Timeout

    from flr.sweep import begin, discard, rows

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "sweep.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process runs this sweep; wait for it or stop it") from error
    try:
        tracker = begin(cfg, folder.name, grid, folder)
        print(f"Sweep {folder.name}, {len(grid.jobs)} jobs: {grid}")
        try:
            yield tracker.run_id
        finally:
            end = sys.exception()
            found = rows(tracker, grid, folder, over=end is None)
            codes = {row.exit_code for row in found} - {0}
            if isinstance(end, Exception) and not any(row.run_id for row in found):
                tracker.end("FAILED")
                discard(tracker, folder.name)  # a word that does not compose
            else:
                table(tracker, found, folder)
                tracker.end("KILLED" if end and not isinstance(end, Exception) else "FAILED" if codes else "FINISHED")
    finally:
        lock.release()
    if codes:
        sys.exit(min(codes))


def table(tracker: "Tracker", found: "list[Row]", folder: Path) -> None:
    """A sweep's table: in the terminal, in its folder and in its run."""
    from dataclasses import asdict

    from flr.compare import Grid as Cells
    from flr.compare import markdown, show, write_csv

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    cells = [
        [row.job, row.status + " before" * row.kept, cell(row.val), cell(row.test), row.run_id, row.reason[:200]]
        for row in found
    ]
    done = sum(not row.exit_code for row in found)
    line = f"{done} of {len(found)} jobs finished"
    grid = Cells(["job", "status", "val/nme, %", "test/nme, %", "run", "why"], cells)
    if not any(row.reason for row in found):
        grid = Cells(grid.head[:-1], [row[:-1] for row in cells])
    show(grid)
    print(f"{line}; sweep {folder.name}, run {tracker.run_id}")
    if found:
        write_csv(folder / "table.csv", [asdict(row) for row in found])
        tracker.file(folder / "table.csv")  # has all of it
    tracker.describe(f"{line}\n\n{markdown(grid)}")
    tracker.log_metrics({"jobs/all": len(found), "jobs/finished": done, "jobs/failed": len(found) - done})


def launch(launcher: Any, config: DictConfig, jobs: Sequence[Sequence[str]], first: int) -> None:
    """Run jobs by a launcher of ours, each in a process of its own.

    Args:
        launcher: as `flr.launchers.Launcher` says.
        config: of the sweep, composed, with its ``hydra`` node.
        jobs: the words of each.
        first: the number of the first.
    """
    import re

    from flr.launchers import Task
    from flr.launchers import launch as run_all

    keys, folder = grid_of(config).values, Path(config.hydra.sweep.dir).absolute()
    devices, nodes = config.trainer.devices, config.trainer.get("num_nodes", 1)
    known = isinstance(devices, int) and devices > 0 and not keys.keys() & {"trainer", "trainer.devices", "experiment"}
    launcher.prepare(devices * nodes if known else None, str(config.trainer.accelerator))
    parent = re.search(rf"env_set\.{SWEEP}='(.*?)/", " ".join(hydra_words(config)))
    tasks = []
    for number, words in enumerate(jobs, first):
        given = {SWEEP: f"{parent[1]}/{number}"} if parent else {}
        log = folder / f"{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)  # of an earlier start
        tasks.append(Task(label_of(list(words), keys) or f"job {number}", command(config, words), given, log))
    run_all(launcher, tasks)


def hydra_words(config: DictConfig) -> list[str]:
    """What was said to Hydra itself, as it was said: one of its words names the number of a job."""
    return cast(list[str], OmegaConf.to_container(config.hydra.overrides.hydra))


def command(config: DictConfig, words: Sequence[str]) -> list[str]:
    """What follows ``python -m flr.train`` for a job in a process of its own."""
    more = [word for word in hydra_words(config) if key_of(word) == "hydra.searchpath"]
    return [*words, *more, "hydra.mode=RUN"]


def job(cfg: DictConfig, given: str) -> None:
    """One job of a sweep: done before, gone on with, or trained. Its failure is told and kept, and stops no other.

    Args:
        cfg: its composed config.
        given: of `flr.config.SWEEP`.
    """
    import traceback

    from flr.parallel import end_with
    from flr.sweep import CRASH, REFUSED, Job

    words, own = task_overrides(), HydraConfig.get().mode == RunMode.RUN
    if not own and cfg.trainer.devices != 1:
        apart(words, given)
        return
    first = True
    if own:
        import signal

        from flr.ranks import first_outside

        end_with(os.getppid(), signal.SIGTERM)
        quiet()
        first = first_outside()
    one, failed = None, 0
    try:
        one = Job(cfg, words, given, default_name(cfg))
        if not first:
            if (begun := one.wait()) is not None:
                run(cfg, words, *begun)
            return
        print(f"Job {one.number}: {one.label}")
        check(cfg, Train, trusted=False)
        if twin := one.done(lambda: fingerprint(cfg)):
            print(f"done before, by run {twin.run_id}")
            return
        folder, before = one.begin()
        run(cfg, words, folder, before, one)
    except Exception as error:
        if isinstance(error, UserError):
            print(f"flr: {one.label if one else words}: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        if one and first:
            one.failed(error)
        failed = REFUSED if isinstance(error, UserError) else CRASH
    except BaseException:
        if one and first:
            one.stopped()
        raise
    if own and failed:
        sys.exit(failed)


def apart(words: list[str], given: str) -> None:
    """A job of several ranks in a process of its own, which may have to end at once when a rank dies."""
    import signal
    import subprocess

    config = DictConfig({"hydra": HydraConfig.get()})
    process = subprocess.Popen(
        [sys.executable, "-m", "flr.train", *command(config, words)], env=os.environ | {SWEEP: given}
    )
    try:
        code = process.wait()
    except BaseException:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)  # a terminal tells all processes
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if code == 130:
        raise KeyboardInterrupt


def fingerprint(cfg: DictConfig) -> str:
    """Of a checked config's data."""
    data = build(cfg.data, augment=build(cfg.augment), seed=cfg.seed, cache=cfg.paths.cache_dir)
    data.prepare()
    return str(data.protocol.fingerprint)


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
