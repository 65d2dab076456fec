"""Which part of an image a model sees: the truth's box, the file's, or a detector's, with scale and jitter."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol

import cv2
import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from filelock import FileLock
from tqdm import tqdm

from flr.augment.draws import uniform
from flr.data.finders.blazeface import BlazeFaceFinder
from flr.data.finders.builtin import Builtin
from flr.data.finders.yunet import YuNetFinder
from flr.data.table import FaceTable
from flr.errors import UserError
from flr.files import writing
from flr.landmarks.geometry import box_crop
from flr.system import parallel_map

Offset = tuple[float, float, float, float] | None
# A detection is of a face where its own and the detected tight box's intersection over union is at least this.
FOUND = 0.3
# `Haar.offset` by scheme, where a dataset does not give it: medians over the 1837 of 2014 300-W training faces (afw, helen,
# lfpw) that Haar finds by their 68 points; the boxes that come out overlap the tight ones by .79 of their union.
OFFSETS: Mapping[str, tuple[float, float, float, float]] = {
    "ibug68": (0.088, 0.236, 0.927, 1.067),
    "kaggle15": (0.163, 0.272, 0.842, 0.869),
    "celeba5": (0.313, 0.379, 0.701, 0.797),
}
TIGHT_SOURCES = ("truth", "haar", "detector")  # of `BoxPolicy`: boxes that are, or approximate, the points' tight box
BOX_COLUMNS = "add their boxes to the labels (columns left, top, right and bottom of a CSV, bbox of COCO)"
ADD_BOXES = f"{BOX_COLUMNS} and set data.crop.policy.source=file, or label more points"
LARGEST_SIDE = 1024  # images are shrunk to this for the cascade, unless it is to find small faces


class Finder(Protocol):
    """A detector for crops. See `Haar` for `missed` and `offset`; `identity` holds what its boxes depend on."""

    @property
    def missed(self) -> str: ...
    @property
    def offset(self) -> Offset: ...
    @property
    def identity(self) -> tuple[str | float | int | None, ...]: ...
    def usual_offset(self, scheme: str) -> tuple[float, float, float, float]:
        """Return `offset` for a scheme, about; detections are matched to faces by it."""
        ...

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return the boxes (M, 4) of the faces of an image (H, W) or (H, W, 3) RGB, uint8."""
        ...


@dataclass(frozen=True)
class Haar:
    """OpenCV's frontal-face cascade (Viola and Jones 2001, doi:10.1109/CVPR.2001.990517).

    Attributes:
        step: the image shrinks by this between two scales.
        neighbours: detections that must agree.
        missed: the box of a face that is not found: its ``truth`` box, the whole ``picture``, or nothing:
            ``leave_out`` takes it from every part.
        offset: the tight box in units of the detected one: its left, top, right and bottom, from the detected box's
            left top, over its side. None takes the medians over the training faces that are found.
        work: longer side in pixels of the image that is searched; a larger image is shrunk to it. Faces from about 30
            pixels of the shrunk image are found. The time grows with the square.
    """

    step: Annotated[float, Ge(1.01), Le(2)] = 1.1
    neighbours: Annotated[int, Ge(0), Le(1000)] = 5
    missed: Literal["truth", "picture", "leave_out"] = "truth"
    offset: Offset = None
    work: Annotated[int, Ge(32), Le(8192)] = LARGEST_SIDE

    def __str__(self) -> str:
        return f"haar-{self.step:g}-{self.neighbours}" + (f"-{self.work}" if self.work != LARGEST_SIDE else "")

    @property
    def identity(self) -> tuple[float, ...]:
        return self.step, self.neighbours, self.work

    def usual_offset(self, scheme: str) -> tuple[float, float, float, float]:
        return OFFSETS.get(scheme, self.offset or (0.0, 0.0, 1.0, 1.0))

    def detect(self, image: np.ndarray, smallest: float = 0.0) -> np.ndarray:
        """(M, 4) float64 boxes of the faces found in an image (H, W) or (H, W, 3) RGB, uint8.

        Args:
            image: the image.
            smallest: faces below this share of its shorter side are not looked for.
        """
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        factor = min(self.work / max(grey.shape), 1.0)
        if min(grey.shape) * factor < 1:
            return np.zeros((0, 4))  # a line, too thin for any face
        if factor < 1:
            grey = cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        least = round(smallest * min(grey.shape))
        boxes = _CASCADE.own.detectMultiScale(grey, self.step, self.neighbours, minSize=(least, least))
        found = np.array(boxes, np.float64).reshape(-1, 4)
        found[:, 2:] += found[:, :2]
        return found / factor - 0.5  # from pixels counted to edges in pixel-centre coordinates


class _Cascade(threading.local):
    """One for each thread, since it keeps the image that it looks at."""

    def __init__(self) -> None:
        self.own = cv2.CascadeClassifier(
            str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml")
        )


_CASCADE = _Cascade()


@dataclass(frozen=True)
class BoxPolicy:
    """Which box of a face, and how much round it. It is half of a protocol: name it with every number.

    Attributes:
        source: ``truth``, the tight box of the labelled points; ``file``, the box that the dataset gives; ``haar``,
            the Haar cascade's; ``detector``, that of `detector`; ``picture``, all of the image.
        scale: the crop's side over the box's.
        shape: ``square`` takes the larger side both ways (HRNet), ``stretch`` each side on its own (PIPNet).
        jitter: each box is moved by up to this share of its sides, and grown or shrunk by as much; a fixed draw by the
            face's name, so that it is a protocol and no augmentation.
        haar: the settings of ``haar``.
        detector: the detector of ``detector``, with its settings.
    """

    source: Literal["truth", "file", "haar", "detector", "picture"] = "truth"
    scale: Annotated[float, Gt(0), Le(20)] = 1.25
    shape: Literal["square", "stretch"] = "square"
    jitter: Annotated[float, Ge(0), Lt(1)] = 0.0
    haar: Haar = field(default_factory=Haar)
    detector: Builtin | YuNetFinder | BlazeFaceFinder | Haar = field(default_factory=Builtin)

    @property
    def finder(self) -> Finder | None:
        """The detector whose boxes are taken; None where there is none."""
        return {"haar": self.haar, "detector": self.detector}.get(self.source)

    def __str__(self) -> str:
        source = self.source if self.finder is None else f"{self.finder}-missed:{self.finder.missed}"
        return f"{source}-{self.shape}-{self.scale:g}" + (f"-jitter:{self.jitter:g}" if self.jitter else "")

    def crop(self, box: np.ndarray, size: int) -> np.ndarray:
        """Maps (..., 2, 3) from image pixels to a `size` x `size` crop round boxes (..., 4)."""
        return box_crop(box, self.scale, self.shape == "square", size)


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of N faces.

    Attributes:
        box: (N, 4) float64; NaN where a face has none and is to be left out.
        missed: (N,) bool, where the detector found nothing.
        offset: see `Haar.offset`; None for another source.
    """

    box: np.ndarray
    missed: np.ndarray
    offset: Offset = None


def face_boxes(table: FaceTable, policy: BoxPolicy, cache: Path, workers: int) -> Boxes:
    """The box of each face that `policy` names; a detector's answers are kept under `cache`.

    Raises:
        UserError: the set has no such boxes.
    """
    missed, offset = np.zeros(len(table), bool), None
    if policy.source == "picture":
        box = _by_image(table, "picture", _whole, cache, workers)
        if np.isnan(box).any():
            box = np.where(np.isnan(box), [-0.5, -0.5, 0.5, 0.5], box)  # not decoded: the crop store says so
    else:
        box = _given(table, policy.source, policy.shape == "square")
    if policy.finder is not None:
        box, missed, offset = _detected(table, policy, policy.finder, box, cache, workers)
    return Boxes(_shaken(box, table.name, policy.jitter), missed, offset)


def _given(table: FaceTable, source: str, square: bool) -> np.ndarray:
    box = table.box if source == "file" else table.tight
    bare, single = np.isnan(box).any(1), table.labelled.sum(1) < 2
    if bare.any():
        wrong, what = bare, "no box in the labels" if source == "file" else "no labelled point"
    elif source != "file" and single.any():
        wrong, what = single, "one labelled point, which spans no box"
    else:
        side = box[:, 2:] - box[:, :2]
        wrong, what = (side.max(1) if square else side.min(1)) <= 0, "points that span no area"
    if wrong.any():
        fix = "set data.crop.policy.source=file" if np.isfinite(table.box).all() else ADD_BOXES
        if source == "file":
            fix = BOX_COLUMNS + ("" if single.any() else ", or set data.crop.policy.source=truth")
        raise UserError(
            f"{table.form}: {wrong.sum()} of {len(table)} faces have {what}, such as '{table.name[wrong][0]}'; {fix}"
        )
    return box.astype(np.float64)


def _detected(
    table: FaceTable, policy: BoxPolicy, finder: Finder, truth: np.ndarray, cache: Path, workers: int
) -> tuple[np.ndarray, np.ndarray, Offset]:
    """The detector's boxes, mapped to where the tight box of the points should be; which are missed; and the map."""
    # A detected box is much larger than the tight box of 5 points in it.
    usual = finder.usual_offset(table.scheme.name)

    def best(image: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n, 4) the detection that overlaps each face most, NaN where none overlaps enough."""
        boxes = finder.detect(image)
        overlaps = [overlap(from_detection(boxes, usual), truth[row]) for row in rows]
        hits = [len(overlap) > 0 and overlap.max() >= FOUND for overlap in overlaps]
        return np.array([boxes[o.argmax()] if hit else [np.nan] * 4 for o, hit in zip(overlaps, hits, strict=True)])

    found = _by_image(table, repr((*finder.identity, FOUND, usual)), best, cache, workers)
    missed = np.isnan(found).any(1)
    offset = finder.offset
    if offset is None:
        seen = (table.split == "train") & ~missed
        if not seen.any():
            raise UserError(
                f"{table.form}: {finder} finds none of its {int((table.split == 'train').sum())} training faces, so its box "
                f"has no offset to the points; set data.crop.policy.{policy.source}.offset=[LEFT,TOP,RIGHT,BOTTOM]"
            )
        side = (found[seen, 2:] - found[seen, :2]).repeat(2, 1)
        middle = np.median((truth[seen] - found[seen][:, [0, 1, 0, 1]]) / side, 0)
        offset = (float(middle[0]), float(middle[1]), float(middle[2]), float(middle[3]))
    box = from_detection(found, offset)
    if finder.missed == "truth":
        box = np.where(missed[:, None], truth, box)
    elif finder.missed == "picture":
        box = np.where(missed[:, None], _by_image(table, "picture", _whole, cache, workers), box)
    return box, missed, offset


def from_detection(found: np.ndarray, offset: tuple[float, ...]) -> np.ndarray:
    """(N, 4) where the tight boxes should be, of detected ones (N, 4) and `Haar.offset`."""
    side = found[:, 2:] - found[:, :2]
    return found[:, [0, 1, 0, 1]] + side[:, [0, 1, 0, 1]] * np.array(offset)


def _whole(image: np.ndarray, rows: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.tile([-0.5, -0.5, width - 0.5, height - 0.5], (len(rows), 1))


def _by_image(
    table: FaceTable, what: str, find: Callable[[np.ndarray, np.ndarray], np.ndarray], cache: Path, workers: int
) -> np.ndarray:
    """(N, 4) boxes that only the pixels tell: ``find(image, rows) -> (n, 4)``, kept in the cache under `what`.

    They are NaN where `find` says so and where an image cannot be decoded.
    """
    known = table.version.tobytes() + table.points.tobytes()  # a reader may come to read the same values otherwise
    key = hashlib.sha256(f"{what} {table.fingerprint()}".encode() + known).hexdigest()[:16]
    path = cache.absolute() / "boxes" / f"{table.form.split('[')[0]}-{key}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            image_rows = faces_by_image(table)

            def work(u: int) -> np.ndarray:
                try:
                    image = table.load(int(image_rows[u][0]))
                except UserError:
                    return np.full((len(image_rows[u]), 4), np.nan)  # the crop store says so
                return find(image, image_rows[u])

            boxes = np.empty((len(table), 4))
            with tqdm(total=len(table), desc="Finding boxes", unit="face", disable=None) as bar:
                for rows, found in zip(image_rows, parallel_map(work, len(image_rows), workers), strict=True):
                    boxes[rows] = found
                    bar.update(len(rows))
            with writing(path) as aside:
                np.save(aside, boxes)
    return np.load(path)


def faces_by_image(table: FaceTable) -> list[np.ndarray]:
    """For each image the rows of its faces, images in the order of their first faces."""
    _, first, member = np.unique(table.image, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    return [rows[u] for u in np.argsort(first)]


def overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(M,) intersection over union of boxes (M, 4) with one."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    common = (high - low).clip(0).prod(1)
    return common / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - common)


def _shaken(box: np.ndarray, names: np.ndarray, jitter: float) -> np.ndarray:
    if not jitter:
        return box
    digests = [hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8] for name in names.tolist()]
    u = 2 * uniform(0, 0, np.frombuffer(b"".join(digests), np.uint64), 3) - 1
    centre, side = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    centre = centre + jitter * u[:, :2] * side
    side = side * (1 + jitter * u[:, 2:])
    return np.concatenate([centre - side / 2, centre + side / 2], 1)
