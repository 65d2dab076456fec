"""Camera: head pose, perspective, the 68 points as an annotator of 300-W places them."""

from dataclasses import dataclass

import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.shape import CENTRE, JAW_COLUMNS, PIVOT, RIM, Shape

_COLUMNS = np.arange(JAW_COLUMNS)
_NINTHS = np.linspace(0, 1, 9)
_BULGE = np.sin(np.pi * _NINTHS)
_INNERMOST = 6  # row of the surface's grid up to which the far jaw may slide


@dataclass
class View:
    """Maps millimetres to pixels.

    Attributes:
        rotation: (3, 3) float32, head to camera.
        roll: (2, 2) float32, its part in the image's plane.
        yaw, pitch: radians; yaw is positive when the face turns to the viewer's right, pitch when it looks up.
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
        """Head millimetres (N, 3) to (N, 3): pixels x, y and the depth towards the viewer in millimetres."""
        return self._flatten((xyz - PIVOT) @ self.rotation.T)

    def project_body(self, xyz: np.ndarray) -> np.ndarray:
        """As `project`, for what does not turn with the head: the trunk."""
        return self._flatten((xyz - PIVOT).astype(np.float32))

    def project_grid(self, grid: np.ndarray) -> np.ndarray:
        """As `project`, for a grid with the axis x, y, z in front, (3, ...)."""
        return self._flatten((self.rotation @ (grid.reshape(3, -1) - PIVOT[:, None])).T).T.reshape(grid.shape)

    def _flatten(self, camera: np.ndarray) -> np.ndarray:
        flat = camera[:, :2]
        flat *= (self.distance * self.scale) / (self.distance - camera[:, 2:])
        flat += self.shift
        return camera


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
    chin, the more so on the near side, where they also begin higher.

    Args:
        shape: the face.
        candidates: (2, A, JAW_COLUMNS) float32, the projected surface between the two ears, without roll.
        yaw: radians.
    """
    x, y = (shape.outline[:JAW_COLUMNS, :2] - CENTRE).T
    outermost = (candidates[0] * x + candidates[1] * y).argmax(0)
    contour = candidates[:, outermost, _COLUMNS]
    chin = JAW_COLUMNS // 2
    out = np.empty((17, 2), np.float32)
    turn = min(1.0, max(-1.0, 2 * yaw))
    # From the ears to the chin.
    for half, to, near in ((contour[:, : chin + 1], out[:9], turn), (contour[:, : chin - 1 : -1], out[:7:-1], -turn)):
        half = np.concatenate([2 * half[:, :1] - half[:, 1:2], half], 1)  # goes on above the ear
        run = np.zeros(chin + 2, np.float32)
        np.hypot(*(half[:, 1:] - half[:, :-1])).cumsum(out=run[1:])
        run -= run[1]
        at = (_NINTHS + (0.014 + 0.014 * near) * _BULGE - (0.01 + 0.018 * near) * (1 - _NINTHS)) * run[-1]
        to[:, 0], to[:, 1] = np.interp(at, run, half[0]), np.interp(at, run, half[1])
    return out


def place(view: View, shape: Shape, grid: np.ndarray, size: int, share: float, d: Draws) -> np.ndarray:
    """Frames the face: sets `view.scale` and `view.shift`, returns the 68 points and the irises (70, 3), pixels and depth.

    Args:
        view: with scale 1 and shift 0.
        shape: the face.
        grid: (3, A, C + 1) float32, the head's surface.
        size: the image's side.
        share: the points' tight box as a share of the image.
        d: the face's random numbers.
    """
    points = view.project(shape.lift(np.concatenate([shape.points, shape.iris])))
    rows = view.project_grid(grid[:, _INNERMOST : RIM + 1, :JAW_COLUMNS])[:2]
    candidates = (view.roll.T @ rows.reshape(2, -1)).reshape(rows.shape)  # undoes the roll
    points[:17, :2] = jaw_contour(shape, candidates, view.yaw) @ view.roll.T
    low, high = points[:68, :2].min(0), points[:68, :2].max(0)
    view.scale = size * share * d.uniform(0.93, 1.05) / float((high - low).max())
    # Jitters the place by what room the image leaves.
    room = max(0.0, 0.5 * (1 - share * 1.05)) * size * 0.5
    jitter = np.array([d.uniform(-1, 1), d.uniform(-1, 1)], np.float32) * room
    view.shift = (size - 1) / 2 - (low + high) / 2 * view.scale + jitter
    points[:, :2] = points[:, :2] * view.scale + view.shift
    return points
