"""``python -m flr.app``: a web page on which trained models find points in photos and camera images."""

import gc
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.compose import choices, chosen, refine_passes
from flr.config.instantiate import build
from flr.config.schema import App
from flr.config.validate import check_without_tracker
from flr.errors import UserError
from flr.inference.app.network import LOOPBACK, listen


def main(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    if find_spec("gradio") is None:
        raise UserError("gradio is not installed, and the app needs it; pip install 'flr[app]'")
    check_without_tracker(cfg, App)
    refine = refine_passes(cfg)
    with listen(cfg.host, cfg.port) as server, tempfile.TemporaryDirectory(prefix="flr-app-") as folder:
        # gradio reads them when it is imported: no requests to other hosts, and no files left behind.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": folder}
        from flr.inference.app.page import make_page
        from flr.inference.app.server import serve
        from flr.inference.app.service import AppService

        quiet()
        detector, shown_effects = chosen("detector"), dict(cfg.get("effect") or {})
        detectors = {**choices("detector"), detector: cfg.detector}
        effects = {name: node for group in choices("effect").values() for name, node in group.items()}
        service = AppService(
            folder=Path(folder),
            detectors={name: build(node) for name, node in detectors.items()},
            effects={str(name): build(node) for name, node in (effects | shown_effects).items()},
            uri=str(cfg.tracking.uri),
            output=Path(cfg.paths.output_dir),
            run=str(cfg.run),
            refine=refine,
            device=cfg.device,
        )
        if cfg.host not in LOOPBACK:
            print(
                f"note: host={cfg.host}: whoever reaches this machine can use the page, and name any checkpoint on it",
                file=sys.stderr,
            )
        page = make_page(service, service.runs(), detector, list(map(str, shown_effects)))
        gc.freeze()  # searching what is loaded for garbage would make the exit take seconds
        serve(page, server, cfg.host)


if __name__ == "__main__":
    run_command(main, "app", exit_on_sigterm=True)
