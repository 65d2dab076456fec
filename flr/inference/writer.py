"""The results of a prediction: points as CSV, COCO keypoints and .pts files, images, crops, videos.

Each image's faces are written to ``faces.jsonl`` as soon as they are found, so that an interrupted prediction resumes; the
tables are made from that file at the end.
"""

import contextlib
import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from flr.data.boxes import BoxPolicy
from flr.data.formats.annotators import MarkedFace, MarkedImage, cvat_text, label_studio_text
from flr.data.formats.coco import center_and_scale, document_text
from flr.data.formats.label_csv import prediction_rows
from flr.data.formats.pts import pts_text
from flr.data.images import IMAGE_SUFFIXES
from flr.errors import UserError
from flr.files import telling, write_file, writing
from flr.inference.effects.base import Effect, apply
from flr.inference.faces import VISIBLE, Face
from flr.landmarks.geometry import transform, warp
from flr.landmarks.scheme import Scheme

if sys.platform != "win32":
    import fcntl

JOURNAL = "faces.jsonl"
CROP_SIZE = 256  # pixels a side of saved crops
# Value of ``save=`` -> the file.
TABLES = {
    "csv": "points.csv",
    "coco": "points.json",
    "labelstudio": "points.labelstudio.json",
    "cvat": "points.cvat.xml",
}
END = '{"end": true}'  # the last line of the journal of a finished prediction


class PredictionWriter:
    """Write the folder of one prediction.

    Args:
        folder: Created where it does not exist.
        settings: What the results depend on; a folder that was begun with other settings is rejected.
        scheme: Scheme of the points.
        overwrite: Whether existing results are deleted.
        restart: Whether an interrupted prediction starts again, as a video must, whose faces depend on earlier frames.

    Attributes:
        done: Names of the finished images.
        faces: Number of faces.
        empty: Number of images without a face.
        skipped: Number of images that cannot be used.

    Raises:
        UserError: The folder holds a finished prediction or another one's results, or another process writes to it.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], scheme: Scheme, overwrite: bool, restart: bool = False
    ) -> None:
        self.folder, self.scheme = folder, scheme
        self.journal = folder / JOURNAL
        self.done: set[str] = set()
        self.faces = self.empty = self.skipped = 0
        if folder.exists() and not (folder.is_dir() and (self.journal.is_file() or not any(folder.iterdir()))):
            raise UserError(f"{folder}: exists and is not the folder of a prediction; set another out=")
        with telling(self.journal):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.journal.open("ab+")
        try:
            self._lock()
            size = 0 if overwrite else self._resume(settings, restart)
            if overwrite or restart:
                self._delete_results()
            with telling(self.journal):
                self._file.truncate(size)
            if not size:
                self._write(json.dumps(settings, sort_keys=True))
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            if sys.platform != "win32":  # Windows has no flock: there nothing refuses a second prediction
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{self.folder}: another prediction writes there now; wait for it, or set another out="
            ) from error
        except OSError:
            pass  # a file system without locks

    def _resume(self, settings: Mapping[str, Any], restart: bool) -> int:
        """Count the finished images; return the bytes of the journal to keep."""
        try:
            self._file.seek(0)
            data = self._file.read()
            size = data.rfind(b"\n") + 1  # the last line may be incomplete
            lines = data[:size].decode().splitlines()
            rows = [json.loads(line) for line in lines[1:]]
        except (OSError, ValueError) as error:
            raise UserError(f"{self.journal}: damaged; set overwrite=true or another out=") from error
        if END in lines:
            raise UserError(f"{self.folder}: holds a finished prediction; set overwrite=true or another out=")
        if restart:
            return 0
        if lines and json.loads(lines[0]) != settings:
            raise UserError(
                f"{self.folder}: was begun with another run, source or detector, or with another save, draw or effect; "
                "set overwrite=true or another out="
            )
        for row in rows:
            self._count(row)
        return size

    def _delete_results(self) -> None:
        for kind in ("pictures", "crops", "pts", "masks"):
            shutil.rmtree(self.folder / kind, ignore_errors=True)
        for name in TABLES.values():
            (self.folder / name).unlink(missing_ok=True)

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError), self._file:  # a full disk has been reported
            if not self.used:  # nothing to resume, so that the next prediction may have other settings
                self._file.truncate(0)
                if list(self.folder.iterdir()) == [self.journal]:
                    self.journal.unlink()
                    self.folder.rmdir()

    def _write(self, line: str) -> None:
        with telling(self.journal):
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    # -- images of the prediction --------------------------------------------------------------------------------------

    def add(self, name: str, shape: Sequence[int], faces: Sequence[Face], **more: Any) -> None:
        """Record the faces of an image (H, W) that is finished."""
        faces_values = [_face_values(face) for face in faces]
        self._add_row({"image": name, "height": shape[0], "width": shape[1], **more, "faces": faces_values})

    def skip(self, name: str, reason: str) -> None:
        """Record an image that cannot be used."""
        self._add_row({"image": name, "skipped": reason, "faces": []})

    def _add_row(self, row: dict[str, Any]) -> None:
        self._write(json.dumps(row))
        self._count(row)

    def _count(self, row: dict[str, Any]) -> None:
        self.done.add(row["image"])
        self.skipped += "skipped" in row
        self.faces += len(row["faces"])
        self.empty += not row["faces"] and "skipped" not in row

    @property
    def used(self) -> int:
        """Number of images that were not skipped."""
        return len(self.done) - self.skipped

    def summary(self) -> str:
        """Return the counts of faces and images in one line."""
        parts = [f"{counted(self.faces, 'face')} in {counted(self.used, 'image')}"]
        parts += [f"{self.empty} of them without a face"] * bool(self.empty)
        parts += [f"{counted(self.skipped, 'image')} skipped"] * bool(self.skipped)
        return ", ".join(parts)

    # -- tables --------------------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the journal's row of each image, in their order."""
        with self.journal.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def finish(self, tables: Sequence[str]) -> None:
        """Write some of `TABLES`, and mark the prediction as finished."""
        with telling(self.journal):
            self._file.flush()  # Ctrl-C may have interrupted the writing of a line
        for kind in (kind for kind in TABLES if kind in tables):
            with writing(self.folder / TABLES[kind]) as aside, aside.open("w", encoding="utf-8", newline="") as file:
                self._write_table(kind, file)
        self._write(END)

    def _write_table(self, kind: str, file: TextIO) -> None:
        if kind == "csv":
            csv.writer(file).writerows(prediction_rows(self.scheme, self._csv_faces()))
        elif kind == "coco":
            file.writelines(self._coco_text())
        elif kind == "cvat":
            file.writelines(cvat_text(self.scheme, self._marked_images()))
        else:
            file.writelines(label_studio_text(self.scheme, self._marked_images(), "predictions"))

    def _csv_faces(self) -> Iterator[tuple[list[Any], list[float], np.ndarray, list[int]]]:
        for row in self.rows():
            for i, face in enumerate(row["faces"]):
                number = i if face["identity"] is None else face["identity"]
                values = [row["image"], row.get("seconds", ""), number, f"{face['score']:.4f}", int(face["uncertain"])]
                visible = [int(share >= VISIBLE) for share in face["visible"] or ()]
                yield values, face["box"], np.array(face["points"]), visible

    def _coco_text(self) -> Iterator[str]:
        images = (
            {"id": number, "file_name": row["image"], "height": row["height"], "width": row["width"]}
            for number, row in enumerate(self._used_rows(), 1)
        )
        faces = ((number, face) for number, row in enumerate(self._used_rows(), 1) for face in row["faces"])
        annotations = (
            {"id": i, "image_id": number, **_coco_annotation(face)} for i, (number, face) in enumerate(faces, 1)
        )
        return document_text(self.scheme, images, annotations, f"prediction, {self.scheme.name}")

    def _marked_images(self) -> Iterator[MarkedImage]:
        hidden = np.zeros(len(self.scheme), bool)
        for row in self._used_rows():
            faces = [MarkedFace(np.array(face["points"]), hidden, np.array(face["box"])) for face in row["faces"]]
            yield MarkedImage(row["image"], row["width"], row["height"], faces)

    def _used_rows(self) -> Iterator[dict[str, Any]]:
        return (row for row in self.rows() if "skipped" not in row)

    # -- files of an image ---------------------------------------------------------------------------------------------

    def save_files(
        self, name: str, image: np.ndarray, faces: Sequence[Face], policy: BoxPolicy, save: Sequence[str],
        effects: Iterable[Effect],
    ) -> None:  # fmt: skip
        """Save an image's files, except for the annotated image.

        Args:
            name: Name of the image.
            image: (H, W) or (H, W, 3) RGB uint8.
            faces: Faces found in it.
            policy: Box policy of the crops.
            save: Which of pts and crops to save.
            effects: Effects whose label images are saved.
        """
        if "pts" in save:
            for i, face in enumerate(faces):
                self._save_pts("pts", name, i, face.points)
        if "crops" in save:
            for i, face in enumerate(faces):
                affine = policy.crop(face.box, CROP_SIZE)
                crop = warp(image, affine, (CROP_SIZE, CROP_SIZE)).reshape(CROP_SIZE, CROP_SIZE, -1)
                self.save_image("crops", name, np.broadcast_to(crop, (CROP_SIZE, CROP_SIZE, 3)), i)
                self._save_pts("crops", name, i, transform(affine, face.points))
        points = np.array([face.points for face in faces]).reshape(-1, len(self.scheme), 2)
        for effect in effects:
            if effect.makes_labels:
                labels = apply([effect], image, points, self.scheme)
                write_file(self._path("masks", name, None, ".png"), cv2.imencode(".png", labels)[1].tobytes())

    def _save_pts(self, kind: str, name: str, face: int, points: np.ndarray) -> None:
        """Save iBUG's format, which counts pixels from 1 (https://ibug.doc.ic.ac.uk/resources/300-W/)."""
        write_file(self._path(kind, name, face, ".pts"), pts_text(points))

    def save_image(self, kind: str, name: str, image: np.ndarray, face: int | None = None) -> Path:
        """Save an image (H, W, 3) RGB uint8 below the folder `kind`, and return its file."""
        path = self._path(kind, name, face, ".jpg")
        write_file(path, cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
        return path

    def _path(self, kind: str, name: str, face: int | None, suffix: str) -> Path:
        path = self.folder / kind / name
        # Two images must not become one file: only a.jpg is saved as a.jpg, a.png as a.png.jpg, a.png.jpg as a.png.jpg.jpg.
        if face is None and path.suffix == suffix and Path(path.stem).suffix.lower() not in IMAGE_SUFFIXES:
            return path
        return path.with_name(f"{path.name}{'' if face is None else f'-{face}'}{suffix}")


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, as ``1 face`` or ``2 faces``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _face_values(face: Face) -> dict[str, Any]:
    return {
        "points": face.points.round(4).tolist(), "box": np.round(face.box, 4).tolist(),
        "score": face.score, "uncertain": face.uncertain, "identity": face.identity,
        "spread": None if np.isnan(face.spread).any() else face.spread.round(4).tolist(),
        "visible": None if np.isnan(face.visible).any() else face.visible.round(4).tolist(),
        "radius90": None if np.isnan(face.radius90).any() else face.radius90.round(4).tolist(),
    }  # fmt: skip


def _coco_annotation(face: Mapping[str, Any]) -> dict[str, Any]:
    points = np.array(face["points"])
    visible = face["visible"]
    flags = np.full(len(points), 2.0) if visible is None else 1.0 + (np.array(visible) >= VISIBLE)
    keypoints = np.concatenate([points, flags[:, None]], 1).round(3).ravel().tolist()
    left, top, right, bottom = face["box"]
    return {
        "category_id": 1, "iscrowd": 0, **center_and_scale(np.array([left, top]), np.array([right - left, bottom - top])),
        "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
        "num_keypoints": len(points), "keypoints": keypoints, "score": face["score"],
        "uncertain": face["uncertain"], "spread": face["spread"], "visible": visible,
        "radius90": face["radius90"],
        **({"track_id": face["identity"]} if face["identity"] is not None else {}),
    }  # fmt: skip


@contextlib.contextmanager
def open_video(path: Path, rate: float, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that adds an RGB frame of the size (width, height) to a video, which appears when it is complete.

    Raises:
        UserError: OpenCV cannot write such a video.
    """
    with writing(path) as aside:
        file = cv2.VideoWriter(str(aside), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not file.isOpened():
            raise UserError(
                f"{path}: OpenCV cannot write a video of {size[0]} x {size[1]} at {rate:g} frames/s; remove pictures from save="
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
        # OpenCV does not report a full disk.
        if (written := int(cv2.VideoCapture(str(aside)).get(cv2.CAP_PROP_FRAME_COUNT))) != count:
            raise UserError(
                f"{path}: {max(written, 0)} of {count} frames could be written; free space there or remove pictures from save="
            )
