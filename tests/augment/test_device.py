"""The batch engine on painted faces: pixels and points move together, and every stage does what it says."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flr.augment.device import Augment, Draws
from flr.errors import UserError
from flr.landmarks.geometry import invert, transform
from flr.landmarks.scheme import CELEBA5
from tests.landmarks.painted import LAYOUT, dot, paint

SIZE = 96
FACES = np.arange(6)
POINTS = (SIZE - 1) / 2 + 60 * LAYOUT  # (5, 2) crop pixels
ALL = Augment(
    rotation=30, scale=0.15, shift=0.1, mirror=0.5, brightness=0.3, contrast=0.3, noise=0.04, blur=1.0, erasing=0.5
)


def pad_of(augment: Augment) -> int:
    return int(np.ceil(SIZE * (augment.margin - 1) / 2))


def store_of(augment: Augment, count: int = len(FACES)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (B, 1, S, S) uint8 with the margin, points (B, K, 2) crop pixels, labelled (B, K)."""
    pad = pad_of(augment)
    image = paint(POINTS + pad, SIZE + 2 * pad, SIZE + 2 * pad)
    images = torch.from_numpy(image).repeat(count, 1, 1, 1)
    labelled = torch.tensor([True, False, True, True, False]).repeat(count, 1)
    return images, torch.from_numpy(POINTS).float().repeat(count, 1, 1), labelled


def bend(augment: Augment, images=None, epoch: int = 0, faces: np.ndarray = FACES, dtype=torch.uint8):
    stored, points, labelled = store_of(augment, len(faces))
    images = stored if images is None else images
    return augment(images.to(dtype), points, labelled, augment.draw(0, epoch, faces), SIZE, CELEBA5)


def flat(augment: Augment, value: int, count: int = len(FACES)) -> torch.Tensor:
    side = SIZE + 2 * pad_of(augment)
    return torch.full((count, 1, side, side), value, dtype=torch.uint8)


# -- draws ---------------------------------------------------------------------------------------------------------


@given(st.permutations(range(8)), st.integers(0, 50))
@settings(max_examples=10, deadline=None)
def test_a_face_draws_the_same_in_any_company(faces, epoch):
    together, alone = ALL.draw(3, epoch, np.arange(8)), ALL.draw(3, epoch, np.array(faces[:3]))
    for field in dataclasses.fields(Draws):
        np.testing.assert_array_equal(getattr(alone, field.name), getattr(together, field.name)[faces[:3]])


@pytest.mark.parametrize(("seed", "epoch"), [(3, 1), (4, 0)])
def test_another_epoch_or_seed_draws_anew(seed, epoch):
    a, b = ALL.draw(3, 0, FACES), ALL.draw(seed, epoch, FACES)
    for name in ("angle", "scale", "shift", "brightness", "contrast", "noise", "blur", "erase_area", "erase_at"):
        assert (getattr(a, name) != getattr(b, name)).all(), name


def test_draws_fill_their_ranges():
    draws = ALL.draw(0, 0, np.arange(5000))
    for values, low, high in (
        (np.degrees(draws.angle), -30, 30), (np.log(draws.scale), -np.log(1.15), np.log(1.15)), (draws.shift, -0.1, 0.1),
        (draws.brightness, 0.7, 1.3), (draws.contrast, 0.7, 1.3), (draws.noise, 0, 0.04), (draws.blur, 0, 1),
        (draws.erase_area, 0.015, 0.15), (draws.erase_at, 0, 1),
    ):  # fmt: skip
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert draws.mirror.mean() == pytest.approx(0.5, abs=0.03)
    assert draws.erase.mean() == pytest.approx(0.5, abs=0.03)


# -- geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "augment",
    [
        Augment(rotation=30), Augment(scale=0.3), Augment(shift=0.1), Augment(mirror=1.0),
        Augment(rotation=25, scale=0.15, shift=0.05, mirror=0.5),
    ],
    ids=["rotation", "scale", "shift", "mirror", "all"],
)  # fmt: skip
def test_dots_stay_under_their_points(augment, dtype):
    for epoch in range(3):
        images, points, labelled, affine = bend(augment, epoch=epoch, dtype=dtype)
        assert images.shape == (len(FACES), 1, SIZE, SIZE)
        draws = augment.draw(0, epoch, FACES)
        for i in range(len(FACES)):
            order = CELEBA5.mirror_order if draws.mirror[i] else np.arange(5)
            np.testing.assert_array_equal(labelled[i], np.array([1, 0, 1, 1, 0], bool)[order])
            np.testing.assert_allclose(points[i], transform(affine[i].numpy(), POINTS[order]), atol=1e-3)
            _, whole = dot(images[i, 0].numpy(), points[i, 2].numpy())
            for k in range(5):
                found, mass = dot(images[i, 0].numpy(), points[i, k].numpy())
                assert np.linalg.norm(found - points[i, k].numpy()) < 0.06
                # the nose's brightness is 180; each other dot shows which landmark it is
                assert mass / whole * 180 == pytest.approx((120, 150, 180, 210, 240)[order[k]], rel=0.03)


def test_mirror_changes_side():
    plain, turned = bend(Augment()), bend(Augment(mirror=1.0))
    torch.testing.assert_close(turned[0], plain[0].flip(-1))
    assert (turned[1][:, 0, 0] < turned[1][:, 1, 0]).all()  # the viewer's left eye is the viewer's left eye still


def test_no_augmentation_is_the_centre_of_the_store():
    stored = torch.randint(0, 256, (2, 3, SIZE + 20, SIZE + 20), dtype=torch.uint8)
    _, points, labelled = store_of(Augment(), 2)
    images, moved, kept, affine = Augment()(stored, points, labelled, Augment().draw(0, 0, np.arange(2)), SIZE, CELEBA5)
    assert torch.equal(images, stored[..., 10:-10, 10:-10] / 255)
    assert torch.equal(moved, points)
    assert torch.equal(kept, labelled)
    torch.testing.assert_close(affine, torch.eye(3)[:2].expand(2, 2, 3))


SETTINGS = [
    Augment(), Augment(rotation=30), Augment(rotation=90), Augment(rotation=180, scale=0.2), Augment(scale=0.25),
    Augment(shift=0.1), Augment(scale=0.25, shift=0.1), Augment(rotation=15, scale=0.1), Augment(rotation=14, shift=0.0625),
    Augment(rotation=15, scale=0.1, shift=0.03, mirror=0.5), Augment(rotation=45, scale=0.3, shift=0.2, mirror=0.5),
]  # fmt: skip


def past_the_store(augment: Augment, draws: Draws) -> float:
    """How far, in pixels, the furthest crop corner of any face lies past the store's outermost pixel centres."""
    pad = pad_of(augment)
    corners = np.array([[0, 0], [0, SIZE - 1], [SIZE - 1, 0], [SIZE - 1, SIZE - 1]], float)
    seen = transform(invert(draws.affine(SIZE)), corners)
    return max(float((seen - (SIZE - 1 + pad)).max()), float((-pad - seen).max()))


@pytest.mark.parametrize("augment", SETTINGS, ids=str)
def test_no_draw_looks_past_the_store(augment):
    draws = augment.draw(0, 0, np.arange(20_000))
    assert past_the_store(augment, draws) < 1e-6


@pytest.mark.parametrize("augment", SETTINGS, ids=str)
def test_not_even_the_furthest_draw_looks_past_the_store(augment):
    turn = np.radians(min(augment.rotation, 45))
    grid = np.array(
        [(a, s, x, y) for a in (-turn, turn) for s in (-1, 1) for x in (-1, 1) for y in (-1, 1)], float
    )  # fmt: skip
    furthest = dataclasses.replace(
        augment.draw(0, 0, np.arange(len(grid))),
        angle=grid[:, 0], scale=(1 + augment.scale) ** grid[:, 1], shift=augment.shift * grid[:, 2:],
    )  # fmt: skip
    assert past_the_store(augment, furthest) < 1e-6


def test_the_store_keeps_no_more_than_the_furthest_draw_needs():
    for augment in SETTINGS:
        turn = np.radians(min(augment.rotation, 45))
        bound = (np.cos(turn) + np.sin(turn)) * (1 + 2 * augment.shift) * (1 + augment.scale)
        assert 1 <= augment.margin <= bound + 1e-9


# -- pixels --------------------------------------------------------------------------------------------------------


def test_brightness_and_contrast_by_the_formula():
    augment = Augment(brightness=0.4, contrast=0.5)
    plain, _, _, _ = bend(Augment())
    bent, _, _, _ = bend(augment)
    draws = augment.draw(0, 0, FACES)
    for i in range(len(FACES)):
        mean = plain[i].mean()
        expected = draws.brightness[i] * ((plain[i] - mean) * draws.contrast[i] + mean)
        torch.testing.assert_close(bent[i], expected.clamp(0, 1).float(), atol=1e-5, rtol=0)


def test_pixels_stay_in_range():
    augment = Augment(brightness=3.0, contrast=3.0, noise=0.5)
    images, *_ = bend(augment)
    assert images.min() == 0
    assert images.max() == 1


def test_noise_has_its_deviation_and_repeats():
    augment = Augment(noise=0.1)
    images, *_ = bend(augment, flat(augment, 128))
    again, *_ = bend(augment, flat(augment, 128))
    assert torch.equal(images, again)
    noise = images - 128 / 255
    np.testing.assert_allclose(noise.std((1, 2, 3)), augment.draw(0, 0, FACES).noise, rtol=0.05)
    assert noise.mean((1, 2, 3)).abs().max() < 0.005
    unit = noise.flatten(1) / noise.flatten(1).std(1, keepdim=True)
    likeness = (unit @ unit.T / unit.shape[1]).fill_diagonal_(0)
    assert likeness.abs().max() < 0.06  # no two faces share their noise
    other, *_ = bend(augment, flat(augment, 128), epoch=1)
    assert not torch.equal(images, other)


def test_noise_that_the_bank_cannot_serve_stops():
    augment = Augment(noise=0.1)
    big = torch.zeros((1, 1, 1100, 1100), dtype=torch.uint8)
    with pytest.raises(UserError, match="noise"):
        augment(
            big, torch.zeros(1, 5, 2), torch.ones(1, 5, dtype=torch.bool), augment.draw(0, 0, FACES[:1]), 1100, CELEBA5
        )


@pytest.mark.parametrize("largest", [0.4, 2.0, 4.0])
def test_blur_widens_a_dot_by_the_drawn_sigma(largest):
    augment = Augment(blur=largest)
    image = torch.from_numpy(paint(np.array([[47.5, 40.0]]), SIZE, SIZE, 2.0, (240,))).repeat(len(FACES), 1, 1, 1)
    before, *_ = bend(Augment(), image)
    after, *_ = bend(augment, image)
    torch.testing.assert_close(after.mean((1, 2, 3)), before.mean((1, 2, 3)), rtol=1e-3, atol=0)

    def spread(picture: torch.Tensor) -> torch.Tensor:
        line = torch.arange(SIZE, dtype=torch.float64)
        share = picture[:, 0].double().sum(1)
        share = share / share.sum(1, keepdim=True)
        return (share * line**2).sum(1) - (share * line).sum(1) ** 2

    drawn = torch.from_numpy(augment.draw(0, 0, FACES).blur)
    assert drawn.max() > 0.5 * largest
    wider = (spread(after) - spread(before)).clamp_min(0).sqrt()
    for got, sigma in zip(wider[drawn > 0.5], drawn[drawn > 0.5], strict=True):
        assert float(got) == pytest.approx(float(sigma), rel=0.12)
    assert (wider[drawn < 0.1] < 0.2).all()


def test_blur_of_a_face_does_not_depend_on_its_company():
    augment = Augment(blur=3.0)
    together, *_ = bend(augment)
    for i in range(len(FACES)):
        alone, *_ = bend(augment, faces=FACES[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0)


@pytest.mark.parametrize("area", [0.05, 0.3, 1.0])
def test_erasing_covers_the_drawn_area(area):
    augment = Augment(erasing=1.0, erasing_area=area)
    images, *_ = bend(augment, flat(augment, 255))
    erased = images[:, 0] == 0.5
    assert (erased | (images[:, 0] == 1)).all()
    for mask, share in zip(erased, augment.draw(0, 0, FACES).erase_area, strict=True):
        side = np.sqrt(share) * SIZE
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert abs(rows - side) < 1
        assert abs(columns - side) < 1
        assert mask.sum() == rows * columns


def test_erasing_touches_only_the_drawn_faces():
    augment = Augment(erasing=0.5, erasing_area=0.3)
    faces = np.arange(40)
    images, *_ = bend(augment, flat(augment, 255, 40), faces=faces)
    np.testing.assert_array_equal((images == 0.5).flatten(1).any(1), augment.draw(0, 0, faces).erase)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mirror", 1.5), ("mirror", -0.1), ("erasing", 2), ("erasing_area", -1), ("shift", 1.1), ("rotation", 181),
        ("rotation", -1), ("scale", -0.1), ("brightness", -1), ("contrast", -1), ("noise", -1), ("blur", -0.5),
        ("scale", float("nan")), ("blur", float("nan")), ("mirror", float("nan")),
    ],
)  # fmt: skip
def test_bad_settings_are_told(name, value):
    with pytest.raises(UserError, match=f"augment.{name}"):
        Augment(**{name: value})
