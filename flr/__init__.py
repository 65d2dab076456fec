"""Facial-landmark research: train, track and evaluate landmark nets."""

import os

__version__ = "0.1.0"

# OpenCV reads it once, when it is imported, which every module here does after this.
MAX_PIXELS = 200_000_000  # a picture that claims more is refused before memory is asked for
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what a bad picture is, our own one line says
