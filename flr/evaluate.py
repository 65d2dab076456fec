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
    runs = [cfg.run] if isinstance(cfg.run, str) else list(cfg.run)
    refine = refine_passes(cfg)
    if cfg.on is not None and (cfg.stress is not None or cfg.submission is not None or refine):
        raise UserError("on= does not go with stress=, submission= or refine=; give one of them")
    if cfg.stress is not None and (cfg.submission is not None or refine):
        raise UserError("stress= does not go with submission= or refine=; give one of them")
    if cfg.baseline is not None and cfg.stress is None:
        raise UserError("baseline= is that of a stress test; set stress=all too")
    # They bring torch, which --help and --cfg job do without.
    from flr.evaluation import generalisation, stored_run
    from flr.evaluation.report import show_result
    from flr.evaluation.submission import submit

    if cfg.on is not None:
        print(generalisation.run_table(runs, cfg, task_overrides()))
        return
    if cfg.stress is not None:
        from flr.evaluation import stress

        stress.run_tests(runs, cfg, task_overrides())
        return
    for run in runs:
        stored = stored_run.load(cfg, task_overrides(), run)
        if cfg.submission is not None:
            submit(stored.module, stored.data, Path(cfg.submission).absolute())
            continue
        result, folder = stored_run.evaluate(stored, cfg.split, refine, Path(cfg.paths.output_dir), cfg.device)
        show_result(result)
        print(folder / "evaluation.json")


if __name__ == "__main__":
    run_command(main, "evaluate")
