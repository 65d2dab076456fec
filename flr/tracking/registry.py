"""Model versions: a finished run's best checkpoint in MLflow's registry, loadable where flr is not installed.

A version is the folder ``checkpoints/`` of its run's artifacts, in which the code to run the model is stored next to
``best.ckpt``, so that the weights are kept once. A run has one version of a name, which a resumed run updates.
"""

import json
import platform
import re
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

import flr
from flr.errors import UserError, nearest
from flr.tracking.connection import database_lock, first_line, pages

MODEL_NAME = r"(?=.*\w)[\w. -]{1,200}"
FOLDER = "checkpoints"  # of a run's artifacts
CODE = "flr.zip"
SCRIPT = "pyfunc.py"
BEST = "best"  # the alias
MAX_REFUSALS = 10  # of the alias, before the error is raised
# What flr.inference imports; a test compares it with what a loaded model has imported.
PACKAGES = (
    "annotated-types", "filelock", "hydra-core", "mlflow", "numpy", "omegaconf", "opencv-python-headless", "pydantic",
    "pooch", "pytorch-lightning", "requests", "scipy", "torch", "torchmetrics", "tqdm",
)  # fmt: skip


def register(
    client: MlflowClient,
    uri: str,
    run_id: str,
    name: str,
    points: int,
    tags: Mapping[str, str],
    packages: tuple[str, ...],
) -> str:
    """Make a run's uploaded ``checkpoints/best.ckpt`` a version of a registered model.

    Args:
        client: Client of the store.
        uri: Address of the store.
        run_id: The run.
        name: Name of the registered model, which is created where it is missing.
        points: K.
        tags: Tags of the version, among them ``protocol`` and ``val/nme``.
        packages: Packages that this model needs in addition to `PACKAGES`.

    Returns:
        The version. Errors of the store are raised as they are.
    """
    with tempfile.TemporaryDirectory(prefix="flr-model-") as folder:
        write_model(Path(folder), run_id, points, packages)
        client.log_artifacts(run_id, folder, FOLDER)
    source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
    with database_lock(uri):
        try:
            client.create_registered_model(name, description=f"{points} facial landmarks of an image, by flr")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        query = f"name = '{name}' and run_id = '{run_id}'"
        version = next(pages(client.search_model_versions, filter_string=query), None)
        scores = ", ".join(f"{key} {tags[key]} %" for key in ("val/nme", "test/nme") if key in tags)
        text = f"{scores}. {tags['protocol']}"
        if version is None:
            version = client.create_model_version(
                name, source, run_id, dict(tags), description=text, await_creation_for=0
            )
        else:
            client.update_model_version(name, str(version.version), text)
            for key, value in tags.items():
                client.set_model_version_tag(name, str(version.version), key, value)
        update_best_alias(client, name, tags["protocol"])
    return str(version.version)


def update_best_alias(client: MlflowClient, name: str, protocol: str) -> None:
    """Point the alias ``best`` at the lowest val/nme under the protocol of the version that has the alias.

    A version of another protocol never takes it. Where no version has it, `protocol` is taken; a person who sets it by hand
    moves it to the protocol of that version.

    Several jobs may do this at once. Each looks again after it has set the alias, so that the last one sees all versions.
    """
    refusals = 0
    while (best := _better_than_best(client, name, protocol)) is not None:
        try:
            client.set_registered_model_alias(name, BEST, best)
        except MlflowException:  # a server lets two jobs create the alias at once, and refuses the second
            refusals += 1
            if refusals == MAX_REFUSALS:
                raise


def _better_than_best(client: MlflowClient, name: str, protocol: str) -> str | None:
    """Return the version that should have the alias; None where it has it already, or where no version can have it."""
    versions = {str(one.version): one for one in pages(client.search_model_versions, filter_string=f"name = '{name}'")}
    holder = str(client.get_registered_model(name).aliases.get(BEST))
    if holder in versions:
        protocol = versions[holder].tags.get("protocol", protocol)
    scores = {
        number: float(version.tags["val/nme"])
        for number, version in versions.items()
        if version.tags.get("protocol") == protocol and "val/nme" in version.tags
    }
    best = min(scores, key=lambda number: (scores[number], int(number)), default=holder)
    return None if best == holder else best


def run_of(client: MlflowClient, reference: str) -> str:
    """Return the id of the run that ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``models:/NAME/latest`` came from.

    Raises:
        UserError: There is no such version, or no run made it.
    """
    named = re.fullmatch(rf"models:/({MODEL_NAME})(?:@([\w-]+)|/(\d+|latest))", reference)
    if not named:
        raise UserError(
            f"run={reference}: name a model version as models:/NAME@best, models:/NAME/3 or models:/NAME/latest"
        )
    name, alias, number = named.groups()
    try:
        if alias or number == "latest":
            found = client.get_model_version_by_alias(name, alias or number)
        else:
            found = client.get_model_version(name, number)
    except MlflowException as error:
        models = {model.name: model for model in pages(client.search_registered_models)}
        if name not in models:
            known = nearest(name, models) if models else " (none is registered there)"
            reason = f"no registered model '{name}'{known}"
        elif alias:
            reason = f"no version of this model has the alias '{alias}'{nearest(alias, models[name].aliases)}"
        else:
            reason = first_line(error)
        raise UserError(f"run={reference}: {reason}; fix it or set tracking.uri") from error
    if not found.run_id:
        raise UserError(f"run={reference}: no run made this version; name a run")
    return str(found.run_id)


def write_model(folder: Path, run_id: str, points: int, packages: tuple[str, ...] = ()) -> None:
    """Make a folder with a ``best.ckpt`` a model that MLflow can run, with flr's code and nothing pickled."""
    package = Path(flr.__file__).parent
    with zipfile.ZipFile(folder / CODE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(package.rglob("*.py")):
            archive.write(path, path.relative_to(package.parent))
    (folder / SCRIPT).write_bytes((package / "inference" / SCRIPT).read_bytes())
    pins = [
        f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*PACKAGES, *packages)
    ]  # without a build's label
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "build_dependencies": ["pip"],
        "dependencies": ["-r requirements.txt"],
    }
    (folder / "python_env.yaml").write_text(json.dumps(environment), encoding="utf-8")
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, 3))]),
        Schema([TensorSpec(np.dtype(np.float64), (-1, points, 2))]),
        ParamSchema([ParamSpec("boxes", "double", [], (-1,))]),
    )
    model = Model(run_id=run_id, signature=signature)
    mlflow.pyfunc.add_to_model(
        model, "mlflow.pyfunc.loaders.code_model", code=CODE, model_code_path=SCRIPT, python_env="python_env.yaml",
        model_config={"device": "auto"},
        artifacts={"checkpoint": {"path": "best.ckpt", "uri": "best.ckpt"}},
    )  # fmt: skip
    model.save(str(folder / "MLmodel"))
