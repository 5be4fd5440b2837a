"""SIGTERM and SIGINT as a request to stop at the next safe point."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data.parent_process import signal_at_parents_end
from engine.process.distributed import Ranks, launched_by_torchrun, world_size

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 18.0  # schedulers and torchrun kill 30 s after SIGTERM; leave before they do
# Schedulers signal every process of a job, and torchrun hands its own on to the ranks: what comes
# within this time of the first signal is the same request.
SAME_REQUEST_SECONDS = 1.0


class Stopped(Exception):
    """A program was asked to stop and has stopped; everything worth keeping is saved.

    Args:
        signal_number: of the signal that asked.
        begun: whether there is anything to keep.
    """

    def __init__(self, signal_number: int, begun: bool = True) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number
        self.begun = begun


class StopRequest:
    """Whether a signal asked this process to stop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.since = 0.0

    @property
    def requested(self) -> bool:
        """Whether to stop at the next safe point."""
        return self.signal_number is not None

    def handle(self, number: int) -> None:
        """The first signal asks, a second one later ends the process at once."""
        if self.requested:
            if time.monotonic() - self.since > SAME_REQUEST_SECONDS:
                os._exit(128 + number)
            return
        self.since = time.monotonic()
        self.signal_number = number
        if world_size() == 1:
            return  # alone it takes the time that its iteration and its checkpoint take
        # A rank can hang in an exchange with one that is gone: its main thread runs no Python then.
        deadline = threading.Timer(GRACE_SECONDS, self._leave, (number,))
        deadline.daemon = True
        deadline.start()

    def _leave(self, number: int) -> None:
        """End this process, whatever it is doing."""
        text = (
            f"{signal.Signals(number).name} came {GRACE_SECONDS:.0f} s ago, but the current work "
            "is not done: exiting without saving; --resume continues from the last checkpoint\n"
        )
        os.write(2, text.encode())
        os._exit(128 + number)

    def listen(self, pipe: int) -> None:
        """Handle the signals whose numbers come through a pipe until it is closed."""
        while numbers := os.read(pipe, 64):
            for number in numbers:
                if number in STOP_SIGNALS:
                    self.handle(number)
        os.close(pipe)

    def check(self) -> None:
        """Raise ``Stopped`` if a signal has come: for places where nothing needs to be saved."""
        if self.signal_number is not None:
            raise Stopped(self.signal_number)

    def check_together(self, ranks: Ranks) -> None:
        """The same before anything has begun, on every rank if a signal has come to any.

        All must call it.
        """
        (asked,) = ranks.any(self.signal_number is not None)
        if asked:
            raise Stopped(self.signal_number or signal.SIGTERM, begun=False)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Within the block SIGTERM and SIGINT set a flag instead of ending the process.

    The end of torchrun, however it ends, is such a signal for its ranks, which have a session of
    their own and would live on.
    """
    request = StopRequest()
    # A thread hears of signals also while the main thread waits in an exchange between ranks.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=request.listen, args=(reader,), daemon=True).start()
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _leave_to_listener) for number in STOP_SIGNALS}
    if launched_by_torchrun():
        signal_at_parents_end(signal.SIGTERM, os.getppid())
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(writer)


def _leave_to_listener(number: int, frame: FrameType | None) -> None:
    """Instead of ending the process."""
