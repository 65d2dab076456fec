"""Image files as other people's tools write them: bytes behind the image, damaged data, EXIF, unusual suffixes."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flr.data.export import export
from flr.data.formats.pts import pair_files
from flr.data.images import decode_image
from flr.data.readers.table import read
from flr.errors import UserError
from flr.inference.sources import Photos, Video, open_source

SIZE = (48, 32)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8), "RGB")
FORMS = {"baseline": {}, "progressive": {"progressive": True}, "restarts": {"restart_marker_rows": 1}, "grey": {}}


def encoded(image: Image.Image = PHOTO, form: str = "JPEG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@pytest.mark.parametrize("behind", [b"\0" * 5000, b"\xff" * 5000, b"....ftypmp42" * 999, b"\xff\xd9", encoded()])
def test_bytes_behind_a_jpeg_are_ignored(behind: bytes) -> None:
    expected = decode_image(encoded(), "whole.jpg")
    assert np.array_equal(decode_image(encoded() + behind, "padded.jpg"), expected)


@pytest.mark.parametrize("kind", FORMS)
def test_a_jpeg_whose_data_end_early_is_named(kind: str) -> None:
    data = encoded(PHOTO.convert("L") if kind == "grey" else PHOTO, **FORMS[kind])
    decode_image(data, "whole.jpg")
    for share in (0.6, 0.9):
        cut = data[: int(share * len(data))]
        with pytest.raises(UserError, match=r"cut.jpg: a (damaged|truncated) JPEG"):
            decode_image(cut + b"\xff\xd9", "cut.jpg")
        with pytest.raises(UserError, match=r"cut.jpg: a truncated JPEG"):
            decode_image(cut, "cut.jpg")


def test_a_plain_jpeg_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    decode_image(encoded(Image.new("RGB", SIZE, "white")), "white.jpg")
    assert not capfd.readouterr().err  # libjpeg's warnings


def label_files(root: Path, form: str, sized: bool) -> None:
    """Write labels of one upright photo with two points."""
    (root / "scheme.yaml").write_text("names: [a, b]\npairs: [[a, b]]\nnormaliser: diagonal\n")
    if form == "csv":
        (root / "labels.csv").write_text("image,a_x,a_y,b_x,b_y\n0.jpg,10,5,30,25\n")
    elif form == "xml":
        parts = "<part name='a' x='10' y='5'/><part name='b' x='30' y='25'/>"
        box = f"<box top='1' left='1' width='40' height='28'>{parts}</box>"
        (root / "labels.xml").write_text(f"<dataset><images><image file='0.jpg'>{box}</image></images></dataset>")
    elif form == "pts":
        (root / "train").mkdir()
        (root / "0.jpg").rename(root / "train" / "0.jpg")
        (root / "train" / "0.pts").write_text("version: 1\nn_points: 2\n{\n11 6\n31 26\n}\n")
    else:
        image = {"id": 1, "file_name": "0.jpg"} | ({"width": SIZE[0], "height": SIZE[1]} if sized else {})
        face = {"id": 1, "image_id": 1, "category_id": 1, "keypoints": [10, 5, 2, 30, 25, 2]}
        category = {"id": 1, "name": "face", "keypoints": []}
        document = {"images": [image], "annotations": [face], "categories": [category]}
        (root / "labels.json").write_text(json.dumps(document))


@pytest.mark.parametrize(("form", "upright", "sized"), [
    ("csv", True, False), ("xml", True, False), ("pts", True, False), ("coco", True, False), ("coco", False, True),
])  # fmt: skip
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_labels_of_upright_images_find_those_that_are_stored_turned(
    tmp_path: Path, form: str, upright: bool, sized: bool, orientation: int
) -> None:
    if orientation == 3:  # width and height do not show it
        upright, sized = True, False
    exif = Image.Exif()
    exif[274] = orientation
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    smooth = PHOTO.resize((6, 4)).resize(SIZE)
    smooth.transpose(turn).save(tmp_path / "0.jpg", quality=100, subsampling=0, exif=exif)
    label_files(tmp_path, form, sized)
    table = read(tmp_path, upright=upright)
    assert table.form == ("table" if upright else "table+stored")
    assert np.abs(table.load(0) - np.asarray(smooth, float)).mean() < 8
    stored = read(tmp_path, upright=False)
    assert sized or stored.load(0).shape[:2] == (SIZE if orientation > 4 else SIZE[::-1])
    export(stored, "csv", tmp_path / "out")  # which is read back upright
    back = read(tmp_path / "out")
    assert np.abs(back.load(0).astype(float) - stored.load(0)).mean() < 1 and (back.points == stored.points).all()
    assert sized or (stored.version != read(tmp_path).version).all(), "its crops are kept apart"


def test_images_are_recognised_by_their_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "b.jfif", "c", "d.JPG_large"):
        (tmp_path / name).write_bytes(encoded())
    for name in ("notes.txt", "e.heic", ".DS_Store"):
        (tmp_path / name).write_bytes(b"no image")
    source = open_source(str(tmp_path))
    assert isinstance(source, Photos) and list(source.names) == ["a.jpg", "b.jfif", "c", "d.JPG_large"]
    assert "skipped 2 file(s) that are not images: 'e.heic', 'notes.txt'" in capsys.readouterr().err
    assert isinstance(open_source(str(tmp_path / "b.jfif")), Photos)
    with pytest.raises(UserError, match="neither an image nor a video"):
        assert not isinstance(open_source(str(tmp_path / "e.heic")), Video)
    (tmp_path / "b.pts").write_text("")
    (found,) = [images for images, labels in pair_files(tmp_path) if labels]
    assert [path.name for path in found] == ["b.jfif"]


DECODE_TWICE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import cv2, numpy as np
from flr.data.images import decode_image
data = open("a.jpg", "rb").read()
sys.setswitchinterval(1e-6)  # threads take turns in the middle of a first use
with ThreadPoolExecutor(4) as threads:
    shapes = set(threads.map(lambda i: decode_image(data, "a.jpg").shape, range(40)))
print("ours read", *shapes, file=sys.stderr, flush=True)
cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
"""


def test_decoders_print_nothing_of_their_own(tmp_path: Path) -> None:
    """libjpeg's line names no file; the C library's stderr works again afterwards, whatever threads were inside.

    Runs in a subprocess, where the first use is by several threads.
    """
    (tmp_path / "a.jpg").write_bytes(encoded()[:-2] + b"\x11" * 300 + b"\xff\xd9")
    done = subprocess.run(
        [sys.executable, "-c", DECODE_TWICE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("Corrupt JPEG data") == 1, done.stderr
    assert done.stderr.index(f"ours read {(*SIZE[::-1], 3)}\n") < done.stderr.index("Corrupt JPEG data")


def test_a_damaged_header_is_no_warning(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    PHOTO.save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    at = data.index(b"Exif")
    (tmp_path / "a.jpg").write_bytes(data[: at + 14] + b"\x09" + data[at + 15 :])  # counts more entries than there are
    code = "from pathlib import Path; from flr.data.images import Files; print(Files(Path()).orientation('a.jpg'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) in range(1, 9) and not done.stderr
