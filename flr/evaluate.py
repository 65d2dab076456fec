"""``python -m flr.evaluate run=ID|DIR|CKPT``: score trained models; model, data and protocol come from their checkpoints."""

from pathlib import Path

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.compose import refine_passes, task_overrides
from flr.config.schema import Evaluate
from flr.config.validate import check
from flr.errors import UserError


def main(cfg: DictConfig) -> None:
    """Score the runs that the config names."""
    if not cfg.run:
        raise UserError("name what to score: run=ID, run=FOLDER or run=FILE.ckpt")
    quiet()
    check(cfg, Evaluate)
    runs = [cfg.run] if isinstance(cfg.run, str) else list(dict.fromkeys(cfg.run))
    refine = refine_passes(cfg)
    if sum((cfg.on is not None, cfg.stress is not None, refine > 0)) > 1:
        raise UserError("on=, stress= and refine= do not go together; give one of them")
    if cfg.baseline is not None and cfg.stress is None:
        raise UserError("baseline= is that of a stress test; set stress=all too")
    # They bring torch, which --help and --cfg job do without.
    from flr.evaluation import generalisation, stored_run
    from flr.evaluation.report import show_result

    if cfg.on is not None:
        print(generalisation.run_table(runs, cfg, task_overrides()))
        return
    if cfg.stress is not None:
        from flr.evaluation import stress

        stress.run_tests(runs, cfg, task_overrides())
        return
    for run in runs:
        stored = stored_run.load(cfg, task_overrides(), run)
        result, folder = stored_run.evaluate(stored, cfg.split, refine, Path(cfg.paths.output_dir), cfg.device)
        show_result(result)
        print(folder / "evaluation.json")


if __name__ == "__main__":
    run_command(main, "evaluate")
