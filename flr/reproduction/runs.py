"""Train an experiment, or score its stored trainings again."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flr.augment.device import Augment
from flr.config.compose import as_config, compose_training, flat, plain, spell, task_overrides, under
from flr.config.schema import RESULT_NEUTRAL_KEYS, Train
from flr.config.validate import check
from flr.errors import UserError
from flr.evaluation.score import restore, score, tester
from flr.module.assembly import build_data
from flr.module.checkpoints import RunFolder, find_run, load_checkpoint
from flr.reproduction.record import Record, Run, check_recordable, data_differences
from flr.tracking.connection import StoredRun, connect, get_run
from flr.training.precision import resolve_precision_and_fusion
from flr.training.session import TrainingSession

PASSED_ON = ("data", "trainer", "tracking", "paths")  # overrides that a training takes as they were typed
# Keys of a training's config that are not part of its recipe.
NO_RECIPE = ("seed", "callbacks", *RESULT_NEUTRAL_KEYS)
MAX_NAMED = 4  # differing keys that an error names
# The test metrics that a record holds.
RECORDED = re.compile(r"nme|mse|mae|rmse|(fr|auc)(8|10)|(?!region/|point/).+/nme")


def compose(name: str, seed: int | None = None) -> tuple[DictConfig, list[str]]:
    """Compose an experiment with what the user has set, and check it.

    Returns:
        The config, and the overrides that give it.

    Raises:
        UserError: The config is not valid.
    """
    overrides = [f"experiment={name}", *([] if seed is None else [f"seed={seed}"])]
    overrides += [word for word in task_overrides() if under(word.split("=", 1)[0], PASSED_ON)]
    cfg = compose_training(overrides)
    check(cfg, Train, trusted=False)
    return cfg, overrides


def note_other_data(name: str, expected: Record) -> None:
    """Report before the first training that its data differ from the record's."""
    cfg, _ = compose(name)
    data = build_data(cfg)
    data.prepare()
    run = Run(cfg.seed, {}, data.protocol.name, data.protocol.fingerprint)
    if lines := data_differences(expected, run):
        print(f"note: the data differ from the record's, so there will be no verdict: {'; '.join(lines)}")


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
    cfg: DictConfig, seed: int, folder: RunFolder, metrics: Mapping[str, float | None], protocol: str, fingerprint: str,
    precision: str,
) -> Run:  # fmt: skip
    """Return the result of a tested training.

    Raises:
        UserError: It is to be recorded, and no record may rest on it.
    """
    recorded = {
        name: x for name, x in metrics.items() if RECORDED.fullmatch(name) and x is not None and math.isfinite(x)
    }
    stored = _stored(folder, str(cfg.tracking.uri)) if cfg.record else None
    return Run(seed, recorded, protocol, fingerprint, stored.minutes if stored else 0.0, stored, precision)


def _stored(folder: RunFolder, uri: str) -> StoredRun:
    run = get_run(connect(folder.store(uri), create=False), folder.note()["run_id"])
    check_recordable(run)
    return run


def evaluate(cfg: DictConfig) -> list[Run]:
    """Score stored runs as ``flr.evaluate`` does, but write nothing: a run's own result stays as it is.

    Raises:
        UserError: A run has another recipe, two have one seed, or no record may rest on one that is to be recorded.
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
        config = as_config(load_checkpoint(path)["flr"]["config"])
        check(config, Train, trusted=False)
        if difference := _recipe_difference(recipes, _recipe(plain(config))):
            raise UserError(f"run={name} is not of experiment={cfg.name}: {difference}; name one that is")
        if config.seed in found:
            raise UserError(f"run={name}: of seed {config.seed}, as {found[config.seed][0]} is; name one run per seed")
        if cfg.record:
            _stored(folder, str(cfg.tracking.uri))
        found[config.seed] = name, folder, path
    return [_score(cfg, seed, *run) for seed, run in found.items()]


def _score(cfg: DictConfig, seed: int, name: str, folder: RunFolder, path: Path) -> Run:
    print(f"Scoring {name}, seed {seed}", flush=True)
    checkpoint = load_checkpoint(path)
    config = as_config(checkpoint["flr"]["config"])
    config.paths = cfg.paths
    if cfg.data.root is not None:
        config.data.root = cfg.data.root
    module, data = restore(config, checkpoint, path, Augment())
    metrics = score(tester(config), module, data, None).metrics
    protocol, precision = data.protocol, str(config.trainer.precision)
    return _run(cfg, seed, folder, metrics, protocol.name, protocol.fingerprint, precision)


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(config) if not under(key, NO_RECIPE)}


def _recipes(composed: DictConfig) -> list[dict[str, Any]]:
    """Return the recipes that a run of this experiment may have: one per precision that speed=auto may choose."""
    recipes = []
    for bf16 in (False, True):
        cfg = as_config(plain(composed))
        resolve_precision_and_fusion(cfg, "cpu", bf16)
        recipes.append(_recipe(plain(cfg)))
    return recipes


def _recipe_difference(recipes: Sequence[Mapping[str, Any]], other: Mapping[str, Any]) -> str:
    """Describe in which keys a recipe differs from the nearest of some; empty where it is one of them."""

    def differing(recipe: Mapping[str, Any]) -> list[str]:
        return [key for key in recipe.keys() | other.keys() if recipe.get(key) != other.get(key)]

    recipe = min(recipes, key=lambda one: len(differing(one)))
    # What is built, and by what name, says more than its arguments.
    keys = sorted(differing(recipe), key=lambda key: (not key.endswith(("name", "_target_")), key))
    if not keys:
        return ""
    named = ", ".join(f"{key}={spell(other.get(key))} (not {spell(recipe.get(key))})" for key in keys[:MAX_NAMED])
    return f"{len(keys)} key(s) differ, {named}" + (", ..." if len(keys) > MAX_NAMED else "")
