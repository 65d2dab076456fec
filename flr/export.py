"""``python -m flr.export run=ID|DIR|CKPT``: write a trained model as one checked ONNX file."""

from pathlib import Path

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.compose import plain
from flr.config.schema import Export
from flr.config.validate import check_without_tracker
from flr.errors import UserError


def main(cfg: DictConfig) -> None:
    """Export the run that the config names."""
    if cfg.run in (None, ""):  # an empty one would be the current folder
        raise UserError("give the run to export: run=ID, run=FOLDER or run=FILE.ckpt")
    check_without_tracker(cfg, Export)
    quiet()
    # They bring torch, which --help and --cfg do without.
    from flr.inference import export
    from flr.inference.predictor import Predictor
    from flr.module.checkpoints import find_checkpoint, load_checkpoint

    best = find_checkpoint(str(cfg.run), str(cfg.tracking.uri), Path(cfg.paths.output_dir))
    path = export.output_file(best, cfg.precision, cfg.out, cfg.overwrite)
    stored = load_checkpoint(best)["flr"]
    predictor = Predictor.load(best, cfg.tta)
    faces = export.load_test_faces(stored["config"], predictor, cfg.faces, cfg.paths, cfg.data.root)
    metadata = export.make_metadata(predictor, best, stored["protocol"], cfg.precision)
    bounds = plain(cfg)["tolerance"][cfg.precision]
    print(export.export_checked(predictor, metadata, path, cfg.precision, faces, bounds))
    print(path)


if __name__ == "__main__":
    run_command(main, "export", exit_on_sigterm=True)
