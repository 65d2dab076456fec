"""The socket of the page, and who may use it. Needs no gradio."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from flr.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Open a socket to which browsers can connect.

    Raises:
        UserError: The port is taken, or the address is not one of this machine.
    """
    try:
        server = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"host={host} port={port}: {reason}; set another port, or port=0 for one that is free"
        ) from error
    with server:
        # asyncio sets it for sockets that name their protocol, which this one does not: each answer would take 40 ms more.
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield server


class SameOrigin:
    """Reject cross-origin requests, which gradio would answer: its CORS rules only hide the answer.

    Args:
        app: The application that answers other requests.
        hosts: Host names of this machine, so that a foreign name that resolves to it is rejected; None for any.
    """

    def __init__(self, app: Any, hosts: Sequence[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, as ASGI defines it."""
        if scope["type"] == "http" and not self._is_same_origin(scope["headers"]):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"not from this page"})
            return
        await self.app(scope, receive, send)

    def _is_same_origin(self, fields: Sequence[tuple[bytes, bytes]]) -> bool:
        headers = {key: value.decode("latin-1") for key, value in fields}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        try:
            ours = self.hosts is None or urlsplit(f"//{host}").hostname in self.hosts
        except ValueError:
            return False
        return ours and origin in (None, f"http://{host}", f"https://{host}")
