"""What ends a command is told in one line, and by its exit status."""

from __future__ import annotations

import errno

import pytest

from engine.exit_status import exit_status
from engine.signals import StopRequest


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 2, "too many open files: raise the limit"),
        (RuntimeError("Too many open files. Communication ..."), 2, "too many open files: raise"),
        (OSError(errno.ENOSPC, "No space left", "last.pt"), 2, "last.pt: cannot be written"),
        (MemoryError(), 2, "no memory is left: lower data.batch_size"),
        (OSError(errno.ENOTDIR, "Not a directory"), 1, "a fault of this program"),
        (RuntimeError("other"), 1, "a fault of this program"),
    ],
)
def test_what_went_wrong_is_told(
    error: Exception, status: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def command(_: StopRequest) -> None:
        raise error

    assert exit_status(command, "data.batch_size") == status
    assert message in capfd.readouterr().err
