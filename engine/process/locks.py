"""Locks on files and folders, which end with the process that holds them."""

from __future__ import annotations

import fcntl
from typing import IO, Any


def try_lock(file: int | IO[Any]) -> bool:
    """Whether a file is ours until it is closed, or the file system knows no locks.

    ``file`` is open, or the descriptor of an open file or folder.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
