"""Build the objects of a checked config."""

import contextlib
import functools
import warnings
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from flr.config.validate import resolve
from flr.errors import UserError


def build(node: Any, **arguments: Any) -> Any:
    """Build the object of a checked node, its inner nodes first; with ``_partial_``, a partial of its target.

    Args:
        node: Plain values or a config.
        arguments: Further arguments of the target, passed as they are.

    Raises:
        UserError: The constructor rejects its arguments.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, list):
        return [build(item) for item in node]
    if not isinstance(node, dict):
        return node
    values = {key: build(value) for key, value in node.items() if key not in ("_target_", "_partial_")} | arguments
    if "_target_" not in node:
        return values
    target = resolve(node["_target_"], "", trusted=True)
    if node.get("_partial_"):
        return functools.partial(target, **values)
    lenient = target.__module__.partition(".")[0] == "albumentations"
    try:
        # albumentations only warns of an argument that it drops or alters, and raises errors of any class.
        with warnings.catch_warnings(action="error") if lenient else contextlib.nullcontext():
            return target(**values)
    except Exception as error:
        # Lightning's own class for a wrong argument; its module is not worth an import here.
        expected = lenient or isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException"
        if expected or (
            target.__module__.startswith("pytorch_lightning.") and isinstance(error, TypeError | ImportError)
        ):
            raise UserError(f"{node['_target_']}: {error}") from error
        raise
