"""How a tool ends: wrong input, Ctrl-C, and outputs that nobody reads, as behind ``| head``."""

from __future__ import annotations

import inspect
import os
import select
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Protocol, TextIO

from data.errors import InputError

READER_LEFT = 141  # 128 + SIGPIPE, as shells say it
INTERRUPTED = 130  # 128 + SIGINT


class Tool(Protocol):
    """The ``main`` of a tool: its words, None for those of the command line, to its status."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int: ...


def tool(main: Tool) -> Tool:
    """A ``main`` that ends in one line and with 2 for wrong input, and with 130 after Ctrl-C."""

    @wraps(main)
    def ending_quietly(arguments: Sequence[str] | None = None) -> int:
        if sys.stderr is None:  # as after 2>&-: what is told would go to the standard output
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        try:
            return main(arguments)
        except InputError as error:
            name = os.path.basename(inspect.getfile(main))
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return INTERRUPTED

    return ending_quietly


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
            sys.stderr.flush()


def is_watched() -> bool:
    """Whether the standard error is a terminal that has room for a progress bar.

    One of unknown size, as of a container's or a CI's, counts 0 columns: tqdm would draw nothing.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    try:
        return min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except OSError:
        return False


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
