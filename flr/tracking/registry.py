"""Model versions: a finished run's best checkpoint in MLflow's registry, loadable where there is no flr.

A version is a folder of its run's artifacts, ``checkpoints/``: what MLflow needs to run the net lies beside
``best.ckpt``, so that the weights are kept once. A run has one version of a name; a run that goes on brings its own up
to date. MLflow's word for the newest version is ``models:/NAME/latest`` (an alias of that name is reserved).
"""

import json
import platform
import re
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import flr
from flr.errors import UserError
from flr.tracking.connection import first_line, one_at_a_time, pages

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_NAME = r"(?=.*\w)[\w. -]{1,200}"
FOLDER = "checkpoints"  # of a run's artifacts
CODE = "flr.zip"
SCRIPT = "pyfunc.py"
BEST = "best"  # the alias
# What flr/inference runs on; a test holds it against what a loaded model has imported.
PACKAGES = (
    "annotated-types", "filelock", "hydra-core", "mlflow", "numpy", "omegaconf", "opencv-python-headless", "pydantic",
    "pytorch-lightning", "requests", "scipy", "torch", "torchmetrics", "tqdm", "urllib3",
)  # fmt: skip


def register(
    client: "MlflowClient",
    uri: str,
    run_id: str,
    name: str,
    points: int,
    tags: Mapping[str, str],
    more: tuple[str, ...],
) -> str:
    """Make a run's uploaded ``checkpoints/best.ckpt`` a version of a registered model.

    Args:
        client: of the store.
        uri: of the store.
        run_id: the run.
        name: of the registered model, made where there is none.
        points: K.
        tags: of the version, to compare it by; among them ``protocol`` and ``val/nme``.
        more: packages that this net runs on beside the usual.

    Returns:
        The version. Any error of the store is raised as it is.
    """
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="flr-model-") as folder:
        write_model(Path(folder), run_id, points, more)
        client.log_artifacts(run_id, folder, FOLDER)
    source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
    with one_at_a_time(uri):  # a server sees to that itself
        try:
            client.create_registered_model(name, description=f"{points} facial landmarks of a picture, by flr")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        own = next(pages(client.search_model_versions, filter_string=f"name = '{name}' and run_id = '{run_id}'"), None)
        scores = ", ".join(f"{key} {tags[key]} %" for key in ("val/nme", "test/nme") if key in tags)
        about = f"{scores}. {tags['protocol']}"
        if own is None:
            own = client.create_model_version(name, source, run_id, dict(tags), description=about, await_creation_for=0)
        else:
            client.update_model_version(name, str(own.version), about)
            for key, value in tags.items():
                client.set_model_version_tag(name, str(own.version), key, value)
        point_best(client, name, tags["protocol"])
    return str(own.version)


def point_best(client: "MlflowClient", name: str, protocol: str) -> None:
    """Point the alias ``best`` at the version of the lowest val/nme under the protocol of the version that holds it.

    Numbers of two protocols are not compared, so a version of another protocol never takes it. Where nobody holds it
    it starts with `protocol`; a person who sets it by hand moves it to that version's protocol.
    """
    from mlflow.exceptions import MlflowException

    tries = 10
    while True:  # of several jobs at once, the last to write looks once more, and has seen what all have registered
        versions = list(pages(client.search_model_versions, filter_string=f"name = '{name}'"))
        by_number = {str(one.version): one for one in versions}
        holder = by_number.get(str(client.get_registered_model(name).aliases.get(BEST)))
        held = holder.tags.get("protocol", protocol) if holder else protocol
        rivals = [one for one in versions if one.tags.get("protocol") == held and "val/nme" in one.tags]
        winner = min(rivals, key=lambda one: (float(one.tags["val/nme"]), int(one.version)), default=None)
        if winner is None or (holder and winner.version == holder.version):
            return
        try:
            client.set_registered_model_alias(name, BEST, str(winner.version))
        except MlflowException:  # a server lets two make it at once, and refuses the second
            tries -= 1
            if not tries:
                raise


def run_of(client: "MlflowClient", reference: str) -> str:
    """The id of the run that ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``models:/NAME/latest`` came from.

    Raises:
        UserError: there is no such version, or no run made it.
    """
    from mlflow.exceptions import MlflowException

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
        raise UserError(f"run={reference}: {first_line(error)}; fix it or set tracking.uri") from error
    if not found.run_id:
        raise UserError(f"run={reference}: no run made this version; name a run")
    return str(found.run_id)


def write_model(folder: Path, run_id: str, points: int, more: tuple[str, ...] = ()) -> None:
    """What makes a folder with a ``best.ckpt`` a model that MLflow can run: its own code, and nothing pickled.

    Args:
        folder: to write to.
        run_id: the run, noted.
        points: K.
        more: see `register`.
    """
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    package = Path(flr.__file__).parent
    with zipfile.ZipFile(folder / CODE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(package.rglob("*.py")):
            archive.write(path, path.relative_to(package.parent))
    (folder / SCRIPT).write_bytes((package / "inference" / SCRIPT).read_bytes())
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in (*PACKAGES, *more)]  # less a build's own label
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
