"""A forward and a backward pass as one launch each: CUDA graphs, one for each shape of the input.

In a step of a small batch, and in the detection of one image, the GPU waits for the host, which
asks for short kernels one by one. Recorded once, the same kernels with the same memory run again
without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import MethodType
from typing import Any, TypeVar
from weakref import ReferenceType, WeakMethod, ref

import torch
from torch import Tensor, nn
from torch.func import functional_call

from detector.fast.autocast import uncached_autocast

FIRST_RECORDED = 3  # a shape is recorded when it comes for the third time: what comes once is not
MOST_GRAPHS = 32
# What other threads ask of the GPU meanwhile, as the one that pins a loader's batches does, is no
# part of a recording and must not end it.
CAPTURE_MODE = "thread_local"

Function = Callable[..., tuple[Tensor, ...]]
Kept = TypeVar("Kept")


class CUDAGraphs:
    """``function``, with its passes recorded: the same kernels, so the same results.

    The function is called as ever for shapes that are new, when all graphs are taken, where a norm
    talks to other ranks (which may have no new shape to record), where gradients of another batch
    are kept (a recorded backward pass writes to the same memory again), where the losses of another
    pass still wait for theirs, and in training mode without gradients. Results are written to the
    same memory too: they hold until the next call. A recorded backward pass runs once; more raise.

    A launch keeps what it was recorded with: submodules, their modes, hooks, numbers and buffers,
    and the parameters as objects. Call ``forget`` after a change of these, as after
    ``load_state_dict(…, assign=True)``.

    Args:
        module: whose parameters the function reads.
        function: tensors -> tensors, on one GPU, without a look at their values. As a method it
            does not keep alive what it is of.
    """

    def __init__(self, module: nn.Module, function: Function) -> None:
        # Weakly: a detector that holds its graphs must be freed when nobody needs it any more.
        self._module: Callable[[], nn.Module | None] = lambda: module
        self._function: Callable[[], Function | None] = lambda: function
        if isinstance(function, MethodType):
            self._function = WeakMethod(function)
            if function.__self__ is module:
                self._module = ref(module)
        self._sightings: Counter[Any] = Counter()
        self._graphs: dict[Any, Function] = {}
        self._memory: Any = None
        self._last: ReferenceType[_Backward] | None = None

    @property
    def module(self) -> nn.Module:
        """Whose parameters the function reads."""
        return _living(self._module())

    @property
    def function(self) -> Function:
        """What is recorded."""
        return _living(self._function())

    def forget(self) -> None:
        """Record anew, with what the module is now."""
        self._sightings.clear()
        self._graphs.clear()
        self._memory = self._last = None
        for name in ("_parameters", "_talks"):
            self.__dict__.pop(name, None)

    @cached_property
    def _parameters(self) -> dict[str, nn.Parameter]:
        """To look them up takes longer than to launch a graph."""
        return dict(self.module.named_parameters())

    @cached_property
    def _talks(self) -> bool:
        return any(isinstance(layer, nn.SyncBatchNorm) for layer in self.module.modules())

    @property
    def recorded(self) -> int:
        """How many shapes have a graph."""
        return len(self._graphs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._talks or torch.is_grad_enabled() != self.module.training:
            return self.function(*inputs)
        # A graph reads parameters and buffers where they were when it was recorded; who moves
        # buffers moves parameters.
        places = tuple(parameter.data_ptr() for parameter in self._parameters.values())
        if self._is_awaited():
            return self.function(*inputs)
        if not self.module.training:
            graph = self._find((_describe(inputs), places), lambda: self._record_forward(inputs))
            return self.function(*inputs) if graph is None else graph(*inputs)
        trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        if any(p.grad is not None for p in trained.values()):
            return self.function(*inputs)
        key = (_describe(inputs), places, tuple(trained))
        graph = self._find(key, lambda: self._record(inputs, trained))
        if graph is None:
            return self.function(*inputs)
        outputs = graph(*inputs, *trained.values())
        self._last = _watch_backward(outputs)
        return outputs

    def _is_awaited(self) -> bool:
        """Whether the last recorded pass may still be differentiated: it needs its memory."""
        last = None if self._last is None else self._last()
        return last is not None and not last.ran

    def _find(self, key: Any, record: Callable[[], Function]) -> Function | None:
        """The graph of a shape, recorded when it is time; None before that."""
        graph = self._graphs.get(key)
        if graph is None:
            self._sightings[key] += 1
            if self._sightings[key] < FIRST_RECORDED or len(self._graphs) == MOST_GRAPHS:
                return None
            if self._memory is None:
                self._memory = torch.cuda.graph_pool_handle()
            graph = self._graphs[key] = record()
        return graph

    def _record_forward(self, inputs: tuple[Tensor, ...]) -> Function:
        """Without a backward pass, for detection."""
        # Not in inference mode, should it be on: what is made in it cannot be written to later.
        with torch.inference_mode(False), torch.no_grad():
            samples = tuple(value.clone() for value in inputs)
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            recording = torch.cuda.graph(graph, pool=self._memory, capture_error_mode=CAPTURE_MODE)
            with recording, uncached_autocast("cuda"):
                outputs = self.function(*samples)

        def replay(*values: Tensor) -> tuple[Tensor, ...]:
            for sample, value in zip(samples, values, strict=True):
                sample.copy_(value)
            graph.replay()
            return outputs

        return replay

    def _record(self, inputs: tuple[Tensor, ...], trained: dict[str, nn.Parameter]) -> Function:
        # The same memory under names of their own: what autograd keeps for the parameters belongs
        # to another stream, which must not be waited for while a graph is recorded.
        twins = [parameter.detach().requires_grad_() for parameter in trained.values()]
        module = _Recorded(self.module, self.function)
        names = [f"module.{name}" for name in trained]

        def run(*values: Tensor) -> tuple[Tensor, ...]:
            images, parameters = values[: len(inputs)], values[len(inputs) :]
            outputs: tuple[Tensor, ...] = functional_call(
                module, dict(zip(names, parameters, strict=True)), images
            )
            return outputs

        samples = (*(_copy_of(value) for value in inputs), *twins)
        with _as_if_nothing_ran(self.module.buffers()), uncached_autocast("cuda"):
            return record_both_ways(run, samples, self._memory)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """A copied or stored module records nothing: graphs hold the memory of this one."""
        return type(None), ()


def _living(value: Kept | None) -> Kept:
    if value is None:
        raise ReferenceError("the module whose passes are recorded is gone")
    return value


def run_as_written(detector: nn.Module) -> None:
    """From here on no pass of a detector is recorded."""
    for name in _recorded_parts(detector):
        setattr(detector, name, None)


def forget_recordings(detector: nn.Module) -> None:
    """Record the passes of a detector anew, with what it is now."""
    for name in _recorded_parts(detector):
        getattr(detector, name).forget()


def _recorded_parts(detector: nn.Module) -> list[str]:
    """The attributes of a detector that record passes."""
    names = ("graphs", "mask_graphs")
    return [name for name in names if getattr(detector, name, None) is not None]


class _Backward:
    """Counts the backward passes of one recorded pass, and lives as long as it can have one."""

    ran = False

    def __call__(self, _gradients: tuple[Tensor | None, ...]) -> None:
        if self.ran:
            raise RuntimeError(
                "a recorded pass was differentiated twice, but a replay overwrites what the second "
                "needs; use detector.cuda_graphs=false"
            )
        self.ran = True


def _watch_backward(outputs: tuple[Tensor, ...]) -> ReferenceType[_Backward] | None:
    """Of a recorded pass, whose outputs come from one node of autograd's graph."""
    node = next((output.grad_fn for output in outputs if output.grad_fn is not None), None)
    if node is None:
        return None
    backward = _Backward()
    node.register_prehook(backward)
    return ref(backward)


def record_both_ways(function: Function, samples: tuple[Tensor, ...], memory: Any) -> Function:
    """PyTorch's ``make_graphed_callables`` in ``CAPTURE_MODE`` and on one stream for all passes.

    Until 2.11 it does not ask for the mode. Later ones record each call on a stream of its own,
    where passes share the pool of their memory but no memory (``torch.cuda.graph`` says so).
    """
    cuda: Any = torch.cuda
    recording = cuda.graph

    def record(*arguments: Any, **options: Any) -> Any:
        if torch.version.hip is None:  # ROCm must record where it has warmed up
            options.pop("stream", None)
        return recording(*arguments, **{**options, "capture_error_mode": CAPTURE_MODE})

    cuda.graph = record
    try:
        graph: Function = cuda.make_graphed_callables(
            function, samples, allow_unused_input=True, pool=memory
        )
    finally:
        cuda.graph = recording
    return graph


class _Recorded(nn.Module):
    """A function as a module: then it can be called with other parameters."""

    def __init__(self, module: nn.Module, function: Function) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)


@contextmanager
def _as_if_nothing_ran(buffers: Iterable[Tensor]) -> Iterator[None]:
    """The warm-up before a recording runs the passes: neither statistics of batch norm nor what is
    drawn at random afterwards may tell."""
    buffers = list(buffers)
    values = [buffer.clone() for buffer in buffers]
    random = torch.cuda.get_rng_state()
    try:
        yield
    finally:
        torch.cuda.set_rng_state(random)
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)


def _copy_of(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_(value.requires_grad)


def _describe(inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """What a recorded launch cannot change."""
    precision = (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
    shapes = ((tuple(value.shape), value.dtype, value.requires_grad) for value in inputs)
    return (precision, *shapes)
