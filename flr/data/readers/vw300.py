"""300-VW (Shen et al. 2015, https://ibug.doc.ic.ac.uk/resources/300-VW/): 68 points in each frame of 114 videos.

The root contains the folders ``001`` to ``562``, each with ``vid.avi`` and ``annot/000001.pts``, a file for each frame, which count
from 1. The 64 test videos are in three categories: well lit, unconstrained, and with occlusions and extreme poses.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge

from flr.data.formats.pts import read_pair
from flr.data.readers.published import require, stack_points
from flr.data.table import FaceTable, make_table
from flr.errors import UserError
from flr.landmarks.scheme import IBUG68

SITE = "https://ibug.doc.ic.ac.uk/resources/300-VW/"
VIDEO = "vid.avi"
CATEGORIES = {
    "category1": "114 124 125 126 150 158 401 402 505 506 507 508 509 510 511 514 515 518 519 520 521 522 524 525 537 538 540 541 "
    "546 547 548",
    "category2": "203 208 211 212 213 214 218 224 403 404 405 406 407 408 409 412 550 551 553",
    "category3": "410 411 516 517 526 528 529 530 531 533 557 558 559 562",
}  # fmt: skip
VIDEOS = 114


@dataclass
class Frames:
    """Frames of the videos under a root, decoded in order: ``001/000001`` is the first frame of video 001.

    Each thread reads on in the video that it has open, since a jump in a compressed video is slow and not exact.
    """

    root: Path

    def __post_init__(self) -> None:
        self._open: Any = threading.local()

    def __call__(self, name: str) -> np.ndarray:
        """(H, W, 3) RGB uint8."""
        video, _, number = name.partition("/")
        frame, state = int(number) - 1, self._open
        if getattr(state, "video", None) != video or frame < state.next:
            state.video, state.next, state.capture = video, 0, cv2.VideoCapture(str(self.root / video / VIDEO))
        while state.next < frame and state.capture.grab():
            state.next += 1
        success, image = state.capture.read()
        state.next += 1
        if not success or state.next != frame + 1:
            state.video = None
            raise UserError(f"{self.root / video / VIDEO}: has no frame {number} that can be decoded; fetch it again")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read(root: Path, strict: bool = False, every: Annotated[int, Ge(1)] = 10) -> FaceTable:
    """Read 300-VW as published. A face is named by its video and frame; `group` is the video; the categories are subsets.

    `form` is ``vw300-10`` with the step, and the count of videos where they are not all there: ``vw300-10[50]``.

    Args:
        root: Folder of the videos' folders.
        strict: Stop at the first fault of a face.
        every: Take the first of so many frames, which hardly differ.
    """
    videos = sorted(path.parent.name for path in root.glob(f"[0-9]*/{VIDEO}"))
    get = f"get 300-VW ({SITE}; for research) and unpack it so that this folder holds 001/ to 562/ with {VIDEO} and annot/"
    require(root, [f"{video}/{VIDEO}" for video in videos[:1]] or [f"001/{VIDEO}"], get)
    category = {video: name for name, members in CATEGORIES.items() for video in members.split()}
    frames = [
        (video, label) for video in videos for label in sorted((root / video / "annot").glob("[0-9]*.pts"))[::every]
    ]
    pairs = (read_pair([root / video / VIDEO], [label], len(IBUG68)) for video, label in frames)
    values, bad = stack_points(pairs, len(IBUG68))
    states = {video: (root / video / VIDEO).stat() for video in videos}
    size = np.array([states[video].st_size for video, _ in frames], np.int64)
    version = np.array([states[video].st_mtime_ns for video, _ in frames], np.int64)
    group = np.array([video for video, _ in frames], str)
    kind = np.array([category.get(video, "") for video, _ in frames], str)
    return make_table(
        f"vw300-{every}" + (f"[{len(videos)}]" if len(videos) != VIDEOS else ""), IBUG68, root,
        [f"{video}/{label.stem}" for video, label in frames], values - 1, np.where(kind == "", "train", "test"),
        published=(values, size), strict=strict, group=group, bad=bad, read_image=Frames(root), version=version,
        subsets={key: kind == key for key in CATEGORIES if (kind == key).any()},
    )  # fmt: skip
