"""Measure the frame rate of the app's camera tab in a browser on the same machine, with a video as the camera.

    python -m benchmarks.camera

The face of `benchmarks.video` moves at 30 frames a second, 640 x 480. The page shows the rate of annotated
frames. Chromium draws without a GPU unless the machine has one, and so takes much of the cores that the app needs.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import cv2
from playwright.sync_api import Page, sync_playwright

from benchmarks.common import record
from benchmarks.video import moving_face

GOAL = 25  # frames a second
WARM, READINGS = 8, 10  # seconds before the first reading, and readings, one a second


def rates(page: Page, address: str) -> list[float]:
    """Start the camera, and return the rate that the page then shows, once a second."""
    page.goto(address)
    page.get_by_role("tab", name="Camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator('button:has-text("Record")').click()
    page.wait_for_timeout(1000 * WARM)
    found = []
    for _ in range(READINGS):
        page.wait_for_timeout(1000)
        line = page.get_by_text(re.compile("frames/s")).first.inner_text()
        found.append(float(re.findall(r"(\d+) frames/s", line)[0]))
    return found


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("benchmarks.camera: no Chromium on this machine; install it")
    with tempfile.TemporaryDirectory(prefix="flr-") as name, sync_playwright() as playwright:
        film = Path(name) / "film.mjpeg"
        film.write_bytes(
            b"".join(cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes() for frame in moving_face()[0])
        )  # fmt: skip
        app = subprocess.Popen([sys.executable, "-m", "flr.app", "port=0"], stdout=subprocess.PIPE, text=True)
        assert app.stdout is not None
        try:
            address = app.stdout.readline().split(" on ")[1].strip()
            browser = playwright.chromium.launch(
                executable_path=chromium,
                args=[
                    "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
                    f"--use-file-for-fake-video-capture={film}",
                ],
            )  # fmt: skip
            found = rates(browser.new_page(), address)
            browser.close()
        finally:
            app.terminate()
            app.wait()
    print(f"{median(found):.0f} frames/s ({min(found):.0f} to {max(found):.0f}; goal {GOAL})")
    record("camera", "python -m benchmarks.camera", frames_per_second=found, goal=GOAL)


if __name__ == "__main__":
    main()
