"""An exported file gives the net's points, says all that a user needs, and does not appear where it would not."""

import json
import re
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import onnx
import pytest
import torch

from flr.config.compose import CONF, plain
from flr.config.instantiate import build
from flr.inference import export
from flr.inference.onnx import METADATA_KEY, OnnxPredictor
from flr.inference.predictor import Predictor
from flr.landmarks.scheme import KAGGLE15, MUCT76, get_scheme
from flr.module.assembly import assemble
from flr.module.checkpoints import load_checkpoint
from flr.module.landmark_module import LandmarkModule
from tests.conftest import Workspace

SIZE = 64  # celeba_cnn and ytf_cnn take no smaller one


def net_of(name: str, *words: str, scheme: str = "kaggle15", size: int = SIZE) -> Predictor:
    """A net that was never trained, but whose points depend on the picture, by some pixels."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"model={name}", f"data.crop.size={size}", *words])
    torch.manual_seed(0)
    points = get_scheme(scheme)
    crop = build(cfg.data.crop)
    module = assemble(cfg, points, crop, np.zeros((len(points), 2), np.float32))
    look(module, crop.channels)
    return Predictor(module, crop, (-1.0, 1.0), None)


@torch.no_grad()
def look(module: LandmarkModule, channels: int) -> None:
    """Have batch norms learn from some pictures, and the last layer say much."""
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
        pytest.param(path.stem, marks=[] if path.stem in ("muct_cnn", "ytf_cnn", "celeba_cnn") else pytest.mark.long)
        for path in sorted((CONF / "model").glob("*.yaml"))
    ],
)
def test_every_net_as_onnx(name: str, tmp_path: Path) -> None:
    if name == "timm":
        pytest.importorskip("timm", exc_type=Exception)
    predictor = net_of(name, size=32 if "sepconv" in name else SIZE)  # its export is slow enough
    crops = pictures(7, size=predictor.crop.size)
    before, spread = predictor.run(crops)
    assert before.std(0).max() > 1  # a net that looks
    assert np.isfinite(spread).all() == (predictor.module.net.output == "heatmaps")
    export.write_model(predictor, described(predictor), tmp_path / "a.onnx", "onnx", "fp32")
    light = OnnxPredictor.load(tmp_path / "a.onnx")
    np.testing.assert_allclose(light.run(crops)[0], before, atol=0.01)
    np.testing.assert_allclose(light.run(crops)[1], spread, atol=0.01)
    np.testing.assert_allclose(light.run(crops[:1])[0], before[:1], atol=0.01)
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    boxes = np.array([[20.0, 10, 80, 70], [0, 0, 119, 89]])
    np.testing.assert_allclose(light([image] * 2, boxes), predictor([image] * 2, boxes), atol=0.05)


@pytest.mark.parametrize(
    ("form", "name", "words"),
    [
        ("torchscript", "heatmap_fpn", ("tta=true", "data.crop.channels=3")),
        pytest.param("pt2", "heatmap_fpn", ("tta=true", "data.crop.channels=3"), marks=pytest.mark.long),
        ("pt2", "ytf_cnn", ()),
    ],
)
def test_torchs_own_forms(form: str, name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    predictor = net_of(name, *words)
    crops = pictures(7, predictor.crop.channels)
    before, path = predictor.run(crops)[0], tmp_path / f"a.{form}"
    text = described(predictor)
    export.write_model(predictor, text, path, form, "fp32")
    for count in (1, 7):
        np.testing.assert_allclose(export.open_export(path, form)(crops[:count]), before[:count], atol=0.01)
    extra = {export.EXTRA_FILE: ""}
    if form == "torchscript":
        torch.jit.load(str(path), _extra_files=extra)
    else:
        torch.export.load(path, extra_files=extra)
    found = extra[export.EXTRA_FILE]
    assert json.loads(found) == json.loads(text)
    assert json.loads(text)["tta"] == bool(words)


def test_the_averaged_weights_and_the_mirror_go_along(tmp_path: Path) -> None:
    predictor = net_of("heatmap_fpn", "model.widths=[8,8,8]", "model.blocks=1", "tta=true", "ema=0.9")
    with torch.no_grad():
        for weight in predictor.module.net.parameters():
            weight.zero_()  # those that were trained, not those that are evaluated
    crops = pictures(3)
    before = predictor.run(crops)[0]
    predictor.module.tta = False
    assert np.abs(predictor.run(crops)[0] - before).max() > 0.5
    predictor.module.tta = True
    export.write_model(predictor, described(predictor), tmp_path / "a.onnx", "onnx", "fp32")
    np.testing.assert_allclose(OnnxPredictor.load(tmp_path / "a.onnx").run(crops)[0], before, atol=0.01)


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


@pytest.mark.parametrize(
    ("form", "precision"), [("onnx", "fp16"), ("onnx", "int8"), ("torchscript", "fp16"), ("pt2", "fp32")]
)
def test_smaller_numbers(trained: tuple[Workspace, str], form: str, precision: str) -> None:
    workspace, run = trained
    done = workspace.run("flr.export", f"run={run}", f"format={form}", f"precision={precision}")
    suffix = "" if precision == "fp32" else f"-{precision}"
    path = workspace.folder(run) / f"best{suffix}.{form}"
    assert done.stdout.splitlines()[-1] == str(path)
    assert (0 < max(said(done.stdout)) < 1) if suffix else max(said(done.stdout)) < 1e-3
    if form == "onnx":
        assert OnnxPredictor.load(path).metadata.precision == precision
        kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
        assert (onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8) in kinds


@pytest.mark.parametrize(
    ("form", "fault"), [("onnx", "moved"), ("onnx", "nan"), ("torchscript", "moved"), ("pt2", "nan")]
)
def test_a_file_of_other_points_does_not_appear(
    form: str, fault: str, trained: tuple[Workspace, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worse net in the file than the one in the checkpoint."""
    original = export.write_model

    def worse(predictor: Predictor, *rest: str) -> None:
        with torch.no_grad():
            bias = predictor.module.best_net.head[-1].bias
            weight = predictor.module.best_net.head[-1].weight
            weight.add_(torch.randn_like(weight)) if fault == "moved" else bias.fill_(torch.nan)
        original(predictor, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "write_model", worse)
    workspace, run = trained
    words = (f"run={run}", f"format={form}", f"out={tmp_path}/there/net.{form}")
    if form == "onnx" and fault == "nan":  # which the reader of the file refuses
        assert "gives no points" in workspace.refuse("flr.export", *words)
    else:
        done = workspace.run("flr.export", *words, code=1)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("flr: ")]
        assert "gives other points, nothing is written: 9 test faces" in line and "Traceback" not in done.stderr
    assert list((tmp_path / "there").iterdir()) == []


def test_the_bounds_are_the_users(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    words = (f"run={trained[1]}", "format=torchscript", "precision=fp16", f"out={tmp_path}/net.torchscript")
    trained[0].run("flr.export", *words, "tolerance.fp16=[1,0]", code=1)
    trained[0].run("flr.export", *words, "tolerance.fp16=[0,1]", code=1)
    assert list(tmp_path.iterdir()) == []


def test_without_its_data_rendered_faces_do(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    checkpoint = torch.load(best(trained[0]), weights_only=True)
    checkpoint["flr"]["config"]["data"]["root"] = None
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    done = trained[0].run("flr.export", f"run={tmp_path}/moved.ckpt", "faces=5")
    assert "note: rendered faces are used instead of the run's own" in done.stderr
    assert "5 faces of synthetic" in done.stdout and "NME" in done.stdout
    metadata = OnnxPredictor.load(tmp_path / "moved.onnx").metadata
    assert metadata.run is None and metadata.val_nme is None


@pytest.mark.long
@pytest.mark.parametrize("form", ["onnx", "torchscript", "pt2"])
def test_a_full_disk_is_told(form: str, trained: tuple[Workspace, str], tmp_path: Path) -> None:
    """Apart, since torch aborts the process where it writes to such a disk itself."""
    words = (f"run={trained[1]}", f"format={form}", f"out={tmp_path}/there/net.{form}", "faces=2")
    code = f"""
import resource, signal, sys
from flr import config
from flr.export import main
from flr.inference import export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
written = export.write_model
def write(*rest):
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # writes beyond it fail, as on a full disk
    written(*rest)
export.write_model = write
sys.argv[1:] = {words!r}
config.run_command(main, "export")
"""
    workspace = trained[0]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workspace.path, env=workspace.env, text=True, capture_output=True
    )
    assert done.returncode == 2 and "cannot be written" in done.stderr.splitlines()[-1], done.stderr
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("scheme", [KAGGLE15, MUCT76], ids=lambda scheme: scheme.name)
def test_rendered_faces_of_other_points(scheme: object, trained: tuple[Workspace, str], tmp_path: Path) -> None:
    predictor = net_of("ytf_cnn", scheme=scheme.name)
    checkpoint = load_checkpoint(best(trained[0]))
    config = checkpoint["flr"]["config"]
    config["data"] |= {"root": None, "crop": config["data"]["crop"] | {"size": SIZE}}
    config["data"]["crop"]["policy"]["source"] = "file"
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("export", ["faces=4", f"paths.cache_dir={trained[0].cache}"])
        rendered = hydra.compose("train", ["data=synthetic", "data.reader.test=4"]).data
    faces = export.load_test_faces(config, predictor, 4, cfg.paths, None, rendered)
    assert faces.crops.shape == (4, SIZE, SIZE, 1) and faces.crops.std() > 10
    assert (faces.nme is None) == (scheme is MUCT76)
    if faces.nme is not None:
        assert faces.nme(predictor.run(faces.crops)[0]) > 1
    assert plain(cfg)["tolerance"].keys() == {"fp32", "fp16", "int8"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "give the run to export"),
        (("run=nobody",), "knows no run|no such"),
        (("run={run}", "format=onx"), "format=onx"),
        (("run={run}", "formats=onnx"), r"did you mean 'format'"),
        (("run={run}", "precision=int8", "format=pt2"), "precision=int8 needs format=onnx"),
        (("run={run}", "precision=int4"), "precision=int4"),
        (("run={run}", "faces=1"), "faces=1"),
        (("run={run}", "tolerance.fp32=[1]"), r"tolerance.*fp32"),
        (("run={run}", "out=/dev/null/x.onnx"), "/dev/null/x.onnx: cannot be written"),
        (("run={run}", "out={tmp}"), "name it .onnx"),
        (("run={run}", "out={tmp}/a.onnx", "format=pt2"), "name it .pt2"),
        (("run=",), "give the run to export"),
        (("run=/etc/passwd",), "not a checkpoint"),
    ],
)
def test_bad_words_get_one_line(
    trained: tuple[Workspace, str], tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    filled = [word.format(run=trained[1], tmp=tmp_path) for word in words]
    assert re.search(line, trained[0].refuse("flr.export", *filled))
