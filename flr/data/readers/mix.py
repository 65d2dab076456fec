"""Several datasets as one, through the reductions of their schemes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, Le

from flr.data.splits import hold_out
from flr.data.table import COLUMNS, UNLABELLED, FaceTable
from flr.errors import UserError, nearest
from flr.landmarks.scheme import get_scheme


@dataclass(frozen=True)
class Member:
    """One of the sets.

    Attributes:
        reader: ``reader(root=..., strict=...) -> FaceTable``.
        root: where it lies.
        weight: how often each of its training faces is seen in an epoch, on average.
        val_fraction: the share of its training faces that is held out where it has no validation part.
        test_fraction: as much where it has no test part.
        parts: which of its splits are used, ``train``, ``val`` or ``test``; null uses all. So one set can teach and
            another test.
    """

    reader: Callable[..., FaceTable]
    root: str
    weight: Annotated[float, Gt(0), Le(1000)] = 1.0
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    parts: Sequence[Literal["train", "val", "test"]] | None = None


def read(root: Path, strict: bool, sets: Mapping[str, Member], use: Sequence[str], scheme: str) -> FaceTable:
    """The faces of several sets, each with its own splits.

    A face of `ibug` is named ``ibug/NAME``, and so are its image and its group. Each set is a subset under its name,
    and its own subsets are ``ibug/SUBSET``: results come by set as well as over all.

    Args:
        root: not used; each set has its own.
        strict: stop at the first fault of a face.
        sets: name -> the set, of all that can be named.
        use: the names of those to mix.
        scheme: what all are reduced to.
    """
    if not use or len(set(use)) < len(use):
        raise UserError(f"data.reader.use={list(use)}: name each set once, such as [ibug,muct]")
    tables = {}
    for name in use:
        if name not in sets:
            raise UserError(f"data.reader.use: no set '{name}'{nearest(name, sets)}")
        member = sets[name]
        table = member.reader(root=Path(member.root).expanduser(), strict=strict)
        table = table.take(table.split != UNLABELLED).reduce(scheme, get_scheme(scheme))
        table = hold_out(hold_out(table, member.test_fraction, "test"), member.val_fraction)
        if member.parts is not None:
            table = table.take(np.isin(table.split, list(member.parts)))
        tables[name] = dataclasses.replace(table, weight=np.full(len(table), member.weight))
    return join(tables)


def join(tables: Mapping[str, FaceTable]) -> FaceTable:
    """Tables of one scheme as one (see `read`)."""
    sizes = [len(table) for table in tables.values()]
    columns: dict[str, Any] = {}
    for column in (*COLUMNS, "weight"):
        parts = [getattr(table, column) for table in tables.values()]
        if column in ("name", "image", "group"):
            parts = [np.char.add(f"{name}/", part) for name, part in zip(tables, parts, strict=True)]
        columns[column] = np.concatenate(parts)
    subsets, start = {}, 0
    for (name, table), size in zip(tables.items(), sizes, strict=True):
        own = {name: np.ones(size, bool)} | {f"{name}/{subset}": mask for subset, mask in table.subsets.items()}
        for subset, mask in own.items():
            subsets[subset] = np.zeros(sum(sizes), bool)
            subsets[subset][start : start + size] = mask
        start += size
    if (columns["weight"] == 1).all():
        columns["weight"] = None

    def read_image(image: str) -> np.ndarray:
        name, _, own = image.partition("/")
        return tables[name].read_image(own)

    first = next(iter(tables.values()))
    return FaceTable(
        form=f"mix[{'+'.join(table.form for table in tables.values())}]",
        scheme=first.scheme,
        reductions=tuple(f"{name}:{step}" for name, table in tables.items() for step in table.reductions),
        subsets=subsets,
        read_image=read_image,
        faults=[
            dataclasses.replace(fault, face=f"{name}/{fault.face}")
            for name, table in tables.items() for fault in table.faults
        ],
        **columns,
    )  # fmt: skip
