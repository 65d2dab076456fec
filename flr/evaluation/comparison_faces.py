"""Predict the faces again on which two groups of runs differ most."""

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig

from flr.config.compose import as_config
from flr.errors import UserError
from flr.evaluation.results import Section, TestedRun, mean_and_deviation
from flr.evaluation.score import restore
from flr.landmarks.draw import draw_face, sheet
from flr.module.checkpoints import load_checkpoint
from flr.reporting.figures import jpeg
from flr.reporting.html import embed, notes
from flr.tracking.connection import fetch

if TYPE_CHECKING:
    from mlflow import MlflowClient

SIDE = 240  # pixels of a face on the page


def face_pairs(section: Section, cfg: DictConfig, client: "MlflowClient", folder: Path) -> str:
    """Show the faces on which two groups differ most, as HTML, each predicted by the best seed of both.

    The two are the baseline, or else the best group, and the group nearest to it.
    """
    one = (cfg.baseline is not None and section.group(str(cfg.baseline))) or section.groups[0]
    means = {group.name: mean_and_deviation(group.values(cfg.metric))[0] for group in section.groups}
    others = [group for group in section.groups if group is not one]
    other = min(others, key=lambda group: abs(means[group.name] - means[one.name]))
    best = [min(group.runs, key=lambda result: float(np.nanmean(result.nme))) for group in (one, other)]
    nme = np.stack([result.nme for result in best])
    gap = np.nan_to_num(nme[0] - nme[1])
    most = np.argsort(-np.abs(gap), kind="stable")[: cfg.faces]
    most = most[np.argsort(gap[most], kind="stable")]
    page = f"<h3>Where {html.escape(one.name)} (left) and {html.escape(other.name)} (right) differ most</h3>"
    try:
        drawn = [predict(client, result, most, cfg.paths, folder / result.run.run_id) for result in best]
    except UserError as error:
        reason = str(error).replace(f"{folder}/", "")
        print(f"note: no faces on the page: {reason}")
        return page + notes([f"no faces here: {reason}"])
    page += "<p>The best seed of each; truth green, prediction magenta.</p>"
    for i, face in enumerate(most):
        name, (left, right) = str(best[0].faces[face]), 100 * nme[:, face]
        crops = [
            draw_face(*faces[i], SIDE, f"{value:.1f} %") for faces, value in zip(drawn, (left, right), strict=True)
        ]
        line = f"{html.escape(name)}<br>NME {left:.2f} % and {right:.2f} %"
        page += f"<figure>{embed(jpeg(sheet(crops, 2)), 'jpeg', name)}<figcaption>{line}</figcaption></figure>"
    return page


def predict(
    client: "MlflowClient", result: TestedRun, chosen: np.ndarray, paths: Any, folder: Path
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Predict some faces, by index, with a run's best checkpoint.

    Returns:
        The crop, the true points, the predicted points (crop pixels) and which points are labelled, of each face.

    Raises:
        UserError: The checkpoint or the data are missing, or have changed.
    """
    print(f"Predicting {len(chosen)} faces by {result.run.name}")
    best = fetch(client, result.run, "checkpoints/best.ckpt", folder)
    checkpoint = load_checkpoint(best)
    config = as_config(checkpoint["flr"]["config"])
    config.paths = paths
    module, data = restore(config, checkpoint, best)
    if data.protocol.fingerprint != result.parts["fingerprint"]:
        raise UserError(f"the data at {data.root} are no longer those of run {result.run.run_id}")
    table = data.prepare()
    row_of = {str(table.name[row]): row for row in data.rows("test")}
    rows = np.array([row_of[str(name)] for name in result.faces[chosen]])
    module.eval()
    with torch.no_grad():
        points = module(data.batch(torch.from_numpy(rows), None).images).numpy()
    return list(zip(data.store.crops(rows), data.labels[rows], points, table.labelled[rows], strict=True))
