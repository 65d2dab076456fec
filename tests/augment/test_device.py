"""The batch engine on painted faces: pixels and points move together, and every stage does what it says."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flr.augment.affine import STRETCH, Affine
from flr.augment.device import SIDE, TEXTURE, Augment, Draws, texture_bank
from flr.augment.draws import uniform
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
HEAVY = {
    "rotation": 40, "scale": 0.25, "shift": 0.05, "mirror": 0.5, "gamma": 0.5, "saturation": 0.5, "hue": 0.05,
    "occluders": 3, "occluder_texture": 0.6, "blur": 1.5, "downscale": 3, "brightness": 0.4, "contrast": 0.4, "noise": 0.08, "erasing": 0.5,
}  # fmt: skip


def pad_of(augment: Augment) -> int:
    return int(np.ceil(SIZE * (augment.margin - 1) / 2))


def store_of(augment: Augment, count: int = len(FACES)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (B, 1, S, S) uint8 with the margin, points (B, K, 2) crop pixels, labelled (B, K)."""
    pad = pad_of(augment)
    image = paint(POINTS + pad, SIZE + 2 * pad, SIZE + 2 * pad)
    images = torch.from_numpy(image).repeat(count, 1, 1, 1)
    labelled = torch.tensor([True, False, True, True, False]).repeat(count, 1)
    return images, torch.from_numpy(POINTS).float().repeat(count, 1, 1), labelled


def augmented(augment: Affine, images, points, labelled, draws):
    return augment.pixels(images, draws, SIZE), *augment.points(points, labelled, draws, SIZE, CELEBA5)


def bend(augment: Augment, images=None, epoch: int = 0, faces: np.ndarray = FACES, dtype=torch.uint8):
    stored, points, labelled = store_of(augment, len(faces))
    images = stored if images is None else images
    return augmented(augment, images.to(dtype), points, labelled, augment.draw(0, epoch, faces))


def flat(augment: Augment, value: int, count: int = len(FACES)) -> torch.Tensor:
    side = SIZE + 2 * pad_of(augment)
    return torch.full((count, 1, side, side), value, dtype=torch.uint8)


# -- draws ---------------------------------------------------------------------------------------------------------


@given(st.permutations(range(8)), st.integers(0, 50))
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


def test_each_stage_keeps_its_draws():
    """A stage that is added, left out or moved must not change what others draw: old recipes stay what they were."""
    u = uniform(5, 2, FACES, 35)
    full = dataclasses.replace(ALL, gamma=0.5, saturation=0.4, hue=0.1, occluders=2, downscale=4)
    for augment in (ALL, full):
        draws = augment.draw(5, 2, FACES)
        np.testing.assert_allclose(np.degrees(draws.angle), 30 * (2 * u[:, 0] - 1))
        np.testing.assert_allclose(draws.scale, 1.15 ** (2 * u[:, 1] - 1))
        np.testing.assert_allclose(draws.shift, 0.1 * (2 * u[:, 2:4] - 1))
        np.testing.assert_array_equal(draws.mirror, u[:, 4] < 0.5)
        np.testing.assert_allclose(draws.brightness, 0.7 + 0.6 * u[:, 5])
        np.testing.assert_allclose(draws.contrast, 0.7 + 0.6 * u[:, 6])
        np.testing.assert_allclose(draws.noise, 0.04 * u[:, 7])
        np.testing.assert_array_equal(draws.noise_at, (u[:, 8] * 2**20).astype(int))
        np.testing.assert_allclose(draws.blur, u[:, 9])
        np.testing.assert_array_equal(draws.erase, u[:, 10] < 0.5)
        np.testing.assert_allclose(draws.erase_area, 0.15 * (0.1 + 0.9 * u[:, 11]))
        np.testing.assert_array_equal(draws.erase_at, u[:, 12:14])
    np.testing.assert_allclose(draws.gamma, 1.5 ** (2 * u[:, 14] - 1))
    np.testing.assert_allclose(draws.saturation, 0.6 + 0.8 * u[:, 15])
    np.testing.assert_allclose(draws.hue, 2 * np.pi * 0.1 * (2 * u[:, 16] - 1))
    np.testing.assert_array_equal(draws.resolution, (u[:, 17] * 16).astype(int))
    np.testing.assert_array_equal(draws.occluders, (u[:, 18] * 3).astype(int))
    np.testing.assert_array_equal(draws.occluder.reshape(len(FACES), -1), u[:, 19:])
    assert u[0, 0] == pytest.approx(0.9893999111447438, abs=1e-12)  # nor may the generator change


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stages", [vars(ALL), HEAVY], ids=["all", "heavy"])
def test_one_by_one_gives_what_the_whole_batch_gives(stages, channels):
    augment, count = Augment(**stages), 12
    side = SIZE + 2 * pad_of(augment)
    y, x = np.mgrid[:side, :side] / 15.0
    smooth = np.stack([127 + 100 * np.sin(x + phase) * np.cos(y - phase) for phase in range(channels * count)])
    images = torch.from_numpy(smooth.round().astype(np.uint8)).reshape(count, channels, side, side)
    draws = augment.draw(0, 0, np.arange(count))
    faces = augment.pixels(images, draws, SIZE)
    batch = augment.pixels(images.float(), draws, SIZE)  # what a GPU does; floats take that way on a CPU too
    assert faces.shape == batch.shape == (count, channels, SIZE, SIZE)
    difference = (faces - batch).abs()
    # An occluder's own edge may fall to the other side of a pixel by rounding.
    assert difference.flatten().quantile(0.9999) < 0.02
    assert difference.mean() < 0.002


def test_no_augmentation_is_the_centre_of_the_store():
    stored = torch.randint(0, 256, (2, 3, SIZE + 20, SIZE + 20), dtype=torch.uint8)
    _, points, labelled = store_of(Augment(), 2)
    images, moved, kept, affine = augmented(Augment(), stored, points, labelled, Augment().draw(0, 0, np.arange(2)))
    assert torch.equal(images, stored[..., 10:-10, 10:-10] / 255)
    assert torch.equal(moved, points)
    assert torch.equal(kept, labelled)
    torch.testing.assert_close(affine, torch.eye(3)[:2].expand(2, 2, 3))


SETTINGS = [
    Augment(), Augment(rotation=30), Augment(rotation=90), Augment(rotation=180, scale=0.2), Augment(scale=0.25),
    Augment(shift=0.1), Augment(scale=0.25, shift=0.1), Augment(rotation=15, scale=0.1), Augment(rotation=14, shift=0.0625),
    Augment(rotation=15, scale=0.1, shift=0.03, mirror=0.5), Augment(rotation=45, scale=0.3, shift=0.2, mirror=0.5),
    Augment(stretch=0.2), Augment(rotation=30, scale=0.2, shift=0.05, stretch=0.3, mirror=0.5),
]  # fmt: skip


def past_the_store(augment: Augment, draws: Draws) -> float:
    """How far, in pixels, the furthest crop corner of any face lies past the store's outermost pixel centres."""
    pad = pad_of(augment)
    corners = np.array([[0, 0], [0, SIZE - 1], [SIZE - 1, 0], [SIZE - 1, SIZE - 1]], float)
    seen = transform(invert(draws.affine(SIZE)), corners)
    return max(float((seen - (SIZE - 1 + pad)).max()), float((-pad - seen).max()))


@pytest.mark.parametrize("augment", SETTINGS, ids=str)
def test_not_even_the_furthest_draw_looks_past_the_store(augment):
    turn = np.radians(min(augment.rotation, 45))
    grid = np.array(
        [(a, s, x, y, t) for a in (-turn, turn) for s in (-1, 1) for x in (-1, 1) for y in (-1, 1) for t in range(8)], float
    )  # fmt: skip
    line = np.pi / 8 * grid[:, 4]
    along = np.array([[np.cos(line), -np.sin(line)], [np.sin(line), np.cos(line)]]).transpose(2, 0, 1)
    furthest = dataclasses.replace(
        augment.draw(0, 0, np.arange(len(grid))),
        angle=grid[:, 0], scale=(1 + augment.scale) ** grid[:, 1], shift=augment.shift * grid[:, 2:4],
        stretch=along @ np.diag([1 + augment.stretch, 1 / (1 + augment.stretch)]) @ along.swapaxes(1, 2),
    )  # fmt: skip
    assert past_the_store(augment, furthest) < 1e-6


def test_the_store_keeps_no_more_than_the_furthest_draw_needs():
    for augment in SETTINGS:
        turn = np.radians(min(augment.rotation, 45))
        bound = (
            (np.cos(turn) + np.sin(turn)) * (1 + 2 * augment.shift) * (1 + augment.scale) * (1 + 1.4 * augment.stretch)
        )
        assert 1 <= augment.margin <= bound + 1e-9


def test_a_stretch_keeps_the_area_and_takes_every_direction_and_length():
    augment, faces = Augment(stretch=0.25), np.arange(4000)
    draws = augment.draw(3, 1, faces)
    sides = np.linalg.svd(draws.stretch, compute_uv=False)
    np.testing.assert_allclose(sides.prod(1), 1)
    assert 1.24 < sides.max() <= 1.25 and np.log(sides[:, 0]).mean() == pytest.approx(np.log(1.25) / 2, rel=0.05)
    vectors = np.linalg.eigh(draws.stretch).eigenvectors[:, :, 1]
    counts, _ = np.histogram(np.arctan2(vectors[:, 1], vectors[:, 0]) % np.pi, 8, (0, np.pi))
    assert counts.min() > 400
    plain = Augment().draw(3, 1, faces)
    assert (plain.stretch == np.eye(2)).all() and (plain.brightness == draws.brightness).all()
    # Old recipes draw what they drew: engines take no column of these two.
    assert 19 + 8 * Augment.RANGE["occluders"][1] <= STRETCH < TEXTURE - 1


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
    Augment(noise=0.1).check(1024, 1)
    Augment().check(1100, 3)
    for size, channels in ((1100, 1), (600, 3)):
        with pytest.raises(UserError, match=r"augment\.noise"):
            Augment(noise=0.1).check(size, channels)


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


def coloured(count: int = len(FACES)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8))


def test_gamma_by_the_formula():
    augment = Augment(gamma=1.0)
    plain, *_ = bend(Augment())
    bent, *_ = bend(augment)
    drawn = augment.draw(0, 0, FACES).gamma
    assert 0.5 <= drawn.min() < 1 < drawn.max() <= 2
    for i in range(len(FACES)):
        np.testing.assert_allclose(bent[i], plain[i].double() ** drawn[i], atol=1e-5)


@pytest.mark.parametrize(
    "augment", [Augment(saturation=0.8), Augment(hue=0.5), Augment(saturation=0.5, hue=0.2)], ids=str
)
def test_colours_turn_about_grey_and_keep_their_luma(augment):
    faces = np.arange(40)
    draws = augment.draw(0, 0, faces)
    luma = np.array([0.299, 0.587, 0.114])
    colour = np.random.default_rng(1).uniform(0.3, 0.7, (40, 3))
    bent = (draws.colours() @ colour[..., None])[..., 0]
    np.testing.assert_allclose(bent @ luma, colour @ luma, atol=1e-9)
    grey = np.full((40, 3, 1), 0.6)
    np.testing.assert_allclose(draws.colours() @ grey, grey, atol=1e-9)
    # In the plane of colours, whose axes are NTSC's I and Q: a turn by the drawn hue, a stretch by the drawn saturation.
    plane = np.array([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    before, after = (values @ plane.T @ np.array([1, 1j]) for values in (colour, bent))
    np.testing.assert_allclose(after / before, draws.saturation * np.exp(1j * draws.hue), atol=1e-6)


def test_colour_stages_change_colours_and_leave_grey_alone():
    augment = Augment(saturation=0.8, hue=0.3)
    plain, *_ = bend(Augment(), coloured())
    bent, *_ = bend(augment, coloured())
    expected = torch.einsum("bij,bjhw->bihw", torch.from_numpy(augment.draw(0, 0, FACES).colours()), plain.double())
    torch.testing.assert_close(bent.double(), expected.clamp(0, 1), atol=1e-5, rtol=0)
    assert (bent - plain).abs().mean() > 0.05
    grey = bend(Augment(brightness=0.3))[0], bend(Augment(brightness=0.3, saturation=0.8, hue=0.3))[0]
    assert torch.equal(*grey)


@pytest.mark.parametrize("channels", [1, 3])
def test_occluders_are_ellipses_of_one_colour(channels):
    augment = Augment(occluders=3, occluder_size=0.5)
    faces = np.arange(60)
    draws = augment.draw(0, 0, faces)
    assert set(draws.occluders) == {0, 1, 2, 3}
    side = SIZE + 2 * pad_of(augment)
    black = torch.zeros((60, channels, side, side), dtype=torch.uint8)
    images, *_ = bend(augment, black, faces=faces)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    for image, count, occluder in zip(images, draws.occluders, draws.occluder, strict=True):
        expected = np.zeros((channels, SIZE, SIZE))
        for across, down, length, width, angle, *colour in occluder[:count]:
            turn = np.pi * angle
            dx, dy = x - across * SIZE, y - down * SIZE
            along, aside = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
            half = [0.5 * SIZE / 2 * (1 / 8 + 7 / 8 * share) for share in (length, width)]
            inside = (along / half[0]) ** 2 + (aside / half[1]) ** 2 < 1
            expected[:, inside] = np.array(colour)[:channels, None]
        wrong = abs(image.numpy() - expected).max(0) > 1e-5
        assert wrong.sum() <= 2  # a pixel on the very edge


def test_textures_change_an_occluder_and_nothing_else():
    faces = np.arange(300)
    augment = Augment(occluders=1, occluder_texture=0.5)
    draws, plain_draws = (a.draw(0, 0, faces) for a in (augment, Augment(occluders=1)))
    np.testing.assert_array_equal(draws.occluder, plain_draws.occluder)
    deviation, which, *_ = (value[0] for value in draws.windows(SIZE))
    assert (deviation > 0).mean() == pytest.approx(0.5, abs=0.08)
    assert len(set(which[deviation > 0])) > 20
    (textured, *_), (plain, *_) = (bend(a, flat(a, 0, 300), faces=faces) for a in (augment, Augment(occluders=1)))
    every = torch.stack(torch.meshgrid(*[torch.arange(SIZE).float()] * 2, indexing="xy"), -1).reshape(1, -1, 2)
    inside = augment.hidden(every.expand(300, -1, -1), draws, SIZE).unflatten(1, (SIZE, SIZE))
    apart = (textured - plain)[:, 0].abs()
    assert (apart[~inside] > 0).sum() <= 4  # pixels on the very edge
    shown = (draws.occluders == 1) & (inside.flatten(1).sum(1).numpy() > 50)
    changed = np.array(
        [image[there].std().item() if there.any() else 0 for image, there in zip(textured[:, 0], inside, strict=True)]
    )
    assert changed[shown & (deviation == 0)].max() < 1e-6
    grey = abs(draws.occluder[:, 0, 5] - 0.5) < 0.2  # others clip
    assert changed[shown & grey & (deviation > 0.1)].min() > 0.02


def test_textures_are_standardised_and_differ():
    bank = texture_bank(torch.device("cpu"))
    np.testing.assert_allclose(bank.mean((1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(bank.std((1, 2)), 1, atol=1e-3)
    flat_bank = bank.flatten(1) / SIDE
    assert (flat_bank @ flat_bank.T - torch.eye(len(bank))).abs().max() < 0.6
    # They repeat without a seam: the step over the edge is like one inside.
    assert (bank[:, 0] - bank[:, -1]).abs().mean() < 1.5 * (bank[:, 1] - bank[:, 0]).abs().mean()


def test_hidden_points_are_those_that_are_painted_over():
    augment = Augment(occluders=2, occluder_size=0.5, erasing=0.5, erasing_area=0.3)
    faces = np.arange(40)
    draws = augment.draw(0, 0, faces)
    y, x = np.mgrid[:SIZE, :SIZE]
    every = torch.from_numpy(np.stack([x, y], -1).reshape(1, -1, 2)).float().expand(40, -1, -1)
    images, *_ = bend(augment, flat(augment, 255, 40), faces=faces)  # an occluder of pure white is not drawn here
    painted = (images[:, 0] < 1).flatten(1)
    assert (augment.hidden(every, draws, SIZE) != painted).sum(1).max() <= 4  # pixels on the very edge
    assert painted.any(1).sum() > 20


def test_the_coarsest_resolution_is_a_shrink_by_area_and_a_linear_blow_up():
    augment = Augment(downscale=4)
    images = coloured(80)
    plain, *_ = bend(Augment(), images, faces=np.arange(80))
    bent, *_ = bend(augment, images, faces=np.arange(80))
    steps = augment.draw(0, 0, np.arange(80)).resolution
    assert steps.min() == 0 and steps.max() == 15
    for before, after, step in zip(plain, bent, steps, strict=True):
        few = round(SIZE / 4 ** (step / 15))
        small = cv2.resize(before.permute(1, 2, 0).numpy(), (few, few), interpolation=cv2.INTER_AREA)
        expected = cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
        np.testing.assert_allclose(after, expected, atol=1e-5)


@pytest.mark.parametrize("augment", [Augment(blur=3), Augment(downscale=4)], ids=["blur", "downscale"])
def test_what_softens_a_picture_leaves_it_in_place(augment):
    where = np.array([44.3, 52.1])
    images, *_ = bend(
        augment, torch.from_numpy(paint(where[None], SIZE, SIZE, 4.0, (240,))).repeat(len(FACES), 1, 1, 1)
    )
    for image in images:
        found, _ = dot(image[0].numpy(), where, radius=30)
        assert np.linalg.norm(found - where) < 0.05


def test_every_stage_of_a_face_does_not_depend_on_its_company():
    augment = Augment(**HEAVY)
    images = coloured()
    large = torch.nn.functional.pad(images, (pad_of(augment),) * 4)
    together, *_ = bend(augment, large)
    for i in (0, 3, 5):
        alone, *_ = bend(augment, large[i : i + 1], faces=FACES[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


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
        ("scale", float("nan")), ("blur", float("nan")), ("mirror", float("nan")), ("noise", float("inf")),
        ("gamma", -0.1), ("gamma", 4), ("saturation", 1.1), ("hue", 0.6), ("hue", float("nan")), ("occluders", -1),
        ("occluders", 9), ("occluder_size", 0), ("occluder_size", 1.5), ("occluder_texture", 1.1), ("downscale", 0.5), ("downscale", 17),
    ],
)  # fmt: skip
def test_bad_settings_are_told(name, value):
    with pytest.raises(UserError, match=f"augment.{name}"):
        Augment(**{name: value})
