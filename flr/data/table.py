"""The FaceTable: what every reader returns and all that follows reads."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from flr.errors import UserError
from flr.landmarks.geometry import tight_box
from flr.landmarks.scheme import Scheme

MAX_PIXELS = 200_000_000  # a header that claims more is refused before memory is asked for


@dataclass(frozen=True)
class Fault:
    """A face that was left out, and why."""

    face: str
    reason: str

    def __str__(self) -> str:
        return f"{self.face}: {self.reason}"


@dataclass(frozen=True, eq=False)
class FaceTable:
    """Columns over N faces.

    Attributes:
        form: the on-disk form that was read; the first word of the protocol's name.
        scheme: the landmark scheme, K points.
        points: (N, K, 2) float32, original-image pixels.
        labelled: (N, K) bool, whether a point has a label at all. Losses and metrics use these points only.
        visible: (N, K) bool, whether the point can be seen; a hidden point can still be labelled.
        box: (N, 4) float32 left, top, right, bottom: the data set's own box, or NaN where it gives none.
        group: (N,) str, identity, clip or photo: what must not cross from training into validation.
        split: (N,) str, ``train``, ``val`` or ``test``.
        name: (N,) str, unique and free of the data set's place on disk.
        subsets: name -> (N,) bool. Subsets may overlap.
        load: face index -> the whole picture, (H, W) grey or (H, W, 3) RGB, uint8.
        size: (N,) int64, bytes of each face's file (0 where there is none): part of the fingerprint.
        version: (N,) int64, changes when the pixels may have changed, such as a file's time of change. Crops that were
            made of other versions are not used; the fingerprint, which must agree between machines, leaves it out.
        faults: the faces left out so far.
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
    subsets: Mapping[str, np.ndarray]
    load: Callable[[int], np.ndarray]
    size: np.ndarray
    version: np.ndarray
    faults: Sequence[Fault] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.points)

    def take(self, index: np.ndarray) -> "FaceTable":
        """The faces of an index array (or a bool mask), in its order."""
        index = np.arange(len(self))[index]
        load = self.load
        columns = ("points", "labelled", "visible", "box", "group", "split", "name", "size", "version")
        return dataclasses.replace(
            self,
            **{column: getattr(self, column)[index] for column in columns},
            subsets={name: mask[index] for name, mask in self.subsets.items()},
            load=lambda i: load(int(index[i])),
        )

    def reduce(self, to: str, scheme: Scheme) -> "FaceTable":
        """The same faces in a smaller scheme (see `Scheme.reduce`)."""
        reduce = self.scheme.reduce
        return dataclasses.replace(
            self, scheme=scheme, points=reduce(self.points, to),
            labelled=reduce(self.labelled, to), visible=reduce(self.visible, to),
        )  # fmt: skip

    @property
    def tight(self) -> np.ndarray:
        """(N, 4) the tight boxes of the labelled points."""
        return tight_box(self.points, self.labelled)

    def fingerprint(self) -> str:
        """A digest of everything but the pixels and the place on disk: names, labels, splits, file sizes."""
        digest = hashlib.sha256(f"{self.form}\n{self.scheme.name}\n".encode())
        for column in ("points", "labelled", "visible", "box", "size"):
            digest.update(np.ascontiguousarray(getattr(self, column)).tobytes())
        for column in ("name", "group", "split"):
            digest.update("\0".join(getattr(self, column).tolist()).encode())
        for name in sorted(self.subsets):
            digest.update(name.encode() + np.packbits(self.subsets[name]).tobytes())
        return digest.hexdigest()[:16]


def check_faces(table: FaceTable, strict: bool) -> FaceTable:
    """Leave out the faces that no net should learn from, each with its reason.

    A fault is a point that is not finite, no labelled point, or a labelled extent of no size.

    Raises:
        UserError: `strict`, or the fault lies in a test part (a test score must not depend on what could be read),
            or no face is left.
    """
    finite = np.isfinite(table.points).all(-1) | ~table.labelled
    extent = np.nan_to_num(table.tight[:, 2:] - table.tight[:, :2])
    reasons = (
        (~finite.all(1), "a point is not a finite number"),
        (~table.labelled.any(1), "no point has a label"),
        ((extent <= 0).any(1) & (table.labelled.sum(1) > 1), "its points span no area"),
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
            raise UserError(f"{fault}; mend it or leave data.strict=false to skip and count such faces")
        if table.split[i] == "test":
            raise UserError(f"{fault}; it is a test face, and a test set is never scored in part: mend the file")
    if bad:
        keep = np.setdiff1d(np.arange(len(table)), list(bad))
        table = dataclasses.replace(table.take(keep), faults=(*table.faults, *faults))
    if not len(table):
        first = table.faults[0] if table.faults else "empty set"
        raise UserError(f"no usable face is left of {len(table.faults)}; the first fault: {first}")
    return table


def read_image(path: Path) -> np.ndarray:
    """Decode a picture to (H, W) grey or (H, W, 3) RGB uint8, as stored: no EXIF rotation, since labels know none.

    Raises:
        UserError: missing, empty, not a picture, truncated, or a header that claims more than `MAX_PIXELS`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend or fetch the file again") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """As `read_image`, from the file's bytes; `name` is said in the error."""
    if not data:
        raise UserError(f"{name}: empty file; fetch it again")
    if data.lstrip()[:1] == b"<":
        raise UserError(f"{name}: an HTML or XML page, not a picture; fetch it again")
    size = _claimed_size(data)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"{name}: its header claims {size[0]} x {size[1]} pixels, over the limit; fetch it again")
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-4096:]:
        raise UserError(f"{name}: a truncated JPEG; fetch it again")  # OpenCV would fill the rest with grey
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{name}: not a picture that OpenCV can decode; fetch it again")
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _claimed_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) by the header of a PNG or JPEG; None for other kinds."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if data[:2] == b"\xff\xd8":
        at = 2
        while at + 9 < len(data) and data[at] == 0xFF:
            marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
            at += 2 + length
    return None
