"""Check a composed config against the signatures of what it builds, before any work starts."""

import collections.abc
import importlib
import inspect
import json
import os
import re
import typing
from collections.abc import Callable, Mapping, Set
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flr.config.compose import plain
from flr.config.describe import describe_type
from flr.config.renamed import current_target
from flr.config.schema import COMMANDS, Net, Train
from flr.errors import UserError, nearest

# What each node may build, by the longest path that leads to it. The resolved object's own module is checked too, since a
# trusted module also holds what it imported. FLR_TRUST adds a user's own modules.
TRUSTED: Mapping[str, tuple[str, ...]] = {
    "augment": ("flr.augment.device.Augment", "flr.augment.albumentations.Albumentations"),
    "augment.transforms": ("albumentations",),
    "callbacks": ("flr.training.callbacks", "pytorch_lightning.callbacks"),
    "crop": ("flr.data.crops.CropSettings",),
    "crop.policy": ("flr.data.boxes.BoxPolicy", "flr.data.boxes.Haar", "flr.data.finders"),
    "data": ("flr.data.datamodule.FaceData", "flr.detection.patches.SceneData"),
    "data.crop": ("flr.data.crops.CropSettings",),
    "data.crop.policy": ("flr.data.boxes.BoxPolicy", "flr.data.boxes.Haar", "flr.data.finders"),
    "data.download": ("flr.data.download.Download",),
    "data.reader": ("flr.data.readers",),
    "detector": ("flr.inference.detectors",),
    "effect": tuple(
        f"flr.inference.effects.{module}{name}"
        for name in ("Overlay", "Paint", "Blur", "Mask")
        for module in ("", f"{name.lower()}.")
    ),
    "model": ("flr.models", "torch.nn", "flr.detection.network"),
    "objective": ("flr.objectives",),
    "optim": ("torch.optim",),
    "paths": ("flr.config.schema.Paths",),
    "schedule": ("flr.training.schedules",),
    "tracking": ("flr.tracking.tracker.Tracker",),
    "trainer": ("pytorch_lightning.Trainer", "pytorch_lightning.trainer.trainer.Trainer"),
    "tune": ("flr.config.schema.Search",),
    "tune.pruner": ("optuna.pruners",),
    "tune.sampler": ("optuna.samplers",),
}
CLASSES = {"augment.transforms"}  # only classes here: albumentations' functions also read and write files
PARTIAL = {"data.reader", "optim", "schedule"}  # built in two steps: the rest of their arguments comes later

# Arguments that the code passes when it builds a node; a config sets the others.
RUNTIME_ARGS: Mapping[str, Set[str]] = {
    "model": {"points", "channels", "size", "output"},
    "objective": {"mean_face"},
    "optim": {"params"},
    "schedule": {"optimizer", "steps"},
    "data": {"augment", "seed", "cache"},
    "data.reader": {"root", "strict"},
    "tracking": {"artifacts"},
    "trainer": {"logger", "callbacks", "default_root_dir", "enable_progress_bar", "plugins"},
}

# Keys of a node in addition to its target's arguments; the code takes them out before it builds the node.
EXTRA_KEYS: Mapping[str, Mapping[str, Any]] = {
    "trainer": {
        "speed": typing.Literal["auto"] | None,
        "compile": typing.Literal["default", "reduce-overhead", "max-autotune"] | None,
        "tf32": bool,
        "sync_batchnorm": bool | None,
    },
}


def check(cfg: DictConfig, schema: type, trusted: bool = True, path: str = "") -> None:
    """Check every node's keys against the signature of its ``_target_``, and every value against its type.

    Args:
        cfg: A composed config.
        schema: The dataclass of its top level.
        trusted: False to hold every target to `TRUSTED`, as for a config from a run or checkpoint.
        path: The config's key, for errors.

    Raises:
        UserError: An unknown or missing key, a wrong type, or a target that does not exist or is not allowed.
    """
    values = plain(cfg)
    keys = {field.name for field in fields(schema)} - {"callbacks"} if schema in (Train, Net) else set()
    for name in (name for name in TRUSTED if name in keys):
        if not (isinstance(values.get(name), dict) and "_target_" in values[name]):
            raise UserError(f"{name} is not a node with a _target_; choose one by {name}=NAME")
    _bind(values, schema, path, trusted)


def check_without_tracker(cfg: DictConfig, schema: type) -> None:
    """Check a config except for its tracker, which brings torch and MLflow.

    Raises:
        UserError: As of `check`.
    """
    without_tracker = cfg.copy()
    without_tracker.tracking = None
    check(without_tracker, schema)


def accepts(cfg: DictConfig, key: str) -> bool:
    """Return whether a key names an argument of the constructor of its node that the node does not list."""
    path, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, path) if path else None
    if not isinstance(node, DictConfig) or "_target_" not in node or name in node:
        return False
    return name in inspect.signature(resolve(node._target_, path, trusted=True)).parameters


def check_launcher(config: DictConfig) -> None:
    """Check the keys of ``hydra.launcher`` against its signature.

    Raises:
        UserError: An unknown or missing key, or a wrong type.
    """
    _walk(plain(config.hydra.launcher), Any, "hydra.launcher", trusted=True)


def _bind(node: dict[str, Any], target: Callable[..., Any], path: str, trusted: bool) -> None:
    parameters = inspect.signature(target).parameters
    slot = _slot(path)
    runtime, extra = RUNTIME_ARGS.get(slot, frozenset()), EXTRA_KEYS.get(slot, {})
    hints = {**_hints(target), **extra}
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - runtime
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    where = f"{path}." if path else ""
    if path and bool(node.get("_partial_")) != (slot in PARTIAL):
        raise UserError(f"{path}._partial_ must be {str(slot in PARTIAL).lower()}")
    for key, value in node.items():
        if key in ("_target_", "_partial_"):
            continue
        if key not in named and key not in extra and not open_ended:
            raise UserError(f"{where}{key} is not a key of {_title(target)}{nearest(key, {*named, *extra})}")
        _walk(value, hints.get(key, Any), where + key, trusted)
    missing = [
        name for name in named
        if parameters[name].default is inspect.Parameter.empty and name not in node
    ]  # fmt: skip
    if missing:
        raise UserError(f"{where}{missing[0]} is missing; {_title(target)} needs it")


def _slot(path: str) -> str:
    """Return the path whose rules a node falls under: each dataset of a mix has a reader."""
    return re.sub(r"^data\.reader\.sets\.[^.]+\.reader$", "data.reader", path)


def _walk(value: Any, hint: Any, path: str, trusted: bool) -> None:
    """Check a value and every node inside it, however deep: an unchecked node must not be built."""
    if isinstance(value, dict) and "_target_" in value:
        _bind(value, resolve(value["_target_"], path, trusted), path, trusted)
        return
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, item in inner:
        _walk(item, Any, f"{path}.{key}", trusted)
    if any(isinstance(item, dict) and "_target_" in item for _, item in inner):
        return  # the nodes were checked; the type is that of the objects built from them
    if hint is not Any and not (isinstance(value, dict) and typing.get_origin(hint) is collections.abc.Callable):
        _check_type(value, hint, path)


def _check_type(value: Any, hint: Any, path: str) -> None:
    # Needs .1 s, which --help does without.
    from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        try:
            adapter = TypeAdapter(hint)
        except (PydanticSchemaGenerationError, PydanticUserError):
            return  # a type that no YAML value has, checked by the constructor itself
    try:
        # JSON mode: strict about scalars, while a list may stand for a tuple, as it must in YAML.
        adapter.validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        kind = describe_type(hint)
        if kind.startswith("mapping") and not isinstance(value, dict):
            kind = f"a mapping, written as '{path}={{KEY: VALUE}}'"
        raise UserError(f"{path}={'null' if value is None else value}: expected {kind}") from error


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function: Any = vars(target).get("__init__", target.__init__) if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # a library's hints that cannot be evaluated here
        return {}


def _title(target: Callable[..., Any]) -> str:
    return (
        target.__name__
        if target in COMMANDS.values() or target.__module__ == Train.__module__
        else f"{target.__module__}.{target.__qualname__}"
    )


def resolve(target: str, path: str, trusted: bool) -> Callable[..., Any]:
    """Import the object that a ``_target_`` names, under its present name if it has moved.

    Raises:
        UserError: It does not exist, or may not be built from a config that came from outside.
    """
    target = current_target(str(target))
    module_name, _, name = target.rpartition(".")
    root = target.partition(".")[0]
    library = any(place.partition(".")[0] == root for places in TRUSTED.values() for place in places)
    fix = "derive a class in a module of yours" if library else f"if it is yours, set FLR_TRUST={root}"
    refused = UserError(f"{path}: {target} is not among the objects that a run may build; {fix}")
    if not trusted and not _allowed(target, path):
        raise refused
    module = None
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, name)
    except (ImportError, AttributeError, ValueError) as error:
        near = nearest(name, dir(module)) if module else f" ({error})"
        raise UserError(f"{path}._target_={target}: no such class or function{near}") from error
    if not callable(found):
        raise UserError(f"{path}._target_={target} is not a class or function")
    own_name = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
    wrong_kind = _place(path) in CLASSES and not isinstance(found, type)
    if not trusted and (wrong_kind or not _allowed(own_name, path)):
        raise refused
    return found


def _place(path: str) -> str:
    """Return the longest path of `TRUSTED` that leads to a node; empty where none does."""
    return max((place for place in TRUSTED if path == place or path.startswith(place + ".")), key=len, default="")


def _allowed(name: str, path: str) -> bool:
    roots = TRUSTED.get(_place(path), ())
    own = (word for word in os.environ.get("FLR_TRUST", "").split(",") if word)
    return any(name == root or name.startswith(root + ".") for root in (*roots, *own))
