"""COFW (Burgos-Artizzu et al. 2013, https://data.caltech.edu/records/20099): 29 points and whether each is occluded.

Under the root lie ``COFW_train_color.mat`` and ``COFW_test_color.mat``, or ``COFW_train.mat`` and ``COFW_test.mat``
with grey images. They are Matlab 7.3 files, that is HDF5, where Matlab's arrays stand with their axes reversed:
``IsTr`` (``IsT`` in the test file) are (1, N) references to uint8 images (3, W, H) or (W, H); ``phisTr`` is (87, N),
29 times x, 29 times y and 29 times 1 for an occluded point; ``bboxesTr`` is (4, N), x, y, width and height. All count
from 1. The first 845 of the 1345 training faces are LFPW's.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flr import MAX_PIXELS
from flr.data.readers.published import with_counts
from flr.data.table import FaceTable, make_table
from flr.errors import UserError
from flr.landmarks.scheme import COFW29

SITE = "https://data.caltech.edu/records/20099"
FORMS = {"cofw": "_color", "cofw_grey": ""}
ENDING = {"train": "Tr", "test": "T"}  # of the arrays' names
TOTAL = {"train": 1345, "test": 507}
MAX_FACES = 100_000
FARTHEST = 1e9  # pixels
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, OverflowError)  # as h5py tells of it


def read(root: Path, strict: bool = False) -> FaceTable:
    """Read COFW as published, in colour if both forms exist. A face is named by its part and number, ``test/0001``.

    An occluded point is labelled and not visible; the subset ``occlusion`` has the faces with such a point. Each image
    is its own group. `form` is ``cofw`` or ``cofw_grey``, with the counts if they are not the official ones:
    ``cofw[train:1300|test:507]``.
    """
    form, files = _find(root)
    parts, faults = zip(*(_read_part(path, split) for split, path in files.items()), strict=True)
    name, numbers, size, version = map(np.concatenate, zip(*parts, strict=True))
    x, y, flags, box = np.split(numbers, [29, 58, 87], axis=1)
    hidden: np.ndarray = flags >= 0.5
    sized = np.isfinite(box).all(1) & (box[:, 2:] > 0).all(1)
    bad = dict.fromkeys(np.flatnonzero(~sized).tolist(), "its box has no size")
    wrong = ~((flags >= 0) & (flags <= 1)).all(1)
    bad |= dict.fromkeys(np.flatnonzero(wrong).tolist(), "an occlusion is not between 0 and 1")
    unreadable = faults[0] | faults[1]
    bad |= {i: unreadable[face] for i, face in enumerate(name.tolist()) if face in unreadable}
    table = make_table(
        form, COFW29, root, name, np.stack([x, y], -1) - 1, np.char.partition(name, "/")[:, 0], published=(numbers, size),
        strict=strict, labelled=np.ones(hidden.shape, bool), visible=~hidden, bad=bad, subsets={"occlusion": hidden.max(1)},
        # The first pixel that a box covers is its x - 1 counted from 0, and its edge half a pixel before that.
        box=np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1) - 1.5,
        read_image=partial(_read_image, files), version=version,
    )  # fmt: skip
    return with_counts(table, TOTAL)


def _find(root: Path) -> tuple[str, dict[str, Path]]:
    """Return the form whose two files exist, and part -> file."""
    for form in FORMS:
        files = _files(root, form)
        if all(os.path.lexists(path) for path in files.values()):
            return form, files
    found = "COFW_train_color.mat and COFW_test_color.mat are not both in it"
    raise UserError(
        f"{root}: {found if root.is_dir() else 'there is no such folder'}; looked there also for COFW_train.mat and "
        f"COFW_test.mat; get COFW_color.zip ({SITE}), unpack it so that this folder holds the first two, and set "
        "data.root=DIR or the variable FLR_DATA"
    )


def _files(root: Path, form: str) -> dict[str, Path]:
    """Part -> file."""
    return {split: root / f"COFW_{split}{FORMS[form]}.mat" for split in ENDING}


def _read_image(files: Mapping[str, Path], name: str) -> np.ndarray:
    """Return the image (H, W) grey or (H, W, 3) RGB, uint8, of a face, by its name.

    Each call opens the file anew, so that several threads may call at once.

    Raises:
        UserError: the file cannot be read, or gives no such image.
    """
    split, _, number = name.partition("/")
    with _opened(files[split]) as file:
        array = _image_array(file, _references(file, split)[int(number) - 1])
        return np.ascontiguousarray(array[()].T)


def _read_part(path: Path, split: str) -> tuple[list[np.ndarray], dict[str, str]]:
    """Read the N faces of one file.

    Returns:
        (N,) names; (N, 91) float64, the numbers of ``phis`` and ``bboxes``; (N,) bytes of an image's pixels; (N,) when the file
        was changed. And name -> what is wrong with the image.
    """
    with _opened(path) as file:
        references = _references(file, split)
        count = len(references)
        name = np.array([f"{split}/{i + 1:04d}" for i in range(count)])
        numbers = [
            _numbers(file, f"phis{ENDING[split]}", (87, count)),
            _numbers(file, f"bboxes{ENDING[split]}", (4, count)),
        ]
        size, faults = np.zeros(count, np.int64), {}
        for i, reference in enumerate(references):
            try:
                size[i] = _image_array(file, reference).size
            except DAMAGE as error:
                faults[str(name[i])] = f"{path.name}: {error}"
        return [name, np.concatenate(numbers).T, size, np.full(count, path.stat().st_mtime_ns)], faults


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The h5py.File.

    Raises:
        UserError: it is none, or what is done inside the ``with`` meets a damage.
    """
    if not path.is_file():
        raise UserError(f"{path}: is not a file; fetch it again")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except DAMAGE as error:
        raise UserError(
            f"{path}: cannot be read as Matlab 7.3, which is HDF5 ({str(error)[:200]}); fetch it again, or load it in "
            "Matlab and save it with '-v7.3'"
        ) from error


def _array(file: Any, name: str, limit: int) -> Any:
    """The h5py.Dataset of that name (see `_checked`); a link to it, which may lead to any file, is not followed.

    Raises:
        ValueError: there is none.
    """
    links, key = file.id.links, name.encode()
    if not links.exists(key) or links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"it holds no array {name}")
    return _checked(file[name], name, limit)


def _checked(array: Any, what: str, limit: int) -> Any:
    """An object of the file, once it is sure to be an array that lies in this file and has at most `limit` elements.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(array, h5py.Dataset) or array.shape is None:
        raise ValueError(f"{what} is not an array")
    if array.external or array.is_virtual:
        raise ValueError(f"{what} keeps its values in another file")
    if max(math.prod(array.shape), math.prod(array.chunks or ())) > limit:
        raise ValueError(f"{what} claims {' x '.join(map(str, array.shape))} elements")
    return array


def _references(file: Any, split: str) -> np.ndarray:
    """(N,) the references to the images.

    Raises:
        ValueError: there are none.
    """
    name = f"Is{ENDING[split]}"
    array = _array(file, name, MAX_FACES)
    if h5py.check_ref_dtype(array.dtype) is not h5py.Reference or not array.size:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not references to images")
    return array[()].ravel()


def _numbers(file: Any, name: str, shape: tuple[int, int]) -> np.ndarray:
    """`shape` float64, NaN where a number is not one that an image's coordinate could be.

    Raises:
        ValueError: the array is another.
    """
    array = _array(file, name, 87 * MAX_FACES)
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not numbers {shape}")
    numbers = array[()].astype(np.float64)
    return np.where(np.abs(numbers) < FARTHEST, numbers, np.nan)


def _image_array(file: Any, reference: Any) -> Any:
    """The h5py.Dataset of an image, (W, H) or (3, W, H) uint8; its pixels are not read yet.

    Raises:
        ValueError: it is something else.
    """
    if not reference:
        raise ValueError("its image is a reference to nothing")
    array = _checked(file[reference], "its image", 3 * MAX_PIXELS)
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) not in (2, 3) or shape[:-2] not in ((), (3,)) or 0 in shape:
        raise ValueError(f"its image is {array.dtype} {shape}, not uint8 (W, H) or (3, W, H)")
    return array
