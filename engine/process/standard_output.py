"""Exit handling of tools: wrong input, Ctrl-C and a closed output, as behind ``| head``."""

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

READER_LEFT = 141  # 128 + SIGPIPE, as in shells
INTERRUPTED = 130  # 128 + SIGINT


class Tool(Protocol):
    """The ``main`` of a tool: arguments (None: those of the command line) -> exit status."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int: ...


def tool(main: Tool) -> Tool:
    """Make ``main`` end with one line and status 2 for wrong input, and 130 after Ctrl-C."""

    @wraps(main)
    def ending_quietly(arguments: Sequence[str] | None = None) -> int:
        if sys.stderr is None:  # as after 2>&-: messages would go to the standard output
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
    """Run ``main`` -> its exit status, or ``READER_LEFT`` if the reader of the output is gone."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        if not reader_left():
            raise
        return READER_LEFT
    return status


def tell(text: str) -> None:
    """Write to the standard error in one piece; ignore a closed console."""
    with suppress(OSError, ValueError):  # ValueError: it is closed
        if sys.stderr is not None:  # as after 2>&-
            sys.stderr.write(text)
            sys.stderr.flush()


def is_watched() -> bool:
    """Whether the standard error is a terminal with room for a progress bar.

    A terminal of unknown size, as in containers or CI, reports 0 columns: tqdm would draw nothing.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    try:
        return min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except OSError:
        return False


def flush_outputs() -> None:
    """Flush both outputs; drop what cannot be written, or Python would set the exit status."""
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
    """Whether the reader of the standard output is gone; the rest of it is then dropped."""
    if sys.stdout is None:  # as after >&-
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:  # otherwise the interpreter complains at exit
        _drop_rest(sys.stdout)
    return left
