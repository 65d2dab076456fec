"""Dispatch ``flr COMMAND ...`` and ``python -m flr COMMAND ...`` to the module of the command."""

import os
import runpy
import sys
from collections.abc import Sequence

from flr import __version__, exit_without_training_packages
from flr.config.describe import split_docstring
from flr.config.schema import COMMANDS
from flr.errors import nearest


def main() -> None:
    """Run the command that the arguments name; print the list of commands where they name none."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        try:
            print(overview(), flush=True)
        except BrokenPipeError:
            sys.stdout = None  # the reader of the output has ended, as `| head` does
    elif words[0] == "--version":
        print(f"flr {__version__}")
    elif words[0] in ("-sc", "--shell_completion"):
        complete(words)
    elif words[0] in COMMANDS:
        run(words[0], words[1:])
    else:
        print(f"flr: no command '{words[0]}'{nearest(words[0], COMMANDS)}; flr --help lists them", file=sys.stderr)
        sys.exit(2)


def run(command: str, words: Sequence[str]) -> None:
    """Run a command as ``python -m flr.COMMAND`` does."""
    exit_without_training_packages(command)
    sys.argv = ["flr", *words]
    runpy.run_module(f"flr.{command}", run_name="__main__")


def overview() -> str:
    """List the commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {split_docstring(schema.__doc__ or '')[0]}" for name, schema in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: flr COMMAND [KEY=VALUE ...]",
            "",
            "Train, track and evaluate facial-landmark models.",
            "",
            "Commands:",
            *lines,
            "",
            "flr COMMAND --help lists the config groups and keys of a command.",
            'eval "$(flr -sc install=bash)" turns on tab completion in bash.',
            "flr --version prints the version.",
        ]
    )


def complete(words: Sequence[str]) -> None:
    """Complete a command line with Hydra's plugin, which does not know that flr has commands.

    Args:
        words: The arguments of Hydra's ``-sc``. For ``query=bash`` the line to complete is in COMP_LINE.
    """
    line = os.environ.get("COMP_LINE", "")
    program, _, rest = line.lstrip().partition(" ")
    command, space, overrides = rest.lstrip().partition(" ")
    if not any(word.startswith("query=") for word in words):
        run("train", words)  # the script to install is the same for every command
    elif not space:
        print(" ".join(COMMANDS))
    elif command in COMMANDS:
        os.environ["COMP_LINE"] = f"{program} {overrides}"
        run(command, words)


if __name__ == "__main__":
    main()
