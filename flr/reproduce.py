"""``python -m flr.reproduce name=EXPERIMENT tier=smoke|eval|train``: run an experiment, hold it against its record."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from flr.config import (
    CONF,
    NO_RESULT,
    Reproduce,
    Train,
    as_config,
    assemble,
    build,
    check,
    door,
    flat,
    plain,
    quiet,
    task_overrides,
    under,
)
from flr.errors import UserError, nearest

if TYPE_CHECKING:
    from flr.checkpoints import RunFolder
    from flr.tracking.record import Record, Run, Tier
    from flr.tracking.store import StoredRun

OUTSIDE, OTHER = 1, 3  # exit codes beside 0 and 2
SEEDS = [0, 1, 2]  # of trainings that have no record yet

# What the user may set in every tier, and in each.
COMMON = ("name", "tier", "record", "records", "paths")
TAKES = {
    "smoke": (),
    "eval": ("run", "data.root", "tracking"),
    "train": ("seeds", "data.root", "data.workers", "trainer.accelerator", "trainer.devices", "tracking"),
}
HANDED_ON = ("data", "trainer", "tracking", "paths")  # to flr.train, as they were typed
# Keys of a training's config that are no part of its recipe.
NO_RECIPE = ("seed", "callbacks", *NO_RESULT)

BATCH, STEPS = 4, 3  # of the smoke tier
PART = 100_000  # of each weight's numbers whose way it measures; all would be another copy of the widest net's 152 M
SCHEMES = {"celeba": "celeba5", "muct": "kaggle15"}  # rendered faces have 68 points, these sets fewer

# The test metrics that a record holds, and the numbers of a run that results.csv keeps.
HELD = re.compile(r"nme|mse|mae|rmse|(fr|auc)(8|10)|(?!region/|point/).+/nme")
LOGGED = re.compile(r"(train|val|test|cost)/(?!loss_step)")


def main(cfg: DictConfig) -> None:
    """Reproduce the experiment that the config names."""
    refuse_words(cfg)
    # Less the Tracker, which writes runs and brings torch with it.
    check(cast(DictConfig, OmegaConf.merge(cfg, {"tracking": None})), Reproduce)
    refuse_values(cfg)
    print(f"Reproducing {cfg.name}, tier {cfg.tier}")
    from flr.tracking.record import differences, read, refuse_dirty

    file = Path(cfg.records or CONF.parent / "experiments").absolute() / cfg.name / "expected.yaml"
    records = {} if cfg.record and not file.exists() else read(file)
    tier: Tier = "smoke" if cfg.tier == "smoke" else "train"
    expected = records.get(tier)
    if cfg.record:
        # Records before this one are no code. A training's own tags make no such difference.
        refuse_dirty(() if cfg.tier == "train" else ("expected.yaml", "results.csv"))
    elif expected is None:
        print(f"note: {file} has no {tier}: part, so what comes is information; record=true writes one")
    if cfg.tier == "smoke":
        runs = [smoke(rendered(cfg.name, cfg.paths.cache_dir))]
    elif cfg.tier == "eval":
        runs = evaluate(cfg)
    else:
        if expected and not cfg.record:
            note_other_data(cfg, expected)
        runs = train(cfg, cfg.seeds or (expected.seeds if expected else SEEDS))
    inside = compare(expected, runs)
    if cfg.record:
        record(cfg, runs, file, records)
    elif expected is None:
        print(f"nothing to hold this against: {file} has no {tier}: part")
        sys.exit(OTHER)
    elif runs[0].fingerprint != expected.fingerprint:
        print("other data than the record's, so this is information and no verdict; record=true makes it the record:")
        print(f"  here    {runs[0].protocol}\n  record  {expected.protocol}")
        sys.exit(OTHER)
    elif not inside:
        print(f"outside the tolerance of {file}, recorded at commit {expected.commit}")
        print("".join(f"  {line}\n" for line in differences(expected, runs)), end="")
        sys.exit(OUTSIDE)
    else:
        print("within the tolerance")


def refuse_words(cfg: DictConfig) -> None:
    """Raises `UserError` for a word that the tier does not take: none goes unheard, and none changes a recipe."""
    takes = COMMON + TAKES.get(cfg.tier, ())
    for word in task_overrides():
        key = word.lstrip("+~").split("=", 1)[0]
        if cfg.tier in TAKES and not under(key, takes):
            raise UserError(
                f"{key} is not for tier={cfg.tier}, which takes {', '.join(takes)}; a recipe is reproduced as it is, "
                f"python -m flr.train experiment={cfg.name} trains another"
            )


def refuse_values(cfg: DictConfig) -> None:
    """Raises `UserError` for an experiment that is not there, and for what its tier needs and has not."""
    folder = CONF / "experiment"
    known = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    if cfg.name is None:
        raise UserError("name what to reproduce: name=published/ibug_sepconv, or another of conf/experiment/")
    if cfg.name not in known:
        raise UserError(f"name={cfg.name}: no such experiment{nearest(cfg.name, known)}; name one of {folder}")
    if cfg.tier == "eval" and not cfg.run:
        raise UserError("tier=eval scores what was trained: run=ID, run=DIR or run=FILE.ckpt, or a list, one a seed")
    if cfg.records is not None and Path(cfg.records).exists() and not Path(cfg.records).is_dir():
        raise UserError(f"records={cfg.records} is no folder; name one, or leave it out for experiments/ of a checkout")
    if cfg.seeds is not None and (not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds)):
        raise UserError(f"seeds={list(cfg.seeds)}: name one at least and each once, as seeds=[0,1,2]")


# -- running -----------------------------------------------------------------------------------------------------------


def rendered(name: str, cache: str, changes: Sequence[str] = ()) -> DictConfig:
    """An experiment's config for a few steps on a few rendered faces and one CPU; all else is its own.

    Args:
        name: the experiment's.
        cache: the folder of rendered sets and of crops.
        changes: overrides that make another recipe of it.
    """
    own = hydra.compose("train", [f"experiment={name}", *changes])
    counts = {"train": BATCH * STEPS, "val": BATCH, "test": BATCH}
    faces = hydra.compose("train", ["data=synthetic", *(f"data.reader.{part}={n}" for part, n in counts.items())]).data
    scheme = own.data.scheme or SCHEMES.get(own.data.name)
    kept = {"crop": own.data.crop, "pixels": own.data.pixels, "scheme": scheme, "batch_size": BATCH}
    own.data = OmegaConf.merge(faces, kept)
    if own.data.crop.policy.source != "truth":
        own.data.crop.policy.source = "picture"  # these faces have no box of their own, and a detector may miss them
    own.paths.cache_dir = cache
    one_cpu = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true", "max_epochs": 1}
    own.trainer = OmegaConf.merge(own.trainer, one_cpu)
    return own


def smoke(cfg: DictConfig, threads: int = 1) -> "Run":
    """The loss of each step of a short training, how far it moved the weights, and a validation.

    Set up as by ``flr.train``, but with no store and no checkpoint: the widest net's would be 3 GB.

    Args:
        cfg: of `rendered`.
        threads: of torch; another number sums in another order.
    """
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import LambdaCallback

    from flr.speed import trainer_of
    from flr.tracking.record import Run

    quiet()
    check(cfg, Train, trusted=False)
    began, losses = time.perf_counter(), list[float]()
    keep = LambdaCallback(on_train_batch_end=lambda _, __, outputs, *___: losses.append(float(outputs["loss"])))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pl.seed_everything(cfg.seed, verbose=False)
        data = build(cfg.data, augment=build(cfg.augment), seed=cfg.seed, cache=cfg.paths.cache_dir)
        data.prepare()
        module = assemble(cfg, data.scheme, data.crop, data.mean_face())
        weights = [weight.detach() for weight in module.net.parameters()]
        start = torch.cat([weight.flatten()[:PART] for weight in weights])
        trainer = trainer_of(cfg, callbacks=[keep], logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.fit(module, data)
        moved = torch.cat([weight.flatten()[:PART] for weight in weights]) - start
    finally:
        torch.set_num_threads(before)
    metrics = {f"loss of step {i}": loss for i, loss in enumerate(losses, 1)}
    metrics["weights moved by"] = float(moved.square().mean().sqrt())
    metrics |= {name: float(trainer.callback_metrics[name]) for name in ("val/loss", "val/nme")}
    minutes = (time.perf_counter() - began) / 60
    return Run(cfg.seed, metrics, data.protocol.name, data.protocol.fingerprint, minutes)


def note_other_data(cfg: DictConfig, expected: "Record") -> None:
    """Say before the first training, and not hours later, that its data are not the record's."""
    words = [word for word in task_overrides() if under(word.split("=", 1)[0], ("data", "paths"))]
    own = hydra.compose("train", [f"experiment={cfg.name}", *words])
    check(own, Train)
    data = build(own.data, augment=build(own.augment), seed=own.seed, cache=own.paths.cache_dir)
    data.prepare()
    if data.protocol.fingerprint != expected.fingerprint:
        print(
            f"note: other data than the record's: {data.protocol.name}, not {expected.protocol}; no verdict will come of them"
        )


def train(cfg: DictConfig, seeds: Sequence[int]) -> "list[Run]":
    """Train each seed by ``flr.train``, in a process of its own."""
    from flr.checkpoints import RunFolder

    runs = []
    words = [word for word in task_overrides() if under(word.split("=", 1)[0], HANDED_ON)]
    for seed in seeds:
        printed = call("flr.train", f"experiment={cfg.name}", f"seed={seed}", *words)
        folder = RunFolder(Path(re.findall(r"^run \w+  (.+)$", printed, re.MULTILINE)[-1]))
        result = json.loads((folder.path / "evaluation.json").read_text(encoding="utf-8"))
        precision = str(OmegaConf.load(folder.config).trainer.precision)
        runs.append(_run(cfg, seed, folder, result["metrics"], result["protocol"], result["fingerprint"], precision))
    return runs


def _run(
    cfg: DictConfig,
    seed: int,
    folder: "RunFolder",
    metrics: Mapping[str, float | None],
    protocol: str,
    fingerprint: str,
    precision: str,
) -> "Run":
    """A tested training, refused where it is to be recorded and cannot be."""
    from flr.tracking.record import Run

    held = {name: x for name, x in metrics.items() if HELD.fullmatch(name) and x is not None and math.isfinite(x)}
    stored = _stored(folder) if cfg.record else None
    return Run(seed, held, protocol, fingerprint, stored.minutes if stored else 0.0, stored, precision)


def _stored(folder: "RunFolder") -> "StoredRun":
    """The run of a folder, in its own store.

    Raises:
        UserError: no record may rest on it.
    """
    from flr.tracking.record import refuse_unfit
    from flr.tracking.store import connect, get_run

    note = folder.note()
    run = get_run(connect(note["uri"], create=False), note["run_id"])
    refuse_unfit(run)
    return run


def call(module: str, *words: str) -> str:
    """Another command of this project, as a user would type it; what stops this one stops it.

    Returns:
        What it prints, which is shown as it comes. Where it fails, this command ends with its exit code.
    """
    print(f"$ python -m {module} {shlex.join(words)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True, process_group=0,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip

    def forward(number: int, frame: Any) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    handlers = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    printed = []
    try:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            printed.append(line)
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code:
        sys.exit(code if code > 0 else 128 - code)
    return "".join(printed)


def evaluate(cfg: DictConfig) -> "list[Run]":
    """Score the runs that are given as ``flr.evaluate`` does, but write nothing: a run's own result stays its own.

    Raises:
        UserError: a run has another recipe, two have one seed, or no record may rest on one that is to be recorded.
    """
    from flr.augment.device import Augment
    from flr.checkpoints import RunFolder, find_run, load_checkpoint
    from flr.evaluate import restore, score, tester

    quiet()
    recipes = _recipes(hydra.compose("train", [f"experiment={cfg.name}"]))
    found: dict[int, tuple[str, RunFolder, Path]] = {}
    for name in [cfg.run] if isinstance(cfg.run, str) else cfg.run:
        path = Path(name).absolute()
        if path.is_file():
            folder = RunFolder(path.parent.parent)
        else:
            folder = find_run(name, str(cfg.tracking.uri), Path(cfg.paths.output_dir))
            path = folder.best
        own = load_checkpoint(path)["flr"]["config"]
        check(as_config(own), Train, trusted=False)
        other = _recipe(own)
        recipe, differ = min(((recipe, _differ(recipe, other)) for recipe in recipes), key=lambda pair: len(pair[1]))
        if differ:
            listed = ", ".join(f"{key}={other.get(key)} (not {recipe.get(key)})" for key in differ[:4])
            more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
            raise UserError(f"run={name} is not of experiment={cfg.name}: {listed}{more}; name one that is")
        if own["seed"] in found:
            raise UserError(f"run={name}: of seed {own['seed']}, as {found[own['seed']][0]} is; name one run a seed")
        if cfg.record:
            _stored(folder)
        found[own["seed"]] = name, folder, path
    runs = []
    for seed, (name, folder, path) in found.items():
        print(f"Scoring {name}, seed {seed}", flush=True)
        checkpoint = load_checkpoint(path)
        config = as_config(checkpoint["flr"]["config"])
        config.paths = cfg.paths
        if cfg.data.root is not None:
            config.data.root = cfg.data.root
        module, data = restore(config, checkpoint, path, Augment())
        metrics = score(tester(config), module, data, None).metrics
        protocol, precision = data.protocol, str(config.trainer.precision)
        runs.append(_run(cfg, seed, folder, metrics, protocol.name, protocol.fingerprint, precision))
    return runs


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(config) if not under(key, NO_RECIPE)}


def _recipes(composed: DictConfig) -> list[dict[str, Any]]:
    """What a run's own config may say where an experiment was composed so: what is left to the device is settled there."""
    from flr.speed import settle

    own = []
    for bf16 in (False, True):
        cfg = as_config(plain(composed))
        settle(cfg, "cpu", bf16)
        own.append(_recipe(plain(cfg)))
    return own


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


# -- the record --------------------------------------------------------------------------------------------------------


def compare(expected: "Record | None", runs: "Sequence[Run]") -> bool:
    """Show the table of expected against obtained; whether all that is expected lies within its tolerance.

    Raises:
        UserError: the runs were tested on different data.
    """
    from flr.reporting.tables import TextTable, print_table
    from flr.tracking.record import column
    from flr.tracking.results import spread

    if len({run.fingerprint for run in runs}) > 1:
        raise UserError(f"tested on different data: {'; '.join(run.protocol for run in runs)}; name runs of one set")

    def number(mean: float, deviation: float | None) -> str:
        return f"{mean:.5g}" + ("" if deviation is None else f" ± {deviation:.2g}")

    levels = expected.metrics if expected else {}
    rows, inside = [], True
    for name in dict.fromkeys([*levels, *runs[0].metrics]):
        level, values = levels.get(name), column(runs, name)
        mean, deviation = spread(values) if values else (math.nan, 0.0)
        cells = [name, "-", "-", number(mean, deviation if len(values) > 1 else None), "-", ""]
        if level:
            within = abs(mean - level.mean) <= level.tolerance
            cells[1:3] = number(level.mean, level.spread), f"{level.tolerance:.2g}"
            cells[4:] = f"{mean - level.mean:+.2g}", "within" if within else "OUTSIDE"
            inside &= within
        rows.append(cells)
    if expected:
        print(f"expected of seeds {expected.seeds}, obtained of seeds {[run.seed for run in runs]}")
    print_table(TextTable(["metric", "expected", "tolerance", "obtained", "off by", ""], rows))
    return inside


def record(cfg: DictConfig, runs: "Sequence[Run]", file: Path, records: "Mapping[Tier, Record]") -> None:
    """Make what came out the record; of trainings with ``results.csv`` beside it, a row a seed.

    Raises:
        UserError: no record may rest on the runs.
    """
    from flr.reporting.tables import write_csv
    from flr.tracking.record import of_runs, of_smoke, write

    command = f"python -m flr.reproduce name={cfg.name} tier="
    if cfg.tier == "smoke":
        again = smoke(rendered(cfg.name, cfg.paths.cache_dir), threads=2)
        records = {**records, "smoke": of_smoke(f"{command}smoke", runs[0], again)}
    else:
        seeds = ",".join(str(run.seed) for run in runs)
        records = {**records, "train": of_runs(f"{command}train seeds=[{seeds}]", runs)}
        stored = [run.stored for run in runs if run.stored]
        names = sorted({name for one in stored for name in one.metrics if LOGGED.match(name)})
        rows = [
            {
                "seed": one.get("seed"),
                "run": one.run_id,
                "minutes": round(one.minutes, 2),
                "best val/nme": one.get("val_nme"),
            }
            | {name: one.metrics.get(name, "") for name in names}
            for one in stored
        ]
        write_csv(file.with_name("results.csv"), rows)
    write(file, cfg.name, records)
    print(f"record {file}")


if __name__ == "__main__":
    door(main, "reproduce")
