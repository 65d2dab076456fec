"""Pictures changed by landmarks: what hangs on a face, what colours or hides it, and what labels its parts.

An effect takes a picture and one face's points, and gives a new picture; it works in the face's own window, so that a
large picture costs no more than its copy. A face whose points span no area, or are no numbers, is left as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from annotated_types import Ge, Le

from flr.data.formats.text import read_plain, to_number
from flr.errors import UserError, nearest
from flr.files import opened
from flr.landmarks.draw import FAR, SHIFT
from flr.landmarks.geometry import fit_similarity, resize
from flr.landmarks.outlines import Arcs, is_closed, outlines_of, smooth
from flr.landmarks.scheme import SCHEMES, Scheme, get_scheme, point_of

Window = tuple[slice, slice]  # rows and columns of a picture
Colour = tuple[Annotated[int, Ge(0), Le(255)], Annotated[int, Ge(0), Le(255)], Annotated[int, Ge(0), Le(255)]]
Anchor = tuple[tuple[float, float], tuple[int, ...]]  # a pixel of a hung picture, and the points whose mean it lies on

MAX_BYTES, MAX_PIXELS = 2**26, 2**24  # of a hung picture
TEXTURE = 1024  # pixels of its longer side that are kept: more than a face shows
FINE = 2048  # sub-pixels of a small window's side, for smooth edges
STIFF = 0.2  # see `fit_map`
FARTHEST = 8.0  # pictures wide: a hung picture larger than that has come apart

# What Mask writes; a later label lies over an earlier one.
LABELS: Mapping[str, int] = {
    "background": 0, "skin": 1, "right_brow": 2, "left_brow": 3, "right_eye": 4, "left_eye": 5, "lips": 6, "mouth": 7,
}  # fmt: skip
REGIONS: Mapping[str, tuple[str, ...]] = {  # what Paint fills, by the lines that it needs
    "lips": ("outer_lip", "inner_lip"),
    "eyes": ("right_eye", "left_eye"),
    "brows": ("right_brow", "left_brow"),
}
BROW = 0.05, 0.12  # a brow above and below its line, over its length, where a scheme marks one line: its upper part


class Effect(ABC):
    """Something done to a face. What is common to all: a copy, and no harm by points that are none."""

    def check(self, scheme: Scheme) -> None:  # noqa: B027  # most need nothing
        """Stop before work starts.

        Raises:
            UserError: the scheme lacks points that this effect needs.
        """

    @abstractmethod
    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        """Change a picture in place, as `__call__` changes a copy."""

    def __call__(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> np.ndarray:
        """A face's picture with the effect.

        Args:
            image: (H, W, 3) RGB uint8.
            points: (K, 2) float, its pixels; the face may lie partly outside.
            scheme: of the points.

        Returns:
            (H, W, 3) RGB uint8, a new picture.

        Raises:
            UserError: the scheme lacks points that this effect needs.
        """
        return apply([self], image, points[None], scheme)


def apply(effects: Sequence[Effect], image: np.ndarray, faces: np.ndarray, scheme: Scheme) -> np.ndarray:
    """One effect after another on all faces of a picture.

    Args:
        effects: in their order; `Mask` stands last, since it makes a label image of the picture.
        image: (H, W, 3) RGB uint8.
        faces: (N, K, 2) float, its pixels.
        scheme: of the points.

    Returns:
        (H, W, 3) RGB uint8, or of `Mask` (H, W) uint8; a new picture, also where there is no face.

    Raises:
        UserError: the scheme lacks points that an effect needs, or something comes after `Mask`.
    """
    check(effects, scheme)
    masked = bool(effects) and isinstance(effects[-1], Mask)
    out = np.zeros(image.shape[:2], np.uint8) if masked else image.copy()
    for effect in effects[-1:] if masked else effects:  # nothing shows through a label image
        for points in faces:
            effect.draw(out, np.asarray(points, np.float64), scheme)
    return out


def check(effects: Iterable[Effect], scheme: Scheme) -> None:
    """Stop before work starts.

    Raises:
        UserError: the scheme lacks points that an effect needs, or something comes after `Mask`.
    """
    effects = list(effects)
    for effect in effects:
        effect.check(scheme)
    if any(isinstance(effect, Mask) for effect in effects[:-1]):
        raise UserError("effect: mask makes a label image of the picture, so it stands last; move it to the end")


class Paint(Effect):
    """Fills lips, eyes or brows with a colour, smooth along their outlines. Teeth and the open mouth stay as they are.

    Args:
        region: what is filled.
        colour: RGB.
        strength: 0 leaves the picture as it is, 1 hides what is there.
    """

    def __init__(
        self,
        region: Literal["lips", "eyes", "brows"],
        colour: Colour,
        strength: Annotated[float, Ge(0), Le(1)] = 0.5,
    ) -> None:
        if region not in REGIONS:
            raise ValueError(f"region={region} is none{nearest(region, REGIONS)}")
        self.region, self.colour, self.strength = region, tuple(colour), float(strength)

    def check(self, scheme: Scheme) -> None:
        _need(scheme, f"paint of {self.region}", REGIONS[self.region])

    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        lines = areas_of(scheme)
        areas = [area(points, lines[line]) for line in REGIONS[self.region]]
        shown = areas[:1] if self.region == "lips" else areas
        if (window := _window(image, shown)) is None:
            return
        alpha = cover(shown, window)
        if self.region == "lips":
            alpha = np.maximum(alpha - cover(areas[1:], window), 0)
        part, alpha = image[window], self.strength * alpha[..., None]
        part[:] = part + alpha * (np.array(self.colour, np.float32) - part) + 0.5


class Blur(Effect):
    """Hides a face for privacy: each cell of a coarse grid becomes its mean, drawn without the grid's edges.

    What can be told of the face afterwards is a few means, so no filter brings it back. A video shows those of many
    frames, and a face that was not found is not hidden.

    Args:
        cells: across the face.
    """

    def __init__(self, cells: Annotated[int, Ge(1), Le(16)] = 6) -> None:
        self.cells = cells

    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        if not _usable(points):
            return
        face = whole_face(points, scheme)
        if (window := _window(image, [face])) is None:
            return
        part = image[window]
        cell = np.ptp(face, axis=0).max() / self.cells
        height, width = (max(1, round(side / cell)) for side in part.shape[:2])
        means = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
        hidden = cv2.resize(means, part.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        # Every pixel that the outline touches is hidden whole.
        inside = cover([face], window) > 0
        part[inside] = hidden[inside]


class Mask(Effect):
    """A label image of the parts of faces: (H, W) uint8 with the values of `LABELS`, 0 where no face is.

    Skin is the hull of the points, so it ends at the brows, above which no scheme has any; a label whose outline the
    scheme lacks does not occur. Called on a label image, it adds a face to it.
    """

    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        lines = areas_of(scheme)
        if not _usable(points):
            return
        named = {"skin": _hull(points)} | {line: area(points, lines[line]) for line in lines}
        if "inner_lip" in lines:  # without it, the lips would hold the open mouth
            named |= {"lips": named["outer_lip"], "mouth": named["inner_lip"]}
        for label, value in LABELS.items():
            if label in named and (window := _window(image, [named[label]])) is not None:
                image[window][cover([named[label]], window) >= 0.5] = value

    def __call__(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> np.ndarray:
        """As `Effect.__call__`, but (H, W) uint8 labels come out, and may go in."""
        if image.ndim == 3:
            return super().__call__(image, points, scheme)
        out = image.copy()
        self.draw(out, points, scheme)
        return out


class Overlay(Effect):
    """Hangs a picture with alpha on points of the face, in perspective (see `fit_map`).

    Args:
        picture: ``sunglasses``, or a PNG file with alpha.
        anchors: a YAML file that says which places of the picture lie on which points (see `read_anchors`); None for
            those of the sunglasses.
        strength: 0 leaves the picture as it is, 1 is the hung picture's own alpha.
    """

    def __init__(
        self, picture: str = "sunglasses", anchors: str | None = None, strength: Annotated[float, Ge(0), Le(1)] = 1.0
    ) -> None:
        if picture != "sunglasses" and anchors is None:
            raise UserError(f"effect: {picture} hangs on no point; name its anchor file by anchors=FILE")
        self.picture, self.strength = picture, float(strength)
        self.anchors = GLASSES if anchors is None else read_anchors(Path(anchors))
        self.texture = sunglasses() if picture == "sunglasses" else read_rgba(Path(picture))
        # Places are of the picture as it is; of a large one less is kept.
        self.scale = min(1.0, TEXTURE / max(self.texture.shape))
        self.texture = _shrunk(self.texture, self.scale)

    def _anchored(self, scheme: Scheme) -> str:
        """The scheme, this one or a smaller, whose anchors are taken."""
        for name in (scheme.name, *scheme.reductions):
            if name in self.anchors:
                return name
        raise UserError(
            f"effect: the anchors of {self.picture} are for {', '.join(self.anchors)}, and {scheme.name} reduces to none "
            "of them; add its own to the anchor file, or take a net of one of those"
        )

    def check(self, scheme: Scheme) -> None:
        self._anchored(scheme)

    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        name = self._anchored(scheme)
        points = scheme.reduce(points, name)
        target = np.array([points[list(group)].mean(0) for _, group in self.anchors[name]])
        if not _usable(target):
            return
        height, width = self.texture.shape[:2]
        across = np.array([place for place, _ in self.anchors[name]])
        to_texture = _whole(resize(self.scale, self.scale))
        to_image = fit_map(_through(to_texture, across), target)
        corners = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
        if not (np.c_[corners, np.ones(4)] @ to_image[2] > 0.1).all():
            return  # what lies behind the viewer cannot be seen
        frame = _through(to_image, corners)
        if np.ptp(frame, axis=0).max() > FARTHEST * max(image.shape) or (window := _window(image, [frame])) is None:
            return
        factor = np.sqrt(cv2.contourArea(frame.astype(np.float32)) / (width * height))
        hung = _shrunk(self.texture, factor) if factor < 0.5 else self.texture  # bilinear taps would skip pixels
        back = _whole(resize(width / hung.shape[1], height / hung.shape[0]))
        part = image[window]
        moved = np.array([[1, 0, -window[1].start], [0, 1, -window[0].start], [0, 0, 1.0]])
        drawn = self.strength * cv2.warpPerspective(hung, moved @ to_image @ back, part.shape[1::-1])
        part[:] = np.clip(part * (1 - drawn[..., 3:]) + 255 * drawn[..., :3] + 0.5, 0, 255)


# -- areas of a face ---------------------------------------------------------------------------------------------------


def areas_of(scheme: Scheme) -> dict[str, Arcs]:
    """The lines of a scheme that go round an area, and brows of which it has one line."""
    return {name: arcs for name, arcs in outlines_of(scheme).items() if is_closed(arcs) or name.endswith("_brow")}


def _need(scheme: Scheme, what: str, lines: Sequence[str]) -> None:
    if set(lines) <= set(areas_of(scheme)):
        return
    having = [name for name, known in SCHEMES.items() if set(lines) <= set(areas_of(known))]
    raise UserError(
        f"effect: {what} needs the outlines {' and '.join(lines)}, for which {scheme.name} has too few points; take a net of "
        f"{', '.join(having)}"
    )


@np.errstate(invalid="ignore", divide="ignore")  # of points that are none, which the windows then leave out
def area(points: np.ndarray, arcs: Arcs) -> np.ndarray:
    """The polygon (M, 2) within a closed line of points (K, 2); of an open one a strip along it, pointed at its ends."""
    curve = smooth(points, arcs)
    if is_closed(arcs):
        return curve
    along = np.gradient(curve, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    length = np.linalg.norm(np.diff(curve, axis=0), axis=1).sum()
    high = length * np.sqrt(np.sin(np.linspace(0, np.pi, len(curve))))[:, None]
    across = high * np.nan_to_num(along[:, ::-1]) * [-1, 1]
    if (across * (points.mean(0) - curve)).sum() < 0:  # to the inside of the face
        across = -across
    above, below = BROW
    return np.concatenate([curve - above * across, (curve + below * across)[::-1]])


def whole_face(points: np.ndarray, scheme: Scheme) -> np.ndarray:
    """A polygon (M, 2) that holds the whole face with its forehead: the hull of the points and of an egg round them.

    The egg goes by eyes and mouth alone, so it is there for few points as well; its width by the larger of their
    distances, since a turned head brings the eyes together. A scheme without them has its hull, grown by half.
    """
    if scheme.name != "celeba5" and "celeba5" not in scheme.reductions:
        hull = _hull(points)
        return hull.mean(0) + 1.5 * (hull - hull.mean(0))
    right, left, _, *mouth = scheme.reduce(points, "celeba5")
    eyes, lips = (right + left) / 2, (mouth[0] + mouth[1]) / 2
    down = lips - eyes
    tall = float(np.linalg.norm(down))
    wide = max(float(np.linalg.norm(left - right)), tall)
    down = down / tall if tall > 0 else np.array([0.0, 1.0])
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)[:, None]
    centre = eyes + 0.35 * wide * down
    egg = centre + 1.6 * wide * np.cos(turn) * down + 1.3 * wide * np.sin(turn) * np.array([-down[1], down[0]])
    return _hull(np.concatenate([points, egg]))


def _hull(points: np.ndarray) -> np.ndarray:
    return points[cv2.convexHull(points.astype(np.float32), returnPoints=False)[:, 0]]


def _usable(points: np.ndarray) -> bool:
    """Whether points (..., 2) can be drawn at all: numbers, not all in one place, near enough for OpenCV's."""
    return bool(np.isfinite(points).all() and abs(points).max() < FAR and np.ptp(points, axis=0).max() >= 1)


def _window(image: np.ndarray, areas: Sequence[np.ndarray]) -> Window | None:
    """The pixels that areas (M, 2) can touch; None where the picture has none of them."""
    points = np.concatenate(areas)
    if not _usable(points):
        return None
    low = np.maximum(np.floor(points.min(0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + 2, image.shape[1::-1])
    return (slice(low[1], high[1]), slice(low[0], high[0])) if (low < high).all() else None


def cover(areas: Sequence[np.ndarray], window: Window) -> np.ndarray:
    """How much of each pixel of a window areas (M, 2) cover: (h, w) float32 from 0 to 1."""
    height, width = (side.stop - side.start for side in window)
    fine = int(np.clip(FINE // max(height, width), 1, 8))
    canvas = np.zeros((height * fine, width * fine), np.uint8)
    for each in areas:
        at = (each - [window[1].start, window[0].start] + 0.5) * fine - 0.5
        cv2.fillPoly(canvas, [np.round(at * 2**SHIFT).astype(np.int32)], 255, cv2.LINE_AA, SHIFT)
    return cv2.resize(canvas.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) / 255


# -- hung pictures -----------------------------------------------------------------------------------------------------


def fit_map(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The map (3, 3) of the plane that takes points (N, 2) to others, by least squares.

    Two points, or points on a line, give a similarity, three an affine map, four or more a perspective one. How far
    that bends away from the affine one has its price, as much as `STIFF` of the points: eyes and brows alone say
    little of depth, and noise would.
    """
    if len(source) < 3 or np.linalg.svd(source - source.mean(0), compute_uv=False)[1] < 1e-3 * np.ptp(source):
        return _whole(fit_similarity(source, target))
    ends = [_centred(points) for points in (source, target)]
    (x, y), (u, v) = (_through(to, points).T for to, points in zip(ends, (source, target), strict=True))
    one, zero = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([
        np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 1),
        np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 1),
        np.sqrt(STIFF * len(x)) * np.eye(8)[6:],
    ])  # fmt: skip
    if len(source) == 3:
        rows = rows[:6, :6]
    found = np.linalg.lstsq(rows, np.concatenate([u, v, [0, 0]])[: len(rows)], rcond=None)[0]
    within = np.append(found, [0.0] * (8 - len(found)) + [1.0]).reshape(3, 3)
    whole = np.linalg.inv(ends[1]) @ within @ ends[0]
    return whole / whole[2, 2] if abs(whole[2, 2]) > 1e-9 else whole


def _centred(points: np.ndarray) -> np.ndarray:
    """The map (3, 3) that brings points (N, 2) round 0, about 1 away."""
    spread = np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean())
    x, y = points.mean(0)
    return np.array([[1, 0, -x], [0, 1, -y], [0, 0, spread]]) / spread


def _whole(affine: np.ndarray) -> np.ndarray:
    """(3, 3) of a map (2, 3)."""
    return np.concatenate([affine, [[0.0, 0.0, 1.0]]])


def _through(to: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through a map (3, 3)."""
    moved = np.c_[points, np.ones(len(points))] @ to.T
    return moved[:, :2] / moved[:, 2:]


def _shrunk(texture: np.ndarray, scale: float) -> np.ndarray:
    """A picture (H, W, C) made smaller by area."""
    if scale >= 1:
        return texture
    height, width = (max(1, round(side * scale)) for side in texture.shape[:2])
    return cv2.resize(texture, (width, height), interpolation=cv2.INTER_AREA)


def read_rgba(path: Path) -> np.ndarray:
    """A PNG file with alpha, of 8 or 16 bit.

    Returns:
        (H, W, 4) float32 RGBA from 0 to 1, colours multiplied by alpha: so no rim comes of what is transparent.

    Raises:
        UserError: it cannot be read, is no PNG, has no alpha or more than `MAX_PIXELS`.
    """
    try:
        with opened(path, MAX_BYTES) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a PNG file with alpha") from error
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError(f"{path}: no PNG; save it as one, with alpha")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))  # seen before memory is taken for it
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels are more than a face shows; save it at most 4096 x 4096")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path}: a broken PNG; save it anew")
    if image.ndim != 3 or image.shape[2] != 4:
        raise UserError(
            f"{path}: has no alpha, so it would hide the face in a box; save it with a transparent background"
        )
    texture = image[..., [2, 1, 0, 3]].astype(np.float32) / (255 if image.dtype == np.uint8 else 65535)
    texture[..., :3] *= texture[..., 3:]
    return texture


def read_anchors(path: Path) -> dict[str, list[Anchor]]:
    """Which places of a hung picture lie on which points, by scheme::

        ibug68:
          - {at: [101, 70], points: right_eye_0}                # a pixel x, y of the picture, and a point
          - {at: [250, 75], points: [nose_0, nose_1]}           # or the mean of several
        celeba5:
          - {at: [150, 70], points: right_eye}
          - {at: [350, 70], points: left_eye}

    A net's own scheme counts, else the first one there that it reduces to. Points are named, or given by their place.

    Raises:
        UserError: the file is missing or says something else.
    """
    values = read_plain(path, "anchor file")
    found: dict[str, list[Anchor]] = {}
    try:
        if not isinstance(values, Mapping) or not values:
            raise UserError("no anchors; write SCHEME: and below it a list of {at: [x, y], points: NAME}")
        for name, anchors in values.items():
            scheme = get_scheme(str(name))
            if not isinstance(anchors, list) or len(anchors) < 2:
                raise UserError(f"{name}: a list of two anchors or more is wanted")
            found[scheme.name] = [_anchor(each, scheme, f"{name}[{i}]") for i, each in enumerate(anchors)]
            if len({place for place, _ in found[scheme.name]}) < 2:
                raise UserError(f"{name}: all anchors are at one place; give two at least")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return found


def _anchor(value: Any, scheme: Scheme, where: str) -> Anchor:
    if not isinstance(value, Mapping) or set(value) != {"at", "points"}:
        raise UserError(f"{where}: an anchor is {{at: [x, y], points: NAME}}")
    at, points = value["at"], value["points"]
    points = points if isinstance(points, list) else [points]
    try:
        x, y = (to_number(number) for number in at)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: at is two numbers, a pixel x, y of the picture; write [x, y]") from error
    if not points:
        raise UserError(f"{where}: no point is named")
    return (x, y), tuple(
        point_of(point, dict(zip(scheme.names, range(len(scheme)), strict=True)), where) for point in points
    )


# -- sunglasses --------------------------------------------------------------------------------------------------------

UNIT, ORIGIN = 400.0, (500.0, 160.0)  # pixels between the eyes' centres, and the pixel midway between them


def _at(x: float, y: float) -> tuple[float, float]:
    return ORIGIN[0] + UNIT * x, ORIGIN[1] + UNIT * y


# Where points lie on a frontal face, in distances between the eyes: the medians of 152 such faces of 300-W's test parts.
# The mouth says how tall the face is; a smile moves its corners apart, so their middle is taken.
GLASSES: Mapping[str, Sequence[Anchor]] = {
    "ibug68": [
        (_at(-0.69, 0), (36,)), (_at(0.69, 0), (45,)), (_at(-0.3, 0.03), (39,)), (_at(0.3, 0.03), (42,)),
        (_at(-0.6, -0.34), (18, 19, 20)), (_at(0.6, -0.34), (23, 24, 25)), (_at(0, -0.02), (27,)),
        (_at(0, 0.99), (48, 54)),
    ],
    "kaggle15": [
        (_at(-0.69, 0), (5,)), (_at(0.69, 0), (3,)), (_at(-0.3, 0.03), (4,)), (_at(0.3, 0.03), (2,)),
        (_at(-0.56, -0.22), (8, 9)), (_at(0.56, -0.22), (6, 7)), (_at(0, 0.99), (11, 12)),
    ],
    "celeba5": [(_at(-0.5, 0), (0,)), (_at(0.5, 0), (1,)), (_at(0, 0.99), (3, 4))],
}  # fmt: skip

# The right half of a frame in the same units, the left one is its mirror image.
_LENS = [
    (-0.12, -0.2),
    (-0.5, -0.27),
    (-0.9, -0.23),
    (-0.93, 0.0),
    (-0.83, 0.27),
    (-0.55, 0.36),
    (-0.25, 0.27),
    (-0.13, 0.03),
]


@lru_cache
def sunglasses() -> np.ndarray:
    """(380, 1000, 4) float32 RGBA as of `read_rgba`: lenses, darker above, in a black frame, with the temples' beginnings."""
    window = slice(0, 380), slice(0, 1000)

    def both(shape: Sequence[tuple[float, float]] | np.ndarray) -> list[np.ndarray]:
        return [np.array([_at(side * x, y) for x, y in shape]) for side in (1, -1)]

    lens = np.array(_LENS)
    lens = smooth(lens, ((*range(len(lens)), 0),))
    middle = lens.mean(0)
    glass = cover(both(lens), window)
    bridge = [(-0.16, -0.19), (0.0, -0.15), (0.16, -0.19), (0.16, -0.06), (0.0, -0.09), (-0.16, -0.06)]
    temple = [(-0.9, -0.25), (-1.12, -0.17), (-1.12, -0.06), (-0.9, -0.1)]
    frame = cover([*both(middle + [1.1, 1.13] * (lens - middle)), *both(bridge), *both(temple)], window)
    below = np.linspace(0, 1, 380, dtype=np.float32)[:, None]
    clear = glass * (0.04 + 0.26 * below)
    alpha = np.maximum(frame, glass) * (1 - clear)
    tint = np.array([0.16, 0.15, 0.2], np.float32) * (glass * below)[..., None] + np.float32(0.03)
    return np.concatenate([tint * alpha[..., None], alpha[..., None]], -1).astype(np.float32)
