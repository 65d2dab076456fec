"""Datasets of the field as their archives unpack, with drawn faces: a bright dot under each landmark, nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

from tests.fakes import ibug, wflw


def lapa_layout() -> np.ndarray:
    """(106, 2) a face in the order of LaPa, whose jaw, brows, eyes and mouth are those of WFLW."""
    face = wflw.layout()
    side = face[51] + (face[55] - face[51]) * np.array([[0.5], [0.8], [1.0]]) * [1.4, 1]
    nose = np.concatenate([side, face[55:60], (side * [-1, 1] + [2 * face[57, 0], 0])[::-1]])
    eyes = [face[60:68], face[60:68].mean(0, keepdims=True), face[68:76], face[68:76].mean(0, keepdims=True)]
    return np.concatenate([face[:55], nose, *eyes, face[76:96], face[96:98] + [0, 0.02]])


def aflw_layout() -> np.ndarray:
    """(19, 2) a face in the order of AFLW."""
    face = ibug.layout()
    groups = ([17], [19], [21], [22], [24], [26], [36], range(36, 42), [39], [42], range(42, 48), [45], [31], [30], [35],
              [48], [62, 66], [54], [8])  # fmt: skip
    return np.array([face[list(group)].mean(0) for group in groups])


def _save(root: Path, name: str, points: np.ndarray, seed: int, size: tuple[int, int] = ibug.SIZE) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    ibug.save(root / name, ibug.picture(points, size, seed=seed, grey=seed % 5 == 4))


def _text(points: np.ndarray) -> str:
    return "".join(f"{x:.6f} {y:.6f}\n" for x, y in points)


def write_lapa(root: Path, parts: Mapping[str, int] = {"train": 4, "val": 2, "test": 2}) -> None:
    size = (432, 384)
    for part, count in parts.items():
        for i, points in enumerate(ibug.faces(count, size, ibug.folder_seed(part, 0), lapa_layout())):
            _save(root / part, f"images/{1000 + i // 2}_{i % 2}.jpg", points, i, size)
            (root / part / "landmarks").mkdir(exist_ok=True)
            (root / part / f"landmarks/{1000 + i // 2}_{i % 2}.txt").write_text(f"106\n{_text(points)}")


def write_face_synthetics(root: Path, count: int = 8, crossed: bool = False) -> None:
    for i, points in enumerate(ibug.faces(count)):
        pupils = np.stack([points[36:42].mean(0), points[42:48].mean(0)])
        _save(root, f"{i:06d}.png", np.concatenate([points, pupils]), i)
        (root / f"{i:06d}_seg.png").write_bytes(b"not read")
        (root / f"{i:06d}_ldmks.txt").write_text(_text(np.concatenate([points, pupils[::-1] if crossed else pupils])))


def write_aflw(root: Path, count: int = 8) -> None:
    """Write a set whose second and third face share an image, whose fourth hides two points and whose order is reversed."""
    points = ibug.faces(count, frontal=aflw_layout())
    names = [f"{(0, 2, 3)[i % 3]}/image{i:05d}.jpg" for i in range(count)]
    images = [ibug.picture(face, seed=i) for i, face in enumerate(points)]
    points[2, :, 0] += ibug.SIZE[0]
    images[1:3], names[1:3] = [np.hstack(images[1:3])] * 2, [names[1]] * 2
    for name, image in zip(names, images, strict=True):
        path = root / "flickr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ibug.save(path, image)
    mask = np.ones((count, 19), np.uint8)
    mask[3, :2] = 0
    low, high = points.min(1), points.max(1)
    cells = np.empty((count, 1), object)
    cells[:, 0] = [np.array([name]) for name in names]
    savemat(root / "AFLWinfo_release.mat", {
        "nameList": cells, "data": points.transpose(0, 2, 1).reshape(count, 38), "mask_new": mask,
        "bbox": np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1), "ra": np.arange(count, 0, -1)[None],
    })  # fmt: skip


def write_w300lp(root: Path) -> None:
    for folder in ("AFW", "HELEN", "IBUG", "LFPW"):
        (root / "300W_LP" / "landmarks" / folder).mkdir(parents=True)
        for i, points in enumerate(ibug.faces(3, seed=ibug.folder_seed(folder, 0))):
            name = f"{folder}_134212_{1 + i // 2}_{i}" if folder != "LFPW" else f"LFPW_image_train_0001_{i}"
            _save(root / "300W_LP" / folder, f"{name}.jpg", points, i)
            arrays = {"pts_2d": points + 1.5, "pts_3d": points + 1}
            savemat(root / "300W_LP" / "landmarks" / folder / f"{name}_pts.mat", arrays)
    for i, points in enumerate(ibug.faces(3, seed=9)):
        _save(root / "AFLW2000", f"image{i:05d}.jpg", points, i)
        arrays = {
            "pt3d_68": np.c_[points + 1, np.zeros(68)].T,
            "Pose_Para": np.radians([[0.0, -45.0 * i, 0.0, 0, 0, 0, 1]]),
        }
        savemat(root / "AFLW2000" / f"image{i:05d}.mat", arrays)


def write_wholebody(root: Path, parts: Mapping[str, int] = {"train": 6, "val": 3}) -> None:
    """Write a set whose last face of each part is not valid and whose first is too small."""
    (root / "annotations").mkdir(parents=True)
    for part, count in parts.items():
        images, people = [], []
        for i, points in enumerate(ibug.faces(count, seed=ibug.folder_seed(part, 0))):
            name = f"{i:012d}.jpg"
            _save(root / f"{part}2017", name, points, i)
            flags = np.full(68, 2.0)
            flags[: 2 * (i % 2)] = [0, 1][: 2 * (i % 2)]
            low, side = points.min(0), np.ptp(points, 0) if i else np.array([9, 40])
            images.append({"id": 50 + i, "file_name": name, "width": ibug.SIZE[0], "height": ibug.SIZE[1]})
            people.append({
                "id": 900 + i, "image_id": 50 + i, "category_id": 1, "face_valid": i + 1 < count,
                "face_box": [*low.tolist(), *side.tolist()], "face_kpts": np.c_[points, flags].ravel().tolist(),
            })  # fmt: skip
        document = {"images": images, "annotations": people, "categories": []}
        (root / f"annotations/coco_wholebody_{part}_v1.0.json").write_text(json.dumps(document))


def write_vw300(root: Path, videos: Mapping[str, int] = {"001": 5, "114": 4, "410": 3}) -> None:
    for video, count in videos.items():
        (root / video / "annot").mkdir(parents=True)
        writer = cv2.VideoWriter(str(root / video / "vid.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, ibug.SIZE)
        for i, points in enumerate(ibug.faces(count, seed=ibug.folder_seed(video, 0))):
            writer.write(ibug.picture(points, seed=i))
            ibug.write_pts(root / video / "annot" / f"{i + 1:06d}.pts", points)
        writer.release()


def write_merl_rav(root: Path) -> None:
    """Write a set whose second face of each part has points that the face hides, and one that something else hides."""
    for pose in ("frontal", "left"):
        for part, count in (("trainset", 4), ("testset", 2)):
            for i, points in enumerate(ibug.faces(count, seed=ibug.folder_seed(pose + part, 0))):
                name = f"merl_rav_organized/{pose}/{part}/image{part[1]}{pose[0]}{i // 2:03d}_{i % 2 + 1}"
                _save(root, f"{name}.jpg", points, i)
                if i == 1:
                    points[:3], points[3] = -1, -points[3]
                ibug.write_pts(root / f"{name}.pts", points - 1)  # these files do not count from 1
