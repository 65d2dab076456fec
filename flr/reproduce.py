"""``python -m flr.reproduce name=EXPERIMENT tier=smoke|eval|train``: run an experiment and compare it with its record."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.compose import CONF, key_of, task_overrides, under
from flr.config.detector_schema import DETECTOR
from flr.config.schema import Reproduce
from flr.config.validate import check_without_tracker
from flr.errors import UserError, nearest

# What the user may set in every tier, and in each.
COMMON = ("name", "tier", "record", "records", "paths")
TAKES = {
    "smoke": (),
    "eval": ("run", "data.root", "tracking"),
    "train": ("seeds", "data.root", "data.workers", "trainer.accelerator", "trainer.devices", "tracking"),
}


def main(cfg: DictConfig) -> None:
    """Reproduce the experiment that the config names."""
    check_overrides(cfg)
    check_without_tracker(cfg, Reproduce)
    check_values(cfg)
    print(f"Reproducing {cfg.name}, tier {cfg.tier}", flush=True)
    # Brings torch, which --help and --cfg job do without.
    from flr.reproduction.verdict import reproduce

    quiet()
    if code := reproduce(cfg, Path(cfg.records or CONF.parent / "experiments").absolute()):
        sys.exit(code)


def check_overrides(cfg: DictConfig) -> None:
    """Raise `UserError` for an override that the tier does not take, since none may change a recipe."""
    takes = COMMON + TAKES.get(cfg.tier, ())
    for key in map(key_of, task_overrides()):
        if cfg.tier in TAKES and not under(key, takes):
            raise UserError(
                f"{key} is not for tier={cfg.tier}, which takes {', '.join(takes)}; a recipe is reproduced as it is, "
                f"flr train experiment={cfg.name} trains another"
            )


def check_values(cfg: DictConfig) -> None:
    """Raise `UserError` for an unknown experiment, and for what its tier needs and lacks."""
    folder = CONF / "experiment"
    known = [DETECTOR, *(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))]
    if cfg.name is None:
        raise UserError("name what to reproduce: name=published/ibug_sepconv, or another of conf/experiment/")
    if cfg.name not in known:
        raise UserError(f"name={cfg.name}: no such experiment{nearest(cfg.name, known)}; name one of {folder}")
    if cfg.data.root is not None and cfg.name == DETECTOR:
        raise UserError("data.root: the detector draws its scenes itself; leave it out")
    if cfg.tier == "eval" and cfg.name == DETECTOR:
        raise UserError("tier=eval scores landmark models; python -m benchmarks.detectors measures detectors on photos")
    if cfg.tier == "eval" and not cfg.run:
        raise UserError("tier=eval scores what was trained: run=ID, run=DIR or run=FILE.ckpt, or a list, one a seed")
    if cfg.records is not None and Path(cfg.records).exists() and not Path(cfg.records).is_dir():
        raise UserError(
            f"records={cfg.records}: not a folder; name one, or leave it out for experiments/ of a checkout"
        )
    if cfg.seeds is not None and (not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds)):
        raise UserError(f"seeds={list(cfg.seeds)}: name one at least and each once, as seeds=[0,1,2]")


if __name__ == "__main__":
    run_command(main, "reproduce")
