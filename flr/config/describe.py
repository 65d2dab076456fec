"""Describe types and documented keys in the words of help pages and error lines."""

import ast
import collections.abc
import enum
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

import flr

_SCALARS = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    type(None): "null",
    Any: "any value",
    Path: "path",
    list: "list",
    tuple: "list",
    dict: "mapping",
}
_BOUNDS = {Ge: ">= {0.ge}", Gt: "> {0.gt}", Le: "<= {0.le}", Lt: "< {0.lt}", MinLen: "of length >= {0.min_length}"}


def describe_type(hint: Any) -> str:
    """Name the values that a type accepts in YAML.

    >>> describe_type(Annotated[int, Ge(8)] | None)
    'integer >= 8 or null'
    >>> describe_type(Literal["mean", "sum"])
    'one of mean, sum'
    """
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        marks = [mark for mark in arguments[1:] if type(mark) in _BOUNDS]
        limits = " and ".join(_BOUNDS[type(mark)].format(mark) for mark in marks)
        return f"{describe_type(arguments[0])} {limits}".rstrip()
    if origin is Literal:
        values = ", ".join("null" if value is None else str(value) for value in arguments)
        return f"one of {values}" if len(arguments) > 1 else values
    if origin in (typing.Union, types.UnionType):
        return _describe_union(arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    if origin is collections.abc.Callable:
        return "class or function, named by _target_"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"[{', '.join(map(describe_type, arguments))}]"
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return f"mapping of {describe_type(arguments[0])} to {describe_type(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        return f"list of {describe_type(arguments[0])}"
    return str(getattr(hint, "__name__", hint))


def _describe_union(members: tuple[Any, ...]) -> str:
    """Join the members that YAML can express: of ``float | Tensor`` that is a number."""
    expressible = [member for member in members if not _is_object(member)] or members
    if {int, float} <= set(expressible):
        expressible = [member for member in expressible if member is not int]
    ordered = sorted(expressible, key=lambda member: member is type(None))
    return " or ".join(dict.fromkeys(map(describe_type, ordered)))


def _is_object(hint: Any) -> bool:
    return (
        isinstance(hint, type)
        and hint not in _SCALARS
        and not issubclass(hint, enum.Enum)
        and not typing.get_args(hint)
    )


# -- documentation -----------------------------------------------------------------------------------------------------


def split_docstring(text: str) -> tuple[str, str, dict[str, str]]:
    """Split a Google-style docstring.

    Returns:
        Its summary line, the paragraphs before the first section, and the name -> meaning of ``Attributes`` or ``Args``.
    """
    summary, _, rest = inspect.cleandoc(text).partition("\n")
    body, *sections = re.split(r"^(\w+):\n", rest, flags=re.MULTILINE)
    meanings: dict[str, str] = {}
    for name, section in zip(sections[::2], sections[1::2], strict=True):
        if name in ("Args", "Attributes"):
            entries = re.findall(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
            meanings |= {key: " ".join(text.split()) for keys, text in entries for key in keys.split(", ")}
    return summary, body.strip(), meanings


def document_target(target: str) -> dict[str, str]:
    """Read the meaning of the arguments of a class or function of flr from its source, without importing it.

    Returns:
        Argument -> meaning; empty for an object of another package.
    """
    *path, name = target.split(".")
    file = Path(flr.__file__).parent.parent.joinpath(*path).with_suffix(".py")
    if path[:1] != ["flr"] or not file.is_file():
        return {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return split_docstring(ast.get_docstring(node) or "")[2]
    return {}
