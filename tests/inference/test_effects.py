"""Effects: where they are, what they leave alone, and what they refuse."""

from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest

from flr.config.compose import CONF, plain
from flr.config.instantiate import build
from flr.config.validate import TRUSTED, _bind, resolve
from flr.data.synthetic.renderer import render
from flr.errors import UserError
from flr.inference.effects import LABELS, Blur, Effect, Mask, Overlay, Paint, apply
from flr.inference.effects.areas import areas_of, cover, whole_face
from flr.inference.effects.overlay import fit_map
from flr.inference.effects.textures import read_anchors
from flr.landmarks.geometry import similarity, transform
from flr.landmarks.scheme import CELEBA5, COFW29, IBUG68, KAGGLE15, MUCT76, SCHEMES, WFLW98, Scheme
from tests.fakes import cofw, ibug, wflw

SIDE = 200
FACE = ibug.faces(1, (SIDE, SIDE))[0].astype(np.float64)
PICTURE = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
RED = (255, 0, 0)


def every(strength: float = 0.7) -> dict[str, Effect]:
    return {
        "sunglasses": Overlay(strength=strength),
        "lips": Paint("lips", RED, strength),
        "eyes": Paint("eyes", RED, strength),
        "brows": Paint("brows", RED, strength),
        "blur": Blur(),
    }


KINDS = sorted(every())


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(H, W) bool."""
    return (before != after).any(-1)


# -- what holds of all -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_effect_changes_the_face_and_nothing_else(kind):
    wide = cv2.copyMakeBorder(PICTURE, 100, 100, 100, 100, cv2.BORDER_WRAP)
    points = FACE + 100
    was = wide.copy()
    after = every()[kind](wide, points, IBUG68)
    np.testing.assert_array_equal(wide, was)  # it works on a copy
    rows, columns = np.nonzero(changed(wide, after))
    assert len(rows) > 20
    low, high = whole_face(points, IBUG68).min(0), whole_face(points, IBUG68).max(0)
    assert columns.min() >= low[0] - 15 and columns.max() <= high[0] + 15
    assert rows.min() >= low[1] - 3 and rows.max() <= high[1] + 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrored_face_gives_the_mirrored_picture(kind):
    """Of a symmetric frontal face and of a turned one."""
    effect = every()[kind]
    other = FACE[IBUG68.mirror_order] * [-1, 1] + [SIDE - 1, 0]
    smooth = cv2.GaussianBlur(PICTURE, (0, 0), 5)
    there = effect(np.ascontiguousarray(smooth[:, ::-1]), other, IBUG68)[:, ::-1].astype(int)
    off = abs(there - effect(smooth, FACE, IBUG68)).max(-1)
    assert (off > 12).mean() < 0.001 and off.mean() < 0.3


@pytest.mark.parametrize("kind", [*KINDS, "mask"])
@pytest.mark.parametrize(
    "points",
    [
        np.full((68, 2), np.nan),
        np.stack([np.arange(68.0), np.full(68, 9.0)], 1),  # on a line
        np.full((68, 2), 1e30),
        FACE + [5000, 0],
        np.where(np.arange(68)[:, None] % 3 == 0, np.inf, FACE),
        np.random.default_rng(0).normal(0, 1e4, (68, 2)),
    ],
    ids=["nan", "a line", "far", "outside", "some inf", "scattered"],
)
def test_points_that_are_no_face_never_crash(kind, points):
    effect = Mask() if kind == "mask" else every()[kind]
    out = effect(PICTURE, points, IBUG68)
    assert out.dtype == np.uint8 and out.shape[:2] == PICTURE.shape[:2]


def test_effects_go_one_after_another_on_all_faces():
    small = FACE * 0.4
    faces = np.stack([small, small + [100, 80]])
    effects = [Paint("lips", RED), Overlay()]
    by_hand = PICTURE
    for effect in effects:
        for face in faces:
            by_hand = effect(by_hand, face, IBUG68)
    np.testing.assert_array_equal(apply(effects, PICTURE, faces, IBUG68), by_hand)
    none = np.zeros((0, 68, 2))
    np.testing.assert_array_equal(apply(effects, PICTURE, none, IBUG68), PICTURE)
    labels = apply([Mask()], PICTURE, none, IBUG68)
    assert labels.shape == PICTURE.shape[:2] and not labels.any()


# -- lips, eyes, brows -------------------------------------------------------------------------------------------------


def mouth(gap: float) -> np.ndarray:
    """The face with its inner lips so many pixels apart."""
    points = FACE.copy()
    middle = points[[60, 64], 1].mean()
    points[[61, 62, 63], 1], points[[67, 66, 65], 1] = middle - gap / 2, middle + gap / 2
    points[[49, 50, 51, 52, 53], 1] = middle - gap / 2 - 8
    points[[59, 58, 57, 56, 55], 1] = middle + gap / 2 + 8
    return points


@pytest.mark.parametrize("gap", [4.0, 12.0, 30.0])
def test_the_inner_mouth_is_untouched(gap):
    points = mouth(gap)
    after = Paint("lips", RED, 1.0)(PICTURE, points, IBUG68)
    inner = cover([points[60:68]], (slice(0, SIDE), slice(0, SIDE))) >= 1
    inner = cv2.erode(inner.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert inner.any() and not changed(PICTURE, after)[inner].any()
    for point in (points[51] + points[62], points[57] + points[66]):  # in the middle of either lip
        x, y = np.rint(point / 2).astype(int)
        assert (after[y, x] == RED).all()


def test_paint_keeps_to_the_outline_and_its_edge_is_smooth():
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    after = Paint("eyes", (200, 200, 200), 1.0)(black, FACE, IBUG68)[..., 0]
    exact = sum(
        cv2.contourArea(FACE[list(IBUG68.regions[eye])].astype(np.float32)) for eye in ("right_eye", "left_eye")
    )
    assert exact * 0.95 < after.sum() / 200 < exact * 1.4  # the smooth outline bulges over the polygon
    assert len(np.unique(after)) > 20
    assert (after[:, : int(FACE[36, 0]) - 2] == 0).all()


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_strength_is_the_share_of_the_colour(strength):
    grey = np.full((SIDE, SIDE, 3), 100, np.uint8)
    x, y = np.rint(FACE[[48, 59, 58, 67, 60]].mean(0)).astype(int)
    points = mouth(20)
    x, y = np.rint((points[51] + points[62]) / 2).astype(int)
    after = Paint("lips", (200, 0, 100), strength)(grey, points, IBUG68)
    np.testing.assert_allclose(after[y, x], 100 + strength * np.array([100, -100, 0]), atol=1)


# -- blur --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ibug68", "kaggle15", "celeba5"])
def test_what_was_in_the_cells_cannot_be_told(scheme):
    """Fine detail of any kind leaves no trace: two faces with equal means come out alike."""
    points = IBUG68.reduce(FACE, scheme)
    flat = np.full((SIDE, SIDE, 3), 120, np.uint8)
    fine = np.clip(120 + 100 * np.sign(np.indices((SIDE, SIDE)).sum(0) % 2 - 0.5), 0, 255).astype(np.uint8)
    one, two = (Blur()(image, points, SCHEMES[scheme]) for image in (flat, fine[..., None].repeat(3, -1)))
    inside = cover([whole_face(points, SCHEMES[scheme])], (slice(0, SIDE), slice(0, SIDE))) > 0
    assert inside.sum() > 5000 and abs(one[inside].astype(int) - two[inside]).max() <= 4
    assert (two[~inside] == fine[..., None].repeat(3, -1)[~inside]).all()


@pytest.mark.parametrize("scheme", ["ibug68", "kaggle15", "celeba5"])
def test_blur_covers_every_point_of_rendered_faces_also_from_few(scheme):
    """With five points the chin's and the jaw's own are hidden as well, up to a share that lies at the ears."""
    hidden = []
    for i in range(30):
        face = render(3, i, 256, 3, 0.5)
        area = whole_face(IBUG68.reduce(face.points.astype(np.float64), scheme), SCHEMES[scheme])
        inside = [cv2.pointPolygonTest(area.astype(np.float32), p.tolist(), False) >= 0 for p in face.points]
        hidden.append(inside)
        brow = face.points[19:25].mean(0)
        down = face.points[8] - brow
        assert cv2.pointPolygonTest(area.astype(np.float32), (brow - 0.25 * down).tolist(), False) > 0  # the forehead
    hidden = np.array(hidden)
    assert hidden[:, 17:].all()  # brows, eyes, nose, mouth
    assert hidden.mean() > 0.93


# -- masks -------------------------------------------------------------------------------------------------------------


def test_a_mask_labels_each_part():
    labels = Mask()(PICTURE, mouth(16), IBUG68)
    assert labels.shape == (SIDE, SIDE) and set(np.unique(labels)) == set(LABELS.values())

    def at(point: np.ndarray) -> int:
        x, y = np.rint(point).astype(int)
        return int(labels[y, x])

    assert at(FACE[36:42].mean(0)) == LABELS["right_eye"] and at(FACE[42:48].mean(0)) == LABELS["left_eye"]
    assert at(FACE[19]) == LABELS["right_brow"] and at(FACE[24]) == LABELS["left_brow"]
    assert at(FACE[30]) == LABELS["skin"] and at(mouth(16)[[62, 66]].mean(0)) == LABELS["mouth"]
    assert at((mouth(16)[51] + mouth(16)[62]) / 2) == LABELS["lips"] and labels[0, 0] == 0


# -- hung images -----------------------------------------------------------------------------------------------------


def png(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def hat(tmp_path: Path) -> tuple[Path, Path]:
    """A green square with a transparent rim, hung on the eyes; and its anchors."""
    image = np.full((60, 60, 4), (255, 0, 255, 0), np.uint8)  # what is transparent may have any colour
    image[10:50, 10:50] = (0, 255, 0, 255)
    anchors = tmp_path / "hat.yaml"
    anchors.write_text(
        "ibug68:\n  - {at: [10, 30], points: [right_eye_0]}\n  - {at: [50, 30], points: 45}\n"
        "celeba5:\n  - {at: [20, 30], points: right_eye}\n  - {at: [40, 30], points: left_eye}\n"
    )
    return png(tmp_path / "hat.png", image), anchors


def test_any_picture_hangs_on_its_points(hat):
    after = Overlay(str(hat[0]), str(hat[1]))(PICTURE, FACE, IBUG68)
    middle = (FACE[36] + FACE[45]) / 2
    x, y = np.rint(middle).astype(int)
    assert (after[y, x] == (0, 255, 0)).all()
    rows, columns = np.nonzero((after == (0, 255, 0)).all(-1))
    side = np.linalg.norm(FACE[36] - FACE[45])
    assert abs(len(rows) / side**2 - 1) < 0.1
    there = cv2.dilate((after == (0, 255, 0)).all(-1).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert not changed(PICTURE, after)[~there].any()  # the transparent rim is nothing
    black = Overlay(str(hat[0]), str(hat[1]))(PICTURE * 0, FACE, IBUG68)
    assert black[..., [0, 2]].max() <= 1  # and has no part in the edge
    assert abs(columns.mean() - middle[0]) < 1.5 and abs(rows.mean() - middle[1]) < 1.5


@pytest.mark.parametrize("scheme", [IBUG68, KAGGLE15, CELEBA5], ids=str)
def test_sunglasses_turn_with_the_head(scheme):
    move = similarity(0.6, 0.8, FACE.mean(0), FACE.mean(0))
    grey = np.full((SIDE, SIDE, 3), 200, np.uint8)
    there = Overlay()(grey, transform(move, IBUG68.reduce(FACE, scheme.name)), scheme)
    here = Overlay()(grey, IBUG68.reduce(FACE, scheme.name), scheme)
    turned = cv2.warpAffine(here, move, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    assert abs(there.astype(int) - turned).mean() < 1.5
    for eye in (36, 45):
        x, y = np.rint(transform(move, FACE)[eye]).astype(int)
        assert there[y, x].max() < 120


@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_map_is_exact_where_it_can_be(count):
    source = np.random.default_rng(count).uniform(0, 100, (count, 2))
    similar = similarity(0.3, 1.7, np.zeros(2), np.array([5.0, 9]))
    move = similar if count == 2 else np.array([[1.2, 0.3, 4], [-0.2, 0.8, 7]])
    np.testing.assert_allclose(fit_map(source, transform(move, source)), move, atol=1e-9)
    line = np.array([[0.0, 0], [10, 0], [20, 0]])
    np.testing.assert_allclose(fit_map(line, transform(similar, line)), similar, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none.png", "not an image"),
        (lambda p: png(p / "a.png", np.zeros((9, 9, 3), np.uint8)), "has no alpha"),
    ],
    ids=["missing", "rgb"],
)
def test_a_picture_that_cannot_hang_is_refused(make, words, tmp_path, hat):
    with pytest.raises(UserError, match=rf"^{tmp_path}.*{words}.*; "):
        Overlay(str(make(tmp_path)), str(hat[1]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "valid dictionary"),
        (
            "ibug86: [{at: [1, 2], points: 3}, {at: [1, 3], points: 4}]",
            "no landmark scheme 'ibug86'.*did you mean 'ibug68'",
        ),
        ("ibug68: [{at: [1, 2], points: 3}]", "ibug68 .*at least 2"),
        ("ibug68: [{at: [1, 2], points: 3}, {at: [1, 2], points: 4}]", "all anchors are at one position"),
        ("ibug68: [{at: [1, 2], points: 3}, {at: [1, x], points: 4}]", "ibug68.1.at.1 .*number"),
        ("ibug68: [{at: [1, 2], points: 3}, {at: [1, 3], points: 68}]", "no point 68; they are counted from 0 to 67"),
        ("ibug68: [{at: [1, 2], points: 3}, {to: [1, 3], points: 4}]", "ibug68.1.at Field required"),
        ("a: &x [1]\nb: *x", "no sound YAML"),
    ],
)
def test_an_anchor_file_that_says_something_else_is_refused(text, words, tmp_path):
    path = tmp_path / "anchors.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"^{path}: .*{words}") as error:
        read_anchors(path)
    assert "\n" not in str(error.value)


# -- schemes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["lips", "eyes"])
@pytest.mark.parametrize("scheme", [KAGGLE15, CELEBA5], ids=str)
def test_points_that_a_scheme_lacks_are_told_with_the_schemes_that_have_them(region, scheme):
    with pytest.raises(UserError, match=f"{region} needs .*{scheme.name}.*ibug68, muct76, wflw98, cofw29$"):
        Paint(region, RED)(PICTURE, np.zeros((len(scheme), 2)), scheme)


def test_a_scheme_of_ones_own_is_refused_by_what_hangs_on_points():
    own = Scheme("mine", ("a", "b", "c"), (), {}, {}, "box")
    with pytest.raises(UserError, match="mine reduces to none of them"):
        apply([Overlay()], PICTURE, FACE[None], own)
    face = np.array([[60.0, 60], [120, 60], [90, 120]])
    assert changed(PICTURE, Blur()(PICTURE, face, own)).sum() > 500


@pytest.mark.parametrize(("scheme", "mean"), [(WFLW98, wflw.MEAN), (COFW29, cofw.MEAN)], ids=["wflw98", "cofw29"])
def test_all_effects_work_on_the_other_schemes(scheme, mean):
    points = np.asarray(mean, np.float64)
    points = (points - points.min(0)) / np.ptp(points, axis=0).max() * 120 + 40
    for effect in every().values():
        assert changed(PICTURE, effect(PICTURE, points, scheme)).sum() > 20
    assert set(np.unique(Mask()(PICTURE, points, scheme))) >= set(LABELS.values()) - {LABELS["mouth"]}
    assert {"right_eye", "outer_lip", "inner_lip"} <= set(areas_of(MUCT76))


# -- config ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((CONF / "effect").glob("*.yaml")), ids=lambda p: p.stem)
def test_each_config_is_checked_built_and_draws(path):
    with hydra.initialize_config_dir(str(CONF / "effect"), version_base="1.3"):
        cfg = hydra.compose(path.stem)
    (name,) = cfg
    assert name == path.stem
    effect, values = build(cfg[name]), plain(cfg)[name]
    _bind(values, resolve(values["_target_"], f"effect.{name}", trusted=False), f"effect.{name}", trusted=False)
    assert effect(PICTURE, FACE, IBUG68).shape[:2] == PICTURE.shape[:2]
    assert values["_target_"] in TRUSTED["effect"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("strength", 1.5), ("strength", "much"), ("colour", [1, 2]), ("colour", [1, 2, 300]), ("region", "nose")],
)
def test_a_wrong_argument_is_told_by_its_key(key, value):
    node = {"_target_": "flr.inference.effects.Paint", "region": "lips", "colour": [1, 2, 3], key: value}
    with pytest.raises(UserError, match=rf"effect\.lips\.{key}"):
        _bind(node, Paint, "effect.lips", trusted=False)
    with pytest.raises(UserError, match="is not among the objects that a run may build"):
        resolve("flr.inference.effects.textures.read_rgba", "effect.lips", trusted=False)
