"""AFLW (Koestinger et al. 2011, https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/aflw/): 19 points.

The points are those of Zhu et al. (2016, http://mmlab.ie.cuhk.edu.hk/projects/compositional.html), which the field reports on:
``AFLWinfo_release.mat`` in the root has ``nameList`` (N, 1), paths of images; ``data`` (N, 38), 19 times x, then 19 times y;
``mask_new`` (N, 19), 1 for a point that can be seen; ``bbox`` (N, 4), left, right, top and bottom; and ``ra``, an order that
counts from 1, whose first 20,000 faces are for training. The images are AFLW's own, in ``flickr/{0,2,3}/``. Numbers are read
unchanged.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from flr.data.formats.mat import read_mat
from flr.data.formats.text import MAX_NUMBER
from flr.data.readers.published import require, with_counts
from flr.data.table import FaceTable, make_table
from flr.errors import UserError
from flr.landmarks.scheme import AFLW19

SITE = "https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/aflw/"
LABELS, POINTS = "AFLWinfo_release.mat", "http://mmlab.ie.cuhk.edu.hk/projects/compositional.html"
IMAGE_FOLDERS = ("flickr", "data/flickr", "aflw/data/flickr", "images", ".")  # where the folders 0, 2 and 3 may be
TRAINING = 20_000  # faces
TOTAL = {"train": 20_000, "test": 4386}
LARGEST = 1 << 28  # bytes
# The array's name -> its columns.
COLUMNS = {"data": 38, "mask_new": 19, "bbox": 4}


def read(root: Path, strict: bool = False) -> FaceTable:
    """Read AFLW with 19 points. The subset ``frontal`` has the faces whose points can all be seen, as papers report it.

    A face is named by its image and its number among that image's faces; `group` is the image. `form` is ``aflw``, with the
    counts if they are not the official ones.
    """
    get = f"get AFLW's images ({SITE}; for research) and {LABELS} ({POINTS}), unpack them so that this folder holds {LABELS} and flickr/"
    require(root, [LABELS], get)
    arrays, names = _load(root / LABELS)
    folder = next(
        (place for place in IMAGE_FOLDERS if any((root / place / part).is_dir() for part in "023")), IMAGE_FOLDERS[0]
    )
    points = arrays["data"].reshape(-1, 2, len(AFLW19)).transpose(0, 2, 1)
    labelled = np.isfinite(points).all(-1) & ~np.isin(points, (0, -1)).all(-1)
    left, right, top, bottom = arrays["bbox"].T
    number: Counter[str] = Counter()
    faces = []
    for name in names:
        number[name] += 1
        faces.append(f"{name}#{number[name]}")
    split = np.full(len(names), "test", "<U5")
    split[arrays["ra"][:TRAINING]] = "train"
    visible = labelled & (arrays["mask_new"] == 1)
    table = make_table(
        "aflw", AFLW19, root, [f"{folder}/{name}" if folder != "." else name for name in names],
        np.where(labelled[..., None], points, np.nan), split, published=(arrays["data"], arrays["mask_new"], arrays["bbox"]),
        strict=strict, labelled=labelled, visible=visible, box=np.stack([left, top, right, bottom], 1), group=names, name=faces,
        subsets={"frontal": visible.all(1)},
    )  # fmt: skip
    return with_counts(table, TOTAL)


def _load(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the arrays, with ``ra`` counted from 0, and the images' paths."""
    try:
        found = read_mat(path, [*COLUMNS, "nameList", "ra"], LARGEST)
        names = [str(cell.item()) for cell in found["nameList"].ravel()]
        arrays: dict[str, np.ndarray] = {key: np.asarray(found[key], np.float64) for key in COLUMNS}
        arrays["ra"] = np.asarray(found["ra"], np.int64).ravel() - 1
        for key, columns in COLUMNS.items():
            if arrays[key].shape != (len(names), columns):
                raise ValueError(f"{key} is {arrays[key].shape}, not {(len(names), columns)}")
            if (np.abs(arrays[key]) >= MAX_NUMBER).any():
                raise ValueError(f"{key} holds a number that is not below {MAX_NUMBER:g}")
        if sorted(arrays["ra"].tolist()) != list(range(len(names))):
            raise ValueError("ra is not an order of its faces")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); fetch it again") from error
    except Exception as error:  # scipy has no kind of its own for a damaged file
        raise UserError(f"{path}: not {LABELS} ({error!s:.100}); fetch it again from {POINTS}") from error
    return arrays, names
