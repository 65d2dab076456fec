"""The process of a job on a machine of a cluster."""

import contextlib
import os
import signal
import subprocess
from typing import Any

from flr.sweeps.launchers.base import Task, describe_exit

FOREVER = 1e9  # seconds


class ClusterJob:
    """A job as the function that submitit and Ray call on the machine that they chose."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the job and return its exit code.

        Raises:
            RuntimeError: The job of SLURM's first process failed, so that SLURM marks the job as failed.
        """
        # SLURM sends SIGUSR2 before the time limit to all processes of a job; submitit handles it, and a signal that is
        # ignored stays ignored in a child process.
        warning = getattr(signal, "SIGUSR2", None)  # Windows has neither SLURM nor this signal
        previous_handler = signal.signal(warning, signal.SIG_IGN) if warning else None
        self._process = self.task.start({})
        if warning:
            signal.signal(warning, previous_handler)
        try:
            # With a timeout Python looks every 50 ms; without one Ray's cancellation, which is no signal, is not noticed.
            code = self._process.wait(timeout=FOREVER)
        except BaseException:
            self._terminate()
            raise
        if code and os.environ.get("SLURM_PROCID") == "0":
            raise RuntimeError(describe_exit(code))
        return code

    def checkpoint(self) -> Any:
        """Stop the job before its time limit, as submitit asks; requeued, it resumes from its last whole epoch."""
        # submitit is an extra, and this method runs only in its jobs.
        from submitit.helpers import DelayedSubmission

        self._terminate()
        return DelayedSubmission(ClusterJob(self.task))

    def _terminate(self) -> None:
        if self._process:
            self._process.terminate()
            if hasattr(os, "waitid"):  # not on macOS, nor on Windows, where the job ends without being waited for
                with contextlib.suppress(ChildProcessError):  # it has ended, and was waited for
                    # Popen.wait takes a lock that the interrupted wait above may hold.
                    os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
