"""Schemes from plain values, as a scheme file or a checkpoint holds them: the inverse of `Scheme.plain`."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from flr.errors import UserError, nearest
from flr.landmarks.scheme import Group, Scheme, get_scheme

Value = TypeVar("Value")

_NAME = re.compile(r"[\w.-]+( [\w.-]+)*")  # the characters that metric names and CSV headers allow


def parse_scheme(values: Any) -> Scheme:
    """Build a scheme from plain values with the keys of `Scheme`.

    A point is given by its name or its index from 0; a group of one point needs no list. ``name``, ``regions``,
    ``distances`` and ``reductions`` are optional; a scheme without a name gets one from a hash of its content.

    Raises:
        UserError: a key is unknown, missing or invalid.

    Example:
        >>> scheme = parse_scheme({"names": ["a", "b", "c"], "pairs": [["a", "b"]], "normaliser": "box"})
        >>> scheme.mirror_order.tolist()
        [1, 0, 2]
    """
    _check_keys(values)
    names = _point_names(values["names"])
    place = {name: i for i, name in enumerate(names)}

    def distance(item: Any, where: str) -> tuple[Group, Group]:
        ends = [_group(end, place, where) for end in _list(item, where)]
        if len(ends) != 2 or set(ends[0]) == set(ends[1]):
            raise UserError(f"{where}: a distance has two different ends, [point, point] or [[points], [points]]")
        return ends[0], ends[1]

    def reduction(item: Any, where: str) -> tuple[Group, ...]:
        groups = tuple(_group(points, place, where) for points in _list(item, where))
        target = where.partition(".")[2]
        if len(groups) != len(get_scheme(target)):
            raise UserError(f"{where}: {len(groups)} groups, while {target} has {len(get_scheme(target))} points")
        return groups

    pairs = _pairs(values["pairs"], names, place)
    regions = _mapping(values, "regions", lambda item, where: _group(item, place, where))
    distances = _mapping(values, "distances", distance)
    reductions = _mapping(values, "reductions", reduction)
    normaliser = _normaliser(values["normaliser"], distances)
    return Scheme(_scheme_name(values, names, pairs), names, pairs, regions, distances, normaliser, reductions)


def point_of(word: Any, place: Mapping[str, int], where: str) -> int:
    """Find the index of a point.

    Args:
        word: the point's name, or its index.
        place: name -> index of every point.
        where: the key that holds `word`, for the error.

    Raises:
        UserError: there is no such point.
    """
    if isinstance(word, str) and word in place:
        return place[word]
    if type(word) is int or (isinstance(word, str) and word.isdecimal() and len(word) < 10):
        if 0 <= int(word) < len(place):
            return int(word)
        raise UserError(f"{where}: no point {int(word)}; they are counted from 0 to {len(place) - 1}")
    raise UserError(f"{where}: no point {word!r:.40}{nearest(str(word), place)}")


def _check_keys(values: Any) -> None:
    if not isinstance(values, Mapping):
        raise UserError("a scheme is a mapping with names, pairs and normaliser")
    keys = [each.name for each in fields(Scheme)]
    for key in values:
        if key not in keys:
            raise UserError(f"a scheme has no key '{key}'{nearest(key, keys)}")
    for key in ("names", "pairs", "normaliser"):
        if key not in values:
            raise UserError(
                f"{key} is missing; a scheme has names, pairs ([] where a mirror swaps no points) and normaliser"
            )


def _point_names(values: Any) -> tuple[str, ...]:
    names = tuple(_name(word, "names") for word in _list(values, "names"))
    if not names:
        raise UserError("names is empty; name a point")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"names: '{name}' is repeated")
        if name.isdecimal() or name.startswith("subset_"):  # would read as an index, or as a column of a table
            raise UserError(f"names: '{name}' cannot name a point; write p{name}")
    return names


def _pairs(values: Any, names: tuple[str, ...], place: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    pairs: list[tuple[int, int]] = []
    paired: set[int] = set()
    for i, item in enumerate(_list(values, "pairs")):
        pair = _group(item, place, f"pairs[{i}]")
        if len(pair) != 2:
            raise UserError(f"pairs[{i}]: a pair has two points, not {len(pair)}")
        for point in paired.intersection(pair):
            raise UserError(f"pairs[{i}]: '{names[point]}' is in another pair too")
        paired.update(pair)
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def _normaliser(value: Any, distances: Mapping[str, Any]) -> str:
    if {"box", "diagonal"} & distances.keys():
        raise UserError("distances: box and diagonal are normalisers of every scheme; choose another name")
    normalisers = [*distances, "box", "diagonal"]
    if value not in normalisers:
        raise UserError(f"normaliser: '{value}' is not a normaliser{nearest(value, normalisers)}")
    return str(value)


def _scheme_name(values: Mapping[str, Any], names: tuple[str, ...], pairs: tuple[tuple[int, int], ...]) -> str:
    content = hashlib.sha256(repr((names, list(pairs))).encode()).hexdigest()[:6]
    name = _name(values.get("name", f"points{len(names)}-{content}"), "name")
    if " " in name:
        raise UserError(f"name: '{name}' has a blank; protocol names contain it, so write {name.replace(' ', '_')}")
    return name


def _mapping(values: Mapping[str, Any], key: str, parse: Callable[[Any, str], Value]) -> dict[str, Value]:
    items = values.get(key, {})
    if not isinstance(items, Mapping):
        raise UserError(f"{key} is not a mapping of names")
    return {_name(name, key): parse(item, f"{key}.{name}") for name, item in items.items()}


def _group(words: Any, place: Mapping[str, int], where: str) -> Group:
    words = words if isinstance(words, list | tuple) else [words]
    group = tuple(point_of(word, place, where) for word in words)
    if not group:
        raise UserError(f"{where}: no point is named")
    if len(set(group)) < len(group):
        raise UserError(f"{where}: a point is repeated")
    return group


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where} is not a list")
    return list(value)


def _name(word: Any, where: str) -> str:
    if not isinstance(word, str) or len(word) > 100 or not _NAME.fullmatch(word) or word in (".", ".."):
        raise UserError(f"{where}: {word!r:.40} is not a name; use letters, digits, _ - . and single blanks")
    return word
