"""`flr.predict` as a user runs it: photos, a video, what is refused, what goes on after a crash."""

import contextlib
import csv
import itertools
import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from flr.data.boxes import overlap
from flr.data.images import read_image
from flr.data.readers.table import read as read_table
from flr.data.synthetic.renderer import render
from flr.errors import UserError
from flr.inference import pipeline
from flr.inference.annotation import annotate
from flr.inference.detectors import BoxTarget, Detections, WholeImage
from flr.inference.faces import Face
from flr.inference.loading import LANDMARKS, load_file
from flr.inference.predictor import Predictor
from flr.inference.sources import Video, open_source
from flr.inference.writer import PredictionWriter, open_video
from flr.landmarks.geometry import transform
from flr.landmarks.scheme import get_scheme
from tests.conftest import Done, Workspace
from tests.data.support import read_pts

ASKED: list[str] = []  # of `stream`
BOX = "30,25,90,95"


@pytest.fixture(scope="module")
def checkpoint(trained: tuple[Workspace, str]) -> Path:
    workspace, run_id = trained
    return workspace.folder(run_id) / "checkpoints" / "best.ckpt"


def photo(seed: int, height: int = 100, width: int = 120) -> np.ndarray:
    """A smooth image (H, W, 3) RGB uint8, so that a file of it with losses is nearly the same."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 255, (5, 6, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, one in a folder below, and a box of each."""
    folder = tmp_path / "photos"
    for i, name in enumerate(("a.png", "b.png", "below/c.png")):
        write(folder / name, photo(i))
    rows = [
        f"{name},{BOX},{score}" for name, score in (("a.png", 0.9), ("a.png", 0.95), ("b.png", 1), ("below/c.png", 1))
    ]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,left,top,right,bottom,score", *rows]))
    return folder


def predict(workspace: Workspace, checkpoint: Path, source: object, *words: str, code: int = 0) -> Done:
    boxes = [] if any(word.startswith("detector=") for word in words) else ["detector=boxes", "detector.file=boxes.csv"]
    return workspace.run("flr.predict", f"run={checkpoint}", f"source={source}", "out=out", *boxes, *words, code=code)


def refused(workspace: Workspace, checkpoint: Path, source: object, *words: str) -> str:
    done = predict(workspace, checkpoint, source, *words, code=2)
    assert "Traceback" not in done.stderr
    return done.stderr.rstrip().splitlines()[-1]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def points_of(row: dict[str, str]) -> np.ndarray:
    return np.array([float(value) for key, value in row.items() if key[-2:] in ("_x", "_y")]).reshape(-1, 2)


def test_every_form_holds_the_points_of_every_face(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    done = predict(workspace, checkpoint, photos, "save=[pictures,crops,csv,coco,pts]")
    assert "4 faces in 3 images" in done.stdout
    out, net = workspace.path / "out", Predictor.load(checkpoint)
    found = rows(out / "points.csv")
    assert [(row["image"], row["face"], row["score"]) for row in found] == [
        ("a.png", "0", "0.9500"), ("a.png", "1", "0.9000"), ("b.png", "0", "1.0000"), ("below/c.png", "0", "1.0000")
    ]  # fmt: skip
    coco = json.loads((out / "points.json").read_text())
    assert {row["uncertain"] for row in found} <= {"0", "1"}
    assert all(len(face["spread"]) == 68 and min(face["spread"]) > 0 for face in coco["annotations"])
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "b.png", "below/c.png"]
    assert [annotation["image_id"] for annotation in coco["annotations"]] == [1, 1, 2, 3]
    for row, annotation in zip(found, coco["annotations"], strict=True):
        (expected,) = net([read_image(photos / row["image"])], np.array([[30.0, 25, 90, 95]]), refine=1)
        np.testing.assert_allclose(points_of(row), expected, atol=6e-4)
        np.testing.assert_allclose(np.reshape(annotation["keypoints"], (-1, 3))[:, :2], expected, atol=6e-4)
        np.testing.assert_allclose(read_pts(out / "pts" / f"{row['image']}-{row['face']}.pts"), expected, atol=1e-3)
    assert cv2.imread(str(out / "pictures" / "below" / "c.png.jpg")).shape == (100, 120, 3)
    # The crop's points lie where those of the image lie.
    affine = net.crop.policy.crop(np.array([30.0, 25, 90, 95]), 256)
    np.testing.assert_allclose(
        read_pts(out / "crops" / "b.png-0.pts"), transform(affine, points_of(found[2])), atol=5e-3
    )


@pytest.mark.parametrize("labels", ["points.csv", "points.json", "crops"])
def test_a_prediction_is_read_as_a_dataset(workspace: Workspace, checkpoint: Path, photos: Path, labels: str) -> None:
    """So that a model's points can be corrected by hand and learned from."""
    lines = (workspace.path / "boxes.csv").read_text().splitlines()
    (workspace.path / "boxes.csv").write_text("\n".join([*lines[:2], *lines[3:]]))  # one face in each image
    predict(workspace, checkpoint, photos, "save=[csv,coco,crops]")
    out = workspace.path / "out"
    root = out if labels == "crops" else photos
    table = read_table(root, strict=True, labels={"train": str(out / labels)}, scheme="ibug68")
    predicted = np.array([points_of(row) for row in rows(out / "points.csv")])
    assert len(table) == 3 and table.labelled.all() and set(table.split) == {"train"}
    if labels == "crops":
        assert table.load(0).shape == (256, 256, 3)
    else:
        assert table.image.tolist() == ["a.png", "b.png", "below/c.png"]
        np.testing.assert_allclose(table.points, predicted, atol=1e-3)
        np.testing.assert_allclose(table.box, [[30, 25, 90, 95]] * 3)


def test_a_crashed_folder_goes_on_where_it_stopped(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    predict(workspace, checkpoint, photos)
    out = workspace.path / "out"
    whole, journal = (out / "points.csv").read_text(), out / "faces.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:2], lines[2][:40]]))  # killed as it wrote the second
    (out / "points.csv").unlink()
    before = (out / "pictures" / "a.png.jpg").stat().st_mtime_ns
    done = predict(workspace, checkpoint, photos)
    assert "resuming with 2 of 3 images" in done.stdout and "4 faces in 3 images" in done.stdout
    assert (out / "points.csv").read_text() == whole
    assert (out / "pictures" / "a.png.jpg").stat().st_mtime_ns == before
    journal.write_text(lines[0] + "\n")
    assert "another run, source or detector" in refused(workspace, checkpoint, photos, "detector=whole")


def test_photos_are_predicted_at_once_and_recorded_in_order(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    both = threading.Barrier(2, timeout=20)

    class Waiting(WholeImage):
        def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
            if name != "below/c.png":
                both.wait()  # until another thread is here
            if name == "a.png":
                time.sleep(0.2)  # b.png is finished first
            return super().__call__(image, name, model)

    monkeypatch.setattr(pipeline, "cores", lambda: 2)
    model, out = load_file(LANDMARKS, threads=1), photos.parent / "out"
    writer = PredictionWriter(out, {}, model.scheme, overwrite=False)
    pipeline.PredictionPipeline(model, Waiting(), [], writer).run(open_source(str(photos)))
    rows = [json.loads(line) for line in (out / "faces.jsonl").read_text().splitlines()[1:-1]]
    assert [row["image"] for row in rows] == ["a.png", "b.png", "below/c.png"]
    assert all((out / "pictures" / f"{row['image']}.jpg").is_file() for row in rows)


def test_what_is_there_is_kept(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    predict(workspace, checkpoint, photos)
    assert "holds a finished prediction" in refused(workspace, checkpoint, photos)
    predict(workspace, checkpoint, photos, "overwrite=true", "save=[csv]")
    assert {path.name for path in (workspace.path / "out").iterdir()} == {"faces.jsonl", "points.csv"}
    journal = workspace.path / "out" / "faces.jsonl"
    journal.write_text(journal.read_text().splitlines()[0] + "\n{]}\n")
    assert "damaged" in refused(workspace, checkpoint, photos)
    journal.unlink()
    assert "is not the folder of a prediction" in refused(workspace, checkpoint, photos)
    (workspace.path / "file").touch()
    assert "is not the folder of a prediction" in refused(workspace, checkpoint, photos, "out=file")


def test_odd_pictures_are_read_or_skipped_by_name(workspace: Workspace, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    write(folder / "grey.png", photo(0)[..., 0])
    write(folder / "alpha.png", np.dstack([photo(0), photo(1)[..., :1]]))
    write(folder / "deep.png", photo(0)[..., 0].astype(np.uint16) << 8)
    write(folder / "whole.jpg", photo(0))
    data = (folder / "whole.jpg").read_bytes()
    (folder / "empty.jpg").touch()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "page.png").write_text("<html>not found</html>")
    (folder / "notes.txt").write_text("no picture")
    # EXIF's sixth orientation: turned right by a quarter.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (folder / "turned.jpg").write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + data[2:])
    done = predict(workspace, checkpoint, folder, "detector=whole")
    assert "5 faces in 5 images, 3 images skipped" in done.stdout
    for name, message in (("empty", "empty file"), ("cut", "truncated JPEG"), ("page", "HTML")):
        assert any(name in line and message in line for line in done.stderr.splitlines() if "skipped" in line)
    coco = json.loads((workspace.path / "out" / "points.json").read_text())
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in coco["images"]}
    assert sizes == {
        "alpha.png": (120, 100),
        "deep.png": (120, 100),
        "grey.png": (120, 100),
        "turned.jpg": (100, 120),
        "whole.jpg": (120, 100),
    }


def test_a_prediction_without_a_result_blocks_no_other(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    """Neither where no image can be read, nor where the detector does not fit the model."""
    empty = workspace.path / "empty.jpg"
    empty.write_bytes(b"")
    assert "no image of it can be used" in refused(workspace, checkpoint, empty)
    assert not (workspace.path / "out").exists()
    writer = PredictionWriter(workspace.path / "out", {}, Predictor.load(checkpoint).scheme, False)
    with pytest.raises(UserError, match="no detector"), writer:
        writer.save_image("pictures", "a.jpg", np.zeros((8, 8, 3), np.uint8))
        raise UserError("no detector is known")
    done = predict(workspace, checkpoint, photos / "b.png")
    assert "1 face in 1 image " in done.stdout


def test_an_exported_net_gives_the_same(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    workspace.run("flr.export", f"run={checkpoint}", f"out={workspace.path / 'net.onnx'}", "faces=4")
    predict(workspace, checkpoint, photos, "save=[csv]")
    predict(workspace, workspace.path / "net.onnx", photos, "save=[csv]", "out=light")
    pairs = zip(rows(workspace.path / "out" / "points.csv"), rows(workspace.path / "light" / "points.csv"), strict=True)
    for ours, light in pairs:
        np.testing.assert_allclose(points_of(ours), points_of(light), atol=0.01)
    assert "exported otherwise" in refused(workspace, workspace.path / "net.onnx", photos, "tta=true", "out=third")


def test_effects_change_the_pictures_and_a_mask_is_a_label_image(
    workspace: Workspace, checkpoint: Path, photos: Path
) -> None:
    # This net knows next to nothing: its points fill a small part of any box.
    rows = [f"{name},-2000,-2000,2100,2100" for name in ("a.png", "b.png")]
    (workspace.path / "boxes.csv").write_text("\n".join(["image,left,top,right,bottom", *rows]))
    predict(workspace, checkpoint, photos, "effect=[blur,mask]", "refine=0")
    out = workspace.path / "out"
    assert set(np.unique(cv2.imread(str(out / "masks" / "a.png"), cv2.IMREAD_UNCHANGED))) > {0}
    shown, plain = cv2.imread(str(out / "pictures" / "b.png.jpg")), cv2.imread(str(photos / "b.png"))
    assert np.abs(shown.astype(int) - plain).max() > 15  # JPEG alone: 3


def test_what_is_drawn_is_what_is_named() -> None:
    face = render(1, 0, 240, 3, 0.5)
    none = np.zeros(68)
    found = [Face(face.points, np.array([60.0, 80, 180, 200]), 1.0, none, none + 1, none)]
    plain = annotate(face.image, found, get_scheme("ibug68"), [], [])
    pictures = [
        annotate(face.image, found, get_scheme("ibug68"), [], [word]) for word in ("boxes", "points", "lines", "indices")
    ]  # fmt: skip
    assert (plain == face.image).all()
    assert all((picture != plain).any(-1).sum() > 100 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert (pictures[0][90:190, 70:170] == plain[90:190, 70:170]).all()  # a box alone leaves the face as it is
    uncertain = annotate(face.image, [replace(found[0], uncertain=True)], get_scheme("ibug68"), [], ["boxes"])
    assert (uncertain != pictures[0]).any()  # a question mark
    usual = annotate(face.image, found, get_scheme("ibug68"), [], None)
    assert (usual == annotate(face.image, found, get_scheme("ibug68"), [], ["points", "boxes"])).all()


def test_faces_of_a_real_photo(workspace: Workspace, checkpoint: Path, real_data: Path) -> None:
    name = sorted((real_data / "300w" / "helen" / "testset").glob("*.jpg"))[0]
    done = predict(workspace, checkpoint, name, "detector=haar")
    assert "1 face in 1 image " in done.stdout
    truth, (row,) = read_pts(name.with_suffix(".pts")), rows(workspace.path / "out" / "points.csv")
    box = np.array([float(row[key]) for key in ("left", "top", "right", "bottom")])
    assert overlap(box[None], np.array([*truth.min(0), *truth.max(0)]))[0] > 0.6


# -- video -------------------------------------------------------------------------------------------------------------


def write_film(path: Path, codec: str, frames: Iterable[np.ndarray]) -> Path:
    """Write frames (120, 160, 3), ten a second."""
    file = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (160, 120))
    for frame in frames:
        file.write(frame)
    file.release()
    return path


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Twenty frames of a photo that moves two pixels a frame."""
    frames = np.zeros((20, 120, 160, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[10:110, 2 * i : 2 * i + 120] = photo(0)
    return write_film(tmp_path / "film.mp4", "mp4v", frames)


def test_a_video_gets_a_video_and_a_row_a_frame(workspace: Workspace, checkpoint: Path, film: Path) -> None:
    done = predict(workspace, checkpoint, film, "detector=whole", "every=1", "patience=100")
    out = workspace.path / "out"
    shown = cv2.VideoCapture(str(out / "film.mp4"))
    assert shown.get(cv2.CAP_PROP_FRAME_COUNT) == 20 and shown.get(cv2.CAP_PROP_FPS) == 10
    journal = [json.loads(line) for line in (out / "faces.jsonl").read_text().splitlines()[1:-1]]
    assert [row["image"] for row in journal] == [f"film#{i}" for i in range(20)]
    assert [row["seconds"] for row in journal] == [i / 10 for i in range(20)]
    assert "in 20 images" in done.stdout and not list(out.glob(".*"))
    predict(workspace, checkpoint, film, "detector=whole", "out=short", "frames=3")
    assert len((workspace.path / "short" / "faces.jsonl").read_text().splitlines()) == 5


def test_a_video_that_was_cut_ends_early_and_says_so(workspace: Workspace, checkpoint: Path, film: Path) -> None:
    frames = (np.full((120, 160, 3), 10 * i, np.uint8) for i in range(20))
    avi = write_film(film.with_suffix(".avi"), "MJPG", frames)
    avi.write_bytes(avi.read_bytes()[: avi.stat().st_size // 2])
    done = predict(workspace, checkpoint, avi, "detector=whole")
    count = len((workspace.path / "out" / "faces.jsonl").read_text().splitlines()) - 2
    assert 0 < count < 20 and f"{count} images" in done.stdout


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_the_old_name_of_refine_is_taken(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    done = predict(workspace, checkpoint, photos, "looks=1", "save=[csv]")
    assert "looks=1 is now refine=0" in done.stderr
    settings = json.loads((workspace.path / "out/faces.jsonl").read_text().splitlines()[0])
    assert settings["refine"] == "0"


def test_bad_words(workspace: Workspace, checkpoint: Path, photos: Path, film: Path) -> None:
    (workspace.path / "void.mp4").write_bytes(b"")
    (workspace.path / "text.mp4").write_text("no video at all")
    (workspace.path / "none").mkdir()
    (workspace.path / "sheet.csv").write_text("image,left,top\n")
    (workspace.path / "odd.csv").write_text(f"image,left,top,right,bottom\na.png,{BOX}\nb.png,9,9,8,9\n")
    for source, words, message in (
        ("nothing.jpg", [], "no such file, folder or camera"),
        ("void.mp4", [], "neither an image nor a video"),
        ("text.mp4", [], "neither an image nor a video"),
        (97, [], "no such camera"),
        ("", [], "give the images"),
        (photos, ["run="], "run= is empty; set run=ID"),
        (photos, ["run=/etc/passwd"], "not a checkpoint"),
        (photos, ["effect=[blurr]"], "did you mean 'blur'"),
        (photos, ["detector.file=sheet.csv"], "lacks bottom, right"),
        (photos, ["detector.file=odd.csv"], "line 3: not a box"),
        (photos, ["detector.file=gone.csv"], "cannot be read"),
        (photos, ["detector=yunet", "detector.model=gone.onnx"], "detector.model=gone.onnx: no such file"),
        (photos, ["detector=yunet", "detector.model=text.mp4"], "not a YuNet model"),
        (photos, ["detector=blazeface", "detector.model=gone.tflite"], "detector.model=gone.tflite: no such file"),
        (photos, ["detector=blazeface", "detector.model=text.mp4"], "not MediaPipe's face_detection_short_range.tflite"),
        (photos, ["detector=harr"], "no config 'detector/harr'"),
        (photos, ["detector=haar", "detector.stepp=2"], "detector.step"),
        (photos, ["looks=2", "refine=1"], "old name of refine="),
        (photos, ["-m"], "sweeps over trainings only"),
    ):  # fmt: skip
        line = refused(workspace, checkpoint, source, *words)
        assert message in line and line.startswith("flr: "), (words, line)
    assert not (workspace.path / "out").exists()
    assert "give the images" in workspace.refuse("flr.predict", f"run={checkpoint}")
    words = (f"run={checkpoint}", "source=.", "detector=boxes")
    assert "detector.file has no value; set detector.file=VALUE" in workspace.refuse("flr.predict", *words)


# -- what a hostile folder, disk or user does --------------------------------------------------------------------------


def test_pictures_after_which_no_file_can_be_called_are_skipped(
    workspace: Workspace, checkpoint: Path, photos: Path
) -> None:
    data = (photos / "a.png").read_bytes()
    (photos / ("x" * 240 + ".png")).write_bytes(data)
    (photos / "y".ljust(230, "y")).with_suffix(".png").write_bytes(data)
    Path(os.fsdecode(os.fsencode(photos) + b"/\xff.png")).write_bytes(data)
    write(photos / "wide.png", np.zeros((1, 40_000), np.uint8))
    done = predict(workspace, checkpoint, photos, "detector=whole", "save=[csv,pts,crops,pictures]")
    assert "4 faces in 4 images, 3 images skipped" in done.stdout
    for message in ("too long for the names", "not UTF-8", "40000 x 1 pixels"):
        assert any("skipped" in line and message in line for line in done.stderr.splitlines())


def test_a_folders_own_results_are_no_pictures_of_it(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    (photos / "below" / "loop").symlink_to(photos)
    (photos / "loop").symlink_to(".")
    for _ in range(2):
        done = predict(workspace, checkpoint, photos, f"out={photos}/sub/out", "detector=whole", "overwrite=true")
        assert "3 faces in 3 images" in done.stdout


def test_a_line_cut_after_a_face_is_no_damage(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    predict(workspace, checkpoint, photos)
    journal = workspace.path / "out" / "faces.jsonl"
    text = journal.read_text()
    journal.write_text(text[: text.index("}", text.index("\n")) + 1])
    assert "4 faces in 3 images" in predict(workspace, checkpoint, photos).stdout
    assert journal.read_text() == text


def test_what_was_begun_goes_on_with_the_same_pictures(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    predict(workspace, checkpoint, photos, "save=[pts]")
    journal = workspace.path / "out" / "faces.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    for word in ("save=[pts,crops]", "effect=[blur]", "draw=[lines]"):
        words = [word] if word.startswith("save") else [word, "save=[pts]"]
        assert "with another save, draw or effect" in refused(workspace, checkpoint, photos, *words)
    assert "4 faces in 3 images" in predict(workspace, checkpoint, photos, "save=[pts,csv,coco]").stdout


def test_two_predictions_into_one_folder(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    scheme = Predictor.load(checkpoint).scheme
    with PredictionWriter(workspace.path / "out", {}, scheme, False) as first:
        for word in ("overwrite=true", "overwrite=false"):
            assert "another prediction writes there now" in refused(workspace, checkpoint, photos, word)
        first.skip("a", "b")
        assert len((workspace.path / "out" / "faces.jsonl").read_text().splitlines()) == 2
    predict(workspace, checkpoint, photos, "overwrite=true")


def test_a_full_disk_is_told(workspace: Workspace, checkpoint: Path, photos: Path) -> None:
    """Linux's /dev/full takes nothing."""
    results = PredictionWriter(workspace.path / "out", {}, Predictor.load(checkpoint).scheme, False)
    with Path("/dev/full").open("ab") as full, pytest.raises(UserError, match="No space left"), results:
        results._file.close()
        results._file = full
        results.skip("a", "b")


def test_a_film_that_was_not_written_whole_does_not_appear(tmp_path: Path) -> None:
    size, room = (640, 480), 200_000
    rng = np.random.default_rng(0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with (
            pytest.raises(UserError, match="of 30 frames could be written"),
            open_video(tmp_path / "a.mp4", 10, size) as put,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))  # writes beyond it fail, as on a full disk
            for _ in range(30):
                put(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, heard)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_video(workspace: Workspace, checkpoint: Path, number: signal.Signals, code: int) -> None:
    frames = itertools.repeat(np.zeros((120, 160, 3), np.uint8), 3000)
    process = started(workspace, checkpoint, write_film(workspace.path / "long.avi", "MJPG", frames))
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in message
    assert {path.name for path in (workspace.path / "out").iterdir()} == {"faces.jsonl"}


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the seventh image."""
    seen, find = [], WholeImage.__call__

    def interrupted(detector: WholeImage, *words: Any) -> Any:
        seen.append(words)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return find(detector, *words)

    monkeypatch.setattr(WholeImage, "__call__", interrupted)


def test_a_video_that_is_stopped_leaves_no_half_film(
    workspace: Workspace, checkpoint: Path, film: Path, ctrl_c: None
) -> None:
    predict(workspace, checkpoint, film, "detector=whole", "every=1", code=130)
    assert {path.name for path in (workspace.path / "out").iterdir()} == {"faces.jsonl"}
    assert "in 4 images" in predict(workspace, checkpoint, film, "detector=whole", "frames=4").stdout


def test_a_camera_ends_with_ctrl_c(workspace: Workspace, checkpoint: Path, ctrl_c: None) -> None:
    """It has no other end: what was recorded is there."""
    with stream() as address:
        done = predict(workspace, checkpoint, address, "detector=whole", "every=1")
    results = workspace.path / "out"
    count = len((results / "faces.jsonl").read_text().splitlines()) - 2
    assert f"in {count} images" in done.stdout and len(rows(results / "points.csv")) <= count
    assert cv2.VideoCapture(str(results / "stream.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == count > 4


def test_a_stream_that_dies_ends_the_film(workspace: Workspace, checkpoint: Path) -> None:
    """As a camera that is unplugged."""
    with stream(count=12) as address:
        done = predict(workspace, checkpoint, address, "detector=whole", "patience=100")
    count = len((workspace.path / "out" / "faces.jsonl").read_text().splitlines()) - 2
    assert 8 < count <= 12 and f"in {count} images" in done.stdout
    assert (workspace.path / "out" / "stream.mp4").exists()


def test_a_playlist_reaches_no_other_machine(workspace: Workspace, checkpoint: Path, tmp_path: Path) -> None:
    with stream(count=5) as address:
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}/a.ts\n#EXT-X-ENDLIST\n"
        for name in ("list.m3u8", "list.mp4"):
            (tmp_path / name).write_text(text)
            assert "neither an image nor a video" in refused(workspace, checkpoint, tmp_path / name, "detector=whole")
        assert not ASKED


def test_frames_have_the_times_of_their_file(workspace: Workspace, checkpoint: Path, film: Path) -> None:
    """And not those of its rate, which a phone's film does not keep."""
    video = open_source(str(film))
    assert isinstance(video, Video)
    video.rate = 99.0
    assert [frame.seconds for frame in video] == pytest.approx([i / 10 for i in range(20)])


def started(workspace: Workspace, checkpoint: Path, source: object) -> "subprocess.Popen[str]":
    """A prediction that has looked at five frames."""
    process = workspace.start(
        "flr.predict", f"run={checkpoint}", f"source={source}", "out=out", "detector=whole", "patience=1000"
    )
    journal = workspace.path / "out" / "faces.jsonl"
    for _ in range(2400):
        assert process.poll() is None, process.communicate()[1][-2000:]
        if journal.exists() and journal.read_text().count("\n") > 5:
            return process
        time.sleep(0.02)
    raise AssertionError("nothing is looked at")


@contextlib.contextmanager
def stream(count: int = 10**9) -> Iterator[str]:
    """The address of a stream of JPEGs, whose server dies after `count` of them."""
    data = cv2.imencode(".jpg", photo(0))[1].tobytes()
    over = threading.Event()
    ASKED.clear()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ASKED.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=f")
            self.end_headers()
            head = f"--f\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            with contextlib.suppress(OSError):
                for _ in range(count):
                    self.wfile.write(head + data + b"\r\n")
                    if over.wait(0.01):
                        break

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/a.mjpg"
        finally:
            over.set()
            server.shutdown()


def test_boxes_of_no_picture_are_told(workspace: Workspace, checkpoint: Path) -> None:
    cv2.imwrite(str(workspace.path / "a.png"), render(1, 0, 120, 1, 0.5).image)
    (workspace.path / "boxes.csv").write_text(f"image,left,top,right,bottom\na.png,{BOX}\nb.png,{BOX}\n")
    words = ("source=a.png", "out=out", "detector=boxes", "detector.file=boxes.csv")
    done = workspace.run("flr.predict", f"run={checkpoint}", *words)
    assert "boxes.csv lists 1 image that source=a.png lacks, such as 'b.png'" in done.stderr
    assert done.stdout.splitlines()[1].startswith("1 face in 1 image ")
