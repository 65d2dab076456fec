"""Link to MLflow's pages, and keep the view of an experiment that the links open: its columns, order and charts."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from flr.tracking.connection import PREFIX, SQLITE

LOCAL_SERVER = "http://127.0.0.1:5000"  # where `make ui` shows the embedded store
# MLflow opens its GenAI pages for every link that does not name the model-training pages.
WORKFLOW = {"workflowType": "machine_learning"}
VIEW = "flr"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMNS = (
    *(f"metrics.`{name}`" for name in ("test/nme", "val/nme", "test/fr8", "test/auc8")),
    *(f"tags.`{PREFIX}{name}`" for name in ("model", "data", "seed")),
    "params.`trainer.max_epochs`",
)  # fmt: skip
CURVES = (("train/loss",), ("val/nme", "val/baseline_nme"), ("lr",), ("train/images_per_second",))
# Sections that MLflow makes of the other metrics; they begin closed.
OTHER_SECTIONS = ("train", "val", "test", "trial", "best", "trials", "Model metrics", "System metrics")


def experiment_page(uri: str, experiment_id: str) -> str:
    """Return the link to the table of the runs of an experiment."""
    query = WORKFLOW | {"viewStateShareKey": VIEW}
    return f"{_server(uri)}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the link to the page of a run."""
    return f"{_server(uri)}/#/experiments/{experiment_id}/runs/{run_id}?{urlencode(WORKFLOW)}"


def artifact(run_id: str, path: str) -> str:
    """Return the link of an artifact in the description of its run."""
    return f"get-artifact?{urlencode({'path': path, 'run_uuid': run_id})}"


def server_hint(uri: str) -> str:
    """Return the command that shows the embedded store; empty where a server runs already."""
    return f"mlflow server --port 5000 --backend-store-uri {uri}" if uri.startswith(SQLITE) else ""


def _server(uri: str) -> str:
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else LOCAL_SERVER


def view_state() -> str:
    """Return the view as the value of the experiment's tag `VIEW_TAG`, the same each time."""
    sections = [("curves", "Training", True), ("results", "Results", True)]
    sections += [(f"other-{name}", name, False) for name in OTHER_SECTIONS]
    state = {
        "orderByKey": "metrics.`test/nme`",
        "orderByAsc": True,
        "searchFilter": "",
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "compareRunSections": [
            {"uuid": uuid, "name": name, "display": shown, "isReordered": True, "columns": 2, "cardHeight": 360}
            for uuid, name, shown in sections
        ],
        "compareRunCharts": list(_charts()),
    }
    return json.dumps(state)


def _charts() -> Iterator[dict[str, Any]]:
    card = {"deleted": False, "isGenerated": False, "runsCountToCompare": 20}
    line = {"type": "LINE", "metricSectionId": "curves", "scaleType": "linear", "xAxisKey": "step", "lineSmoothness": 0}
    for names in CURVES:
        yield card | line | {"uuid": f"line-{names[0]}", "metricKey": names[0], "selectedMetricKeys": list(names)}
    results = card | {"metricSectionId": "results"}
    yield results | {"uuid": "bar-test", "type": "BAR", "metricKey": "test/nme"}
    yield results | {"uuid": "faces", "type": "IMAGE", "imageKeys": ["validation"], "step": 0, "showRunParams": False}
