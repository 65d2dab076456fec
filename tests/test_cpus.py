"""The identity of data and the smoke tier do not depend on the CPU: child processes emulate other ones."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flr.data.readers import celeba, cofw, ibug, ibug_xml, mix, muct, synthetic, table, wflw, youtube_faces
from flr.data.table import FINGERPRINT_PARTS, FaceTable, digest_rows
from flr.landmarks.scheme import get_scheme
from tests import fakes
from tests.conftest import Workspace
from tests.fakes import celeba as fake_celeba
from tests.fakes import cofw as fake_cofw
from tests.fakes import ibug as fake_ibug
from tests.fakes import ibug_xml as fake_ibug_xml
from tests.fakes import muct as fake_muct
from tests.fakes import table as fake_table
from tests.fakes import wflw as fake_wflw
from tests.fakes import youtube_faces as fake_youtube_faces

ROOT = Path(fakes.__file__).parent.parent.parent
EXPERIMENTS = ("published/celeba_cnn", "records/tiny")

# What numpy, OpenBLAS, torch, oneDNN and OpenCV take for the CPU. Only its rows of AVX-512 need that of the real one.
CPUS = {
    "numpy without AVX-512": {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL"},
    "numpy without AVX2": {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL"},
    "OpenBLAS for Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "OpenBLAS for SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "OpenBLAS for Zen": {"OPENBLAS_CORETYPE": "Zen"},
    "torch without AVX": {"ATEN_CPU_CAPABILITY": "default"},
    "torch with AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch with AVX-512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "oneDNN with AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN with AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "OpenCV without AVX2": {"OPENCV_CPU_DISABLE": "AVX2,AVX512_SKX,AVX512_ICL,FMA3,AVX"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}
# Two machines that differ in all of it; the first in every run of the tests.
MACHINES = {
    "an old one": {
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL", "OPENBLAS_CORETYPE": "Haswell",
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENCV_CPU_DISABLE": "AVX2,AVX512_SKX,FMA3,AVX",
        "OMP_NUM_THREADS": "1",
    },
    "a newer one": {
        "NPY_DISABLE_CPU_FEATURES": "AVX512_ICL", "OPENBLAS_CORETYPE": "SkylakeX", "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OMP_NUM_THREADS": "2",
    },
}  # fmt: skip


def write_all(root: Path) -> None:
    """Write a fake of each kind of dataset."""
    fake_ibug.write(root / "ibug", {"afw": 4, "helen/testset": 3})
    fake_ibug_xml.write(root / "ibug_xml")
    fake_celeba.write(root / "celeba")
    fake_muct.write_kaggle(root / "kaggle")
    fake_muct.write_muct(root / "muct")
    fake_wflw.write(root / "wflw")
    fake_cofw.write(root / "cofw")
    fake_youtube_faces.write(root / "youtube_faces")
    for form in ("csv", "coco", "xml", "pts"):
        fake_table.write(root / f"table-{form}", form)


def read_all(root: Path, rendered: Path) -> dict[str, FaceTable]:
    """Read each of them, and reductions, a mix, and faces that are rendered first."""
    tables = {
        "ibug": ibug.read(root / "ibug"),
        "ibug_xml": ibug_xml.read(root / "ibug_xml"),
        "celeba": celeba.read(root / "celeba"),
        "kaggle": muct.read(root / "kaggle"),
        "muct": muct.read(root / "muct"),
        "wflw": wflw.read(root / "wflw"),
        "cofw": cofw.read(root / "cofw"),
        "youtube_faces": youtube_faces.read(root / "youtube_faces"),
        "synthetic": synthetic.read(rendered, train=3, val=1, test=1, size=64),
    }
    tables |= {path.name: table.read(path) for path in sorted(root.glob("table-*"))}
    for name in ("ibug", "synthetic"):
        for scheme in ("kaggle15", "celeba5"):
            tables[f"{name} {scheme}"] = tables[name].reduce(scheme, get_scheme(scheme))
    members = {name: tables[f"{name} celeba5"] for name in ("ibug", "synthetic")}
    tables["mix"] = mix.join(
        {name: dataclasses.replace(each, weight=np.ones(len(each))) for name, each in members.items()}
    )
    return tables


def fingerprints(root: Path, rendered: Path) -> dict[str, str]:
    return {name: faces.fingerprint() for name, faces in read_all(root, rendered).items()}


# Both in one process, for torch takes seconds to import.
ON_ANOTHER_CPU = """
import sys
from hydra.core.global_hydra import GlobalHydra
from flr.cli import run_command
from flr.reproduce import main
from tests.test_cpus import *

root, out = map(Path, sys.argv[1:])
print(fingerprints(root, out / "rendered"))
for name in EXPERIMENTS:
    sys.argv[1:] = [f"name={name}", f"paths.cache_dir={out / 'cache'}"]
    run_command(main, "reproduce")
    GlobalHydra.instance().clear()
"""


def run_as(cpu: dict[str, str], *words: str) -> list[str]:
    env = {
        key: value for key, value in os.environ.items() if key not in {name for row in CPUS.values() for name in row}
    }
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env | cpu, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("forms")
    write_all(root)
    return root, fingerprints(root, tmp_path_factory.mktemp("rendered"))


@pytest.mark.parametrize(
    "cpu",
    [pytest.param(cpu, id=name, marks=[] if name == "an old one" else [pytest.mark.long])
     for name, cpu in (MACHINES | CPUS).items()],
)  # fmt: skip
def test_fingerprints_and_the_smoke_tier_on_another_cpu(
    forms: tuple[Path, dict[str, str]], workspace: Workspace, cpu: dict[str, str]
) -> None:
    if "SkylakeX" in cpu.values() and torch.backends.cpu.get_cpu_capability() != "AVX512":
        cpu = cpu | {"OPENBLAS_CORETYPE": "Haswell"}  # OpenBLAS would run what this CPU cannot
    root, here = forms
    printed, *verdicts = run_as(cpu, "-c", ON_ANOTHER_CPU, str(root), str(workspace.path))
    assert printed == str(here)
    assert sum(line.endswith("within the tolerance") for line in verdicts) == len(EXPERIMENTS)


def test_a_fingerprint_says_what_differs(forms: tuple[Path, dict[str, str]]) -> None:
    root, here = forms
    plain = ibug.read(root / "ibug")

    def differing(changed: FaceTable) -> list[str]:
        pairs = zip(FINGERPRINT_PARTS, here["ibug"].split("-"), changed.fingerprint().split("-"), strict=True)
        return [part for part, old, new in pairs if old != new]

    plain.points[:] += 1e-4  # arithmetic is no part of it
    assert differing(plain) == []
    assert differing(plain.reduce("celeba5", get_scheme("celeba5"))) == ["scheme"]
    path = next((root / "ibug/afw").glob("*.pts"))
    sound = path.read_text()
    path.write_text(sound.replace("}", "").rstrip()[:-1] + "9\n}")
    assert differing(ibug.read(root / "ibug")) == ["values"]
    path.write_text(sound)
    plain.split[0] = "val"
    assert differing(plain) == ["splits"]


def test_digests_are_of_values_and_not_of_their_types() -> None:
    values = np.array([[1.5, np.nan], [2.0, 3.0]])
    digests = digest_rows(values, ["a", "b"], np.array([True, False]))
    signed = np.where(np.isnan(values), -np.nan, values).astype(">f8")
    assert digests.tolist() == digest_rows(signed, np.array(["a", "b"]), [1, 0]).tolist()
    assert len({*digests, *digest_rows(values, ["a", "c"], [1, 0])}) == 3


def test_other_rendered_faces_are_other_data(tmp_path: Path) -> None:
    def values(**settings: float) -> str:
        sizes = {"train": 2, "val": 1, "test": 1, "size": 64} | settings
        return synthetic.read(tmp_path, **sizes).fingerprint().split("-")[3]

    plain = values()
    assert values(train=2) == plain
    assert plain not in {values(seed=1), values(size=48), values(face=0.6), values(channels=3)}
