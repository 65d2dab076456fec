"""The data card: counts, faults, duplicates, and symmetry of a dataset."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from flr.data.boxes import ADD_BOXES, faces_by_image
from flr.data.crops import CropStore
from flr.data.findings import SHOWN, findings
from flr.data.images import Files
from flr.data.orientation import fault_of
from flr.data.table import FaceTable
from flr.files import write_json
from flr.landmarks.symmetry import describe_pairs, mirror_deviation

VERSION = 9  # of what a card holds; raise it when cards kept with their stores should be made anew
SPLITS = ("train", "val", "test", "unlabelled")
NEIGHBOURS = 8  # faces of one image that each is held against
ALIKE = 0.08  # distance of two thumbnails of one image, each of mean 0 and norm 1; two people are about 1 apart
DIRECTIONS = 12


def open_card(table: FaceTable, store: CropStore) -> dict[str, Any]:
    """The card of a table and its store; made once, then kept with the store."""
    split = hashlib.sha256("".join(table.split.tolist()).encode()).hexdigest()[:8]
    path = store.folder / f"card-{VERSION}-{split}.json"
    if not path.is_file():
        write_json(path, make_card(table, store))
    return json.loads(path.read_text(encoding="utf-8"))


def make_card(table: FaceTable, store: CropStore) -> dict[str, Any]:
    """See `open_card`.

    Args:
        table: N faces.
        store: theirs.

    Returns:
        Plain values, by what they tell.
    """
    seen, names = store.image_info, table.scheme.names
    labels = table.labelled & (table.split != "unlabelled")[:, None]
    box = table.tight if len(table.scheme) > 1 else table.box
    side = np.nan_to_num(box[:, 2:] - box[:, :2])
    limit = np.stack([seen["width"], seen["height"]], -1)[:, None] - 0.5
    outside = ((table.points < -0.5) | (table.points > limit)).any(-1) & labels
    card: dict[str, Any] = {
        "form": table.form,
        "scheme": table.scheme.name,
        "fingerprint": table.fingerprint(),
        "faces": by_split(table.split),
        "subsets": {name: by_split(table.split[mask]) for name, mask in table.subsets.items()},
        "pictures": len(np.unique(table.image)),
        "picture_size": {"width": spread(seen["width"]), "height": spread(seen["height"])},
        "turned": turned(table, seen),
        "face_side": spread(side[labels.any(1)].max(1)),
        "not_labelled": dict(
            zip(names, (~labels & (table.split != "unlabelled")[:, None]).sum(0).tolist(), strict=True)
        ),
        "never_trained": never_trained(table),
        "hidden": dict(zip(names, (labels & ~table.visible).sum(0).tolist(), strict=True)),
        "outside": {"points": int(outside.sum()), "faces": int(outside.any(1).sum())},
        "left_out": [str(fault) for fault in table.faults],
        "not_detected": dict(store.missed),
        "duplicates": duplicates(table, store),
        "identities": identities(table),
        "symmetry": symmetry(table, labels & ~lying(table, seen)[:, None]),
        "undefined": undefined(table),
    }
    without = np.isnan(table.normaliser()) & np.isin(table.split, ("val", "test"))
    twins = card["duplicates"]
    card["examples"] = {
        "same image": [
            str(table.name[table.image == name][0]) for group in twins["same_picture"]["examples"] for name in group
        ],
        "labelled twice": [name for pair in twins["labelled_twice"]["examples"] for name in pair],
        "look alike": [name for pair in twins["look_alike"]["examples"] for name in pair],
        "points outside": table.name[outside.any(1)][:SHOWN].tolist(),
        "no normaliser": table.name[without][:SHOWN].tolist(),
        "stored turned": table.name[seen["orientation"] > 1][:SHOWN].tolist(),
    }
    card["findings"] = findings(card)
    return card


def by_split(split: np.ndarray) -> dict[str, int]:
    """Faces of each split that has any."""
    counts = {name: int((split == name).sum()) for name in SPLITS}
    return {name: count for name, count in counts.items() if count}


def turned(table: FaceTable, seen: np.ndarray) -> dict[str, Any]:
    """Count the images that are stored turned, and those whose size is not the one that the label file states."""
    files = table.read_image
    if not isinstance(files, Files):
        return {"images": 0, "read": "", "other_size": 0, "example": ""}
    _, first = np.unique(table.image, return_index=True)
    other = []
    for i in first.tolist():
        name, size = str(table.image[i]), (int(seen["width"][i]), int(seen["height"][i]))
        if files.sizes.get(name, size) != size:
            other.append(f"{name} ({size[0]} x {size[1]}, stated {files.sizes[name][0]} x {files.sizes[name][1]})")
    count = int((seen["orientation"][first] > 1).sum())
    read = "as labels of upright images" if files.upright else "as labels of the stored images"
    if files.sizes:
        read = f"by the width and height of their label file, else {read}"
    return {"images": count, "read": read, "other_size": len(other), "example": other[0] if other else ""}


def lying(table: FaceTable, seen: np.ndarray) -> np.ndarray:
    """Return (N,) bool, the faces whose image is stored turned and read as stored, so that the head is not upright."""
    turned = seen["orientation"] > 1
    if isinstance(table.read_image, Files):
        turned[turned] = [not table.read_image.turns(name) for name in table.image[turned].tolist()]
    return turned


def never_trained(table: FaceTable) -> list[str]:
    """Return the names of the points that have no label in the training split."""
    labelled = table.labelled[table.split == "train"]
    return [
        name for name, known in zip(table.scheme.names, labelled.any(0), strict=True) if len(labelled) and not known
    ]


def spread(values: np.ndarray) -> dict[str, float]:
    """Least, 5th percentile, median, 95th and largest; empty where there are none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    words, shares = ("min", "p5", "median", "p95", "max"), (0, 5, 50, 95, 100)
    return {word: round(float(value), 2) for word, value in zip(words, np.percentile(values, shares), strict=True)}


def duplicates(table: FaceTable, store: CropStore) -> dict[str, Any]:
    """Find images that occur more than once, and faces.

    Images are the same where their pixels are. Faces are the same where they are in one such image and their
    boxes nearly agree (labelled twice), or where their crops look alike (see `look_alikes`): so a copy that was scaled
    or saved anew is found, one that was mirrored or turned is not.
    """
    image_rows = [(rows, table.split[rows]) for rows in faces_by_image(table)]
    digest = store.image_info["digest"]
    same = groups_of(np.array([digest[rows[0]] for rows, _ in image_rows]))
    across = [group for group in same if len(set(np.concatenate([image_rows[u][1] for u in group]).tolist())) > 1]
    shown = (across or same)[:SHOWN]
    examples = [[str(table.image[image_rows[u][0][0]]) for u in group] for group in shown]
    twice: list[tuple[int, int]] = []
    box = table.tight
    for group in groups_of(digest):
        group = group[np.argsort(box[group, 0])]
        for step in range(1, min(len(group), NEIGHBOURS)):  # by their left edges, twins stand close
            first, second = group[:-step], group[step:]
            side = (box[first, 2:] - box[first, :2]).max(1).clip(1)
            close = np.abs(box[first] - box[second]).max(1) < 0.1 * side
            twice += zip(first[close].tolist(), second[close].tolist(), strict=True)
    alike = [pair for pair in look_alikes(store.image_info) if digest[pair[0]] != digest[pair[1]]]

    def pairs(found: Sequence[tuple[int, int]]) -> dict[str, Any]:
        crossing = [(a, b) for a, b in found if table.split[a] != table.split[b]]
        shown = [[str(table.name[a]), str(table.name[b])] for a, b in (crossing or list(found))[:SHOWN]]
        return {"pairs": len(found), "across_splits": len(crossing), "examples": shown}

    return {
        "same_picture": {"groups": len(same), "across_splits": len(across), "examples": examples},
        "labelled_twice": pairs(twice),
        "look_alike": pairs(alike),
    }


def look_alikes(image_info: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows whose crops' thumbnails nearly agree, whatever their brightness and contrast."""
    looks = image_info["thumbnail"].astype(np.float32)
    looks -= looks.mean(1, keepdims=True)
    looks /= np.linalg.norm(looks, axis=1, keepdims=True).clip(1e-3)
    _, rows = np.unique(image_info["digest"], return_index=True)  # equal images are found by that
    rows = rows[np.abs(looks[rows]).max(1) > 0]  # a plain image looks like any other
    if len(rows) < 2:
        return []
    # Neighbours in the few directions of most spread can only be more; those are then held against all pixels.
    _, axes = np.linalg.eigh(np.cov(looks[rows].T))
    near = cKDTree(looks[rows] @ axes[:, -DIRECTIONS:]).query_pairs(ALIKE, output_type="ndarray")
    close = np.linalg.norm(looks[rows[near[:, 0]]] - looks[rows[near[:, 1]]], axis=1) < ALIKE
    return sorted((min(a, b), max(a, b)) for a, b in rows[near[close]].tolist())


def groups_of(values: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each value that occurs more than once."""
    order = np.argsort(values, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(values[order].astype(np.uint64)) != 0) + 1)
    return [part for part in parts if len(part) > 1]


def identities(table: FaceTable) -> dict[str, Any]:
    """Find groups that are in training and in another part too, which makes the errors of that part too small."""
    training = np.unique(table.group[table.split == "train"])
    crossing = {}
    for part in ("val", "test"):
        inside = table.split == part
        known = inside & np.isin(table.group, training)
        if known.any():
            groups = np.unique(table.group[known])
            crossing[part] = {
                "faces": int(known.sum()), "of": int(inside.sum()), "groups": len(groups),
                "examples": groups[:SHOWN].tolist(),
            }  # fmt: skip
    return {"groups": len(np.unique(table.group)), "also_in_training": crossing}


def symmetry(table: FaceTable, labels: np.ndarray) -> dict[str, Any]:
    """The mean face against its own mirror image: about .04 with the right pairs, near 1 with wrong ones."""
    mean = mean_face(table.points, labels)
    away = mirror_deviation(mean, table.scheme.mirror_order)
    found: dict[str, Any] = {"faces": int(labels.any(1).sum()), "paired": bool(table.scheme.pairs)}
    if not np.isfinite(away).any():
        return found | {"deviation": None, "point": None, "fault": None, "pairs": ""}
    worst = int(np.nanargmax(away))
    return found | {
        "deviation": round(float(away[worst]), 4), "point": table.scheme.names[worst], "fault": fault_of(mean, table.scheme),
        "pairs": describe_pairs(mean, table.scheme),
    }  # fmt: skip


def mean_face(points: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """(K, 2) float64: the mean of faces (N, K, 2) in units of their boxes, about their midlines; NaN where never labelled.

    A face with missing points has another box, so only those with the most points are taken.
    """
    count = labelled.sum(1)
    whole = count == count.max(initial=1)
    known = labelled[whole][..., None]
    values = np.where(known, points[whole], 0.0).astype(np.float64)
    low = np.where(known, points[whole], np.inf).min(1, initial=np.inf)
    high = np.where(known, points[whole], -np.inf).max(1, initial=-np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (values - ((low + high) / 2)[:, None]) / (high - low).max(1)[:, None, None]
        return np.where(known, values, 0.0).sum(0) / known.sum(0)


def undefined(table: FaceTable) -> dict[str, tuple[int, int]]:
    """Count the faces without a normaliser among those of a split or subset, where there are any."""
    without = np.isnan(table.normaliser())
    parts = {split: table.split == split for split in ("val", "test")}
    parts |= {f"test {name}": mask & parts["test"] for name, mask in table.subsets.items()}
    return {name: (int(without[mask].sum()), int(mask.sum())) for name, mask in parts.items() if without[mask].any()}


def undefined_normaliser(table: FaceTable, rows: np.ndarray, split: str) -> str:
    """Return why no face (n,) of a split has a normaliser, and which normaliser these faces do have."""
    scheme, labelled = table.scheme, table.labelled[rows]
    needed = [i for group in scheme.distances.get(scheme.normaliser, ()) for i in group]
    missing = [scheme.names[i] for i in needed if not labelled[:, i].any()]
    why = f"{', '.join(missing[:SHOWN])} has no label there" if missing else "no face there has all the points it needs"
    defined = [name for name in scheme.normalisers if np.isfinite(table.normaliser(name)[rows]).all()]
    fix = (
        f"label it, or set normaliser: {' or '.join(defined)} in the scheme"
        if defined
        else (ADD_BOXES if len(scheme) == 1 else "label more points, or use a scheme of more points")
    )
    return f"the normaliser {scheme.normaliser} of all {len(rows)} {split} faces is undefined: {why}; {fix}"
