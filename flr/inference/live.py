"""A local page that shows the newest frame: OpenCV's headless build has no window."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from flr.errors import UserError

HTML = b"""<!doctype html><meta charset=utf-8><title>flr</title>
<style>body{margin:0;background:#111;display:grid;place-items:center;min-height:100vh}img{max-width:100vw;max-height:100vh}</style>
<img src=stream alt="annotated frames">"""


class LivePage:
    """Serve annotated frames on the loopback interface as a stream of JPEGs.

    Args:
        port: Port of the page; 0 for a free one.

    Attributes:
        address: Address of the page.

    Raises:
        UserError: The port is taken.
    """

    def __init__(self, port: int) -> None:
        self._new, self._frame, self._number = threading.Condition(), b"", 0
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page._answer(self)

            def log_message(self, *_: Any) -> None:
                """Log nothing: the terminal shows the progress bar."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(f"live={port}: {error.strerror}; set another port, or 0 for one that is free") from error
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> "LivePage":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        print(f"live on {self.address}", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._new:
            self._number = -1
            self._new.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def show(self, image: np.ndarray) -> None:
        """Show the next frame, (H, W, 3) RGB uint8."""
        data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        with self._new:
            self._frame, self._number = data, self._number + 1
            self._new.notify_all()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        # A page of another host name that resolves to this machine must not read the camera.
        if request.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            request.send_error(403)
            return
        if request.path == "/":
            request.send_response(200)
            request.send_header("Content-Type", "text/html")
            request.end_headers()
            request.wfile.write(HTML)
            return
        if request.path != "/stream":
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        sent = 0
        try:
            while True:
                with self._new:
                    while self._number == sent:
                        self._new.wait()
                    sent, frame = self._number, self._frame
                if sent < 0:
                    return
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n"
                request.wfile.write(head.encode() + frame + b"\r\n")
        except OSError:
            return  # the browser has disconnected
