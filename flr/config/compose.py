"""Compose configs with Hydra, and convert them to and from plain values."""

import argparse
import json
import re
import shlex
import sys
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import flr
from flr.config.renamed import with_current_targets
from flr.errors import UserError, nearest

_PACKAGED = Path(flr.__file__).parent / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(flr.__file__).parent.parent / "conf"

OmegaConf.register_new_resolver(
    "flr.sqlite",
    lambda folder, name="mlflow.db": f"sqlite:///{Path(folder).expanduser().absolute()}/{name}",
    replace=True,
)


# -- what conf/ offers -------------------------------------------------------------------------------------------------


def groups() -> list[str]:
    """List the config groups, as ``model`` or ``tune/sampler``."""
    return [str(p.relative_to(CONF)) for p in CONF.rglob("*") if p.is_dir()]


def choices(group: str) -> dict[str, DictConfig]:
    """Load the nodes of a group by name, except for those with a mandatory value such as a file."""
    nodes = {path.stem: OmegaConf.load(path) for path in sorted((CONF / group).glob("*.yaml"))}
    return {name: node for name, node in nodes.items() if not OmegaConf.missing_keys(node)}  # type: ignore[misc]


def model_names() -> dict[str, str]:
    """Map the class of each model in ``conf/model/``, as ``flr.models.sepconv.SepConv``, to its name there."""
    return {str(node.get("_target_")): name for name, node in choices("model").items()}


def chosen(group: str) -> str:
    """Return the choice of a group that is in effect."""
    return str(HydraConfig.get().runtime.choices[group])


def compose_command(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a command's config, with its ``hydra`` node, outside of Hydra's own main function.

    Raises:
        HydraException: An override does not fit the config.
    """
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config_name, [*_search_path(), *overrides], return_hydra_config=True)


def _search_path() -> list[str]:
    """Return the override that adds the folder of ``--config-dir``, which only Hydra's main function reads."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    folder = parser.parse_known_args(sys.argv[1:])[0].config_dir
    return [f"hydra.searchpath=['file://{folder.absolute()}']"] if folder else []


def compose_evaluation(dataset: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the config of ``flr.evaluate`` with a dataset of ``on=``.

    Raises:
        UserError: An override does not fit the dataset.
    """
    try:
        return compose_command("evaluate", [*overrides, f"data={dataset}"])
    except HydraException as error:
        key = refused_key(error) or str(error).splitlines()[0]
        raise UserError(f"on={dataset}: {key} does not fit it; leave out that override, or the dataset") from error


# -- overrides ---------------------------------------------------------------------------------------------------------


def task_overrides() -> list[str]:
    """Return the overrides of the command line, without those of Hydra's own config."""
    return list(HydraConfig.get().overrides.task)


def store_words(overrides: Sequence[str]) -> str:
    """Return what another command must repeat of some overrides to find the same runs, each with a blank before it."""
    keys = ("tracking.uri", "tracking.experiment", "paths.output_dir")
    return "".join(f" {shlex.quote(word)}" for word in overrides if key_of(word) in keys)


def refine_passes(cfg: DictConfig) -> int:
    """Return the number of refinement passes, from ``refine=`` or from its old name ``looks=``, which counts one more.

    Raises:
        UserError: The command line has both.
    """
    if cfg.looks is None:
        return int(cfg.refine)
    if any(key_of(override) == "refine" for override in task_overrides()):
        raise UserError(f"looks={cfg.looks} is the old name of refine=, which is set too; leave looks= out")
    passes = int(cfg.looks) - 1
    print(f"flr: looks={cfg.looks} is now refine={passes}; looks= will be removed in the next release", file=sys.stderr)
    return passes


def key_of(override: str) -> str:
    """Return the key of an override."""
    return override.lstrip("+~").partition("=")[0]


def under(key: str, places: Collection[str]) -> bool:
    """Return whether a dotted key is one of some keys, or lies below one of them."""
    return any(key == place or key.startswith(place + ".") for place in places)


def label_of(overrides: Sequence[str], keys: Collection[str]) -> str:
    """Name a job by what varies: ``model=sepconv optim.lr=1e-3 seed=1`` is ``sepconv lr 1e-3 seed 1``."""
    known = set(groups())
    pairs = [(key_of(word), word.partition("=")[2]) for word in overrides if key_of(word) in keys]
    pairs.sort(key=lambda pair: pair[0] not in known)
    return " ".join(value if key in known else f"{key.rpartition('.')[2]} {value}" for key, value in pairs)


# -- plain values ------------------------------------------------------------------------------------------------------


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a config to plain dicts, lists and scalars, which checkpoints and records keep.

    Raises:
        UserError: An interpolation does not resolve, or a value is missing.
    """
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no value; set {error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UserError(f"config: {error}") from error


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, leaf) of nested dicts."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def spell(value: Any) -> str:
    """Write a value as in an override; a float with six digits."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {spell(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(spell, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def compose_training(overrides: Sequence[str], config_name: str = "train") -> DictConfig:
    """Compose a training's config inside another command, whose Hydra is initialised."""
    return hydra.compose(config_name, list(overrides))


def as_config(values: Mapping[str, Any]) -> DictConfig:
    """Convert the config of a run or checkpoint, which was resolved when it was written; targets get their present names.

    Raises:
        UserError: It holds an interpolation.
    """
    if "${" in json.dumps(values, default=str):
        raise UserError("the config of this run holds an interpolation, which no run writes; it is not trusted")
    return typing.cast(DictConfig, OmegaConf.create(with_current_targets(dict(values))))


# -- Hydra's errors ----------------------------------------------------------------------------------------------------


def explain(error: Exception, config_name: str) -> str:
    """Shorten Hydra's message to one line, with the nearest name that exists."""
    if isinstance(error, OverrideParseException):
        if found := re.fullmatch(r"([\w.]+)=([\w.]+)=([\w./-]+)", error.override):
            return f"{found[0]}: has two equals signs; a mapping is written '{found[1]}={{{found[2]}: {found[3]}}}'"
        return (
            f"{error.override}: cannot be read as KEY=VALUE; put a value with special signs in quotes: 'KEY=\"VALUE\"'"
        )
    text = " ".join(str(error).split())
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
        text += " " + " ".join(str(error).split())
    if found := re.search(r"Ambiguous value for argument '(.*?)' 1\. To use it as a list", text):
        key, _, value = found[1].partition("=")
        sweep = f"flr {config_name} -m sweeps over them; " if config_name in ("train", "tune") else ""
        return f"{found[1]}: several values where one is expected; {sweep}'{key}=[{value}]' is a list"
    if key := refused_key(UserError(text)):
        fix = "+KEY=VALUE adds an entry to a mapping"
        if config_name == "reproduce":
            fix = f"reproduce runs an experiment unchanged, flr train experiment=NAME {key}=VALUE trains a variant"
        return f"no config key '{key}'{nearest(key, _known_keys(config_name))}; {fix}"
    if found := re.search(
        r"Could not (?:find|load) '([\w/]+)'(?:.*?Available options in '[\w/]+': (.*?)(?: Config search|$))?", text
    ):
        group, _, choice = found[1].rpartition("/")
        options = (found[2] or "").split() or _choices_below(group)
        nested = [option for option in options if option.rpartition("/")[2] == choice]
        return f"no config '{found[1]}'" + (
            nearest(choice, nested or options) if options else f"; see the folders of {CONF.name}/"
        )
    if found := re.search(r"Could not override '([\w.@/]+)'. No match in the defaults list", text):
        return f"no config group '{found[1]}'{nearest(found[1], groups())}"
    return text


def _choices_below(group: str) -> list[str]:
    """List the choices of a group and of the folders below it, as ``records/flagship``."""
    folder = CONF / group
    return [file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml") if group]


def refused_key(error: Exception) -> str | None:
    """Return the key that Hydra did not find in the config, if that is what its error says."""
    found = re.search(r"Could not (?:override|append to config|delete from config)[. ]+'?([\w.@/]+)'?", str(error))
    return found[1] if found else None


def compose_known(config_name: str) -> DictConfig:
    """Compose a command's config from the group choices of the command line alone."""
    known = groups()
    choices = [word for word in sys.argv[1:] if "=" in word and key_of(word) in known and "," not in word]
    try:
        return compose_command(config_name, choices)
    except HydraException:  # one of the choices is what is wrong
        return compose_command(config_name, [])


def _known_keys(config_name: str) -> list[str]:
    cfg = compose_known(config_name)
    own = [group for group in groups() if group in cfg.hydra.runtime.choices]
    keys = [key for key, _ in flat(OmegaConf.to_container(cfg))]
    return [*own, *(key for key in keys if not key.startswith("hydra.") or key.startswith("hydra.launcher."))]
