"""Bad input ends with one line and exit 2, and leaves nothing half-written."""

import contextlib
import os
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flr.tracking.connection import PASSWORD
from tests.conftest import SERVER, SMALL_SET, TINY, Workspace
from tests.fakes import ibug as fake_ibug

TYPOS = [
    (["modle=sepconv"], "did you mean 'model'"),
    (["model=sepcnv"], "did you mean 'sepconv"),
    (["optim.lrr=1"], "did you mean 'optim.lr'"),
    (["+optim.betta=1"], "optim.betta is not a key of"),
    (["+typo=1"], "typo is not a key of Train"),
    (["--frob"], "--frob: no such option"),
    (["seed"], "'seed' sets nothing; write KEY=VALUE, as seed=VALUE"),
    (["sepconv"], "as model=sepconv"),
    (["data={name:", "ibug}"], "put quotes around it: 'data=...'"),
    (["experiment=flagship"], "did you mean 'records/flagship'"),
    (["model.width=[8]"], "did you mean 'model.widths'"),
    (
        [
            "objective._target_=flr.objectives.coordinates.L1",
            "model=sepconv",
            "~objective.loss",
            "~objective.centre",
            "~objective.unit",
        ],
        "a loss, not an objective",
    ),
    (["model=sepconv", "objective.loss=wing"], "objective.loss=wing: expected class or function, named by _target_"),
    (["model=sepconv", "objective.loss._target_=torch.nn.L1Loss"], "derive a class in a module of yours"),
    (["optim=lr=1"], "a mapping is written 'optim={lr: 1}'"),
    (["seed=[1"], "seed=[1: cannot be read as KEY=VALUE"),
    (["+model.dropuot=0.1", "model=sepconv"], "did you mean 'dropout'"),
    (["trainer.max_epochs=many"], "trainer.max_epochs=many: expected"),
    (["data.crop.policy.shape=round"], "data.crop.policy.shape=round: expected"),
    (["objective=mse"], "choose an objective= that takes heatmaps"),
    (["data.crop.size=100"], "multiples of 32"),
    (["data.scheme=celeba6"], "did you mean 'celeba5'"),
    (["+model._target_=flr.models.sepconv.SepConf"], "flr.models.sepconv.SepConf"),
    (["experiment=published/nothing"], "published/nothing"),
    (["model=null"], "cannot be null"),
    (["trainer.precision=64-true"], "trainer.precision"),
    (["trainer.accelerator=cpu", "trainer.devices=99"], "trainer.devices=99"),
    (["trainer.accelerator=cpu", "trainer.devices=-1"], "devices"),
    (["trainer.accelerator=tpu"], "Trainer: "),
    (["trainer.accelerator=cpu", "trainer.strategy=single_device", "trainer.devices=2"], "not 2; set ddp"),
    (["tracking.register=..x/y"], "tracking.register"),
    (["+trainer.enable_checkpointing=false"], "trainer.enable_checkpointing=False: a run is tested and resumed"),
    (["+trainer.limit_test_batches=1"], "never scored in part"),
    (["+trainer.max_steps=0"], "trainer.max_steps=0 trains nothing"),
    (["model.widths=[]"], "model.widths"),
    (["optim.amsgrad=1"], "optim.amsgrad=1: expected true or false"),
    (["objective.loss.epsilon=0"], "objective.loss.epsilon=0: expected"),
    (["model=sepconv", "model._target_=textwrap.TextWrapper"], "FLR_TRUST=textwrap"),
]


@pytest.mark.parametrize(("words", "said"), TYPOS, ids=[" ".join(words) for words, _ in TYPOS])
def test_a_wrong_config_stops_before_work_starts(workspace: Workspace, words: list[str], said: str) -> None:
    if words[0].startswith("+model._target_"):
        words = [words[0].removeprefix("+")]
    assert said in workspace.refuse("flr.train", *SMALL_SET, *words)
    assert not list(workspace.outputs.glob("runs/*"))


def missing(root: Path) -> None:
    pass


def empty(root: Path) -> None:
    root.mkdir()


def html_image(root: Path) -> None:
    fake_ibug.write(root, parts={"afw": 6, "helen/testset": 3})
    image = next(p for p in sorted((root / "helen/testset").iterdir()) if p.suffix != ".pts")
    image.write_text("<!DOCTYPE html><html>Not found</html>")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(missing, "300"), (empty, "afw"), (html_image, "HTML")],
)
def test_bad_data(workspace: Workspace, tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    root = tmp_path / "set"
    spoil(root)
    assert said in workspace.refuse("flr.train", *TINY, "data=ibug", f"data.root={root}")
    assert not list(workspace.outputs.glob("runs/*")), "no run was started for data that cannot be read"


def test_one_bad_training_face_is_named_counted_and_skipped(workspace: Workspace, tmp_path: Path) -> None:
    root = tmp_path / "set"
    fake_ibug.write(root, parts={"afw": 14, "helen/testset": 3})
    image = next(p for p in sorted((root / "afw").iterdir()) if p.suffix != ".pts")
    image.write_bytes(image.read_bytes()[:300])
    done = workspace.run("flr.train", *TINY, "data=ibug", f"data.root={root}", "data.batch_size=4")
    assert image.stem in done.stderr and "1 face(s) skipped" in done.stderr
    run = workspace.only_run()
    assert "left_out.txt" in [a.path for a in workspace.client().list_artifacts(run.info.run_id)]
    assert image.stem in workspace.refuse("flr.train", *TINY, "data=ibug", f"data.root={root}", "data.strict=true")


class Bomb:
    def __reduce__(self) -> tuple:
        return os.system, ("touch exploded",)


def damaged(path: Path, best: Path) -> None:
    path.write_bytes(best.read_bytes()[: best.stat().st_size // 2])


def foreign(path: Path, best: Path) -> None:
    torch.save({"state_dict": {}}, path)


def text(path: Path, best: Path) -> None:
    path.write_text("hello")


def bomb(path: Path, best: Path) -> None:
    torch.save({"flr": Bomb(), "state_dict": {}}, path)


def raw_pickle(path: Path, best: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def hostile_target(path: Path, best: Path, target: str = "os.system") -> None:
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["flr"]["config"]["optim"] = {"_target_": target}
    torch.save(checkpoint, path)


def hostile_alias(path: Path, best: Path) -> None:
    hostile_target(path, best, "flr.data.datamodule.Path")  # its prefix is trusted, its own module is not


def hostile_list(path: Path, best: Path) -> None:
    """A target deep in the arguments of an allowed class that takes anything."""
    checkpoint = torch.load(best, weights_only=True)
    inner = {"_target_": "os.system", "command": "touch exploded"}
    checkpoint["flr"]["config"]["objective"] = {"_target_": "torch.nn.Identity", "x": [{"deep": [inner]}]}
    torch.save(checkpoint, path)


def hostile_slot(path: Path, best: Path) -> None:
    """A function of the project itself, in a place where it has no business."""
    checkpoint = torch.load(best, weights_only=True)
    uri = f"sqlite:///{path.parent}/exploded"
    checkpoint["flr"]["config"]["objective"] = {"_target_": "flr.tracking.tracker.connect", "uri": uri}
    torch.save(checkpoint, path)


def without_mean_face(path: Path, best: Path) -> None:
    checkpoint = torch.load(best, weights_only=True)
    del checkpoint["state_dict"]["mean_face"]
    torch.save(checkpoint, path)


def config_of_text(path: Path, best: Path) -> None:
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["flr"]["config"]["model"] = "sepconv"
    torch.save(checkpoint, path)


def other_weights(path: Path, best: Path) -> None:
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["state_dict"].pop("net.head.1.bias")
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damaged, "damaged"), (foreign, "not one that flr.train wrote"), (text, "not a checkpoint"), (bomb, "never loaded"),
        (raw_pickle, ""), (hostile_target, "is not among the objects that a run may build"),
        (hostile_alias, "is not among the objects that a run may build"), (hostile_slot, "is not among the objects that a run may build"),
        (without_mean_face, "not of their form"), (config_of_text, "not a node with a _target_"),
        (hostile_list, "is not among the objects that a run may build"), (other_weights, "do not fit"),
    ],
)  # fmt: skip
def test_a_bad_checkpoint_is_refused_and_never_executed(
    trained: tuple[Workspace, str], workspace: Workspace, spoil: Callable[[Path, Path], None], said: str
) -> None:
    source, run_id = trained
    path = workspace.path / "bad.ckpt"
    spoil(path, source.folder(run_id) / "checkpoints" / "best.ckpt")
    assert said in workspace.refuse("flr.evaluate", f"run={path}")
    assert not (workspace.path / "exploded").exists()


def test_an_unreachable_server_is_said_at_once(workspace: Workspace, free_port: int) -> None:
    line = workspace.refuse("flr.train", *TINY, *SMALL_SET, f"tracking.uri=http://127.0.0.1:{free_port}")
    assert "no MLflow server answers" in line


@pytest.mark.parametrize("uri", ["sqlite:///relative.db", "file:///tmp/mlruns", "nonsense"])
def test_a_tracking_store_that_cannot_serve(workspace: Workspace, uri: str) -> None:
    assert "tracking.uri" in workspace.refuse("flr.train", *TINY, *SMALL_SET, f"tracking.uri={uri}")


@pytest.mark.parametrize(
    "uri",
    ["http://ann:s3cret@127.0.0.1:1", "https://ann:s3c/ret:s3cret@127.0.0.1:1/x", "postgresql://ann:s3cret@127.0.0.1/runs",
     "postgresql+psycopg2://127.0.0.1/runs?user=ann&password=s3cret"],
)  # fmt: skip
def test_an_address_with_a_password_is_refused_and_not_shown(workspace: Workspace, uri: str) -> None:
    words = [*TINY, *SMALL_SET]
    for done in (
        workspace.run("flr.train", *words, f"tracking.uri='{uri}'", code=2),
        workspace.run("flr.train", "-m", *words, "seed=0,1", f"tracking.uri='{uri}'", code=2),
        workspace.run("flr.compare", code=2, MLFLOW_TRACKING_URI=uri),
    ):
        assert "holds a password" in done.stderr and "set MLFLOW_TRACKING_USERNAME" in done.stderr
        assert "s3c" not in "".join(done)
    assert not any(b"s3c" in path.read_bytes() for path in workspace.path.rglob("*") if path.is_file())


def test_an_address_without_a_password_is_none() -> None:
    for uri in ("sqlite:////a:b@c/mlflow.db", "http://127.0.0.1:5000", "postgresql://ann@127.0.0.1:5432/runs"):
        assert not PASSWORD.match(uri)


@pytest.mark.parametrize("which", ["paths.output_dir", "paths.cache_dir"])
@pytest.mark.parametrize("options", ["ro", "size=64k"])
def test_a_folder_that_is_read_only_or_full(
    workspace: Workspace, mounted: Callable[[str], Path], which: str, options: str
) -> None:
    if SERVER and (options, which) == ("size=64k", "paths.output_dir"):
        pytest.skip("the embedded store's own look at the space; Lightning leaves the first part of a checkpoint there")
    point = mounted(options)
    line = workspace.refuse("flr.train", *TINY, *SMALL_SET, f"{which}={point}")
    assert str(point) in line
    assert not list(point.rglob("images.npy")) and not list(point.rglob("*.ckpt"))


def test_a_loss_that_is_no_number_stops_the_training(workspace: Workspace) -> None:
    line = workspace.refuse("flr.train", *TINY, *SMALL_SET, "optim=sgd", "optim.lr=1e30", "ema=0")
    assert "not a finite number" in line and "optim.lr" in line
    assert workspace.only_run().info.status == "FAILED"


@pytest.mark.parametrize("word", ["trainer.accelerator=quantum", "trainer.devices=0", "trainer.accelerator=tpu"])
def test_a_trainer_that_is_refused_spoils_no_run(trained: tuple[Workspace, str], word: str) -> None:
    workspace, run_id = trained
    before = (workspace.folder(run_id) / "config.yaml").read_text()
    workspace.refuse("flr.train", *TINY, *SMALL_SET, word)  # a new run
    workspace.refuse("flr.train", f"run={run_id}", "trainer.max_epochs=50", word)
    only = workspace.only_run()
    assert only.info.run_id == run_id and only.info.status == "FINISHED"
    assert (workspace.folder(run_id) / "config.yaml").read_text() == before


def test_a_database_of_another_application_is_left_alone(workspace: Workspace) -> None:
    path = workspace.path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE runs (x)")
    before = path.read_bytes()
    assert "another application" in workspace.refuse("flr.train", *TINY, *SMALL_SET, f"tracking.uri=sqlite:///{path}")
    assert path.read_bytes() == before


def test_what_an_evaluation_cannot_follow_is_refused(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    assert "needs data=NAME" in workspace.refuse("flr.evaluate", f"run={run_id}", "+data.scheme=celeba5")


@pytest.mark.parametrize("weight", ["0", ".inf"])
def test_weights_of_a_mix_are_bounded(workspace: Workspace, weight: str) -> None:
    line = workspace.refuse("flr.prepare", "data=mix", f"data.reader.sets.ibug.weight={weight}")
    assert "data.reader.sets.ibug.weight" in line
