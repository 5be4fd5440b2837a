"""No orphans: a process asks to be signaled when the one that started it ends."""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


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
