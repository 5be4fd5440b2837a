"""What becomes of a command whose outputs nobody reads any more, as behind ``| head``."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

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


def tell(text: str) -> None:
    """Write to the standard error in one piece; a console that is gone ends nothing."""
    with suppress(OSError, ValueError):  # ValueError: it is closed
        if sys.stderr is not None:  # as after 2>&-
            sys.stderr.write(text)


def is_watched() -> bool:
    """Whether the standard error is a terminal, which has a use for a progress bar."""
    return sys.stderr is not None and sys.stderr.isatty()


def flush_outputs() -> None:
    """Write what is left; what cannot be written is dropped, or Python sets the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            _drop_rest(stream)


def _drop_rest(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def reader_left() -> bool:
    """Whether nobody reads the standard output any more; what is left of it is then dropped."""
    if sys.stdout is None:  # as after >&-
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # an error is told in any case
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:  # or the interpreter complains when it ends
        _drop_rest(sys.stdout)
    return left
