"""Validation is held out of the training part by group, so that one person or photo is never on both sides."""

import dataclasses
import hashlib

import numpy as np

from flr.data.table import FaceTable
from flr.errors import UserError

SALTS = {"val": "0/", "test": "test/"}  # part of every protocol: another salt holds out other faces


def hold_out(table: FaceTable, fraction: float, part: str = "val") -> FaceTable:
    """Move whole groups from ``train`` to `part` until it holds `fraction` of the training faces.

    A table that already has that part, or has nothing to train on, is left as it is. The choice is a function of the group names alone, so adding faces to
    the set does not reshuffle the others.

    Raises:
        UserError: a part would be left empty, or `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UserError(f"data.{part}_fraction={fraction} is not a share; set it between 0 and 1")
    train = np.flatnonzero(table.split == "train")
    if (table.split == part).any() or not len(train):
        return table
    groups, member = np.unique(table.group[train], return_inverse=True)
    salt = SALTS[part]
    rank = np.argsort([hashlib.sha256(f"{salt}{group}".encode(errors="surrogateescape")).digest() for group in groups])
    taken = np.cumsum(np.bincount(member, minlength=len(groups))[rank])
    held = rank[: int(np.searchsorted(taken, fraction * len(train))) + 1]
    split = table.split.astype("<U10")
    split[train[np.isin(member, held)]] = part
    if not (split == "train").any() or not (split == part).any():
        raise UserError(
            f"{table.form}: {len(train)} training faces in {len(groups)} group(s) cannot give both a training and a "
            f"{part} part of {fraction:g}; add faces or set data.{part}_fraction"
        )
    return dataclasses.replace(table, split=split)
