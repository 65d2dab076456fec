"""dlib's regression trees (Kazemi and Sullivan 2014) on 300-W, beside nets: the same faces, the same boxes, one core.

    python -m benchmarks.trees data.root=DIR [run=CHECKPOINT ...] [picture=FILE.png]

The trees learn from every training face (afw, helen, lfpw) by the tight box of its points: 15 cascades, depth 4, each face 20 times, else dlib's
own settings; nothing of them was chosen here. They are kept in the cache (paths.cache_dir). Helen's test faces are scored by their tight box, by that box up to a tenth off
in place and size, and by Haar's, whose median offset comes from training faces; "found" leaves out the faces that Haar misses, where else
their tight box stands in. The nets, by ONNX Runtime on one thread and without mirrored averaging, are shown the same boxes, and each face once more
round the points that they found there. Time is of one face, from picture and box to points, and of
the net or the trees alone, on what was cut before. The picture has the cumulative errors by the tight box and by Haar's.
It wants dlib (`pip install dlib` builds it, a quarter of an hour; `pip install dlib-bin` has it built).
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import dlib
import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from benchmarks.common import config, record, rounds
from benchmarks.inference import least
from benchmarks.video import exported
from flr.config.instantiate import build
from flr.data.boxes import BoxPolicy, face_boxes
from flr.data.crops import crop, to_channels
from flr.data.table import FaceTable, check_faces
from flr.files import writing
from flr.inference.landmarker import Landmarker
from flr.inference.onnx import OnnxPredictor
from flr.landmarks.geometry import invert, transform
from flr.metrics.functional import nme, point_errors, summary
from flr.module.checkpoints import load_checkpoint
from flr.reporting.figures import ced_figure
from flr.system import cores

ROUNDS = 9
WITHIN = [x / 2 for x in range(2, 17)]  # percent, of the cumulative errors that are kept
SIDE = 800  # pixels of what dlib is shown of a face, twice its box
POLICIES = {"truth": BoxPolicy(), "jitter .1": BoxPolicy(jitter=0.1), "haar": BoxPolicy(source="haar")}
Points = Callable[[np.ndarray, np.ndarray], np.ndarray]  # a picture (H, W) or (H, W, 3), a box (4,) -> (68, 2)


def rectangle(box: np.ndarray) -> dlib.rectangle:
    return dlib.rectangle(*(round(float(side)) for side in box))


def enlarged(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, dlib.rectangle]:
    """A face so large that dlib's whole-number points cost it nothing: the picture round it, the map there, its box there."""
    affine = BoxPolicy(scale=2.0).crop(box.astype(np.float64), SIDE)
    return (
        crop(image, affine, SIDE, 1)[..., 0],
        affine,
        rectangle(transform(affine, box.reshape(2, 2).astype(np.float64)).ravel()),
    )


def faces_of(cfg: DictConfig) -> FaceTable:
    """The faces of `data=ibug` as published, none held out for validation."""
    return check_faces(build(cfg.data.reader)(root=Path(cfg.data.root).expanduser(), strict=False), strict=False)


def trained(table: FaceTable, cfg: DictConfig) -> tuple[dlib.shape_predictor, float]:
    """The trees, trained first where they are not in the cache; and the seconds that took."""
    path = Path(cfg.paths.cache_dir) / f"trees-{table.fingerprint()}.dat"
    clock = path.with_suffix(".seconds")
    if not path.exists():
        images, faces = [], []
        for row in np.flatnonzero(table.split == "train"):
            image, affine, box = enlarged(table.load(int(row)), table.tight[row])
            points = [
                dlib.point(*map(round, p)) for p in transform(affine, table.points[row].astype(np.float64)).tolist()
            ]
            images.append(image)
            faces.append([dlib.full_object_detection(box, points)])
        options = dlib.shape_predictor_training_options()
        options.cascade_depth, options.tree_depth, options.oversampling_amount = 15, 4, 20
        options.num_threads, options.be_verbose = cfg.data.workers or cores(), True
        start = time.monotonic()
        trees = dlib.train_shape_predictor(images, faces, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as aside:
            trees.save(str(aside))
        clock.write_text(f"{time.monotonic() - start:.0f}")
    return dlib.shape_predictor(str(path)), float(clock.read_text())


def of_trees(trees: dlib.shape_predictor) -> Points:
    def points(image: np.ndarray, box: np.ndarray) -> np.ndarray:
        picture, affine, there = enlarged(image, box)
        return transform(invert(affine), np.array([(p.x, p.y) for p in trees(picture, there).parts()], np.float64))

    return points


def of_net(net: Landmarker, looks: int) -> Points:
    return lambda image, box: net([image], box[None], refine=looks - 1)[0]


def main() -> None:
    checkpoints = [Path(word.removeprefix("run=")) for word in sys.argv[1:] if word.startswith("run=")]
    pictures = [Path(word.removeprefix("picture=")) for word in sys.argv[1:] if word.startswith("picture=")]
    cfg = config("data=ibug", *(word for word in sys.argv[1:] if not word.startswith(("run=", "picture="))))
    cv2.setNumThreads(1)
    table = faces_of(cfg)
    trees, seconds = trained(table, cfg)
    tests = np.flatnonzero(table.split == "test")
    boxes = {name: face_boxes(table, policy, Path(cfg.paths.cache_dir), 2) for name, policy in POLICIES.items()}
    with tempfile.TemporaryDirectory(prefix="flr-") as folder:
        nets = {}
        for checkpoint in checkpoints:
            net = exported(checkpoint, Path(folder))
            own = load_checkpoint(checkpoint)["flr"]["config"]
            nets[f"{own['name'] or checkpoint.parent.parent.name[:8]}, seed {own['seed']}"] = OnnxPredictor(
                net.session, net.metadata
            )
    contenders = {"dlib's trees": of_trees(trees)} | {
        f"{name}{told}": of_net(net, looks)
        for name, net in nets.items()
        for looks, told in ((1, ""), (2, ", two looks"))
    }
    errors: dict[str, dict[str, float]] = {name: {} for name in contenders}
    curves: dict[str, np.ndarray] = {}
    for name, points in contenders.items():
        for policy, found in boxes.items():
            predicted = np.stack([points(table.load(int(row)), found.box[row]) for row in tests])
            keep = {"": np.ones(len(tests), bool)} | ({" found": ~found.missed[tests]} if policy == "haar" else {})
            for told, mask in keep.items():
                some = tests[mask]
                whole = summary(predicted[mask], table.points[some], table.labelled[some], table.scheme)
                errors[name] |= {f"{policy}{told} {key}": whole[key] for key in ("nme", "fr8", "auc8")}
            # One curve a contender and box: nets by Haar's as flr.predict shows it to them, twice.
            if policy == ("haar" if "looks" in name else "truth") or (policy == "haar" and name == "dlib's trees"):
                off = point_errors(predicted, table.points[tests], table.labelled[tests])
                normaliser = table.scheme.distance(table.points[tests], table.labelled[tests])
                curves[f"{name}, {policy} box"] = nme(off, normaliser)
    for path in pictures:
        with writing(path) as aside:
            ced_figure(curves).savefig(aside, format="png", dpi=110)
    image, box = to_channels(table.load(int(tests[0])), 1), table.tight[tests[0]].astype(np.float64)
    times = rounds(
        {name: least(lambda points=points: points(image, box)) for name, points in contenders.items()}, ROUNDS
    )
    shown, _, there = enlarged(image, box)
    pixels = {
        name: np.zeros((1, net.crop.size, net.crop.size, net.crop.channels), np.uint8) for name, net in nets.items()
    }
    alone = rounds(
        {"dlib's trees": least(lambda: trees(shown, there))}
        | {name: least(lambda name=name: nets[name].run(pixels[name])) for name in nets},
        ROUNDS,
    )
    columns = ("truth nme", "truth fr8", "truth auc8", "jitter .1 nme", "haar nme", "haar found nme")
    out = Table(
        title=f"{table.form}: {len(tests)} faces, {int(boxes['haar'].missed[tests].sum())} of them missed by Haar"
    )
    for column in ("", *columns, "ms a face", "of the crop alone"):
        out.add_column(column, justify="right" if column else "left")
    for name in contenders:
        bare = f"{median(alone[name]):.2f}" if name in alone else ""
        out.add_row(name, *(f"{errors[name][column]:.2f}" for column in columns), f"{median(times[name]):.2f}", bare)
    Console(width=140).print(out)
    size = (Path(cfg.paths.cache_dir) / f"trees-{table.fingerprint()}.dat").stat().st_size
    record(
        "trees", "python -m benchmarks.trees data.root=DIR run=CHECKPOINT ...", faces=table.form, training_seconds=seconds, bytes=size,
        dlib=dlib.__version__, missed_by_haar=int(boxes["haar"].missed[tests].sum()), errors_percent=errors,
        within_percent=WITHIN, faces_within={name: [round(float((100 * nmes <= level).mean()), 4) for level in WITHIN] for name, nmes in curves.items()}, ms_a_face=times, ms_of_a_crop=alone,
    )  # fmt: skip


if __name__ == "__main__":
    main()
