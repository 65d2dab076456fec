"""Build the dataset of a checked config, and its module with or without the weights of a checkpoint."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from flr.config.instantiate import build
from flr.config.validate import resolve
from flr.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from flr.augment.affine import Affine
    from flr.data.crops import CropSettings
    from flr.data.datamodule import FaceData
    from flr.landmarks.scheme import Scheme
    from flr.module.landmark_module import LandmarkModule


def build_data(cfg: DictConfig, augment: "Affine | None" = None) -> "FaceData":
    """Build the dataset of a checked config, which is not read yet.

    Args:
        cfg: The top level, of `flr.config.schema.Train` or `flr.config.schema.Prepare`.
        augment: Augmentation for which the crop store leaves a margin; None for that of the config.
    """
    augment = augment or build(cfg.augment)
    data: FaceData = build(cfg.data, augment=augment, seed=cfg.seed, cache=cfg.paths.cache_dir)
    return data


def assemble(
    cfg: DictConfig, scheme: "Scheme", crop: "CropSettings", mean_face: "np.ndarray", weights_follow: bool = False
) -> "LandmarkModule":
    """Build the module of a checked config.

    Args:
        cfg: The top level, of `flr.config.schema.Train` or `flr.config.schema.Net`.
        scheme: Scheme of the points.
        crop: What the model is given of an image.
        mean_face: (K, 2) crop pixels, the baseline.
        weights_follow: Whether the weights of a checkpoint will be loaded, so that no pretrained ones are downloaded.

    Raises:
        UserError: The objective is a bare loss, or does not fit the model.
    """
    from flr.module.landmark_module import (
        LandmarkModule,  # torch: commands import this module before they show their help
    )

    model = dict(cfg.model)
    if weights_follow and "pretrained" in model:
        model["pretrained"] = False
    objective = build(cfg.objective, **({"mean_face": mean_face} if _takes(cfg.objective, "mean_face") else {}))
    if not hasattr(objective, "takes"):
        raise UserError(
            f"objective._target_={cfg.objective._target_}: a loss, not an objective; set "
            "objective._target_=flr.objectives.coordinates.Coordinates, and this class as objective.loss._target_"
        )
    output = {"output": objective.takes} if _takes(cfg.model, "output") else {}
    return LandmarkModule(
        net=build(model, points=len(scheme), channels=crop.channels, size=crop.size, **output),
        objective=objective,
        scheme=scheme,
        size=crop.size,
        mean_face=mean_face,
        optim=build(cfg.optim),
        schedule=build(cfg.schedule),
        ema=cfg.ema,
        seed=cfg.seed,
        tta=cfg.tta,
        debias=cfg.get("debias", False),  # configs of older runs lack it
    )


def _takes(node: DictConfig, argument: str) -> bool:
    """Return whether the constructor that a node names has an argument."""
    return argument in inspect.signature(resolve(node._target_, "", trusted=True)).parameters


def reassemble(
    cfg: DictConfig, scheme: "Scheme", crop: "CropSettings", checkpoint: Mapping[str, Any], path: Path
) -> "LandmarkModule":
    """Build the module of a checked config with the weights of a checkpoint.

    Args:
        cfg: As of `assemble`.
        scheme: Scheme of the points.
        crop: What the model is given of an image.
        checkpoint: The checkpoint's content.
        path: The checkpoint's file, for errors.

    Raises:
        UserError: The weights do not fit the model.
    """
    weights = checkpoint["state_dict"]
    module = assemble(cfg, scheme, crop, weights["mean_face"].numpy(), weights_follow=True)
    factors = checkpoint["flr"].get("radius90")
    fits = factors is None or (
        isinstance(factors, list)
        and len(factors) == len(scheme)
        and all(factor is None or isinstance(factor, float) for factor in factors)
    )
    if not fits:
        raise UserError(
            f"{path}: its radius90 is not one number for each of {len(scheme)} points; name another checkpoint"
        )
    module.about = {"radius90": factors}
    try:
        module.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: its weights do not fit the model that its config names") from error
    return module
