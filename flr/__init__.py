"""Train, track and evaluate facial-landmark models."""

import os
import sys
from importlib.util import find_spec

__version__ = "0.2.0"

# OpenCV reads it once, when it is imported, which every module here does after this.
MAX_PIXELS = 200_000_000  # an image that claims more is refused before memory is allocated
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # our own line reports a bad image

# Otherwise ONNX Runtime sends its maker what runs here when it is imported, and leaves a file in the temporary folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def exit_without_training_packages() -> None:
    """Exit with code 2 where a package that commands need is missing, as in the installation without extras."""
    for name in ("hydra", "torch", "pytorch_lightning", "mlflow"):
        if find_spec(name) is None:
            print(f"flr: {name} is not installed, and commands need it; pip install 'flr[train]'", file=sys.stderr)
            sys.exit(2)


# While Python looks for what `python -m` names, sys.argv[0] is "-m".
if sys.argv[:1] == ["-m"] and any(word.startswith("flr.") for word in sys.orig_argv):
    exit_without_training_packages()
