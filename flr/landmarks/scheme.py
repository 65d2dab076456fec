"""Landmark schemes: names, mirror pairs, regions, normalisers and reductions, each defined once.

Sources: the 68 points of iBUG 300-W (https://ibug.doc.ic.ac.uk/resources/300-W/), the 76 of MUCT (Milborrow et al.
2010, http://www.milbo.org/muct/), the 15 points of Kaggle's Facial Keypoints Detection table, the 5 points of CelebA;
the 98 of WFLW (Wu et al. 2018, https://wywu.github.io/projects/LAB/WFLW.html) and the 29 of COFW (Burgos-Artizzu et al.
2013), the 19 of AFLW (Koestinger et al. 2011, less the ears) and the 106 of LaPa (Liu et al. 2020,
https://github.com/JDAI-CV/lapa-dataset): their files number the points and name none, so pairs and reductions are those that
the field's code agrees on. The 70 of FaceSynthetics (Wood et al. 2021) are the 68 and the pupils.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from flr.errors import UserError, nearest
from flr.landmarks.geometry import stack, tight_box

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
        """(K,) int: the index of the point that takes each place when the image is mirrored."""
        order = np.arange(len(self))
        left, right = np.array(self.pairs, int).reshape(-1, 2).T
        order[left], order[right] = right, left
        return order

    @property
    def normalisers(self) -> tuple[str, ...]:
        """The names that `distance` takes."""
        return (*self.distances, "box", "diagonal")

    def distance(
        self, points: np.ndarray, labelled: np.ndarray, name: str | None = None, own_box: np.ndarray | None = None
    ) -> np.ndarray:
        """Measure the normaliser of each face.

        Args:
            points: (N, K, 2) float, original-image pixels.
            labelled: (N, K) bool.
            name: one of `normalisers`; None for the scheme's default. ``box`` is sqrt(w * h) of the tight box
                of the labelled points, ``diagonal`` that box's diagonal.
            own_box: (N, 4) boxes that the dataset gives, NaN where it gives none. In a scheme of one point they are
                taken for the tight box, which has no size.

        Returns:
            (N,) float64, pixels; NaN where a point that it needs is missing or the distance is zero.

        Raises:
            UserError: `name` is not a normaliser of this scheme.

        Example:
            >>> points = np.array([[[30.0, 40.0], [70.0, 40.0], [50.0, 60.0], [35.0, 80.0], [65.0, 80.0]]])
            >>> CELEBA5.distance(points, np.ones((1, 5), bool))
            array([40.])
        """
        name = name or self.normaliser
        if name in ("box", "diagonal"):
            box = tight_box(points, labelled) if own_box is None or len(self) > 1 else own_box
            box = box.astype(np.float64)
            size = np.nan_to_num(box[:, 2:] - box[:, :2])
            distance = np.sqrt(size.prod(-1)) if name == "box" else np.hypot(*size.T)
        elif name in self.distances:
            a, b = (list(group) for group in self.distances[name])
            ends = (np.asarray(points[:, group], np.float64).mean(1) for group in (a, b))
            distance = np.linalg.norm(np.subtract(*ends), axis=-1)
            distance = np.where(labelled[:, [*a, *b]].all(1), distance, np.nan)
        else:
            raise UserError(f"scheme {self.name} has no normaliser '{name}'{nearest(name, self.normalisers)}")
        return np.where(distance > 0, distance, np.nan)

    def reduce(self, values: Any, to: str) -> Any:
        """Reduce points (or flags) of this scheme to those of a smaller one.

        Args:
            values: (..., K, 2) points, or (..., K) bool flags such as `labelled`; numpy or torch.
            to: the name of the smaller scheme, or this scheme's own.

        Returns:
            (..., L, 2) the means of the groups; for flags (..., L), true where the whole group is.

        Raises:
            UserError: there is no reduction to `to`.

        Example:
            >>> IBUG68.reduce(np.zeros((7, 68, 2)), "celeba5").shape
            (7, 5, 2)
        """
        if to == self.name:
            return values
        if to not in self.reductions:
            raise UserError(f"scheme {self.name} does not reduce to '{to}'{nearest(to, self.reductions)}")
        groups = [list(group) for group in self.reductions[to]]
        if "bool" in str(values.dtype):
            return stack([values[..., group].all(-1) for group in groups], -1)
        return stack([values[..., group, :].mean(-2) for group in groups], -2)

    def plain(self) -> dict[str, Any]:
        """Give the scheme as text, lists and dicts with points by name, the form that files and checkpoints hold."""

        def named(groups: Iterable[Group]) -> list[list[str]]:
            return [[self.names[i] for i in group] for group in groups]

        return {
            "name": self.name,
            "names": list(self.names),
            "pairs": named(self.pairs),
            "regions": dict(zip(self.regions, named(self.regions.values()), strict=True)),
            "distances": {name: named(ends) for name, ends in self.distances.items()},
            "normaliser": self.normaliser,
            "reductions": {to: named(groups) for to, groups in self.reductions.items()},
        }


def span(first: int, last: int) -> Group:
    """Give the indices from `first` to `last`, both included.

    Example:
        >>> span(3, 5)
        (3, 4, 5)
    """
    return tuple(range(first, last + 1))


_MIRROR_68 = {
    "jaw": [(i, 16 - i) for i in range(8)],
    "brows": [(i, 43 - i) for i in range(17, 22)],
    "nose": [(31, 35), (32, 34)],
    "eyes": [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)],
    "mouth": [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)],
}

_REGIONS_68: dict[str, Group] = {
    "jaw": span(0, 16), "right_brow": span(17, 21), "left_brow": span(22, 26),
    "nose": span(27, 35), "right_eye": span(36, 41), "left_eye": span(42, 47),
    "outer_lip": span(48, 59), "inner_lip": span(60, 67),
}  # fmt: skip

_TO_15: tuple[Group, ...] = (
    span(42, 47), span(36, 41), (42,), (45,), (39,), (36,), (22,), (26,), (21,), (17,), (30,), (54,), (48,), (51,),
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
    regions={"eyes": span(0, 5), "brows": span(6, 9), "nose": (10,), "mouth": span(11, 14)},
    distances={"interpupil": ((0,), (1,)), "interocular": ((3,), (5,))},
    normaliser="interpupil",
    reductions={"celeba5": tuple((i,) for i in _FROM_15_TO_5)},
)  # fmt: skip

IBUG68 = Scheme(
    name="ibug68",
    names=tuple(f"{region}_{i - group[0]}" for region, group in _REGIONS_68.items() for i in group),
    pairs=tuple(pair for pairs in _MIRROR_68.values() for pair in pairs),
    regions=_REGIONS_68,
    distances={"interocular": ((36,), (45,)), "interpupil": (span(36, 41), span(42, 47))},
    normaliser="interocular",
    reductions={"kaggle15": _TO_15, "celeba5": tuple(_TO_15[i] for i in _FROM_15_TO_5)},
)

_MIRROR_76 = {
    "jaw": [(i, 14 - i) for i in range(7)],
    "brows": [(i, i + 6) for i in range(15, 21)],
    "eyes": [*((i, i + 5) for i in range(27, 32)), *((i, i + 4) for i in range(68, 72))],
    "nose": [*((i, 82 - i) for i in range(37, 41)), (46, 47)],
    "mouth": [*((i, 102 - i) for i in range(48, 51)), (55, 59), (56, 58), (60, 62), (63, 65)],
}

_REGIONS_76: dict[str, Group] = {
    "jaw": span(0, 14), "left_brow": span(15, 20), "right_brow": span(21, 26),
    "right_eye": (*span(27, 31), *span(68, 71)), "left_eye": (*span(32, 36), *span(72, 75)),
    "nose": (*span(37, 47), 67), "outer_lip": span(48, 59), "inner_lip": span(60, 66),
}  # fmt: skip

# 31 and 36 are the eyes' own centres.
_76_TO_15: tuple[Group, ...] = tuple((i,) for i in (36, 31, 34, 32, 29, 27, 18, 15, 24, 21, 67, 54, 48, 51, 57))

MUCT76 = Scheme(
    name="muct76",
    names=tuple(f"{region}_{group.index(i)}" for i in range(76) for region, group in _REGIONS_76.items() if i in group),
    pairs=tuple(pair for pairs in _MIRROR_76.values() for pair in pairs),
    regions=_REGIONS_76,
    distances={"interpupil": ((31,), (36,)), "interocular": ((27,), (32,))},
    normaliser="interpupil",
    reductions={"kaggle15": _76_TO_15, "celeba5": tuple(_76_TO_15[i] for i in _FROM_15_TO_5)},
)

_MIRROR_98 = {
    "jaw": [(i, 32 - i) for i in range(16)],
    "brows": [*((i, 79 - i) for i in range(33, 38)), *((i, 88 - i) for i in range(38, 42))],
    "nose": [(55, 59), (56, 58)],
    "eyes": [*((i, 132 - i) for i in range(60, 65)), (65, 75), (66, 74), (67, 73), (96, 97)],
    "mouth": [(76, 82), (77, 81), (78, 80), (83, 87), (84, 86), (88, 92), (89, 91), (93, 95)],
}

_REGIONS_98: dict[str, Group] = {
    "jaw": span(0, 32), "right_brow": span(33, 41), "left_brow": span(42, 50), "nose": span(51, 59),
    "right_eye": (*span(60, 67), 96), "left_eye": (*span(68, 75), 97),
    "outer_lip": span(76, 87), "inner_lip": span(88, 95),
}  # fmt: skip

# Every other point of the jaw, the brows' upper edges, and the eyes without the middles of their lids.
_98_TO_68 = (
    *range(0, 33, 2), *span(33, 37), *span(42, 46), *span(51, 59), 60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75,
    *span(76, 95),
)  # fmt: skip

# 96 and 97 are the pupils, so that `interpupil` stays what it is.
_98_TO_15: tuple[Group, ...] = tuple((i,) for i in (97, 96, 68, 72, 64, 60, 42, 46, 37, 33, 54, 82, 76, 79, 85))


def _numbered(
    name: str, regions: Mapping[str, Group], mirror: Mapping[str, list[tuple[int, int]]], corners: tuple[int, int],
    to_68: tuple[int, ...], to_15: tuple[Group, ...],
) -> Scheme:  # fmt: skip
    """Return a scheme whose points are named by region and number, but for the pupils, which are last."""
    count = sum(len(group) for group in regions.values())
    named = (f"{region}_{i - group[0]}" for region, group in regions.items() for i in group if i < count - 2)
    return Scheme(
        name=name,
        names=(*named, "right_pupil", "left_pupil"),
        pairs=tuple(pair for pairs in mirror.values() for pair in pairs),
        regions=regions,
        distances={"interocular": ((corners[0],), (corners[1],)), "interpupil": ((count - 2,), (count - 1,))},
        normaliser="interocular",
        reductions={
            "ibug68": tuple((i,) for i in to_68),
            "kaggle15": to_15,
            "celeba5": tuple(to_15[i] for i in _FROM_15_TO_5),
        },
    )


WFLW98 = _numbered("wflw98", _REGIONS_98, _MIRROR_98, (60, 72), _98_TO_68, _98_TO_15)

_29_TO_15: tuple[Group, ...] = tuple((i,) for i in (17, 16, 11, 9, 10, 8, 3, 1, 2, 0, 20, 23, 22, 24, 27))

COFW29 = Scheme(
    name="cofw29",
    names=(
        "right_brow_outer", "left_brow_outer", "right_brow_inner", "left_brow_inner",
        "right_brow_top", "right_brow_bottom", "left_brow_top", "left_brow_bottom",
        "right_eye_outer", "left_eye_outer", "right_eye_inner", "left_eye_inner",
        "right_eye_top", "right_eye_bottom", "left_eye_top", "left_eye_bottom", "right_pupil", "left_pupil",
        "nose_right", "nose_left", "nose_tip", "nose_bottom", "mouth_right", "mouth_left",
        "upper_lip_top", "upper_lip_bottom", "lower_lip_top", "lower_lip_bottom", "chin",
    ),
    pairs=(
        (0, 1), (2, 3), (4, 6), (5, 7), (8, 9), (10, 11), (12, 14), (13, 15), (16, 17), (18, 19), (22, 23),
    ),
    regions={
        "right_brow": (0, 2, 4, 5), "left_brow": (1, 3, 6, 7),
        "right_eye": (8, 10, 12, 13, 16), "left_eye": (9, 11, 14, 15, 17),
        "nose": span(18, 21), "mouth": span(22, 27), "chin": (28,),
    },
    distances={"interocular": ((8,), (9,)), "interpupil": ((16,), (17,))},
    normaliser="interocular",
    reductions={"kaggle15": _29_TO_15, "celeba5": tuple(_29_TO_15[i] for i in _FROM_15_TO_5)},
)  # fmt: skip

AFLW19 = Scheme(
    name="aflw19",
    names=(
        "right_brow_outer", "right_brow_middle", "right_brow_inner",
        "left_brow_inner", "left_brow_middle", "left_brow_outer",
        "right_eye_outer", "right_eye", "right_eye_inner", "left_eye_inner", "left_eye", "left_eye_outer",
        "nose_right", "nose_tip", "nose_left", "mouth_right", "mouth", "mouth_left", "chin",
    ),
    pairs=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9), (12, 14), (15, 17)),
    regions={
        "right_brow": span(0, 2), "left_brow": span(3, 5), "right_eye": span(6, 8), "left_eye": span(9, 11),
        "nose": span(12, 14), "mouth": span(15, 17), "chin": (18,),
    },
    distances={"interocular": ((6,), (11,)), "interpupil": ((7,), (10,))},
    normaliser="box",  # in profile one eye has no label
    reductions={"celeba5": ((7,), (10,), (13,), (15,), (17,))},
)  # fmt: skip

_70_TO_15: tuple[Group, ...] = ((69,), (68,), *_TO_15[2:])

IBUG70 = Scheme(
    name="ibug70",
    names=(*IBUG68.names, "right_pupil", "left_pupil"),
    pairs=(*IBUG68.pairs, (68, 69)),
    regions={**_REGIONS_68, "right_eye": (*span(36, 41), 68), "left_eye": (*span(42, 47), 69)},
    distances={"interocular": ((36,), (45,)), "interpupil": ((68,), (69,))},
    normaliser="interocular",
    reductions={
        "ibug68": tuple((i,) for i in range(68)),
        "kaggle15": _70_TO_15,
        "celeba5": tuple(_70_TO_15[i] for i in _FROM_15_TO_5),
    },
)

# The jaw and the brows are numbered as in WFLW.
_MIRROR_106 = {
    "jaw": _MIRROR_98["jaw"],
    "brows": _MIRROR_98["brows"],
    "nose": [(i, 120 - i) for i in range(55, 60)],
    "eyes": [*((i, 145 - i) for i in range(66, 71)), *((i, 153 - i) for i in range(71, 74)), (74, 83), (104, 105)],
    "mouth": [(84, 90), (85, 89), (86, 88), (91, 95), (92, 94), (96, 100), (97, 99), (101, 103)],
}

_REGIONS_106: dict[str, Group] = {
    "jaw": span(0, 32), "right_brow": span(33, 41), "left_brow": span(42, 50), "nose": span(51, 65),
    "right_eye": (*span(66, 74), 104), "left_eye": (*span(75, 83), 105),
    "outer_lip": span(84, 95), "inner_lip": span(96, 103),
}  # fmt: skip

# Every other point of the jaw, the brows' upper edges, and the eyes without the middles of their lids.
_106_TO_68 = (
    *range(0, 33, 2), *span(33, 37), *span(42, 46), *span(51, 54), *span(58, 62), 66, 67, 69, 70, 71, 73, 75, 76, 78, 79, 80,
    82, *span(84, 103),
)  # fmt: skip

_106_TO_15: tuple[Group, ...] = tuple((i,) for i in (105, 104, 75, 79, 70, 66, 42, 46, 37, 33, 54, 90, 84, 87, 93))

LAPA106 = _numbered("lapa106", _REGIONS_106, _MIRROR_106, (66, 79), _106_TO_68, _106_TO_15)

SCHEMES = {
    scheme.name: scheme for scheme in (IBUG68, MUCT76, WFLW98, COFW29, AFLW19, LAPA106, IBUG70, KAGGLE15, CELEBA5)
}


def get_scheme(name: str) -> Scheme:
    """Find a built-in scheme by name.

    Raises:
        UserError: there is no such scheme.

    Example:
        >>> get_scheme("ibug68")
        Scheme(ibug68, 68 points)
    """
    if name not in SCHEMES:
        raise UserError(f"no landmark scheme '{name}'{nearest(name, SCHEMES)}")
    return SCHEMES[name]
