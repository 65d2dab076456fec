"""An exported file gives the net's points, says all that a user needs, and does not appear where it would not."""

import json
import re
from pathlib import Path

import hydra
import numpy as np
import onnx
import pytest
import torch

from flr.config.compose import CONF
from flr.config.instantiate import build
from flr.inference import export
from flr.inference.onnx import METADATA_KEY, OnnxPredictor
from flr.inference.predictor import Predictor
from flr.landmarks.scheme import get_scheme
from flr.module.assembly import assemble
from flr.module.checkpoints import load_checkpoint
from flr.module.landmark_module import LandmarkModule
from tests.conftest import Workspace

SIZE = 64  # celeba_cnn and ytf_cnn take no smaller one


def net_of(name: str, *words: str, scheme: str = "kaggle15", size: int = SIZE) -> Predictor:
    """A net that was never trained, but whose points depend on the image, by some pixels."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"model={name}", f"data.crop.size={size}", *words])
    torch.manual_seed(0)
    points = get_scheme(scheme)
    crop = build(cfg.data.crop)
    module = assemble(cfg, points, crop, np.zeros((len(points), 2), np.float32))
    sharpen(module, crop.channels)
    return Predictor(module, crop, (-1.0, 1.0), None)


@torch.no_grad()
def sharpen(module: LandmarkModule, channels: int) -> None:
    """Have batch norms learn from some images, and the last layer say much."""
    net = module.net.train()
    pictures = torch.randn(16, channels, module.size, module.size)
    net(pictures)
    net.eval()
    last = [weight for weight in net.parameters() if weight.ndim > 1][-1]
    for _ in range(20):
        if module.objective.decode(net(pictures), module.size).std(0).max() > 2:
            break
        last *= 3
    if module.ema_net is not None:
        module.ema_net.load_state_dict(net.state_dict())
    module.eval()


def described(predictor: Predictor) -> str:
    return export.make_metadata(predictor, Path(), {"form": "table"}, "fp32")


def pictures(count: int, channels: int = 1, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def best(workspace: Workspace) -> Path:
    return workspace.folder(workspace.only_run().info.run_id) / "checkpoints" / "best.ckpt"


def said(stdout: str) -> tuple[float, float]:
    """The largest and the mean distance of a command's line."""
    (found,) = re.findall(r"max ([\d.e+-]+), mean ([\d.e+-]+) ", stdout)
    return float(found[0]), float(found[1])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[] if path.stem == "muct_cnn" else pytest.mark.long)
        for path in sorted((CONF / "model").glob("*.yaml"))
    ],
)
def test_every_net_as_onnx(name: str, tmp_path: Path) -> None:
    if name == "timm":
        pytest.importorskip("timm", exc_type=Exception)
    predictor = net_of(name, size=32 if "sepconv" in name else SIZE)  # its export is slow enough
    crops = pictures(7, size=predictor.crop.size)
    before, spread, visible = predictor.run(crops)
    assert before.std(0).max() > 1  # a net that looks
    assert np.isfinite(spread).all() == (predictor.module.net.output != "points")
    assert np.isnan(visible).all()
    export.write_model(predictor, described(predictor), tmp_path / "a.onnx", "fp32")
    light = OnnxPredictor.load(tmp_path / "a.onnx")
    np.testing.assert_allclose(light.run(crops)[0], before, atol=0.01)
    np.testing.assert_allclose(light.run(crops)[1], spread, atol=0.01)
    np.testing.assert_allclose(light.run(crops[:1])[0], before[:1], atol=0.01)
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    boxes = np.array([[20.0, 10, 80, 70], [0, 0, 119, 89]])
    np.testing.assert_allclose(light([image] * 2, boxes), predictor([image] * 2, boxes), atol=0.05)


def test_the_averaged_weights_and_the_mirror_go_along(tmp_path: Path) -> None:
    small = ("model.widths=[8,8,8]", "model.blocks=1", "tta=true", "ema=0.9", "objective.visibility_weight=1")
    predictor = net_of("heatmap_fpn", *small)
    with torch.no_grad():
        for weight in predictor.module.net.parameters():
            weight.zero_()  # those that were trained, not those that are evaluated
    crops = pictures(3)
    before, _, visible = predictor.run(crops)
    predictor.module.tta = False
    assert np.abs(predictor.run(crops)[0] - before).max() > 0.5
    predictor.module.tta = True
    export.write_model(predictor, described(predictor), tmp_path / "a.onnx", "fp32")
    one = export.TestFaces("1 image", crops[:1], None)  # a test part of one face leaves no second batch to check
    export.export_checked(predictor, described(predictor), tmp_path / "one.onnx", "fp32", one, (0.5, 0.05))
    exported = OnnxPredictor.load(tmp_path / "a.onnx").run(crops)
    np.testing.assert_allclose(exported[0], before, atol=0.01)
    np.testing.assert_allclose(exported[2], visible, atol=0.001)
    assert ((visible > 0) & (visible < 1)).all()


def test_a_run_is_exported(trained: tuple[Workspace, str]) -> None:
    workspace, run = trained
    path = workspace.folder(run) / "best.onnx"
    done = workspace.run("flr.export", f"run={run}")
    assert done.stdout.splitlines()[-1] == str(path) and max(said(done.stdout)) < 1e-3
    assert "9 test faces of synthetic" in done.stdout
    nme = re.findall(r"NME ([\d.]+) % before, ([\d.]+) % after", done.stdout)[0]
    measured = json.loads((workspace.folder(run) / "evaluation.json").read_text())["metrics"]["nme"]
    assert nme[0] == nme[1] == f"{measured:.3f}"
    assert not onnx.load(path, load_external_data=False).functions and len(list(path.parent.glob(".best*"))) == 0
    assert b".py" not in path.read_bytes()  # of the exporter's stack traces, which name files of this machine
    about = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}[METADATA_KEY])
    checkpoint = load_checkpoint(best(workspace))["flr"]
    assert about["scheme"] == checkpoint["scheme"] and about["protocol"] == checkpoint["protocol"]
    assert about["run"] == run and about["pixels"] == [-1, 1] and about["crop"]["size"] == 32
    history = workspace.client().get_metric_history(run, "val/nme")
    assert about["val_nme"] == pytest.approx(min(point.value for point in history), rel=1e-5)

    predictor, light = Predictor.load(best(workspace)), OnnxPredictor.load(path)
    assert light.offset == predictor.offset and light.crop == predictor.crop
    image = np.random.default_rng(1).integers(0, 256, (90, 120), dtype=np.uint8)
    boxes = np.array([[20.0, 10, 80, 70]] * 70)  # more than one batch
    np.testing.assert_allclose(light([image] * 70, boxes), predictor([image] * 70, boxes), atol=1e-2)
    assert light([], np.zeros((0, 4))).shape == (0, 68, 2)
    np.testing.assert_array_equal(light.detect(image), predictor.detect(image))

    assert "exists already; set overwrite=true" in workspace.refuse("flr.export", f"run={run}")
    path.write_bytes(b"")
    workspace.run("flr.export", f"run={run}", "overwrite=true")
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("precision", ["int8", pytest.param("fp16", marks=pytest.mark.long)])
def test_smaller_numbers(trained: tuple[Workspace, str], precision: str) -> None:
    workspace, run = trained
    done = workspace.run("flr.export", f"run={run}", f"precision={precision}")
    path = workspace.folder(run) / f"best-{precision}.onnx"
    assert done.stdout.splitlines()[-1] == str(path) and 0 < max(said(done.stdout)) < 1
    assert OnnxPredictor.load(path).metadata.precision == precision
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert (onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8) in kinds


@pytest.mark.parametrize("fault", ["moved", pytest.param("nan", marks=pytest.mark.long)])
def test_a_file_of_other_points_does_not_appear(
    fault: str, trained: tuple[Workspace, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worse model in the file than the one in the checkpoint."""
    original = export.write_model

    def worse(predictor: Predictor, *rest: str) -> None:
        with torch.no_grad():
            bias = predictor.module.best_net.head[-1].bias
            weight = predictor.module.best_net.head[-1].weight
            weight.add_(torch.randn_like(weight)) if fault == "moved" else bias.fill_(torch.nan)
        original(predictor, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "write_model", worse)
    workspace, run = trained
    words = (f"run={run}", f"out={tmp_path}/there/net.onnx")
    if fault == "nan":  # which the reader of the file refuses
        assert "gives no points" in workspace.refuse("flr.export", *words)
    else:
        done = workspace.run("flr.export", *words, code=1)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("flr: ")]
        assert "gives other points, nothing is written: 9 test faces" in line and "Traceback" not in done.stderr
    assert list((tmp_path / "there").iterdir()) == []


def test_the_bounds_are_the_users(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    words = (f"run={trained[1]}", "precision=fp16", f"out={tmp_path}/net.onnx")
    trained[0].run("flr.export", *words, "tolerance.fp16=[1,0]", code=1)
    assert list(tmp_path.iterdir()) == []


def test_without_its_data_random_images_do(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    checkpoint = torch.load(best(trained[0]), weights_only=True)
    checkpoint["flr"]["config"]["data"]["root"] = None
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    done = trained[0].run("flr.export", f"run={tmp_path}/moved.ckpt", "faces=5")
    assert "note: random images are used instead of the run's own faces" in done.stderr
    assert "5 random images" in done.stdout and "NME" not in done.stdout
    metadata = OnnxPredictor.load(tmp_path / "moved.onnx").metadata
    assert metadata.run is None and metadata.val_nme is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "give the run to export"),
        (("run=nobody",), "has no run|no such"),
        (("run={run}", "precision=int4"), "precision=int4"),
        (("run={run}", "faces=1"), "faces=1"),
        (("run={run}", "tolerance.fp32=[1]"), r"tolerance.*fp32"),
        (("run={run}", "out=/dev/null/x.onnx"), "/dev/null/x.onnx: cannot be written"),
        (("run={run}", "out={tmp}"), "name it FILE.onnx"),
        (("run=",), "give the run to export"),
        (("run=/etc/passwd",), "not a checkpoint"),
    ],
)
def test_bad_words_get_one_line(
    trained: tuple[Workspace, str], tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    filled = [word.format(run=trained[1], tmp=tmp_path) for word in words]
    assert re.search(line, trained[0].refuse("flr.export", *filled))
