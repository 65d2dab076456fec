"""What has moved or gone since flr 0.1: configs of its runs and checkpoints hold the old names."""

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {
    "flr.config.Paths": "flr.config.schema.Paths",
    "flr.config.Search": "flr.config.schema.Search",
    "flr.tracking.mlflow.Tracker": "flr.tracking.tracker.Tracker",
    "flr.callbacks.Progress": "flr.training.callbacks.Progress",
    "flr.callbacks.ValidationPictures": "flr.training.callbacks.ValidationImages",
    "flr.training.callbacks.ValidationPictures": "flr.training.callbacks.ValidationImages",
    **{
        f"flr.schedules.{name}": f"flr.training.schedules.{name}" for name in ("constant", "cosine", "onecycle", "step")
    },
}
# Arguments that are gone, of present targets.
REMOVED: Mapping[str, tuple[str, ...]] = {
    "flr.data.readers.ibug_xml.read": ("mirrored", "train", "test"),
    "flr.data.readers.muct.read": ("mirrored",),
}


def current_target(target: str) -> str:
    """Return the present name of a ``_target_``."""
    return RENAMED.get(target, target)


def with_current_targets(node: Any) -> Any:
    """Copy plain values, with the present name of each ``_target_`` in them and without the arguments that it lost."""
    if isinstance(node, dict):
        gone = REMOVED.get(str(node.get("_target_")), ())
        return {
            key: current_target(value) if key == "_target_" and isinstance(value, str) else with_current_targets(value)
            for key, value in node.items()
            if key not in gone
        }
    return [with_current_targets(item) for item in node] if isinstance(node, list) else node
