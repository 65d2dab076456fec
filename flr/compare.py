"""``python -m flr.compare``: is A better than B? Finished runs read back from MLflow, by group, with intervals."""

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.schema import Compare
from flr.config.validate import check_without_tracker
from flr.errors import UserError


def main(cfg: DictConfig) -> None:
    """Compare the runs that the config asks for."""
    check_without_tracker(cfg, Compare)
    keys = [cfg.group] if isinstance(cfg.group, str) else list(cfg.group)
    if not keys:
        raise UserError("group=[]: name a tag or parameter, as group=model")
    # It brings MLflow, which --help and --cfg do without.
    from flr.evaluation.comparison_report import ComparisonReport

    report = ComparisonReport(cfg, keys)
    print(f"Comparing {report.title}", flush=True)
    if cfg.faces:
        quiet()  # it brings torch, as predicting faces does
    print(f"page {report.write()}")


if __name__ == "__main__":
    run_command(main, "compare")
