"""The page of the newest frame."""

import http.client
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from flr.errors import UserError
from flr.inference.live import LivePage


def test_the_page_streams_the_frames() -> None:
    with LivePage(0) as page:
        assert b"<img src=stream" in urllib.request.urlopen(page.address).read()
        page.show(np.full((20, 30, 3), (200, 30, 10), np.uint8))
        with urllib.request.urlopen(page.address + "stream") as stream:
            for colour in ((200, 30, 10), (10, 200, 30)):
                assert stream.readline() == b"--frame\r\n"
                assert stream.readline() == b"Content-Type: image/jpeg\r\n"
                length = int(stream.readline().split()[1])
                stream.readline()
                image = cv2.imdecode(np.frombuffer(stream.read(length), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
                stream.readline()
                assert image.shape == (20, 30, 3) and np.abs(image.mean((0, 1)) - colour).max() < 5
                page.show(np.full((20, 30, 3), (10, 200, 30), np.uint8))
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(page.address + "etc/passwd")


def test_a_page_of_another_name_sees_nothing() -> None:
    """As one of the web that has its name resolved to this machine."""
    with LivePage(0) as page:
        port = int(page.address.rstrip("/").rpartition(":")[2])
        line = http.client.HTTPConnection("127.0.0.1", port)
        line.request("GET", "/stream", headers={"Host": f"evil.example:{port}"})
        assert line.getresponse().status == 403


def test_a_port_that_is_taken_is_told() -> None:
    with LivePage(0) as page, pytest.raises(UserError, match="live="):
        LivePage(int(page.address.rstrip("/").rpartition(":")[2]))
