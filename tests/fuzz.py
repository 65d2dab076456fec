"""Coverage-guided fuzzing of what reads other people's files; wants ``pip install atheris`` (see CONTRIBUTING.md).

    python -m tests.fuzz TARGET [CORPUS_FOLDER] [-max_total_time=600 and other options of libFuzzer]

One file of a small dataset is changed again and again, and its reader must return a table or raise a UserError of one line.
Any other exception stops the run and leaves the file as ``crash-...`` in the current folder; given in place of the corpus, that
file is read once more. Warnings count as exceptions, since they would reach a user's terminal.
"""

import contextlib
import functools
import io
import os
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import atheris
import cv2
import numpy as np

with atheris.instrument_imports(include=["flr.data", "flr.landmarks"]):
    from flr.data import export, images
    from flr.data.readers import (
        aflw,
        celeba,
        cofw,
        face_synthetics,
        ibug_xml,
        lapa,
        muct,
        table,
        w300lp,
        wflw,
        wholebody,
        youtube_faces,
    )  # fmt: skip
    from flr.errors import UserError
from tests.fakes import celeba as fake_celeba
from tests.fakes import cofw as fake_cofw
from tests.fakes import field
from tests.fakes import ibug_xml as fake_xml
from tests.fakes import muct as fake_muct
from tests.fakes import table as fake_table
from tests.fakes import wflw as fake_wflw
from tests.fakes import youtube_faces as fake_youtube_faces

FEW = {"train": 2}
TOKEN = re.compile(rb"([^\s,;:<>\[\]{}()'\"=/]+)")
ODD = (
    b"", b"0", b"-1", b"-0.0", b"1e39", b"1e400", b"1e-400", b"nan", b"NaN", b"Infinity", b"9" * 30, b"9" * 400, b"1_0", b"0x10",
    b"null", b"true", b"[]", b"{}", b'""', b"..", b"/", b"http://[", b"%00", b"%ff", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"&#0;",
    b"\\ud800", "\u0661\u00b2".encode(), b"*a", b"a" * 5000,
)  # fmt: skip
KINDS = {
    "a.jpg": [], "b.jpg": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], "c.jpg": [cv2.IMWRITE_JPEG_RST_INTERVAL, 2], "a.png": [],
    "a.webp": [], "a.bmp": [], "a.tif": [], "a.ppm": [], "a.gif": [], "a.jp2": [],
}  # fmt: skip


class Target(NamedTuple):
    """What is fuzzed: `write` makes a dataset in a folder, and `read` reads it with `file` spoiled."""

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    file: str
    is_text: bool = True


read_scheme = table.read_scheme
table.read_scheme = functools.cache(read_scheme)  # a fifth of the time, but in the target of its own


def table_target(form: str, file: str) -> Target:
    return Target(lambda root: fake_table.write(root, form, FEW), table.read, file)


def write_scheme(root: Path) -> None:
    table.read_scheme = read_scheme
    fake_table.write(root, "csv", FEW)


def tool_target(form: export.Form, file: str) -> Target:
    def write(root: Path) -> None:
        fake_table.write(root / "source", "csv", FEW)
        export.export(table.read(root / "source"), form, root / "tool")

    return Target(write, lambda root: table.read(root / "tool"), f"tool/{file}")


def write_images(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 72, 3), np.uint8)
    for name, options in KINDS.items():
        cv2.imwrite(str(root / name), pixels, options)


def read_image(root: Path) -> None:
    images.Files(root, upright=True, sizes={"a.jpg": (64, 72)}).turns("a.jpg")
    for upright in (False, True):
        image = images.read_image(root / "a.jpg", upright)
        assert image.dtype == np.uint8 and image.size and image.shape[2:] in ((), (3,)), image.shape


W300LP = "300W_LP/landmarks/AFW/AFW_134212_1_0_pts.mat"
TARGETS = {
    "csv": table_target("csv", "labels.csv"),
    "scheme": Target(write_scheme, table.read, "scheme.yaml"),
    "coco": table_target("coco", "labels_train.json"),
    "xml": table_target("xml", "labels_train.xml"),
    "pts": table_target("pts", "train/000.pts"),
    "labelstudio": tool_target("labelstudio", "labels_train.json"),
    "cvat": tool_target("cvat", "labels_train.xml"),
    "image": Target(write_images, read_image, "a.jpg", is_text=False),
    "aflw": Target(field.write_aflw, aflw.read, "AFLWinfo_release.mat", is_text=False),
    "celeba": Target(fake_celeba.write, celeba.read, "list_landmarks_celeba.txt"),
    "cofw": Target(fake_cofw.write, cofw.read, "COFW_train_color.mat", is_text=False),
    "face_synthetics": Target(field.write_face_synthetics, face_synthetics.read, "000001_ldmks.txt"),
    "ibug_xml": Target(fake_xml.write, ibug_xml.read, "labels_ibug_300W_train.xml"),
    "kaggle": Target(lambda root: fake_muct.write_kaggle(root, 2, 1), muct.read, "training.csv"),
    "lapa": Target(field.write_lapa, lapa.read, "train/landmarks/1000_0.txt"),
    "muct": Target(fake_muct.write_muct, muct.read, "muct-landmarks/muct76-opencv.csv"),
    "w300lp": Target(field.write_w300lp, w300lp.read, W300LP, is_text=False),
    "wflw": Target(fake_wflw.write, wflw.read, wflw.INDEX["train"]),
    "wholebody": Target(field.write_wholebody, wholebody.read, "annotations/coco_wholebody_train_v1.0.json"),
    "youtube_faces": Target(fake_youtube_faces.write, youtube_faces.read, "training_frames_keypoints.csv"),
}


def replace_token(data: bytes, max_size: int, seed: int) -> bytes:
    """Put odd values in the place of numbers and words, which changes of single bytes seldom do; else libFuzzer's change."""
    draw = random.Random(seed)
    parts = TOKEN.split(data)
    if len(parts) < 3 or draw.random() < 0.5:
        return atheris.Mutate(data, max_size)
    at = draw.randrange(len(parts))
    parts[at] = draw.choice((*ODD, *draw.sample(parts, 3)))
    return b"".join(parts)[:max_size]


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz TARGET [libFuzzer's options]; targets: {', '.join(TARGETS)}")
    target = TARGETS[sys.argv.pop(1)]
    sys.argv[1:] = [os.path.abspath(word) if os.path.exists(word) else word for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as seeds:
        root = Path(folder)
        target.write(root)
        path = root / target.file
        for seed in map(root.joinpath, KINDS if target.file in KINDS else [target.file]):
            (Path(seeds) / seed.name).write_bytes(seed.read_bytes())
        target.read(root)  # the sound one

        def read(data: bytes) -> None:
            path.write_bytes(data)
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # notes on what is skipped
                    target.read(root)
            except UserError as error:
                if "\n" in str(error):
                    raise

        warnings.simplefilter("error")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        size = max(seed.stat().st_size for seed in Path(seeds).iterdir())
        alone = any(os.path.isfile(word) for word in sys.argv[1:])
        options = [*sys.argv[1:]] if alone else [*sys.argv[1:], seeds]
        options += [f"-max_len={2 * size + 4096}", "-timeout=300", "-rss_limit_mb=4096"]
        mutate = {"custom_mutator": replace_token} if target.is_text else {}
        atheris.Setup([sys.argv[0], *options], read, **mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
