"""Define the config of each command, one dataclass a command.

The docstrings are the text of ``flr COMMAND --help``: first the command's summary, and under ``Attributes`` its keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from flr.config.detector_schema import TrainDetector

# Keys of a training config that change nothing but rounding in its result.
RESULT_NEUTRAL_KEYS = ("run", "name", "again", "accept_data", "paths", "tracking", "callbacks.progress", "callbacks.pictures",
                       "data.root", "data.workers", "data.download", "trainer.accelerator", "trainer.devices",
                       "trainer.num_nodes", "trainer.strategy", "trainer.sync_batchnorm", "trainer.compile",
                       "trainer.tf32", "trainer.deterministic")  # fmt: skip

Seed = Annotated[int, Ge(0), Lt(2**32)]
Port = Annotated[int, Ge(0), Lt(2**16)]
Passes = Annotated[int, Ge(1), Le(10)]
RefinePasses = Annotated[int, Ge(0), Le(9)]
Precision = Literal["fp32", "fp16", "int8"]
Distance = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Paths:
    """Folders, each created when it is first written to.

    Attributes:
        data_dir: Folder with one subfolder per dataset.
        output_dir: Folder of the runs, the embedded tracking database and its artifacts.
        cache_dir: Folder of the crop stores; safe to delete.
    """

    data_dir: str
    output_dir: str
    cache_dir: str


@dataclass(frozen=True)
class Train:
    """Train, track and test a landmark model, or resume a run.

    Commas sweep over values: ``flr train -m model=sepconv,pfld seed=0,1,2``. A preset of ``sweep=`` needs no ``-m``.

    Attributes:
        run: Run to resume: its MLflow id or its folder. null starts a new run.
        name: Name of the run in MLflow. null makes one from the model, the dataset and the seed.
        seed: Seed of the weights, the order, the augmentation and dropout.
        ema: Decay of the averaged weights that are evaluated; 0 for none.
        tta: Whether evaluation averages each image with its mirror image.
        debias: Whether each point is moved by the median of its errors on the validation faces.
        data: Dataset, its crops and its batches.
        augment: Augmentation of the training faces.
        model: Network.
        objective: Target coding, loss and decoding.
        optim: Optimizer.
        schedule: Learning rate over the training.
        trainer: Lightning's Trainer.
        callbacks: Lightning callbacks by name; null removes one.
        tracking: MLflow store and experiment.
        paths: Folders of data, outputs and caches.
        again: Whether a sweep starts anew and trains its finished jobs again.
        accept_data: Whether a run resumes although its data have changed since it stopped.
    """

    run: str | None
    name: str | None
    seed: Seed
    ema: Annotated[float, Ge(0), Lt(1)]
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
    again: bool = False  # configs of older runs lack these
    debias: bool = False
    accept_data: bool = False


@dataclass(frozen=True)
class Search:
    """How a study searches.

    Attributes:
        space: Config key -> its range {low: A, high: B}, with log: true or step: C, or {choices: [A, B]}.
        sampler: Optuna sampler, seeded by `seed` and the trial's number.
        pruner: Optuna pruner, which stops a hopeless trial after a validation.
        trials: Trials of the whole study, over all its processes.
        timeout: Minutes after which this process starts no further trial; null for no limit.
        study: Name of the study; null makes one from what is tuned, so that the same command resumes it.
        storage: Database that all processes of the study share: sqlite:/// with an absolute path, or postgresql://.
        seed: Seed of the sampler.
    """

    space: dict[str, Any]
    sampler: Any
    pruner: Any
    trials: Annotated[int, Ge(1)]
    timeout: Annotated[float, Gt(0)] | None
    study: str | None
    storage: str
    seed: Seed


@dataclass(frozen=True)
class Tune(Train):
    """Search for the values of config keys with the lowest val/nme.

    The config is that of ``flr train`` and the search under ``tune``. ``tune.space.optim.lr.low=1e-5`` moves a bound,
    ``~tune.space.optim.lr`` removes a range, ``'+tune.space.optim.weight_decay={low: 1e-4, high: 0.1, log: true}'`` adds one.

    Attributes:
        tune: What is searched, and how.
    """

    tune: Any = None


@dataclass(frozen=True)
class Net:
    """The part of a training config from which its model is rebuilt without the data, and two values of the checkpoint.

    Attributes:
        seed, ema, tta, debias, model, objective, optim, schedule: The keys of these names.
        crop: ``data.crop``.
        pixels: ``data.pixels``, the values of black and white.
        offset: See `flr.data.boxes.Haar.offset`.
        doubt, radius90: ``uncertainty_threshold`` and ``radius_factors`` of `flr.inference.landmarker.Landmarker`.
    """

    seed: int
    ema: float
    tta: bool
    debias: bool
    crop: Any
    pixels: tuple[float, float]
    offset: tuple[float, float, float, float] | None
    doubt: float | None
    radius90: list[float | None] | None
    model: Any
    objective: Any
    optim: Any
    schedule: Any


@dataclass(frozen=True)
class Evaluate:
    """Score a trained model.

    The run's config comes from its checkpoint; ``data=NAME`` scores it on another dataset.

    Attributes:
        run: Run to score, or a list of runs: MLflow id, folder, checkpoint file, or model version as models:/NAME@best.
        on: Datasets on which each run is scored, for a table of runs by datasets; null for the one of `data`.
        stress: Corruptions under which each run is scored, at five severities: all, or a list; null for none.
        baseline: Run whose errors under stress are 100 % of the mean corruption error; null for none.
        stress_seed: Seed of the corruptions.
        split: Split that is scored.
        tta: Whether each image is averaged with its mirror image. null takes the run's own setting.
        refine: Refinement passes over each face, each on a crop around the points of the previous one.
        looks: Old name of `refine`, which counts one more; null for none.
        device: auto, cpu, cuda, cuda:1 or mps. auto takes the CPU for a run of trainer.accelerator=cpu.
        data: Another dataset, or only another data.root for the run's own dataset.
        tracking: MLflow store that knows the run's id.
        paths: Folders of data, outputs and caches.
    """

    run: str | list[str]
    on: list[str] | None
    stress: str | list[str] | None
    baseline: str | None
    stress_seed: Seed
    split: Literal["train", "val", "test"]
    tta: bool | None
    refine: RefinePasses
    looks: Passes | None
    device: str
    data: Any
    tracking: Any
    paths: Any


@dataclass(frozen=True)
class Predict:
    """Find faces and their points in photos, videos and camera images.

    Attributes:
        run: ``included`` for the installed model, a run's MLflow id, its folder, a file, or models:/NAME@best.
        source: A photo, a folder, a video, a camera's number or a stream's address.
        detector: Face detector.
        out: Folder of the results. null makes one under paths.output_dir.
        effect: Effects on the faces, by name, applied in order; [] for none.
        save: Results to write, in addition to the journal.
        draw: What is drawn on the images. null draws boxes and points, or nothing where there is an effect.
        overwrite: Whether existing results are deleted.
        tta: Whether each face is averaged with its mirror image. null takes the run's own setting.
        looks: Old name of `refine`, which counts one more; null for none.
        refine: Refinement passes over each face of a photo, each on a crop around the points of the previous one.
        device: auto, cpu, cuda, cuda:1 or mps. auto takes a GPU where there is one.
        every: Video frames between two runs of the detector.
        patience: Seconds that a face of a video is kept without being detected.
        smooth: Whether a video's points are smoothed.
        frames: Number of video frames after which to stop; null for all.
        tracking: MLflow store that knows the run's id.
        paths: Folders of data, outputs and caches.
    """

    run: str
    source: str | int
    detector: Any
    out: str | None
    save: list[Literal["pictures", "crops", "csv", "coco", "pts", "labelstudio", "cvat"]]
    draw: list[Literal["boxes", "points", "lines", "indices", "radius90"]] | None
    overwrite: bool
    tta: bool | None
    refine: RefinePasses
    looks: Passes | None
    device: str
    every: Annotated[int, Ge(1), Lt(10**6)]
    patience: Annotated[float, Ge(0), Lt(10**6)]
    smooth: bool
    frames: Annotated[int, Ge(1)] | None
    tracking: Any
    paths: Any
    effect: Any = None


@dataclass(frozen=True)
class Prepare:
    """Read, check and crop a dataset, and write a card that describes it.

    Attributes:
        data: Dataset.
        augment: Augmentation shown on the sheet of augmented faces; it also sets the margin of the crop store.
        seed: Seed of that augmentation.
        download: Whether to download the dataset first, where its publisher has a direct address.
        export: Format in which to write the dataset as well; null for none.
        rounded: Whether exported points are rounded to whole pixels, as dlib's own tools expect.
        out: Folder of the card. null makes one under paths.output_dir.
        paths: Folders of data, outputs and caches.
    """

    data: Any
    augment: Any
    seed: Seed
    download: bool
    export: Literal["csv", "coco", "pts", "xml", "labelstudio", "cvat"] | None
    rounded: bool
    out: str | None
    paths: Any


@dataclass(frozen=True)
class Compare:
    """Compare finished runs by group: means over seeds, paired tests, a page.

    A paired bootstrap over faces and seeds tests each pair of groups. The page has curves, bars and faces.

    Attributes:
        runs: MLflow ids. null takes all finished runs of tracking.experiment.
        where: Tag or parameter -> the value, or a list of values, that a run must have; null for any.
        group: Tag or parameter, or a list of them, whose values form the groups of seeds.
        metric: Metric that is tested.
        baseline: Group that all others are compared with. null compares every pair.
        samples: Number of bootstrap draws.
        seed: Seed of the draws.
        faces: Number of faces to show on which two groups differ most; 0 for none.
        out: Folder of the tables and the page. null makes one under paths.output_dir.
        tracking: MLflow store and experiment.
        paths: Folders of data, outputs and caches.
    """

    runs: list[str] | None
    where: dict[str, str | int | float | bool | list[str | int | float | bool]] | None
    group: str | list[str]
    metric: Literal["nme", "fr8", "auc8", "fr10", "auc10"]
    baseline: str | int | float | bool | None
    samples: Annotated[int, Ge(1000), Lt(10**6)]
    seed: Seed
    faces: Annotated[int, Ge(0), Lt(200)]
    out: str | None
    tracking: Any
    paths: Any


@dataclass(frozen=True)
class Reproduce:
    """Run an experiment and check it against its record, experiments/NAME/expected.yaml.

    ``tier=smoke`` trains a few steps on rendered faces, on one CPU, in seconds, and checks the loss of each step.
    ``tier=eval`` tests a trained run. ``tier=train`` trains and tests every seed.

    Exit codes: 0 within the tolerance; 1 outside it; 2 bad input; 3 nothing to compare with, since the data differ from the
    record's (another fingerprint) or there is no record of this tier yet.

    Attributes:
        name: Experiment, as published/ibug_sepconv, or box/detector for the built-in face detector.
        tier: How much is run.
        run: Trained runs that tier=eval tests, one per seed: MLflow ids, folders or checkpoint files.
        seeds: Seeds that tier=train trains. null takes those of the record.
        record: Whether to write the results as the record. The code must be as committed.
        records: Folder of the records. null takes experiments/ next to conf/.
        data: The dataset's root and workers. null takes those of the experiment.
        trainer: The accelerator and devices. null takes those of the experiment.
        tracking: MLflow store and experiment.
        paths: Folders of data, outputs and caches.
    """

    name: str | None
    tier: Literal["smoke", "eval", "train"]
    run: str | list[str] | None
    seeds: list[Seed] | None
    record: bool
    records: str | None
    data: Any
    trainer: Any
    tracking: Any
    paths: Any


@dataclass(frozen=True)
class Export:
    """Write a trained model as an ONNX file.

    Attributes:
        run: Run to export: its MLflow id, its folder, a checkpoint file, or a model version as models:/NAME@best.
        precision: Precision of the network; points are always decoded in 32 bit.
        tta: Whether each crop is averaged with its mirror image. null takes the run's own setting.
        out: File to write. null writes it to the run's folder.
        overwrite: Whether an existing file may be replaced.
        data: The dataset's root, where the run's own dataset has moved.
        faces: Number of test faces on which the file is checked against the model.
        tolerance: Precision -> the largest and the mean distance by which points may differ, in crop pixels.
        tracking: MLflow store that knows the run's id.
        paths: Folders of data, outputs and caches.
    """

    run: str
    precision: Precision
    tta: bool | None
    out: str | None
    overwrite: bool
    data: dict[Literal["root"], str | None]
    faces: Annotated[int, Ge(2), Lt(10**5)]
    tolerance: dict[Precision, tuple[Distance, Distance]]
    tracking: Any
    paths: Any


@dataclass(frozen=True)
class App:
    """Serve a web page on which trained models find points in photos and camera images.

    Attributes:
        run: Model to start with, as of `Predict`.
        refine: Refinement passes over each face of a photo, as of `Predict`.
        looks: Old name of `refine`, which counts one more; null for none.
        device: Device of the models, as of `Predict`.
        host: Address at which the page is served; 127.0.0.1 is reachable from this machine only.
        port: Port of the page; 0 takes a free one.
        detector: Face detector to start with.
        effect: Effects to start with, by name; [] for none.
        tracking: MLflow store whose runs can be chosen.
        paths: Folders of data, outputs and caches.
    """

    run: str
    refine: RefinePasses
    looks: Passes | None
    device: str
    host: str
    port: Port
    detector: Any
    tracking: Any
    paths: Any
    effect: Any = None


COMMANDS: Mapping[str, type] = {
    "train": Train,
    "evaluate": Evaluate,
    "prepare": Prepare,
    "compare": Compare,
    "reproduce": Reproduce,
    "predict": Predict,
    "export": Export,
    "tune": Tune,
    "app": App,
    "train_detector": TrainDetector,
}
