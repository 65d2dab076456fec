"""`python -m flr.compare`: the numbers of real runs, what is said of the others, and the page that a person reads."""

import csv
import html
import html.parser
import re
import shutil
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from flr.evaluation.comparison import differences
from tests.conftest import SERVER, Workspace

WIDE, NARROW = "[8, 8, 8, 8]", "[4, 4, 4, 4]"
LEARN = ("trainer.max_epochs=6", "ema=0", "optim.lr=0.02")  # enough to tell nets apart


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Workspace:
    """Two nets with two seeds each, as its experiment; a run that was stopped and one without a test."""
    workspace = Workspace(tmp_path_factory.mktemp("runs"), shared_cache)
    for widths in (WIDE, NARROW):
        for seed in (0, 1):
            workspace.train(*LEARN, f"model.widths={widths.replace(' ', '')}", f"seed={seed}")
    client, experiment = workspace.client(), experiment_of(workspace)
    client.create_run(experiment, run_name="runs still")
    client.set_terminated(client.create_run(experiment, run_name="only trained").info.run_id)
    return workspace


def experiment_of(workspace: Workspace, name: str | None = None) -> str:
    found = workspace.client().get_experiment_by_name(name or workspace.experiment)
    if found:
        return found.experiment_id
    return workspace.client().create_experiment(
        name, None if SERVER else (workspace.outputs / "artifacts" / name).as_uri()
    )


def with_result(workspace: Workspace, experiment: str | None = None) -> list[Any]:
    found = workspace.client().search_runs([experiment_of(workspace, experiment)], order_by=["attributes.start_time"])
    return [run for run in found if "test/nme" in run.data.metrics]


def errors(workspace: Workspace, run: Any) -> dict[str, float]:
    """Face -> NME, percent, from the run's own folder."""
    with (workspace.folder(run.info.run_id) / "errors.csv").open() as file:
        return {row["face"]: float(row["nme"]) for row in csv.DictReader(file)}


def by_widths(workspace: Workspace) -> dict[str, list[Any]]:
    return {
        widths: [run for run in with_result(workspace) if run.data.params["model.widths"] == widths]
        for widths in (WIDE, NARROW)
    }


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def compare(workspace: Workspace, out: Path, *words: str, **env: str):
    return workspace.run("flr.compare", f"out={out}", "samples=2000", *words, **env)


def copy_of(
    workspace: Workspace, run: Any, experiment: str, *, tags: Mapping[str, str] = {}, params: Mapping[str, str] = {},
    metrics: Mapping[str, float] = {},
    status: str = "FINISHED", without: str = "", edit: Mapping[str, Callable[[str], str]] = {},
) -> str:  # fmt: skip
    """The same run once more in another experiment, a little changed."""
    client = MlflowClient(workspace.uri)
    new = client.create_run(experiment_of(workspace, experiment), tags={**run.data.tags, **tags})
    run_id = new.info.run_id
    rows = [Param(key, value) for key, value in {**run.data.params, **params}.items()]
    for first in range(0, len(rows), 100):
        client.log_batch(run_id, params=rows[first : first + 100])
    client.log_batch(
        run_id, metrics=[Metric(key, value, 0, 0) for key, value in {**run.data.metrics, **metrics}.items()]
    )
    folder = workspace.path / "copies" / run_id
    for name in ("evaluation.json", "errors.csv", "checkpoints/best.ckpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(workspace.folder(run.info.run_id) / name, folder / name)
        if name in edit:
            (folder / name).write_text(edit[name]((folder / name).read_text()))
        if name != without:
            client.log_artifact(run_id, str(folder / name), str(Path(name).parent) if "/" in name else None)
    client.set_terminated(run_id, status)
    return run_id


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_runs(runs: Workspace, tmp_path: Path) -> None:
    done = compare(runs, tmp_path, "group=model.widths", "faces=0")
    groups, rows = table(tmp_path / "groups.csv"), table(tmp_path / "runs.csv")
    assert len(rows) == 4 and {row["group"] for row in groups} == {WIDE, NARROW}
    assert all(
        row["commit"] and row["hardware.cpu"] and float(row["minutes"]) > 0 for row in rows
    )  # where they came from
    for row in groups:
        found = by_widths(runs)[row["group"]]
        nmes = [list(errors(runs, run).values()) for run in found]
        expected = {
            "test/nme": [run.data.metrics["test/nme"] for run in found],
            "test/fr8": [100 * sum(value > 8 for value in values) / len(values) for values in nmes],
            "test/auc8": [run.data.metrics["test/auc8"] for run in found],
            "cost/parameters": [float(run.data.params["cost.parameters"]) for run in found],
            "cost/latency_ms": [float(run.data.params["cost.latency_ms"]) for run in found],
            "train/images_per_second": [run.data.metrics["train/images_per_second"] for run in found],
        }
        assert row["runs"] == row["seeds"] == "2"
        for name, values in expected.items():
            assert float(row[name]) == pytest.approx(statistics.mean(values), rel=1e-4, abs=1e-4), name
            assert float(row[f"{name} sd"]) == pytest.approx(statistics.stdev(values), rel=1e-2, abs=1e-3), name
        mean, deviation = statistics.mean(expected["test/nme"]), statistics.stdev(expected["test/nme"])
        cell = f"{mean:.2f} ± {deviation:.2f}"
        assert cell in done.stdout and f"| {cell} |" in (tmp_path / "comparison.md").read_text()
    best_first = [float(row["test/nme"]) for row in groups]
    assert best_first == sorted(best_first)


def test_the_pair_is_tested_over_faces_and_seeds(runs: Workspace, tmp_path: Path) -> None:
    compare(runs, tmp_path, "group=model.widths", "faces=0", "seed=3")
    (row,) = table(tmp_path / "pairs.csv")
    groups = {
        name: np.array([[errors(runs, run)[face] for face in sorted(errors(runs, run))] for run in found])
        for name, found in by_widths(runs).items()
    }
    order = sorted(groups, key=lambda name: groups[name].mean())
    assert [row["first"], row["second"]] == order
    (expected,) = differences({name: groups[name] for name in order}, [(order[0], order[1])], 2000, 3)
    assert float(row["mean"]) == pytest.approx(groups[order[0]].mean() - groups[order[1]].mean(), abs=1e-6) != 0
    assert (float(row["low"]), float(row["high"]), float(row["p"])) == pytest.approx(
        (expected.low, expected.high, expected.p)
    )
    assert row["better"] == (order[0] if expected.p < 0.05 else "")
    compare(runs, tmp_path, "group=model.widths", "faces=0", f"baseline='{order[1]}'", "metric=auc8")
    (other,) = table(tmp_path / "pairs.csv")
    assert (other["first"], other["metric"]) == (order[1], "auc8")


def regrouped(name: Callable[[int], str]) -> dict[str, Callable[[str], str]]:
    """An edit of errors.csv that says of each face, by its row, whom it is of."""

    def edit(text: str) -> str:
        head, *rows = list(csv.reader(text.splitlines()))
        at = head.index("group")
        rows = [[*row[:at], name(i), *row[at + 1 :]] for i, row in enumerate(rows)]
        return "".join(",".join(row) + "\n" for row in [head, *rows])

    return {"errors.csv": edit}


def test_faces_of_one_person_are_drawn_together(runs: Workspace, tmp_path: Path) -> None:
    for run in with_result(runs):
        copy_of(runs, run, "people", edit=regrouped(lambda row: f"person {row // 3}"))
    words = ("tracking.experiment=people", "group=model.widths", "faces=0", "seed=3")
    compare(runs, tmp_path, *words)
    groups = {
        name: np.array([[errors(runs, run)[face] for face in sorted(errors(runs, run))] for run in found])
        for name, found in by_widths(runs).items()
    }
    (row,) = table(tmp_path / "pairs.csv")
    order = {name: groups[name] for name in (row["first"], row["second"])}
    listed = list(errors(runs, with_result(runs)[0]))
    person = np.array([listed.index(face) // 3 for face in sorted(listed)])
    (expected,) = differences(order, [(row["first"], row["second"])], 2000, 3, person)
    assert (float(row["low"]), float(row["high"])) == pytest.approx((expected.low, expected.high))
    assert "9 faces of 3 persons, clips or photos" in (tmp_path / "comparison.md").read_text()
    for run in with_result(runs):
        copy_of(runs, run, "one clip", edit=regrouped(lambda row: "one clip"))
    done = compare(runs, tmp_path, "tracking.experiment=one clip", "group=model.widths", "faces=0")
    assert "as if independent" in done.stdout


def test_runs_that_group_the_same_faces_differently_are_refused(runs: Workspace, tmp_path: Path) -> None:
    for by, run in zip((3, 4), with_result(runs), strict=False):
        copy_of(runs, run, "at odds", edit=regrouped(lambda row, by=by: f"person {row // by}"))
    line = runs.refuse("flr.compare", "tracking.experiment=at odds", "faces=0", f"out={tmp_path}")
    assert "group the same faces differently" in line


def test_what_has_no_result_is_named_and_counted(runs: Workspace, tmp_path: Path) -> None:
    done = compare(runs, tmp_path, "group=model.widths", "faces=0")
    for text in (done.stdout, *((tmp_path / f"comparison.{kind}").read_text() for kind in ("md", "html"))):
        assert "Skipped 2 run(s)" in text
        assert re.search(r"runs still \(\w+\): not finished \(RUNNING\)", text)
        assert re.search(r"only trained \(\w+\): no test result", text)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["where={seed: 0}"], 2),
        (["+where.seed=1", "+where.data=synthetic"], 2),
        (["where={model.widths: ['[8, 8, 8, 8]', '[4, 4, 4, 4]'], seed: [0, 1]}"], 4),
        (["group=[model,seed]"], 4),
        (["metric=fr10"], 4),
    ],
    ids=str,
)
def test_runs_are_chosen_and_grouped(runs: Workspace, tmp_path: Path, words: list[str], count: int) -> None:
    group = [] if words[0].startswith("group") else ["group=model.widths"]
    compare(runs, tmp_path, "faces=0", *group, *words)
    rows = table(tmp_path / "runs.csv")
    assert len(rows) == count
    if words[0].startswith("group"):
        assert {row["group"] for row in rows} == {"heatmap_fpn / 0", "heatmap_fpn / 1"}
    assert ("test/fr10" in rows[0]) == (words == ["metric=fr10"])


def test_runs_by_id_count_also_where_they_were_stopped(runs: Workspace, tmp_path: Path) -> None:
    one, other = with_result(runs)[0], with_result(runs)[2]
    stopped = copy_of(runs, other, "stopped", status="KILLED")
    done = compare(runs, tmp_path, f"runs=[{one.info.run_id},{stopped}]", "group=model.widths", "faces=0")
    assert {row["run"] for row in table(tmp_path / "runs.csv")} == {one.info.run_id, stopped}
    assert "one seed: " in done.stdout and "another seed may reverse" in done.stdout
    line = runs.refuse("flr.compare", "tracking.experiment=stopped", "group=model.widths")
    assert "none of 1 run(s) can be compared" in line and "KILLED" in line


def test_what_spoils_a_spread_is_said(runs: Workspace, tmp_path: Path) -> None:
    """By model both nets are one group, which is then no group of seeds; a repeated run is no second seed."""
    done = compare(runs, tmp_path, "faces=0")
    assert "one group only, heatmap_fpn" in done.stdout
    assert (
        "several runs of seed 0, 1" in done.stdout
        and "group=model pools runs that differ in more than the seed: model.widths" in done.stdout
    )
    assert not (tmp_path / "pairs.csv").exists() and "2 (4 runs)" in done.stdout
    first = with_result(runs)[0]
    for _ in range(2):
        again = copy_of(runs, first, "again", params={"hardware.cpu": "another"})
    done = compare(runs, tmp_path, "tracking.experiment=again", "faces=0")
    assert f"({again}): repeats" in done.stdout and len(table(tmp_path / "runs.csv")) == 1
    copy_of(runs, with_result(runs)[1], "again")
    assert "of different machines" in compare(runs, tmp_path, "tracking.experiment=again", "faces=0").stdout


# -- protocols ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_protocols(runs: Workspace) -> Workspace:
    for run in with_result(runs):
        copy_of(runs, run, "two")
    workspace = Workspace(runs.path, runs.cache)
    workspace.train("trainer.max_epochs=1", "data.reader.test=8", "tracking.experiment=two", "model.widths=[8,8,8,8]")
    return runs


def test_protocols_never_share_a_column(two_protocols: Workspace, tmp_path: Path) -> None:
    done = compare(two_protocols, tmp_path, "tracking.experiment=two", "group=model.widths", "faces=0")
    names = {run.data.tags["flr.protocol"] for run in with_result(two_protocols, "two")}
    assert len(names) == 2
    found = [{row["protocol"] for row in table(tmp_path / f"runs-{i}.csv")} for i in (1, 2)]
    assert all(len(one) == 1 for one in found) and found[0] | found[1] == names
    assert "not compared with the other protocols: they differ in counts, fingerprint" in done.stdout
    parts = re.split("<h2>", (tmp_path / "comparison.html").read_text())
    assert all(any(part.startswith(html.escape(name)) for part in parts) for name in names)
    assert len(list(tmp_path.glob("pairs-*.csv"))) == 1  # the other has one group


def test_one_protocol_but_other_faces_is_refused(runs: Workspace) -> None:
    one, other = with_result(runs)[0], with_result(runs)[2]
    name = sorted(errors(runs, one))[0]
    copy_of(runs, one, "faces")
    copy_of(runs, other, "faces", edit={"errors.csv": lambda text: text.replace(f"{name},", "another,")})
    line = runs.refuse("flr.compare", "tracking.experiment=faces", "group=model.widths")
    assert "not tested on the same faces" in line and f"{name} is not in both" in line


# -- the page ----------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What a page refers to, and the words of its captions."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone_and_shows_the_faces(runs: Workspace, tmp_path: Path) -> None:
    compare(runs, tmp_path, "group=model.widths", "faces=4")
    text = (tmp_path / "comparison.html").read_text()
    page = Page(text)
    faces = [source for source in page.sources if source.startswith("data:image/")]
    links = [source for source in page.sources if f"/experiments/{experiment_of(runs)}/runs/" in source]
    assert len(faces) == len(links) == 4 and len(page.sources) == 8
    assert not {"link", "iframe"} & set(page.tags) and text.count("http") == len(links)
    assert page.tags.count("script") == 1 and page.tags.count("svg") == 2
    assert "% of the faces have an NME up to " in text and "mean face, no model" in text
    assert "Every model is tested once on the 9 test faces" in html.unescape(text)
    best = [min(found, key=lambda run: run.data.metrics["test/nme"]) for found in by_widths(runs).values()]
    one, other = (errors(runs, run) for run in best)
    most = sorted(one, key=lambda face: -abs(one[face] - other[face]))[:4]
    assert set(re.findall("<figcaption>([^<]*?)<br>", text)) == set(most)
    pair = sorted((one, other), key=lambda values: statistics.mean(values.values()))
    for face in most:
        numbers = {f"{face}<br>NME {a[face]:.2f} % and {b[face]:.2f} %" for a, b in (pair, pair[::-1])}
        assert any(words in text for words in numbers)


def test_a_face_is_predicted_as_it_was_scored(runs: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the store's copies alone: the runs' own folders are away."""
    from flr.evaluation import comparison_faces

    seen = []

    def record(*arguments: Any) -> Any:
        found = predict(*arguments)
        seen.append((arguments[1], arguments[2], found))
        return found

    predict = comparison_faces.predict
    monkeypatch.setattr(comparison_faces, "predict", record)
    folders = runs.outputs / "runs"
    folders.rename(runs.outputs / "away")
    try:
        compare(runs, tmp_path, "group=model.widths", "faces=9")
    finally:
        (runs.outputs / "away").rename(folders)
    assert len(seen) == 2 and seen[0][0].run.run_id != seen[1][0].run.run_id
    for result, chosen, faces in seen:
        assert len(faces) == 9
        for face, (picture, truth, points, labelled) in zip(chosen, faces, strict=True):
            assert picture.shape == (32, 32, 1) and labelled.all()
            distance = np.linalg.norm(truth[36] - truth[45])  # a crop keeps ratios
            nme = np.linalg.norm(points - truth, axis=1).mean() / distance
            assert nme == pytest.approx(result.nme[face], rel=1e-3)


@pytest.mark.parametrize(
    ("without", "edit", "said"),
    [
        ("checkpoints/best.ckpt", {}, "best.ckpt is not in the tracking store"),
        ("", {"evaluation.json": lambda text: re.sub('"fingerprint": "[^"]*"', '"fingerprint": "0"', text)}, "no longer"),
    ],
    ids=["no checkpoint", "other data"],
)  # fmt: skip
def test_the_page_says_why_it_has_no_faces(
    runs: Workspace, tmp_path: Path, without: str, edit: dict[str, Callable[[str], str]], said: str
) -> None:
    name = f"no faces {bool(without)}"
    for run in with_result(runs):
        copy_of(runs, run, name, without=without, edit=edit)
    done = compare(runs, tmp_path, f"tracking.experiment={name}", "group=model.widths")
    text = (tmp_path / "comparison.html").read_text()
    assert "no faces" in done.stdout and said in done.stdout and said in text
    assert "data:image/" not in text


def test_names_from_outside_are_words_only(runs: Workspace, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>|$x_{[red]"
    for run, name in zip(with_result(runs), (hostile, hostile, "_hidden", "_hidden"), strict=True):
        copy_of(runs, run, "hostile", tags={"flr.model": name})
    done = compare(runs, tmp_path, "tracking.experiment=hostile", "faces=1")
    assert "[red]" in done.stdout and "_hidden" in done.stdout
    text = (tmp_path / "comparison.html").read_text()
    assert Page(text).tags.count("script") == 1 and html.escape(hostile) in text
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|") and "NME" not in line}
    assert cells == {8, 10}  # no cell more for the bar in the name


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(
            ["tracking.experiment=flrr"], "no such experiment there (did you mean 'flr'?)",
            marks=pytest.mark.sqlite("no other test's experiments beside it"),
        ),
        (["group=modle"], "group: no run has a tag or parameter 'modle' (did you mean 'model'?)"),
        (["group=[model,sede]"], "(did you mean 'seed'?)"),
        (["group=[]"], "group=[]"),
        (["where={date: ibug}"], "where: no run has a tag or parameter 'date' (did you mean 'data'?)"),
        (["where={data: synthetc}"], "where.data=synthetc: no run has this value (did you mean 'synthetic'?)"),
        (["where={seed: 0, model.widths: '[4, 4, 4, 4]', data: synthetic}", "baseline=x"], "baseline=x: no such group"),
        (["where={model: [heatmap_fpn, {a: b}]}"], "expected"),
        (["where=model"], "where=model: expected a mapping, written as 'where={KEY: VALUE}'"),
        (["where=model=resnet18"], "a mapping is written 'where={model: resnet18}'"),
        (["runs=[0123456789abcdef0123456789abcdef]"], "no run 0123456789abcdef0123456789abcdef"),
        (["runs=a"], "runs=a: expected"),
        (["samples=10"], "samples=10: expected"),
        (["group=model.widths", "baseline='[8, 8, 8]'"], "baseline=[8, 8, 8]: no such group (did you mean '[8, 8, 8, 8]'?)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_words(runs: Workspace, words: list[str], said: str) -> None:
    assert said in runs.refuse("flr.compare", *words)
    assert not (runs.outputs / "comparisons").exists()


@pytest.mark.sqlite("a file that is not there")
def test_a_store_that_is_not_there(workspace: Workspace, free_port: int) -> None:
    assert "no such database" in workspace.refuse("flr.compare")
    assert not workspace.outputs.exists()  # asking makes nothing
    line = workspace.refuse("flr.compare", f"tracking.uri=http://127.0.0.1:{free_port}")
    assert "no MLflow server answers" in line
    workspace.outputs.mkdir()
    (workspace.outputs / "mlflow.db").touch()
    assert "no such experiment" in workspace.refuse("flr.compare")


@pytest.mark.parametrize(
    ("without", "edit", "said"),
    [
        ("errors.csv", {}, "errors.csv is not in the tracking store"),
        ("evaluation.json", {}, "evaluation.json is not in the tracking store"),
        ("", {"errors.csv": lambda text: re.sub(r"(\n[^,]*),[^,]*", r"\1,much", text, count=1)}, "errors.csv is damaged"),
        ("", {"errors.csv": lambda text: re.sub(r"\n([^,]*,[^,]*),[^\n]*\n$", r"\n\1\n", text)}, "cut before its group"),
        ("", {"errors.csv": lambda text: text + text.splitlines()[-1] + "\n"}, "names a face twice"),
        ("", {"errors.csv": lambda text: "\n".join(text.splitlines()[:4])}, "not of one evaluation"),
        ("", {"evaluation.json": lambda text: text[:100]}, "evaluation.json is damaged"),
    ],
    ids=range(7),
)  # fmt: skip
def test_a_run_whose_files_are_gone_or_damaged_is_named(
    runs: Workspace, tmp_path: Path, without: str, edit: dict[str, Callable[[str], str]], said: str
) -> None:
    name = tmp_path.name
    bad = copy_of(runs, with_result(runs)[0], name, without=without, edit=edit)
    line = runs.refuse("flr.compare", f"tracking.experiment={name}", f"out={tmp_path}")
    assert said in line and bad in line
    copy_of(runs, with_result(runs)[1], name)
    done = compare(runs, tmp_path, f"tracking.experiment={name}", "faces=0")
    assert "Skipped 1 run(s)" in done.stdout and said in done.stdout


def test_reading_needs_no_torch(runs: Workspace, tmp_path: Path) -> None:
    code = (
        "import sys; from flr.compare import main; from flr.cli import run_command; "
        f"sys.argv[1:] = ['group=model.widths', 'faces=0', 'out={tmp_path}']; run_command(main, 'compare'); "
        "print('loaded', sorted({'torch', 'pytorch_lightning'} & set(sys.modules)))"
    )
    assert runs.run_code(code).splitlines()[-1] == "loaded []"
    assert (tmp_path / "comparison.html").is_file()
