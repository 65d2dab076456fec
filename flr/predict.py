"""``python -m flr.predict``: the points of faces in photos, a video or before a camera."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.instantiate import build
from flr.config.schema import Predict
from flr.config.validate import check
from flr.errors import UserError

if TYPE_CHECKING:
    from flr.inference.detector import Detector
    from flr.inference.effects import Effect
    from flr.inference.landmarker import Landmarker
    from flr.inference.results import Results
    from flr.inference.sources import Photos, Video


def main(cfg: DictConfig) -> None:
    """Find the faces of the config's source and their points."""
    if cfg.run in (None, ""):  # an empty one would be this folder
        raise UserError("name the net: run=ID, run=FOLDER, run=FILE.ckpt or run=models:/NAME@best")
    if cfg.source in (None, ""):
        raise UserError("name what to look at: source=PHOTO, FOLDER, 'GLOB', VIDEO, a camera's number or an address")
    quiet()
    check(cfg, Predict)
    from flr.inference.detector import GivenBoxes
    from flr.inference.landmarker import load
    from flr.inference.results import Results
    from flr.inference.sources import Video, open_source
    from flr.module.checkpoints import find_checkpoint

    path = find_checkpoint(str(cfg.run), str(cfg.tracking.uri), Path(cfg.paths.output_dir))
    detector, effects = build(cfg.detector), [build(node) for node in (cfg.get("effect") or {}).values()]
    source = open_source(str(cfg.source))
    net = load(path, cfg.tta)
    for effect in effects:
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
        for key in ("source", "tta", "detector", "draw", *(("every", "patience", "smooth") if moving else ("looks",)))
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


@dataclass(frozen=True, eq=False)
class Work:
    """One prediction."""

    cfg: DictConfig
    net: "Landmarker"
    detector: "Detector"
    effects: "Sequence[Effect]"
    results: "Results"

    def photos(self, source: "Photos") -> None:
        """The faces of each photo that is not done yet."""
        from tqdm import tqdm

        from flr.inference.faces import faces_of
        from flr.inference.results import annotated

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
            found = faces_of(self.net, self.detector, image, name, self.cfg.looks)
            self.results.keep(name, image, found, self.net.crop.policy, self.cfg.save, self.effects)
            if "pictures" in self.cfg.save:
                shown = annotated(image, found, self.net.scheme, self.effects, self.cfg.draw)
                self.results.picture("pictures", name, shown)
            self.results.add(name, image.shape, found)

    def video(self, source: "Video") -> None:
        """The faces of each frame."""
        import cv2
        from tqdm import tqdm

        from flr.inference.faces import FaceTracker
        from flr.inference.live import Page
        from flr.inference.results import annotated, movie
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
                    self.results.keep(name, frame.image, found, self.net.crop.policy, cfg.save, self.effects)
                    if page or "pictures" in cfg.save:
                        shown = annotated(frame.image, found, self.net.scheme, self.effects, cfg.draw)
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


@contextlib.contextmanager
def until_stopped(source: "Video") -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end a camera or stream, which may have no other end, and not the command."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if not source.live:
            raise


if __name__ == "__main__":
    run_command(main, "predict", exit_on_sigterm=True)
