"""Write the help page of a command from its schema, its config and the docstrings of what the config builds."""

import re
import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flr.config.compose import CONF, spell
from flr.config.describe import describe_type, document_target, split_docstring
from flr.config.schema import COMMANDS


def help_page(command: str, cfg: DictConfig) -> str:
    """Write the help page of a command.

    Args:
        command: A name of `COMMANDS`.
        cfg: Its composed config with the ``hydra`` node; the page shows its values and choices.
    """
    schema = COMMANDS[command]
    summary, body, _ = split_docstring(schema.__doc__ or "")
    selected = {
        str(group): choice
        for group, choice in cfg.hydra.runtime.choices.items()
        if not group.startswith("hydra/")
    }  # fmt: skip
    values = {str(key): value for key, value in OmegaConf.to_container(cfg).items() if key != "hydra"}  # type: ignore[union-attr]
    sections = [
        f"Usage: flr {command} {'[-m] ' if command == 'train' else ''}[--cfg job] [KEY=VALUE ...]",
        summary,
        *(_wrap(paragraph) for paragraph in body.split("\n\n") if paragraph),
        *_group_lines(selected),
        "\n".join(["Keys:", *_key_lines(schema, values, selected)]),
    ]
    for key, node in values.items():
        if isinstance(node, dict) and (lines := list(_node_lines(node, f"{key}."))):
            sections.append("\n".join([f"Keys of {key}:", *lines]))
    sections.append("--cfg job prints the config; --hydra-help describes the other options, which are Hydra's.")
    return "\n\n".join(sections)


def _group_lines(selected: Mapping[str, Any]) -> list[str]:
    if not selected:
        return []
    lines = ["Config groups (GROUP=CHOICE, * marks the choice in effect):"]
    width = max(map(len, selected)) + 2
    for group in sorted(selected):
        files = sorted((CONF / group).glob("**/*.yaml" if group == "experiment" else "*.yaml"))
        names = [str(file.relative_to(CONF / group).with_suffix("")) for file in files if file.stem != "base"]
        words = ", ".join("*" * (name == selected[group]) + name for name in names)
        lines.append(_wrap(words, f"  {group:{width}}", " " * (width + 2)))
    return ["\n".join(lines)]


def _key_lines(schema: type, values: Mapping[str, Any], selected: Mapping[str, Any]) -> Iterator[str]:
    meanings: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        meanings |= split_docstring(base.__doc__ or "")[2]
    for key, hint in typing.get_type_hints(schema, include_extras=True).items():
        value = values.get(key)
        kind = "config group" if key in selected else describe_type(hint)
        if key not in selected:
            optional = value is not None or hint is Any or type(None) in typing.get_args(hint)
            kind += f", default {spell(value)}" if optional else ", required"
        yield f"  {key}: {kind}"
        yield _wrap(meanings[key], "      ")


def _node_lines(node: Mapping[str, Any], prefix: str) -> Iterator[str]:
    target = str(node.get("_target_", ""))
    if target:
        yield f"  {prefix.rstrip('.')} builds {target}"
    meanings = document_target(target)
    for key, value in node.items():
        if isinstance(value, dict) and value:
            if key in meanings and "_target_" not in value:
                yield _wrap(meanings[key], f"  {prefix}{key}: ", "      ")
            yield from _node_lines(value, f"{prefix}{key}.")
        elif key not in ("_target_", "_partial_"):
            yield f"  {prefix}{key}={spell(value)}"
            if key in meanings:
                yield _wrap(meanings[key], "      ")


def _wrap(text: str, first: str = "", rest: str | None = None) -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    indent = first if rest is None else rest
    return textwrap.fill(
        " ".join(re.sub(r"\bNone\b", "null", text.replace("``", "")).split()), width, initial_indent=first, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
