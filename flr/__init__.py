"""Train, track and evaluate facial-landmark models."""

import importlib
import os
import sys
import warnings
from importlib.util import find_spec
from typing import Any

__version__ = "0.2.0"

# OpenCV reads it once, when it is imported, which every module here does after this.
MAX_PIXELS = 200_000_000  # an image that claims more is refused before memory is allocated
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # our own line reports a bad image

warnings.filterwarnings("ignore", module=r"PIL\.")  # the same of Pillow, which reads headers

# Otherwise ONNX Runtime sends its maker what runs here when it is imported, and leaves a file in the temporary folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name == "find_faces":
        # Brings OpenCV and ONNX Runtime, which --help does without.
        return importlib.import_module("flr.inference.api").find_faces
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def exit_without_training_packages(command: str) -> None:
    """Exit with code 2 where a package that a command needs is missing, as in the installation without extras."""
    if command == "predict":  # an exported model and the included one need none of them
        return
    for name in ("torch", "pytorch_lightning", "mlflow"):
        if find_spec(name) is None:
            print(f"flr: {name} is not installed, and {command} needs it; pip install 'flr[train]'", file=sys.stderr)
            sys.exit(2)


# While Python looks for what `python -m` names, sys.argv[0] is "-m".
if sys.argv[:1] == ["-m"]:
    for word in sys.orig_argv:
        if word.startswith("flr."):
            exit_without_training_packages(word.removeprefix("flr."))
