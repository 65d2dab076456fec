"""``python -m flr.prepare data=NAME data.root=DIR``: read, check and crop a dataset, and describe it."""

import time
from pathlib import Path

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.schema import Prepare
from flr.config.validate import check
from flr.errors import UserError
from flr.module.assembly import build_data


def main(cfg: DictConfig) -> None:
    """Prepare the dataset that the config names."""
    print(f"Preparing {cfg.data.name}")
    quiet()
    check(cfg, Prepare, trusted=False)
    # These import torch, which the first line and errors of the config do not wait for.
    from flr.data.export import export
    from flr.reporting.card import print_card, verdict, write_card

    data = build_data(cfg)
    if cfg.download:
        data.fetch()
    start = time.perf_counter()
    table = data.prepare(refuse=False)
    seconds = time.perf_counter() - start
    card, folder = write_card(data, Path(cfg.out) if cfg.out else None, Path(cfg.paths.output_dir) / "cards")
    problems = data.problems()
    print(verdict(card, problems), flush=True)
    print_card(card)
    print(f"{len(table)} faces in {seconds:.1f} s, {len(table) / seconds:,.0f} a second")
    print(f"card {folder / 'card.html'}")
    wrong_labels = data.label_problem(table)
    if wrong_labels or (problems and not cfg.export):  # what cannot be trained on may still be written in another form
        raise UserError(wrong_labels or problems[0])
    if cfg.export:
        export(table, cfg.export, folder / f"export-{cfg.export}", rounded=cfg.rounded)
        print(f"export {folder / f'export-{cfg.export}'}")


if __name__ == "__main__":
    run_command(main, "prepare")
