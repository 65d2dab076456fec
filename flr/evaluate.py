"""``python -m flr.evaluate run=ID|DIR|CKPT``: score a trained model; model, data and protocol come from its checkpoint."""

from pathlib import Path

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.compose import refine_passes, task_overrides
from flr.config.schema import Evaluate
from flr.config.validate import check
from flr.errors import UserError


def main(cfg: DictConfig) -> None:
    """Score the run that the config names."""
    if cfg.run is None:
        raise UserError("name what to score: run=ID, run=FOLDER or run=FILE.ckpt")
    quiet()
    check(cfg, Evaluate)
    refine = refine_passes(cfg)
    # They bring torch, which --help and --cfg job do without.
    from flr.evaluation import stored_run
    from flr.evaluation.report import show_result
    from flr.evaluation.submission import submit

    stored = stored_run.load(cfg, task_overrides())
    if cfg.submission is not None:
        submit(stored.module, stored.data, Path(cfg.submission).absolute())
        return
    result, folder = stored_run.evaluate(stored, cfg.split, refine, Path(cfg.paths.output_dir), cfg.device)
    show_result(result)
    print(folder / "evaluation.json")


if __name__ == "__main__":
    run_command(main, "evaluate")
