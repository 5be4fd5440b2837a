"""The program's messages: to the console, above progress bars, and to ``train.log``."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

LOG = "train.log"
OF_ONE_RANK = ("data.workers",)  # tells of images that no other rank has seen


def start_logging(folder: Path | None, level: int = logging.WARNING, rank: int = 0) -> None:
    """Send the program's messages to the console and to ``train.log`` in a folder.

    Args:
        folder: None for the console alone.
        level: from which on the console alone reports; with a folder everything is.
        rank: those beside the main one, 0, tell only what that does not know.
    """
    logging.raiseExceptions = False  # a full disk must not bury the console under tracebacks
    console = _ConsoleHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    console.addFilter(lambda record: not getattr(record, "is_in_bar", False))
    handlers: list[logging.Handler] = [console]
    if folder is not None:
        # Other ranks may see the folder of the main one without the right to write there.
        with suppress(*([OSError] if rank else [])):
            file = logging.FileHandler(folder / LOG, encoding="utf-8")
            of_rank = f"rank {rank}: " if rank else ""
            file.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {of_rank}%(message)s"))
            handlers.append(file)
        level = logging.INFO
    if rank:
        for handler in handlers:
            handler.addFilter(_is_of_one_rank)
    logging.basicConfig(level=level, handlers=handlers, force=True)


def _is_of_one_rank(record: logging.LogRecord) -> bool:
    """Whether a rank beside the main one tells of it: its images, and what ended it."""
    return record.name in OF_ONE_RANK or record.levelno >= logging.ERROR


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it; a console that is gone ends no run."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if sys.stderr is None:  # as after 2>&-; tqdm would print to the standard output
            return
        with suppress(OSError, ValueError):  # ValueError: it is closed
            tqdm.write(text, file=sys.stderr)
