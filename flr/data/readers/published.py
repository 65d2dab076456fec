"""What readers of published datasets share: the error where a dataset is missing, and the counts of an incomplete copy."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from flr.data.table import FaceTable
from flr.errors import UserError


def require(root: Path, places: Sequence[str], get: str, every: bool = False) -> None:
    """Check that one of `places` exists under the root of a dataset, or every one; `get` says how to obtain it.

    Raises:
        UserError: They do not exist.
    """
    missing = [place for place in places if not os.path.lexists(root / place)]
    if len(missing) > (0 if every else len(places) - 1):
        found = f"none of {', '.join(missing)} is in it" if root.is_dir() else "there is no such folder"
        raise UserError(f"{root}: {found}; {get}, and set data.root=DIR or the variable FLR_DATA")


def with_counts(table: FaceTable, official: Mapping[str, int]) -> FaceTable:
    """Append the number of faces of each split to a table's form, unless all are the official numbers."""
    counts = {split: int((table.split == split).sum()) for split in official}
    if counts == official:
        return table
    text = "|".join(f"{split}:{count}" for split, count in counts.items())
    return dataclasses.replace(table, form=f"{table.form}[{text}]")
