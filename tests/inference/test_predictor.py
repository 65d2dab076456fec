"""The predictor gives the points that the evaluation measured, of images alone, and refuses what is none."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flr.augment.device import Augment
from flr.config.compose import as_config
from flr.data.boxes import OFFSETS, BoxPolicy, face_boxes
from flr.data.crops import CropSettings
from flr.data.readers import ibug
from flr.errors import UserError
from flr.evaluation.score import restore
from flr.inference.landmarker import Landmarker
from flr.inference.predictor import Predictor
from flr.landmarks.geometry import tight_box
from flr.landmarks.scheme import Scheme
from flr.metrics.functional import nme, point_errors
from flr.module.checkpoints import load_checkpoint
from tests.conftest import Workspace


def best(workspace: Workspace) -> Path:
    return workspace.folder(workspace.only_run().info.run_id) / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Workspace:
    """A run that has learned to tell faces apart, of larger images, in colour, in bf16, with other boxes and a mirror."""
    workspace = Workspace(tmp_path_factory.mktemp("coloured"), shared_cache)
    workspace.train(
        "data.reader.size=160", "data.crop.channels=3", "data.pixels=[0,1]", "data.crop.policy.shape=stretch", "tta=true",
        "data.crop.policy.scale=1.5", "trainer=bf16", "augment=light", "callbacks.pictures=null", "trainer.max_epochs=6",
        "data.crop.policy.jitter=0.1", "ema=0", "optim.lr=0.02",
    )  # fmt: skip
    return workspace


def as_evaluated(workspace: Workspace) -> tuple[Predictor, list[np.ndarray], np.ndarray, np.ndarray]:
    """The predictor of a run, its test images with the boxes of its protocol, and the NME of each that was measured."""
    path = best(workspace)
    checkpoint = load_checkpoint(path)
    data = restore(as_config(checkpoint["flr"]["config"]), checkpoint, path, Augment())[1]
    table, rows = data.prepare(), data.rows("test")
    boxes = face_boxes(table, data.crop.policy, workspace.cache, 0).box[rows]
    predictor, images = Predictor.load(path), [table.load(int(row)) for row in rows]
    points = predictor(images, boxes)
    measured = nme(point_errors(points, table.points[rows], table.labelled[rows]), data.normaliser[rows])
    return predictor, images, boxes, measured


@pytest.mark.parametrize("which", ["trained", "coloured"])
def test_it_gives_the_points_that_were_measured(which: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which)
    workspace = found if which == "coloured" else found[0]
    predictor, images, boxes, measured = as_evaluated(workspace)
    with (best(workspace).parents[1] / "errors.csv").open() as file:
        of_run = [float(row["nme"]) for row in csv.DictReader(file)]
    assert 100 * measured == pytest.approx(of_run, rel=1e-4 if which == "trained" else 5e-4)  # bf16 rounds
    if which == "coloured":
        assert predictor.half and predictor.module.tta and predictor.crop.channels == 3
        assert images[0].shape[1] > 2 * 1.5 * predictor.crop.size  # so that it is shrunk by area
        points = predictor(images, boxes)
        predictor.half = False
        assert 1e-4 < np.abs(points - predictor(images, boxes)).max() < 3


def test_grey_and_coloured_pictures_of_any_size_and_number(coloured: Workspace) -> None:
    predictor, images, boxes, _ = as_evaluated(coloured)
    predictor.half = False
    assert predictor(images, boxes).std(0).max() > 2  # a net that looks
    many = [images[i % 9] for i in range(70)]  # more than one batch
    points = predictor(many, np.stack([boxes[i % 9] for i in range(70)]))
    np.testing.assert_allclose(points, predictor(images, boxes)[np.arange(70) % 9], atol=1e-3)
    grey = [image if image.ndim == 2 else image[..., 0] for image in images]
    three = [np.stack([image] * 3, -1) for image in grey]
    np.testing.assert_allclose(predictor(three, boxes), predictor(grey, boxes), atol=0.2)
    # An image moved, box and all, moves its points by as much; what a crop's rounding does to a hardly trained net depends on the CPU.
    moved = predictor([np.pad(grey[0], ((11, 0), (7, 0)))], boxes[:1] + [7, 11, 7, 11])
    inner = (boxes[0] > 12).all()  # else the border would be seen
    np.testing.assert_allclose(moved, predictor(grey[:1], boxes[:1]) + [7, 11], atol=0.3 if inner else 8)
    assert predictor([], np.zeros((0, 4))).shape == (0, 68, 2)


def test_the_mirror_is_a_choice(coloured: Workspace) -> None:
    _, images, boxes, _ = as_evaluated(coloured)
    plain, both = (Predictor.load(best(coloured), tta=tta) for tta in (False, True))
    plain.half = both.half = False
    flipped = [image[:, ::-1].copy() for image in images]
    width = np.array([image.shape[1] for image in images])[:, None]
    back = np.stack([width[:, 0] - 1 - boxes[:, 2], boxes[:, 1], width[:, 0] - 1 - boxes[:, 0], boxes[:, 3]], 1)
    points = plain(flipped, back)
    points[..., 0] = width - 1 - points[..., 0]
    expected = (plain(images, boxes) + points[:, plain.scheme.mirror_order.tolist()]) / 2
    np.testing.assert_allclose(both(images, boxes), expected, atol=0.2)
    assert np.abs(both(images, boxes) - plain(images, boxes)).max() > 1


class Drawn(Landmarker):
    """Finds four dots, as far as the crop shows them, and is less certain the larger they are."""

    def __init__(
        self, source: str = "truth", uncertainty_threshold: float | None = None, gives_spread: bool = True
    ) -> None:
        self.gives_spread = gives_spread
        crop = CropSettings(64, 1, BoxPolicy(source))  # type: ignore[arg-type]
        super().__init__(
            Scheme("dots", ("a", "b", "c", "d"), (), {}, {}, "diagonal"),
            crop,
            None,
            np.zeros((4, 2)),
            uncertainty_threshold,
        )

    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points, spread = np.zeros((len(crops), 4, 2)), np.zeros((len(crops), 4))
        for i, crop in enumerate(crops[..., 0]):
            y, x = np.nonzero(crop > 127)
            quarter = 2 * (y > y.mean()) + (x > x.mean()) if len(x) else x
            for k in range(4):
                own = quarter == k
                points[i, k] = (x[own].mean(), y[own].mean()) if own.any() else 32
                spread[i, k] = max(own.sum(), 1) ** 0.5
        return points, spread if self.gives_spread else spread * np.nan, spread * np.nan


def test_refinement_crops_around_the_points_of_the_first_pass() -> None:
    image = np.zeros((300, 300), np.uint8)
    truth = [(100, 100), (160, 110), (100, 170), (150, 160)]
    for x, y in truth:
        image[y - 6 : y + 7, x - 6 : x + 7] = 255
    boxes = np.array([[40.0, 40, 240, 260]])
    net = Drawn()
    one, wide, *_ = net.find([image], boxes)
    two, narrow, *_ = net.find([image], boxes, refine=1)
    assert abs(two - truth).max() < min(1, abs(one - truth).max())
    silent = Drawn(gives_spread=False)
    np.testing.assert_array_equal(silent([image], boxes, refine=1), net([image], net.boxes(one)))
    np.testing.assert_allclose(wide.mean(), 13, atol=4)  # pixels of the picture, whatever the crop's
    np.testing.assert_allclose(narrow.mean(), 13, atol=2)
    assert net.find([], np.zeros((0, 4)), refine=2)[0].shape == (0, 4, 2)
    # Points of no extent, as a net that sees nothing finds them, are looked at all the same.
    assert np.isfinite(net([np.zeros((50, 50), np.uint8)], boxes / 5, refine=2)).all()
    with pytest.raises(UserError, match=r"refine=1.*source=file"):
        Drawn("file")([image], boxes, refine=1)
    distance = np.hypot(60, 70)
    assert not net.is_uncertain(two, narrow).any()
    assert [
        bool(Drawn(uncertainty_threshold=d).is_uncertain(two, narrow)[0]) for d in (1200 / distance, 1500 / distance)
    ] == [True, False]


@pytest.mark.parametrize(
    ("image", "box", "words"),
    [
        (np.zeros((20, 20), np.float32), [0, 0, 9, 9], "image 0 is float32"),
        (np.zeros((20, 20, 4), np.uint8), [0, 0, 9, 9], r"\(20, 20, 4\)"),
        (np.zeros((20, 20), np.uint8), [9, 0, 9, 9], "right and bottom larger"),
        (np.zeros((20, 20), np.uint8), [0, 0, np.nan, 9], "box 0"),
        (np.zeros((20, 20), np.uint8), [0, 0, 9], "one box"),
        (np.zeros((20, 20), np.uint8), [-1e300, -1e300, 1e300, 1e300], "box 0"),
        (np.zeros((2, 40000), np.uint8), [0, 0, 9, 9], "at most 32766 pixels"),
        ([[1, 2], [3, 4]], [0, 0, 9, 9], "image 0 is a list"),
        (np.zeros((20, 20), np.uint8), ["left", 0, 9, 9], "give .* numbers in pixels"),
    ],
)
def test_what_is_no_picture_or_box_is_refused(
    trained: tuple[Workspace, str], image: np.ndarray, box: list[float], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Predictor.load(best(trained[0]))([image], np.array([box]))


def test_detection_follows_the_box_policy(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    checkpoint = torch.load(best(trained[0]), weights_only=True)
    policy = checkpoint["flr"]["config"]["data"]["crop"]["policy"]
    blank = np.zeros((80, 100), np.uint8)
    found = {}
    for source, offset in (("truth", None), ("haar", [0.0, 0.1, 0.9, 1.0]), ("picture", None), ("file", None)):
        policy["source"], checkpoint["flr"]["offset"] = source, offset
        torch.save(checkpoint, tmp_path / f"{source}.ckpt")
        found[source] = Predictor.load(tmp_path / f"{source}.ckpt")
    assert found["truth"].offset == OFFSETS["ibug68"] and found["haar"].offset == [0.0, 0.1, 0.9, 1.0]
    assert found["truth"].detect(blank).shape == (0, 4)
    nothing = found["truth"].find([], [], refine=1)
    assert nothing.points.shape == (0, 68, 2) and nothing.spread.shape == nothing.visible.shape == (0, 68)
    assert found["picture"].detect(blank).tolist() == [[-0.5, -0.5, 99.5, 79.5]]
    with pytest.raises(UserError, match="give boxes"):
        found["file"].detect(blank)


def test_on_photos_detected_boxes_are_those_of_the_points(trained: tuple[Workspace, str], real_data: Path) -> None:
    predictor = Predictor.load(best(trained[0]))
    table = ibug.read(root=real_data / "300w")
    rows = np.flatnonzero(table.split == "test")[:40]
    overlaps = []
    for row in rows:
        boxes, truth = predictor.detect(table.load(int(row))), tight_box(table.points[row], table.labelled[row])
        assert (np.diff(boxes[:, 2] - boxes[:, 0]) <= 0).all()  # the largest first
        low, high = np.maximum(boxes[:, :2], truth[:2]), np.minimum(boxes[:, 2:], truth[2:])
        common = (high - low).clip(0).prod(1)
        union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (truth[2:] - truth[:2]).prod() - common
        overlaps.append((common / union).max(initial=0))
    assert np.median(overlaps) > 0.7


def test_refinement_also_starts_from_a_smaller_crop_and_trusts_the_more_certain_result() -> None:
    image = np.zeros((300, 300), np.uint8)
    for x, y in [(100, 100), (160, 110), (100, 170), (150, 160), (280, 20)]:  # the last one is no point of the face
        image[y - 6 : y + 7, x - 6 : x + 7] = 255
    net, silent = Drawn(uncertainty_threshold=50.0), Drawn(gives_spread=False)
    wide, tight = np.array([[5.0, 5, 295, 295]]), np.array([[34.0, 34, 266, 266]])  # 0.8 times as large
    results = [silent([image], box, refine=1)[0] for box in (wide, tight)]
    assert (
        np.abs(results[0] - results[1]).max() > 5
    )  # what is drawn outside of the smaller crop misleads the larger one
    certainty = []
    for box in (wide, tight):
        first = net.find([image], box)
        found = net.find([image], net.boxes(first.points))
        certainty.append((found.spread.mean() / net.scheme.distance(found.points, np.ones((1, 4), bool))[0]) ** -8.0)
    share = certainty[1] / sum(certainty)
    expected = (1 - share) * results[0] + share * results[1]
    np.testing.assert_allclose(net([image], wide, refine=1)[0], expected, atol=0.02)
    both = net.find([image] * 2, np.concatenate([wide, tight]), refine=1)
    np.testing.assert_allclose(both.points[0], expected, atol=0.02)  # each face by its own certainty


def test_mlflows_model_refines_what_it_detects(trained: tuple[Workspace, str], real_data: Path) -> None:
    # Imported here: as MLflow's "models from code" form, the module names its model when it is loaded.
    from flr.inference.pyfunc import Landmarks

    model = Landmarks()
    model.load_context(SimpleNamespace(artifacts={"checkpoint": best(trained[0])}, model_config=None))  # type: ignore[arg-type]
    table = ibug.read(root=real_data / "300w")
    image = next(
        image
        for row in np.flatnonzero(table.split == "test")
        if len(model.predictor.detect(image := table.load(int(row))))
    )
    boxes = model.predictor.detect(image)
    once, twice = (model.predictor([image] * len(boxes), boxes, refine=refine) for refine in (0, 1))
    assert np.abs(once - twice).max() > 0.1
    np.testing.assert_array_equal(model.predict(None, image), twice)  # type: ignore[arg-type]
    np.testing.assert_array_equal(model.predict(None, image, {"boxes": boxes.ravel()}), once)  # type: ignore[arg-type]
