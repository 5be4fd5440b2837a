"""Locks on files and folders, released when the process that holds them ends."""

from __future__ import annotations

import fcntl
from typing import IO, Any


def try_lock(file: int | IO[Any]) -> bool:
    """Try to lock an open file, or a file or folder by its descriptor, until it is closed.

    Returns:
        False if another process holds the lock; True also if the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
