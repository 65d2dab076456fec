"""``python -m flr.predict source=PHOTO|FOLDER|VIDEO|CAMERA [run=ID|DIR|FILE]``: find the points of faces."""

from pathlib import Path

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.compose import refine_passes
from flr.config.instantiate import build
from flr.config.schema import Predict
from flr.config.validate import check_without_tracker
from flr.errors import UserError


def main(cfg: DictConfig) -> None:
    """Find the faces of the config's source and their points."""
    if cfg.run in (None, ""):  # an empty one would be the current folder
        raise UserError("run= is empty; set run=ID, FOLDER, FILE.ckpt, FILE.onnx, models:/NAME@best or included")
    if cfg.source in (None, ""):
        raise UserError("give the images: source=PHOTO, FOLDER, VIDEO, a camera's number or an address")
    print(
        f"finding faces in {cfg.source} with {'the included model' if cfg.run == 'included' else cfg.run}", flush=True
    )
    if cfg.run != "included" and Path(str(cfg.run)).suffix != ".onnx":
        quiet()  # brings Lightning, which an exported file does without
    check_without_tracker(cfg, Predict)
    refine = refine_passes(cfg)
    # They bring OpenCV and ONNX Runtime, which --help, --cfg and the first line do without.
    from flr.inference.loading import find_model, load_file
    from flr.inference.pipeline import PredictionPipeline
    from flr.inference.sources import Video, open_source
    from flr.inference.writer import TABLES, PredictionWriter

    path = find_model(str(cfg.run), str(cfg.tracking.uri), Path(cfg.paths.output_dir))
    detector, effects = build(cfg.detector), [build(node) for node in (cfg.get("effect") or {}).values()]
    source = open_source(str(cfg.source))
    is_video = isinstance(source, Video)
    model = load_file(path, cfg.tta, cfg.device, threads=0 if is_video else 1)  # photos are predicted at once
    for effect in effects:
        effect.check(model.scheme)
    # An interrupted prediction resumes only with the settings that the results depend on. Tables are made at the end.
    keys = ["source", "tta", "detector", "draw", *(["every", "patience", "smooth"] if is_video else [])]
    settings = {key: str(cfg[key]) for key in keys} | ({} if is_video else {"refine": str(refine)})
    settings |= {
        "effect": str(cfg.get("effect")),
        "save": str(sorted(set(cfg.save) - TABLES.keys())),
    }
    folder = Path(cfg.out or Path(cfg.paths.output_dir) / "predictions" / source.name).absolute()
    PredictionPipeline(
        model=model,
        detector=detector,
        effects=effects,
        writer=PredictionWriter(
            folder, {**settings, "checkpoint": str(path)}, model.scheme, cfg.overwrite, restart=is_video
        ),
        save=cfg.save,
        draw=cfg.draw,
        refine=refine,
        every=cfg.every,
        patience=cfg.patience,
        smooth=cfg.smooth,
        frames=cfg.frames,
    ).run(source)


if __name__ == "__main__":
    run_command(main, "predict", exit_on_sigterm=True)
