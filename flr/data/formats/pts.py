"""The .pts files of iBUG: a version, a count and, in braces, one point a line, counted from 1."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from flr.data.formats.records import number_text, portable, shortest
from flr.data.formats.text import to_number
from flr.data.images import is_image
from flr.files import opened

LARGEST_PTS = 2**20  # bytes; a face's 68 points take 2,000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def parse(data: bytes, count: int) -> np.ndarray:
    """Parse the points (count, 2) float64 in a .pts file's bytes, which count from 1.

    Raises:
        ValueError: What is wrong with them, and on which line.
    """
    text = data.decode("utf-8-sig", errors="replace")
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words in (["{"], ["}"]) or (not rows and ":" in line):  # n_points: 68
            continue
        if len(words) != 2:
            raise ValueError(f"line {number}: '{line.strip()[:40]}' is not two numbers")
        try:
            rows.append([to_number(word) for word in words])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    if len(rows) != count:
        raise ValueError(f"{len(rows)} points, not {count}")
    if text.count("{") != text.count("}"):  # cut inside the last number, a file can still hold every row
        raise ValueError("a brace is missing, so the file was cut")
    return np.array(rows)


def pair_files(folder: Path) -> Iterator[tuple[list[Path], list[Path]]]:
    """Yield the images and the .pts files of each stem in a folder, in the order of their names.

    A .pts without an image of `IMAGE_SUFFIXES` gets the images of its stem by any other suffix.
    """
    files: dict[str, list[Path]] = {}
    others: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".")  # macOS leaves a ._NAME twin of each file
        if not hidden:
            known = path.suffix.lower() in (*IMAGE_SUFFIXES, ".pts")
            (files if known else others).setdefault(path.stem, []).append(path)
    for stem, paths in files.items():
        labels = [path for path in paths if path.suffix.lower() == ".pts"]
        yield [path for path in paths if path not in labels] or list(filter(is_image, others.get(stem, ()))), labels


def read_pair(images: Sequence[Path], labels: Sequence[Path], count: int) -> tuple[np.ndarray, str]:
    """Read the points (count, 2) of one stem's files (see `pair_files`); NaN and the reason if they are invalid."""
    if not images:
        fault = f"it has no image ({', '.join(IMAGE_SUFFIXES)}) next to it"
    elif not labels:
        fault = "it has no .pts next to it"
    elif len(images) + len(labels) > 2:
        twins = ", ".join(sorted(portable(path.name) for path in (*images, *labels)))
        fault = f"{twins} have the same stem; keep one image and one .pts of it"
    else:
        try:
            with opened(labels[0], LARGEST_PTS) as file:
                return parse(file.read(), count), ""
        except OSError as error:
            fault = f"its .pts cannot be read ({error.strerror})"
        except ValueError as error:
            fault = f"its .pts: {error}"
    return np.full((count, 2), np.nan), fault


def pts_text(points: np.ndarray) -> str:
    """Return the text of a .pts file, which counts from 1."""
    marks = shortest(points, points.astype(np.float64) + 1, lambda few: few - 1).tolist()
    rows = "".join(f"{number_text(x)} {number_text(y)}\n" for x, y in marks)
    return f"version: 1\nn_points: {len(points)}\n{{\n{rows}}}\n"
