"""Write predictions in the form of a competition."""

from pathlib import Path

import numpy as np
import torch

from flr.data.datamodule import FaceData
from flr.data.readers.kaggle import TEST, write_submission
from flr.errors import UserError
from flr.module.landmark_module import LandmarkModule


def submit(module: LandmarkModule, data: FaceData, path: Path) -> None:
    """Predict the faces of Kaggle's test.csv and write its submission file.

    Raises:
        UserError: The dataset is not Kaggle's form of ``data=muct``, or see `write_submission`.
    """
    table = data.prepare()
    rows = np.flatnonzero(np.char.startswith(table.name, f"{TEST}#"))
    if table.scheme.name != "kaggle15":
        raise UserError(
            f"submission=: the model gives {table.scheme.name} points, and Kaggle needs kaggle15; name another run"
        )
    if not len(rows) or data.root is None:
        raise UserError(f"submission=: data={data.name} has no {TEST}; it is for Kaggle's form of data=muct")
    module.eval()
    with torch.no_grad():
        parts = [
            module(data.batch(torch.from_numpy(some), None).images)
            for some in np.array_split(rows, len(rows) // 256 + 1)
        ]
    points = data.in_original(torch.cat(parts).numpy(), rows)
    write_submission(path, Path(data.root).expanduser(), table.name[rows].tolist(), points)
    print(f"{len(rows)} faces  {path}")
