"""Report bad input, with the nearest name that would have been right."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. Its text is one line: what, where, the fix. Every command turns it into exit code 2."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class CommandFailed(Exception):
    """A failure that one line describes, its text. Every command turns it into exit code 1, without a traceback."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'X'?)"`` for the closest of `choices`, or all of them where none is close and they are few."""
    names = sorted(map(str, choices))
    close = get_close_matches(str(word), names, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(name[:80] for name in names)})" if 0 < len(names) <= 24 else ""
