"""Runs the real commands, as a user would, in a folder of their own."""

import contextlib
import gc
import importlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch
from uuid import uuid4

import pytest
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings

from flr.cli import run_command
from flr.tracking.provenance import code_digest

# Two cores and two test workers: threads of one would wait for those of the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make test` draws few examples, the same on every machine; `make test-all` draws many new ones.
settings.register_profile("few", max_examples=10, deadline=None, derandomize=True)
settings.register_profile("many", max_examples=100, deadline=None)
settings.load_profile("few")

# The server on which the tests track in place of a sqlite file each, an experiment each; see tests/team.py.
SERVER = os.environ.get("FLR_TEST_TRACKING")
# The model of which `trained` is the only version: a server's models share their names with those of other tests.
MODEL = f"synthetic-heatmap_fpn-{uuid4().hex}" if SERVER else "synthetic-heatmap_fpn"

# A whole run in seconds: the same code paths on small images, a narrow net and few faces.
TINY = (
    "data.crop.size=32", "model.widths=[8,8,8,8]", "model.path=8", "model.blocks=1", "data.batch_size=16",
    "trainer.max_epochs=2", "tracking.system_metrics=false", "callbacks.progress=null", "callbacks.pictures=null",
)  # fmt: skip
PICTURES = "callbacks.pictures={_target_: flr.training.callbacks.ValidationImages, every: 1}"
SMALL_SET = ("data.reader.train=48", "data.reader.val=11", "data.reader.test=9", "data.reader.size=64")


# Files whose tests take longest. They run first, so that no worker ends with one while the other has nothing left.
LONGEST = (
    "test_ranks.py", "test_launchers.py", "test_faults.py", "test_compare.py", "test_tune.py", "test_reproduce.py",
    "test_sweep.py", "test_predict.py", "test_app.py", "test_train.py",
)  # fmt: skip

# The commands that create the tracking database where it is missing.
CREATES_DATABASE = ("flr.train", "flr.tune", "torch.distributed.run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def fill_once(folder: Path, fill: Callable[[Path], object]) -> Path:
    """Fill a folder that all workers share: the first worker does it, the others wait for it.

    Args:
        folder: below ``shared_folder``. It does not exist before.
        fill: writes the folder's content.

    Returns:
        The folder.
    """
    with FileLock(f"{folder}.lock"):
        filled = folder / ".filled"
        if not filled.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            fill(folder)
            filled.touch()
    return folder


def create_database(folder: Path) -> None:
    """Create an empty tracking database, whose migrations take MLflow seconds."""
    from flr.tracking.connection import connect

    with patch.dict(os.environ):  # MLflow keeps the address there, and a later test's run would go to this database
        connect(f"sqlite:///{folder}/mlflow.db")


class Done(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


@dataclass(frozen=True)
class Workspace:
    """A folder with its own outputs and runs; the crop and render caches are shared by a test session.

    Its tracking database begins as a copy of an empty one, unless `new_database` is true.
    """

    path: Path
    cache: Path
    new_database: bool = False
    experiment: str = field(default_factory=lambda: f"test-{uuid4().hex}" if SERVER else "flr")

    @property
    def outputs(self) -> Path:
        return self.path / "outputs"

    @property
    def uri(self) -> str:
        return SERVER or f"sqlite:///{self.outputs}/mlflow.db"

    @property
    def env(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "FLR_"))}
        if SERVER:
            account = {key: os.environ[key] for key in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")}
            env |= {"MLFLOW_TRACKING_URI": SERVER, "MLFLOW_EXPERIMENT_NAME": self.experiment, **account}
        return env | {"FLR_OUTPUT": str(self.outputs), "FLR_CACHE": str(self.cache), "COLUMNS": "200"}

    @property
    def python_path(self) -> str:
        """The PYTHONPATH by which a command of its own process finds a user's module here."""
        return os.pathsep.join(filter(None, (str(self.path), os.environ.get("PYTHONPATH"))))

    def copy_database(self, module: str) -> None:
        database = self.outputs / "mlflow.db"
        if module in CREATES_DATABASE and not (SERVER or self.new_database or database.exists()):
            self.outputs.mkdir(parents=True, exist_ok=True)
            shutil.copy(fill_once(self.cache.parent / "database", create_database) / "mlflow.db", database)

    def start(self, module: str, *words: str, **env: str) -> "subprocess.Popen[str]":
        self.copy_database(module)
        return subprocess.Popen(
            [sys.executable, "-m", module, *words], cwd=self.path, env=self.env | env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # A shell starts its background jobs deaf to Ctrl-C; these commands are to hear it wherever the tests run.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def run(self, module: str, *words: str, code: int = 0, **env: str) -> Done:
        """The command in this process, from its argument list to its exit code: torch is imported once for all."""
        self.copy_database(module)
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.object(sys, "argv", [module, *words]),
            patch.dict(os.environ, self.env | env, clear=True),
            contextlib.chdir(self.path),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            exit_code = 0
            try:
                run_command(importlib.import_module(module).main, module.rpartition(".")[2])
            except SystemExit as end:
                exit_code = int(end.code or 0)
            finally:
                GlobalHydra.instance().clear()
        assert exit_code == code, f"exit {exit_code}\n{out.getvalue()[-3000:]}\n{err.getvalue()[-5000:]}"
        return Done(out.getvalue(), err.getvalue())

    def apart(self, module: str, *words: str, code: int = 0, **env: str) -> Done:
        """The command in a process of its own, for what a process alone can show."""
        process = self.start(module, *words, **env)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"exit {process.returncode}\n{out[-3000:]}\n{err[-5000:]}"
        return Done(out, err)

    def train(self, *words: str, code: int = 0, **env: str) -> Done:
        return self.run("flr.train", *TINY, *SMALL_SET, *words, code=code, **env)

    def refuse(self, module: str, *words: str, **env: str) -> str:
        """The one line with which a command refuses its input: exit 2, no traceback, nothing else."""
        done = self.run(module, *words, code=2, **env)
        lines = [line for line in done.stderr.splitlines() if line.startswith("flr: ")]
        assert len(lines) == 1 and done.stderr.rstrip().endswith(lines[0]), done.stderr
        assert "Traceback" not in done.stderr
        return lines[0]

    def run_code(self, code: str, **env: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=self.path, env=self.env | env, text=True, capture_output=True, check=True
        ).stdout

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def stored(self) -> list:
        """All its runs, oldest first."""
        client = self.client()
        found = client.get_experiment_by_name(self.experiment)
        return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time"]))

    def only_run(self):
        """Its one run."""
        (run,) = self.stored()
        return run

    def folder(self, run_id: str) -> Path:
        return self.outputs / "runs" / run_id


@pytest.fixture(scope="module", autouse=True)
def freeze_imported_objects() -> None:
    """Exclude the imported libraries from garbage collection, which each training runs and which takes .4 s with them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, shared by its workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shared_cache(shared_folder: Path) -> Path:
    folder = shared_folder / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def empty_database(shared_folder: Path) -> Path:
    """A tracking database without a run, to be copied."""
    return fill_once(shared_folder / "database", create_database) / "mlflow.db"


@pytest.fixture(autouse=True)
def no_module_of_another_test() -> Iterator[None]:
    """A user's module, own.py, is another one in each workspace."""
    yield
    sys.modules.pop("own", None)


@pytest.fixture
def workspace(tmp_path: Path, shared_cache: Path) -> Workspace:
    return Workspace(tmp_path, shared_cache)


@pytest.fixture
def own(workspace: Workspace, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace with a user's module in it, own.py, whose text is ``OWN`` of the test file."""
    (workspace.path / "own.py").write_text(request.module.OWN)
    monkeypatch.syspath_prepend(workspace.path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    code_digest.cache_clear()
    yield workspace
    code_digest.cache_clear()


def wait_for_file(process: "subprocess.Popen[str]", file: Path) -> None:
    """Wait until a process has created a file, and remove the file."""
    for _ in range(2400):
        assert process.poll() is None, process.communicate()[1][-3000:]
        if file.exists():
            file.unlink()
            return
        time.sleep(0.05)
    raise AssertionError(f"no {file.name}")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[tuple[Workspace, str]]:
    """One finished tiny run, for tests that only read it."""
    workspace = Workspace(tmp_path_factory.mktemp("trained"), shared_cache)
    name = [f"tracking.register={MODEL}"] if SERVER else []
    workspace.train("augment=standard", PICTURES, *name)
    yield workspace, workspace.only_run().info.run_id


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skip."""
    root = os.environ.get("FLR_DATA")
    if not root or not (Path(root) / "300w").is_dir():
        pytest.skip("FLR_DATA names no folder with real images")
    return Path(root)


@pytest.fixture(scope="session")
def real_forms(real_data: Path, shared_folder: Path) -> Path:
    """Real photos in the forms of some datasets, written by a script that came with them; 40 of each part."""
    script = real_data / "make_forms.py"
    if not script.is_file():
        pytest.skip(f"needs real files: no {script}")
    command = [sys.executable, str(script)]
    return fill_once(
        shared_folder / "forms", lambda folder: subprocess.run([*command, str(folder), "--limit", "40"], check=True)
    )


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Small file systems of their own: root ignores file modes, so only a mount can refuse it."""
    points = []

    def mount(options: str) -> Path:
        point = tmp_path / f"mount{len(points)}"
        point.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(point)], capture_output=True)
        if done.returncode:
            pytest.skip("this machine lets us mount nothing")
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", "-l", str(point)], check=False)


class Server:
    """A real MLflow server, which can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.uri = folder, port, f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
             "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
             "--artifacts-destination", str(self.folder / "store")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.25)
        raise AssertionError("no server")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, free_port: int) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", free_port)
    yield server
    if server.process.poll() is None:
        server.kill()
