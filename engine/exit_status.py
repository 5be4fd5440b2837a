"""Turn the end of a command into a one-line message and an exit status."""

from __future__ import annotations

import errno
import logging
import sys
import time
import traceback
from collections.abc import Callable

import torch

from data.errors import InputError, WorkerDiedError
from data.workers import TOO_MANY_FILES, says_that_a_worker_died, worker_death
from engine.divergence import DivergenceError
from engine.process.distributed import is_lost_rank, report_error
from engine.process.signals import Stopped, StopRequest, catch_stop_signals
from engine.process.standard_output import READER_LEFT, reader_left, tell

FAILED, WRONG_INPUT, LOST_RANK = 1, 2, 3
# File errors: what cannot be done, and the cure.
FILE_ERRORS = {
    errno.ENOSPC: ("written", "free disk space"),
    errno.EDQUOT: ("written", "free disk space"),
    errno.EFBIG: ("written", "raise the file size limit (ulimit -f)"),
    errno.EROFS: ("written", "make it writable"),
    errno.EACCES: ("read or written", "fix its permissions"),
    errno.EPERM: ("read or written", "fix its permissions"),
    errno.EIO: ("read or written", "check the disk"),
}
# Ranks that only lost another one exit after it: torchrun names the first to end as the cause.
LOST_RANK_DELAY_SECONDS = 2.0


def exit_status(
    command: Callable[[StopRequest], None], memory_cure: str, restart_hint: str = "start it again"
) -> int:
    """Run a command and report what ended it.

    Args:
        command: what to run; its argument says whether a signal asked it to stop.
        memory_cure: what to lower when out of memory.
        restart_hint: how to continue after a stop.

    Returns:
        0 on success; 1 for an internal error or a failed loader process; 2 for wrong input,
        diverged losses, and lack of memory, disk space or open files; 3 if another rank ended; 128
        + its number after a signal; 141, as after SIGPIPE, if the reader of the output is gone.
    """
    with catch_stop_signals() as stop:
        try:
            command(stop)
            if sys.stdout is not None:  # as after >&-
                sys.stdout.flush()
        except Stopped as stopped:
            _write_to_train_log(logging.INFO, stopped)
            tell(f"{stopped}; {restart_hint if stopped.begun else 'start it again'}\n")
            return stopped.exit_code
        except (InputError, DivergenceError) as error:
            _report(error)
            return WRONG_INPUT
        except WorkerDiedError as error:
            _report(error)
            return FAILED
        except Exception as error:
            return _report_exception(error, stop, memory_cure, restart_hint)
    return 0


def _report_exception(
    error: Exception, stop: StopRequest, memory_cure: str, restart_hint: str
) -> int:
    if isinstance(error, BrokenPipeError) and reader_left():
        return READER_LEFT
    if says_that_a_worker_died(error):
        _report(worker_death(error))
        return FAILED
    if is_out_of_memory(error):
        reason = (str(error).splitlines() or ["out of memory"])[0]
        _report(f"{reason}: lower {memory_cure}")
        return WRONG_INPUT
    if is_out_of_files(error):
        _report("too many open files: raise the limit (ulimit -n), or lower data.workers")
        return WRONG_INPUT
    if isinstance(error, OSError) and error.errno in FILE_ERRORS:
        what, cure = FILE_ERRORS[error.errno]
        _report(
            f"{error.filename or 'a file of the run'}: cannot be {what}: {error.strerror}; {cure}; "
            f"{restart_hint}"
        )
        return WRONG_INPUT
    if is_lost_rank(error):
        return _report_lost_rank(stop)
    _report(
        "internal error, please report:\n" + "".join(traceback.format_exception(error)).rstrip()
    )
    return FAILED


def _report_lost_rank(stop: StopRequest) -> int:
    """Report that another rank has ended: it was asked to stop, as this one may be, or failed."""
    if stop.signal_number is None:
        time.sleep(LOST_RANK_DELAY_SECONDS)
    _report(
        "stopped because another rank ended; see that rank's error, unless it was stopped or "
        "killed (possibly out of memory)"
    )
    return LOST_RANK if stop.signal_number is None else 128 + stop.signal_number


def _report(message: object) -> None:
    _write_to_train_log(logging.ERROR, message)
    report_error(message)


def _write_to_train_log(level: int, message: object) -> None:
    """Write a message that the console already shows to the run's ``train.log``, if any."""
    record = logging.LogRecord("train", level, __file__, 0, "%s", (message,), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU, the host or a loader process is out of memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in str(error) for sign in ("can't allocate memory", "Insufficient memory")
    )


def is_out_of_files(error: BaseException) -> bool:
    """Whether an error means too many open files; PyTorch's loader has its own wording."""
    if isinstance(error, OSError):
        return error.errno in TOO_MANY_FILES
    return isinstance(error, RuntimeError) and str(error).startswith("Too many open files")
