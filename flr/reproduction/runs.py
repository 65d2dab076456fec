"""The whole trainings of an experiment: trained here, or stored and scored again."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flr.augment.device import Augment
from flr.config.compose import as_config, compose_training, flat, plain, task_overrides, under
from flr.config.instantiate import build
from flr.config.schema import RESULT_NEUTRAL_KEYS, Train
from flr.config.validate import check
from flr.errors import UserError
from flr.evaluation.score import restore, score, tester
from flr.module.checkpoints import RunFolder, find_run, load_checkpoint
from flr.reproduction.record import Record, Run, data_differences, refuse_unfit
from flr.tracking.connection import StoredRun, connect, get_run
from flr.training.precision import settle
from flr.training.session import TrainingSession

# Keys that a user may set for a training, which are no part of its recipe.
PASSED_ON = ("data", "trainer", "tracking", "paths")  # to flr.train, as they were typed
# Keys of a training's config that are no part of its recipe.
# Keys of a training's config that are no part of its recipe.
NO_RECIPE = ("seed", "callbacks", *RESULT_NEUTRAL_KEYS)
# The test metrics that a record holds, and the numbers of a run that results.csv keeps.
HELD = re.compile(r"nme|mse|mae|rmse|(fr|auc)(8|10)|(?!region/|point/).+/nme")


def compose(name: str, seed: int | None = None) -> tuple[DictConfig, list[str]]:
    """Compose an experiment with what the user has set, and check it.

    Args:
        name: the experiment's.
        seed: None for the experiment's own.

    Returns:
        The config, and the overrides that give it.

    Raises:
        UserError: the config is not valid.
    """
    overrides = [f"experiment={name}", *([] if seed is None else [f"seed={seed}"])]
    overrides += [word for word in task_overrides() if under(word.split("=", 1)[0], PASSED_ON)]
    cfg = compose_training(overrides)
    check(cfg, Train, trusted=False)
    return cfg, overrides


def note_other_data(name: str, expected: Record) -> None:
    """Report before the first training, and not hours later, that its data are not the record's."""
    cfg, _ = compose(name)
    data = build(cfg.data, augment=build(cfg.augment), seed=cfg.seed, cache=cfg.paths.cache_dir)
    data.prepare()
    run = Run(cfg.seed, {}, data.protocol.name, data.protocol.fingerprint)
    if lines := data_differences(expected, run):
        print(f"note: the data are not the record's, so there will be no verdict: {'; '.join(lines)}")


def train(cfg: DictConfig, seeds: Sequence[int]) -> list[Run]:
    """Train and test each seed."""
    runs = []
    for seed in seeds:
        print(f"Training {cfg.name}, seed {seed}", flush=True)
        session = TrainingSession(*compose(cfg.name, seed))
        session.run()
        assert session.folder is not None
        result = json.loads((session.folder.path / "evaluation.json").read_text(encoding="utf-8"))
        precision = str(session.cfg.trainer.precision)
        protocol, fingerprint = result["protocol"], result["fingerprint"]
        runs.append(_run(cfg, seed, session.folder, result["metrics"], protocol, fingerprint, precision))
    return runs


def _run(
    cfg: DictConfig,
    seed: int,
    folder: RunFolder,
    metrics: Mapping[str, float | None],
    protocol: str,
    fingerprint: str,
    precision: str,
) -> Run:
    """A tested training, refused where it is to be recorded and cannot be."""

    held = {name: x for name, x in metrics.items() if HELD.fullmatch(name) and x is not None and math.isfinite(x)}
    stored = _stored(folder) if cfg.record else None
    return Run(seed, held, protocol, fingerprint, stored.minutes if stored else 0.0, stored, precision)


def _stored(folder: RunFolder) -> StoredRun:
    """The run of a folder, in its own store.

    Raises:
        UserError: no record may rest on it.
    """

    note = folder.note()
    run = get_run(connect(note["uri"], create=False), note["run_id"])
    refuse_unfit(run)
    return run


def evaluate(cfg: DictConfig) -> list[Run]:
    """Score the runs that are given as ``flr.evaluate`` does, but write nothing: a run's own result stays its own.

    Raises:
        UserError: a run has another recipe, two have one seed, or no record may rest on one that is to be recorded.
    """

    recipes = _recipes(compose_training([f"experiment={cfg.name}"]))
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
        other = _recipe(plain(as_config(own)))
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
    """Return the recipes that a run of this experiment may have: one per precision that speed=auto may choose."""

    own = []
    for bf16 in (False, True):
        cfg = as_config(plain(composed))
        settle(cfg, "cpu", bf16)
        own.append(_recipe(plain(cfg)))
    return own


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
