"""The models, detectors and effects of the page, and what the page does with them."""

import functools
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flr.errors import UserError
from flr.inference.annotation import annotate
from flr.inference.detectors import BoxTarget, Detections, Detector
from flr.inference.effects.base import Effect
from flr.inference.faces import Face, FaceTracker, find_faces
from flr.inference.landmarker import Landmarker
from flr.inference.loading import load_file
from flr.inference.smoothing import OneEuro
from flr.inference.sources import Photos
from flr.inference.writer import PredictionWriter
from flr.landmarks.scheme import Scheme
from flr.module.checkpoints import find_checkpoint
from flr.tracking.connection import StoredRun, connect, usable_runs

MAX_RUNS = 200  # of the tracking store that are offered; any other is chosen by its id
MAX_MODELS = 4  # in memory
MAX_RESULTS = 50  # photos whose files can still be downloaded


class TimedDetector:
    """A detector that measures its time, in seconds."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.seconds = detector, 0.0

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
        """Find faces, as `Detector`."""
        start = time.perf_counter()
        detections = self.detector(image, name, model)
        self.seconds = time.perf_counter() - start
        return detections


@dataclass(frozen=True, eq=False)
class PhotoResult:
    """The faces of a photo by one model.

    Attributes:
        scheme: Scheme of the points.
        faces: The faces.
        image: File of the annotated image.
        files: Files of the points.
        summary: One line of text.
    """

    scheme: Scheme
    faces: list[Face]
    image: Path
    files: list[Path]
    summary: str


@dataclass(eq=False)
class CameraState:
    """State of the camera of one browser tab.

    Attributes:
        choice: The run and the detector.
        tracker: Tracker of the faces.
        start: Time of the start, seconds.
        times: Times of the last frames, seconds.
    """

    choice: tuple[str, str]
    tracker: FaceTracker
    start: float = field(default_factory=time.monotonic)
    times: deque[float] = field(default_factory=lambda: deque(maxlen=20))


class AppService:
    """Models, detectors and effects for the page. Several threads may call it at once.

    Args:
        folder: Folder of the files that can be downloaded.
        detectors: Detectors by name.
        effects: Effects by name.
        uri: Tracking store whose runs are offered.
        output: Output folder, to which a run that is not on this machine is downloaded.
        run: Run to start with; None for the newest one.
        refine: Number of refinement passes over each face of a photo.
        device: Device of the models, see `find_device`.

    Raises:
        UserError: The model of `run` cannot be loaded.
    """

    def __init__(
        self, folder: Path, detectors: Mapping[str, Detector], effects: Mapping[str, Effect], uri: str, output: Path,
        run: str | None = None, refine: int = 1, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.folder, self.detectors, self.effects = folder, detectors, effects
        self.uri, self.output, self.run, self.refine = uri, output, run, refine
        self._results: deque[Path] = deque()
        self._loading = threading.Lock()
        self._load = functools.lru_cache(MAX_MODELS)(functools.partial(_load_version, device=device))
        if run is not None:
            self.model(run)

    def runs(self) -> list[tuple[str, str]]:
        """List (label, value of ``run=``) of the models on offer: the one to start with, then the newest run first.

        Raises:
            UserError: The tracking store cannot be read or has no run, and there is no run to start with.
        """
        try:
            stored = usable_runs(connect(self.uri, create=False), MAX_RUNS)
        except UserError:
            if self.run is None:
                raise
            stored = []
        labels = {run.run_id: run_label(run) for run in stored}
        if self.run is None and not labels:
            raise UserError(
                f"tracking.uri={self.uri}: no finished run with a checkpoint; train one (python -m flr.train), give one by "
                "run=ID|DIR|FILE, or set tracking.uri"
            )
        first = [] if self.run is None else [self.run]
        return [(labels.get(run, run), run) for run in dict.fromkeys([*first, *labels])]

    def model(self, run: str | None) -> Landmarker:
        """Load the model of a run, or return it from memory.

        Raises:
            UserError: There is no such run, or its model cannot be loaded.
        """
        if not run:
            raise UserError("no run is chosen; choose one of the list, or type an id, a folder or a file")
        with self._loading:
            path = find_checkpoint(run, self.uri, self.output)
            return self._load(path, path.stat().st_mtime_ns if path.exists() else 0)

    def find_faces(
        self, photo: Path, run: str | None, detector: str, effects: Sequence[str], draw: Sequence[str]
    ) -> PhotoResult:  # fmt: skip
        """Find the faces of a photo with one model, and write the files that `flr.predict` would write.

        Raises:
            UserError: The photo cannot be decoded, there is no such model, or an effect does not fit it.
        """
        model, timed, name = self.model(run), TimedDetector(self.detectors[detector]), photo.name
        chosen = self._chosen_effects(effects, model)
        try:
            image = Photos(str(photo), photo.parent, [name]).load(name)
        except UserError as error:
            raise UserError(str(error).replace(f"{photo.parent}/", "")) from error
        start = time.perf_counter()
        faces = find_faces(model, timed, image, name, refine=self.refine)
        seconds = time.perf_counter() - start - timed.seconds
        with PredictionWriter(self._new_folder(), {}, model.scheme, overwrite=False) as writer:
            writer.save_files(name, image, faces, model.crop.policy, ["pts"], chosen)
            writer.save_image("pictures", name, annotate(image, faces, model.scheme, chosen, draw))
            writer.add(name, image.shape, faces)
            writer.finish(["csv", "coco"])
        folder = writer.folder
        files = [path for kind in ("points.*", "pts/*", "masks/*") for path in sorted(folder.glob(kind))]
        summary = (
            f"{count_faces(faces)} in {image.shape[1]} x {image.shape[0]} pixels, {len(model.scheme)} points each; "
            f"detector {1000 * timed.seconds:.0f} ms, model {1000 * seconds:.0f} ms"
        )
        return PhotoResult(model.scheme, faces, folder / "pictures" / f"{name}.jpg", files, summary)

    def track_frame(
        self, frame: np.ndarray, state: CameraState | None, run: str | None, detector: str, effects: Sequence[str],
        draw: Sequence[str],
    ) -> tuple[np.ndarray, CameraState, str]:  # fmt: skip
        """Track the faces of a camera's next frame.

        Args:
            frame: (H, W, 3) RGB uint8.
            state: State after the last frame; None for the first one.
            run: Value of ``run=``.
            detector: Name of the detector.
            effects: Names of the effects.
            draw: What is drawn on the frame.

        Returns:
            The annotated frame, the state after it, and a line of text.

        Raises:
            UserError: There is no such model, or an effect does not fit it.
        """
        if state is None or state.choice != (run, detector):
            tracker = FaceTracker(self.model(run), self.detectors[detector], smooth=OneEuro)
            state = CameraState((str(run), detector), tracker)
        model = state.tracker.model
        chosen = self._chosen_effects(effects, model)
        state.times.append(time.monotonic())
        faces = state.tracker(frame, "", state.times[-1] - state.start)
        rate = (len(state.times) - 1) / max(state.times[-1] - state.times[0], 1e-9)
        return annotate(frame, faces, model.scheme, chosen, draw), state, f"{count_faces(faces)}; {rate:.0f} frames/s"

    def _chosen_effects(self, names: Sequence[str], model: Landmarker) -> list[Effect]:
        effects = [self.effects[name] for name in sorted(names)]
        for effect in effects:
            effect.check(model.scheme)
        return effects

    def _new_folder(self) -> Path:
        """Make a folder for results, and delete the oldest one."""
        self._results.append(Path(tempfile.mkdtemp(dir=self.folder)))
        if len(self._results) > MAX_RESULTS:
            shutil.rmtree(self._results.popleft(), ignore_errors=True)
        return self._results[-1]


def _load_version(path: Path, changed: int, device: str) -> Landmarker:
    """Load a file; the time of its last change, nanoseconds, tells versions of it apart in a cache."""
    return load_file(path, device=device)


def run_label(run: StoredRun) -> str:
    """Describe a stored run in a few words."""
    nme = run.get("val_nme")
    parts = (run.get("model"), run.get("data"), nme and f"val {float(nme):.2f} %", run.name)
    return " · ".join(part for part in parts if part)


def count_faces(faces: Sequence[Any]) -> str:
    """Return "1 face" or "N faces"."""
    return f"{len(faces)} face{'' if len(faces) == 1 else 's'}"


def point_table(results: Sequence[PhotoResult]) -> dict[str, Any]:
    """Make the page's table with one row per point, and the run's number where there are two runs."""
    rows = [
        [*([run] if len(results) > 1 else []), i, name, round(float(x), 2), round(float(y), 2)]
        for run, result in enumerate(results, 1)
        for i, face in enumerate(result.faces)
        for name, (x, y) in zip(result.scheme.names, face.points, strict=True)
    ]
    return {"headers": [*(["run"] if len(results) > 1 else []), "face", "point", "x", "y"], "data": rows}


def mean_distance(one: PhotoResult, other: PhotoResult) -> str:
    """Describe the mean distance between the points of two models in one line; empty where their faces differ."""
    scheme = one.scheme
    if scheme.names != other.scheme.names:
        return f"The runs have other points ({scheme.name}, {other.scheme.name}), so there is no distance between them."
    if not one.faces or len(one.faces) != len(other.faces):
        return ""
    points, others = (np.array([face.points for face in result.faces]) for result in (one, other))
    name = "interocular" if "interocular" in scheme.normalisers else scheme.normaliser
    normaliser = scheme.distance(points, np.ones(points.shape[:2], bool), name)
    distances = np.linalg.norm(points - others, axis=-1).mean(-1) / normaliser
    values = ", ".join(f"face {i}: {100 * value:.2f} %" for i, value in enumerate(distances))
    return f"Mean distance between the points of the two runs, of the {name} distance: {values}"
