"""``python -m flr.predict``: the points of faces in photos, a video or before a camera."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from flr.config import Predict, build, check, door, quiet
from flr.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from flr.inference.detector import Detector
    from flr.inference.effects import Effect
    from flr.inference.faces import Face
    from flr.inference.landmarker import Landmarker
    from flr.inference.results import Results
    from flr.inference.sources import Photos, Video
    from flr.landmarks.scheme import Scheme

CROP = 256  # pixels a side of the crops that are kept


def main(cfg: DictConfig) -> None:
    """Find the faces of the config's source and their points."""
    if cfg.run in (None, ""):  # an empty one would be this folder
        raise UserError("name the net: run=ID, run=FOLDER, run=FILE.ckpt or run=models:/NAME@best")
    if cfg.source in (None, ""):
        raise UserError("name what to look at: source=PHOTO, FOLDER, 'GLOB', VIDEO, a camera's number or an address")
    quiet()
    check(cfg, Predict)
    from flr.checkpoints import find_checkpoint
    from flr.inference.detector import GivenBoxes
    from flr.inference.results import Results
    from flr.inference.sources import Video, open_source

    path = find_checkpoint(str(cfg.run), str(cfg.tracking.uri), Path(cfg.paths.output_dir))
    detector, effects = build(cfg.detector), {name: build(node) for name, node in (cfg.get("effect") or {}).items()}
    source = open_source(str(cfg.source))
    net = load(path, cfg.tta)
    for effect in effects.values():
        effect.check(net.scheme)
    moving = isinstance(source, Video)
    if isinstance(detector, GivenBoxes) and not isinstance(source, Video):
        known = {name for path in source.names for name in (path, Path(path).name)}
        if strange := [name for name in detector.rows if name not in known]:
            print(
                f"note: {len(strange)} pictures of {cfg.detector.file} are not in source={cfg.source}, as {strange[0]!a}",
                file=sys.stderr,
            )
    about = {
        key: str(cfg[key])
        for key in ("source", "tta", "detector", "draw", *(("every", "patience", "smooth") if moving else ()))
    }
    # What is begun with some pictures is not gone on with others; the tables are made at the end.
    about |= {"effect": str(cfg.get("effect")), "save": str(sorted(set(cfg.save) - {"csv", "coco"}))}
    folder = Path(cfg.out or Path(cfg.paths.output_dir) / "predictions" / source.name).absolute()
    results = Results(folder, {**about, "checkpoint": str(path)}, net.scheme, cfg.overwrite, anew=moving)
    work = Work(cfg, net, detector, effects, results)
    with results:
        if isinstance(source, Video):
            work.video(source)
        else:
            work.photos(source)
        results.finish(cfg.save)
    print(f"{results.told()}  {folder}")
    if not results.used:
        raise UserError(f"source={cfg.source}: no picture of it can be used")


def load(path: Path, tta: bool | None) -> "Landmarker":
    """The net of a checkpoint, or of a file of `flr.export`.

    Raises:
        UserError: it is neither, or an exported net is to be averaged otherwise than it was exported.
    """
    if path.suffix != ".onnx":
        from flr.inference.predictor import Predictor

        return Predictor.load(path, tta)
    from flr.inference.onnx import OnnxPredictor

    found = OnnxPredictor.load(path)
    if tta not in (None, found.about.tta):
        raise UserError(f"tta={str(tta).lower()}: {path} was exported otherwise; export it anew, or leave tta out")
    return found


@dataclass(frozen=True, eq=False)
class Work:
    """One prediction."""

    cfg: DictConfig
    net: "Landmarker"
    detector: "Detector"
    effects: "Mapping[str, Effect]"
    results: "Results"

    def photos(self, source: "Photos") -> None:
        """The faces of each photo that is not done yet."""
        from tqdm import tqdm

        from flr.inference.faces import faces_of

        left = [name for name in source.names if name not in self.results.done]
        if len(left) < len(source.names):
            print(f"going on with {len(left)} of {len(source.names)} pictures")
        for name in tqdm(left, desc="Predicting", unit="picture", disable=None if len(left) > 1 else True):
            try:
                image = source.load(name)
            except UserError as error:
                self.results.skip(name, str(error))
                tqdm.write(f"skipped {error}", file=sys.stderr)
                continue
            found = faces_of(self.net, self.detector, image, name)
            self.keep(name, image, found)
            if "pictures" in self.cfg.save:
                self.results.picture("pictures", name, self.shown(image, found))
            self.results.add(name, image.shape, found)

    def video(self, source: "Video") -> None:
        """The faces of each frame."""
        import cv2
        from tqdm import tqdm

        from flr.inference.faces import FaceTracker
        from flr.inference.live import Page
        from flr.inference.smoothing import OneEuro

        cfg, count = self.cfg, 0
        tracker = FaceTracker(self.net, self.detector, cfg.every, cfg.patience, OneEuro if cfg.smooth else None)
        size: tuple[int, int] | None = None
        odd = 0
        with contextlib.ExitStack() as stack:
            page = stack.enter_context(Page(cfg.live)) if cfg.live is not None else None
            total = cfg.frames or source.count or None
            bar = stack.enter_context(tqdm(total=total, desc="Predicting", unit="frame", disable=None))
            with until_stopped(source):
                for frame in source:
                    name = f"{source.name}#{frame.number}"
                    found = tracker(frame.image, name, frame.seconds)
                    self.keep(name, frame.image, found)
                    if page or "pictures" in cfg.save:
                        shown = self.shown(frame.image, found)
                        if page:
                            page.show(shown)
                        if "pictures" in cfg.save:
                            if size is None:
                                size = (shown.shape[1], shown.shape[0])
                                write = stack.enter_context(
                                    movie(self.results.folder / f"{source.name}.mp4", source.rate, size)
                                )
                            if shown.shape[1::-1] != size:
                                odd += 1
                                shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
                            write(shown)
                    self.results.add(name, frame.image.shape, found, seconds=round(frame.seconds, 4))
                    bar.update()
                    count += 1
                    if count == cfg.frames:
                        break
        if odd:
            print(f"note: {odd} frames are not of the first one's size, at which the video shows them", file=sys.stderr)
        if count < source.count and cfg.frames is None:
            print(
                f"note: {source.word} ends after {count} of the {source.count} frames that it claims", file=sys.stderr
            )

    def keep(self, name: str, image: "np.ndarray", faces: "list[Face]") -> None:
        """A picture's own files, but for the annotated picture."""
        import numpy as np

        from flr.inference.effects import Mask
        from flr.landmarks.geometry import transform, warp

        if "pts" in self.cfg.save:
            self.results.pts(name, faces)
        if "crops" in self.cfg.save:
            for i, face in enumerate(faces):
                affine = self.net.crop.policy.crop(face.box, CROP)
                crop = warp(image, affine, (CROP, CROP)).reshape(CROP, CROP, -1)
                self.results.crop(name, i, np.broadcast_to(crop, (CROP, CROP, 3)), transform(affine, face.points))
        for effect in self.effects.values():
            if isinstance(effect, Mask):
                labels = np.zeros(image.shape[:2], np.uint8)
                for face in faces:
                    labels = effect(labels, face.points, self.net.scheme)
                self.results.labels(name, labels)

    def shown(self, image: "np.ndarray", faces: "list[Face]") -> "np.ndarray":
        """A picture (H, W, 3) as it is kept and shown: with the effects, or else with the faces' boxes and points."""
        return annotated(image, faces, self.net.scheme, self.effects.values(), self.cfg.draw)


def annotated(
    image: "np.ndarray", faces: "Sequence[Face]", scheme: "Scheme", effects: "Iterable[Effect]",
    draw: Sequence[str] | None,
) -> "np.ndarray":  # fmt: skip
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
    import numpy as np

    from flr.inference.effects import Mask
    from flr.landmarks.draw import draw_picture

    image = np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))
    painted = [effect for effect in effects if not isinstance(effect, Mask)]
    for effect in painted:
        for face in faces:
            image = effect(image, face.points, scheme)
    draw = draw if draw is not None else [] if painted else ["boxes", "points"]
    if not draw:
        return image
    points = np.array([face.points for face in faces]).reshape(-1, len(scheme), 2)
    boxes = np.array([face.box for face in faces]).reshape(-1, 4) if "boxes" in draw else None
    captions = [
        f"{face.identity}" if face.identity is not None else f"{face.score:.2f}" if face.score < 1 else ""
        for face in faces
    ]
    lines, indices, dots = (word in draw for word in ("lines", "indices", "points"))
    return draw_picture(image, points, boxes, captions, scheme, lines, indices, dots=dots)


@contextlib.contextmanager
def until_stopped(source: "Video") -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end a camera or stream, which may have no other end, and not the command."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if not source.live:
            raise


@contextlib.contextmanager
def movie(path: Path, rate: float, size: tuple[int, int]) -> "Iterator[Callable[[np.ndarray], None]]":
    """Writes RGB frames of one size (width, height) to a video, which is there when it is whole.

    Raises:
        UserError: OpenCV cannot write such a video.
    """
    import cv2

    from flr.files import writing

    with writing(path) as aside:
        file = cv2.VideoWriter(str(aside), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not file.isOpened():
            raise UserError(
                f"{path}: OpenCV writes no video of {size[0]} x {size[1]} at {rate:g} frames/s; leave pictures out of save"
            )
        count = 0

        def write(frame: "np.ndarray") -> None:
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


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no half file stays
    door(main, "predict")
