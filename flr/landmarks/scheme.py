"""Landmark schemes: names, mirror pairs, regions, normalisers and reductions, each said once.

Sources: the 68 points of iBUG 300-W (https://ibug.doc.ic.ac.uk/resources/300-W/), the 15 points of Kaggle's
Facial Keypoints Detection table, the 5 points of CelebA.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from flr.errors import UserError, nearest

Group = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Scheme:
    """One labelling of a face by K points.

    Attributes:
        name: the scheme's name in configs, checkpoints and protocols.
        names: K point names. "right" is the subject's right, at the viewer's left.
        pairs: index pairs that a mirror swaps; the points in none of them lie on the midline.
        regions: index groups by the name that per-region errors carry.
        distances: normalisers given as the distance between the means of two index groups.
        normaliser: the default among `normalisers`.
        reductions: scheme name -> for each of its points the indices here whose mean it is.
    """

    name: str
    names: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    regions: Mapping[str, Group]
    distances: Mapping[str, tuple[Group, Group]]
    normaliser: str
    reductions: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Scheme({self.name}, {len(self)} points)"

    @cached_property
    def mirror_order(self) -> np.ndarray:
        """(K,) int: the point that stands at each place once the picture is mirrored."""
        order = np.arange(len(self))
        left, right = np.array(self.pairs).T
        order[left], order[right] = right, left
        return order

    @property
    def normalisers(self) -> tuple[str, ...]:
        """The names that `distance` takes."""
        return (*self.distances, "box", "diagonal")

    def distance(self, points: np.ndarray, labelled: np.ndarray, name: str | None = None) -> np.ndarray:
        """The normaliser of each face.

        Args:
            points: (N, K, 2) float, original-image pixels.
            labelled: (N, K) bool.
            name: one of `normalisers`; the scheme's default where None. ``box`` is sqrt(w * h) of the tight box
                of the labelled points, ``diagonal`` that box's diagonal.

        Returns:
            (N,) float64, pixels; NaN where a point that it needs is missing or the distance is zero.

        Raises:
            UserError: `name` is not a normaliser of this scheme.
        """
        name = name or self.normaliser
        points = np.asarray(points, np.float64)
        if name in ("box", "diagonal"):
            known = np.where(labelled[..., None], points, np.nan)
            some = labelled.any(-1)
            size = np.zeros((len(points), 2))
            size[some] = np.nanmax(known[some], 1) - np.nanmin(known[some], 1)
            distance = np.sqrt(size.prod(-1)) if name == "box" else np.hypot(*size.T)
        elif name in self.distances:
            a, b = (list(group) for group in self.distances[name])
            distance = np.linalg.norm(points[:, a].mean(1) - points[:, b].mean(1), axis=-1)
            distance = np.where(labelled[:, [*a, *b]].all(1), distance, np.nan)
        else:
            raise UserError(f"scheme {self.name} has no normaliser '{name}'{nearest(name, self.normalisers)}")
        return np.where(distance > 0, distance, np.nan)

    def reduce(self, values: Any, to: str) -> Any:
        """Points (or flags) of this scheme as those of a smaller one.

        Args:
            values: (..., K, 2) points, or (..., K) bool flags such as `labelled`; numpy or torch.
            to: the name of the smaller scheme, or this scheme's own.

        Returns:
            (..., L, 2) the means of the groups; for flags (..., L), true where the whole group is.

        Raises:
            UserError: there is no reduction to `to`.
        """
        if to == self.name:
            return values
        if to not in self.reductions:
            raise UserError(f"scheme {self.name} does not reduce to '{to}'{nearest(to, self.reductions)}")
        groups = [list(group) for group in self.reductions[to]]
        stack = np.stack if isinstance(values, np.ndarray) else _torch_stack
        if "bool" in str(values.dtype):
            return stack([values[..., group].all(-1) for group in groups], -1)
        return stack([values[..., group, :].mean(-2) for group in groups], -2)


def _torch_stack(values: list[Any], axis: int) -> Any:
    import torch

    return torch.stack(values, axis)


def _span(first: int, last: int) -> Group:
    return tuple(range(first, last + 1))


_MIRROR_68 = {
    "jaw": [(i, 16 - i) for i in range(8)],
    "brows": [(i, 43 - i) for i in range(17, 22)],
    "nose": [(31, 35), (32, 34)],
    "eyes": [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)],
    "mouth": [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)],
}

_REGIONS_68: dict[str, Group] = {
    "jaw": _span(0, 16), "right_brow": _span(17, 21), "left_brow": _span(22, 26),
    "nose": _span(27, 35), "right_eye": _span(36, 41), "left_eye": _span(42, 47),
    "outer_lip": _span(48, 59), "inner_lip": _span(60, 67),
}  # fmt: skip

_TO_15: tuple[Group, ...] = (
    _span(42, 47), _span(36, 41), (42,), (45,), (39,), (36,), (22,), (26,), (21,), (17,), (30,), (54,), (48,), (51,),
    (57,),
)  # fmt: skip

_FROM_15_TO_5 = (1, 0, 10, 12, 11)

CELEBA5 = Scheme(
    name="celeba5",
    names=("right_eye", "left_eye", "nose", "mouth_right", "mouth_left"),
    pairs=((0, 1), (3, 4)),
    regions={"eyes": (0, 1), "nose": (2,), "mouth": (3, 4)},
    distances={"interpupil": ((0,), (1,))},
    normaliser="interpupil",
)

KAGGLE15 = Scheme(
    name="kaggle15",
    names=(
        "left_eye", "right_eye", "left_eye_inner", "left_eye_outer", "right_eye_inner", "right_eye_outer",
        "left_brow_inner", "left_brow_outer", "right_brow_inner", "right_brow_outer", "nose_tip",
        "mouth_left", "mouth_right", "mouth_top", "mouth_bottom",
    ),
    pairs=((0, 1), (2, 4), (3, 5), (6, 8), (7, 9), (11, 12)),
    regions={"eyes": _span(0, 5), "brows": _span(6, 9), "nose": (10,), "mouth": _span(11, 14)},
    distances={"interpupil": ((0,), (1,)), "interocular": ((3,), (5,))},
    normaliser="interpupil",
    reductions={"celeba5": tuple((i,) for i in _FROM_15_TO_5)},
)  # fmt: skip

IBUG68 = Scheme(
    name="ibug68",
    names=tuple(f"{region}_{i - group[0]}" for region, group in _REGIONS_68.items() for i in group),
    pairs=tuple(pair for pairs in _MIRROR_68.values() for pair in pairs),
    regions=_REGIONS_68,
    distances={"interocular": ((36,), (45,)), "interpupil": (_span(36, 41), _span(42, 47))},
    normaliser="interocular",
    reductions={"kaggle15": _TO_15, "celeba5": tuple(_TO_15[i] for i in _FROM_15_TO_5)},
)

SCHEMES = {scheme.name: scheme for scheme in (IBUG68, KAGGLE15, CELEBA5)}


def get_scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        UserError: no scheme has it.
    """
    if name not in SCHEMES:
        raise UserError(f"no landmark scheme '{name}'{nearest(name, SCHEMES)}")
    return SCHEMES[name]
