"""People in scenes: whole faces, faces that are partly covered, and drawn faces that are spoilt until they are none."""

import cv2
import numpy as np

from flr.data.synthetic import paint
from flr.data.synthetic.draws import Draws
from flr.data.synthetic.renderer import Person
from flr.detection.textures import TexturePool, log_uniform

_EYES = (np.r_[17:22, 36:42], np.r_[22:27, 42:48])  # points of each eye and its brow
_FEATURES = (np.r_[36:42], np.r_[42:48], np.r_[48:68], np.r_[27:36])


def paint_person(
    rng: np.random.Generator, canvas: np.ndarray, textures: TexturePool, draws: Draws, size: float, centre: np.ndarray,
    roll: float,
) -> np.ndarray:  # fmt: skip
    """Draw a person into a scene, in place.

    Args:
        rng: Draws the clothes and the size's part of the scene.
        canvas: (H, W) uint8 scene.
        textures: Of the clothes.
        draws: Of the person.
        size: Larger side of the points' tight box, pixels.
        centre: (2,) of that box.
        roll: Radians by which the person is turned in the image plane, in addition to the head's own pose.

    Returns:
        (68, 2) float64 points.
    """
    person = Person(draws, 100, 0.8)
    view = person.view
    if roll:
        turn = np.eye(3, dtype=np.float32)
        turn[:2, :2] = (np.cos(roll), -np.sin(roll)), (np.sin(roll), np.cos(roll))
        view.rotation, view.roll = turn @ view.rotation, turn[:2, :2] @ view.roll
        middle = person.points[:, :2].mean(0)
        person.points[:, :2] = (person.points[:, :2] - middle) @ turn[:2, :2].T + middle
        view.shift = (turn[:2, :2] @ (view.shift - middle) + middle).astype(np.float32)
    scale = size / person.span
    shift = (centre - person.box.mean(0) * scale).astype(np.float32)
    view.scale, view.shift = view.scale * scale, (view.shift * scale + shift).astype(np.float32)
    person.points[:, :2] = person.points[:, :2] * scale + shift

    def clothe(canvas: np.ndarray, before: np.ndarray) -> None:
        """Give the clothes below the neck a texture."""
        below = max(0, int(person.box[1, 1] + size * 0.25))
        part = canvas[below:]
        if len(part) > 2 and rng.random() < 0.6:
            changed = cv2.threshold(cv2.absdiff(part, before[below:]), 2, 255, cv2.THRESH_BINARY)[1]
            dressed = cv2.addWeighted(
                part, 1, textures(rng)[below:], rng.uniform(0.1, 0.7), -128 * rng.uniform(0.1, 0.5)
            )
            cv2.copyTo(dressed, changed, part)

    person.paint(canvas, clothe)
    return person.points[:68, :2].astype(np.float64)


def _oval(canvas: np.ndarray, points: np.ndarray, wide: float, high: float, lift: float = 0.0) -> np.ndarray:
    """Return the mask of an oval about a face, turned with it; 1 is half the face's side, `lift` goes to its top."""
    up = points[[19, 24]].mean(0) - points[8]
    up = up / (np.linalg.norm(up) + 1e-6)
    half = np.ptp(points, 0).max() / 2
    centre = (points.min(0) + points.max(0)) / 2 + up * (lift * half)
    mask = np.zeros_like(canvas)
    paint.fill(mask, paint.ellipse(centre, np.array([-up[1], up[0]]) * half * wide, up * half * high, 32))
    return mask


def cover_partly(rng: np.random.Generator, canvas: np.ndarray, points: np.ndarray, textures: TexturePool) -> None:
    """Put a hood, a brimmed hat or a hard shadow on some faces, in place; they stay faces."""
    kind, side = rng.random(), float(np.ptp(points, 0).max())
    if kind < 0.07:  # a hood
        hood = _oval(canvas, points, rng.uniform(1.15, 1.6), rng.uniform(1.4, 1.8), rng.uniform(0, 0.3))
        hood = cv2.subtract(hood, _oval(canvas, points, rng.uniform(0.8, 0.95), rng.uniform(0.95, 1.25), 0.05))
        paint.blend(canvas, textures(rng), hood)
    elif kind < 0.14:  # a brim over the brows, and the crown above it
        over = textures(rng)
        paint.blend(
            canvas, over, _oval(canvas, points, rng.uniform(0.7, 1.0), rng.uniform(0.5, 0.9), rng.uniform(1.2, 1.5))
        )
        brim = _oval(canvas, points, rng.uniform(0.9, 1.7), rng.uniform(0.1, 0.22), rng.uniform(0.75, 1.05))
        paint.blend(canvas, cv2.convertScaleAbs(over, alpha=rng.uniform(0.5, 1.1)), brim)
    elif kind < 0.28:  # light from one side
        angle, middle = rng.uniform(0, 2 * np.pi), points.mean(0) + rng.normal(0, 0.15, 2) * side
        y, x = np.mgrid[: canvas.shape[0], : canvas.shape[1]].astype(np.float32)
        depth = ((x - middle[0]) * np.cos(angle) + (y - middle[1]) * np.sin(angle)) / (side * rng.uniform(0.03, 0.5))
        dark = np.float32(rng.uniform(0.35, 0.8)) / (1 + np.exp(-4 * np.clip(depth, -8, 8)))
        near = cv2.blur(_oval(canvas, points, 1.6, 1.8), (int(side * 0.2) * 2 + 1,) * 2) / np.float32(255)
        canvas[:] = (canvas * (1 - dark * near)).astype(np.uint8)


def spoil(rng: np.random.Generator, canvas: np.ndarray, points: np.ndarray, textures: TexturePool) -> None:
    """Turn a drawn face into none, in place, so that parts of a face alone are not taken for one."""
    low, high = points.min(0), points.max(0)
    side, middle = float((high - low).max()), (low + high) / 2
    start = np.maximum((middle - side * 0.62).astype(int), 0)
    stop = np.minimum((middle + side * 0.62).astype(int), canvas.shape[::-1])
    if (stop - start).min() < 6:
        return
    part = canvas[start[1] : stop[1], start[0] : stop[0]]
    kind = rng.random()
    if kind < 0.3:
        _shuffle(rng, part)
    elif kind < 0.5:
        _mirror_half(rng, part)
    elif kind < 0.75:
        _cover(rng, canvas, points, textures)
    elif kind < 0.88:
        _erase_eyes(rng, part, points - start)
    else:
        _enlarge(rng, canvas, part, points)


def _shuffle(rng: np.random.Generator, part: np.ndarray) -> None:
    count, source = int(rng.choice([2, 2, 3])), part.copy()
    height, width = part.shape[0] // count, part.shape[1] // count
    order = rng.permutation(count * count)
    if (order == np.arange(count * count)).mean() > 0.3:
        order = np.roll(np.arange(count * count), 1)
    for to, of in enumerate(order):
        block = source[of // count * height :, of % count * width :][:height, :width]
        part[to // count * height :, to % count * width :][:height, :width] = block[:: -1 if rng.random() < 0.3 else 1]


def _mirror_half(rng: np.random.Generator, part: np.ndarray) -> None:
    """Repeat the upper half upside down in the lower one, or the other way round: four eyes, or two mouths."""
    half = len(part) // 2
    if rng.random() < 0.5:
        part[-half:] = part[:half][::-1].copy()
    else:
        part[:half] = part[-half:][::-1].copy()


def _cover(rng: np.random.Generator, canvas: np.ndarray, points: np.ndarray, textures: TexturePool) -> None:
    """Cover the face with blurred skin, with a texture, or with hair as on the back of a head."""
    side = float(np.ptp(points, 0).max())
    kernel = int(side * rng.uniform(0.02, 0.15)) * 2 + 1
    mask = cv2.blur(_oval(canvas, points, rng.uniform(0.75, 1.1), rng.uniform(0.9, 1.25)), (kernel, kernel))
    kind = rng.random()
    if kind < 0.35:
        over = cv2.blur(canvas, (max(3, int(side * 0.6)),) * 2)
    elif kind < 0.75:
        top = np.clip([points[:, 0].mean(), points[:, 1].min() - side * 0.3], 0, np.array(canvas.shape[::-1]) - 1)
        over = cv2.convertScaleAbs(textures(rng), alpha=0.4, beta=float(canvas[int(top[1]), int(top[0])]) - 50)
    else:
        over = textures(rng)
    paint.blend(canvas, over, mask)


def _erase_eyes(rng: np.random.Generator, part: np.ndarray, points: np.ndarray) -> None:
    mask = np.zeros_like(part)
    for region in (*_EYES, *((np.array([48, 51, 54, 57]),) if rng.random() < 0.5 else ())):
        corners = points[region]
        corners = (corners - corners.mean(0)) * 1.4 + corners.mean(0)
        paint.fill(mask, cv2.convexHull(corners.astype(np.float32))[:, 0])
    height, width = part.shape
    paint.blend(part, cv2.blur(part, (max(3, width // 4), max(3, height // 4))), cv2.blur(mask, (3, 3)))


def _enlarge(rng: np.random.Generator, canvas: np.ndarray, part: np.ndarray, points: np.ndarray) -> None:
    """Fill the place of the face with one feature of it."""
    feature = points[_FEATURES[int(rng.integers(len(_FEATURES)))]]
    margin = np.ptp(feature, 0).max() * log_uniform(rng, 0.1, 0.6)
    start = np.maximum((feature.min(0) - margin).astype(int), 0)
    stop = (feature.max(0) + margin).astype(int) + 1
    source = canvas[start[1] : max(stop[1], 0), start[0] : max(stop[0], 0)].copy()
    if min(source.shape) > 2:
        part[:] = cv2.resize(source, part.shape[::-1], interpolation=cv2.INTER_CUBIC)
