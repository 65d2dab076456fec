"""The documentation: its commands are real, those of its tutorials run, its choices exist, its tables are the records'."""

import csv
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import hydra
import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from flr.config.compose import CONF, groups
from flr.config.detector_schema import DETECTOR
from flr.config.schema import COMMANDS
from flr.config.validate import check, check_without_tracker
from flr.data.synthetic.renderer import render
from flr.landmarks.scheme import CELEBA5, IBUG68
from flr.tracking.provenance import code_digest
from scripts.docs_tables import WRITTEN, fill
from tests.conftest import SMALL_SET, TINY, Workspace
from tests.fakes import ibug

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
}
TUTORIALS = ("README.md", "docs/quickstart.md")
# What is added to the commands of the tutorials, so that they take seconds.
SMALLER = {
    "train": ["data.crop.size=64", "data.batch_size=16", "tracking.system_metrics=false", "callbacks.progress=null"],
    "export": ["faces=4"],
    "compare": ["samples=1000", "faces=2"],
    "predict": ["overwrite=true"],
}


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """Find the fenced blocks of a language: their title, or '', and their content."""
    found = re.findall(rf'^```{language}(?: title="([^"]*)")?\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    return [(title, content) for title, content in found]


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Find the ``flr COMMAND WORD ...`` lines of a page's shell and indented blocks, without their comments."""
    lines = [line for _, block in blocks(text, "bash") for line in block.splitlines()]
    for line in [*lines, *re.findall(r"^    (flr .*)$", text, re.MULTILINE)]:
        words = shlex.split(line, comments=True)
        if len(words) > 1 and words[0] == "flr" and words[1] in COMMANDS:
            yield words[1], words[2:]


def first_of_sweep(word: str) -> str:
    """Take the first value of an override that sweeps."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


SHOWN = sorted({(command, *words) for text in PAGES.values() for command, words in commands(text)})


def test_every_command_composes() -> None:
    assert len(SHOWN) > 80
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for command, *words in SHOWN:
            if {"--cfg", "--config-dir"} & set(words):
                continue
            cfg = hydra.compose(command, [first_of_sweep(word) for word in words if word != "-m"])
            if command in ("evaluate", "compare"):
                check_without_tracker(cfg, COMMANDS[command])
            else:
                check(cfg, COMMANDS[command], trusted=False)
            if command == "reproduce":
                assert cfg.name == DETECTOR or (CONF / "experiment" / f"{cfg.name}.yaml").is_file()


def test_choices_exist() -> None:
    known = set(groups())
    for name, text in PAGES.items():
        for group, choices in re.findall(r"`(?:flr \w+ )?([a-z_]+(?:/[a-z]+)?)=([a-z_0-9|/]+)`", text):
            for choice in choices.split("|") if group in known else []:
                assert (CONF / group / f"{choice}.yaml").is_file(), f"{name}: {group}={choice}"
    presets = re.search(r"^Presets in `conf/sweep/`: (.*)\.$", PAGES["docs/guide/sweeps.md"], re.MULTILINE)
    assert presets and set(re.findall(r"`(\w+)`", presets[1])) <= {
        path.stem for path in (CONF / "sweep").glob("*.yaml")
    }


def test_every_dataset_has_a_row_or_a_page() -> None:
    index = PAGES["docs/datasets/index.md"]
    rows = dict(re.findall(r"^\| \[`(\w+)`\]\(\S+\) \| [^|]* \| (?:`(\w+)/`)?", index, re.MULTILINE))
    datasets = {path.stem for path in (CONF / "data").glob("*.yaml")} - {"base"}
    pages = "".join(text for name, text in PAGES.items() if name.startswith("docs/datasets/"))
    assert set(rows) <= datasets and all(f"data={name}" in pages or name in rows for name in datasets)
    for name in set(rows) - {"mix", "synthetic"}:
        text = (CONF / "data" / f"{name}.yaml").read_text()
        root = re.findall(r"^root: \$\{paths.data_dir\}/(\w+)", text, re.MULTILINE)
        assert rows[name] == (root[0] if root else name)
        (row,) = (line for line in index.splitlines() if line.startswith(f"| [`{name}`]"))
        assert ("download:" in text) == ("`download=true`" in row)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in PAGES.values():
        named = re.findall(r"`make ([a-z-]+)", text)
        for _, block in blocks(text, "bash"):
            named += re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)
        assert set(named) <= targets


def test_pages_link_to_what_exists() -> None:
    """In the repository; the site's own build refuses a dead link there."""
    others = [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *(ROOT / "experiments").rglob("*.md")]
    for name, text in (
        PAGES | {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in others}
    ).items():
        for target in re.findall(r"\]\(([^)\s#]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            path = Path(os.path.normpath((ROOT / name).parent / target))
            assert "://" in target or path.exists(), f"{name}: {target}"


def test_tables_are_those_of_the_records() -> None:
    for name in WRITTEN:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert fill(text) == text, name


def test_the_readme_and_contributing_stay_short() -> None:
    assert all(len(PAGES[name].splitlines()) <= 150 for name in ("README.md", "CONTRIBUTING.md"))


@pytest.fixture
def tutorial(trained: tuple[Workspace, str], tmp_path: Path, shared_cache: Path) -> tuple[Workspace, str]:
    """A copy of the finished run's workspace, in which further runs may be made."""
    source, run_id = trained
    workspace = Workspace(tmp_path, shared_cache, experiment=source.experiment)
    shutil.copytree(source.outputs, workspace.outputs)
    return workspace, run_id


def test_the_tutorials_run(tutorial: tuple[Workspace, str], monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, run_id = tutorial
    ibug.write(workspace.path / "300w")
    monkeypatch.chdir(workspace.path)
    for _, code in blocks(PAGES["docs/quickstart.md"], "python"):
        exec(code, {})
    lines = dict.fromkeys((command, *words) for name in TUTORIALS for command, words in commands(PAGES[name]))
    del lines["train",]  # it made `trained`
    ran = []
    for command, *words in sorted(lines, key=lambda line: line[0] != "export"):  # others use the exported file
        if command == "app":  # it serves until it is stopped; see tests/test_app.py
            continue
        given = [small(word, run_id, workspace.path) for word in words] + SMALLER.get(command, [])
        if command == "train" and "data=ibug" not in words:
            given += SMALL_SET
        if command == "export":  # the run's own folder is that of `trained`, which other tests read
            given.append(f"out={workspace.folder(run_id) / 'best.onnx'}")
        workspace.run(f"flr.{command}", *given)
        ran.append(command)
    assert {"train", "compare", "predict", "export", "evaluate", "prepare"} <= set(ran)
    assert (workspace.outputs / "predictions" / "photo" / "points.csv").is_file()


def small(word: str, run_id: str, folder: Path) -> str:
    """Fill in the places of a tutorial's command, and shorten its training; two jobs show what four do."""
    word = word.replace("RUN_ID", run_id).replace("/data/300w", str(folder / "300w"))
    return {"seed=0,1": "seed=0"}.get(word, re.sub(r"^(trainer.max_epochs)=.*", r"\1=1", word))


def test_the_extension_guide_runs(
    workspace: Workspace, trained: tuple[Workspace, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGES["docs/guide/extending.md"]
    for language in ("python", "yaml"):
        for title, content in blocks(text, language):
            if title:
                path = workspace.path / title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
    write_faces(workspace.path / "faces")
    modules = ("mymodels", "mylosses", "mydata")
    monkeypatch.syspath_prepend(workspace.path)
    code_digest.cache_clear()
    (words,) = (words for command, words in commands(text) if command == "train")
    tiny = [word for word in TINY if not word.startswith("model.")]
    workspace.run("flr.train", *words, *tiny, FLR_TRUST=",".join(modules))
    code_digest.cache_clear()
    run = workspace.only_run()
    assert run.data.params["model._target_"] == "mymodels.SmallCNN"
    ((_, metric),) = (block for block in blocks(text, "python") if not block[0])
    monkeypatch.chdir(workspace.path)
    exec(metric.replace("sqlite:///outputs/mlflow.db", workspace.uri), {"run_id": run.info.run_id})
    assert workspace.client().get_run(run.info.run_id).data.metrics["test/median_nme"] > 0


def write_faces(folder: Path) -> None:
    """Write 16 rendered faces in the form of the extension guide's reader."""
    folder.mkdir()
    rows = []
    for i, split in enumerate(["train"] * 10 + ["val"] * 3 + ["test"] * 3):
        face = render(5, i, 64, 3, 0.5)
        cv2.imwrite(str(folder / f"{i}.png"), face.image[..., ::-1])
        points = IBUG68.reduce(face.points[None], "celeba5")[0]
        coordinates = {f"{name}_{axis}": f"{value:.2f}" for name, point in zip(CELEBA5.names, points, strict=True)
                       for axis, value in zip("xy", point, strict=True)}  # fmt: skip
        rows.append({"image": f"{i}.png", "person": f"person{i}", "split": split} | coordinates)
    with (folder / "faces.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def test_the_prediction_guide_finds_points(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    ((_, code),) = blocks(PAGES["docs/guide/prediction.md"], "python")
    face = render(1, 0, 240, 3, 0.5)
    box = [*face.points.min(0), *face.points.max(0)]
    values: dict[str, Any] = {"image": face.image, "images": [face.image] * 2, "boxes": np.array([box, box])}
    checkpoint = workspace.folder(run_id) / "checkpoints" / "best.ckpt"
    exec(code.replace("best.ckpt", str(checkpoint)), values)
    assert values["face"].points.shape == (68, 2) and values["points"].shape == (2, 68, 2)


@pytest.mark.long
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    Workspace(tmp_path, tmp_path).run_code(
        f"import os, sys; os.chdir({str(ROOT)!r}); sys.path.insert(0, '.'); import mkdocs.__main__ as m; "
        f"m.cli(['build', '--strict', '--quiet', '--site-dir', {str(tmp_path / 'site')!r}])",
        NO_MKDOCS_2_WARNING="1",
    )
    assert (tmp_path / "site" / "reference" / "config" / "index.html").is_file()
