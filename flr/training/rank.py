"""``python -m flr.training.rank FILE``: train as one rank of a run. `flr.training.distributed.run_ranks` starts it."""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from flr.system import set_parent_death_signal

GRACE = 5.0  # seconds for the agent to end this rank where it failed only because another rank has ended


def main(file: Path) -> None:
    """Train as the rank that the environment names, and record an error for the process that started it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    training = json.loads(file.read_text(encoding="utf-8"))
    set_parent_death_signal(training["parent"], signal.SIGKILL)
    os.environ.setdefault("OMP_NUM_THREADS", str(training["threads"]))  # else each rank has a thread for every core
    # These imports take seconds, in which a signal is to end the rank too, and read the number of threads.
    from flr.cli import quiet
    from flr.errors import UserError
    from flr.training.resume import RankSession

    quiet()
    try:
        RankSession(training).run()
    except UserError as error:
        _end(error, 2)
    except Exception as error:
        time.sleep(GRACE)  # a collective fails where another rank has ended
        traceback.print_exc()
        _end(error, 1)


def _end(error: Exception, code: int) -> NoReturn:
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a process group of GPUs that lacks a rank may never be left


if __name__ == "__main__":
    main(Path(sys.argv[1]))
