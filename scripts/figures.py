"""Make the images of the README and of the documentation site (`make figures`): rendered faces, effects, screenshots.

``python -m scripts.figures [FOLDER]`` keeps the runs that the screenshots show in FOLDER and uses them again, so that a second call
takes a minute. The screenshots need a Chromium on this machine.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import mlflow
import numpy as np
from playwright.sync_api import Page, sync_playwright

from flr.data.boxes import BoxPolicy
from flr.data.crops import crop
from flr.data.synthetic.renderer import Face, render
from flr.inference.api import find_faces
from flr.inference.effects import Blur, Mask, Overlay, Paint, apply
from flr.landmarks.draw import draw_face, draw_landmarks, sheet
from flr.landmarks.geometry import tight_box, transform
from flr.landmarks.scheme import IBUG68

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 300_000  # of one image

COUNT, COLUMNS, SIDE, SMALL = 24, 8, 150, 132
SHOWN = (11, 23)  # of series 0: faces on which effects can be seen
PALETTE = np.array(
    [
        [0, 0, 0],
        [255, 205, 170],
        [120, 70, 20],
        [200, 140, 60],
        [0, 120, 255],
        [0, 220, 255],
        [230, 30, 80],
        [90, 0, 30],
    ],
    np.uint8,
)

EXPERIMENT = "first-sweep"
SWEEP = (  # the sweep of the quickstart, some five minutes on two idle cores
    "-m", "model=heatmap_fpn,pipnet", "seed=0,1", "trainer.max_epochs=3", f"tracking.experiment={EXPERIMENT}", "callbacks.progress=null",
)  # fmt: skip
VIEW = {"width": 1440, "height": 900}
# A fresh browser profile opens MLflow's overview of GenAI and its assistant.
MLFLOW_STATE = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}


# -- rendered faces ----------------------------------------------------------------------------------------------------


def cropped(face: Face, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Crop a face as a model sees it, (side, side, 3), with its points (68, 2) there."""
    box = tight_box(face.points, np.ones(68, bool)).astype(float)
    to_crop = BoxPolicy().crop(box, side)
    return crop(face.image, to_crop, side, 3), transform(to_crop, face.points)


def faces() -> np.ndarray:
    """Draw a sheet of the first faces of series 0."""
    shown = [cropped(render(0, i, 256, 3, 0.5), SIDE) for i in range(COUNT)]
    return sheet([draw_face(image, points, None, np.ones(68, bool), SIDE) for image, points in shown], COLUMNS)


def included() -> np.ndarray:
    """Draw a sheet of what the detector and the included model find in faces of series 1."""
    shown = []
    for i in range(COUNT):
        image = render(1, i, 2 * SIDE, 3, 0.6).image
        found = find_faces(image)[:1]
        for face in found:
            image = draw_landmarks(
                image, face.points[None], face.box[None], scheme=IBUG68, hidden=face.visible[None] < 0.5
            )
        shown.append(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return sheet(shown, COLUMNS)


def effects() -> np.ndarray:
    """Draw a row per face: lines, sunglasses, lips and eyes, blur, mask."""
    painted = [Paint("lips", (190, 20, 60)), Paint("eyes", (60, 140, 255), 0.4)]
    shown = []
    for i in SHOWN:
        face = render(0, i, 2 * SIDE, 3, 0.55)
        inner = slice(SIDE // 4, SIDE // 4 + 3 * SIDE // 2)
        image, points = face.image[inner, inner], (face.points - SIDE // 4)[None].astype(np.float64)
        whole = [draw_landmarks(image, points, scheme=IBUG68, lines=True)]
        whole += [apply(chosen, image, points, IBUG68) for chosen in ([Overlay()], painted, [Blur()])]
        whole.append(PALETTE[apply([Mask()], image, points, IBUG68)])
        shown += [cv2.resize(image, (SMALL, SMALL), interpolation=cv2.INTER_AREA) for image in whole]
    return sheet(shown, 5)


def write(name: str, image: np.ndarray) -> None:
    """Write an image (H, W, 3) RGB, as JPEG or PNG by its name.

    Raises:
        ValueError: The file is too large for the repository.
    """
    path = IMAGES / name
    quality = [cv2.IMWRITE_PNG_COMPRESSION, 9] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 88]
    cv2.imwrite(str(path), image[..., ::-1], quality)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; shrink it to {MAX_BYTES}")


# -- screenshots -------------------------------------------------------------------------------------------------------


def flr(folder: Path, *words: str) -> str:
    """Run a command of flr with its outputs in `folder`, and return what it printed."""
    return subprocess.run([sys.executable, "-m", "flr", *words], env=_environment(folder), check=True, text=True,
                          cwd=ROOT, stdout=subprocess.PIPE).stdout  # fmt: skip


def _environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "FLR_"))}
    return kept | {"FLR_OUTPUT": str(folder / "outputs"), "FLR_CACHE": str(folder / "cache"), "COLUMNS": "120"}


@contextlib.contextmanager
def served(folder: Path, *command: str) -> Iterator[str]:
    """Run a server of a Python module on a free port; `{port}` in the command is replaced by the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.format(port=port) for word in command]
    process = subprocess.Popen([sys.executable, "-m", *words], env=_environment(folder), cwd=ROOT)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=5)
                break
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # MLflow waits for its browsers
            process.kill()
            process.wait()


def shoot(page: Page, name: str, width: int = 960) -> None:
    """Write a screenshot of the visible part of a page, reduced to a width in pixels."""
    image = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    height = round(image.shape[0] * width / image.shape[1])
    write(f"{name}.png", cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def shoot_mlflow(page: Page, folder: Path) -> None:
    """Show the runs of the sweep with their charts."""
    database = f"sqlite:///{folder / 'outputs' / 'mlflow.db'}"
    experiment = mlflow.MlflowClient(database).get_experiment_by_name(EXPERIMENT)
    with served(
        folder, "mlflow", "server", "--port", "{port}", "--workers", "1", "--backend-store-uri", database
    ) as address:
        page.goto(address)
        page.evaluate(
            "state => Object.entries(state).forEach(([key, value]) => localStorage.setItem(key, value))", MLFLOW_STATE
        )
        runs = f"{address}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
        page.goto(f"{runs}&viewStateShareKey=flr&compareRunsMode=CHART")
        page.reload()
        page.wait_for_selector(".js-plotly-plot")
        page.wait_for_timeout(10_000)
        page.get_by_role("button", name="Hide banner").click()
        page.wait_for_timeout(2_000)
        shoot(page, "mlflow")


def shoot_comparison(page: Page, folder: Path) -> None:
    """Show the page of flr compare."""
    printed = flr(folder, "compare", "group=model", "faces=4", f"tracking.experiment={EXPERIMENT}")
    path = re.findall(r"(\S+\.html)", printed)[-1]
    page.goto(f"file://{path}")
    page.wait_for_timeout(3_000)
    shoot(page, "compare")


def shoot_app(page: Page, folder: Path) -> None:
    """Show the app after it found the points of a rendered face."""
    photo = folder / "photo.png"
    face = render(0, 13, 480, 3, 0.45)
    cv2.imwrite(str(photo), face.image[..., ::-1])
    with served(folder, "flr", "app", "port={port}") as address:
        page.goto(address)
        page.set_input_files("input[type=file]", str(photo))
        page.wait_for_timeout(5_000)
        page.get_by_role("button", name="Find points").click()
        page.get_by_text("68 points each").wait_for(timeout=300_000)
        page.wait_for_timeout(3_000)
        shoot(page, "app")


def screenshots(folder: Path) -> None:
    """Train what the screenshots show, unless `folder` has it, and take them."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("figures: no Chromium on this machine; install it, or keep the screenshots as they are")
    if not (folder / "outputs").is_dir():
        flr(folder, "train", *SWEEP)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=VIEW)
        page.set_default_timeout(300_000)
        for shot in (shoot_comparison, shoot_app, shoot_mlflow):
            shot(page, folder)
        browser.close()


def main(folder: Path) -> None:
    """Write all images to docs/images."""
    write("faces.jpg", faces())
    write("included.jpg", included())
    write("effects.png", effects())
    screenshots(folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
