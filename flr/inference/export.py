"""Write a trained model as an ONNX file, and check that the file gives the model's points.

The graph maps crops (B, size, size, C) uint8 to points (B, K, 2) and their uncertainty (B, K), crop pixels, averaged with the
mirror image where the run was. What else a user needs is metadata (see `flr.inference.onnx.ExportMetadata`).
"""

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from omegaconf import DictConfig
from onnxruntime.quantization import quantize_dynamic

from flr.augment.device import Augment
from flr.config.compose import as_config
from flr.config.schema import Train
from flr.config.validate import check
from flr.errors import UserError
from flr.files import writing
from flr.inference.onnx import METADATA_KEY, ExportMetadata, OnnxPredictor
from flr.inference.predictor import Predictor
from flr.metrics.functional import nme, percent_mean, point_errors
from flr.module.assembly import build_data
from flr.module.checkpoints import RunFolder, load_checkpoint
from flr.module.landmark_module import find_points

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, eq=False)
class TestFaces:
    """Faces on which an exported file is checked.

    Attributes:
        description: Which faces they are.
        crops: (N, size, size, C) uint8.
        nme: Computes the NME in percent of points (N, K, 2) crop pixels; None where they have no points of this scheme.
    """

    description: str
    crops: np.ndarray
    nme: Callable[[np.ndarray], float] | None


# -- the file ----------------------------------------------------------------------------------------------------------


def output_file(checkpoint: Path, precision: str, out: str | None, overwrite: bool) -> Path:
    """Choose the file to write.

    Raises:
        UserError: It exists, or its name does not end in .onnx.
    """
    suffix = "" if precision == "fp32" else f"-{precision}"
    folder = run_folder(checkpoint)
    path = (checkpoint.parent if folder is None else folder.path) / f"{checkpoint.stem}{suffix}.onnx"
    path = path if out is None else Path(out).absolute()
    if path.suffix != ".onnx":
        raise UserError(f"out={out}: not the name of an .onnx file; name it FILE.onnx")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UserError(f"{path} exists already; set overwrite=true, or give another file by out=FILE")
    return path


def run_folder(checkpoint: Path) -> RunFolder | None:
    """Return the folder of a checkpoint's run; None for a checkpoint elsewhere."""
    folder = RunFolder(checkpoint.parent.parent)
    return folder if (folder.path / "run.json").is_file() else None


def make_metadata(predictor: Predictor, checkpoint: Path, protocol: Mapping[str, Any], precision: Precision) -> str:
    """Make the metadata of a model's file, JSON."""
    folder = run_folder(checkpoint)
    val_nme = None
    if folder is not None and checkpoint == folder.best and folder.last.is_file():
        states = load_checkpoint(folder.last).get("callbacks", {}).values()
        val_nme = next((state["best_model_score"] for state in states if state.get("monitor") == "val/nme"), None)
    metadata = ExportMetadata(
        version=2,
        scheme=predictor.scheme.plain(),
        crop=predictor.crop,
        pixels=predictor.pixels,
        offset=predictor.offset,
        mean_face=predictor.mean_face.tolist(),
        doubt=predictor.uncertainty_threshold,
        precision=precision,
        tta=predictor.module.tta,
        run=folder.note()["run_id"] if folder else None,
        protocol=dict(protocol),
        val_nme=None if val_nme is None else float(val_nme),
        radius90=predictor.module.about.get("radius90"),
    )
    return json.dumps(asdict(metadata))


class ExportGraph(torch.nn.Module):
    """The computation of an exported file: preprocessing, network, decoding.

    Args:
        predictor: The model.
        half: Whether the network itself is in 16 bit.
    """

    def __init__(self, predictor: Predictor, half: bool) -> None:
        super().__init__()
        module = predictor.module
        self.net, self.objective, self.size, self.half_precision = module.best_net, module.objective, module.size, half
        self.offsets = module.offsets
        self.order = module.scheme.mirror_order.tolist() if module.tta else None
        self.low, self.span = predictor.pixels[0], predictor.pixels[1] - predictor.pixels[0]
        self.eval()
        self.net.to(torch.float16 if half else torch.float32)

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map crops (B, size, size, C) uint8 to points (B, K, 2) and their uncertainty (B, K), float32 crop pixels.

        Where the objective learns visibility, the third result is the probability (B, K) that each point is visible.
        """
        images = crops.permute(0, 3, 1, 2).float() / 255 * self.span + self.low
        if self.half_precision:
            images = images.half()
        found = find_points(self.net, self.objective, images, self.size, self.order, self.offsets)
        return found if self.objective.visibility_weight else found[:2]


def write_model(predictor: Predictor, metadata: str, path: Path, precision: Precision) -> None:
    """Write a model as an .onnx file with its metadata, and convert its weights to the precision.

    Raises:
        UserError: ONNX cannot express an operation of the network.
    """
    size, channels = predictor.crop.size, predictor.crop.channels
    crops = torch.zeros(2, size, size, channels, dtype=torch.uint8)
    visible = ["visible"] if predictor.module.objective.visibility_weight else []
    graph, batch = ExportGraph(predictor, precision == "fp16"), {0: torch.export.Dim("batch")}
    try:
        model = to_onnx(graph, crops, batch, "crops", ["points", "spread", *visible])
        write_onnx(model, metadata, path, precision == "int8")
    except OSError:
        raise  # `writing` reports it
    except Exception as error:  # the exporter has its own classes
        network = type(predictor.module.best_net).__name__
        raise UserError(f"torch cannot export {network} ({error!s:.200}); export another model") from error


def to_onnx(
    module: torch.nn.Module, example: torch.Tensor, sizes: Mapping[int, Any], name: str, results: list[str]
) -> onnx.ModelProto:
    """Make the ONNX model of a module of one input.

    Args:
        module: The module, in evaluation mode.
        example: An input.
        sizes: Dimension of the input -> the range of sizes that it may have; all others are those of the example.
        name: Of the input.
        results: Names of the outputs.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter's notes on packages that are not needed
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            exported = torch.onnx.export(
                module, (example,), dynamo=True, input_names=[name], output_names=results, dynamic_shapes=(sizes,),
                verbose=False,
            )  # fmt: skip
    finally:
        logging.disable(disabled)
    assert exported is not None
    model = exported.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # the exporter's stack traces, which name files of this machine
    return model


def write_onnx(model: Any, metadata: str, path: Path, int8: bool) -> None:
    """Write an ONNX model with its metadata; with `int8`, weights of 8 bit by ONNX Runtime's dynamic quantisation."""
    if int8:
        with tempfile.TemporaryDirectory() as folder:
            # Batch norms are folded into their convolutions first, so that the weights that run are quantised.
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            model = onnx.load(options.optimized_model_filepath)
            del model.graph.value_info[:]  # shapes inside the graph, which quantisation changes
            quantize_dynamic(model, Path(folder) / "int8.onnx")
            model = onnx.load(Path(folder) / "int8.onnx")
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


# -- the check ---------------------------------------------------------------------------------------------------------


def export_checked(
    predictor: Predictor, metadata: str, path: Path, precision: Precision, faces: TestFaces, bounds: tuple[float, float]
) -> str:
    """Write a model's file, which appears only where its points are those of the model.

    Args:
        predictor: The model. It is compared in 32 bit; bf16 is for training.
        metadata: See `make_metadata`.
        path: File to write.
        precision: Precision of the network.
        faces: Faces on which the file is checked.
        bounds: Largest and mean distance by which points may differ, crop pixels.

    Returns:
        The distances, in one line.

    Raises:
        UserError: ONNX cannot express the network, or the file cannot be written.
        SystemExit: Points differ by more than the bounds; exit code 1.
    """
    predictor.half = False
    before = predictor.run(faces.crops)[0]
    with writing(path) as partial_file:
        write_model(predictor, metadata, partial_file, precision)
        exported = OnnxPredictor.load(partial_file)
        # Batches of two sizes: a file that holds the batch size of its tracing fails here.
        batches = [batch for batch in (faces.crops[:1], faces.crops[1:]) if len(batch)]
        after = np.concatenate([exported.run(batch)[0] for batch in batches])
        distances = np.linalg.norm(after - before, axis=-1)
        report = (
            f"{faces.description}, crop pixels: max {distances.max():.4g}, mean {distances.mean():.4g} "
            f"(bounds {bounds[0]:g}, {bounds[1]:g})"
        )
        if faces.nme is not None:
            report += f"; NME {faces.nme(before):.3f} % before, {faces.nme(after):.3f} % after"
        if not (distances.max() <= bounds[0] and distances.mean() <= bounds[1]):  # true of NaN as well
            print(f"flr: the exported model gives other points, nothing is written: {report}", file=sys.stderr)
            sys.exit(1)
    return report


# -- the faces ---------------------------------------------------------------------------------------------------------


def load_test_faces(
    stored: Mapping[str, Any], predictor: Predictor, count: int, paths: DictConfig, root: str | None
) -> TestFaces:
    """Load faces of the run's test split, evenly chosen; random images where its data are not on this machine.

    Args:
        stored: The run's config, from its checkpoint.
        predictor: The model.
        count: Number of faces.
        paths: Folders of this machine.
        root: Folder of the run's dataset; None for where it was.

    Raises:
        UserError: The dataset is not at `root`.
    """
    config = as_config(stored)
    config.paths = paths
    if root is not None:
        config.data.root = root
    try:
        check(config, Train, trusted=False)
        return _faces_of(config, predictor, count)
    except UserError as error:
        if root is not None:
            raise
        print(f"note: random images are used instead of the run's own faces: {error}", file=sys.stderr)
    size, random = predictor.crop.size, np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    crops = np.stack([cv2.resize(image, (size, size)) for image in coarse])[..., : predictor.crop.channels]
    return TestFaces(f"{count} random images", crops, None)


def _faces_of(config: DictConfig, predictor: Predictor, count: int) -> TestFaces:
    data = build_data(config, Augment())
    table = data.prepare()
    rows = data.rows("test")
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]

    def score(points: np.ndarray) -> float:
        errors = point_errors(data.in_original(points, rows), table.points[rows], table.labelled[rows])
        return percent_mean(nme(errors, data.normaliser[rows]))

    same = table.scheme.plain() == predictor.scheme.plain()
    return TestFaces(f"{len(rows)} test faces of {data.name}", data.store.crops(rows), score if same else None)
