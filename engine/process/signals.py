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
GRACE_SECONDS = 18.0  # schedulers and torchrun kill 30 s after SIGTERM; exit before they do
# Schedulers signal every process of a job, and torchrun forwards its own signal to the ranks:
# signals within this time of the first one are the same request.
SAME_REQUEST_SECONDS = 1.0


class Stopped(Exception):
    """Raised when a program has stopped on request, with everything worth keeping saved.

    Args:
        signal_number: number of the signal that asked to stop.
        begun: whether there is anything to continue from.
    """

    def __init__(self, signal_number: int, begun: bool = True) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number
        self.begun = begun


class StopRequest:
    """Records whether a signal asked this process to stop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.since = 0.0

    @property
    def requested(self) -> bool:
        """Whether to stop at the next safe point."""
        return self.signal_number is not None

    def handle(self, number: int) -> None:
        """Handle a signal: the first one requests a stop, a later second one ends the process."""
        if self.requested:
            if time.monotonic() - self.since > SAME_REQUEST_SECONDS:
                os._exit(128 + number)
            return
        self.since = time.monotonic()
        self.signal_number = number
        if world_size() == 1:
            return  # a single process may take the time of its iteration and its checkpoint
        # A rank can hang in communication with a lost one, where its main thread runs no Python.
        deadline = threading.Timer(GRACE_SECONDS, self._exit_after_grace, (number,))
        deadline.daemon = True
        deadline.start()

    def _exit_after_grace(self, number: int) -> None:
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
        """Stop where nothing needs to be saved.

        Raises:
            Stopped: a signal asked to stop.
        """
        if self.signal_number is not None:
            raise Stopped(self.signal_number)

    def check_together(self, ranks: Ranks) -> None:
        """Stop before training has begun, on every rank if any got a signal. All must call it.

        Raises:
            Stopped: a signal asked any rank to stop.
        """
        (asked,) = ranks.any(self.signal_number is not None)
        if asked:
            raise Stopped(self.signal_number or signal.SIGTERM, begun=False)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Within the block, make SIGTERM and SIGINT set a flag instead of ending the process.

    The end of torchrun, for any reason, is also such a signal for its ranks, which have their own
    session and would survive it.
    """
    request = StopRequest()
    # A thread receives signals even while the main thread waits in communication between ranks.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=request.listen, args=(reader,), daemon=True).start()
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _ignore_in_main_thread) for number in STOP_SIGNALS}
    if launched_by_torchrun():
        signal_at_parents_end(signal.SIGTERM, os.getppid())
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(writer)


def _ignore_in_main_thread(number: int, frame: FrameType | None) -> None:
    """Replace the default handler, so that only the listener thread handles the signal."""
