"""How processes are started here, and no orphans: they end when the one that started them ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def start_method() -> str:
    """How worker processes start: forked on Linux, where nobody chose spawn.

    Forked workers share the annotations and kept images of this process. Python 3.14 would start
    them from a server instead, which shares nothing and is then their parent.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_start_method()
    chosen = multiprocessing.get_start_method(allow_none=True)
    return "spawn" if chosen == "spawn" else "fork"


def signal_at_parents_end(number: int, parent: int) -> None:
    """Have the kernel send this process a signal when its parent ends, also by SIGKILL.

    Linux only; elsewhere nothing is asked.

    Args:
        number: the signal.
        parent: the parent's process id, to notice one that has ended already.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
