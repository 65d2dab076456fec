"""Define the config of ``flr train_detector``, as `flr.config.schema` does those of the other commands."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Lt

DETECTOR = "box/detector"  # what ``flr reproduce`` calls the face detector, which is no experiment of `Train`


@dataclass(frozen=True)
class TrainDetector:
    """Train the face detector on rendered scenes, and write it as an ONNX file.

    No photo takes part. The scenes are drawn once and stored under paths.cache_dir.

    Attributes:
        name: Name of the run in MLflow. null makes one from the seed.
        seed: Seed of the scenes, the patches and the weights.
        weights: Checkpoint of such a training whose weights this one starts from; null for random ones.
        threshold: Lowest score of a face that the file states.
        data: Scenes and batches.
        model: Network.
        optim: Optimizer.
        schedule: Learning rate over the training.
        trainer: Lightning's Trainer.
        tracking: MLflow store and experiment.
        paths: Folders of outputs and caches.
    """

    name: str | None
    seed: Annotated[int, Ge(0), Lt(2**32)]
    weights: str | None
    threshold: Annotated[float, Ge(0)]
    data: Any
    model: Any
    optim: Any
    schedule: Any
    trainer: Any
    tracking: Any
    paths: Any
