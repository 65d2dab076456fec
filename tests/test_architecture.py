"""The house rules that the source must keep, read off its imports."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import flr

ROOT = Path(flr.__file__).parent

# From the ground up: a module imports from its own part, and from parts below. A new part has to be placed here.
STOREYS = (
    {"errors"},
    {"landmarks", "files", "parallel", "ranks", "schedules"},
    {"reporting"},
    {"models", "objectives", "metrics", "augment"},
    {"data", "tracking"},
    {"module", "checkpoints"},
    {"callbacks", "config"},
    {"inference", "speed", "training"},
    {"sweeps"},
    {"doors"},
)


def name_of(path: Path) -> str:
    """flr/data/crops.py -> flr.data.crops."""
    return ".".join(("flr", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


SOURCES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def is_door(tree: ast.Module) -> bool:
    """Whether a module is a command: it ends in ``if __name__ == "__main__"``."""
    return any(isinstance(node, ast.If) and "__main__" in ast.dump(node.test) for node in tree.body)


DOORS = {name for name, tree in SOURCES.items() if is_door(tree)}


def hints_only(tree: ast.Module) -> set[int]:
    """The nodes under ``if TYPE_CHECKING``, which never run."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    return {id(node) for block in blocks for child in block.body for node in ast.walk(child)}


def imports(tree: ast.Module, top_level: bool = False) -> set[str]:
    """Dotted names of all modules (or names in them) that a module imports when it runs, inside functions too."""
    skip = hints_only(tree)
    if top_level:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        skip |= {id(node) for function in functions for node in ast.walk(function)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(tree: ast.Module, top_level: bool = False) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree, top_level)}


def part(name: str) -> str | None:
    """The part of the house that a dotted name lies in; None for flr itself."""
    module = name if name in SOURCES else name.rpartition(".")[0]
    if module in DOORS:
        return "doors"
    return module.split(".")[1] if "." in module else None


def inside(*parts: str) -> list[str]:
    return [name for name in SOURCES if part(name) in parts]


def test_the_reading_of_imports_sees_all_kinds():
    tree = ast.parse(
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\nclass F:\n    import g\ndef f():\n    import h\n"
    )
    assert imports(tree) == {"a.b", "c.d", "g", "h"}
    assert packages(tree, top_level=True) == {"a", "c", "g"}
    assert {"flr.train", "flr.evaluate"} <= DOORS


def test_the_ground_floor_imports_nothing_of_flr_but_errors():
    for name in inside("landmarks"):
        ours = {module for module in imports(SOURCES[name]) if module.startswith("flr")}
        assert all(module.startswith(("flr.errors.", "flr.landmarks.")) for module in ours), (name, ours)


def test_hydra_is_imported_by_config_sweeps_and_the_doors_only():
    users = {name for name, tree in SOURCES.items() if "hydra" in packages(tree)}
    assert "flr.config" in users
    assert users <= {"flr.config", *inside("sweeps"), *DOORS}


def test_mlflow_is_imported_by_tracking_and_what_reads_runs_back_only():
    users = {name for name, tree in SOURCES.items() if "mlflow" in packages(tree)}
    assert users
    run_by_mlflow = "flr.inference.pyfunc"
    assert users <= {*inside("tracking"), "flr.checkpoints", run_by_mlflow}
    early = {name for name, tree in SOURCES.items() if "mlflow" in packages(tree, top_level=True)}
    assert early <= {*inside("tracking"), run_by_mlflow}
    assert not any(run_by_mlflow in imports(tree) for tree in SOURCES.values())


def test_nets_import_torch_alone():
    for name in inside("models"):
        tree = SOURCES[name]
        foreign = packages(tree) - set(sys.stdlib_module_names)
        assert foreign <= {"torch", "timm", "flr"}, name
        assert "timm" not in packages(tree, top_level=True), name
        assert all(part(module) == "models" for module in imports(tree) if module.startswith("flr.")), name


def test_exported_nets_run_on_the_base_dependencies_alone():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    base = {re.split("[<>=]", need)[0].lower() for need in project["dependencies"]}
    given = {module for module, owners in packages_distributions().items() if base & {o.lower() for o in owners}}
    todo, seen = {"flr.inference.onnx"}, set()
    while todo:
        name = todo.pop()
        seen.add(name)
        found = imports(SOURCES[name], top_level=True)
        assert {module.partition(".")[0] for module in found} <= {*given, *sys.stdlib_module_names, "flr"}, name
        ours = {module if module in SOURCES else module.rpartition(".")[0] for module in found} & set(SOURCES)
        todo |= {piece for each in ours for piece in (each, *_parents(each))} - seen
    assert {"flr.data.crops", "flr.landmarks.scheme", "flr.inference"} <= seen


def _parents(name: str) -> list[str]:
    return [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]


def test_every_part_has_its_storey():
    placed = set().union(*STOREYS)
    assert {part(name) for name in SOURCES} - {None} <= placed


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_imports_upward(name):
    storey = {piece: level for level, pieces in enumerate(STOREYS) for piece in pieces}
    own = part(name)
    for module in imports(SOURCES[name]):
        other = part(module) if module.startswith("flr.") else None
        if other is not None and other != own:
            assert own is not None, f"{name} stands below all and imports {module}"
            assert storey[other] < storey[own], f"{name} imports {module}, which does not lie below it"


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"]], ids=" ".join)
@pytest.mark.parametrize(
    "door",
    ["flr.train", "flr.evaluate", "flr.prepare", "flr.compare", "flr.reproduce", "flr.tune", "flr.export", "flr.app"],
)
def test_showing_the_config_imports_no_torch(door, words, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", door, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in loaded  # the list is what it should be
    assert not loaded & {"torch", "mlflow", "pytorch_lightning", "optuna"}
    assert list(tmp_path.iterdir()) == []
