"""Serve the page, to browsers on this machine or to those that ``host=`` lets in."""

import socket

import gradio
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware

from flr.inference.app.network import LOOPBACK, SameOrigin

MAX_UPLOAD = "64mb"
CSS = """
.gradio-container {max-width: 1500px !important}
footer, [aria-label="Remove this file"] {display: none !important}
"""


def serve(blocks: gradio.Blocks, server: socket.socket, host: str) -> None:
    """Serve a page at a socket until a signal ends it, which is then raised."""
    port = server.getsockname()[1]
    app = FastAPI(
        middleware=[Middleware(SameOrigin, hosts=LOOPBACK if host in LOOPBACK else None)],
        docs_url=None, redoc_url=None, openapi_url=None,
    )  # fmt: skip
    blocks.has_launched = True  # else gradio checks no path, and accepts any file of the machine as an upload
    gradio.mount_gradio_app(
        app, blocks, "/", host, port, footer_links=[], run_history=False, allowed_paths=[], max_file_size=MAX_UPLOAD,
        ssr_mode=False, enable_monitoring=False, mcp_server=False, css=CSS, show_error=False,
    )  # fmt: skip
    # Streams to open pages never end by themselves.
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    print(f"flr.app on http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)
    uvicorn.Server(config).run(sockets=[server])
