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
from flr.inference.detectors import Detector
from flr.inference.effects.base import Effect
from flr.inference.faces import Face, FaceTracker, find_faces
from flr.inference.landmarker import Landmarker
from flr.inference.loading import INCLUDED, find_model, load_file
from flr.inference.smoothing import OneEuro
from flr.inference.sources import Photos
from flr.inference.writer import PredictionWriter, counted
from flr.landmarks.scheme import Scheme
from flr.tracking.connection import StoredRun, connect, usable_runs

MAX_RUNS = 200  # of the tracking store that are offered; any other is chosen by its id
MAX_MODELS = 4  # in memory
MAX_RESULTS = 50  # photos whose files can still be downloaded


@dataclass(frozen=True, eq=False)
class PhotoResult:
    """The faces of a photo, the files of the annotated image and of the points, and one line of text."""

    scheme: Scheme
    faces: list[Face]
    image: Path
    files: list[Path]
    summary: str


@dataclass(eq=False)
class CameraState:
    """State of the camera of one browser tab: the run and the detector, and the times of the last frames in seconds."""

    choice: tuple[str, str]
    tracker: FaceTracker
    start: float = field(default_factory=time.monotonic)
    times: deque[float] = field(default_factory=lambda: deque(maxlen=20))


class AppService:
    """Models, detectors and effects for the page. Several threads may call it at once.

    Args:
        folder: Folder of the files that can be downloaded.
        detectors, effects: By name.
        uri: Tracking store whose runs are offered.
        output: Output folder, to which a run that is not on this machine is downloaded.
        run: Run to start with.
        refine: Number of refinement passes over each face of a photo.
        device: Device of the models, see `find_device`.

    Raises:
        UserError: The model of `run` cannot be loaded.
    """

    def __init__(
        self, folder: Path, detectors: Mapping[str, Detector], effects: Mapping[str, Effect], uri: str, output: Path,
        run: str = INCLUDED, refine: int = 1, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.folder, self.detectors, self.effects = folder, detectors, effects
        self.uri, self.output, self.run, self.refine = uri, output, run, refine
        self._results: deque[Path] = deque()
        self._loading = threading.Lock()
        self._load = functools.lru_cache(MAX_MODELS)(functools.partial(_load_version, device=device))
        self.model(run)

    def runs(self) -> list[tuple[str, str]]:
        """List (label, value of ``run=``) of the models on offer: the one to start with, the included one, the newest run, ..."""
        try:
            stored = usable_runs(connect(self.uri, create=False), MAX_RUNS)
        except UserError:  # no store, or none that can be read
            stored = []
        labels = {INCLUDED: "included model, 68 points"} | {run.run_id: run_label(run) for run in stored}
        return [(labels.get(run, run), run) for run in dict.fromkeys([self.run, *labels])]

    def model(self, run: str | None) -> Landmarker:
        """Load the model of a run, or return it from memory.

        Raises:
            UserError: There is no such run, or its model cannot be loaded.
        """
        if not run:
            raise UserError("no run is chosen; choose one of the list, or type an id, a folder or a file")
        with self._loading:
            path = find_model(run, self.uri, self.output)
            return self._load(path, path.stat().st_mtime_ns if path.exists() else 0)

    def find_faces(
        self, photo: Path, run: str | None, detector: str, effects: Sequence[str], draw: Sequence[str]
    ) -> PhotoResult:  # fmt: skip
        """Find the faces of a photo with one model, and write the files that `flr.predict` would write.

        Raises:
            UserError: The photo cannot be decoded, there is no such model, or an effect does not fit it.
        """
        model, name = self.model(run), photo.name
        chosen = self._chosen_effects(effects, model)
        try:
            image = Photos(str(photo), photo.parent, [name]).load(name)
        except UserError as error:
            raise UserError(str(error).replace(f"{photo.parent}/", "")) from error
        faces = find_faces(model, self.detectors[detector], image, name, refine=self.refine)
        with PredictionWriter(self._new_folder(), {}, model.scheme, overwrite=False) as writer:
            writer.save_files(name, image, faces, model.crop.policy, ["pts"], chosen)
            annotated = writer.save_image("pictures", name, annotate(image, faces, model.scheme, chosen, draw))
            writer.add(name, image.shape, faces)
            writer.finish(["csv", "coco"])
        folder = writer.folder
        files = [path for kind in ("points.*", "pts/*", "masks/*") for path in sorted(folder.glob(kind))]
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        summary = f"{counted(len(faces), 'face')} in {size}, {len(model.scheme)} points each"
        return PhotoResult(model.scheme, faces, annotated, files, summary)

    def track_frame(
        self, frame: np.ndarray, state: CameraState | None, run: str | None, detector: str, effects: Sequence[str],
        draw: Sequence[str],
    ) -> tuple[np.ndarray, CameraState, str]:  # fmt: skip
        """Track the faces of a camera's next frame (H, W, 3) RGB uint8; `state` is None for the first one.

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
        line = f"{counted(len(faces), 'face')}; {rate:.0f} frames/s"
        return annotate(frame, faces, model.scheme, chosen, draw), state, line

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
    """Load a file; with the time of its last change, nanoseconds, a cache does not return an older version."""
    return load_file(path, device=device)


def run_label(run: StoredRun) -> str:
    """Describe a stored run in a few words."""
    nme = run.get("val_nme")
    parts = (run.get("model"), run.get("data"), nme and f"val {float(nme):.2f} %", run.name)
    return " · ".join(part for part in parts if part)


def point_table(result: PhotoResult) -> dict[str, Any]:
    """Make the page's table with one row per point."""
    rows = [
        [i, name, round(float(x), 2), round(float(y), 2)]
        for i, face in enumerate(result.faces)
        for name, (x, y) in zip(result.scheme.names, face.points, strict=True)
    ]
    return {"headers": ["face", "point", "x", "y"], "data": rows}
