"""``python -m flr.train_detector``: train the face detector on rendered scenes and write it as an ONNX file."""

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.compose import task_overrides
from flr.config.detector_schema import TrainDetector
from flr.config.validate import check


def main(cfg: DictConfig) -> None:
    """Train from a composed config."""
    print(f"Training a face detector on {cfg.data.scenes} scenes", flush=True)
    check(cfg, TrainDetector, trusted=False)
    from flr.detection.training import train  # torch, which the first line and errors of the config do without

    quiet()
    print(f"detector {train(cfg, task_overrides())}")


if __name__ == "__main__":
    run_command(main, "train_detector")
