"""Worker processes that turn keys into batches, and how they end.

They live on from pass to pass. They ignore SIGTERM and SIGINT, which terminals and clusters send to
the whole group: the training process finishes its step, saves, and then closes its loaders. When
it is killed they end with it.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.errors import InputError, WorkerDiedError
from data.packing import PackedBatch
from data.parent_process import signal_at_parents_end, start_method
from data.target import Batch

log = logging.getLogger(__name__)

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
_LEFT_TO_THE_PARENT = (signal.SIGTERM, signal.SIGINT)
_END_OF_A_WORKER = 5  # seconds from the end of its connections to its own
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid")


class _Answers(Dataset["PackedBatch | InputError"]):
    """Batches by key. An InputError is an answer too: raised in a worker it would arrive with the
    worker's traceback for a message."""

    def __init__(self, make: Callable[[Any], PackedBatch]) -> None:
        self._make = make

    def __getitem__(self, key: Any) -> PackedBatch | InputError:
        try:
            return self._make(key)
        except InputError as error:
            return error


class _Keys(Sampler[Any]):
    """What to make next; exchanged for every pass, while the workers live on."""

    def __init__(self) -> None:
        self.keys: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)


class BatchStream:
    """Batches in the order of their keys.

    Args:
        make: a function from a key to a batch; it runs in the workers.
        workers: the number of processes; 0 makes the batches in this one.
        prefetch: batches that each worker prepares ahead.
        pin_memory: whether batches shall lie in page-locked memory.
        max_damaged: how many damaged images may be replaced or left out.
    """

    def __init__(
        self,
        make: Callable[[Any], PackedBatch],
        *,
        workers: int,
        prefetch: int,
        pin_memory: bool,
        max_damaged: int,
    ) -> None:
        self._keys = _Keys()
        self._max_damaged = max_damaged
        self._damaged: set[str] = set()
        self._loader = DataLoader(
            _Answers(make),
            batch_size=None,
            sampler=self._keys,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=_settle_worker,
            generator=torch.Generator(),  # or each pass would draw from the global stream
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=start_method() if workers else None,
        )
        # At exit this runs before multiprocessing closes its queues (10), through which the workers
        # are told to end, and before it waits for the workers, which ignore its SIGTERM.
        self._end = Finalize(self, _end_workers, (self._loader,), exitpriority=100)

    def run(self, keys: Sequence[Any]) -> Iterator[Batch]:
        """Raises InputError that names what cannot be used, WorkerDiedError if a worker died."""
        self._keys.keys = keys
        with _signals_blocked():  # the workers inherit that; their own settings come moments later
            answers = iter(self._loader)
        while (answer := self._next(answers)) is not None:
            if isinstance(answer, InputError):
                raise answer
            self._report(answer.damaged)
            if answer.rows or answer.left_out:
                yield answer.unpack()

    def _next(self, answers: Iterator[PackedBatch | InputError]) -> PackedBatch | InputError | None:
        try:
            return next(answers, None)
        except (RuntimeError, ConnectionError, EOFError) as error:
            is_other = isinstance(error, RuntimeError) and not says_that_a_worker_died(error)
            if is_other or not self._loader.num_workers:
                raise
            self._take_notice()
            raise worker_death(error) from error

    def _take_notice(self) -> None:
        """Have PyTorch's SIGCHLD handler say now that a worker died, if it has not yet.

        It raises wherever the main thread is when the signal comes, which may be a moment after the
        connection broke: in the midst of what the caller does about that.
        """
        iterator: Any = self._loader._iterator
        try:
            died = wait([worker.sentinel for worker in iterator._workers], _END_OF_A_WORKER)
            for worker in iterator._workers:
                if worker.sentinel in died:
                    worker.join()
        except RuntimeError as error:
            if not says_that_a_worker_died(error):
                raise

    def _report(self, damaged: Sequence[str]) -> None:
        for complaint in damaged:
            if complaint in self._damaged:
                continue
            self._damaged.add(complaint)
            if len(self._damaged) > self._max_damaged:
                raise InputError(
                    f"{complaint}; with it more than data.max_damaged={self._max_damaged} images "
                    "are damaged; replace them, or raise it"
                )
            log.warning("damaged, and passed over: %s", complaint)

    def close(self) -> None:
        """End the workers; the stream cannot be used afterwards."""
        self._end()


def says_that_a_worker_died(error: BaseException) -> bool:
    """PyTorch raises such an error wherever the main thread is when a loader process is killed."""
    return isinstance(error, RuntimeError) and bool(_DEAD_WORKER.search(str(error)))


def worker_death(error: BaseException) -> WorkerDiedError:
    """The error that a user can do something about."""
    return WorkerDiedError(
        f"a worker process that loads data died ({' '.join(str(error).split())}); if it "
        "ran out of memory lower data.workers, data.prefetch or data.batch_size"
    )


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(answer: Any) -> Any:
    return answer


def _settle_worker(worker: int) -> None:  # noqa: ARG001
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        signal_at_parents_end(signal.SIGKILL, parent.pid)
    for number in _LEFT_TO_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_end_without_sending)  # type: ignore[attr-defined]
    cv2.setNumThreads(0)  # one process per core is already there
    cv2.ocl.setUseOpenCL(False)
    torch.set_num_threads(1)


def _end_without_sending(error: Exception, answer: object) -> None:  # noqa: ARG001
    """What a worker cannot send is lost to the training process, which would wait for it for ever.

    So the worker ends, which is noticed there.
    """
    text = f"a process that loads data cannot send its batch: {error}"
    if isinstance(error, OSError) and error.errno in TOO_MANY_FILES:
        text += "; raise the limit (ulimit -n), or lower data.workers"
    os.write(2, f"{text}\n".encode())
    os._exit(1)


def _end_workers(loader: DataLoader[Any]) -> None:
    """Ask the workers to end, as the loader would at its own end, and kill those that are stuck."""
    iterator: Any = loader._iterator
    loader._iterator = None
    if iterator is None:
        return
    try:
        iterator._shutdown_workers()
    except RuntimeError as error:  # from PyTorch's SIGCHLD handler: a worker died, now or before
        if not says_that_a_worker_died(error):
            raise
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
