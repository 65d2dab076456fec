"""What the README says: its commands are real, its choices exist, its figures stand in experiments/."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest

from flr.config.compose import CONF
from flr.config.schema import App, Export, Prepare, Reproduce, Train, Tune
from flr.config.validate import check
from flr.data.synthetic.renderer import render
from tests.conftest import Workspace

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(module: str) -> list[list[str]]:
    """The words of each `python -m MODULE` line, less its comment."""
    return [shlex.split(line, comments=True) for line in re.findall(rf"^python -m {module}(.*)$", README, re.MULTILINE)]


SCHEMAS = {"train": Train, "prepare": Prepare, "export": Export, "app": App, "reproduce": Reproduce, "tune": Tune}
SHOWN = [
    (command, words) for command in SCHEMAS for words in commands(f"flr.{command}") if not {"-m", "--cfg"} & set(words)
]


@pytest.mark.parametrize(
    ("command", "words"), SHOWN, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_every_command_in_the_readme_composes(command: str, words: list[str]) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(command, words)
        check(cfg, SCHEMAS[command], trusted=False)
    if command == "reproduce":
        assert (CONF / "experiment" / f"{cfg.name}.yaml").is_file()


def test_there_are_commands_to_check() -> None:
    assert len(commands("flr.train")) >= 9 and len(commands("flr.evaluate")) >= 3 and len(commands("flr.prepare")) >= 2
    assert len(commands("flr.reproduce")) >= 3 and len(commands("flr.tune")) >= 4 and len(commands("flr.app")) >= 2


def test_every_set_stands_in_the_data_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| (?:`(\w+)/`)? *\|", README, re.MULTILINE)
    folders = dict(rows)
    sets = {path.stem for path in (CONF / "data").glob("*.yaml")} - {"base", "synthetic"}
    assert set(folders) == sets
    for name in sets - {"mix"}:
        text = (CONF / "data" / f"{name}.yaml").read_text()
        root = re.findall(r"^root: \$\{paths.data_dir\}/(\w+)", text, re.MULTILINE)
        assert folders[name] == (root[0] if root else name)
        assert ("download:" in text) == (
            "`download=true`" in next(r for r in README.splitlines() if f"| `{name}` |" in r)
        )


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"help", *re.findall(r"make ([a-z-]+)", README)} - {"sure"} <= targets


def test_choices_of_the_table_exist() -> None:
    for group in ("data", "model", "augment", "trainer", "debug", "sweep", "tune"):
        (row,) = re.findall(rf"^\| `{group}=` \| (.*) \|$", README, re.MULTILINE)
        first = re.findall(r"`([a-z_0-9]+)`", row)
        choices = {path.stem for path in (CONF / group).glob("*.yaml")}
        assert first and set(first) <= choices, (group, set(first) - choices)


@pytest.mark.parametrize("name", ["heatmap_fpn", "sepconv_light", "synthetic_transfer"])
def test_figures_stand_in_experiments(name: str) -> None:
    (row,) = re.findall(rf"^\| `experiment=best/{name}`.*$", README, re.MULTILINE)
    shown = float(re.findall(r"(\d\.\d\d) %", row)[-1])
    result = json.loads((ROOT / "experiments" / "best" / name / "result.json").read_text())
    tested = [e["metrics"]["nme"] for e in result["evaluations"] if e["split"] == "test"]
    assert any(round(nme, 2) == shown for nme in tested)


def test_its_python_finds_points(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    (code,) = re.findall(r"```python\n(.*?find_faces\(.*?)```", README, re.DOTALL)
    face = render(1, 0, 240, 3, 0.5)
    box = [*face.points.min(0), *face.points.max(0)]
    given: dict[str, Any] = {"image": face.image, "images": [face.image] * 2, "boxes": np.array([box, box])}
    checkpoint = workspace.folder(run_id) / "checkpoints" / "best.ckpt"
    exec(code.replace("best.ckpt", str(checkpoint)), given)
    assert given["face"].points.shape == (68, 2) and given["points"].shape == (2, 68, 2)
