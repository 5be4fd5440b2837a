"""What becomes of a command whose output nobody reads any more, as behind ``| head``."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

READER_LEFT = 141  # 128 + SIGPIPE, as shells say it


def status_of_tool(main: Callable[[], int]) -> int:
    """The exit status of a tool: what ``main`` returns, or ``READER_LEFT``."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        if not reader_left():
            raise
        return READER_LEFT
    return status


def reader_left() -> bool:
    """Whether nobody reads the standard output any more; what is left of it is then dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # an error is told in any case
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:  # or the interpreter complains when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left
