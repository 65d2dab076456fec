"""Run flr as a console script: its commands, help pages, exit codes and tab completion."""

import dataclasses
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flr
from flr.config.compose import compose_command, groups
from flr.config.describe import document_target, split_docstring
from flr.config.help import help_page
from flr.config.schema import COMMANDS
from flr.reporting.tables import TextTable, print_table
from tests.conftest import Workspace

ROOT = Path(flr.__file__).parent.parent


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The console script that an installation makes of the entry point in pyproject.toml."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["flr"]
    module, _, function = entry.partition(":")
    path = tmp_path / "bin" / "flr"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nif __name__ == '__main__':\n    sys.exit({function}())\n"
    )
    path.chmod(0o755)
    return path


def run(*command: str | Path, code: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | env
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done


def test_flr_lists_its_commands(script: Path) -> None:
    lines = run(script).stdout.splitlines()
    width = max(map(len, COMMANDS))
    for name, schema in COMMANDS.items():
        assert f"  {name:{width}}  {(schema.__doc__ or '').splitlines()[0]}" in lines


def test_the_list_of_commands_may_lose_its_reader() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run([sys.executable, "-m", "flr", "--help"], stdout=pipe, stderr=subprocess.PIPE, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_list_of_commands_needs_no_library_that_is_slow_to_import() -> None:
    done = run(sys.executable, "-X", "importtime", "-m", "flr", "--help")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "flr.config.schema" in loaded
    assert not loaded & {"hydra", "omegaconf", "pydantic", "numpy", "torch", "mlflow"}


def test_flr_prints_its_version(script: Path) -> None:
    assert run(script, "--version").stdout == f"flr {flr.__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"), [("trian", "did you mean 'train'?"), ("model=sepconv", "known: app, compare")]
)
def test_an_unknown_command_is_bad_input(script: Path, word: str, hint: str) -> None:
    (line,) = run(script, word, code=2).stderr.splitlines()
    assert line.startswith(f"flr: no command '{word}'") and hint in line and "flr --help" in line


def test_a_command_runs_as_its_module_does(script: Path, workspace: Workspace) -> None:
    (line,) = run(script, "train", "modle=sepconv", code=2, **workspace.env).stderr.splitlines()
    assert line.startswith("flr: no config key 'modle' (did you mean 'model'?)")
    config = run(script, "train", "seed=7", "--cfg", "job", **workspace.env).stdout
    assert "\nseed: 7\n" in config
    assert run(sys.executable, "-m", "flr.train", "seed=7", "--cfg", "job", **workspace.env).stdout == config


# -- help --------------------------------------------------------------------------------------------------------------


def test_a_config_folder_of_ones_own_counts(script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my conf" / "model"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: flr.models.pfld.PFLD\n")
    words = ["--config-dir", folder.parent, "model=mine"]
    assert "width: 8" in run(script, "train", *words, "model.width=8", "--cfg", "job").stdout  # not in the YAML
    assert "model builds flr.models.pfld.PFLD" in run(script, "train", *words, "--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_documents_every_key_and_its_own_groups(command: str) -> None:
    cfg = compose_command(command, [])
    sections = dict(section.split("\n", 1) for section in help_page(command, cfg).split("\n\n") if "\n" in section)
    entries = sections["Keys:"].split("\n  ")
    keys = [field.name for field in dataclasses.fields(COMMANDS[command])]
    assert [entry.split(":")[0].strip() for entry in entries if not entry.startswith("    ")] == keys
    heads = [line for line in sections["Keys:"].splitlines() if not line.startswith("      ")]
    assert len(heads) == len(keys) and not any("Any" in line or "Annotated" in line for line in heads)
    own = {group for group in cfg.hydra.runtime.choices if not group.startswith("hydra/")}
    title = "Config groups (GROUP=CHOICE, * marks the choice in effect):"
    assert {line.split()[0] for line in sections[title].splitlines() if line[2] != " "} == own
    assert own <= set(groups())


def test_the_help_follows_the_choices_of_the_command_line(script: Path) -> None:
    page = run(script, "train", "model=sepconv", "optim.lr=0.5", "--help").stdout
    assert "*sepconv," in page and "model builds flr.models.sepconv.SepConv" in page and "  optim.lr=0.5\n" in page
    assert "  seed: integer >= 0 and < 4294967296, default 0\n      Seed of the weights" in page
    assert "\n  detector" not in page and "  data.batch_size=32\n      faces in a global batch" in page
    assert run(sys.executable, "-m", "flr.train", "model=sepconv", "optim.lr=0.5", "--help").stdout == page
    (line,) = run(script, "train", "model=sepcnv", "--help", code=2).stderr.splitlines()
    assert "did you mean 'sepconv" in line


@pytest.mark.parametrize(("command", "sweeps"), [("train", True), ("predict", False)])
def test_several_values_are_refused_with_the_option_that_sweeps(command: str, sweeps: bool) -> None:
    line = run(sys.executable, "-m", f"flr.{command}", "seed=0,1", code=2).stderr
    assert line.startswith("flr: seed=0,1: several values") and ("flr train -m sweeps" in line) is sweeps


def test_docstrings_are_read_without_an_import() -> None:
    summary, body, meanings = split_docstring(
        "Do it.\n\n    More.\n\n    Args:\n        a, b: One\n            two.\n        c: Three.\n"
    )
    assert (summary, body, meanings) == ("Do it.", "More.", {"a": "One two.", "b": "One two.", "c": "Three."})
    assert document_target("torch.optim.AdamW") == {} == document_target("")
    assert set(document_target("flr.models.heatmap_fpn.HeatmapFPN")) == {
        "points",
        "channels",
        "size",
        "widths",
        "path",
        "blocks",
    }


def test_a_narrow_terminal_splits_neither_ids_nor_column_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run_id = "0123456789abcdef" * 2
    print_table(TextTable(["job", "val/nme, %", "run", "why"], [["seed 0 " * 5, "3.21", run_id, "no memory " * 20]]))
    shown = capsys.readouterr().out
    assert run_id in shown and "val/nme, %" in shown and max(map(len, shown.splitlines())) < 140


def test_numbers_of_a_table_are_under_each_other_and_text_starts_at_the_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(
        TextTable(["job", "nme, %", "run"], [["a", "3.21", "0f"], ["bcd", "-", "12ab34"], ["e", "13.5 %", "1"]])
    )
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()[2:]] == [
        "a       3.21   0f",
        "bcd        -   12ab34",
        "e     13.5 %   1",
    ]


# -- tab completion ----------------------------------------------------------------------------------------------------

COMPLETE = """
eval "$(flr -sc install=bash)"
complete -p flr >&2
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE}; COMP_WORDS=($COMP_LINE); [[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    hydra_bash_completion
    echo "${COMPREPLY[*]}"
done
"""


def test_bash_completes_commands_groups_choices_and_keys(script: Path) -> None:
    wanted = {
        "flr ": " ".join(COMMANDS),
        "flr tr": "train train_detector",
        "flr train model=sep": "model=sepconv model=sepconv_light",
        "flr train model=sepconv optim.l": "optim.lr=",
        "flr predict detector=haar_": "detector=haar_camera detector=haar_photo",
        "flr nosuch model=": "",
    }
    done = subprocess.run(
        ["bash", "-c", COMPLETE], input="\n".join(wanted) + "\n", capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{script.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert "-F hydra_bash_completion flr" in done.stderr, done.stderr
    assert dict(zip(wanted, done.stdout.split("\n"), strict=False)) == wanted
