"""The engine per face: it moves faces as the batch engine does, refuses what would move them, and needs no luck."""

import copy
import dataclasses
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import hydra
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

import flr.augment.albumentations as engine  # before the library, which else asks the network for news
from flr.augment.affine import Moves
from flr.augment.albumentations import MOVERS, PAINTERS, Albumentations
from flr.augment.device import Augment
from flr.config.compose import CONF
from flr.config.instantiate import build
from flr.config.schema import Train
from flr.config.validate import check
from flr.data.batches import AugmentedBatches
from flr.data.boxes import BoxPolicy
from flr.data.crops import CropSettings
from flr.data.datamodule import FaceData
from flr.data.table import FaceTable
from flr.errors import UserError
from tests.augment.test_device import FACES, SIZE, augmented, store_of
from tests.landmarks.painted import dot, face_table

import albumentations  # isort: skip

GEOMETRY = {"rotation": 25, "scale": 0.15, "shift": 0.05, "mirror": 0.5}


def stack(*transforms: object, **geometry: float) -> Albumentations:
    return Albumentations(transforms=list(transforms), **geometry)


def noisy() -> Albumentations:
    """Each kind of randomness: chance, numbers, choice, seeds of OpenCV."""
    some = [albumentations.Blur(), albumentations.InvertImg(), albumentations.CoarseDropout()]
    return stack(
        albumentations.GaussNoise(p=0.7), albumentations.SomeOf(some, n=2, p=0.5),
        albumentations.OneOf([albumentations.MedianBlur(), albumentations.RandomGamma()], p=0.5), **GEOMETRY,
    )  # fmt: skip


# -- one meaning ---------------------------------------------------------------------------------------------------


@given(
    rotation=st.floats(0, 45), scale=st.floats(0, 0.4), shift=st.floats(0, 0.15), mirror=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 500),
)  # fmt: skip
def test_one_draw_moves_faces_alike_in_both_engines(rotation, scale, shift, mirror, seed, epoch):
    geometry = {"rotation": rotation, "scale": scale, "shift": shift, "mirror": mirror}
    batch, face = Augment(**geometry), stack(**geometry)
    assert face.margin == batch.margin
    images, points, labelled = store_of(batch)
    draws = [a.draw(seed, epoch, FACES) for a in (batch, face)]
    for field in dataclasses.fields(Moves):
        np.testing.assert_array_equal(*(getattr(d, field.name) for d in draws))
    apart = augmented(face, images, points, labelled, draws[1])
    for dtype in (torch.uint8, torch.float32):  # OpenCV's kernel, as on a processor, and grid_sample, as on a device
        whole = augmented(batch, images.to(dtype), points, labelled, draws[0])
        assert torch.equal(whole[2], apart[2])
        assert (whole[1] - apart[1]).abs().max() < 0.05
        difference = (whole[0] - apart[0]).abs()
        assert difference.mean() < 0.001 and difference.max() < 0.02
    for i in range(len(FACES)):
        for k in range(5):
            where = apart[1][i, k].numpy()
            if (where > 10).all() and (where < SIZE - 11).all():  # a dot that lies whole in the crop
                found, _ = dot(apart[0][i, 0].numpy(), where)
                assert np.linalg.norm(found - where) < 0.06  # .01 of it is rounding to whole grey levels


def test_pixels_are_bent_after_the_affine_and_points_are_not():
    images, points, labelled = store_of(Augment(**GEOMETRY))
    plain, inverted = stack(**GEOMETRY), stack(albumentations.InvertImg(p=1), **GEOMETRY)
    draws = plain.draw(0, 0, FACES)
    a, b = (augmented(s, images, points, labelled, draws) for s in (plain, inverted))
    torch.testing.assert_close(a[0], 1 - b[0], atol=1e-6, rtol=0)
    assert torch.equal(a[1], b[1]) and torch.equal(a[3], b[3])


def test_a_batch_without_faces_is_fine():
    empty = torch.zeros((0, 3, SIZE, SIZE), dtype=torch.uint8)
    assert noisy().pixels(empty, noisy().draw(0, 0, np.arange(0)), SIZE).shape == (0, 3, SIZE, SIZE)


# -- draws ---------------------------------------------------------------------------------------------------------


def test_transforms_draw_apart_from_one_another():
    """albumentations' own set_random_seed would make two transforms of p=.5 come always together."""
    bent = stack(albumentations.InvertImg(p=0.5), albumentations.RandomBrightnessContrast((0.2, 0.2), (0, 0), p=0.5))
    picture = np.full((8, 8, 1), 100, np.uint8)
    keys = bent.draw(0, 0, np.arange(400)).key
    values = [bent.augment_image(picture, np.eye(2, 3), int(key), 8)[0, 0, 0] for key in keys]
    kinds, counts = np.unique(values, return_counts=True)
    assert len(kinds) == 4 and counts.min() > 60


@pytest.mark.parametrize("bent", [noisy(), stack(albumentations.GaussNoise(p=1))], ids=["all", "transforms alone"])
def test_a_face_draws_the_same_in_any_company_and_anew_in_another_epoch(bent):
    images = store_of(Augment(**GEOMETRY))[0]  # each the same picture
    together = bent.pixels(images, bent.draw(1, 4, FACES), SIZE)
    for i in (5, 0, 3):
        assert torch.equal(bent.pixels(images[:1], bent.draw(1, 4, FACES[i : i + 1]), SIZE)[0], together[i])
    for seed, epoch in ((1, 5), (2, 4)):
        other = bent.pixels(images, bent.draw(seed, epoch, FACES), SIZE)
        assert (other != together).flatten(1).any(1).all()
    assert all((together[i] != together[j]).any() for i in range(6) for j in range(i))


# -- batches from workers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


COUNT = 90  # to train on
PARTS = ("train",) * COUNT + ("val",) * 3 + ("test",)


def data_of(cache: Path, workers: int, rank: int = 0, ranks: int = 1, epoch: int = 0, **changes: object) -> FaceData:
    """Painted faces under a trainer that has come to some epoch."""
    arguments = {
        "name": "dots", "reader": lambda root, strict: face_table(PARTS), "root": "dots",
        "crop": CropSettings(48, 1, BoxPolicy()), "cache": str(cache), "augment": noisy(), "workers": workers * ranks,
        "batch_size": 20,
    }  # fmt: skip
    data = FaceData(**{**arguments, **changes})
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=ranks,
        num_devices=ranks,
        current_epoch=epoch,
        training=True,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data


def epoch_of(data: FaceData) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Row -> image and points of all that an epoch shows."""
    batches = [data.transfer_batch_to_device(batch, torch.device("cpu"), 0) for batch in data.train_dataloader()]
    return {
        int(row): (image, points)
        for batch in batches for row, image, points in zip(batch.index, batch.images, batch.points, strict=True)
    }  # fmt: skip


def assert_same(a: dict, b: dict) -> None:
    assert list(a) == list(b)
    for row in a:
        assert torch.equal(a[row][0], b[row][0]) and torch.equal(a[row][1], b[row][1]), row


def test_workers_change_nothing(cache):
    alone = epoch_of(data_of(cache, 0))
    assert len(alone) == 80
    for workers in (1, 2, 3):
        assert_same(alone, epoch_of(data_of(cache, workers)))
    data = data_of(cache, 0)  # nor does it matter that a batch was not made ahead
    direct = data.batch(torch.tensor(list(alone)), 0)
    for i, row in enumerate(alone):
        assert torch.equal(direct.images[i], alone[row][0]) and torch.equal(direct.points[i], alone[row][1])


def test_the_work_is_done_by_workers(cache):
    here = psutil.Process()
    before = set(here.children(recursive=True))
    batches = iter(data_of(cache, 2).train_dataloader())
    next(batches)
    started = set(here.children(recursive=True)) - before
    assert len(started) == 2
    batches.close()  # as when an epoch is cut short
    _, left = psutil.wait_procs(list(started), timeout=20)
    assert not left


@pytest.mark.parametrize("changes", [{"epoch": 1}, {"seed": 1}], ids=str)
def test_another_epoch_or_seed_bends_anew(cache, changes):
    first, again, other = (epoch_of(data_of(cache, 2, **c)) for c in ({}, {}, changes))
    assert_same(first, again)
    assert list(first) != list(other)
    shared = set(first) & set(other)
    assert len(shared) > 60
    assert all((first[row][0] != other[row][0]).any() for row in shared)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_the_one_batch(cache, workers):
    whole = epoch_of(data_of(cache, workers))
    first, second = (epoch_of(data_of(cache, workers, rank, 2)) for rank in (0, 1))
    assert not set(first) & set(second)
    assert_same(whole, {row: (first | second)[row] for row in whole})


def often(times: float) -> FaceTable:
    return dataclasses.replace(face_table(PARTS), weight=np.full(len(PARTS), times))


def test_a_second_visit_is_bent_anew(cache):
    data = data_of(cache, 2, reader=lambda root, strict: often(2))
    pictures: dict[int, list[torch.Tensor]] = {}
    for batch in data.train_dataloader():
        bent = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        for row, image in zip(bent.index.tolist(), bent.images, strict=True):
            pictures.setdefault(row, []).append(image)
    assert max(pictures) < COUNT
    twice = [images for images in pictures.values() if len(images) == 2]
    assert len(twice) > 80 and all((a != b).any() for a, b in twice)


def test_evaluation_bends_nothing(cache):
    bent, plain = data_of(cache, 2), data_of(cache, 0, augment=Augment(**GEOMETRY))
    assert isinstance(bent.train_dataloader(), AugmentedBatches)
    for data in (bent, plain):
        data.trainer.training = False
        assert not isinstance(data.val_dataloader(), AugmentedBatches)
    for a, b in zip(bent.val_dataloader(), plain.val_dataloader(), strict=True):
        one, two = (
            bent.transfer_batch_to_device(a, torch.device("cpu"), 0),
            plain.transfer_batch_to_device(b, torch.device("cpu"), 0),
        )
        assert torch.equal(one.images, two.images) and torch.equal(one.points, two.points)
        assert torch.equal(one.images, data_of(cache, 0).batch(a, None).images)


class Fails(albumentations.ImageOnlyTransform):
    """Serves most images."""

    def apply(self, img: np.ndarray, **params: object) -> np.ndarray:
        if self.py_random.random() < 0.1:
            raise RuntimeError("no such colour")
        return img


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_that_fails_is_told_in_one_line(cache, workers):
    data = data_of(cache, workers, augment=stack(Fails(p=1)))
    with pytest.raises(UserError, match=r"augment\.transforms: RuntimeError no such colour"):
        epoch_of(data)


def test_a_worker_that_is_killed_is_told(cache):
    before = set(psutil.Process().children())
    batches = iter(data_of(cache, 2, reader=lambda root, strict: often(30)).train_dataloader())
    next(batches)
    for worker in set(psutil.Process().children()) - before:
        worker.kill()
    with pytest.raises(UserError, match=r"was killed.*data\.workers"):
        list(batches)


ORPHANS = """
import sys, time
from pathlib import Path
import psutil
from tests.augment.test_albumentations import data_of, often
data = data_of(Path(sys.argv[1]), 2, reader=lambda root, strict: often(50))
batches = iter(data.train_dataloader())
next(batches)
print(*(child.pid for child in psutil.Process().children()), flush=True)
time.sleep(60)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_training_leaves_no_worker(cache):
    root = Path(engine.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, str(cache)], cwd=root, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    _, left = psutil.wait_procs(workers, timeout=20)
    assert not left


# -- what may stand in a stack -------------------------------------------------------------------------------------


def texture(channels: int = 3, side: int = 128) -> np.ndarray:
    """(side, side, channels) uint8, soft blotches whose place can be told to a tenth of a pixel anywhere."""
    field = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32), (0, 0), 3)
    grey = ((field - field.min()) / (field.max() - field.min()) * 200 + 25).round().astype(np.uint8)
    return np.repeat(grey[..., None], channels, 2)


def moved(transform: albumentations.ImageOnlyTransform) -> float:
    """The median move in pixels of the quarters of an image, by phase correlation."""
    picture, moves = texture(), []
    window = cv2.createHanningWindow((64, 64), cv2.CV_32F)
    for seed in range(8):
        transform.set_random_seed(seed)
        bent = transform(image=picture.copy())["image"]
        for y in (0, 64):
            for x in (0, 64):
                a, b = (p[y : y + 64, x : x + 64].astype(np.float32).mean(-1) for p in (picture, bent))
                moves.append(np.hypot(*cv2.phaseCorrelate(a - a.mean(), b - b.mean(), window)[0]))
    return float(np.median(moves))


@pytest.mark.parametrize("name", MOVERS)
def test_what_is_refused_as_a_mover_moves(name):
    transform = getattr(albumentations, name)(p=1)
    assert moved(transform) > 0.4
    with pytest.raises(UserError, match=f"augment.transforms.0: {name} moves pixels.*{MOVERS[name][:4]}"):
        stack(transform)


@pytest.mark.parametrize(
    "name",
    [
        "AdvancedBlur", "AutoContrast", "Blur", "CLAHE", "ChromaticAberration", "ColorJitter", "Equalize", "FancyPCA",
        "GaussianBlur", "HEStain", "HueSaturationValue", "ISONoise", "Illumination", "ImageCompression", "MedianBlur",
        "MultiplicativeNoise", "PlanckianJitter", "PlasmaBrightnessContrast", "Posterize", "RGBShift",
        "RandomBrightnessContrast", "RandomGamma", "RandomRain", "RandomToneCurve", "RingingOvershoot", "Sharpen",
        "Superpixels", "UnsharpMask",
    ],
)  # fmt: skip
def test_what_is_let_in_stays_in_place(name):
    """Not measurable so: what paints much over (noise, dropout, fog, shadows), or turns light to dark."""
    transform = getattr(albumentations, name)(p=1)
    stack(transform).check(128, 3)
    assert moved(transform) < 0.25


def test_a_motion_blur_may_smear_about_the_middle():
    transform = albumentations.MotionBlur(allow_shifted=False, direction_range=(0, 0), p=1)
    stack(transform)
    assert moved(transform) < 0.15
    for half in ({"allow_shifted": False}, {"direction_range": (0, 0)}):
        with pytest.raises(UserError, match="MotionBlur moves pixels"):
            stack(albumentations.MotionBlur(**half))


@pytest.mark.filterwarnings("ignore::UserWarning")  # some tell of others that they are alike
def test_every_transform_that_moves_points_is_refused():
    """What albumentations itself says moves points, wherever it stands."""
    kinds = vars(albumentations).values()
    movers = [k for k in kinds if isinstance(k, type) and issubclass(k, albumentations.DualTransform)]
    built = []
    for kind in movers:
        try:
            built.append(kind(p=1))
        except (TypeError, ValueError):  # those that need arguments
            continue
    refused = [t for t in built if type(t).__name__ not in PAINTERS]
    assert len(refused) > 25
    for transform in refused:
        for inside in (transform, albumentations.OneOf([albumentations.Blur(), transform])):
            with pytest.raises(UserError, match=f"{type(transform).__name__} moves pixels.*augment.rotation"):
                stack(albumentations.Blur(), inside)


@pytest.mark.parametrize("name", PAINTERS)
def test_painters_paint_over_and_move_nothing(name):
    transform = getattr(albumentations, name)(
        p=1, **({"num_masks_x": 3, "mask_x_length": 5} if name == "XYMasking" else {})
    )
    picture = texture(1)
    bent = stack(transform).augment_image(picture, np.eye(2, 3), 3, 128)
    same = bent == picture
    assert 0.1 < same.mean() < 1  # what is not painted over is what it was, where it was


BAD: list[tuple[object, str]] = [
    ({"_target_": "albumentations.GaussNoise", "std": 1}, "transforms.0.std is not a key of"),
    ({"_target_": "albumentations.GaussNoise", "std_rang": [0, 1]}, "did you mean 'std_range'"),
    ({"_target_": "albumentations.GausNoise"}, "did you mean 'GaussNoise'"),
    ({"_target_": "albumentations.GaussNoise", "std_range": 5}, "std_range"),
    ({"_target_": "albumentations.GaussNoise", "p": 2}, "GaussNoise"),
    ({"_target_": "albumentations.Blur", "blur_limit": 4}, "must be odd"),
    (
        {"_target_": "albumentations.SomeOf", "n": 3, "transforms": [{"_target_": "albumentations.Blur"}]},
        "greater than",
    ),
    ({"_target_": "albumentations.OneOf", "transforms": []}, "OneOf is not accepted here"),
    ({"_target_": "albumentations.OneOf", "transforms": [5]}, "transforms=\\[5\\]"),
    ({"_target_": "albumentations.OneOf", "p": 3, "transforms": [{"_target_": "albumentations.Blur"}]}, "0.p=3"),
    ({"_target_": "albumentations.Compose", "transforms": []}, "Compose is not accepted here"),
    ({"_target_": "albumentations.HorizontalFlip"}, "geometry is augment.rotation"),
    (5, "transforms.0=5 is no transform"),
    ({"p": 0.5}, "is no transform"),
]


@functools.cache
def composed() -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", ["augment=albumentations"])


def node(*transforms: object) -> DictConfig:
    cfg = copy.deepcopy(composed())
    cfg.augment.transforms = list(transforms)
    return cfg


@pytest.mark.parametrize(("transform", "said"), BAD, ids=lambda value: str(value)[:60])
def test_what_cannot_stand_in_a_stack_is_told(transform, said):
    with pytest.raises(UserError, match=said):
        cfg = node(transform)
        check(cfg, Train, trusted=False)
        build(cfg.augment)


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "albumentations.save", "albumentations.load", "albumentations.core.serialization.from_dict",
        "albumentations.check_version.fetch_version_info", "albumentations.core.composition.cv2.imwrite",
        "albumentations.core.composition.random.Random", "flr.tracking.tracker.connect",
    ],
)  # fmt: skip
@pytest.mark.parametrize("deep", [False, True])
def test_nothing_else_is_built_from_a_foreign_config(target, deep):
    inner: dict[str, object] = {"_target_": target}
    if deep:
        inner = {"_target_": "albumentations.OneOf", "transforms": [inner]}
    with pytest.raises(UserError, match=r"is not among the objects that a run may build|no such class"):
        check(node(inner), Train, trusted=False)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (albumentations.ToFloat(), "ToFloat makes a crop float32"), (albumentations.ToRGB(), r"ToRGB makes .*40, 40, 3"),
        (albumentations.RandomRain(), "RandomRain cannot serve crops of 40 x 40 x 1"),
        (albumentations.HueSaturationValue(), "HueSaturationValue cannot serve"),  # it would only warn
        (albumentations.FDA(), "FDA cannot serve"), (albumentations.ChannelDropout(), "ChannelDropout cannot serve"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_cannot_serve_the_crops_is_told_before_work_starts(cache, transform, said):
    grey = {"crop": CropSettings(40, 1, BoxPolicy()), "augment": stack(albumentations.OneOf([transform]))}
    with pytest.raises(UserError, match=f"augment.transforms.0.transforms.0: {said}"):
        data_of(cache, 0, **grey, reader=lambda root, strict: pytest.fail("data were read")).prepare()


def test_what_serves_colours_is_let_in():
    for name in ("RandomRain", "HueSaturationValue", "ISONoise", "ChannelDropout"):
        stack(getattr(albumentations, name)()).check(40, 3)


# -- conf/augment --------------------------------------------------------------------------------------------------


CHOICES = [path.stem for path in sorted((CONF / "augment").glob("*.yaml"))]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_bends_a_batch(cache, name, channels):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"augment={name}"])
    check(cfg, Train, trusted=False)
    data = data_of(cache, 0, augment=build(cfg.augment), crop=CropSettings(48, channels, BoxPolicy()))
    index = next(iter(data.train_dataloader()))
    batch = data.transfer_batch_to_device(index, torch.device("cpu"), 0)
    assert batch.images.shape == (20, channels, 48, 48) and batch.images.isfinite().all()
    assert -1 <= batch.images.min() < batch.images.max() <= 1
    plain = data.batch(batch.index, None)
    bends = name not in ("none", "celeba_cnn", "muct_cnn")
    assert (
        torch.allclose(batch.images, plain.images, atol=1e-6) != bends
        and torch.equal(batch.points, plain.points) != bends
    )


@pytest.mark.long
def test_no_news_are_asked_of_the_network():
    code = (
        "import urllib.request as u; u.OpenerDirector.open = lambda *args, **kwargs: print('asked');"
        "import flr.augment.albumentations as e; e.Albumentations(transforms=[]); print('built')"
    )
    env = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["built"]
