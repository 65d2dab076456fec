"""Write the tables of the README and of the documentation site from the files of `experiments/` and `benchmarks/`.

``python -m scripts.docs_tables`` rewrites the tables of `WRITTEN`, which lie between ``<!-- table: NAME -->`` and
``<!-- end -->``. The site fills the same markers when it is built.
"""

import csv
import functools
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Files that are read outside of the site, with their tables.
WRITTEN = ("README.md", "benchmarks/README.md", "experiments/fair/README.md")
# Folder of a comparison in experiments/fair/ -> the set.
FAIR_SETS = {"300w": "300-W", "youtube": "YouTube Faces", "celeba5": "300-W, 5 points", "kaggle15": "300-W, 15 points"}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"(\d+(\.\d+)?)?( ± [\d.]+| [MG])?")
BASELINE = "resnet18"  # 100 % of the mean corruption error
SOURCES = {
    "heatmap_fpn": "feature pyramid with one heatmap a point",
    "hourglass": "2 stacks, Newell et al. 2016",
    "hourglass4": "4 stacks, Newell et al. 2016",
    "hrnet": "HRNetV2-W18, Wang et al. 2020",
    "pipnet": "head of Jin et al. 2021 on `resnet18`",
    "rtmpose": "head of Jiang et al. 2023 on `mobilenet_v2`",
    "resnet18": "He et al. 2015",
    "pfld": "Guo et al. 2019",
    "mobilenet_v2": "Sandler et al. 2018",
    "sepconv": "published 300-W system, after Chollet 2017",
    "sepconv_light": "published 300-W system, after Chollet 2017",
    "ytf_cnn": "published YouTube Faces system",
    "ytf_cnn_wide": "published YouTube Faces system",
    "muct_cnn": "published Kaggle system",
    "celeba_cnn": "published CelebA system",
}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Join a header and rows to a Markdown table, numbers to the right."""
    rule = [
        "---:" if rows and all(NUMBER.fullmatch(row[i]) for row in rows) and any(row[i] for row in rows) else "---"
        for i in range(len(header))
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))


def _json(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def _csv(path: str) -> list[dict[str, str]]:
    with (ROOT / path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _mean(rows: Sequence[Mapping[str, str]], key: str, digits: int) -> str:
    values = [float(row[key]) for row in rows]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _recorded(name: str) -> list[str]:
    rows = _csv(f"experiments/{name}/results.csv")
    return [_mean(rows, "test/nme", 2), _mean(rows, "test/fr8", 1), _mean(rows, "test/auc8", 1)]


def _evaluated(name: str) -> list[str]:
    """Read the test on 300-W's helen photos that a result.json gives last of those with mirrored averaging."""
    tests = [
        evaluation["metrics"]
        for evaluation in _json(f"experiments/{name}/result.json")["evaluations"]
        if evaluation["split"] == "test" and evaluation["faces"] == 330
    ]
    best = min(tests, key=lambda metrics: float(metrics["nme"]))
    return [f"{best['nme']:.2f}", f"{best['fr8']:.1f}", f"{best['auc8']:.1f}"]


def _count(value: str, digits: int = 1) -> str:
    number = float(value)
    unit, size = ("G", 1e9) if number >= 1e9 else ("M", 1e6)
    return f"{number / size:.{digits if number / size < 100 else 0}f} {unit}"


def results() -> str:
    """Write the least errors on 300-W's helen photos."""
    trees = _json("benchmarks/results/trees.json")["errors_percent"]["dlib's trees"]
    seeds = len(_csv("experiments/records/tiny/results.csv"))
    tiny = _csv("experiments/records/tiny/results.csv")
    return markdown(
        ["what", "NME, %", "FR at 8 %", "AUC at 8 %"],
        [
            ["`experiment=records/flagship`: 4.6 M parameters, 128 px", *_recorded("records/flagship")],
            ["`experiment=best/heatmap_fpn`: the default model, 60 epochs (12 minutes on two cores)", *_evaluated("best/heatmap_fpn")],
            [f"`experiment=records/tiny`: 0.5 M parameters, 80 px; {seeds} seeds", *_recorded("records/tiny")],
            ["dlib's regression trees, trained on the same photos",
             f"{trees['truth nme']:.2f}", f"{trees['truth fr8']:.1f}", f"{trees['truth auc8']:.1f}"],
            ["`experiment=best/synthetic_transfer`: rendered faces only, no photo in training", *_evaluated("best/synthetic_transfer")],
            ["`experiment=best/sepconv_light`: 64 px, 20 epochs", *_evaluated("best/sepconv_light")],
            ["mean face of the training photos", f"{float(tiny[0]['test/baseline_nme']):.2f}", "", ""],
        ],
    )  # fmt: skip


def _model(row: Mapping[str, str]) -> str:
    """Return the name of a group, without the folder of its experiment."""
    return row["group"].rpartition("/")[2]


def models() -> str:
    """Write every model with its cost, and its error under one recipe."""
    nets = _json("benchmarks/results/inference.json")["nets"]
    mean_face = float(_csv("experiments/records/tiny/results.csv")[0]["test/baseline_nme"])
    rows = []
    for group in sorted(_csv("experiments/fair/300w/groups.csv"), key=lambda row: float(row["test/nme"])):
        name = _model(group)
        cost = [_count(group["cost/parameters"]), _count(group["cost/macs"])]
        latency = f"{nets[name]['ms']['fp32']:.1f}" if name in nets else ""
        rows.append([f"`{name}`", SOURCES.get(name, ""), *cost, latency, _nme(group)])
    return markdown(["`model=`", "source", "parameters¹", "MACs¹", "ms a face²", "NME, %³"], rows) + (
        "\n¹ Parameters and multiply-accumulates at 64 px.\n"
        "² ONNX Runtime, one core, 128 px, 68 points, from a photo and a box to points (`benchmarks/results/inference.json`).\n"
        "³ 300-W, 330 helen test faces, 64 px and 20 epochs of one recipe; ± over seeds (`experiments/fair/`). "
        f"Models that learn slowly look worse than they are; the mean face has an error of {mean_face:.1f} %.\n"
    )


def _nme(group: Mapping[str, str]) -> str:
    """Write a group's mean NME, and its standard deviation over seeds where there are several."""
    spread = f" ± {float(group['test/nme sd']):.2f}" if int(group["seeds"]) > 1 else ""
    return f"{float(group['test/nme']):.2f}{spread}"


def _ranked(folder: str, label: str) -> str:
    """Write the errors of the groups of a comparison, and how far each is behind the best."""
    groups = sorted(_csv(f"{folder}/groups.csv"), key=lambda row: float(row["test/nme"]))
    best = groups[0]["group"]
    # Groups are sorted by error, so the best one is the first of each of its pairs.
    behind = {row["second"]: row for row in _csv(f"{folder}/pairs.csv") if row["first"] == best}
    rows = []
    for group in groups:
        row = behind.get(group["group"])
        distance = f"{-float(row['mean']):.2f} ({-float(row['high']):.2f} to {-float(row['low']):.2f})" if row else ""
        chance = f"{float(row['p holm']):.3f}" if row else ""
        rows.append(
            [f"`{_model(group)}`", group["seeds"], _nme(group), f"{float(group['test/fr8']):.1f}", distance, chance]
        )  # fmt: skip
    return markdown([label, "seeds", "NME, %", "FR at 8 %", "behind the best, 95 % interval", "p, Holm"], rows)


def objectives() -> str:
    """Write the errors of all objectives on one backbone."""
    return _ranked("experiments/fair/objectives", "`objective=`")


def architectures() -> str:
    """Write the errors of all models under one recipe."""
    return _ranked("experiments/fair/300w", "`model=`")


def sets() -> str:
    """Write the errors of the models on each set of the fair table."""
    columns = {
        title: {_model(row): _nme(row) for row in _csv(f"experiments/fair/{folder}/groups.csv")}
        for folder, title in FAIR_SETS.items()
    }
    models = [_model(row) for row in _csv("experiments/fair/youtube/groups.csv")]
    rows = [[f"`{model}`", *(groups.get(model, "") for groups in columns.values())] for model in models]
    return markdown(["NME, %", *columns], rows)


def stress() -> str:
    """Write the errors of models under each corruption, means over the severities, and relative to `BASELINE`."""
    models = {row["run"]: _model(row) for row in _csv("experiments/fair/300w/runs.csv")}
    nmes: dict[str, dict[str, list[float]]] = {}
    for row in _csv("experiments/fair/300w/stress.csv"):
        nmes.setdefault(models[row["run"]], {}).setdefault(row["kind"], []).append(float(row["nme"]))
    means = {model: {kind: statistics.mean(values) for kind, values in kinds.items()} for model, kinds in nmes.items()}
    corrupted = [kind for kind in means[BASELINE] if kind != "clean"]
    rows = []
    for model, kinds in sorted(means.items(), key=lambda item: item[1]["clean"]):
        ratio = statistics.mean(kinds[kind] / means[BASELINE][kind] for kind in corrupted)
        errors = [f"{kinds[kind]:.1f}" for kind in corrupted]
        rows.append([f"`{model}`", f"{kinds['clean']:.1f}", f"{100 * ratio:.0f}", *errors])
    heads = [kind.replace("_", " ") for kind in corrupted]
    return markdown(["NME, %", "clean", "mCE, %", *heads], rows)


def trees(size: int) -> str:
    """Write the errors of dlib's regression trees and of models with crops of a size under each corruption, means over the severities."""
    results = sorted(
        _json(f"benchmarks/results/stress_{size}px.json")["results"], key=lambda result: float(result["mce"])
    )
    rows = [
        [result["label"].removesuffix(" seed 0"), f"{result['clean']:.1f}", f"{result['mce']:.0f}",
         *(f"{statistics.mean(values):.1f}" for values in result["nme"].values())]
        for result in results
    ]  # fmt: skip
    return markdown(["NME, %", "clean", "mCE, %", *(kind.replace("_", " ") for kind in results[0]["nme"])], rows)


def zoo() -> str:
    """Write the table of models with their records."""
    lines = models().splitlines()
    table = [line for line in lines if line.startswith("|")]
    out = [f"{table[0]} record |", f"{table[1]} --- |"]
    for line in table[2:]:
        name = line.split("`")[1]
        records = [path for path in ("published", "best") for suffix in (name, f"ibug_{name}")
                   if (ROOT / "experiments" / path / suffix).is_dir() for path in (f"{path}/{suffix}",)]  # fmt: skip
        out.append(f"{line} {', '.join(f'`{record}`' for record in records)} |")
    return "\n".join([*out, *lines[len(table) :], ""])


def boxes() -> str:
    """Write the errors by the true box, by one jittered by 10 % and by Haar's, of dlib's trees and of two models."""
    rows = [
        [name.replace("records/", "`records/", 1).replace(", seed", "`, seed", 1).replace("two looks", "one refinement"),
         *(f"{errors[f'{box} nme']:.2f}" for box in ("truth", "jitter .1", "haar"))]
        for name, errors in _json("benchmarks/results/trees.json")["errors_percent"].items()
    ]  # fmt: skip
    return markdown(["NME, %", "true box", "jittered by 10 %", "Haar's box"], rows)


def latency() -> str:
    """Write milliseconds a face of each exported model."""
    nets = sorted(_json("benchmarks/results/inference.json")["nets"].items(), key=lambda item: item[1]["ms"]["fp32"])
    return markdown(
        ["`model=`", "PyTorch", "ONNX Runtime", "ONNX Runtime, int8", "MB", "MB, int8"],
        [
            [f"`{name}`", *(f"{net['ms'][kind]:.1f}" for kind in ("torch", "fp32", "int8")),
             *(f"{net['bytes'][kind] / 1e6:.1f}" for kind in ("fp32", "int8"))]
            for name, net in nets
        ],
    )  # fmt: skip


TABLES: Mapping[str, Callable[[], str]] = {
    "results": results,
    "models": models,
    "architectures": architectures,
    "objectives": objectives,
    "sets": sets,
    "stress": stress,
    "trees64": functools.partial(trees, 64),
    "trees128": functools.partial(trees, 128),
    "zoo": zoo,
    "boxes": boxes,
    "latency": latency,
}


def fill(text: str) -> str:
    """Write the tables between their markers anew."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


if __name__ == "__main__":
    for name in WRITTEN:
        file = ROOT / name
        file.write_text(fill(file.read_text(encoding="utf-8")), encoding="utf-8")
