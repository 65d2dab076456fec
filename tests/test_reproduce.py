"""`python -m flr.reproduce`: every published config against its record, each exit code, and what a record costs."""

import csv
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from flr.config.compose import CONF
from flr.detection.network import DetectorNet
from flr.reproduction import detector
from flr.reproduction.record import Run, data_differences, of_runs, read
from flr.reproduction.smoke import rendered, smoke
from flr.reproduction.verdict import compare
from flr.tracking.provenance import lock_hash
from tests.conftest import Workspace
from tests.fakes import ibug as fake_ibug

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "experiments"
PUBLISHED = sorted(f"published/{path.stem}" for path in (CONF / "experiment/published").glob("*.yaml"))
RECORDED = sorted(file.parent.relative_to(RECORDS).as_posix() for file in RECORDS.rglob("expected.yaml"))
LIGHT = "published/celeba_cnn"  # a second
QUICK = (
    "published/muct_cnn",
    "published/ytf_cnn",
    "records/flagship",
    "box/detector",
)  # others in test_cpus.py, or with `long`


# -- the published configs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long]) for name in RECORDED]
)
def test_a_recorded_config_still_gives_what_it_gave(workspace: Workspace, name: str) -> None:
    done = workspace.run("flr.reproduce", f"name={name}")
    assert done.stdout.rstrip().endswith("within the tolerance") and "OUTSIDE" not in done.stdout
    assert not list(workspace.path.iterdir())  # no run, no database


def test_trainings_of_the_detector_make_a_record(
    tmp_path: Path, shared_cache: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path)
    few = [
        *detector.FEW,
        "model.stem=[4,4]",
        "model.width=8",
        "model.depth=1",
        "trainer.check_val_every_n_epoch=1",
        f"paths.output_dir={tmp_path}",
        f"paths.cache_dir={shared_cache}",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]
    compose, export = detector.compose, detector.training.export
    exported: list[Path] = []

    def export_once(net: DetectorNet, file: Path, *rest: Any) -> Path:
        """Export the first network, and copy its file for the second: an export takes seconds, and no record reads it."""
        exported.append(shutil.copy(exported[0], file) if exported else export(net, file, *rest))
        return file

    monkeypatch.setattr(detector.training, "export", export_once)
    monkeypatch.setattr(detector, "task_overrides", list)
    monkeypatch.setattr(detector, "compose", lambda seed: compose(seed, few))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        runs = detector.train(OmegaConf.create({"name": "box/detector", "record": False}), [0, 1])
    made = of_runs("command", runs)
    assert made.seeds == [0, 1] and set(made.metrics) == {"val/recall"} and made.protocol.endswith(" 32/8")
    assert made.lock == lock_hash() and made.hardware["precision"] == "32-true"


def test_all_are_recorded() -> None:
    names = [
        "celeba_cnn",
        "celeba_cnn_rendered",
        "ibug_sepconv",
        "ibug_sepconv_light",
        "muct_cnn",
        "ytf_cnn",
        "ytf_cnn_wide",
    ]
    assert [f"published/{name}" for name in names] == PUBLISHED
    records = {"records/flagship", "records/tiny", "records/large", "box/landmarks", "box/detector"}
    assert {*PUBLISHED, *records} == set(RECORDED)
    assert all((RECORDS / name / "README.md").is_file() for name in PUBLISHED)


def test_the_tolerance_lets_threads_pass_and_no_change_of_the_recipe(shared_cache: Path) -> None:
    expected = read(RECORDS / LIGHT / "expected.yaml")["smoke"]

    def inside(*changes: str, threads: int = 1) -> bool:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = rendered(LIGHT, str(shared_cache), changes)
        return compare(expected, [smoke(cfg, threads)])

    assert inside(threads=2) and not inside("optim.lr=1.02e-3")


# -- exit codes ----------------------------------------------------------------------------------------------------------


def edited(folder: Path, **changes: object) -> Path:
    """A copy of the light experiment's record with other values at dotted keys; None removes one."""
    values = yaml.safe_load((RECORDS / LIGHT / "expected.yaml").read_text())
    for key, value in changes.items():
        *path, last = key.split(".")
        node = values
        for step in path:
            node = node[step]
        node[last] = value
        if value is None:
            del node[last]
    file = folder / LIGHT / "expected.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(values))
    return folder


@pytest.mark.parametrize(
    ("key", "value", "code", "said"),
    [
        ("smoke.metrics.val/nme.mean", 1.0, 1, "outside the tolerance"),
        ("smoke.metrics.val/p90", {"mean": 1.0, "spread": None, "tolerance": 9.0}, 1, "nan"),  # recorded, not obtained
        ("smoke.fingerprint", "0123456789abcdef", 3, "is of flr 0.1, which cannot be compared"),
        ("smoke.fingerprint", "f811c3-32a21a-222af9-000000", 3, "another version or other settings of the renderer"),
        ("smoke", None, 3, "no verdict: "),
    ],
)
def test_each_exit_code(workspace: Workspace, key: str, value: object, code: int, said: str) -> None:
    records = edited(workspace.path / "records", **{key: value})
    done = workspace.run("flr.reproduce", f"name={LIGHT}", f"records={records}", code=code)
    assert said in done.stdout and "loss of step 1" in done.stdout and "within the tolerance" not in done.stdout
    assert "record=true" not in done.stdout  # nobody asked to write one


def test_each_part_of_the_data_that_differs_is_named() -> None:
    record = read(RECORDS / "records/tiny/expected.yaml")["smoke"]

    def lines(protocol: str, fingerprint: str) -> list[str]:
        return data_differences(record, Run(0, {}, f"{protocol} {fingerprint}", fingerprint))

    faces, splits, scheme, values = record.fingerprint.split("-")
    known = record.protocol.rsplit(" ", 1)[0]
    assert lines(known, record.fingerprint) == []
    fewer, other_splits = lines(known.replace("12/4/4", "11/4/4"), f"000000-000000-{scheme}-{values}")[0::2]
    assert fewer == "faces in train/val/test: 12/4/4 in the record, 11/4/4 here" and "split otherwise" in other_splits
    assert "names or groups" in "".join(lines(known, f"000000-{splits}-{scheme}-{values}"))
    named, meant = lines(known.replace("ibug68", "celeba5"), f"{faces}-{splits}-000000-{values}")
    assert named == "scheme: ibug68 in the record, celeba5 here" and "a reduction differs" in meant


BAD = [
    ([], "name=published/ibug_sepconv"),
    (["name=published/ibug_sepcon"], "did you mean 'published/ibug_sepconv'"),
    ([f"name={LIGHT}", "tier=trian"], "tier=trian: expected"),
    ([f"name={LIGHT}", "optim.lr=1"], "flr train experiment=NAME optim.lr=VALUE"),
    ([f"name={LIGHT}", "+optim.lr=1"], f"flr train experiment={LIGHT} trains another"),
    ([f"name={LIGHT}", "tier=train", "+data.batch_size=1"], "data.batch_size is not for tier=train"),
    ([f"name={LIGHT}", "run=x"], "run is not for tier=smoke"),
    ([f"name={LIGHT}", "tier=eval"], "run=ID"),
    ([f"name={LIGHT}", "tier=eval", "run=runs/none"], "run=runs/none: no such file or folder"),
    ([f"name={LIGHT}", "tier=eval", "run=x", "seeds=[0]"], "seeds is not for tier=eval, which takes name, "),
    ([f"name={LIGHT}", "tier=train", "seeds=[0,0]"], "each once"),
    ([f"name={LIGHT}", "tier=train", "seeds=3"], "seeds=3: expected"),
    ([f"name={LIGHT}", "records=nowhere"], "records=DIR"),
    (["name=box/detector", "tier=eval", "run=x"], "benchmarks.detectors"),
    (["name=box/detector", "tier=train", "data.root=."], "data.root: the detector draws its scenes itself"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input(workspace: Workspace, words: list[str], said: str) -> None:
    assert said in workspace.refuse("flr.reproduce", *words)
    assert not list(workspace.path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smoke: [1, 2", "not a record"),
        ("just words", "not a record"),
        ("smoke: !!python/object/apply:os.system [touch exploded]", "not a record"),
        ("[" * 600, "not a record"),
        ("smoke: {metrics: {loss: {mean: 1.0, spread: null, tolerance: .inf}}}", "not a record"),
    ],
)
def test_a_damaged_record(workspace: Workspace, text: str, said: str) -> None:
    file = workspace.path / "records" / LIGHT / "expected.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    for words in ([], ["record=true"]):  # nor is it written over
        assert said in workspace.refuse("flr.reproduce", f"name={LIGHT}", "records=records", *words)
    assert file.read_text() == text and not (workspace.path / "exploded").exists()


# -- whole trainings, in a checkout of its own ---------------------------------------------------------------------------


class Reproduced(NamedTuple):
    """A checkout with an experiment that trains in seconds, and its record of two seeds."""

    checkout: Path
    workspace: Workspace
    faces: Path

    def __call__(self, *words: str, code: int = 0) -> str:
        """The command as that checkout runs it, the commands that it calls in processes of their own."""
        with pytest.MonkeyPatch.context() as patch:
            for module in ("flr.config.compose", "flr.cli", "flr.reproduce"):
                patch.setattr(f"{module}.CONF", self.checkout / "conf")
            patch.setattr("flr.tracking.provenance.ROOT", self.checkout)
            done = self.workspace.run("flr.reproduce", "name=tiny", *words, code=code, PYTHONPATH=str(self.checkout))
        return done.stdout + done.stderr

    @property
    def file(self) -> Path:
        return self.checkout / "experiments/tiny/expected.yaml"

    def runs(self) -> dict[str, str]:
        """Seed -> run id."""
        return {run.data.tags["flr.seed"]: run.info.run_id for run in self.workspace.stored()}


RECIPE = """# @package _global_
defaults:
  - override /data: ibug
  - override /augment: none
  - override /callbacks: default
data: {crop: {size: 32}, batch_size: 8}
model: {widths: [8, 8, 8, 8], path: 8, blocks: 1}
trainer: {max_epochs: 1, speed: auto}
tracking: {system_metrics: false}
callbacks: {progress: null, pictures: null}
"""


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[Reproduced]:
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("flr", "conf"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "conf/experiment/tiny.yaml").write_text(RECIPE)
    commit(checkout)
    faces = tmp_path_factory.mktemp("faces")
    fake_ibug.write(faces, parts={"afw": 24, "helen/testset": 5})
    made = Reproduced(checkout, Workspace(tmp_path_factory.mktemp("reproduced"), shared_cache), faces)
    made.workspace.copy_database("flr.train")  # which the command calls
    made("tier=train", "seeds=[0,3]", "record=true", f"data.root={faces}")
    yield made


def commit(checkout: Path) -> str:
    git = ["git", "-C", str(checkout), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_a_record_holds_what_its_numbers_came_from(reproduced: Reproduced) -> None:
    record = read(reproduced.file)["train"]
    assert record.seeds == [0, 3] and record.command.endswith("name=tiny tier=train seeds=[0,3]")
    head = subprocess.run(["git", "-C", str(reproduced.checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert record.commit == head.stdout.strip() and len(record.minutes) == 2 and record.hardware["cpu"]
    assert record.hardware["precision"] in ("32-true", "bf16-mixed")  # which the recipe leaves to the device
    with (reproduced.file.parent / "results.csv").open() as file:
        rows = {row["seed"]: row for row in csv.DictReader(file)}
    assert {seed: row["run"] for seed, row in rows.items()} == reproduced.runs() and set(rows) == {"0", "3"}
    values = [float(row["test/nme"]) for row in rows.values()]
    level = record.metrics["nme"]
    assert level.mean == pytest.approx(sum(values) / 2, rel=1e-4)
    assert level.spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=1e-2)
    assert level.tolerance == pytest.approx(max(4 * level.spread, 0.02 * level.mean), rel=0.1)
    assert {"mse", "fr8", "auc8", "helen_test/nme"} <= set(record.metrics) and "point/nme" not in record.metrics
    text = reproduced.file.read_text()
    assert str(reproduced.faces) not in text and str(reproduced.checkout) not in text


def test_a_trained_run_is_held_against_the_record(reproduced: Reproduced) -> None:
    run = reproduced.runs()["3"]
    files = sorted((path, path.stat().st_mtime_ns) for path in reproduced.workspace.folder(run).rglob("*"))
    assert "within the tolerance" in reproduced("tier=eval", f"run={run}")
    other = reproduced.workspace.path / "other"
    fake_ibug.write(other, parts={"afw": 24, "helen/testset": 5}, seed=7)
    shown = reproduced("tier=eval", f"run={run}", f"data.root={other}", code=3)
    assert "expected of seeds [0, 3], obtained of seeds [3]" in shown
    assert "no verdict: the data are not those of" in shown and "values in the files differ" in shown
    assert "record=true" not in shown
    assert files == sorted((path, path.stat().st_mtime_ns) for path in reproduced.workspace.folder(run).rglob("*"))
    line = reproduced("tier=eval", f"run={run}", f"data.root={other}", "records=again", "record=true", code=2)
    assert "its own test gave" in line and not (reproduced.workspace.path / "again").exists()


@pytest.mark.long
def test_other_data_are_told_before_the_training(reproduced: Reproduced) -> None:
    other = reproduced.workspace.path / "others"
    fake_ibug.write(other, parts={"afw": 24, "helen/testset": 5}, seed=8)
    shown = reproduced("tier=train", "seeds=[0]", f"data.root={other}", f"paths.output_dir={other}", code=3)
    assert shown.index("note: the data differ from the record's") < shown.index("Training tiny, seed 0")


def test_a_precision_that_no_device_would_have_chosen_is_another_recipe(reproduced: Reproduced) -> None:
    # What speed=auto makes on any device passes; the rest is refused, also where a record is to be made.
    folder = reproduced.workspace.path / "precisions"
    source = reproduced.workspace.folder(reproduced.runs()["0"]) / "checkpoints/best.ckpt"
    checkpoint = torch.load(source, weights_only=True)
    own = checkpoint["flr"]["config"]
    for precision, fused, code in (
        ("32-true", True, 0),
        ("bf16-mixed", True, 0),
        ("16-mixed", True, 2),
        ("32-true", False, 2),
    ):
        own["trainer"]["precision"], own["optim"]["fused"] = precision, fused
        file = folder / f"{precision}-{fused}/checkpoints/best.ckpt"
        file.parent.mkdir(parents=True)
        torch.save(checkpoint, file)
        shown = reproduced("tier=eval", f"run={file}", code=code)
        assert ("is not of experiment=tiny" in shown) == (code == 2)


def test_finished_runs_make_the_record_that_their_training_made(reproduced: Reproduced) -> None:
    runs = reproduced.runs()
    reproduced(
        "tier=eval", f"run=[{runs['0']},{reproduced.workspace.folder(runs['3'])}]", "record=true", "records=again"
    )
    folder = reproduced.workspace.path / "again/tiny"
    one, other = read(reproduced.file)["train"], read(folder / "expected.yaml")["train"]
    assert {**vars(one), "metrics": None} == {
        **vars(other),
        "metrics": None,
    } and one.metrics.keys() == other.metrics.keys()
    assert one.metrics["nme"].mean == pytest.approx(other.metrics["nme"].mean, rel=1e-4)
    assert (folder / "results.csv").read_text() == (reproduced.file.parent / "results.csv").read_text()


def test_a_run_of_another_recipe_is_refused(reproduced: Reproduced) -> None:
    folder = reproduced.workspace.folder(reproduced.runs()["0"])
    line = reproduced.workspace.refuse("flr.reproduce", f"name={LIGHT}", "tier=eval", f"run={folder}")
    assert re.search(rf"is not of experiment={LIGHT}: \d+ key\(s\) differ, .*_target_=.*\.\.\.; name one", line)
    assert "None" not in line and "note:" not in line
    assert "of seed 0" in reproduced("tier=eval", f"run=[{folder},{folder}/checkpoints/best.ckpt]", code=2)


def test_a_record_needs_the_tree_of_its_commit(reproduced: Reproduced) -> None:
    before = read(reproduced.file)
    (reproduced.checkout / "flr/idea.py").write_text("")
    with (reproduced.checkout / "flr/training/schedules.py").open("a") as file:
        file.write("# changed\n")
    try:
        line = reproduced("record=true", code=2)
        assert "flr/idea.py" in line and "flr/training/schedules.py" in line and "commit first" in line
        assert "experiments" not in line.partition("differs from it in")[2]  # the record before is no code
    finally:
        (reproduced.checkout / "flr/idea.py").unlink()
        shutil.copy(ROOT / "flr/training/schedules.py", reproduced.checkout / "flr/training/schedules.py")
    # A training's own tags would call this tree dirty, hours later.
    assert "experiments/tiny/results.csv" in reproduced("tier=train", "record=true", code=2)
    reproduced("record=true")  # beside the uncommitted record of the trainings, which it keeps
    after = read(reproduced.file)
    assert after["train"] == before["train"] and after["smoke"].metrics["loss of step 1"].spread is None
    assert "within the tolerance" in reproduced()


@pytest.mark.parametrize(
    ("tag", "value", "said"),
    [("dirty", "true", "not trained in a clean tree"), ("commit", "0" * 40, "names one commit")],
)
def test_what_was_not_trained_at_one_commit_is_no_record(
    reproduced: Reproduced, tag: str, value: str, said: str
) -> None:
    client, runs = reproduced.workspace.client(), reproduced.runs()
    before = client.get_run(runs["0"]).data.tags[f"flr.{tag}"]
    client.set_tag(runs["0"], f"flr.{tag}", value)
    try:
        line = reproduced("tier=eval", f"run=[{runs['0']},{runs['3']}]", "record=true", "records=none", code=2)
    finally:
        client.set_tag(runs["0"], f"flr.{tag}", before)
    assert said in line and not (reproduced.workspace.path / "none").exists()
