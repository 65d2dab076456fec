"""Compose, check, build: the way from what the user says to objects. Hydra is imported here and in the doors only."""

import collections.abc
import contextlib
import functools
import importlib
import inspect
import json
import os
import re
import signal
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import hydra
from annotated_types import Ge, Gt, Le, Lt
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from flr.errors import UserError, nearest

if typing.TYPE_CHECKING:
    import numpy as np

    from flr.data.crops import CropSettings
    from flr.landmarks.scheme import Scheme
    from flr.module import LandmarkModule

_PACKAGED = Path(__file__).parent / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"

# What each node may build, by the longest path that leads to it. The resolved object's own module counts too, since a
# trusted module also holds what it imported. FLR_TRUST adds a user's own modules.
TRUSTED: Mapping[str, tuple[str, ...]] = {
    "augment": ("flr.augment.device.Augment", "flr.augment.albumentations.Albumentations"),
    "augment.transforms": ("albumentations",),
    "callbacks": ("flr.callbacks", "pytorch_lightning.callbacks"),
    "crop": ("flr.data.crops.CropSettings",),
    "crop.policy": ("flr.data.boxes.BoxPolicy", "flr.data.boxes.Haar"),
    "data": ("flr.data.datamodule.FaceData",),
    "data.crop": ("flr.data.crops.CropSettings",),
    "data.crop.policy": ("flr.data.boxes.BoxPolicy", "flr.data.boxes.Haar"),
    "data.download": ("flr.data.download.Download",),
    "data.reader": ("flr.data.readers",),
    "detector": ("flr.inference.detectors",),
    "effect": tuple(
        f"flr.inference.effects.{module}{name}"
        for name in ("Overlay", "Paint", "Blur", "Mask")
        for module in ("", f"{name.lower()}.")
    ),
    "model": ("flr.models", "torch.nn"),
    "objective": ("flr.objectives",),
    "optim": ("torch.optim",),
    "paths": ("flr.config.Paths",),
    "schedule": ("flr.schedules",),
    "tracking": ("flr.tracking.mlflow.Tracker",),
    "trainer": ("pytorch_lightning.Trainer", "pytorch_lightning.trainer.trainer.Trainer"),
    "tune": ("flr.config.Search",),
    "tune.pruner": ("optuna.pruners",),
    "tune.sampler": ("optuna.samplers",),
}
CLASSES = {"augment.transforms"}  # of these places classes alone: albumentations' functions also read and write files
PARTIAL = {"data.reader", "optim", "schedule"}  # built in two steps: the rest of their arguments comes later

# Arguments that the code hands in where a node is built; a config names the others.
GIVEN: Mapping[str, Set[str]] = {
    "model": {"points", "channels", "size"},
    "optim": {"params"},
    "schedule": {"optimizer", "steps"},
    "data": {"augment", "seed", "cache"},
    "data.reader": {"root", "strict"},
    "tracking": {"artifacts"},
    "trainer": {"logger", "callbacks", "default_root_dir", "enable_progress_bar", "plugins"},
}

# Keys that a node has beside its target's own; the code takes them before it builds the node.
OURS: Mapping[str, Mapping[str, Any]] = {
    "trainer": {
        "speed": typing.Literal["auto"] | None,
        "compile": typing.Literal["default", "reduce-overhead", "max-autotune"] | None,
    },
}


# Targets that have moved: configs of earlier versions hold their old names.
RENAMED: Mapping[str, str] = {
    "flr.inference.detector.HaarFaces": "flr.inference.detectors.HaarFaces",
    "flr.inference.detector.YuNet": "flr.inference.detectors.YuNet",
    "flr.inference.detector.GivenBoxes": "flr.inference.detectors.FileBoxes",
    "flr.inference.detector.WholePicture": "flr.inference.detectors.WholeImage",
}

# Keys of a training's config that change nothing of what comes out, but for rounding.
NO_RESULT = ("run", "name", "again", "accept_data", "paths", "tracking", "callbacks.progress", "callbacks.pictures", "data.root",
             "data.workers", "data.download", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
             "trainer.strategy", "trainer.sync_batchnorm", "trainer.compile")  # fmt: skip

Precision = typing.Literal["fp32", "fp16", "int8"]
Distance = typing.Annotated[float, Ge(0)]

# The variable by which a job finds its sweep: the id of its run in MLflow, and the job's number after a slash.
SWEEP = "FLR_SWEEP"

# What ends with a command, however that ends: the sweep that it has begun.
AT_END = contextlib.ExitStack()

OmegaConf.register_new_resolver(
    "flr.sqlite",
    lambda folder, name="mlflow.db": f"sqlite:///{Path(folder).expanduser().absolute()}/{name}",
    replace=True,
)


@dataclass(frozen=True)
class Paths:
    """Folders. Each is made when first written to.

    Attributes:
        data_dir: holds one folder a data set.
        output_dir: runs, the embedded tracking database, artifacts.
        cache_dir: crop stores; safe to delete.
    """

    data_dir: str
    output_dir: str
    cache_dir: str


Looks = typing.Annotated[int, Ge(1), Le(10)]
RefinePasses = typing.Annotated[int, Ge(0), Le(9)]


@dataclass(frozen=True)
class Train:
    """The top level of a training's config.

    Attributes:
        run: a run to go on with: its MLflow id or its folder.
        name: of the run in MLflow; by default made of the model, the data and the seed.
        seed: of weights, order, draws and dropout.
        ema: decay of the averaged weights that are evaluated; 0 for none.
        tta: whether evaluation averages each picture with its mirror image.
        data: the data set, `flr.data.datamodule.FaceData`.
        augment: how far training faces are bent.
        model: the net.
        objective: its coding, loss and decoding.
        optim: the optimiser.
        schedule: its rate over the training.
        trainer: Lightning's Trainer.
        callbacks: by name, null for none.
        tracking: the MLflow store.
        paths: folders.
        again: whether a sweep is a new one, which trains again what is finished.
        accept_data: whether a run whose data have changed since it stopped goes on with them.
    """

    run: str | None
    name: str | None
    seed: typing.Annotated[int, Ge(0), Lt(2**32)]
    ema: typing.Annotated[float, Ge(0), Lt(1)]
    tta: bool
    data: Any
    augment: Any
    model: Any
    objective: Any
    optim: Any
    schedule: Any
    trainer: Any
    callbacks: Any
    tracking: Any
    paths: Any
    again: bool = False  # the configs of older runs have none
    accept_data: bool = False


@dataclass(frozen=True)
class Search:
    """How a study searches.

    Attributes:
        space: config key -> its `flr.tune.Range` or `flr.tune.Choice`; dots may be levels.
        sampler: what chooses the values, of ``optuna.samplers``; its seed is a function of `seed` and the trial's number.
        pruner: what stops a hopeless trial after a validation, of ``optuna.pruners``.
        trials: of the whole study, whatever the number of its processes.
        timeout: minutes after which this process begins no further trial; null for none.
        study: its name; null makes one of what is tuned.
        storage: of the study, which all its processes share: ``sqlite:///`` and an absolute path, or ``postgresql://``.
        seed: of what the sampler draws.
        enqueue: whether the first trial is that of the config's own values.
    """

    space: dict[str, Any]
    sampler: Any
    pruner: Any
    trials: typing.Annotated[int, Ge(1)]
    timeout: typing.Annotated[float, Gt(0)] | None
    study: str | None
    storage: str
    seed: typing.Annotated[int, Ge(0), Lt(2**32)]
    enqueue: bool


@dataclass(frozen=True)
class Tune(Train):
    """The top level of a study's config: a training's, and `Search` under ``tune``."""

    tune: Any = None


@dataclass(frozen=True)
class Net:
    """What of a training's config its net is rebuilt from where the data are not.

    Attributes:
        crop: ``data.crop``.
        pixels: ``data.pixels``, what black and white become.
        offset: of the checkpoint, see `flr.data.boxes.Haar.offset`.
        doubt: of the checkpoint, the `uncertainty_threshold` of `flr.inference.landmarker.Landmarker`.
    """

    seed: int
    ema: float
    tta: bool
    crop: Any
    pixels: tuple[float, float]
    offset: tuple[float, float, float, float] | None
    doubt: float | None
    model: Any
    objective: Any
    optim: Any
    schedule: Any


@dataclass(frozen=True)
class Evaluate:
    """The top level of an evaluation's config.

    Attributes:
        run: a run's MLflow id, its folder, a checkpoint file, or a model version as ``models:/NAME@best``.
        split: the part that is scored.
        tta: whether each picture is averaged with its mirror image; null for what the run was trained with.
        looks: at each face, see `flr.inference.landmarker.Landmarker.find`.
        submission: a file to write for Kaggle, of the faces of its test.csv, in place of a score.
        data: another data set, or only another ``root`` for the run's own.
        tracking: the MLflow store that knows the run's id.
        paths: folders.
    """

    run: str
    split: typing.Literal["train", "val", "test"]
    tta: bool | None
    looks: Looks
    submission: str | None
    data: Any
    tracking: Any
    paths: Any


@dataclass(frozen=True)
class Predict:
    """The top level of a prediction's config.

    Attributes:
        run: a run's MLflow id, its folder, a checkpoint file, or a model version as ``models:/NAME@best``.
        source: a photo, a folder, a glob, a video, a camera's number or a stream's address.
        detector: what finds the faces, a class of `flr.inference.detectors`.
        out: the folder of the results; by default under paths.output_dir.
        effect: what is done to the faces of the pictures, by name, one after another; classes of `flr.inference.effects`.
        save: which results there are, beside the journal.
        draw: what is drawn on the pictures; null for boxes and points, or for nothing where there is an effect.
        overwrite: whether results that are there are thrown away.
        tta: whether each face is averaged with its mirror image; null for what the run was trained with.
        refine: Refinement passes over each face of a photo, each on a crop around the points of the pass before. In a video
            the points of the last frame give the box.
        looks: Old name of `refine`, which counts one more; null for none.
        every: Frames of a video between two runs of the detector.
        patience: seconds that a face of a video stays without the detector finding it.
        smooth: whether a video's points are smoothed.
        live: a port of this machine for a page with the annotated frames; 0 takes a free one, null none.
        frames: of a video, after which to stop; null for all.
        tracking: the MLflow store that knows the run's id.
        paths: folders.
    """

    run: str
    source: str | int
    detector: Any
    out: str | None
    save: list[typing.Literal["pictures", "crops", "csv", "coco", "pts"]]
    draw: list[typing.Literal["boxes", "points", "lines", "indices"]] | None
    overwrite: bool
    tta: bool | None
    refine: RefinePasses
    looks: Looks | None
    every: typing.Annotated[int, Ge(1), Lt(10**6)]
    patience: typing.Annotated[float, Ge(0), Lt(10**6)]
    smooth: bool
    live: typing.Annotated[int, Ge(0), Lt(2**16)] | None
    frames: typing.Annotated[int, Ge(1)] | None
    tracking: Any
    paths: Any
    effect: Any = None


@dataclass(frozen=True)
class Prepare:
    """The top level of a preparation's config.

    Attributes:
        data: the data set, `flr.data.datamodule.FaceData`.
        augment: how far faces are bent on the sheet of augmented ones, and the margin of the crop store.
        seed: of those draws.
        download: whether to fetch the set first, where its publisher has a direct address.
        export: the form to write the set in as well; null for none.
        rounded: whether exported points are whole pixels, as dlib's own tools want them.
        out: the folder of the card; by default under paths.output_dir.
        paths: folders.
    """

    data: Any
    augment: Any
    seed: typing.Annotated[int, Ge(0), Lt(2**32)]
    download: bool
    export: typing.Literal["csv", "coco", "pts", "xml"] | None
    rounded: bool
    out: str | None
    paths: Any


@dataclass(frozen=True)
class Compare:
    """The top level of a comparison's config.

    Attributes:
        runs: MLflow ids; null for all finished runs of the experiment.
        filter: what those must fulfil, in MLflow's search syntax.
        where: tag or parameter -> the value, or a list of values, that a run must have.
        group: the tag or parameter, or several, by which runs are groups of seeds.
        metric: what decides.
        baseline: the group that all others are compared with; null compares every pair.
        samples: bootstrap draws.
        resample: what they draw: ``group``, all faces of a person, clip or photo together; ``face``, one by one; null
            for groups where errors.csv names two or more, since their faces are not independent.
        seed: of those draws.
        faces: how many of the faces on which two groups differ most are shown; 0 for none.
        out: the folder of the tables and the page; by default under paths.output_dir.
        tracking: the MLflow store and the experiment.
        paths: folders.
    """

    runs: list[str] | None
    filter: str | None
    where: dict[str, str | int | float | bool | list[str | int | float | bool]] | None
    group: str | list[str]
    metric: typing.Literal["nme", "fr8", "auc8", "fr10", "auc10"]
    baseline: str | int | float | bool | None
    samples: typing.Annotated[int, Ge(1000), Lt(10**6)]
    resample: typing.Literal["face", "group"] | None
    seed: typing.Annotated[int, Ge(0), Lt(2**32)]
    faces: typing.Annotated[int, Ge(0), Lt(200)]
    out: str | None
    tracking: Any
    paths: Any


@dataclass(frozen=True)
class Reproduce:
    """The top level of a reproduction's config.

    Attributes:
        name: the experiment, as published/ibug_sepconv.
        tier: smoke, a few steps on rendered faces; eval, the test of a given run; train, the whole training.
        run: what tier=eval scores: MLflow ids, folders or checkpoint files, one a seed.
        seeds: what tier=train trains; null for those of the record.
        record: whether what came becomes the record.
        records: the folder of the records; null for experiments/ beside conf/.
        data: the set's ``root`` and ``workers``; null for what the experiment says.
        trainer: its ``accelerator`` and ``devices``, likewise.
        tracking: the MLflow store.
        paths: folders.
    """

    name: str | None
    tier: typing.Literal["smoke", "eval", "train"]
    run: str | list[str] | None
    seeds: list[typing.Annotated[int, Ge(0), Lt(2**32)]] | None
    record: bool
    records: str | None
    data: Any
    trainer: Any
    tracking: Any
    paths: Any


@dataclass(frozen=True)
class Export:
    """The top level of an export's config.

    Attributes:
        run: a run's MLflow id, its folder, a checkpoint file, or a model version as ``models:/NAME@best``.
        format: of the file.
        precision: of the net inside; points are decoded in 32 bit.
        tta: whether each crop is averaged with its mirror image; null for what the run was trained with.
        out: the file; by default in the run's folder.
        overwrite: whether one that is there may be replaced.
        data: its ``root``, where the run's own set lies; null for where it lay.
        faces: of its test part, on which the file is held against the net.
        tolerance: precision -> the largest and the mean distance by which points may differ, crop pixels.
        tracking: the MLflow store that knows the run's id.
        paths: folders.
    """

    run: str
    format: typing.Literal["onnx", "torchscript", "pt2"]
    precision: Precision
    tta: bool | None
    out: str | None
    overwrite: bool
    data: dict[typing.Literal["root"], str | None]
    faces: typing.Annotated[int, Ge(2), Lt(10**5)]
    tolerance: dict[Precision, tuple[Distance, Distance]]
    tracking: Any
    paths: Any


@dataclass(frozen=True)
class App:
    """The top level of the app's config.

    Attributes:
        run: what the page begins with: a run's MLflow id, its folder, a checkpoint or exported file, or a model version as
            ``models:/NAME@best``; null for the newest run.
        refine: Refinement passes over each face of a photo, as of `Predict`.
        looks: Old name of `refine`, which counts one more; null for none.
        host: an address of this machine at which the page is; 127.0.0.1 can be reached from this machine alone.
        port: of the page; 0 takes a free one.
        detector: what finds the faces at first, a class of `flr.inference.detectors`.
        effect: what is done to the faces at first, by name; classes of `flr.inference.effects`.
        tracking: the MLflow store whose runs can be chosen.
        paths: folders.
    """

    run: str | None
    refine: RefinePasses
    looks: Looks | None
    host: str
    port: typing.Annotated[int, Ge(0), Lt(2**16)]
    detector: Any
    tracking: Any
    paths: Any
    effect: Any = None


# -- doors -------------------------------------------------------------------------------------------------------------


def door(work: Callable[[DictConfig], None], config_name: str, in_order: bool = False) -> None:
    """Run a command: compose its config, do the work, turn a user's error into one line and exit code 2.

    Args:
        work: what it does.
        config_name: of its config in ``conf/``.
        in_order: whether SIGTERM ends it as an exception does, by exit code 143, so that nothing stays half done. Trainings
            have a way of their own.
    """
    if in_order:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises then, and the errors can be told here

    @functools.wraps(work)
    def job(cfg: DictConfig) -> None:
        try:
            work(cfg)
        except UserError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            _refuse(str(error))  # before Hydra adds lines of its own

    try:
        with AT_END:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except BrokenPipeError:
        sys.stdout = None  # the reader of our output has gone, as `| head` does
    except UserError as error:
        _refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(_explain(error, config_name))
    except ValueError as error:
        if "Only one of --run" in str(error):
            _refuse(f"{' '.join(str(error).split())}; leave -m out to look at one job's config")
        if "Config group override must be a string" not in str(error):
            raise
        _refuse(
            "a config group cannot be null; name one of its choices (a callback is left out by callbacks.NAME=null)"
        )
    except RecursionError:
        _refuse("what was read is nested too deeply to be a config, a record or a checkpoint; name another file")
    except KeyboardInterrupt:
        print("flr: interrupted", file=sys.stderr)
        sys.exit(130)


def _refuse(text: str) -> typing.NoReturn:
    print(f"flr: {text}", file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Have an error end the command also where Hydra would make a warning of it, as in its callbacks."""
    try:
        yield
    except (UserError, HydraException) as error:
        _refuse(" ".join(str(error).split()))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _explain(error: Exception, config_name: str) -> str:
    """Hydra's message as one line, with the nearest name that would have worked."""
    text = " ".join(str(error).split())
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
        text += " " + " ".join(str(error).split())
    if found := re.search(r"Could not (?:override|append to config|delete from config)[. ]+'?([\w.@/]+)'?", text):
        key = found[1]
        mend = "+KEY=VALUE adds one that a target knows"
        if config_name == "reproduce":
            mend = f"a recipe is reproduced as it is, python -m flr.train experiment=NAME {key}=VALUE trains another"
        return f"no config key '{key}'{nearest(key, _known_keys(config_name))}; {mend}"
    if found := re.search(
        r"Could not (?:find|load) '([\w/]+)'(?:.*?Available options in '[\w/]+': (.*?)(?: Config search|$))?", text
    ):
        group, _, choice = found[1].rpartition("/")
        options = (found[2] or "").split() or [file.stem for file in (CONF / group).glob("*.yaml") if group]
        return f"no config '{found[1]}'" + (
            nearest(choice, options) if options else f"; see the folders of {CONF.name}/"
        )
    if found := re.search(r"Could not override '([\w.@/]+)'. No match in the defaults list", text):
        return f"no config group '{found[1]}'{nearest(found[1], groups())}"
    return text


def groups() -> list[str]:
    """The config's groups, as ``model``."""
    return [str(p.relative_to(CONF)) for p in CONF.rglob("*") if p.is_dir()]


def choices(group: str) -> dict[str, DictConfig]:
    """The nodes of a group of ``conf/`` by name, but for those that want another word, such as a file."""
    nodes = {path.stem: OmegaConf.load(path) for path in sorted((CONF / group).glob("*.yaml"))}
    return {name: node for name, node in nodes.items() if not OmegaConf.missing_keys(node)}  # type: ignore[misc]


def chosen(group: str) -> str:
    """The choice of a group that the user, or a default, has made."""
    return str(HydraConfig.get().runtime.choices[group])


def _known_keys(config_name: str) -> list[str]:
    GlobalHydra.instance().clear()
    known = groups()
    choices = [word for word in sys.argv[1:] if word.split("=")[0] in known and "," not in word]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = hydra.compose(config_name, choices, return_hydra_config=True)
        except HydraException:  # a choice is what is wrong
            cfg = hydra.compose(config_name, return_hydra_config=True)
    own = [group for group in known if group in cfg.hydra.runtime.choices]
    keys = [key for key, _ in flat(OmegaConf.to_container(cfg))]
    return [*own, *(key for key in keys if not key.startswith("hydra.") or key.startswith("hydra.launcher."))]


def quiet() -> None:
    """Lightning's tips and its notes on settings that are meant, MLflow's links at a run's end; errors stay."""
    import logging

    importlib.import_module("pytorch_lightning")  # which sets the level of its loggers
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    # They would follow the line that says why a job failed.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def task_overrides() -> list[str]:
    """What the user typed, less Hydra's own words."""
    return list(HydraConfig.get().overrides.task)


def under(key: str, places: Collection[str]) -> bool:
    """Whether a dotted key is one of some, or lies below one."""
    return any(key == place or key.startswith(place + ".") for place in places)


# -- sweeps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """The jobs of a sweep.

    Attributes:
        preset: its name in ``conf/sweep/``; None where the command line alone says what is swept.
        values: swept key -> its values.
        jobs: the words of each, in their order; none where the sweeper finds them as it goes.
    """

    preset: str | None
    values: dict[str, list[str]]
    jobs: list[list[str]]

    def __str__(self) -> str:
        return " ".join(f"{key}={','.join(values)}" for key, values in self.values.items())


def grid_of(config: DictConfig) -> Grid:
    """The grid of a sweep's composed config, with its ``hydra`` node.

    Raises:
        UserError: it has no jobs, as a glob that matches nothing.
    """
    given, sweeper = config.hydra, config.hydra.sweeper
    words = [*(f"{key}={values}" for key, values in (sweeper.get("params") or {}).items()), *given.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    preset = given.runtime.choices.get("sweep")
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        swept = {str(o.input_line).partition("=")[::2] for o in overrides if o.is_sweep_override()}
        return Grid(preset, {key.lstrip("+~"): [values] for key, values in swept}, [])
    jobs = BasicSweeper.split_arguments(overrides, None)[0]
    if not jobs:
        empty = [str(o.input_line) for o in overrides if o.is_sweep_override()]
        raise UserError(f"{' '.join(empty)}: matches nothing, so there is no job; list the values, or see {CONF.name}/")
    columns = (list(dict.fromkeys(column)) for column in zip(*jobs, strict=True))
    values = {key_of(words[0]): [word.partition("=")[2] for word in words] for words in columns if len(words) > 1}
    return Grid(preset, values, jobs)


def check_launcher(config: DictConfig) -> None:
    """Bind the launcher's keys to its signature, as `check` does those of what trains.

    Raises:
        UserError: as `check`.
    """
    _walk(plain(config.hydra.launcher), Any, "hydra.launcher", trusted=True)


def key_of(word: str) -> str:
    """The key of an override."""
    return word.lstrip("+~").partition("=")[0]


def label_of(words: list[str], keys: Collection[str]) -> str:
    """A job's name, by what varies: ``model=sepconv optim.lr=1e-3 seed=1`` is ``sepconv lr 1e-3 seed 1``."""
    known = set(groups())
    said = [(key_of(word), word.partition("=")[2]) for word in words if key_of(word) in keys]
    said.sort(key=lambda pair: pair[0] not in known)
    return " ".join(value if key in known else f"{key.rpartition('.')[2]} {value}" for key, value in said)


def sweep_folder() -> Path | None:
    """The folder that the jobs of one ``-m`` share; None for a single run."""
    job = HydraConfig.get()
    return Path(job.sweep.dir) if job.mode == RunMode.MULTIRUN else None


# -- plain values ------------------------------------------------------------------------------------------------------


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config resolved to plain dicts, lists and scalars: what checkpoints and records keep.

    Raises:
        UserError: an interpolation does not resolve, or a value is missing.
    """
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no value; set {error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UserError(f"config: {error}") from error


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) of nested dicts."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_config(values: Mapping[str, Any]) -> DictConfig:
    """A config that came from a run or checkpoint. Interpolations are refused: it was resolved when it was written."""
    if "${" in json.dumps(values, default=str):
        raise UserError("the config of this run holds an interpolation, which no run writes; it is not trusted")
    return typing.cast(DictConfig, OmegaConf.create(dict(values)))


# -- checking ----------------------------------------------------------------------------------------------------------


def check(cfg: DictConfig, schema: type, trusted: bool = True, path: str = "") -> None:
    """Bind every node's keys to the signature of its ``_target_``, and every value to its type, before work starts.

    Args:
        cfg: a composed config.
        schema: the dataclass of its top level.
        trusted: False to hold every target to `TRUSTED`, as for a config that came with a run or checkpoint.
        path: where it stands, said in errors.

    Raises:
        UserError: an unknown or missing key, a wrong type, a target that does not exist or is not allowed.
    """
    values = plain(cfg)
    keys = {field.name for field in fields(schema)} - {"callbacks"} if schema in (Train, Net) else set()
    for name in (name for name in TRUSTED if name in keys):
        if not (isinstance(values.get(name), dict) and "_target_" in values[name]):
            raise UserError(f"{name} is no node with a _target_; choose one by {name}=NAME")
    _bind(values, schema, path, trusted)


def _bind(node: dict[str, Any], target: Callable[..., Any], path: str, trusted: bool) -> None:
    parameters = inspect.signature(target).parameters
    slot = _slot(path)
    given, ours = GIVEN.get(slot, frozenset()), OURS.get(slot, {})
    hints = {**_hints(target), **ours}
    own = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - given
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    where = f"{path}." if path else ""
    if path and bool(node.get("_partial_")) != (slot in PARTIAL):
        raise UserError(f"{path}._partial_ must be {str(slot in PARTIAL).lower()}")
    for key, value in node.items():
        if key in ("_target_", "_partial_"):
            continue
        if key not in own and key not in ours and not open_ended:
            raise UserError(f"{where}{key} is not a key of {_title(target)}{nearest(key, {*own, *ours})}")
        _walk(value, hints.get(key, Any), where + key, trusted)
    missing = [
        name for name in own
        if parameters[name].default is inspect.Parameter.empty and name not in node
    ]  # fmt: skip
    if missing:
        raise UserError(f"{where}{missing[0]} is missing; {_title(target)} needs it")


def _slot(path: str) -> str:
    """The rule that a node falls under: each set's reader in a mix is a reader."""
    return re.sub(r"^data\.reader\.sets\.[^.]+\.reader$", "data.reader", path)


def _walk(value: Any, hint: Any, path: str, trusted: bool) -> None:
    """Check a value, and every node inside it wherever it stands: what is not looked at here must not be built."""
    if isinstance(value, dict) and "_target_" in value:
        _bind(value, resolve(value["_target_"], path, trusted), path, trusted)
        return
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, item in inner:
        _walk(item, Any, f"{path}.{key}", trusted)
    if any(isinstance(item, dict) and "_target_" in item for _, item in inner):
        return  # nodes were bound to their own signatures; the type is of what will be built of them
    if hint is not Any and not (isinstance(value, dict) and typing.get_origin(hint) is collections.abc.Callable):
        _check_type(value, hint, path)


def _check_type(value: Any, hint: Any, path: str) -> None:
    from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        try:
            adapter = TypeAdapter(hint)
        except (PydanticSchemaGenerationError, PydanticUserError):
            return  # a type that no YAML value could stand for, checked by the constructor itself
    try:
        # JSON mode: strict about scalars, while a list may stand for a tuple, as it must in YAML.
        adapter.validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        kind = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise UserError(f"{path}={value} does not fit {kind}: {reason}") from error


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function: Any = vars(target).get("__init__", target.__init__) if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # a library's own hints that cannot be evaluated here say nothing
        return {}


def _title(target: Callable[..., Any]) -> str:
    return target.__name__ if target.__module__ == __name__ else f"{target.__module__}.{target.__qualname__}"


def resolve(target: str, path: str, trusted: bool) -> Callable[..., Any]:
    """The object that a ``_target_`` names.

    Raises:
        UserError: there is none, or it may not be built from a config that came from outside.
    """
    target = RENAMED.get(str(target), str(target))
    module_name, _, name = target.rpartition(".")
    if not trusted and not _allowed(str(target), path):
        raise UserError(
            f"{path}: {target} lies outside what a run may build; if it is yours, set FLR_TRUST={str(target).split('.')[0]}"
        )
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
        raise UserError(
            f"{path}: {target} lies outside what a run may build; if it is yours, set FLR_TRUST={str(target).split('.')[0]}"
        )
    return found


def _place(path: str) -> str:
    """The longest path of `TRUSTED` that leads to a node; empty where none does."""
    return max((place for place in TRUSTED if path == place or path.startswith(place + ".")), key=len, default="")


def _allowed(name: str, path: str) -> bool:
    roots = TRUSTED.get(_place(path), ())
    own = (word for word in os.environ.get("FLR_TRUST", "").split(",") if word)
    return any(name == root or name.startswith(root + ".") for root in (*roots, *own))


# -- building ----------------------------------------------------------------------------------------------------------


def build(node: Any, **given: Any) -> Any:
    """The object of a checked node, its inner nodes first; with ``_partial_``, a partial of its target.

    Args:
        node: plain values or a config.
        given: arguments that the code hands in, as they are.

    Raises:
        UserError: the constructor refuses its arguments.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, list):
        return [build(item) for item in node]
    if not isinstance(node, dict):
        return node
    values = {key: build(value) for key, value in node.items() if key not in ("_target_", "_partial_")} | given
    if "_target_" not in node:
        return values
    target = resolve(node["_target_"], "", trusted=True)
    if node.get("_partial_"):
        return functools.partial(target, **values)
    lenient = target.__module__.partition(".")[0] == "albumentations"
    try:
        # albumentations only warns of an argument that it drops or alters, and raises anything of a wrong one.
        with warnings.catch_warnings(action="error") if lenient else contextlib.nullcontext():
            return target(**values)
    except Exception as error:
        # Lightning's own kind for a wrong argument; its module is not worth an import here.
        told = lenient or isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException"
        if told or (target.__module__.startswith("pytorch_lightning.") and isinstance(error, TypeError | ImportError)):
            raise UserError(f"{node['_target_']}: {error}") from error
        raise


def assemble(
    cfg: DictConfig, scheme: "Scheme", crop: "CropSettings", mean_face: "np.ndarray", weights_follow: bool = False
) -> "LandmarkModule":
    """The module of a checked config.

    Args:
        cfg: the top level, of `Train` or of `Net`.
        scheme: of the points.
        crop: what the net sees.
        mean_face: (K, 2) crop pixels, the baseline.
        weights_follow: whether a checkpoint's will be loaded, so that a pretrained start need not be fetched.
    """
    from flr.module import LandmarkModule

    model = dict(cfg.model)
    if weights_follow and "pretrained" in model:
        model["pretrained"] = False
    return LandmarkModule(
        net=build(model, points=len(scheme), channels=crop.channels, size=crop.size),
        objective=build(cfg.objective),
        scheme=scheme,
        size=crop.size,
        mean_face=mean_face,
        optim=build(cfg.optim),
        schedule=build(cfg.schedule),
        ema=cfg.ema,
        seed=cfg.seed,
        tta=cfg.tta,
    )


def reassemble(
    cfg: DictConfig, scheme: "Scheme", crop: "CropSettings", checkpoint: Mapping[str, Any], path: Path
) -> "LandmarkModule":
    """`assemble` with the weights of a checkpoint, which was read from `path`.

    Raises:
        UserError: they do not fit the net.
    """
    weights = checkpoint["state_dict"]
    module = assemble(cfg, scheme, crop, weights["mean_face"].numpy(), weights_follow=True)
    try:
        module.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: its weights do not fit the net that its config names") from error
    return module
