"""What ends a command is told in one line, and by its exit status."""

from __future__ import annotations

import errno

import pytest

from engine.exit_status import exit_status
from engine.process.signals import Stopped, StopRequest


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 2, "too many open files: raise the limit"),
        (RuntimeError("Too many open files. Communication ..."), 2, "too many open files: raise"),
        (
            OSError(errno.ENOSPC, "No space left", "last.pt"),
            2,
            "cannot be written: No space left; free",
        ),
        (OSError(errno.EROFS, "Read-only", "a"), 2, "a: cannot be written: Read-only; make it w"),
        (OSError(errno.EACCES, "Denied", "a"), 2, "a: cannot be read or written: Denied; fix its"),
        (Stopped(2), 130, "stopped by SIGINT; start from here"),
        (Stopped(15, begun=False), 143, "stopped by SIGTERM; start it again"),
        (MemoryError(), 2, "out of memory: lower data.batch_size"),
        (OSError(errno.ENOTDIR, "Not a directory"), 1, "internal error, please report"),
        (RuntimeError("other"), 1, "internal error, please report"),
    ],
)
def test_what_went_wrong_is_told(
    error: Exception, status: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def command(_: StopRequest) -> None:
        raise error

    assert exit_status(command, "data.batch_size", restart_hint="start from here") == status
    assert message in capfd.readouterr().err
