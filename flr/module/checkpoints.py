"""Finding a run and reading its checkpoint. Nothing that is loaded is executed."""

import json
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flr.errors import UserError

VERSION = 2  # of what `about` holds


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files: ``run.json``, ``config.yaml``, ``checkpoints/``, its evaluations."""

    path: Path

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def before(self) -> Path:
        """The one that ``last.ckpt`` took the place of, for when that is damaged."""
        return self.path / "checkpoints" / "before.ckpt"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    def note(self) -> dict[str, str]:
        """``run.json``: the run's id and where it is tracked.

        Raises:
            UserError: missing or not ours.
        """
        file = self.path / "run.json"
        try:
            note = json.loads(file.read_text(encoding="utf-8"))
            return {key: str(note[key]) for key in ("run_id", "uri", "experiment")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not the folder of a run; name a run's id, its folder or a .ckpt file") from error

    def store(self, given: str) -> str:
        """Return the tracking store of the run: the given one, the one in its output folder, or the one it was made in.

        Raises:
            UserError: None of them knows the run.
        """
        from flr.tracking.connection import SQLITE, knows_run

        note = self.note()
        remembered = note["uri"]
        if given == remembered:
            return given
        moved = (
            [f"{SQLITE}{self.path.absolute().parents[1] / Path(remembered).name}"]
            if remembered.startswith(SQLITE)
            else []
        )
        for uri in (given, *moved, remembered):
            if knows_run(uri, note["run_id"]):
                return uri
        raise UserError(
            f"run={self.path}: neither {given} nor {remembered} answers and knows run {note['run_id']}; set tracking.uri"
        )


def find_run(run: str, uri: str, output: Path) -> RunFolder:
    """The folder of a run.

    Args:
        run: its folder, its MLflow id, or a model version, as ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        uri: of the tracking store that knows the id.
        output: the output folder, to whose ``runs/`` a run whose folder is elsewhere is fetched.

    Raises:
        UserError: neither a folder nor a known id, or nothing of the run was kept in MLflow.
    """
    if Path(run).is_dir():
        folder = RunFolder(Path(run).absolute())
        folder.note()
        return folder
    version = run.startswith("models:/")
    if not version and ("/" in run or run.endswith(".ckpt")):
        raise UserError(f"run={run}: no such file or folder")
    from mlflow.exceptions import MlflowException

    from flr.tracking.connection import GRID, PREFIX, connect, translate_auth_errors
    from flr.tracking.registry import run_of

    client = connect(uri, create=False)
    run = run_of(client, run) if version else run
    try:
        with translate_auth_errors(uri, f"run={run}"):
            stored = client.get_run(run)
    except MlflowException as error:
        raise UserError(f"run={run}: no such folder, and {uri} has no run of this id; set tracking.uri") from error
    if stored.info.lifecycle_stage != "active":
        raise UserError(f"run={run}: it was deleted in MLflow; restore it there, or name another")
    if PREFIX + GRID in stored.data.tags:
        raise UserError(f"run={run}: a sweep, which trained no model itself; name one of its jobs")
    target, local = output.absolute() / "runs" / run, Path(stored.data.tags.get(f"{PREFIX}folder", ""))
    for place in (target, local):
        if (place / "run.json").is_file():
            return RunFolder(place)
    target.mkdir(parents=True, exist_ok=True)
    names = {item.path for folder in (None, "checkpoints") for item in client.list_artifacts(run, folder)}
    for name in ("run.json", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        if name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            fetched = Path(client.download_artifacts(run, name, str(target)))
            if fetched != target / name:  # some stores keep the folder of a single file, some do not
                fetched.replace(target / name)
    if not (target / "run.json").is_file():
        raise UserError(f"run={run}: its folder {local} is not here and MLflow holds no copy; name the folder")
    return RunFolder(target)


def find_checkpoint(run: str, uri: str, output: Path) -> Path:
    """The best checkpoint of a run, or the checkpoint itself where `run` names a file; see `find_run`."""
    reference = Path(run)
    return reference.absolute() if reference.is_file() else find_run(run, uri, output).best


class Damaged(UserError):
    """A checkpoint that is cut, changed, or holds more than tensors and plain values."""


def load_last(folder: RunFolder) -> dict[str, Any] | None:
    """The last checkpoint of a run; where that is damaged, the one before, which takes its place.

    Returns:
        None for a run that was stopped in its first epoch.

    Raises:
        UserError: there are checkpoints, but none can be used.
    """
    if not folder.last.is_file():
        return None
    try:
        return load_checkpoint(folder.last)
    except Damaged as error:
        try:
            load_checkpoint(folder.before)
            os.replace(folder.before, folder.last)
        except (UserError, FileNotFoundError):  # another rank may have been faster
            return load_checkpoint(folder.last)
        print(f"flr: {error}; the one before is used", file=sys.stderr)
        return load_checkpoint(folder.last)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this project: Lightning's, with a plain ``flr`` part.

    Raises:
        Damaged: cut, changed, or holding anything but tensors and plain values.
        UserError: missing or foreign.
    """
    import torch

    try:
        # torch itself would take changed weights: it leaves out the archive's checksums.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise ValueError("checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint") from error
    except Exception as error:  # a file that is none is taken for a pickle, whose reader fails in any way
        reason = (
            "holds objects, which are never loaded"
            if zipfile.is_zipfile(path) and "unsupported" in str(error).lower()
            else "damaged or not a checkpoint"
        )
        raise Damaged(f"{path}: {reason}; name another, or last.ckpt or best.ckpt of the same run") from error
    about = checkpoint.get("flr") if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or "state_dict" not in checkpoint or "config" not in about:
        raise UserError(f"{path}: a checkpoint, but not one that flr.train wrote")
    forms = {"config": dict, "scheme": dict, "protocol": dict, "overrides": list}
    weights = checkpoint["state_dict"]
    whole = isinstance(weights, dict) and all(isinstance(key, str) for key in weights)
    if whole:
        face = weights.get("mean_face")
        whole = (
            isinstance(face, torch.Tensor)
            and face.ndim == 2
            and face.layout is torch.strided
            and not face.requires_grad
        )
    if not whole or not all(isinstance(about.get(key), form) for key, form in forms.items()):
        raise Damaged(f"{path}: parts of this checkpoint are missing or not of their form; name another")
    if about.get("version") != VERSION:
        raise UserError(
            f"{path}: written by another version of flr (form {about.get('version')}, this reads {VERSION})"
        )
    return checkpoint
