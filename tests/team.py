"""A team's server for the tests that track: ``python -m pytest -p tests.team`` (``make test-team``) runs them against it.

``FLR_TEST_TRACKING`` with an admin's ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD`` names one that runs
already; it should be a new one, since some names of experiments and models are the tests' own.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "team_tracking.sh"
PASSWORD = secrets.token_urlsafe(16)


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def start(folder: Path, **env: str) -> tuple["subprocess.Popen[str]", str]:
    """The script's process, once the server answers, and the address. Its words go to ``server.log`` in `folder`."""
    port, pgport = free_ports()
    own = {"PORT": str(port), "PGPORT": str(pgport), "WORKERS": "2", "BIN": str(Path(sys.executable).parent)}
    log = folder / "server.log"
    with log.open("w") as words:
        process = subprocess.Popen(
            [str(SCRIPT), str(folder / "team")], env=os.environ | own | env, stdout=words, stderr=words, text=True,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    uri = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=5)
            return process, uri
        except OSError:
            pass
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    raise RuntimeError(f"{SCRIPT.name} ended with {process.returncode}:\n{log.read_text()[-3000:]}")


def stop(process: "subprocess.Popen[str]") -> int:
    """Ctrl-C in the script's terminal; its exit code."""
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(60)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    if "FLR_TEST_TRACKING" in os.environ:  # one that runs; in xdist's workers always
        return
    folder = Path(tempfile.mkdtemp(prefix="flr-team-"))
    folder.chmod(0o711)  # where root runs the tests, PostgreSQL's own user must pass
    process, uri = start(folder, MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD, DEFAULT_PERMISSION="READ")
    os.environ |= {
        "FLR_TEST_TRACKING": uri, "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD
    }  # fmt: skip
    early_config.add_cleanup(lambda: shutil.rmtree(folder))
    early_config.add_cleanup(lambda: stop(process))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that track: those with a workspace, and the tracking's own."""
    tracks = [item for item in items if "shared_cache" in item.fixturenames or "tests/tracking" in item.nodeid]
    config.hook.pytest_deselected(items=[item for item in items if item not in tracks])
    items[:] = tracks
    for item in items:
        if mark := item.get_closest_marker("sqlite"):
            item.add_marker(pytest.mark.skip(reason=f"of the embedded store alone: {mark.args[0]}"))
