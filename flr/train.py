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

from flr.cli import exit_on_error, exit_stack, quiet, run_command
from flr.config.compose import as_config, key_of, task_overrides, under
from flr.config.instantiate import build
from flr.config.schema import Train
from flr.config.validate import check, check_launcher
from flr.errors import UserError
from flr.sweeps.grid import SWEEP_ENV, Grid, grid_of, label_of

if TYPE_CHECKING:
    from flr.sweep import Row
    from flr.tracking.tracker import Tracker

RESUME_MAY_CHANGE = (
    "run", "accept_data", "trainer.max_epochs", "trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy",
    "trainer.compile", "data.root", "data.workers", "paths", "tracking", "callbacks",
)  # fmt: skip


def main(cfg: DictConfig) -> None:
    """Train from a composed config, or as a rank of a training that another process has begun."""
    if given := os.environ.pop("FLR_RUN_FOLDER", None):
        follow(given)
        return
    if given := os.environ.get(SWEEP_ENV):
        job(cfg, given)
        return
    # Said at once: what comes next imports torch, which takes seconds.
    print(f"Training {cfg.name or cfg.model._target_} on {cfg.data.name}" if cfg.run is None else f"Resuming {cfg.run}")
    if cfg.run is None:
        # As strict as for a run's own config: what could not be loaded again must not be trained for hours.
        check(cfg, Train, trusted=False)
        from flr.training.session import TrainingSession

        TrainingSession(cfg, task_overrides()).run()
    else:
        resume(cfg)


def resume(cfg: DictConfig) -> None:
    """Go on with a run from the end of its last whole epoch, under its own config.

    Raises:
        UserError: the run is not known, finished, or an override is not one that a running training may change.
    """
    from flr.module.checkpoints import find_run, load_last
    from flr.tracking.connection import connect, get_run

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
    from flr.training.session import TrainingSession

    TrainingSession(own, overrides, folder, None if checkpoint is None else checkpoint["flr"]).run()


def follow(given: str) -> None:
    """Be one of a run's other ranks, which rank 0 has started when it had made the run's folder."""
    from flr.module.checkpoints import RunFolder, load_last
    from flr.training.session import TrainingSession

    folder = RunFolder(Path(given))
    own = as_config(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder.config))))
    check(own, Train, trusted=False)
    last = load_last(folder)
    TrainingSession(own, [], folder, last["flr"] if last else None).run()


# -- sweeps ------------------------------------------------------------------------------------------------------------


class Sweep(Callback):
    """What Hydra calls where ``-m`` begins."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with exit_on_error():
            sweep(config)


def sweep(config: DictConfig) -> None:
    """Begin a sweep: its run in MLflow, by which the jobs find each other; its table when it ends.

    Args:
        config: composed, with its ``hydra`` node, where the jobs are told of the sweep.

    Raises:
        UserError: it cannot be one sweep, or another process is at it.
    """
    import logging

    from flr.training.distributed import started_outside

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
    run_id = exit_stack.enter_context(sweeping(config, grid, folder))
    words.append(f"++hydra.job.env_set.{SWEEP_ENV}='{run_id}/${{hydra.job.num}}'")


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

    from flr.reporting.tables import TextTable, markdown, print_table, write_csv

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    cells = [
        [row.job, row.status + " before" * row.kept, cell(row.val), cell(row.test), row.run_id, row.reason[:200]]
        for row in found
    ]
    done = sum(not row.exit_code for row in found)
    line = f"{done} of {len(found)} jobs finished"
    grid = TextTable(["job", "status", "val/nme, %", "test/nme, %", "run", "why"], cells)
    if not any(row.reason for row in found):
        grid = TextTable(grid.head[:-1], [row[:-1] for row in cells])
    print_table(grid)
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
    parent = re.search(rf"env_set\.{SWEEP_ENV}='(.*?)/", " ".join(hydra_words(config)))
    tasks = []
    for number, words in enumerate(jobs, first):
        given = {SWEEP_ENV: f"{parent[1]}/{number}"} if parent else {}
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
        given: of `flr.sweeps.grid.SWEEP_ENV`.
    """
    import traceback

    from flr.sweep import CRASH, REFUSED, Job
    from flr.system import end_with
    from flr.training.session import TrainingSession, default_name

    words, own = task_overrides(), HydraConfig.get().mode == RunMode.RUN
    if not own and cfg.trainer.devices != 1:
        apart(words, given)
        return
    first = True
    if own:
        import signal

        from flr.training.distributed import first_outside

        end_with(os.getppid(), signal.SIGTERM)
        quiet()
        first = first_outside()
    one, failed = None, 0
    try:
        one = Job(cfg, words, given, default_name(cfg))
        if not first:
            if (begun := one.wait()) is not None:
                TrainingSession(cfg, words, *begun).run()
            return
        print(f"Job {one.number}: {one.label}")
        check(cfg, Train, trusted=False)
        if twin := one.done(lambda: fingerprint(cfg)):
            print(f"done before, by run {twin.run_id}")
            return
        folder, before = one.begin()
        TrainingSession(cfg, words, folder, before, one).run()
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
        [sys.executable, "-m", "flr.train", *command(config, words)], env=os.environ | {SWEEP_ENV: given}
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


if __name__ == "__main__":
    run_command(main, "train")
