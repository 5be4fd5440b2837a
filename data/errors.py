"""Errors for bad input (files, keys, options), and how their messages show values."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence


class InputError(ValueError):
    """Input that cannot be used: a file, a config key, an option.

    The message is one line that names the file, key or object, says what is wrong with it and how
    to fix it. Command-line programs print it without a traceback and exit with status 2.
    """


class WorkerDiedError(RuntimeError):
    """A data-loading worker process died; the message names a likely cause."""


_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = _SHORTENED.maxlong = 80
_SHORTENED.maxlevel = 2


# Includes characters that end a line, change the text direction or cannot be encoded. Joiners and
# no-break spaces are left out, because they are parts of words.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def control_in(name: str) -> str:
    """Return the first control character in a name, or "" if there is none."""
    found = _CONTROL.search(name)
    return found.group() if found else ""


def shown(value: object) -> str:
    """Format a value from outside for a message: escaped, on one line, shortened."""
    return _SHORTENED.repr(value)


def some_of(names: Sequence[str], most: int = 20) -> str:
    """Join names for a message; at most the first ``most`` of them are listed.

    >>> some_of(["cat", "dog"]), some_of(["cat", "dog", "cow"], most=2)
    ('cat, dog', 'cat, dog, ...')
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def unreadable(path: object, error: OSError) -> InputError:
    """Build the error for a file that cannot be opened or read."""
    reason = error.strerror or type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); check the path and its permissions")
