"""iBUG 300-W by its .pts files (https://ibug.doc.ic.ac.uk/resources/300-W/), and what its two forms share.

Under the root lie ``afw/``, ``helen/{trainset,testset}/``, ``lfpw/{trainset,testset}/``, ``ibug/`` and, for
the private test, ``300w/{01_Indoor,02_Outdoor}/``: images, each with a text file of the same stem next to
it. The text gives a version, a count and, in braces, one point a line, counted from 1 as Matlab does. Some
copies lack all but the points.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from flr.data.formats.pts import pair_files, read_pair
from flr.data.formats.records import FaceRecord, box_edges, columns_of, no_labels, portable
from flr.data.table import FaceTable, make_table
from flr.errors import UserError
from flr.landmarks.scheme import IBUG68

MIRROR = "_mirror"  # dlib's copy of the set carries a mirrored image of every face under this suffix


class Part(NamedTuple):
    """One folder of the set.

    Attributes:
        name: its subset's name.
        split: ``train`` or ``test``.
        total: its official count of faces.
        folders: where under the root it can lie; the first place is the one that names say.
    """

    name: str
    split: str
    total: int
    folders: tuple[str, ...]


PARTS = (
    Part("afw", "train", 337, ("afw",)),
    Part("helen_train", "train", 2000, ("helen/trainset",)),
    Part("lfpw_train", "train", 811, ("lfpw/trainset",)),
    Part("helen_test", "test", 330, ("helen/testset",)),
    Part("lfpw_test", "test", 224, ("lfpw/testset",)),
    Part("ibug", "test", 135, ("ibug",)),
    Part("indoor", "test", 300, ("300w/01_Indoor", "300W/01_Indoor", "01_Indoor")),
    Part("outdoor", "test", 300, ("300w/02_Outdoor", "300W/02_Outdoor", "02_Outdoor")),
)
PRIVATE = ("indoor", "outdoor")
UNIONS = {
    "common": ("helen_test", "lfpw_test"),
    "challenging": ("ibug",),
    "full": ("helen_test", "lfpw_test", "ibug"),
    "private": PRIVATE,
}


def read(root: Path, strict: bool = False) -> FaceTable:
    """300-W by .pts, of whatever folders are there.

    `form` is ``ibug`` for the whole public protocol (3148 + 689 faces), ``ibug+private`` with the 600
    private ones as well, and else it lists what is there, train parts before test parts, with the count of
    each part that is not whole: ``ibug[afw+helen_train:872|helen_test]``. Mirrored copies (stem ends with
    ``_mirror``) are no part of 300-W and are passed over. An image without a .pts is a fault, and so is a
    .pts without an image.
    """
    try:
        faces = [face for part in PARTS for face in _faces(root, part)]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); let it be read") from error
    if not faces:
        found = "none of 300-W's images is in it" if root.is_dir() else "there is no such folder"
        places = " ".join(f"{part.folders[0]}/" for part in PARTS)
        raise UserError(
            f"{root}: {found}; looked there for {places}; get 300-W "
            "(https://ibug.doc.ic.ac.uk/resources/300-W/), unpack its parts so that this folder holds afw/ "
            "helen/ lfpw/ ibug/, and set data.root=DIR or the variable FLR_DATA"
        )
    table = to_table(faces, root, strict, first_pixel=1)
    return dataclasses.replace(table, form=_form(table.subsets))


def _faces(root: Path, part: Part) -> Iterator[FaceRecord]:
    folder = next((root / place for place in part.folders if (root / place).is_dir()), None)
    if folder is None:
        return
    for images, labels in pair_files(folder):
        name = f"{part.folders[0]}/{portable((images or labels)[0].name)}"
        if not PurePosixPath(name).stem.endswith(MIRROR):
            points, fault = read_pair(images, labels, len(IBUG68))
            _, hidden, box = no_labels(len(IBUG68))
            image = images[0].relative_to(root).as_posix() if images else ""
            yield FaceRecord(name, image, part.split, points, hidden, box, photo(name), name, fault=fault)


def part_of(file: str) -> Part | None:
    """The part in whose folder a file (its path under the root) lies."""
    parent = PurePosixPath(file).parent
    return next((part for part in PARTS if str(parent) in part.folders), None)


def photo(file: str) -> str:
    """The group of a file (its path under the root).

    In afw and helen several faces can be cut from one photo, whose name ends at the last ``_``.
    """
    path = PurePosixPath(file)
    stem = path.stem
    if path.parts[0] in ("afw", "helen"):
        stem = stem.rpartition("_")[0] or stem
    return str(path.parent / stem)


def subset_columns(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Subset -> (N,) bool: each part that any of the N faces lies in, and each union whose parts are all there."""
    parts = [part_of(name) for name in names]
    part = np.array([part.name if part else "" for part in parts])
    columns = {each.name: part == each.name for each in PARTS}
    columns |= {
        union: np.isin(part, members)
        for union, members in UNIONS.items()
        if all(columns[member].any() for member in members)  # a part of `full` must not be quoted as `full`
    }
    return {name: column for name, column in columns.items() if column.any()}


def to_table(faces: Sequence[FaceRecord], root: Path, strict: bool, first_pixel: int, form: str = "") -> FaceTable:
    """The table of those faces, less the faulty ones; `root` is named where that stops.

    Args:
        faces: N of them.
        root: the dataset's folder.
        strict: stop at the first fault of a face.
        first_pixel: the coordinate of the first pixel's centre in these files.
        form: of the table.

    Raises:
        UserError: see `flr.data.table.check_faces`.
    """
    read = columns_of(faces, len(IBUG68))
    table = make_table(
        form, IBUG68, root, read.image, read.points - first_pixel, read.split, published=(read.points, read.box), strict=strict,
        labelled=np.ones(read.points.shape[:2], bool), box=box_edges(read.box), group=read.group, name=read.name,
        bad=read.faults,
    )  # fmt: skip
    return dataclasses.replace(table, subsets=subset_columns(table.name.tolist()))


def _form(subsets: Mapping[str, np.ndarray]) -> str:
    """The form's name by what was kept of each part."""
    count = {part.name: int(subsets[part.name].sum()) for part in PARTS if part.name in subsets}
    total = {part.name: part.total for part in PARTS}
    if count == total:
        return "ibug+private"
    if count == {name: total[name] for name in total if name not in PRIVATE}:
        return "ibug"
    sides = []
    for split in ("train", "test"):
        names = [part.name for part in PARTS if part.split == split and part.name in count]
        words = [name if count[name] == total[name] else f"{name}:{count[name]}" for name in names]
        sides.append("+".join(words) or "none")
    return f"ibug[{'|'.join(sides)}]"
