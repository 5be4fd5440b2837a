"""How worker processes are started, and how they are ended when their parent dies."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def start_method() -> str:
    """Return the start method of worker processes: fork on Linux, unless spawn was chosen.

    Forked workers share the annotations and cached images of this process. Python 3.14 would start
    them from a server instead, which shares nothing and would be their parent.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_start_method()
    chosen = multiprocessing.get_start_method(allow_none=True)
    return "spawn" if chosen == "spawn" else "fork"


def signal_at_parents_end(number: int, parent: int) -> None:
    """Have the kernel send this process a signal when its parent ends, even by SIGKILL.

    On systems other than Linux this does nothing.

    Args:
        number: the signal.
        parent: the parent's process id, to detect one that has already ended.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
