"""Write a trained detector as an ONNX file with weights in 16 bit."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from flr.data.finders.network import METADATA_KEY, DetectorMetadata, FaceNetwork
from flr.data.finders.votes import find_votes, merge
from flr.data.synthetic.renderer import render
from flr.detection.network import DetectorNet
from flr.files import writing
from flr.inference.export import to_onnx
from flr.landmarks.geometry import tight_box
from flr.landmarks.scheme import IBUG68

_CALIBRATION_SEED, _CALIBRATION_FACES = 3_000_000, 300


def export(net: DetectorNet, path: Path, threshold: float, trained: Mapping[str, Any]) -> Path:
    """Write a detector's file, with its box calibrated on rendered faces.

    Args:
        net: The trained network.
        path: The file.
        threshold: See `flr.data.finders.network.DetectorMetadata`.
        trained: As of it.
    """
    sizes = {2: torch.export.Dim("height", min=16, max=8192), 3: torch.export.Dim("width", min=16, max=8192)}
    model = to_onnx(net.cpu().float().eval(), torch.zeros(1, 1, 96, 128), sizes, "image", ["maps"])
    _halve_weights(model)
    with writing(path) as aside:
        offsets: dict[str, tuple[float, float, float, float]] = {}
        for last in (False, True):
            metadata = DetectorMetadata(1, threshold, offsets, dict(trained))
            onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(asdict(metadata))})
            onnx.checker.check_model(model)
            aside.write_bytes(model.SerializeToString())
            if not last:
                offsets = calibrate(FaceNetwork(aside))
    return path


def _halve_weights(model: onnx.ModelProto) -> None:
    """Store the weights as float16; the graph casts them back, which ONNX Runtime does once, when it loads the file."""
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            name, values = tensor.name, numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def calibrate(network: FaceNetwork) -> dict[str, tuple[float, float, float, float]]:
    """Return the median place of the tight box in the detected square, on rendered faces; see `DetectorMetadata.offsets`."""
    schemes = (IBUG68.name, *IBUG68.reductions)
    offsets: dict[str, list[np.ndarray]] = {scheme: [] for scheme in schemes}
    for index in range(_CALIBRATION_FACES):
        face = render(_CALIBRATION_SEED, index, 160, face=0.4)
        for x, y, size, _ in merge(find_votes(face.image, network))[:1]:
            for scheme in schemes:
                points = IBUG68.reduce(face.points.astype(np.float64), scheme)[None]
                tight = tight_box(points, np.ones(points.shape[:2], bool))[0]
                offsets[scheme].append((tight - np.tile([x - size / 2, y - size / 2], 2)) / size)
    return {scheme: tuple(np.median(rows, 0).tolist()) for scheme, rows in offsets.items() if rows}
