"""What in a training step makes the host wait for the device: counted on a CPU, refused on a GPU.

A size or a number that the host reads from a tensor stops the queue of a GPU until everything
before it is done. Every such operation is counted here, so that none comes back unnoticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

from data.target import Targets, pad_targets
from detector.build import build_detector
from detector.config import DetectorConfig
from losses import ALWA
from losses.config import LossConfig

# Their result, or its shape, is a number that the host has to know.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
    "torchvision::nms",
}
INTERVAL = 2  # of ALWA: every second step closes a window
# Of one step on the CPU, where nothing has to wait and positives are looked up: as counted.
MOST_READS = 35


class CountWaits(TorchDispatchMode):
    """Counts the operations that would make the host wait, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name in WAITING or (name.startswith("aten::index") and _has_mask(args)):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(args: tuple[Any, ...]) -> bool:
    """Indexing by a boolean tensor asks how many of it are true."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices)


def make_targets(device: torch.device) -> Targets:
    """One image with boxes, small and large, and one without."""
    boxes = torch.tensor([[4.0, 4.0, 40.0, 44.0], [10.0, 8.0, 120.0, 90.0], [60.0, 60.0, 70, 72]])
    targets = pad_targets([boxes, torch.zeros(0, 4)], [torch.tensor([0, 1, 2]), torch.zeros(0)])
    return targets.to(device)


def make_step(device: torch.device) -> Callable[[], None]:
    """A RetinaNet with ALWA and SGD; a call is one step on the same batch, without a log line."""
    torch.manual_seed(0)
    options = {"type": "retinanet", "backbone": "resnet18", "weights": "none", "fpn_channels": 16}
    detector = build_detector(DetectorConfig(**options), LossConfig(), 3).to(device)
    weighting = ALWA(detector.weighting_pairs, interval=INTERVAL).to(device)
    optimizer = SGD(detector.parameters(), lr=1e-3, fused=device.type != "meta")
    images = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8).to(device) for _ in range(2)]
    targets = make_targets(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = weighting(detector(images, targets))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def test_the_counter_sees_what_waits() -> None:
    values = torch.arange(4.0)
    with CountWaits() as waits:
        values[values > 1]
        values.nonzero()
        values.sum().item()
        torch.where(values > 1, values, 0.0).sum()
    assert sum(waits.counts.values()) == 3


def test_a_retinanet_step_with_alwa_reads_few_numbers_on_the_cpu() -> None:
    step = make_step(torch.device("cpu"))
    step()  # anchors, momentum and other things that are made once
    with CountWaits() as waits:
        for _ in range(INTERVAL):
            step()
    assert sum(waits.counts.values()) <= MOST_READS * INTERVAL, dict(waits.counts)


def test_a_retinanet_step_with_alwa_runs_where_tensors_have_no_values() -> None:
    """The code of accelerators, on PyTorch's device of shapes: whatever asks for a value, or for a
    shape that depends on one, raises there."""
    step = make_step(torch.device("meta"))
    for _ in range(INTERVAL):
        step()
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.ones(3, device="meta").nonzero()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_retinanet_step_with_alwa_never_waits_for_the_gpu() -> None:
    step = make_step(torch.device("cuda"))
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(INTERVAL):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
