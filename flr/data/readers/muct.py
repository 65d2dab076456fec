"""Fifteen points: Kaggle's Facial Keypoints Detection table, also passed on as "cleaned MUCT", and MUCT itself.

- Kaggle's form (https://www.kaggle.com/c/facial-keypoints-detection/data): ``training.csv`` with 30 coordinates and
  the 96 x 96 grey pixels of 7049 faces, and ``test.csv`` with the pixels of 1783 to be labelled, of which
  ``IdLookupTable.csv`` says what is asked. Coordinates are "in the space of pixel indices": 0-based pixel centres. A
  missing point is an empty cell. The first 2284 rows and the later ones were labelled by different rules, the later
  ones at four points or fewer.
- MUCT (Milborrow, Morkel and Nicolls 2010, http://www.milbo.org/muct/): ``muct76-opencv.csv``, 76 points a face, and
  ``jpg/``, 480 x 640 pixels, five cameras. Its rows ``ir...`` are the rows ``i...`` at 479 - x, so its coordinates are
  0-based pixel centres too. A point behind the nose or the cheek, (0, 0), has no label.
"""

import csv
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from flr.data.formats.text import Sheet, read_sheet, refuse_foreign
from flr.data.table import UNLABELLED, FaceTable, check_faces, digest_rows, from_files, leave_out
from flr.errors import UserError, nearest
from flr.files import writing
from flr.landmarks.geometry import tight_box
from flr.landmarks.scheme import KAGGLE15, MUCT76

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

LANDMARKS = ("muct76-opencv.csv", "muct-landmarks/muct76-opencv.csv")  # the latter as its archive unpacks
COLUMNS_76 = tuple(f"{axis}{k:02d}" for k in range(len(MUCT76)) for axis in "xy")
_NAME = re.compile(r"ir?(\d{3})[q-z][a-e]-[fm][a-z0-9]")  # mirrored, subject, lighting, camera, sex, glasses
_TURNED = "mirrored:"

GET = (
    f"get {TRAINING}, {TEST} and {LOOKUP} from https://www.kaggle.com/c/facial-keypoints-detection/data (needs a login; "
    "unpack the .zip files), or jpg/ and muct-landmarks/ from the archives at "
    "https://github.com/StephenMilborrow/muct (for research; its README says which faces may be shown), put them into "
    "this folder and set data.root=DIR or the variable FLR_DATA"
)


def read(
    root: Path | None, strict: bool = False, points: Literal[15, 76] = 15, mirrored: bool = False,
    answers: bool | None = None,
) -> FaceTable:  # fmt: skip
    """Kaggle's table or MUCT, whichever lies under `root`; `form` says which.

    Kaggle's form is ``muct_csv``. A training face is ``training.csv#ROW``, each its own group since no subject is
    known; a face of ``test.csv`` is ``test.csv#IMAGEID``, in the part ``unlabelled``. The box is the whole picture.
    Where the test's labels are known, in an ``answers.csv`` of RowId and Location, those faces are the part ``test``
    and the form is ``muct_csv+answers``; Kaggle has never published such a file.

    MUCT's form is ``muct76``, or ``muct76+mirrored``. The group is the subject (247 and 248 are twins). The box is
    the tight box of all labelled points grown by a quarter, about as Kaggle's pictures are framed. All faces are
    training faces: neither form has a test part of its own.

    The subset ``complete`` holds the faces whose every point is labelled: 2140 of Kaggle's, 3063 of MUCT's.

    Args:
        root: the folder that holds either form.
        strict: stop at the first fault of a face.
        points: 15 in Kaggle's order, or, in MUCT's form, all 76 of `MUCT76`.
        mirrored: keep MUCT's mirrored rows, whose pictures are those of the others, turned round when loaded.
        answers: whether to use ``answers.csv``; None where it is there.

    Raises:
        UserError: neither form is there or both are; a file that is no such table; or a faulty face where one must
            stop (see `flr.data.table.check_faces`).
    """
    if root is None:
        raise UserError("data.root is null; set data.root=DIR")
    found = [place for place in (TRAINING, *LANDMARKS) if os.path.exists(root / place)]
    if not found:
        raise UserError(_nothing(root))
    if TRAINING in found:
        if len(found) > 1:
            raise UserError(
                f"{root}: holds both {TRAINING} (Kaggle's form) and {found[1]} (Milborrow's), which are two protocols; "
                "put one of them into a folder of its own and name the other's: data.root=DIR"
            )
        if points != len(KAGGLE15) or mirrored:
            raise UserError(
                f"{root / TRAINING}: Kaggle's form has 15 points and no mirrored rows; set data.reader.points=15 "
                "data.reader.mirrored=false"
            )
        return _read_kaggle(root, strict, answers)
    if answers:
        raise UserError(f"{root / found[0]}: MUCT's own form has no {ANSWERS}; set data.reader.answers=null")
    return _read_muct(root, found[0], strict, points, mirrored)


def _nothing(root: Path) -> str:
    """What to say where neither form is there."""
    if not root.is_dir():
        return f"{root}: there is no such folder; {GET}"
    for place in (TRAINING, *LANDMARKS):
        for path in sorted(root.glob(f"*/{place}")):
            folder = root / path.relative_to(root).parts[0]
            return f"{root}: {place} lies one folder deeper; set data.root={folder}"
    return f"{root}: neither {TRAINING} nor {LANDMARKS[0]} is in it; {GET}"


# -- Kaggle's form -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cells:
    """Pictures that are the ``Image`` cells of tables.

    Attributes:
        places: a picture's name -> its table, and the first byte and the number of bytes of its cell.
    """

    places: Mapping[str, tuple[Path, int, int]]

    def __call__(self, name: str) -> np.ndarray:
        """The pixels (96, 96) uint8, by a file handle of this call's own: processes may load at the same time.

        Raises:
            UserError: the cell does not hold 96 x 96 whole numbers from 0 to 255.
        """
        path, start, length = self.places[name]
        try:
            with path.open("rb") as stream:
                stream.seek(start)
                cell = stream.read(length)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); mend it or fetch it again") from error
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


def _read_kaggle(root: Path, strict: bool, answers: bool | None) -> FaceTable:
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
    names = np.array(name)
    _, first = np.unique(names, return_index=True)
    bad |= dict.fromkeys(np.setdiff1d(np.arange(len(names)), first).tolist(), "it is listed twice")
    labelled = np.isfinite(points).all(-1)
    changed = {path: path.stat().st_mtime_ns for path in set(source)}
    places: dict[str, tuple[Path, int, int]] = {}
    for each, path, (at, size) in zip(name, source, cells.tolist(), strict=True):
        places.setdefault(each, (path, at, size))  # of two rows of one name the first is kept
    table = FaceTable(
        form="muct_csv+answers" if answers else "muct_csv",
        scheme=KAGGLE15,
        points=points.astype(np.float32),
        labelled=labelled,
        visible=labelled.copy(),
        box=np.tile(np.array([-0.5, -0.5, SIDE - 0.5, SIDE - 0.5], np.float32), (len(names), 1)),
        group=names,
        split=np.array(split),
        name=names,
        image=names,
        subsets={"complete": labelled.all(1)},
        pictures=Cells(places),
        published=digest_rows(points, cells[:, 1]),
        version=np.array([changed[path] for path in source], np.int64),
    )
    try:
        return check_faces(leave_out(table, bad, strict), strict)
    except UserError as error:
        raise UserError(f"{root}: {error}") from error


def _rows(path: Path, columns: Sequence[str]) -> tuple[Sheet, np.ndarray]:
    """The named columns of a table, and where its ``Image`` cells lie, in one pass that keeps no pixel.

    Returns:
        The sheet of those columns, and (N, 2) int64 the first byte and the number of bytes of each row's pixels.

    Raises:
        UserError: it cannot be read, is no such table, or a row has another number of cells than the first.
    """
    rows, lines, cells = [], [], []
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file, or none that is plain; {GET}")
        with path.open("rb", buffering=2**20) as stream:
            head = stream.readline(LONGEST_ROW)
            refuse_foreign(path, head)
            mark = next((mark for mark in (b",", b";", b"\t") if mark in head), b",")
            header = Sheet(path, [_plain(cell) for cell in head.removeprefix(b"\xef\xbb\xbf").split(mark)], [], [], {})
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
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend it or fetch it again") from error
    if not rows:
        raise UserError(f"{path}: no row in it; fetch it again")
    return Sheet(path, list(columns), rows, lines, {}), np.array(cells, np.int64)


def _plain(cell: bytes) -> str:
    return cell.strip(b' "\t\r\n').decode("utf-8", "backslashreplace")


def _image(image_id: str) -> str:
    """The name of the picture of test.csv with that ImageId.

    Raises:
        ValueError: it is no whole number.
    """
    if not (image_id.isdecimal() and len(image_id) < 10):
        raise ValueError(f"its ImageId '{image_id[:40]}' is no whole number")
    return f"{TEST}#{int(image_id)}"


def _lookup(path: Path) -> list[tuple[str, str, int]]:
    """What Kaggle asks for, in its order: RowId, the picture's name, and which of `FEATURES`.

    Raises:
        UserError: it cannot be read or is no such table.
    """
    sheet = _whole(path)
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


def _whole(path: Path) -> Sheet:
    """`read_sheet` of a file in which every row counts."""
    sheet = read_sheet(path)
    for reason in sheet.ragged.values():
        raise UserError(f"{path}: {reason}; fetch it again")
    return sheet


def _answers(root: Path, names: Sequence[str]) -> np.ndarray:
    """(N, 15, 2) the points of test pictures by answers.csv and the lookup table; NaN where that does not ask."""
    sheet = _whole(root / ANSWERS)
    values, bad = sheet.numbers(["Location"])
    for reason in bad.values():
        raise UserError(f"{root}: {reason}; mend it")
    location = dict(zip(sheet.text("RowId"), values[:, 0].tolist(), strict=True))
    place = {name: i for i, name in enumerate(names)}
    points = np.full((len(names), len(FEATURES)), np.nan)
    for row, name, feature in _lookup(root / LOOKUP):
        if not np.isfinite(location.get(row, np.nan)) or name not in place:
            raise UserError(
                f"{root / LOOKUP}: RowId {row} has no Location in {ANSWERS}, or no picture in {TEST}; mend it"
            )
        points[place[name], feature] = location[row]
    return points.reshape(len(names), len(KAGGLE15), 2)


def write_submission(path: Path, root: Path, names: Sequence[str], points: np.ndarray) -> None:
    """Write what Kaggle takes: the columns RowId and Location of ``IdLookupTable.csv``, in its order.

    Args:
        path: the file to write; it becomes visible whole.
        root: the folder that holds ``IdLookupTable.csv``.
        names: N faces, among them all that it asks for: ``test.csv#IMAGEID``.
        points: (N, 15, 2) predicted, pixels of the 96 x 96 pictures; clipped to 0..96.

    Raises:
        UserError: the table cannot be read; or a face that it asks for is not there, or is no finite number.
    """
    lookup = _lookup(root / LOOKUP)
    place = {name: i for i, name in enumerate(names)}
    absent = [name for _, name, _ in lookup if name not in place]
    if absent:
        raise UserError(
            f"{root / LOOKUP}: asks for {len(set(absent))} faces without a prediction, the first {absent[0]}; "
            f"predict all of {TEST}"
        )
    values = np.reshape(points, (len(names), len(FEATURES)))[
        [place[name] for _, name, _ in lookup], [feature for _, _, feature in lookup]
    ]
    if not np.isfinite(values).all():
        _, name, feature = lookup[int(np.argmin(np.isfinite(values)))]
        raise UserError(f"{name}: the prediction of {FEATURES[feature]} is no finite number; nothing was written")
    with writing(path) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["RowId", "Location"])
        writer.writerows((row, f"{v:.6f}") for (row, _, _), v in zip(lookup, np.clip(values, 0, SIDE), strict=True))


# -- Milborrow's form --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mirrorable:
    """Pictures of which some are wanted as in a mirror."""

    pictures: Callable[[str], np.ndarray]

    def __call__(self, name: str) -> np.ndarray:
        """The pixels (see `flr.data.table.read_image`)."""
        image = self.pictures(name.removeprefix(_TURNED))
        return np.ascontiguousarray(image[:, ::-1]) if name.startswith(_TURNED) else image


def read_landmarks(path: Path, mirrored: bool = False) -> tuple[list[str], np.ndarray, dict[int, str]]:
    """The rows of MUCT's own table.

    Copies of its first 68 points are passed on too: the last eight, more points of the eyelids, can be lacking.

    Args:
        path: ``muct76-opencv.csv``.
        mirrored: whether to keep the rows ``ir...``.

    Returns:
        N names; (N, 76 or 68, 2) float64 points, NaN where one has no label; and row -> what is wrong with it.

    Raises:
        UserError: it cannot be read or is no such table.
    """
    sheet = _whole(path)
    names = sheet.text("name")
    keep = [i for i, name in enumerate(names) if mirrored or not name.startswith("ir")]
    names = [names[i] for i in keep]
    sheet = dataclasses.replace(sheet, rows=[sheet.rows[i] for i in keep], lines=[sheet.lines[i] for i in keep])
    lid = COLUMNS_76[2 * 68 :]
    values, bad = sheet.numbers(COLUMNS_76 if set(lid) & set(sheet.columns) else COLUMNS_76[: -len(lid)])
    for i, name in enumerate(names):
        if not _NAME.fullmatch(name):
            bad[i] = f"{path.name} line {sheet.lines[i]}: its name is not of the form i000qa-fn"
    points = values.reshape(len(names), values.shape[1] // 2, 2)
    return names, np.where((points == 0).all(-1, keepdims=True), np.nan, points), bad


def _read_muct(root: Path, place: str, strict: bool, count: Literal[15, 76], mirrored: bool) -> FaceTable:
    names, given, bad = read_landmarks(root / place, mirrored)
    if count > given.shape[1]:
        raise UserError(
            f"{root / place}: gives {given.shape[1]} points a face, not {count}; fetch it from "
            "https://github.com/StephenMilborrow/muct or set data.reader.points=15"
        )
    if not (root / "jpg").is_dir():
        raise UserError(
            f"{root}: holds {place} but no folder jpg/; unpack muct-a-jpg-v1.tar.gz to muct-e-jpg-v1.tar.gz of "
            "https://github.com/StephenMilborrow/muct there"
        )
    points = np.full((len(names), len(MUCT76), 2), np.nan)
    points[:, : given.shape[1]] = given
    labelled, published = np.isfinite(points).all(-1), points
    tight = tight_box(points, labelled)
    grow = (tight[:, 2:] - tight[:, :2]) / 8
    scheme = KAGGLE15 if count == len(KAGGLE15) else MUCT76
    points, labelled = MUCT76.reduce(points, scheme.name), MUCT76.reduce(labelled, scheme.name)
    subjects = [match[1] if (match := _NAME.fullmatch(name)) else "" for name in names]
    table = from_files(
        "muct76+mirrored" if mirrored else "muct76", scheme, root,
        [f"jpg/i{name.removeprefix('ir').removeprefix('i')}.jpg" for name in names], points, ["train"] * len(names),
        published=(published,), strict=strict, labelled=labelled, box=np.concatenate([tight[:, :2] - grow, tight[:, 2:] + grow], -1),
        group=subjects, name=names, subsets={"complete": labelled.all(1)}, bad=bad,
    )  # fmt: skip
    turned = np.char.startswith(table.name, "ir")
    image = np.where(turned, np.char.add(_TURNED, table.image), table.image)
    reductions = () if scheme is MUCT76 else (f"{MUCT76.name}>{scheme.name}",)
    return dataclasses.replace(table, image=image, pictures=Mirrorable(table.pictures), reductions=reductions)
