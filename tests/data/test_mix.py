"""Several sets as one: names, splits, subsets, reductions, weights; and a training on them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flr.config.compose import CONF
from flr.data.readers import ibug, ibug_xml, mix
from flr.data.table import FaceTable
from flr.errors import UserError
from flr.landmarks.scheme import CELEBA5, IBUG68
from tests.conftest import TINY, Workspace
from tests.fakes import ibug as fake_ibug
from tests.fakes import ibug_xml as fake_xml


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, mix.Member]:
    fake_ibug.write(tmp_path / "300w", {"afw": 12, "helen/testset": 4})
    fake_xml.write(tmp_path / "xml", {"lfpw/trainset": 20}, mirrored=False)
    return {
        "ibug": mix.Member(ibug.read, str(tmp_path / "300w"), val_fraction=0.2),
        "ibug_xml": mix.Member(ibug_xml.read, str(tmp_path / "xml"), weight=0.5, test_fraction=0.2),
    }


def read(sets: dict[str, mix.Member], *use: str, scheme: str = "celeba5", strict: bool = True) -> FaceTable:
    return mix.read(Path(), strict, sets, use, scheme)


def test_faces_are_those_of_the_sets(sets: dict[str, mix.Member], tmp_path: Path) -> None:
    table = read(sets, "ibug", "ibug_xml")
    first, second = ibug.read(tmp_path / "300w"), ibug_xml.read(tmp_path / "xml")
    assert len(table) == len(first) + len(second) and table.scheme is CELEBA5
    assert table.form == f"mix[{first.form}+{second.form}]"
    np.testing.assert_array_equal(table.points[: len(first)], IBUG68.reduce(first.points, "celeba5"))
    np.testing.assert_array_equal(table.points[len(first) :], IBUG68.reduce(second.points, "celeba5"))
    assert table.name[0] == f"ibug/{first.name[0]}" and table.name[-1] == f"ibug_xml/{second.name[-1]}"
    assert table.group[0] == f"ibug/{first.group[0]}"
    for i, (own, row) in ((0, (first, 0)), (len(table) - 1, (second, len(second) - 1))):
        np.testing.assert_array_equal(table.load(i), own.load(row))
    np.testing.assert_array_equal(table.subsets["ibug"], np.arange(len(table)) < len(first))
    assert table.subsets["ibug/helen_test"].sum() == 4 and table.subsets["ibug_xml/lfpw_train"].sum() == len(second)
    assert table.weight is not None and set(table.weight[table.subsets["ibug_xml"]]) == {0.5}


def test_each_set_has_parts_of_its_own(sets: dict[str, mix.Member]) -> None:
    table = read(sets, "ibug", "ibug_xml")
    for name in ("ibug", "ibug_xml"):
        parts = set(table.split[table.subsets[name]].tolist())
        assert parts == {"train", "val", "test"}, name
        alone = read(sets, name)
        np.testing.assert_array_equal(alone.split, table.split[table.subsets[name]])  # whatever it is mixed with


def test_one_set_can_teach_and_another_test(sets: dict[str, mix.Member]) -> None:
    parts = {"ibug": ("test",), "ibug_xml": ("train", "val")}
    table = read({name: dataclasses.replace(sets[name], parts=parts[name]) for name in sets}, "ibug", "ibug_xml")
    for name, split in parts.items():
        assert set(table.split[table.subsets[name]]) == set(split)
        whole = read(sets, name)
        assert table.subsets[name].sum() == np.isin(whole.split, split).sum()


def test_one_set_at_full_weight_has_no_weights(sets: dict[str, mix.Member]) -> None:
    assert read(sets, "ibug", scheme="ibug68").weight is None


@pytest.mark.parametrize(
    ("use", "scheme", "words"),
    [
        (("ibug", "ibugg"), "celeba5", "did you mean 'ibug'"),
        (("ibug", "ibug"), "celeba5", "name each set once"),
        ((), "celeba5", "name each set once"),
        (("ibug",), "wflw98", "does not reduce to 'wflw98'"),
        (("ibug",), "celeba6", "did you mean 'celeba5'"),
    ],
)
def test_bad_mixes(sets: dict[str, mix.Member], use: tuple[str, ...], scheme: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(sets, *use, scheme=scheme)


def test_a_fault_names_its_set(sets: dict[str, mix.Member], tmp_path: Path) -> None:
    sorted((tmp_path / "300w/afw").glob("*.pts"))[0].write_text("nothing")
    table = read(sets, "ibug", "ibug_xml", strict=False)
    assert len(table.faults) == 1 and str(table.faults[0]).startswith("ibug/afw/")


def test_every_set_that_reduces_can_be_mixed() -> None:
    """conf/data/mix.yaml repeats the readers and roots of the other files, and must follow them."""
    from omegaconf import OmegaConf

    members = OmegaConf.to_container(OmegaConf.load(CONF / "data/mix.yaml"))["reader"]["sets"]  # type: ignore[index,call-overload]
    for name, member in members.items():
        own = OmegaConf.to_container(OmegaConf.load(CONF / f"data/{name}.yaml"))
        assert member["reader"]["_target_"] == own["reader"]["_target_"]  # type: ignore[index,call-overload]
        assert member["root"] == own.get("root", f"${{paths.data_dir}}/{name}")  # type: ignore[union-attr]
    others = {path.stem for path in (CONF / "data").glob("*.yaml")} - {"base", "mix", "table"}
    assert set(members) == others


def test_training_on_a_mix_gives_metrics_by_set(workspace: Workspace, sets: dict[str, mix.Member]) -> None:
    words = [
        "data=mix", "data.reader.use=[ibug,ibug_xml]", f"data.reader.sets.ibug.root={sets['ibug'].root}",
        f"data.reader.sets.ibug_xml.root={sets['ibug_xml'].root}", "data.reader.sets.ibug.weight=2",
    ]  # fmt: skip
    workspace.run("flr.train", *TINY, *words, "data.batch_size=4")
    metrics = workspace.only_run().data.metrics
    for name in ("ibug", "ibug_xml"):
        assert metrics[f"test/{name}/nme"] > 0 and metrics[f"val/{name}/nme"] > 0
    assert metrics["test/nme"] > 0 and "test/ibug/helen_test/nme" in metrics
    done = workspace.run("flr.evaluate", f"run={workspace.only_run().info.run_id}")
    assert "celeba5" in done.stdout
