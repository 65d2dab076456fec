"""Run commands: composition, help, exit codes and error lines, in one place.

Exit codes: 0 success; 2 bad input, with one line; 1 a failure of the command itself; 130 Ctrl-C; 143 SIGTERM.
"""

import contextlib
import functools
import importlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flr.config.compose import CONF, compose_command, compose_known, explain, groups, refused_key
from flr.config.help import help_page
from flr.config.validate import accepts
from flr.errors import CommandFailed, UserError, nearest

SWEEP_OPTIONS = {"-m", "--multirun"}
OPTIONS = {"-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", *SWEEP_OPTIONS}
OPTIONS_WITH_VALUE = {
    "-c", "--cfg", "-p", "--package", "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name", "-cd",
    "--config-dir", "--experimental-rerun", "-i", "--info",
}  # fmt: skip

# Context managers that are closed when the command exits, such as the sweep that it started.
exit_stack = contextlib.ExitStack()


def run_command(work: Callable[[DictConfig], None], config_name: str, exit_on_sigterm: bool = False) -> None:
    """Compose a command's config and run it; turn a user's error into one line and exit code 2.

    Args:
        work: What the command does.
        config_name: Name of its config in ``conf/``.
        exit_on_sigterm: Whether SIGTERM raises SystemExit with code 143, so that nothing stays half done. Trainings handle
            SIGTERM themselves.
    """
    if exit_on_sigterm:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, and they are reported here

    @functools.wraps(work)
    def job(cfg: DictConfig) -> None:
        try:
            work(cfg)
        except UserError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            _refuse(str(error))  # before Hydra adds lines of its own

    try:
        check_arguments(sys.argv[1:], config_name)
        with exit_stack:
            if {"-h", "--help"} & set(sys.argv[1:]):
                words = zip(sys.argv, sys.argv[1:], strict=False)
                overrides = [word for before, word in words if not {before, word[:1]} & {"-", *OPTIONS_WITH_VALUE}]
                print(help_page(config_name, compose_command(config_name, overrides)))
            else:
                _run_with_hydra(job, config_name)
    except BrokenPipeError:
        sys.stdout = None  # the reader of the output has ended, as `| head` does
    except UserError as error:
        _refuse(str(error))
    except CommandFailed as error:
        print(f"flr: {error}", file=sys.stderr)
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(explain(error, config_name))
    except ValueError as error:
        if "Only one of --run" in str(error):
            _refuse(f"{' '.join(str(error).split())}; leave out -m to see one job's config")
        if "Config group override must be a string" not in str(error):
            raise
        _refuse("a config group cannot be null; name one of its choices (callbacks.NAME=null removes a callback)")
    except RecursionError:
        _refuse("the input is nested too deeply for a config, a record or a checkpoint; name another file")
    except KeyboardInterrupt:
        print("flr: interrupted", file=sys.stderr)
        sys.exit(130)


def _run_with_hydra(job: Callable[[DictConfig], None], config_name: str) -> None:
    """Run a command's job; add an argument of a constructor that the YAML of its node does not list."""
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except HydraException as error:
        key = refused_key(error)
        words = [f"+{word}" if word.partition("=")[0] == key else word for word in sys.argv[1:]]
        if key is None or words == sys.argv[1:] or not accepts(compose_known(config_name), key):
            raise
        sys.argv[1:] = words
        _run_with_hydra(job, config_name)


def check_arguments(words: Sequence[str], command: str) -> None:
    """Check the form of a command line before Hydra parses it.

    Raises:
        UserError: An unknown option, a word that is no override, or a sweep of a command other than train.
    """
    for before, word in zip(["", *words], words, strict=False):
        option = word.partition("=")[0]
        if word.startswith("-"):
            if option not in OPTIONS | OPTIONS_WITH_VALUE:
                raise UserError(
                    f"{option}: no such option{nearest(option, OPTIONS)}; flr {command} --help lists the keys"
                )
            if option in SWEEP_OPTIONS and command not in ("train", "tune"):
                raise UserError(
                    f"{option} sweeps over trainings only; leave it out, and run flr {command} once per value"
                )
        elif before.count("{") > before.count("}") or before.count("[") > before.count("]"):
            key = before.partition("=")[0]
            raise UserError(f"{before}: the shell split the value at a blank; put quotes around it: '{key}=...'")
        elif "=" not in word and not word.startswith("~") and before not in OPTIONS_WITH_VALUE:
            raise UserError(f"'{word}' sets nothing; write KEY=VALUE, as {_as_override(word)}")


def _as_override(word: str) -> str:
    """Guess what a word without ``=`` was meant to set."""
    group = next((group for group in groups() if (CONF / group / f"{word}.yaml").is_file()), None)
    if group or Path(word).exists():
        return f"{group or 'run'}={word}"
    return f"{word.lstrip('+') or 'seed'}=VALUE"


def _refuse(text: str) -> NoReturn:
    print(f"flr: {text}", file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End the command on an error even where Hydra would turn it into a warning, as in its callbacks."""
    try:
        yield
    except (UserError, HydraException) as error:
        _refuse(" ".join(str(error).split()))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def quiet() -> None:
    """Silence Lightning's tips and its warnings about intended settings, and MLflow's links; errors stay."""
    importlib.import_module("pytorch_lightning")  # which sets the level of its loggers
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    # They would follow the line that says why a job failed.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
