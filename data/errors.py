"""The one error type for everything that comes from outside: files, keys, options."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence


class InputError(ValueError):
    """Input that cannot be used.

    The message is one line that names the file, key or object, says what is wrong with it and what
    to do about it. Command-line programs print it without a traceback and exit with status 2.
    """


class WorkerDiedError(RuntimeError):
    """A process that loads data ended before its time; the message says what may have ended it."""


_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = _SHORTENED.maxlong = 80
_SHORTENED.maxlevel = 2


# Also what ends a line, turns its direction or cannot be encoded. Joiners and no-break spaces are
# parts of words.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def control_in(name: str) -> str:
    """The first character of a name that no file, table or message should hold, or ""."""
    found = _CONTROL.search(name)
    return found.group() if found else ""


def shown(value: object) -> str:
    """A value from outside as it may stand in a message: escaped, on one line, never long."""
    return _SHORTENED.repr(value)


def some_of(names: Sequence[str], most: int = 20) -> str:
    """Names as they may stand in a message: the first of them.

    >>> some_of(["cat", "dog"]), some_of(["cat", "dog", "cow"], most=2)
    ('cat, dog', 'cat, dog, ...')
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def unreadable(path: object, error: OSError) -> InputError:
    """What to raise for a file that the system would not open or read."""
    reason = error.strerror or type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); check the path and its permissions")
