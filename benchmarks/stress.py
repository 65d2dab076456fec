"""The stress test of dlib's regression trees, compared with that of models: the same corrupted faces, one table, one figure.

    python -m benchmarks.stress data.root=DIR [data.crop.size=128] [STRESS.json ...] [picture=FILE.png]

STRESS.json are the results of ``flr evaluate run=ID stress=all`` of models with crops of that size, on the same faces. The trees are those of
`benchmarks.trees`, trained first where they are not in the cache. They get the corrupted crop with the
tight box at its place in the clean crop: rotation, shift and scale move the face under the box, as they do for a model.
The crop is enlarged for them, since they return whole pixels. The mean corruption error is relative to the trees.
It wants dlib, see `benchmarks.trees`.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import dlib
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import config, record
from benchmarks.trees import faces_of, rectangle, trained
from flr.augment.device import Augment
from flr.config.instantiate import build
from flr.data.datamodule import FaceData
from flr.evaluation.corruptions import KINDS, SEVERITIES
from flr.evaluation.stress import StressResult, corrupted_views
from flr.files import writing
from flr.landmarks.geometry import invert, transform
from flr.metrics.functional import nme, percent_mean, point_errors
from flr.reporting.figures import png, stress_figure

SIDE = 128  # pixels of the corrupted crop, unless the command line says otherwise
SHOWN = 640  # pixels to which it is enlarged for dlib
SEED = 0  # as stress_seed of flr evaluate


def stress_trees(trees: dlib.shape_predictor, data: FaceData) -> StressResult:
    """Score trees on the test faces of prepared data under each corruption at each severity."""
    table, rows, to_crop = data.prepare(), data.rows("test"), data.store.to_crop()
    errors: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    times = SHOWN / data.crop.size
    enlarge = np.array([[times, 0, (times - 1) / 2], [0, times, (times - 1) / 2]])
    for row in rows:
        one = np.array([row])
        corners = transform(to_crop[row], table.tight[row].reshape(2, 2).astype(np.float64))
        box = rectangle(transform(enlarge, corners).ravel())
        for key, crops, to_view in corrupted_views(data, one, KINDS, SEED):
            large = cv2.resize(crops[0], (SHOWN, SHOWN), interpolation=cv2.INTER_LINEAR)
            points = np.array([(point.x, point.y) for point in trees(large, box).parts()], np.float64)
            found = transform(invert(to_view[0]), transform(invert(enlarge), points))
            errors[key].append(point_errors(found[None], table.points[one], table.labelled[one]))
    value = {
        key: percent_mean(nme(np.concatenate(all_faces), data.normaliser[rows])) for key, all_faces in errors.items()
    }
    by_kind = {kind: [value[kind, severity] for severity in SEVERITIES] for kind in KINDS}
    return StressResult("dlib's trees", data.protocol.name, len(rows), value["", 0], by_kind)


def stored_result(path: Path) -> StressResult:
    """Return the result that ``flr evaluate stress=all`` wrote."""
    known = json.loads(path.read_text(encoding="utf-8"))
    return StressResult(**{name: known[name] for name in ("label", "protocol", "faces", "clean", "nme", "coverage")})


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("picture=") and not word.endswith(".json")]
    pictures = [Path(word.removeprefix("picture=")) for word in sys.argv[1:] if word.startswith("picture=")]
    cfg = config("data=ibug", f"data.crop.size={SIDE}", "data.crop.channels=1", *words)
    data: FaceData = build(cfg.data, cache=str(cfg.paths.cache_dir), augment=Augment(), seed=0)
    trees, _ = trained(faces_of(cfg), cfg)
    of_trees = stress_trees(trees, data)
    results = [of_trees, *(stored_result(Path(word)) for word in sys.argv[1:] if word.endswith(".json"))]
    shown = Table(title=f"{of_trees.faces} faces, NME in percent; mean of the severities")
    for column in ("", "clean", "mean", "mCE", *KINDS):
        shown.add_column(column, justify="right" if column else "left")
    for one in results:
        figures = [
            one.clean,
            one.mean,
            one.mean_corruption_error(of_trees),
            *(np.mean(one.nme[kind]) for kind in KINDS),
        ]
        shown.add_row(one.label, *(f"{figure:.2f}" for figure in figures))
    Console(width=160).print(shown)
    for path in pictures:
        with writing(path) as partial_file:
            partial_file.write_bytes(png(stress_figure({one.label: (one.clean, one.nme) for one in results})))
    record(
        f"stress_{data.crop.size}px", "python -m benchmarks.stress data.root=DIR STRESS.json ...", size=data.crop.size, faces=of_trees.protocol, dlib=dlib.__version__,
        results=[{**vars(one), "mean": one.mean, "mce": one.mean_corruption_error(of_trees)} for one in results],
    )  # fmt: skip


if __name__ == "__main__":
    main()
