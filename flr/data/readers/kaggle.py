"""Kaggle's Facial Keypoints Detection table: 15 points, with the pixels of each face in its row (see `flr.data.readers.muct`)."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pandas import DataFrame

from flr.data.formats.text import Sheet, read_sheet, refuse_foreign
from flr.data.table import UNLABELLED, FaceTable, make_table
from flr.errors import UserError, nearest
from flr.landmarks.scheme import KAGGLE15

TRAINING, TEST, LOOKUP, ANSWERS = "training.csv", "test.csv", "IdLookupTable.csv", "answers.csv"

SIDE = 96
FEATURES = tuple(
    f"{point}_{axis}"
    for point in (
        "left_eye_center", "right_eye_center", "left_eye_inner_corner", "left_eye_outer_corner",
        "right_eye_inner_corner", "right_eye_outer_corner", "left_eyebrow_inner_end", "left_eyebrow_outer_end",
        "right_eyebrow_inner_end", "right_eyebrow_outer_end", "nose_tip", "mouth_left_corner", "mouth_right_corner",
        "mouth_center_top_lip", "mouth_center_bottom_lip",
    )
    for axis in "xy"
)  # fmt: skip
LONGEST_ROW = 1_000_000  # bytes; Kaggle's have 36,000
GET = (
    f"get {TRAINING}, {TEST} and {LOOKUP} from https://www.kaggle.com/c/facial-keypoints-detection/data (needs a login; "
    "unpack the .zip files), or jpg/ and muct-landmarks/ from the archives at "
    "https://github.com/StephenMilborrow/muct (for research; its README says which faces may be shown), put them into "
    "this folder and set data.root=DIR or the variable FLR_DATA"
)


def _read_cell(places: Mapping[str, tuple[Path, int, int]], name: str) -> np.ndarray:
    """Return the pixels (96, 96) uint8 of an ``Image`` cell. Each call opens the file, so that several threads may call at once.

    Args:
        places: Name -> its table, and the first byte and the number of bytes of its cell.
        name: Of the image.

    Raises:
        UserError: The cell does not hold 96 x 96 whole numbers from 0 to 255.
    """
    path, start, length = places[name]
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            cell = stream.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix it or fetch it again") from error
    if cell.translate(None, b"0123456789 \t"):
        raise UserError(f"{name}: its Image holds more than whole numbers and blanks; fetch {path} again")
    pixels = np.fromstring(cell, np.int64, sep=" ")
    if len(pixels) != SIDE * SIDE:
        raise UserError(
            f"{name}: its Image holds {len(pixels)} pixels, not {SIDE} x {SIDE}, the one size of this form; "
            f"fetch {path} again"
        )
    if pixels.max() > 255:
        raise UserError(f"{name}: its Image holds a pixel of {pixels.max()}, over 255; fetch {path} again")
    return pixels.reshape(SIDE, SIDE).astype(np.uint8)


def read_kaggle(root: Path, strict: bool, answers: bool | None) -> FaceTable:
    """Read Kaggle's table (see `flr.data.readers.muct.read`)."""
    if answers is None:
        answers = os.path.exists(root / ANSWERS)
    sheet, cells = _rows(root / TRAINING, FEATURES)
    values, bad = sheet.numbers(FEATURES)
    points = values.reshape(-1, len(KAGGLE15), 2)
    name = [f"{TRAINING}#{row}" for row in range(1, len(sheet) + 1)]
    split = ["train"] * len(sheet)
    source = [root / TRAINING] * len(sheet)
    if answers or os.path.exists(root / TEST):
        sheet, test_cells = _rows(root / TEST, ("ImageId",))
        test = []
        for line, text in zip(sheet.lines, sheet.text("ImageId"), strict=True):
            try:
                test.append(_image(text))
            except ValueError as error:
                bad[len(name) + len(test)] = str(error)
                test.append(f"{TEST} line {line}")
        truth = _answers(root, test) if answers else np.full((len(test), len(KAGGLE15), 2), np.nan)
        points, cells = np.concatenate([points, truth]), np.concatenate([cells, test_cells])
        name += test
        split += ["test" if answers else UNLABELLED] * len(test)
        source += [root / TEST] * len(test)
    changed = {path: path.stat().st_mtime_ns for path in set(source)}
    places: dict[str, tuple[Path, int, int]] = {}
    for each, path, (at, size) in zip(name, source, cells.tolist(), strict=True):
        places.setdefault(each, (path, at, size))  # of two rows of one name the first is kept
    return make_table(
        "muct_csv+answers" if answers else "muct_csv", KAGGLE15, root, name, points, split,
        published=(points, cells[:, 1]), strict=strict, bad=bad,
        box=np.tile([-0.5, -0.5, SIDE - 0.5, SIDE - 0.5], (len(name), 1)),
        subsets={"complete": np.isfinite(points).all((1, 2))},
        read_image=partial(_read_cell, places), version=np.array([changed[path] for path in source], np.int64),
    )  # fmt: skip


def _rows(path: Path, columns: Sequence[str]) -> tuple[Sheet, np.ndarray]:
    """Read the named columns of a table and the places of its ``Image`` cells in one pass that keeps no pixel.

    Returns:
        The sheet of those columns, and (N, 2) int64 the first byte and the number of bytes of each row's pixels.

    Raises:
        UserError: It cannot be read, is not such a table, or a row has another number of cells than the first.
    """
    rows, lines, cells = [], [], []
    try:
        if not path.is_file():
            raise UserError(f"{path}: not a regular file; {GET}")
        with path.open("rb", buffering=2**20) as stream:
            head = stream.readline(LONGEST_ROW)
            refuse_foreign(path, head)
            mark = next((mark for mark in (b",", b";", b"\t") if mark in head), b",")
            header = Sheet(
                path, [_plain(cell) for cell in head.removeprefix(b"\xef\xbb\xbf").split(mark)], DataFrame(), []
            )
            places, image = [header.place(column) for column in columns], header.place("Image")
            at = len(head)
            for number, line in enumerate(iter(lambda: stream.readline(LONGEST_ROW), b""), 2):
                if len(line) == LONGEST_ROW:
                    raise UserError(f"{path} line {number}: over {LONGEST_ROW:,} bytes; fetch it again")
                if line.strip():
                    found = line.split(mark)
                    if len(found) != len(header.columns):
                        raise UserError(
                            f"{path} line {number}: {len(found)} cells, not {len(header.columns)}; fetch it again"
                        )
                    rows.append([_plain(found[place]) for place in places])
                    lines.append(number)
                    before = sum(map(len, found[:image])) + image
                    blank = len(found[image]) - len(found[image].lstrip(b' "'))
                    cells.append((at + before + blank, len(found[image].strip(b' "\r\n'))))
                at += len(line)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix it or fetch it again") from error
    if not rows:
        raise UserError(f"{path}: no row in it; fetch it again")
    return Sheet(path, list(columns), DataFrame(rows, dtype=object), lines), np.array(cells, np.int64)


def _plain(cell: bytes) -> str:
    return cell.strip(b' "\t\r\n').decode("utf-8", "backslashreplace")


def _image(image_id: str) -> str:
    """Return the name of the image of test.csv with that ImageId.

    Raises:
        ValueError: It is not a whole number.
    """
    if not (image_id.isdecimal() and len(image_id) < 10):
        raise ValueError(f"its ImageId '{image_id[:40]}' is not a whole number")
    return f"{TEST}#{int(image_id)}"


def _lookup(path: Path) -> list[tuple[str, str, int]]:
    """Return what Kaggle asks for, in its order: RowId, name of the image, and index into `FEATURES`.

    Raises:
        UserError: It cannot be read or is not such a table.
    """
    sheet = read_sheet(path)
    rows = []
    cells = (sheet.text(column) for column in ("RowId", "ImageId", "FeatureName"))
    for line, row, image_id, feature in zip(sheet.lines, *cells, strict=True):
        try:
            name = _image(image_id)
        except ValueError as error:
            raise UserError(f"{path} line {line}: {error}; fetch it again") from error
        if feature not in FEATURES:
            raise UserError(f"{path} line {line}: no feature is named '{feature[:40]}'{nearest(feature, FEATURES)}")
        rows.append((row, name, FEATURES.index(feature)))
    if len({row for row, _, _ in rows}) < len(rows):
        raise UserError(f"{path}: gives a RowId twice; fetch it again")
    return rows


def _answers(root: Path, names: Sequence[str]) -> np.ndarray:
    """Return the (N, 15, 2) points of test images by answers.csv and the lookup table; NaN where that does not ask."""
    sheet = read_sheet(root / ANSWERS)
    values, bad = sheet.numbers(["Location"])
    for reason in bad.values():
        raise UserError(f"{root}: {reason}; fix it")
    location = dict(zip(sheet.text("RowId"), values[:, 0].tolist(), strict=True))
    place = {name: i for i, name in enumerate(names)}
    points = np.full((len(names), len(FEATURES)), np.nan)
    for row, name, feature in _lookup(root / LOOKUP):
        if not np.isfinite(location.get(row, np.nan)) or name not in place:
            raise UserError(f"{root / LOOKUP}: RowId {row} has no Location in {ANSWERS}, or no image in {TEST}; fix it")
        points[place[name], feature] = location[row]
    return points.reshape(len(names), len(KAGGLE15), 2)
