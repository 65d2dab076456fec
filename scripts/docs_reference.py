"""Write the reference pages of the documentation site: commands, config keys and models."""

import importlib
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flr.config.compose import CONF, compose_command, spell
from flr.config.describe import describe_type, document_target, split_docstring
from flr.config.schema import COMMANDS, Train
from scripts.docs_tables import markdown

MODELS = Path(__file__).parent.parent / "flr" / "models"
GROUPS = {  # group -> the heading's explanation, where the schema of flr train has none
    "detector": "Face detector of `flr predict` and `flr app`.",
    "effect": "Effects on the faces of `flr predict` and `flr app`; `effect=[NAME, NAME]` selects several.",
    "experiment": "A whole recipe: choices of other groups and values of keys.",
    "sweep": "A preset of `flr train -m`; it needs no `-m`.",
    "debug": "Settings that check a setup quickly.",
    "hydra/launcher": "Where the jobs of a sweep run.",
    "tune": "What `flr tune` searches.",
    "tune/sampler": "Optuna sampler.",
    "tune/pruner": "Optuna pruner.",
}


def pages() -> dict[str, str]:
    """Write each generated page, by its place on the site."""
    return {"reference/commands.md": commands(), "reference/config.md": config(), "reference/models.md": models()}


def meanings(schema: type) -> dict[str, str]:
    """Collect the meaning of each key of a command's schema and of the schemas that it extends."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        found |= split_docstring(base.__doc__ or "")[2]
    return found


def _cell(text: str) -> str:
    return re.sub(r"``([^`]*)``", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def _code(value: Any) -> str:
    return f"`{_cell(spell(value))}`"


def commands() -> str:
    """Write the page of all commands."""
    parts = [
        "# Commands\n",
        "`flr COMMAND KEY=VALUE ...` is the same as `python -m flr.COMMAND KEY=VALUE ...`. `flr COMMAND --help` prints "
        "what this page shows, with the values in effect; `--cfg job` prints the config without running anything.\n",
        "A config group selects a file of `conf/GROUP/`; see [Configuration](config.md).\n",
    ]
    for command, schema in COMMANDS.items():
        summary, body, _ = split_docstring(schema.__doc__ or "")
        cfg = compose_command(command, [])
        values = {str(k): v for k, v in OmegaConf.to_container(cfg).items() if k != "hydra"}  # type: ignore[union-attr]
        groups = set(cfg.hydra.runtime.choices)
        rows = []
        for key, hint in typing.get_type_hints(schema, include_extras=True).items():
            kind, default = describe_type(hint), _code(values.get(key))
            if key in groups:
                kind, default = f"[config group](config.md#{key})", _code(cfg.hydra.runtime.choices[key])
            elif isinstance(values.get(key), Mapping):
                default = ""
            rows.append([f"`{key}`", _cell(kind), default, _cell(meanings(schema)[key])])
        parts += [f"## flr {command}\n", f"{summary}\n", re.sub(r"``([^`]*)``", r"`\1`", body) + "\n",
                  markdown(["key", "type", "default", "meaning"], rows)]  # fmt: skip
    return "\n".join(parts)


def config() -> str:
    """Write the page of all config groups, their choices and the keys of what they build."""
    groups = [*(name for name in typing.get_type_hints(Train) if (CONF / name).is_dir()), *GROUPS]
    parts = ["# Configuration\n", "Config groups, their choices in `conf/GROUP/`, and the keys of what a choice builds. "
             "`GROUP=CHOICE` selects a choice, `KEY=VALUE` sets a key, `+KEY=VALUE` adds one.\n"]  # fmt: skip
    for group in groups:
        parts.append(f"## {group}\n")
        parts.append(GROUPS.get(group) or meanings(Train)[group])
        parts.append("")
        parts += _group(group)
    return "\n".join(parts)


def _group(group: str) -> Iterator[str]:
    """Write the choices of a group, and one table of keys for each class that they build."""
    files = sorted((CONF / group).glob("**/*.yaml" if group == "experiment" else "*.yaml"))
    rows, tables = [], {}
    base = OmegaConf.load(CONF / group / "base.yaml") if (CONF / group / "base.yaml").is_file() else OmegaConf.create()
    for file in files:
        name = file.relative_to(CONF / group).with_suffix("").as_posix()
        if name == "base":
            continue
        node = OmegaConf.load(file)
        assert isinstance(node, DictConfig)
        whole = OmegaConf.to_container(
            OmegaConf.merge(base, {k: v for k, v in node.items_ex(resolve=False) if k != "defaults"})
        )
        rows.append([f"`{name}`", _cell(_comment(file) or _summary(str(whole.get("_target_", ""))))])  # type: ignore[union-attr]
        prefix = {"hydra/launcher": "hydra.launcher"}.get(group, group.replace("/", "."))
        prefix = f"effect.{name}" if group == "effect" else prefix
        for place, target, keys in _nodes(whole, prefix):  # type: ignore[arg-type]
            tables.setdefault((place, target), {}).update({name: keys})
    yield markdown(["choice", "description"], rows)
    for (place, target), choices in tables.items():
        yield f"\n`{place}` builds `{target}`" + _of(choices, len(rows)) + ":\n"
        yield markdown(["key", "type", "default", "meaning"], _key_rows(place, target, choices))


def _of(choices: Mapping[str, Any], count: int) -> str:
    return "" if len(choices) == count else f" (`{'`, `'.join(choices)}`)"


def _comment(file: Path) -> str:
    """Return the comment at the top of a YAML file."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _summary(target: str) -> str:
    return (
        split_docstring(inspect.getdoc(_import(target)) or "")[0]
        if target.startswith("flr.")
        else (target and f"`{target}`")
    )


def _import(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _nodes(node: Mapping[str, Any], place: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Find the nodes that build something: their place, their target, and the values of their keys."""
    if target := node.get("_target_"):
        yield place, str(target), {k: v for k, v in node.items() if k not in ("_target_", "_partial_")}
    for key, value in node.items():
        if isinstance(value, Mapping) and key not in ("sets",):
            yield from _nodes(value, f"{place}.{key}")


def _key_rows(place: str, target: str, choices: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Write a row for each argument of a target: its key, type, default and meaning."""
    documented = document_target(target)
    listed = dict.fromkeys(key for keys in choices.values() for key in keys)
    hints: dict[str, Any] = {}
    parameters: dict[str, inspect.Parameter] = {}
    if target.startswith("flr."):
        built = _import(target)
        function = built.__init__ if isinstance(built, type) else built
        hints = typing.get_type_hints(function, include_extras=True)
        given = (
            {"points", "channels", "size"}
            if place == "model"
            else {"root", "strict"}
            if place == "data.reader"
            else set()
        )
        parameters = {
            k: v for k, v in inspect.signature(built).parameters.items() if k in documented and k not in given
        }
    rows = []
    for key in dict.fromkeys([*listed, *parameters]):
        values = {spell(keys[key]) for keys in choices.values() if key in keys and not isinstance(keys[key], Mapping)}
        default = values.pop() if len(values) == 1 else ""
        parameter = parameters.get(key)
        if not values and not default and parameter is not None and parameter.default is not inspect.Parameter.empty:
            default = spell(parameter.default) if not callable(parameter.default) else ""
        kind = describe_type(hints[key]) if key in hints else ""
        rows.append(
            [f"`{place}.{key}`", _cell(kind), f"`{_cell(default)}`" if default else "", _cell(documented.get(key, ""))]
        )
    return rows


def models() -> str:
    """Write the page of all models."""
    parts = [
        "# Models\n",
        "Every model is one file with the table of its layers. `experiment=fair/NAME` is the recipe behind the error "
        "here, and `experiment=published/NAME` the published recipe.\n",
        "<!-- table: zoo -->\n<!-- end -->\n",
    ]
    for path in sorted(MODELS.glob("*.py")):
        if path.stem != "__init__":
            parts.append(
                f"## {path.stem}\n\n::: flr.models.{path.stem}\n    options: {{show_root_heading: false, heading_level: 3}}\n"
            )
    return "\n".join(parts)
