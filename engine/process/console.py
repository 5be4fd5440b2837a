"""Logging to the console, above progress bars, and to ``train.log``."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

LOG = "train.log"
RANK_LOCAL_LOGGERS = ("data.workers",)  # logs images that no other rank has read


def start_logging(folder: Path | None, level: int = logging.WARNING, rank: int = 0) -> None:
    """Send log messages to the console and to ``train.log`` in a folder.

    Args:
        folder: folder of the log file; None logs to the console only.
        level: minimum level without a folder; with a folder it is INFO.
        rank: ranks other than 0, the main one, only log what the main rank does not know.
    """
    logging.raiseExceptions = False  # a full disk must not bury the console under tracebacks
    console = _ConsoleHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    console.addFilter(lambda record: not getattr(record, "is_in_bar", False))
    handlers: list[logging.Handler] = [console]
    if folder is not None:
        # Other ranks may see the folder of the main rank without write permission.
        with suppress(*([OSError] if rank else [])):
            file = logging.FileHandler(folder / LOG, encoding="utf-8")
            rank_prefix = f"rank {rank}: " if rank else ""
            file.setFormatter(
                logging.Formatter(f"%(asctime)s %(levelname)s {rank_prefix}%(message)s")
            )
            handlers.append(file)
        level = logging.INFO
    if rank:
        for handler in handlers:
            handler.addFilter(_is_rank_local)
    logging.basicConfig(level=level, handlers=handlers, force=True)


def _is_rank_local(record: logging.LogRecord) -> bool:
    """Whether a rank other than the main one logs a record: its images, and what ended it."""
    return record.name in RANK_LOCAL_LOGGERS or record.levelno >= logging.ERROR


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it; ignores a closed console."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if sys.stderr is None:  # as after 2>&-; tqdm would print to the standard output
            return
        with suppress(OSError, ValueError):  # ValueError: it is closed
            tqdm.write(text, file=sys.stderr)
