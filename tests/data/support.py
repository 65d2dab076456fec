"""What the tests of several readers look at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from flr.data.formats.pts import parse
from flr.data.table import FaceTable
from flr.errors import UserError


def stop(call: Callable[[], object], *words: str, longest: int = 10_000) -> str:
    """Return the text of the one-line UserError that a call must end in; it holds all of `words`."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < longest, text
    for word in words:
        assert word in text, text
    return text


def read_pts(path: Path, count: int = 68) -> np.ndarray:
    """Return the points (count, 2) of a .pts file as pixel centres."""
    return parse(path.read_bytes(), count) - 1


def asymmetry(table: FaceTable, order: np.ndarray | None = None) -> float:
    """Measure how far the mean face is from its own mirror image, in sides of the tight box."""
    box = table.tight
    middle, side = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).max(1)
    mean = np.nanmean((table.points - middle[:, None]) / side[:, None, None], 0)
    mirrored = mean[table.scheme.mirror_order if order is None else order] * [-1, 1]
    return float(np.abs(mirrored - mean).max())


def dot_offsets(image: np.ndarray, points: np.ndarray) -> list[tuple[float, float]]:
    """Measure how far the dots of a fake's image are from its points (K, 2), in pixels; dots near others are skipped."""
    grey, found = image.astype(float) if image.ndim == 2 else image.astype(float).mean(2), []
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + 99 * np.eye(len(points))
    for x, y in points[apart.min(1) > 9]:  # a dot's window holds no other dot
        left, top = round(float(x)) - 4, round(float(y)) - 4
        window = grey[max(top, 0) : top + 9, max(left, 0) : left + 9]
        if window.shape == (9, 9):
            light = np.clip(window - np.median(window) - 20, 0, None)
            assert light.max() > 60, "no dot under a point"
            at = np.arange(9)
            found.append((left + light.sum(0) @ at / light.sum() - x, top + light.sum(1) @ at / light.sum() - y))
    return found


def offset(table: FaceTable) -> np.ndarray:
    """Return the (2,) mean of `dot_offsets` over a fake's faces."""
    found = [each for i, points in enumerate(table.points) for each in dot_offsets(table.load(i), points)]
    assert len(found) > 5 * len(table)
    return np.mean(found, 0)


Change = Callable[[bytes], bytes]
CHUNKS = (
    b",", b" ", b"\n", b"\r", b'"', b"\0", b"0", b"-", b"1e999", b"nan", b"\xff", b"\xed\xa0\x80", b"/../", b"image_id",
    b"000001.jpg", b"<html>", b"9" * 400, b"\xef\xbb\xbf", b"_", b"\xd9\xa3",
)  # fmt: skip


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """Draw a change of a file's bytes: some places changed, taken out or put in, or other bytes instead of all."""
    noise = draw(st.one_of(st.none(), st.none(), st.binary(max_size=300)))
    chunks = st.one_of(st.binary(max_size=8), st.sampled_from(CHUNKS))
    edits = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), chunks), max_size=5))

    def change(data: bytes) -> bytes:
        for place, length, chunk in edits:
            at = int(place * len(data))
            data = data[:at] + chunk + data[at + length :]
        return data if noise is None else noise

    return change


@contextmanager
def changed_file(path: Path, change: Change) -> Iterator[None]:
    """Change a file for the time of a ``with`` block."""
    kept = path.read_bytes()
    try:
        path.write_bytes(change(kept))
        yield
    finally:
        path.write_bytes(kept)
