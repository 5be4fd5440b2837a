"""Worker processes that turn keys into batches, and how they end.

They are kept from pass to pass. They ignore SIGTERM and SIGINT, which terminals and clusters send
to the whole process group: the training process finishes its step, saves, and then closes its
loaders. If it is killed, the workers end with it.
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
_EXIT_TIMEOUT = 5  # seconds to wait for a worker's exit after its connection broke
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid")


class _Answers(Dataset["PackedBatch | InputError"]):
    """Batches by key.

    An InputError is returned, too: raised in a worker, its message would become the worker's
    traceback.
    """

    def __init__(self, make: Callable[[Any], PackedBatch]) -> None:
        self._make = make

    def __getitem__(self, key: Any) -> PackedBatch | InputError:
        try:
            return self._make(key)
        except InputError as error:
            return error


class _Keys(Sampler[Any]):
    """The keys of the current pass; replaced for every pass, while the workers are kept."""

    def __init__(self) -> None:
        self.keys: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)


class BatchStream:
    """Batches in the order of their keys.

    Args:
        make: a function from a key to a batch; it runs in the workers.
        workers: number of processes; 0 makes the batches in this one.
        prefetch: batches that each worker prepares in advance.
        pin_memory: put batches into page-locked memory.
        max_damaged: maximum number of damaged images to replace or skip.
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
            collate_fn=_identity,
            pin_memory=pin_memory,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # otherwise each pass would draw from the global stream
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=start_method() if workers else None,
        )
        # At exit this runs before multiprocessing closes its queues (priority 10), which tell the
        # workers to end, and before it waits for the workers, which ignore its SIGTERM.
        self._end = Finalize(self, _end_workers, (self._loader,), exitpriority=100)

    def run(self, keys: Sequence[Any]) -> Iterator[Batch]:
        """Yield the batches of ``keys``.

        Raises:
            InputError: an image or an augmentation cannot be used, or too many images are damaged.
            WorkerDiedError: a worker process died.
        """
        self._keys.keys = keys
        with _signals_blocked():  # workers inherit this until they install their own handlers
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
            self._wait_for_death_signal()
            raise worker_death(error) from error

    def _wait_for_death_signal(self) -> None:
        """Let PyTorch's SIGCHLD handler report the death of a worker now, if it has not yet.

        It raises wherever the main thread is when the signal arrives. That may be after the
        connection broke, while the caller already handles that error.
        """
        iterator: Any = self._loader._iterator
        try:
            died = wait([worker.sentinel for worker in iterator._workers], _EXIT_TIMEOUT)
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
                    f"{complaint}; more than data.max_damaged={self._max_damaged} images are "
                    "damaged; replace them, or raise the limit"
                )
            log.warning("skipping damaged image: %s", complaint)

    def close(self) -> None:
        """End the workers; the stream cannot be used afterwards."""
        self._end()


def says_that_a_worker_died(error: BaseException) -> bool:
    """Return whether PyTorch reports a dead loader process; it may raise this error anywhere."""
    return isinstance(error, RuntimeError) and bool(_DEAD_WORKER.search(str(error)))


def worker_death(error: BaseException) -> WorkerDiedError:
    """Build the error that tells the user what to change."""
    return WorkerDiedError(
        f"a data-loading worker process died ({' '.join(str(error).split())}); if it ran out of "
        "memory, lower data.workers, data.prefetch or data.batch_size"
    )


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _identity(answer: Any) -> Any:
    return answer


def _init_worker(worker: int) -> None:  # noqa: ARG001
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        signal_at_parents_end(signal.SIGKILL, parent.pid)
    for number in _LEFT_TO_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_end_without_sending)  # type: ignore[attr-defined]
    cv2.setNumThreads(0)  # there is already one process per core
    cv2.ocl.setUseOpenCL(False)
    torch.set_num_threads(1)


def _end_without_sending(error: Exception, answer: object) -> None:  # noqa: ARG001
    """End the worker if it cannot send its batch, because the training process would wait forever.

    The training process notices that the worker ended.
    """
    text = f"a data-loading worker process cannot send its batch: {error}"
    if isinstance(error, OSError) and error.errno in TOO_MANY_FILES:
        text += "; raise the limit (ulimit -n), or lower data.workers"
    os.write(2, f"{text}\n".encode())
    os._exit(1)


def _end_workers(loader: DataLoader[Any]) -> None:
    """Ask the workers to end, as the loader does when it is deleted, and kill those that hang."""
    iterator: Any = loader._iterator
    loader._iterator = None
    if iterator is None:
        return
    try:
        iterator._shutdown_workers()
    except RuntimeError as error:  # from PyTorch's SIGCHLD handler: a worker has died
        if not says_that_a_worker_died(error):
            raise
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
