"""Pure, vectorised geometry of points and pixels, for numpy arrays and torch tensors alike.

Pixel convention: an integer coordinate is a pixel's centre, so an image of width w spans -.5 to w - .5. A resize by s
moves a point by x' = (x + .5) s - .5, a mirror by x' = w - 1 - x. An affine map is a (..., 2, 3) array that
takes source pixels to destination pixels. Points are (..., K, 2); boxes (..., 4) = left, top, right, bottom.
"""

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    import torch

Array = Any  # a numpy array or a torch tensor; what goes in comes out


def stack(values: list[Array], axis: int) -> Array:
    """Stack arrays or tensors along a new axis, broadcast to one shape.

    >>> stack([np.array([1, 2]), np.array(0)], -1)
    array([[1, 0],
           [2, 0]])
    """
    if isinstance(values[0], np.ndarray | np.generic | float | int):
        return np.stack(np.broadcast_arrays(*values), axis)
    import torch

    return torch.stack(torch.broadcast_tensors(*values), axis)


def _affine(a: Array, b: Array, c: Array, d: Array, e: Array, f: Array) -> Array:
    """(..., 2, 3) of [[a, b, c], [d, e, f]]."""
    return stack([stack([a, b, c], -1), stack([d, e, f], -1)], -2)


def transform(affine: Array, points: Array) -> Array:
    """Map points (..., K, 2) by affine maps (..., 2, 3).

    It uses sums in place of a matrix product, which autocast would compute in bf16, too coarse for pixels.

    Example:
        >>> transform(resize(2.0, 2.0), np.array([[0.0, 10.0]]))
        array([[ 0.5, 20.5]])
    """
    a = affine[..., None, :, :]
    x, y = points[..., :1], points[..., 1:]
    return a[..., 0] * x + a[..., 1] * y + a[..., 2]


def compose(second: Array, first: Array) -> Array:
    """Compose two maps (..., 2, 3): first `first`, then `second`.

    Example:
        >>> compose(mirror(100), mirror(100))
        array([[1., 0., 0.],
               [0., 1., 0.]])
    """
    (a, b, c), (d, e, f) = (tuple(second[..., i, j] for j in range(3)) for i in (0, 1))
    (p, q, r), (s, t, u) = (tuple(first[..., i, j] for j in range(3)) for i in (0, 1))
    return _affine(
        a * p + b * s, a * q + b * t, a * r + b * u + c,
        d * p + e * s, d * q + e * t, d * r + e * u + f,
    )  # fmt: skip


def invert(affine: Array) -> Array:
    """Invert maps (..., 2, 3).

    Example:
        >>> transform(invert(resize(2.0, 4.0)), np.array([[0.5, 1.5]]))
        array([[0., 0.]])
    """
    a, b, c = affine[..., 0, 0], affine[..., 0, 1], affine[..., 0, 2]
    d, e, f = affine[..., 1, 0], affine[..., 1, 1], affine[..., 1, 2]
    det = a * e - b * d
    return _affine(e / det, -b / det, (b * f - c * e) / det, -d / det, a / det, (c * d - a * f) / det)


def mirror(width: Array) -> Array:
    """Make the map (2, 3) that mirrors an image `width` pixels wide.

    Example:
        >>> transform(mirror(100), np.array([[0.0, 5.0]]))
        array([[99.,  5.]])
    """
    return np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])


def resize(scale_x: float, scale_y: float) -> np.ndarray:
    """Make the map (2, 3) of a resize by two factors.

    Example:
        >>> resize(2.0, 1.0)
        array([[2. , 0. , 0.5],
               [0. , 1. , 0. ]])
    """
    return np.array([[scale_x, 0.0, 0.5 * scale_x - 0.5], [0.0, scale_y, 0.5 * scale_y - 0.5]])


def similarity(
    angle: np.ndarray | float, scale: np.ndarray | float, source: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Make the maps that rotate and scale about a point and move that point.

    Args:
        angle: (...,) radians; positive turns x towards y, clockwise on the screen.
        scale: (...,) factor.
        source: (..., 2) the fixed point in the source.
        target: (..., 2) where it lands.

    Returns:
        (..., 2, 3) maps.

    Example:
        >>> quarter_turn = similarity(np.pi / 2, 1.0, np.zeros(2), np.array([5.0, 5.0]))
        >>> transform(quarter_turn, np.array([[1.0, 0.0]])).round(6)
        array([[5., 6.]])
    """
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    x, y = source[..., 0], source[..., 1]
    return _affine(
        cos, -sin, target[..., 0] - cos * x + sin * y,
        sin, cos, target[..., 1] - sin * x - cos * y,
    )  # fmt: skip


def fit_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fit the least-squares similarity (rotation, scale, shift; no reflection) from `source` to `target`.

    Args:
        source: (..., K, 2) points; at least two different ones.
        target: (..., K, 2) points.

    Returns:
        (..., 2, 3) maps, closed form (the two-dimensional case of Umeyama 1991, doi:10.1109/34.88573).

    Example:
        >>> source = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> fit_similarity(source, 3 * source + 1).round(6)
        array([[ 3., -0.,  1.],
               [ 0.,  3.,  1.]])
    """
    mean_s, mean_t = source.mean(-2), target.mean(-2)
    s, t = source - mean_s[..., None, :], target - mean_t[..., None, :]
    power = (s * s).sum((-2, -1))
    cos = (s * t).sum((-2, -1)) / power
    sin = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1) / power
    x, y = mean_s[..., 0], mean_s[..., 1]
    return _affine(
        cos, -sin, mean_t[..., 0] - cos * x + sin * y,
        sin, cos, mean_t[..., 1] - sin * x - cos * y,
    )  # fmt: skip


def tight_box(points: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Find the smallest boxes (..., 4) around the labelled points.

    Args:
        points: (..., K, 2).
        labelled: (..., K) bool.

    Returns:
        (..., 4); NaN for a face without labelled points.

    Example:
        >>> tight_box(np.array([[2.0, 3.0], [8.0, 5.0], [0.0, 0.0]]), np.array([True, True, False]))
        array([2., 3., 8., 5.])
    """
    # A coordinate at a time: numpy's reductions are ten times faster over an array's last axis.
    low, high = (
        [end(np.where(labelled, points[..., axis], bound), -1) for axis in (0, 1)]
        for end, bound in ((np.min, np.inf), (np.max, -np.inf))
    )
    return np.where(np.any(labelled, -1, keepdims=True), np.stack([*low, *high], -1), np.nan)


def box_crop(box: np.ndarray, scale: float, square: bool, size: int) -> np.ndarray:
    """Make the maps from an image to the crops around boxes.

    Args:
        box: (..., 4).
        scale: the crop's side over the box's.
        square: whether the crop takes the larger side for both; otherwise it keeps the box's aspect ratio.
        size: the side of the crop, pixels.

    Returns:
        (..., 2, 3) image pixels to crop pixels.

    Example:
        >>> to_crop = box_crop(np.array([10.0, 10.0, 30.0, 50.0]), scale=1.0, square=True, size=80)
        >>> transform(to_crop, np.array([[20.0, 30.0]]))
        array([[39.5, 39.5]])
    """
    side = (box[..., 2:] - box[..., :2]) * scale
    if square:
        side = side.max(-1, keepdims=True).repeat(2, -1)
    factor = size / side
    shift = (size - 1) / 2 - factor * (box[..., :2] + box[..., 2:]) / 2
    zero = np.zeros_like(factor[..., 0])
    return _affine(factor[..., 0], zero, shift[..., 0], zero, factor[..., 1], shift[..., 1])


def warp(image: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Warp one image by an affine map; edges repeat.

    Sampling is bilinear. A map that shrinks to less than half is preceded by area averaging, since bilinear taps would
    skip pixels.

    Args:
        image: (H, W) or (H, W, C).
        affine: (2, 3) source pixels to destination pixels.
        size: (width, height) of the result.

    Example:
        >>> warp(np.array([[1, 2], [3, 4]], np.uint8), mirror(2), (2, 2))
        array([[2, 1],
               [4, 3]], dtype=uint8)
    """
    factor = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    if factor < 0.5:
        height, width = image.shape[:2]
        small = (max(1, round(width * factor)), max(1, round(height * factor)))
        shrink = resize(small[0] / width, small[1] / height)
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        affine = compose(affine, invert(shrink))
    return cv2.warpAffine(image, affine, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def warp_batch(images: "torch.Tensor", affine: "torch.Tensor", size: int) -> "torch.Tensor":
    """Warp a batch by affine maps; bilinear, edges repeat, any device.

    Args:
        images: (B, C, H, W).
        affine: (B, 2, 3) source pixels to destination pixels.
        size: the side of the result.

    Returns:
        (B, C, size, size) float.

    Example:
        >>> import torch
        >>> warp_batch(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor(mirror(2))[None], 2)
        tensor([[[[2., 1.],
                  [4., 3.]]]])
    """
    import torch
    from torch.nn import functional

    height, width = images.shape[2:]
    back = invert(affine.float())
    line = torch.arange(size, device=images.device, dtype=torch.float32)
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = transform(back, torch.stack([x, y], -1).reshape(1, -1, 2)).reshape(len(images), size, size, 2)
    grid = 2 * grid + 1  # each axis apart: a tensor of both sides would be copied from the host
    grid = torch.stack([grid[..., 0] / width, grid[..., 1] / height], -1) - 1
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
