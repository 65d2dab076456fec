"""Score a stored run again: on its own data, on another split, or on another dataset."""

import contextlib
import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flr.augment.device import Augment
from flr.config.compose import as_config
from flr.config.instantiate import build
from flr.data.datamodule import FaceData
from flr.data.findings import orientation_note
from flr.errors import UserError
from flr.evaluation.report import log_result, write_result
from flr.evaluation.score import Result, restore, score, tester
from flr.landmarks.scheme import SCHEMES
from flr.module.checkpoints import RunFolder, find_checkpoint, load_checkpoint
from flr.module.landmark_module import LandmarkModule
from flr.tracking.connection import translate_auth_errors
from flr.tracking.tracker import Tracker


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A model of a checkpoint and the data that it is scored on.

    Attributes:
        data: The prepared dataset.
        config: The config of the training, with the data that are scored.
        folder: Folder of the run.
        path: The checkpoint.
        training: The ``flr`` part of the checkpoint.
        store: Tracking store of the run; empty for a checkpoint without a run.
    """

    module: LandmarkModule
    data: FaceData
    config: DictConfig
    folder: RunFolder
    path: Path
    training: Mapping[str, Any]
    store: str

    @property
    def has_run(self) -> bool:
        """Whether the checkpoint is in the folder of its run."""
        return bool(self.store)

    @property
    def label(self) -> str:
        """Name of the run, or the checkpoint's file, for tables."""
        return str(self.training.get("name") or self.path.name)


def load(cfg: DictConfig, overrides: Sequence[str], run: str) -> StoredModel:
    """Load a run as an evaluation's config has it scored.

    Raises:
        UserError: There is no such run, or its model does not fit the data.
    """
    path = find_checkpoint(run, str(cfg.tracking.uri), Path(cfg.paths.output_dir))
    checkpoint, folder = load_checkpoint(path), RunFolder(path.parent.parent)
    store = folder.store(str(cfg.tracking.uri)) if (folder.path / "run.json").is_file() else ""
    config = as_config(checkpoint["flr"]["config"])
    config.paths = cfg.paths
    augment: Augment | None = None  # that of the training: the store's margin decides how some pixels are rounded
    if cfg.data.get("_target_"):
        augment = Augment()  # nothing is augmented here, and every run can use the store without a margin
        config.data = _other_data(cfg, overrides, config, checkpoint["flr"]["scheme"].get("name"))
    else:
        for word in overrides:
            if word.lstrip("+").startswith("data.") and not word.startswith("data.root="):
                raise UserError(f"{word} needs data=NAME: without it the run's own data are scored; set data=NAME too")
        if cfg.data.root is not None:
            config.data.root = cfg.data.root
    module, data = restore(config, checkpoint, path, augment)
    if note := orientation_note(data.card):
        report_once(f"note: data={data.name}: {note}")
    if cfg.tta is not None:
        module.tta = cfg.tta
    return StoredModel(module, data, config, folder, path, checkpoint["flr"], store)


@functools.cache
def report_once(line: str) -> None:
    """Print a line to stderr, unless the command has printed it for another run."""
    print(line, file=sys.stderr)


def _other_data(cfg: DictConfig, overrides: Sequence[str], config: DictConfig, scheme: str | None) -> Any:
    """Return the config of another dataset, cropped as the run's own unless an override changes that."""
    data = OmegaConf.merge(cfg.data, {"crop": config.data.crop, "pixels": config.data.pixels})
    if data.scheme is None and scheme in SCHEMES:
        data.scheme = scheme  # a dataset of more points is reduced to the model's
    for word in overrides:
        if word.startswith("data.crop."):
            key = word.split("=")[0]
            OmegaConf.update(data, key.removeprefix("data."), OmegaConf.select(cfg, key))
    return data


def evaluate(stored: StoredModel, split: str, refine: int, output: Path, device: str = "auto") -> tuple[Result, Path]:
    """Score a stored model, write the result, and log it in its run where there is one.

    Args:
        stored: See `load`.
        split: Split to score.
        refine: Number of refinement passes (see `flr.inference.landmarker.Landmarker.find`).
        output: Folder for the result of a checkpoint without a run.
        device: See `tester`.

    Returns:
        The result and its folder.
    """
    result = score(tester(stored.config, device), stored.module, stored.data, None, split, refine)
    where, prefix = result_folder(stored, split, refine, output)
    write_result(result, where, str(stored.path))
    with open_tracker(stored, where) as tracker:
        if tracker:
            log_result(result, tracker, where, prefix)
    return result, where


def result_folder(stored: StoredModel, split: str, refine: int, output: Path) -> tuple[Path, str]:
    """Return the folder of a result, and the prefix of its metrics in the run: empty for the run's own test."""
    where = stored.folder.path if stored.has_run else output.absolute()
    if _repeats_own_test(stored, split, refine):
        return where, ""
    protocol = stored.data.protocol
    name = [str(stored.data.name), protocol.fingerprint, protocol.policy, split, stored.path.stem]
    name += ["tta"] * stored.module.tta + [f"refine{refine}"] * (refine > 0)
    name += [] if stored.has_run else [_digest(str(stored.path.resolve()))]  # a file of the same name is elsewhere
    where = where / "evaluations" / "-".join(name)
    return where, f"{where.name}/"


def table_folder(kind: str, cfg: DictConfig, overrides: Sequence[str], protocols: Sequence[str]) -> Path:
    """Return the folder of a table of several runs, named by what its numbers follow from.

    Args:
        kind: Name of the folder that holds those of all such tables.
        cfg: Config of the command.
        overrides: Overrides of the command, the runs among them.
        protocols: Names of the protocols.
    """
    return Path(cfg.paths.output_dir).absolute() / kind / _digest(*sorted(overrides), *sorted(protocols))


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:8]


@contextlib.contextmanager
def open_tracker(stored: StoredModel, where: Path) -> Iterator[Tracker | None]:
    """Open the run of a stored model in its tracking store, and send at the end what was logged; None without a run."""
    if not stored.has_run:
        yield None
        return
    note = stored.folder.note()
    tracker: Tracker = build(stored.config.tracking, artifacts=Path(), uri=stored.store, experiment=note["experiment"])
    tracker.attach(note["run_id"])
    with translate_auth_errors(stored.store, f"writing to run {note['run_id']}; the result is in {where}"):
        yield tracker
        tracker.save()


def _repeats_own_test(stored: StoredModel, split: str, refine: int) -> bool:
    """Return whether this is the run's own test of its best checkpoint; any other result gets a folder of its own."""
    return (
        asdict(stored.data.protocol) == stored.training["protocol"]
        and split == "test"
        and stored.module.tta == stored.config.tta
        and refine == 0
        and stored.path == stored.folder.best
    )
