"""What a prediction leaves: points as CSV, COCO keypoints and .pts, pictures, crops.

Each picture's faces are a line of ``faces.jsonl`` as soon as they are found, so that a long work goes on after a crash;
the tables are made of it at the end.
"""

import contextlib
import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flr.data.boxes import BoxPolicy
from flr.data.formats.pts import pts_text
from flr.errors import UserError
from flr.files import telling, write_json, writing
from flr.inference.effects import Effect, Mask, apply
from flr.inference.faces import Face
from flr.landmarks.draw import draw_picture
from flr.landmarks.geometry import transform, warp
from flr.landmarks.scheme import Scheme

JOURNAL = "faces.jsonl"
if sys.platform != "win32":
    import fcntl

CROP = 256  # pixels a side of the crops that are kept
END = '{"end": true}'  # the last line of a journal that is finished


class Results:
    """The folder of one prediction.

    Args:
        folder: made where it is not there.
        about: what the points depend on; a folder begun under another is refused.
        scheme: of the points.
        overwrite: whether what is there is thrown away.
        anew: whether what was begun begins again, as a video must, whose faces are known by their past.

    Attributes:
        done: the names of the pictures that are finished.
        faces, empty, skipped: how many there are: faces; pictures without one; pictures that cannot be used.

    Raises:
        UserError: it holds a finished prediction, or one of something else, or another process writes to it.
    """

    def __init__(
        self, folder: Path, about: Mapping[str, Any], scheme: Scheme, overwrite: bool, anew: bool = False
    ) -> None:
        self.folder, self.scheme = folder, scheme
        self.journal = folder / JOURNAL
        self.done: set[str] = set()
        self.faces = self.empty = self.skipped = 0
        if folder.exists() and not (folder.is_dir() and (self.journal.is_file() or not any(folder.iterdir()))):
            raise UserError(f"{folder}: is there and holds something else; set another out=")
        with telling(self.journal):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.journal.open("ab+")
        try:
            self._begin(json.dumps(about, sort_keys=True), overwrite, anew)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, head: str, overwrite: bool, anew: bool) -> None:
        folder = self.folder
        try:
            if sys.platform != "win32":  # Windows has no flock: there nothing refuses a second prediction
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another prediction writes there now; wait for it, or set another out="
            ) from error
        except OSError:
            pass  # a file system without locks
        whole = 0
        if not overwrite:
            try:
                self._file.seek(0)
                data = self._file.read()
                whole = data.rfind(b"\n") + 1  # the last line may have been half written
                lines = data[:whole].decode().splitlines()
                rows = [json.loads(line) for line in lines[1:]]
            except (OSError, ValueError) as error:
                raise UserError(f"{self.journal}: damaged; set overwrite=true or another out=") from error
            if END in lines:
                raise UserError(f"{folder}: holds a finished prediction; set overwrite=true or another out=")
            if anew:
                whole = 0
            elif lines and lines[0] != head:
                raise UserError(
                    f"{folder}: holds what another run, source or detector has begun, or with another save, draw or effect; "
                    "set overwrite=true or another out="
                )
            else:
                for row in rows:
                    self._count(row)
        if overwrite or anew:
            for kind in ("pictures", "crops", "pts", "masks"):
                shutil.rmtree(folder / kind, ignore_errors=True)
            for name in ("points.csv", "points.json"):
                (folder / name).unlink(missing_ok=True)
        with telling(self.journal):
            self._file.truncate(whole)
        if not whole:
            self._write(head)

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what a full disk does not take was told
            self._file.close()

    def _write(self, line: str) -> None:
        with telling(self.journal):
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def add(self, name: str, shape: Sequence[int], faces: Sequence[Face], **more: Any) -> None:
        """The faces of a picture (H, W) that is finished."""
        row = {"image": name, "height": shape[0], "width": shape[1], **more, "faces": [_plain(face) for face in faces]}
        self._line(row)

    def skip(self, name: str, reason: str) -> None:
        """A picture that cannot be used."""
        self._line({"image": name, "skipped": reason, "faces": []})

    def _line(self, row: dict[str, Any]) -> None:
        self._write(json.dumps(row))
        self._count(row)

    def _count(self, row: dict[str, Any]) -> None:
        self.done.add(row["image"])
        self.skipped += "skipped" in row
        self.faces += len(row["faces"])
        self.empty += not row["faces"] and "skipped" not in row

    @property
    def used(self) -> int:
        """Pictures that could be looked at."""
        return len(self.done) - self.skipped

    def told(self) -> str:
        """What came of it, in a line."""
        parts = [f"{self.faces} faces in {self.used} pictures"]
        parts += [f"{self.empty} of them without a face"] * bool(self.empty)
        parts += [f"{self.skipped} pictures skipped"] * bool(self.skipped)
        return ", ".join(parts)

    def rows(self) -> Iterator[dict[str, Any]]:
        """What each picture came to, in their order."""
        with self.journal.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def finish(self, forms: Sequence[str]) -> None:
        """Make the tables, and call it finished."""
        with telling(self.journal):
            self._file.flush()  # a line at which Ctrl-C came
        if "csv" in forms:
            self._csv()
        if "coco" in forms:
            self._coco()
        self._write(END)

    def _csv(self) -> None:
        names = [f"{axis}_{name}" for name in self.scheme.names for axis in "xy"]
        with writing(self.folder / "points.csv") as aside, aside.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "seconds", "face", "score", "doubtful", "left", "top", "right", "bottom", *names])
            for row in self.rows():
                for i, face in enumerate(row["faces"]):
                    number = i if face["identity"] is None else face["identity"]
                    cells = [f"{value:.3f}" for value in (*face["box"], *np.ravel(face["points"]))]
                    sure = f"{face['score']:.4f}", int(face["doubtful"])
                    table.writerow([row["image"], row.get("seconds", ""), number, *sure, *cells])

    def _coco(self) -> None:
        """COCO's keypoints (https://cocodataset.org/#format-data), as `flr.data.readers.table` reads them."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for row in self.rows():
            if "skipped" in row:
                continue
            images.append(
                {"id": len(images) + 1, "file_name": row["image"], "width": row["width"], "height": row["height"]}
            )
            for face in row["faces"]:
                points = np.array(face["points"])
                keypoints = np.concatenate([points, np.full((len(points), 1), 2.0)], 1).round(3).ravel().tolist()
                left, top, right, bottom = face["box"]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": len(images), "category_id": 1, "iscrowd": 0,
                    "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                    "num_keypoints": len(points), "keypoints": keypoints, "score": face["score"],
                    "doubtful": face["doubtful"], "spread": face["spread"],
                    **({"track_id": face["identity"]} if face["identity"] is not None else {}),
                })  # fmt: skip
        category = {
            "id": 1,
            "name": "face",
            "supercategory": "person",
            "keypoints": list(self.scheme.names),
            "skeleton": [],
        }
        write_json(
            self.folder / "points.json", {"images": images, "annotations": annotations, "categories": [category]}
        )

    def keep(
        self, name: str, image: np.ndarray, faces: Sequence[Face], policy: BoxPolicy, forms: Sequence[str],
        effects: Iterable[Effect],
    ) -> None:  # fmt: skip
        """A picture's own files, but for the annotated picture.

        Args:
            name: of the picture.
            image: (H, W) or (H, W, 3) RGB uint8.
            faces: found in it.
            policy: which part round a face is its crop.
            forms: of pts and crops, what is kept.
            effects: of which a `Mask` leaves its label image.
        """
        if "pts" in forms:
            self.pts(name, faces)
        if "crops" in forms:
            for i, face in enumerate(faces):
                affine = policy.crop(face.box, CROP)
                crop = warp(image, affine, (CROP, CROP)).reshape(CROP, CROP, -1)
                self.crop(name, i, np.broadcast_to(crop, (CROP, CROP, 3)), transform(affine, face.points))
        points = np.array([face.points for face in faces]).reshape(-1, len(self.scheme), 2)
        for effect in effects:
            if isinstance(effect, Mask):
                self.labels(name, apply([effect], image, points, self.scheme))

    def pts(self, name: str, faces: Sequence[Face]) -> None:
        """iBUG's form, a file a face, which counts pixels from 1 (https://ibug.doc.ic.ac.uk/resources/300-W/)."""
        for i, face in enumerate(faces):
            with writing(self._path("pts", name, i, ".pts")) as aside:
                aside.write_text(pts_text(face.points), encoding="ascii")

    def crop(self, name: str, face: int, image: np.ndarray, points: np.ndarray) -> None:
        """A face's crop (S, S, 3) RGB uint8, and its points (K, 2) there."""
        self.picture("crops", name, image, face)
        with writing(self._path("crops", name, face, ".pts")) as aside:
            aside.write_text(pts_text(points), encoding="ascii")

    def picture(self, kind: str, name: str, image: np.ndarray, face: int | None = None) -> None:
        """A picture (H, W, 3) RGB uint8 below the folder `kind`."""
        with writing(self._path(kind, name, face, ".jpg")) as aside:
            aside.write_bytes(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())

    def labels(self, name: str, image: np.ndarray) -> None:
        """A label image (H, W) uint8, below ``masks``."""
        with writing(self._path("masks", name, None, ".png")) as aside:
            aside.write_bytes(cv2.imencode(".png", image)[1].tobytes())

    def _path(self, kind: str, name: str, face: int | None, suffix: str) -> Path:
        # a.jpg and a.png beside each other must not become one.
        path = self.folder / kind / name
        return path.with_name(f"{path.name}{'' if face is None else f'-{face}'}{suffix}")


def _plain(face: Face) -> dict[str, Any]:
    return {
        "points": face.points.round(4).tolist(), "box": np.round(face.box, 4).tolist(),
        "score": face.score, "doubtful": face.doubtful, "identity": face.identity,
        "spread": None if np.isnan(face.spread).any() else face.spread.round(4).tolist(),
    }  # fmt: skip


def annotated(
    image: np.ndarray, faces: Sequence[Face], scheme: Scheme, effects: Iterable[Effect], draw: Sequence[str] | None
) -> np.ndarray:
    """A picture with its faces.

    Args:
        image: (H, W) or (H, W, 3) RGB uint8.
        faces: to be drawn.
        scheme: of their points.
        effects: done to each face, one after another; a `Mask`, which makes another picture, is left out.
        draw: of boxes, points, lines, indices; None for boxes and points where there is no effect.

    Returns:
        (H, W, 3) RGB uint8.
    """
    image = np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))
    painted = [effect for effect in effects if not isinstance(effect, Mask)]
    points = np.array([face.points for face in faces]).reshape(-1, len(scheme), 2)
    image = apply(painted, image, points, scheme)
    draw = draw if draw is not None else [] if painted else ["boxes", "points"]
    if not draw:
        return image
    boxes = np.array([face.box for face in faces]).reshape(-1, 4) if "boxes" in draw else None
    captions = [
        (f"{face.identity}" if face.identity is not None else f"{face.score:.2f}" if face.score < 1 else "")
        + "?" * face.doubtful
        for face in faces
    ]
    lines, indices, dots = (word in draw for word in ("lines", "indices", "points"))
    return draw_picture(image, points, boxes, captions, scheme, lines, indices, dots=dots)


@contextlib.contextmanager
def movie(path: Path, rate: float, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes RGB frames of one size (width, height) to a video, which is there when it is whole.

    Raises:
        UserError: OpenCV cannot write such a video.
    """
    with writing(path) as aside:
        file = cv2.VideoWriter(str(aside), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not file.isOpened():
            raise UserError(
                f"{path}: OpenCV writes no video of {size[0]} x {size[1]} at {rate:g} frames/s; leave pictures out of save"
            )
        count = 0

        def write(frame: np.ndarray) -> None:
            nonlocal count
            file.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            count += 1

        try:
            yield write
        finally:
            file.release()
        # OpenCV tells nothing of a full disk.
        if (there := int(cv2.VideoCapture(str(aside)).get(cv2.CAP_PROP_FRAME_COUNT))) != count:
            raise UserError(
                f"{path}: {max(there, 0)} of {count} frames could be written; free space there or leave pictures out of save"
            )
