"""CUDA graphs: forward and backward pass as one launch each, for each shape of the input.

In a step of a small batch, and in the detection of one image, the GPU waits for the host, which
launches short kernels one by one. Once captured, the same kernels with the same memory are replayed
without the host.
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

FIRST_RECORDED = 3  # a shape is captured at its third occurrence; rare shapes are not worth it
MOST_GRAPHS = 32
# GPU calls of other threads, such as the one that pins batches, are not captured and must not
# invalidate the capture.
CAPTURE_MODE = "thread_local"

Function = Callable[..., tuple[Tensor, ...]]
Kept = TypeVar("Kept")


class CUDAGraphs:
    """Calls ``function`` through CUDA graphs: the same kernels, so the same results.

    The function is called directly for new shapes, when all graphs are in use, if a norm
    communicates with other ranks (which may have no new shape to capture), if gradients of another
    batch are accumulated (a captured backward pass writes to the same memory again), if the losses
    of another pass still await their backward pass, and in training mode without gradients. Results
    are also written to the same memory, so they are valid until the next call. A captured backward
    pass can run only once; a second one raises.

    A graph keeps what it was captured with: submodules, their modes, hooks, numbers and buffers,
    and the parameters as objects. Call ``forget`` after changing these, for example after
    ``load_state_dict(…, assign=True)``.

    Args:
        module: the module whose parameters the function reads.
        function: tensors -> tensors, on one GPU, without reading their values. A method is
            referenced weakly: its object is not kept alive.
    """

    def __init__(self, module: nn.Module, function: Function) -> None:
        # Weak references: a detector that holds its graphs must be freed when it is not in use.
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
        """The module whose parameters the function reads."""
        return _require_alive(self._module())

    @property
    def function(self) -> Function:
        """The function that is captured."""
        return _require_alive(self._function())

    def forget(self) -> None:
        """Discard all graphs, so that the module is captured again in its present state."""
        self._sightings.clear()
        self._graphs.clear()
        self._memory = self._last = None
        for name in ("_parameters", "_talks"):
            self.__dict__.pop(name, None)

    @cached_property
    def _parameters(self) -> dict[str, nn.Parameter]:
        """The module's parameters, cached because a lookup takes longer than launching a graph."""
        return dict(self.module.named_parameters())

    @cached_property
    def _talks(self) -> bool:
        return any(isinstance(layer, nn.SyncBatchNorm) for layer in self.module.modules())

    @property
    def recorded(self) -> int:
        """Number of shapes that have a graph."""
        return len(self._graphs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._talks or torch.is_grad_enabled() != self.module.training:
            return self.function(*inputs)
        # A graph reads parameters and buffers at the addresses of the capture; whatever moves
        # buffers also moves parameters.
        places = tuple(parameter.data_ptr() for parameter in self._parameters.values())
        if self._is_awaited():
            return self.function(*inputs)
        if not self.module.training:
            graph = self._find(
                (_call_signature(inputs), places), lambda: self._record_forward(inputs)
            )
            return self.function(*inputs) if graph is None else graph(*inputs)
        trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        if any(p.grad is not None for p in trained.values()):
            return self.function(*inputs)
        key = (_call_signature(inputs), places, tuple(trained))
        graph = self._find(key, lambda: self._record(inputs, trained))
        if graph is None:
            return self.function(*inputs)
        outputs = graph(*inputs, *trained.values())
        self._last = _watch_backward(outputs)
        return outputs

    def _is_awaited(self) -> bool:
        """Return whether the last captured pass may still need its memory for a backward pass."""
        last = None if self._last is None else self._last()
        return last is not None and not last.ran

    def _find(self, key: Any, record: Callable[[], Function]) -> Function | None:
        """Return the graph of a shape, captured at its third occurrence; None before that."""
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
        """Capture a pass without a backward pass, for detection."""
        # Inference mode must be off: tensors created in it cannot be written to later.
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
        # New tensors with the same memory: autograd's state of the parameters belongs to another
        # stream, which must not be waited for during a capture.
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
        with _restore_state(self.module.buffers()), uncached_autocast("cuda"):
            return record_both_ways(run, samples, self._memory)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Copy or pickle without graphs, because they hold the memory of this module."""
        return type(None), ()


def _require_alive(value: Kept | None) -> Kept:
    if value is None:
        raise ReferenceError("the module of these CUDA graphs no longer exists")
    return value


def run_as_written(detector: nn.Module) -> None:
    """Stop using CUDA graphs for a detector."""
    for name in _graph_attributes(detector):
        setattr(detector, name, None)


def forget_recordings(detector: nn.Module) -> None:
    """Discard the graphs of a detector, so that its passes are captured again."""
    for name in _graph_attributes(detector):
        getattr(detector, name).forget()


def _graph_attributes(detector: nn.Module) -> list[str]:
    """List the attributes of a detector that hold CUDA graphs."""
    names = ("graphs", "mask_graphs")
    return [name for name in names if getattr(detector, name, None) is not None]


class _Backward:
    """Counts the backward passes of one captured pass, and lives as long as one is possible."""

    ran = False

    def __call__(self, _gradients: tuple[Tensor | None, ...]) -> None:
        if self.ran:
            raise RuntimeError(
                "the backward pass of a CUDA graph ran twice, but a replay overwrites its inputs; "
                "set detector.cuda_graphs=false"
            )
        self.ran = True


def _watch_backward(outputs: tuple[Tensor, ...]) -> ReferenceType[_Backward] | None:
    """Watch the backward pass of a captured pass, whose outputs come from one autograd node."""
    node = next((output.grad_fn for output in outputs if output.grad_fn is not None), None)
    if node is None:
        return None
    backward = _Backward()
    node.register_prehook(backward)
    return ref(backward)


def record_both_ways(function: Function, samples: tuple[Tensor, ...], memory: Any) -> Function:
    """Capture with ``make_graphed_callables`` in ``CAPTURE_MODE``, on one stream for all passes.

    Up to torch 2.11 it has no argument for the mode. Later versions capture each call on its own
    stream, where passes share a memory pool but no memory (see ``torch.cuda.graph``).
    """
    cuda: Any = torch.cuda
    recording = cuda.graph

    def record(*arguments: Any, **options: Any) -> Any:
        if torch.version.hip is None:  # ROCm must capture on the warm-up's stream
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
    """Wraps a function as a module, so that it can be called with other parameters."""

    def __init__(self, module: nn.Module, function: Function) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)


@contextmanager
def _restore_state(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Restore buffers and the random state, which the warm-up before a capture changes."""
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


def _call_signature(inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Describe a call by everything that is fixed in a captured graph."""
    precision = (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
    shapes = ((tuple(value.shape), value.dtype, value.requires_grad) for value in inputs)
    return (precision, *shapes)
