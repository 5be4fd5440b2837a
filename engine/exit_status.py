"""What ends a command becomes one line for its user and an exit status."""

from __future__ import annotations

import errno
import sys
import time
import traceback
from collections.abc import Callable

import torch

from data.errors import InputError, WorkerDiedError
from data.workers import says_that_a_worker_died, worker_death
from engine.distributed import is_lost_rank, report_error
from engine.divergence import DivergenceError
from engine.signals import Stopped, StopRequest, catch_stop_signals
from engine.standard_output import READER_LEFT, reader_left

FAILED, WRONG_INPUT, LEFT_ALONE = 1, 2, 3
FAILED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Ranks that only miss another one leave after it: torchrun names the first to end as the cause.
AFTER_THE_FIRST_SECONDS = 2.0


def exit_status(command: Callable[[StopRequest], None], memory_cure: str) -> int:
    """Run a command; report what ended it.

    Args:
        command: what to run; it is told whether a signal asked it to stop.
        memory_cure: what to lower where memory does not suffice.

    Returns:
        0, or 1 for a fault of the program or of a loader process, 2 for wrong input, diverged
        losses and want of room, 3 where another rank ended, 128 + its number after a signal, and as
        after SIGPIPE where nobody reads what is printed any more.
    """
    with catch_stop_signals() as stop:
        try:
            command(stop)
            sys.stdout.flush()
        except Stopped as stopped:
            return _stopped(stopped)
        except (InputError, DivergenceError) as error:
            report_error(error)
            return WRONG_INPUT
        except WorkerDiedError as error:
            report_error(error)
            return FAILED
        except Exception as error:
            return _status_of(error, stop, memory_cure)
    return 0


def _status_of(error: Exception, stop: StopRequest, memory_cure: str) -> int:
    if isinstance(error, BrokenPipeError) and reader_left():
        return READER_LEFT
    if says_that_a_worker_died(error):
        report_error(worker_death(error))
        return FAILED
    if is_out_of_memory(error):
        reason = (str(error).splitlines() or ["no memory is left"])[0]
        report_error(f"{reason}: lower {memory_cure}")
        return WRONG_INPUT
    if isinstance(error, OSError) and error.errno in FAILED_WRITES:
        report_error(
            f"{error.filename or 'a file of the run'}: cannot be written: {error.strerror}; "
            "make room, then go on with --resume"
        )
        return WRONG_INPUT
    if is_lost_rank(error):
        return _left_alone(stop)
    report_error("a fault of this program:\n" + "".join(traceback.format_exception(error)).rstrip())
    return FAILED


def _left_alone(stop: StopRequest) -> int:
    """Another rank is gone: asked to stop, as this one may be, or failed."""
    if stop.signal_number is None:
        time.sleep(AFTER_THE_FIRST_SECONDS)
    report_error(
        "stopped because another rank ended; its error is the one to read, if it was not stopped "
        "or killed (perhaps for want of memory)"
    )
    return LEFT_ALONE if stop.signal_number is None else 128 + stop.signal_number


def _stopped(stopped: Stopped) -> int:
    print(f"{stopped}; a run goes on with --resume", file=sys.stderr)
    return stopped.exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, the host or a loader process has no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in str(error) for sign in ("can't allocate memory", "Insufficient memory")
    )
