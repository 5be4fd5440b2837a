"""Ranks: the only module that knows about torchrun, process groups and devices."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import InputError
from engine.process.standard_output import flush_outputs, tell

# A rank that waits this long waits for a lost one. The longest legitimate wait is for the main rank
# to score a large split.
TIMEOUT = timedelta(minutes=30)
# Host values are exchanged through gloo, so that agreeing on a flag never waits for a GPU.
BACKEND_OF_GPUS = "cpu:gloo,cuda:nccl"
# Text of gloo's errors about a rank that has ended; they have no type of their own.
LOST_RANK = "gloo/transport"
# torch 2.14 renamed the option to copy the main rank's buffers before each forward pass.
_SYNC_BUFFERS_OPTION = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


@dataclass(frozen=True)
class Ranks:
    """This process among the ``world_size`` that train together, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and reports to the user."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank. Host only: the device is not touched."""
        if self.world_size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def max(self, values: Tensor) -> Tensor:
        """The element-wise maximum of a tensor over ranks, on every rank."""
        if self.world_size == 1:
            return values
        largest = values.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks, in rank order, on the main rank; None on the others."""
        if self.world_size == 1:
            return [value]
        gathered = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, gathered)
        return gathered

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        collected = [None] * self.world_size
        dist.all_gather_object(collected, value)
        return collected

    def broadcast(self, value: Any) -> Any:
        """The main rank's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank has reached this point."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on the main rank before the others, for example to download and unpack.

        Raises:
            InputError: on every rank, if the block of the main rank raised it.
        """
        if not self.is_main:
            problem = self.broadcast(None)
            if problem is not None:
                raise InputError(problem)
            yield
            return
        try:
            yield
        except InputError as error:
            self.broadcast(str(error))
            raise
        self.broadcast(None)

    def share_buffers(self, module: nn.Module) -> None:
        """Copy the main rank's buffers, such as batch norm's running statistics, to all ranks."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, module: nn.Module, has_frozen_parts: bool = False) -> nn.Module:
        """Apply ``average_gradients`` to the module; return the module itself on one rank."""
        return module if self.world_size == 1 else average_gradients(module, has_frozen_parts)


def average_gradients(module: nn.Module, has_frozen_parts: bool = False) -> DistributedDataParallel:
    """Wrap a module to average its gradients over ranks.

    Batch norm's running statistics are copied from the main rank, so that a checkpoint, which holds
    the main rank's, describes all of them.

    Args:
        module: the module to wrap.
        has_frozen_parts: whether parameters may lose and regain ``requires_grad``; each iteration
            then searches for parameters without a gradient.
    """
    running = any(getattr(part, "track_running_stats", False) for part in module.modules())
    following: dict[str, Any] = {_SYNC_BUFFERS_OPTION: running}
    wrapped = DistributedDataParallel(
        module,
        gradient_as_bucket_view=True,
        find_unused_parameters=has_frozen_parts,
        **following,
    )
    _fix_bucket_order(wrapped)
    return wrapped


def without_exchange(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which backward passes do not average gradients over ranks."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _fix_bucket_order(wrapped: DistributedDataParallel) -> None:
    """Make torch assign gradients to buckets now, in the order of the parameters.

    By default it does so after the first backward pass of a process, in the order of that pass. The
    first iteration after a resume would then differ from that of an uninterrupted run: with three
    or more ranks the rounding of a sum depends on its position in the bucket.
    """
    module = wrapped.module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.forward = lambda: torch.stack([parameter.sum() for parameter in trained]).sum()
    wrapped().backward()
    del module.forward  # restores the method of the class
    module.zero_grad()


def world_size() -> int:
    """The number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_by_torchrun() -> bool:
    """Whether an agent of torchrun started this process and watches it."""
    return dist.is_available() and dist.is_torchelastic_launched()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


@contextmanager
def start_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the process group that torchrun describes, or run alone without torchrun.

    If the block raises, the process group is *not* shut down in order: that would wait for the
    other ranks, which may be waiting for this one. The process ends instead and torchrun ends the
    others.

    Raises:
        InputError: the device is not available, there are more ranks than GPUs, or they were not
            started by torchrun.
    """
    size, rank = world_size(), _rank()
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and lacking:
        raise InputError(
            f"WORLD_SIZE is {size}, but {lacking[0]} is not set: start with torchrun, or unset "
            "WORLD_SIZE"
        )
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield Ranks(0, 1, chosen)
        return
    backend = BACKEND_OF_GPUS if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    yield Ranks(rank, size, chosen)
    dist.barrier()  # a rank that leaves while another still communicates with it ends both
    dist.destroy_process_group()


def is_lost_rank(error: Exception) -> bool:
    """Whether an error only means that communication failed because another rank has ended."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistBackendError) or LOST_RANK in str(error)
    )


def report_error(message: object) -> None:
    """Print an error in one write, so that errors of several ranks are not interleaved."""
    rank = _rank()
    tell(f"{f'rank {rank}: ' if rank else ''}error: {message}\n")


def leave(code: int) -> NoReturn:
    """Exit this process with an exit code, even while in a process group.

    A process group that is not shut down aborts the interpreter at exit, with a message that would
    hide the error which the user should read. One that was shut down occasionally does so too, when
    gloo's threads end, and torchrun would report a finished run as failed.
    """
    flush_outputs()
    if world_size() > 1:
        os._exit(code)
    sys.exit(code)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Choose this rank's device by ``auto``, ``cpu`` or ``cuda``; a GPU is made current.

    Raises:
        InputError: the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda":
        raise InputError(f"train.device: {name!r} is not a choice; choose auto, cpu or cuda")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"train.device: rank {local_rank} of this machine needs its own GPU, but the number of "
            f"GPUs is {torch.cuda.device_count()}; start fewer processes or use train.device=cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
