"""Write the reference pages of the documentation site: commands, config keys and models."""

import importlib
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flr.config.compose import CONF, compose_command, spell
from flr.config.describe import describe_type, split_docstring
from flr.config.schema import COMMANDS, Train
from flr.config.validate import EXTRA_KEYS, RUNTIME_ARGS
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
    """Write the choices of a group, one table of keys for each class that they build, and the values that differ."""
    files = sorted((CONF / group).glob("**/*.yaml" if group == "experiment" else "*.yaml"))
    base = CONF / group / "base.yaml"
    shared = OmegaConf.load(base) if base.is_file() else OmegaConf.create()
    rows: list[list[str]] = []
    built: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    comments = _comments(base) if base.is_file() else {}
    for file in files:
        name = file.relative_to(CONF / group).with_suffix("").as_posix()
        if name == "base":
            continue
        node = OmegaConf.load(file)
        node.pop("defaults", None)
        whole = OmegaConf.to_container(OmegaConf.merge(shared, node))
        assert isinstance(whole, dict)
        rows.append([f"`{name}`", _cell(_heading(file) or _summary(group, str(whole.get("_target_", ""))))])
        comments |= _comments(file)
        for place, target, keys in _nodes(whole, group.replace("/", ".")):  # type: ignore[arg-type]
            built.setdefault((place, target), {})[name] = keys
    yield markdown(["choice", "description"], rows)
    for (place, target), choices in built.items():
        some = "" if len(choices) == len(rows) else f" (`{'`, `'.join(choices)}`)"
        yield f"\n`{place}` builds `{target}`{some}:\n"
        inside = place.removeprefix(group.replace("/", ".")).lstrip(".")
        notes = {key: comments.get(f"{inside}.{key}".lstrip("."), "") for keys in choices.values() for key in keys}
        keys = _keys(place, target, choices, notes)
        yield markdown(["key", "type", "default", "meaning"], keys) if keys else "no keys.\n"
        yield _differences(choices)


def _heading(file: Path) -> str:
    """Return the comment at the top of a YAML file."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _comments(file: Path) -> dict[str, str]:
    """Return the comment behind each key of a YAML file, by the key's path."""
    found, path = {}, []
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"( *)(\w+):(?:.*?\s# (.*))?", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if match[3]:
                found[".".join(path)] = match[3]
    return found


def _summary(group: str, target: str) -> str:
    """Say in a line what a choice without a comment of its own builds."""
    if not target.startswith("flr."):
        return f"`{target}`" if target else ""
    module = importlib.import_module(target.rpartition(".")[0])
    text = module.__doc__ if group == "model" else getattr(module, target.rpartition(".")[2]).__doc__
    return split_docstring(text or "")[0]


def _nodes(node: Mapping[str, Any], place: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Find the nodes that build something: their place, their target, and the values of their keys."""
    if target := node.get("_target_"):
        yield place, str(target), {k: v for k, v in node.items() if k not in ("_target_", "_partial_")}
    for key, value in node.items():
        if isinstance(value, Mapping) and key != "sets":  # data=mix repeats the readers
            yield from _nodes(value, f"{place}.{key}")


def _keys(
    place: str, target: str, choices: Mapping[str, Mapping[str, Any]], notes: Mapping[str, str]
) -> list[list[str]]:
    """Write a row for each key of a target: its type, default and meaning.

    Args:
        place: Where the config has it.
        target: What is built.
        choices: Choice -> its values of keys.
        notes: Key -> the comment in a YAML file, for keys that no docstring explains.
    """
    module, _, name = target.rpartition(".")
    built = getattr(importlib.import_module(module), name)
    own = target.startswith(("flr.", "hydra_plugins."))
    documented = _documented(built) if own else {}
    parameters = inspect.signature(built).parameters
    hidden = RUNTIME_ARGS.get(place, frozenset())
    hints = {**_hints(built), **EXTRA_KEYS.get(place, {})}
    keys = dict.fromkeys([*(key for values in choices.values() for key in values),
                          *(key for key in parameters if key in documented)])  # fmt: skip
    rows = []
    for key in keys:
        if key in hidden:
            continue
        nested = any(isinstance(values.get(key), Mapping) and "_target_" in values[key] for values in choices.values())
        values = {spell(values[key]) for values in choices.values() if key in values}
        if key in parameters and any(key not in values for values in choices.values()):
            default = parameters[key].default
            values |= set() if default is inspect.Parameter.empty or callable(default) else {spell(default)}
        shown = "see below" if nested or len(values) > 1 else "".join(f"`{_cell(value)}`" for value in values)
        hint = hints.get(key)
        kind = "keys below" if nested else describe_type(hint) if hint is not None else ""
        meaning = documented.get(key) or notes.get(key, "")
        rows.append([f"`{place}.{key}`", _cell(kind), shown, _cell(re.sub(r"\bNone\b", "null", meaning))])
    return rows


def _documented(built: Any) -> dict[str, str]:
    """Collect the meanings of a target's arguments, from its bases down."""
    found: dict[str, str] = {}
    for base in reversed(built.__mro__[:-1] if isinstance(built, type) else [built]):
        texts = (
            (base.__doc__, getattr(base.__dict__.get("__init__"), "__doc__", None))
            if isinstance(base, type)
            else (base.__doc__,)
        )
        for text in texts:
            named = split_docstring(text or "")[2]
            found |= {
                key: meaning for key, meaning in named.items() if not (key in found and meaning.startswith("see `"))
            }
    return found


def _hints(built: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(built.__init__ if isinstance(built, type) else built, include_extras=True)
    except (NameError, TypeError):  # a library's hints that cannot be evaluated here
        return {}


def _differences(choices: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the values of the keys in which choices differ."""
    keys = list(dict.fromkeys(key for values in choices.values() for key in values))
    spelled = {
        key: {name: spell(values[key]) if key in values else "" for name, values in choices.items()} for key in keys
    }
    varied = [
        key for key in keys
        if len(set(spelled[key].values())) > 1 and not any(isinstance(values.get(key), Mapping) for values in choices.values())
    ]  # fmt: skip
    if not varied:
        return ""
    rows = [
        [f"`{name}`", ", ".join(f"`{key}={_cell(spelled[key][name])}`" for key in varied if spelled[key][name])]
        for name in choices
    ]
    return "\nThe choices set:\n\n" + markdown(["choice", "values"], rows)


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
                f"## {path.stem}\n\n::: flr.models.{path.stem}\n    options: {{show_root_heading: false, show_root_toc_entry: false, heading_level: 3}}\n"
            )
    return "\n".join(parts)
