"""The FaceTable: what every reader returns and all that follows reads."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flr.data.images import Files
from flr.errors import UserError
from flr.landmarks.geometry import tight_box
from flr.landmarks.scheme import SCHEMES, Scheme

UNLABELLED = "unlabelled"  # the split of images that a set gives without labels, to be predicted and sent in
# What a fingerprint tells apart: which faces and groups, their splits and subsets, the form and scheme with its
# reductions, and the values in the files.
FINGERPRINT_PARTS = ("faces", "splits", "scheme", "values")
CHUNK = 4096  # rows that are encoded at once
COLUMNS = ("points", "labelled", "visible", "box", "group", "split", "name", "image", "published", "version")


@dataclass(frozen=True)
class Fault:
    """A face that was left out, and why."""

    face: str
    reason: str

    def __str__(self) -> str:
        # Bytes of a list that were no UTF-8 came as surrogates, which no file takes.
        return f"{self.face}: {self.reason}".encode(errors="backslashreplace").decode()


@dataclass(frozen=True, eq=False)
class FaceTable:
    """Columns over N faces.

    Attributes:
        form: the on-disk form that was read; the first word of the protocol's name.
        scheme: the landmark scheme, K points.
        points: (N, K, 2) float32, original-image pixels.
        labelled: (N, K) bool, whether a point has a label at all. Losses and metrics use these points only.
        visible: (N, K) bool, whether the point can be seen; a hidden point can still be labelled.
        box: (N, 4) float32 left, top, right, bottom: the dataset's own box, or NaN where it gives none.
        group: (N,) str, identity, clip or photo: what must not cross from training into validation.
        split: (N,) str, ``train``, ``val``, ``test`` or ``unlabelled``.
        name: (N,) str, unique and free of the dataset's place on disk.
        image: (N,) str, the image that each face lies in; faces may share one.
        subsets: name -> (N,) bool. Subsets may overlap.
        read_image: an image's name -> its pixels, (H, W) grey or (H, W, 3) RGB, uint8; `Files` where they are files.
        published: (N,) str, a digest of each face's values as its file gives them (see `digest_rows`).
        version: (N,) int64, changes when the pixels may have changed, such as a file's time of change. Crops that were
            made of other versions are not used; the fingerprint, which must agree between machines, leaves it out.
        faults: the faces left out so far.
        weight: (N,) float, how often a training face is seen in an epoch; None for once each.
        reductions: the reductions that led to `scheme`, such as ``ibug68>celeba5``.
    """

    form: str
    scheme: Scheme
    points: np.ndarray
    labelled: np.ndarray
    visible: np.ndarray
    box: np.ndarray
    group: np.ndarray
    split: np.ndarray
    name: np.ndarray
    image: np.ndarray
    subsets: Mapping[str, np.ndarray]
    read_image: Callable[[str], np.ndarray]
    published: np.ndarray
    version: np.ndarray
    faults: Sequence[Fault] = field(default_factory=tuple)
    weight: np.ndarray | None = None
    reductions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.points)

    def take(self, index: np.ndarray) -> "FaceTable":
        """The faces of an index array (or a bool mask), in its order."""
        return dataclasses.replace(
            self,
            **{column: getattr(self, column)[index] for column in COLUMNS},
            subsets={name: mask[index] for name, mask in self.subsets.items()},
            weight=None if self.weight is None else self.weight[index],
        )

    def load(self, i: int) -> np.ndarray:
        """The whole image that face `i` lies in."""
        return self.read_image(str(self.image[i]))

    def reduce(self, to: str, scheme: Scheme) -> "FaceTable":
        """The same faces in a smaller scheme (see `Scheme.reduce`)."""
        if to == self.scheme.name:
            return self
        reduce = self.scheme.reduce
        return dataclasses.replace(
            self,
            scheme=scheme,
            points=reduce(self.points, to),
            labelled=reduce(self.labelled, to),
            visible=reduce(self.visible, to),
            reductions=(*self.reductions, f"{self.scheme.name}>{to}"),
        )

    @property
    def tight(self) -> np.ndarray:
        """(N, 4) the tight boxes of the labelled points."""
        return tight_box(self.points, self.labelled)

    def normaliser(self, name: str | None = None) -> np.ndarray:
        """Return the (N,) normalisers of the faces (see `Scheme.distance`)."""
        return self.scheme.distance(self.points, self.labelled, name, self.box)

    def fingerprint(self) -> str:
        """Return the identity of the data as published, equal on every machine.

        It hashes what was read, never the result of float arithmetic, whose last bits differ between CPUs. Pixels and
        the place on disk are no part of it.

        Returns:
            One digest for each of `FINGERPRINT_PARTS`, joined by ``-``.
        """
        scheme = [self.form, self.scheme.name, *self.reductions]
        if SCHEMES.get(self.scheme.name) is not self.scheme:  # a user's own, which may change under its name
            scheme.append(json.dumps(self.scheme.plain()))
        splits = self.split.tolist()
        for name in sorted(self.subsets):
            splits += [name, np.packbits(self.subsets[name]).tobytes().hex()]
        parts = (self.name.tolist() + self.group.tolist(), splits, scheme, self.published.tolist())
        return "-".join(_digest("\0".join(part).encode(errors="surrogatepass"), 6) for part in parts)


def _digest(data: bytes, length: int) -> str:
    return hashlib.sha256(data).hexdigest()[:length]


def digest_rows(*columns: np.ndarray | Sequence[Any]) -> np.ndarray:
    """Digest what the files of a dataset say of each face, for `FaceTable.published`.

    Args:
        columns: of N rows each; numbers and flags as they stand in the files, before any arithmetic, or text.

    Returns:
        (N,) str.
    """
    columns = tuple(np.asarray(column) for column in columns)
    digests: list[str] = []
    for start in range(0, len(columns[0]), CHUNK):
        encoded = [_encode_rows(column[start : start + CHUNK]) for column in columns]
        digests += [_digest(b"\0".join(row), 16) for row in zip(*encoded, strict=True)]
    return np.array(digests, "<U16")


def _encode_rows(column: np.ndarray | Sequence[Any]) -> list[bytes]:
    array = np.asarray(column)
    if array.dtype.kind in "US":
        return [str(text).encode(errors="surrogatepass") for text in array.tolist()]
    # One byte order and width, and one NaN, whatever the machine.
    array = np.ascontiguousarray(array, "<f8" if array.dtype.kind == "f" else "<i8")
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.nan, array)
    return [row.tobytes() for row in array]


def make_table(
    form: str, scheme: Scheme, root: Path, image: Sequence[str] | np.ndarray, points: np.ndarray,
    split: Sequence[str] | np.ndarray, *, published: Sequence[np.ndarray], strict: bool, labelled: np.ndarray | None = None,
    visible: np.ndarray | None = None, box: np.ndarray | None = None, group: Sequence[str] | np.ndarray | None = None,
    name: Sequence[str] | np.ndarray | None = None, subsets: Mapping[str, np.ndarray] | None = None,
    bad: Mapping[int, str] | None = None, upright: bool = False, sizes: Mapping[str, tuple[int, int]] | None = None,
    read_image: Callable[[str], np.ndarray] | None = None, version: np.ndarray | None = None,
) -> FaceTable:  # fmt: skip
    """Make the table of N faces, less the faulty ones. Their images are files under `root`, or what `read_image` returns.

    `published` holds columns of N rows with what the files say of each face, before any arithmetic (see `digest_rows`);
    the sizes of the image files join them. For `upright` and `sizes` see `flr.data.images.Files`. For `read_image` and
    `version`, which images that are no files need, see `FaceTable`.

    A face is at fault by `bad` (index -> reason), where its file is missing, empty, no file or outside `root`, where
    its name occurs there twice, and by `check_faces`. What is left out here is: every point is labelled where it is
    finite, visible where it is labelled; no box; each image its own group; the image's name.

    Raises:
        UserError: see `check_faces`; `root` is named.
    """
    count, faults = len(image), dict[int, str]()
    image = np.asarray(image, str)
    points = np.asarray(points, np.float32)
    labelled = np.isfinite(points).all(-1) if labelled is None else labelled
    if read_image is None or version is None:
        read_image = files = Files(root, upright, sizes or {})
        size, version, faults = files.states(image.tolist())
        published = (*published, size)
        sized = np.array([files.sizes.get(name, (0, 0)) for name in image.tolist()], np.int64).reshape(-1, 2)
        version += upright + 2 * (sized[:, 0] + (sized[:, 1] << 20))  # the pixels depend on these
    name = image if name is None else np.asarray(name, str)
    _, first = np.unique(name, return_index=True)
    faults |= {int(i): "it is listed twice" for i in np.setdiff1d(np.arange(count), first)}
    table = FaceTable(
        form=form,
        scheme=scheme,
        points=points,
        labelled=labelled,
        visible=labelled.copy() if visible is None else visible,
        box=np.full((count, 4), np.nan, np.float32) if box is None else np.asarray(box, np.float32),
        group=image if group is None else np.asarray(group, str),
        split=np.asarray(split, str),
        name=name,
        image=image,
        subsets=subsets or {},
        read_image=read_image,
        published=digest_rows(*published),
        version=version,
    )
    try:
        return check_faces(leave_out(table, {**faults, **(bad or {})}, strict), strict)
    except UserError as error:
        raise UserError(f"{root}: {error}") from error


def check_faces(table: FaceTable, strict: bool) -> FaceTable:
    """Leave out the faces that no model should be trained on, each with its reason.

    A fault is a point that is not finite, no labelled point (save in the part ``unlabelled``), a labelled extent of no
    size (save of two points with a box), or a box of no size, as one far out comes to have by rounding.

    Raises:
        UserError: `strict`, or the fault lies in a test part (a test score must not depend on what could be read),
            or no face is left.
    """
    finite = np.isfinite(table.points).all(-1) | ~table.labelled
    extent = np.nan_to_num(table.tight[:, 2:] - table.tight[:, :2])
    sized = np.isfinite(table.box).all(1) & (table.box[:, 2:] > table.box[:, :2]).all(1)
    level = sized & (extent > 0).any(1) & (table.labelled.sum(1) == 2)  # such as two eyes at one height
    reasons = (
        (~finite.all(1), "a point is not a finite number"),
        (~table.labelled.any(1) & (table.split != UNLABELLED), "no point has a label"),
        ((extent <= 0).any(1) & (table.labelled.sum(1) > 1) & ~level, "its points span no area"),
        (~sized & ~np.isnan(table.box).all(1), "its box has no size"),
    )
    bad: dict[int, str] = {}
    for mask, reason in reasons:
        for i in np.flatnonzero(mask):
            bad.setdefault(int(i), reason)
    return leave_out(table, bad, strict)


def leave_out(table: FaceTable, bad: Mapping[int, str], strict: bool) -> FaceTable:
    """The table without the faces `bad` (index -> reason), or a stop (see `check_faces`)."""
    faults = [Fault(str(table.name[i]), reason) for i, reason in sorted(bad.items())]
    for i, fault in zip(sorted(bad), faults, strict=True):
        if strict:
            raise UserError(f"{fault}; fix it or leave data.strict=false to skip and count such faces")
        if table.split[i] == "test":
            raise UserError(f"{fault}; it is a test face, and a test set is never scored in part: fix the file")
    if bad:
        keep = np.setdiff1d(np.arange(len(table)), list(bad))
        table = dataclasses.replace(table.take(keep), faults=(*table.faults, *faults))
    if not len(table):
        first = table.faults[0] if table.faults else "empty set"
        raise UserError(f"no usable face is left of {len(table.faults)}; the first fault: {first}")
    return table
