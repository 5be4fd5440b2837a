"""The program's messages: to the console, above progress bars, and to ``train.log``."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

LOG = "train.log"


OF_ONE_RANK = ("data.workers",)  # tells of images that no other rank has seen


def start_logging(
    folder: Path | None, level: int = logging.WARNING, is_main_rank: bool = True
) -> None:
    """Send the program's messages to the console and to ``train.log`` in a folder.

    Args:
        folder: None for the console alone.
        level: from which on the console alone reports; with a folder everything is.
        is_main_rank: others tell only what the main one does not know.
    """
    logging.raiseExceptions = False  # a full disk must not bury the console under tracebacks
    console = _ConsoleHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    console.addFilter(lambda record: not getattr(record, "is_in_bar", False))
    if not is_main_rank:
        console.addFilter(lambda record: record.name in OF_ONE_RANK)
    handlers: list[logging.Handler] = [console]
    if folder is not None:
        file = logging.FileHandler(folder / LOG, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
        level = logging.INFO
    logging.basicConfig(level=level, handlers=handlers, force=True)


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it; a console that is gone ends no run."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if sys.stderr is None:  # as after 2>&-; tqdm would print to the standard output
            return
        with suppress(OSError, ValueError):  # ValueError: it is closed
            tqdm.write(text, file=sys.stderr)
