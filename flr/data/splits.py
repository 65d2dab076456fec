"""Validation is held out of the training part by group, so that one person or photo never stands on both sides."""

import dataclasses
import hashlib

import numpy as np

from flr.data.table import FaceTable
from flr.errors import UserError

SALT = "0/"  # part of every protocol: another salt holds out other faces


def hold_out(table: FaceTable, fraction: float) -> FaceTable:
    """Move whole groups from ``train`` to ``val`` until it holds `fraction` of the training faces.

    A table that already has a validation part keeps it. The choice is a function of the group names alone,
    so adding faces to the set does not reshuffle the others.

    Raises:
        UserError: a part would be left empty, or `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UserError(f"data.val_fraction={fraction} is not a share; set it between 0 and 1")
    if (table.split == "val").any():
        return table
    train = np.flatnonzero(table.split == "train")
    groups, member = np.unique(table.group[train], return_inverse=True)
    rank = np.argsort([hashlib.sha256(f"{SALT}{group}".encode()).digest() for group in groups])
    taken = np.cumsum(np.bincount(member, minlength=len(groups))[rank])
    held = rank[: int(np.searchsorted(taken, fraction * len(train))) + 1]
    split = table.split.astype("<U5")
    split[train[np.isin(member, held)]] = "val"
    if not (split == "train").any() or not (split == "val").any():
        raise UserError(
            f"{table.form}: {len(train)} training faces in {len(groups)} group(s) cannot give both a training and a "
            f"validation part of {fraction:g}; add faces or set data.val_fraction"
        )
    return dataclasses.replace(table, split=split)
