"""Camera: head pose, perspective, the 68 points as an annotator of 300-W places them."""

from dataclasses import dataclass

import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.shape import CENTRE, JAW_COLUMNS, PIVOT, RIM, Shape

_INNERMOST = 6  # row of the surface's grid up to which the far jaw may slide


@dataclass
class View:
    """Maps millimetres to pixels.

    Attributes:
        rotation: (3, 3) float32, head to camera.
        roll: (2, 2) float32, its part in the picture's plane.
        yaw, pitch: radians; yaw is positive when the face turns to the viewer's right, pitch when it looks down.
        distance: camera to pivot, millimetres.
        scale: pixels a millimetre at the pivot's depth.
        shift: (2,) float32, the pivot's pixel.
    """

    rotation: np.ndarray
    roll: np.ndarray
    yaw: float
    pitch: float
    distance: float
    scale: float = 1.0
    shift: np.ndarray | float = 0.0

    def project(self, xyz: np.ndarray) -> np.ndarray:
        """Head millimetres (..., 3) to (..., 3): pixels x, y and the depth towards the viewer in millimetres."""
        # As one flat product: numpy is slow at stacks of small ones.
        camera = (xyz - PIVOT).reshape(-1, 3) @ self.rotation.T
        return self._flatten(camera).reshape(xyz.shape)

    def project_body(self, xyz: np.ndarray) -> np.ndarray:
        """As `project`, for what does not turn with the head: the trunk."""
        return self._flatten((xyz - PIVOT).astype(np.float32))

    def _flatten(self, camera: np.ndarray) -> np.ndarray:
        out = np.empty_like(camera)
        near = self.distance / (self.distance - camera[..., 2:])
        out[..., :2] = camera[..., :2] * near * self.scale + self.shift
        out[..., 2] = camera[..., 2]
        return out


def sample_view(d: Draws) -> View:
    """Draws pose and distance: mostly near frontal, with a tail to +-60 degrees of yaw."""
    yaw = d.normal(0, (12, 25)[d.pick((0.6, 0.4))])
    pitch, roll = d.normal(2, 10), d.normal(0, (7, 16)[d.pick((0.75, 0.25))])
    yaw_r, pitch_r, roll_r = np.radians((yaw, pitch, roll))
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw_r, pitch_r, roll_r) for f in (np.cos, np.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    in_plane = np.eye(3)
    in_plane[:2, :2] = (cr, -sr), (sr, cr)
    rotation = (in_plane @ about_x @ about_y).astype(np.float32)
    distance = 1 / d.uniform(1 / 3000, 1 / 480)
    return View(rotation, in_plane[:2, :2].astype(np.float32), float(yaw_r), float(pitch_r), distance)


def jaw_contour(shape: Shape, candidates: np.ndarray, yaw: float) -> np.ndarray:
    """The 17 jaw points (17, 2), pixels, on the visible outline of the face.

    A point of the far side slides inwards, over the cheek, to where the surface turns away from the viewer;
    as annotators do, the points are then spread over each half of the contour, a little denser towards the
    chin, the more so on the near side.

    Args:
        shape: the face.
        candidates: (A, JAW_COLUMNS, 2) float32, the projected surface between the two ears, without roll.
        yaw: radians.
    """
    outward = shape.outline[:JAW_COLUMNS, :2] - CENTRE
    outermost = (candidates * outward).sum(-1).argmax(0)
    contour = candidates[outermost, np.arange(JAW_COLUMNS)]
    chin = JAW_COLUMNS // 2
    halves = []
    turn = min(1.0, max(-1.0, 2 * yaw))
    even = np.linspace(0, 1, 9)
    for half, near in ((contour[: chin + 1], turn), (contour[: chin - 1 : -1], -turn)):  # from the ear to the chin
        run = np.r_[0, np.cumsum(np.hypot(*np.diff(half, axis=0).T))]
        at = (even + (0.014 + 0.014 * near) * np.sin(np.pi * even)) * run[-1]
        halves.append(np.column_stack([np.interp(at, run, half[:, i]) for i in (0, 1)]))
    return np.vstack([halves[0], halves[1][-2::-1]]).astype(np.float32)


def place(view: View, shape: Shape, grid: np.ndarray, size: int, share: float, d: Draws) -> np.ndarray:
    """Frames the face: sets `view.scale` and `view.shift`, returns the 68 points and the irises (70, 3), pixels and depth.

    Args:
        view: with scale 1 and shift 0.
        shape: the face.
        grid: (A, C + 1, 3) float32, the head's surface.
        size: the picture's side.
        share: the points' tight box as a share of the picture.
        d: the face's random numbers.
    """
    points = view.project(shape.lift(np.vstack([shape.points, shape.iris])))
    candidates = view.project(grid[_INNERMOST : RIM + 1, :JAW_COLUMNS])[..., :2]
    candidates = (candidates.reshape(-1, 2) @ view.roll).reshape(candidates.shape)  # undoes the roll
    points[:17, :2] = jaw_contour(shape, candidates, view.yaw) @ view.roll.T
    low, high = points[:68, :2].min(0), points[:68, :2].max(0)
    view.scale = size * share * d.uniform(0.93, 1.05) / float((high - low).max())
    # Jitters the place by what room the picture leaves.
    room = max(0.0, 0.5 * (1 - share * 1.05)) * size * 0.5
    jitter = np.array([d.uniform(-1, 1), d.uniform(-1, 1)], np.float32) * room
    view.shift = (size - 1) / 2 - (low + high) / 2 * view.scale + jitter
    points[:, :2] = points[:, :2] * view.scale + view.shift
    return points
