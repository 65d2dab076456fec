"""The faces of COCO-WholeBody (Jin et al. 2020, https://github.com/jin-s13/COCO-WholeBody): 68 points.

The root contains ``annotations/coco_wholebody_{train,val}_v1.0.json`` and COCO's images, ``train2017/`` and ``val2017/``. A
person with ``face_valid`` has ``face_box``, left, top, width and height, and ``face_kpts``, 68 times x, y and v: 0 for a point
without a label, 1 for a hidden one, 2 for a visible one. Numbers are read unchanged. The published validation part is the
test part here, and the validation faces are held out from training.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flr.data.formats.coco import load_json, numbers
from flr.data.formats.records import BOX_FORMS, note_skipped
from flr.data.readers.published import require
from flr.data.table import FaceTable, make_table
from flr.errors import UserError
from flr.landmarks.scheme import IBUG68

SITE = "https://github.com/jin-s13/COCO-WholeBody"
FILES = {"train": "annotations/coco_wholebody_train_v1.0.json", "test": "annotations/coco_wholebody_val_v1.0.json"}
FOLDERS = {"train": "train2017", "test": "val2017"}


def read(root: Path, strict: bool = False, smallest: float = 16.0) -> FaceTable:
    """Read the valid faces. A face is named by its image and the id of its person; `group` is the image.

    `form` is ``wholebody``, with `smallest` where that is not 16: ``wholebody-0``.

    Args:
        root: Folder of ``annotations/``, ``train2017/`` and ``val2017/``.
        strict: Stop at the first fault of a face.
        smallest: Faces whose box is narrower or lower than this, in pixels, are skipped and counted.
    """
    get = f"get COCO-WholeBody ({SITE}) and COCO's images of 2017, and unpack them so that this folder holds annotations/ and val2017/"
    require(root, list(FILES.values()), get)
    faces = [
        face
        for split, place in FILES.items()
        if (root / place).exists()
        for face in _faces(root / place, split, smallest)
    ]
    images, splits, names, marks, boxes = zip(*faces, strict=True) if faces else [()] * 5
    values, box = np.array(marks).reshape(-1, len(IBUG68), 3), np.array(boxes).reshape(-1, 4)
    flags = values[..., 2]
    form = "wholebody" if smallest == 16 else f"wholebody-{smallest:g}"
    return make_table(
        form, IBUG68, root, images, np.where(flags[..., None] > 0, values[..., :2], np.nan), splits, published=(values, box),
        strict=strict, labelled=flags > 0, visible=flags > 1, box=BOX_FORMS["corner and size"](box), group=images, name=names,
    )  # fmt: skip


def _faces(path: Path, split: str, smallest: float) -> Iterator[tuple[str, str, str, np.ndarray, np.ndarray]]:
    """Yield the image, the split, the name, the keypoints (68, 3) and the box (4,) of each valid face of a file."""
    skipped = 0
    try:
        document = load_json(path)
        files = {image["id"]: str(image["file_name"]) for image in document["images"]}
        for person in document["annotations"]:
            if not person.get("face_valid"):
                continue
            box = numbers(person["face_box"], 4, "face_box")
            if box[2:].min() < smallest:
                skipped += 1
                continue
            image = f"{FOLDERS[split]}/{files[person['image_id']]}"
            marks = numbers(person["face_kpts"], 3 * len(IBUG68), "face_kpts").reshape(-1, 3)
            yield image, split, f"{image}#{person['id']}", marks, box
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not COCO-WholeBody's ({error!r:.80}); fetch it again") from error
    note_skipped(path, skipped, f"faces under {smallest:g} pixels; data.reader.smallest=0 keeps them")
