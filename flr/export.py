"""``python -m flr.export run=ID|DIR|CKPT format=onnx|torchscript|pt2``: a trained net as one file, seen to give its points.

What stands before and behind the net is inside: the graph takes crops (B, size, size, C) uint8 and gives points (B, K, 2) and
how uncertain each is (B, K), crop pixels, averaged with the mirror image where the run was. What else a user needs is metadata (`flr.inference.onnx.About`).
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from flr.cli import quiet, run_command
from flr.config.compose import as_config, plain
from flr.config.instantiate import build
from flr.config.schema import Export
from flr.config.validate import check
from flr.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from flr.data.datamodule import FaceData
    from flr.inference.predictor import Predictor
    from flr.module.checkpoints import RunFolder

EXTRA = "flr.json"  # the metadata in a .torchscript or .pt2 file


@dataclass(frozen=True, eq=False)
class Faces:
    """What an exported file is tried on.

    Attributes:
        told: which they are.
        crops: (N, size, size, C) uint8.
        nme: of predicted points (N, K, 2) crop pixels, percent; None where the faces have other points than the net.
    """

    told: str
    crops: "np.ndarray"
    nme: "Callable[[np.ndarray], float] | None"


def main(cfg: DictConfig) -> None:
    """Export the run that the config names."""
    from flr.files import writing
    from flr.inference.predictor import Predictor
    from flr.module.checkpoints import RunFolder, find_checkpoint, load_checkpoint

    if cfg.run in (None, ""):  # an empty one would be this folder
        raise UserError("name what to export: run=ID, run=FOLDER or run=FILE.ckpt")
    check(cfg, Export)
    if cfg.precision == "int8" and cfg.format != "onnx":
        raise UserError(f"precision=int8 is of format=onnx; {cfg.format} takes fp32 or fp16")
    quiet()
    best = find_checkpoint(str(cfg.run), str(cfg.tracking.uri), Path(cfg.paths.output_dir))
    folder = RunFolder(best.parent.parent)
    ours = (folder.path / "run.json").is_file()
    suffix = "" if cfg.precision == "fp32" else f"-{cfg.precision}"
    out = (folder.path if ours else best.parent) / f"{best.stem}{suffix}.{cfg.format}"
    out = out if cfg.out is None else Path(cfg.out).absolute()
    if out.suffix != f".{cfg.format}":
        raise UserError(f"out={cfg.out}: name it .{cfg.format}, as format={cfg.format} is, or set another format")
    if out.is_dir() or (out.exists() and not cfg.overwrite):
        raise UserError(f"{out} is there already; set overwrite=true, or name another file by out=FILE")
    checkpoint = load_checkpoint(best)
    predictor = Predictor.load(best, cfg.tta)
    predictor.half = False  # bf16 is for training; the 32-bit net is what an exported one has to equal
    faces = test_faces(cfg, checkpoint, best, predictor)
    before = predictor.run(faces.crops)[0]
    text = describe(predictor, checkpoint, folder if ours else None, best, cfg.precision)
    with writing(out) as aside:
        write(predictor, text, aside, cfg.format, cfg.precision)
        told = compare(before, reader(aside, cfg.format), faces, plain(cfg)["tolerance"][cfg.precision])
    print(told)
    print(out)


def compare(
    before: "np.ndarray", run: "Callable[[np.ndarray], np.ndarray]", faces: Faces, bounds: tuple[float, float]
) -> str:
    """The distances between a net's points (N, K, 2) and those of its file, in words; beyond `bounds` the command ends."""
    import numpy as np

    # A file that holds the number of faces with which it was traced fails here.
    after = np.concatenate([run(faces.crops[:1]), run(faces.crops[1:])])
    moved = np.linalg.norm(after - before, axis=-1)
    told = f"{faces.told}, crop pixels: max {moved.max():.4g}, mean {moved.mean():.4g} (bounds {bounds[0]:g}, {bounds[1]:g})"
    if faces.nme is not None:
        told += f"; NME {faces.nme(before):.3f} % before, {faces.nme(after):.3f} % after"
    if not (moved.max() <= bounds[0] and moved.mean() <= bounds[1]):  # nor is it when they are no numbers
        print(f"flr: the exported net gives other points, nothing is written: {told}", file=sys.stderr)
        sys.exit(1)
    return told


# -- the file ----------------------------------------------------------------------------------------------------------


def describe(
    predictor: "Predictor", checkpoint: dict[str, Any], folder: "RunFolder | None", best: Path, precision: Any
) -> str:
    """The metadata of a net's file, JSON."""
    import json

    from flr.inference.onnx import About
    from flr.module.checkpoints import load_checkpoint

    scored = None
    if folder is not None and best == folder.best and folder.last.is_file():
        kept = load_checkpoint(folder.last).get("callbacks", {}).values()
        scored = next((s["best_model_score"] for s in kept if s.get("monitor") == "val/nme"), None)
    about = About(
        version=2,
        scheme=predictor.scheme.plain(),
        crop=predictor.crop,
        pixels=predictor.pixels,
        offset=predictor.offset,
        mean_face=predictor.mean_face.tolist(),
        doubt=predictor.doubt,
        precision=precision,
        tta=predictor.module.tta,
        run=folder.note()["run_id"] if folder else None,
        protocol=checkpoint["flr"]["protocol"],
        val_nme=None if scored is None else float(scored),
    )
    return json.dumps(asdict(about))


def graph_of(predictor: "Predictor", half: bool) -> "torch.nn.Module":
    """Crops (B, size, size, C) uint8 to points (B, K, 2) and their spread (B, K), float32 crop pixels; with `half` the net itself is of
    16 bit."""
    import torch

    from flr.module.landmark_module import find_points

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            module = predictor.module
            self.net, self.objective, self.size = module.best_net, module.objective, module.size
            self.order = module.scheme.mirror_order.tolist() if module.tta else None
            self.low, self.span = predictor.pixels[0], predictor.pixels[1] - predictor.pixels[0]

        def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            images = crops.permute(0, 3, 1, 2).float() / 255 * self.span + self.low
            return find_points(self.net, self.objective, images.half() if half else images, self.size, self.order)

    graph = Graph().eval()
    graph.net.to(torch.float16 if half else torch.float32)
    return graph


def write(predictor: "Predictor", text: str, path: Path, form: str, precision: str) -> None:
    """Write a net as an .onnx, .torchscript or .pt2 file with its metadata. Its own weights become those of the file.

    Raises:
        UserError: the net does something that this form cannot say.
    """
    import io
    import logging
    import warnings

    import torch

    size, channels = predictor.crop.size, predictor.crop.channels
    graph, crops = graph_of(predictor, precision == "fp16"), torch.zeros(2, size, size, channels, dtype=torch.uint8)
    dynamic = ({0: torch.export.Dim("batch")},)
    buffer = io.BytesIO()  # torch's own writing to a full disk aborts the process
    told = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporters' remarks on packages that are not needed
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            if form == "torchscript":
                torch.jit.save(torch.jit.trace(graph, crops), buffer, _extra_files={EXTRA: text})
                path.write_bytes(buffer.getvalue())
                return
            if form == "pt2":
                program = torch.export.export(graph, (crops,), dynamic_shapes=dynamic)
                torch.export.save(program, buffer, extra_files={EXTRA: text})
                path.write_bytes(buffer.getvalue())
                return
            exported = torch.onnx.export(
                graph, (crops,), dynamo=True, dynamic_shapes=dynamic, input_names=["crops"], verbose=False,
                output_names=["points", "spread"],
            )  # fmt: skip
            assert exported is not None
            write_onnx(exported.model_proto, text, path, precision == "int8")
    except OSError:
        raise  # `writing` tells it
    except Exception as error:  # each exporter has its own kinds
        net = type(predictor.module.best_net).__name__
        raise UserError(f"format={form}: torch cannot export {net} ({error!s:.200}); try another format") from error
    finally:
        logging.disable(told)


def write_onnx(model: Any, text: str, path: Path, int8: bool) -> None:
    """Write an ONNX model with its metadata; with `int8` its weights of 8 bit, by ONNX Runtime's dynamic quantisation."""
    import tempfile

    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    from flr.inference.onnx import KEY

    if int8:
        with tempfile.TemporaryDirectory() as folder:
            # Batch norms are folded into their convolutions first, so that these are quantised as they are run.
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            model = onnx.load(options.optimized_model_filepath)
            del model.graph.value_info[:]  # shapes inside, which quantising changes
            quantize_dynamic(model, Path(folder) / "int8.onnx")
            model = onnx.load(Path(folder) / "int8.onnx")
    onnx.helper.set_model_props(model, {KEY: text})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def reader(path: Path, form: str) -> "Callable[[np.ndarray], np.ndarray]":
    """What runs a file that was just written: crops (B, size, size, C) uint8 to points (B, K, 2) crop pixels.

    Only for one's own: a .torchscript or .pt2 file is a program, and loading it may run what is in it.
    """
    import torch

    from flr.inference.onnx import OnnxPredictor

    if form == "onnx":
        net = OnnxPredictor.load(path)
        return lambda crops: net.run(crops)[0]
    run: Any = torch.jit.load(str(path)) if form == "torchscript" else torch.export.load(path).module()

    def points(crops: "np.ndarray") -> "np.ndarray":
        with torch.no_grad():
            return run(torch.from_numpy(crops))[0].numpy()

    return points


# -- the faces ---------------------------------------------------------------------------------------------------------


def test_faces(cfg: DictConfig, checkpoint: dict[str, Any], best: Path, predictor: "Predictor") -> Faces:
    """Faces of the run's own test part, evenly picked; rendered ones where its data are not here.

    Raises:
        UserError: the data are not where ``data.root`` says.
    """
    from flr.augment.device import Augment
    from flr.evaluation.score import restore

    own = as_config(checkpoint["flr"]["config"])
    own.paths = cfg.paths
    if cfg.data.root is not None:
        own.data.root = cfg.data.root
    try:
        return _of(restore(own, checkpoint, best, Augment())[1], predictor, cfg.faces, "test faces")
    except UserError as error:
        if cfg.data.root is not None:
            raise
        print(f"note: rendered faces take the place of the run's own: {error}", file=sys.stderr)
    parts = [f"data.reader.{part}={n}" for part, n in (("train", 1), ("val", 1), ("test", cfg.faces))]
    drawn = hydra.compose("train", ["data=synthetic", *parts]).data
    crop = plain(own.data.crop)
    crop["policy"] |= {"source": "truth", "jitter": 0.0}  # these faces have no box but that of their points
    name = predictor.scheme.name
    drawn = OmegaConf.merge(drawn, {"crop": crop, "root": str(Path(cfg.paths.cache_dir) / "synthetic")})
    drawn.scheme = name if name in ("kaggle15", "celeba5") else None
    return _of(build(drawn, augment=Augment(), seed=0, cache=cfg.paths.cache_dir), predictor, cfg.faces, "faces")


def _of(data: "FaceData", predictor: "Predictor", count: int, what: str) -> Faces:
    import numpy as np

    from flr.metrics.functional import nme, percent_mean, point_errors

    table = data.prepare()
    rows = data.rows("test")
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]

    def score(points: np.ndarray) -> float:
        errors = point_errors(data.in_original(points, rows), table.points[rows], table.labelled[rows])
        return percent_mean(nme(errors, data.normaliser[rows]))

    same = table.scheme.plain() == predictor.scheme.plain()
    inner = slice(data.store.margin, data.store.margin + data.crop.size)
    crops = np.array(data.store.images[rows][:, inner, inner])
    return Faces(f"{len(rows)} {what} of {data.name}", crops, score if same else None)


if __name__ == "__main__":
    run_command(main, "export", exit_on_sigterm=True)
