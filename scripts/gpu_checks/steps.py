"""Checks of a training step on a GPU: recorded passes, bf16, gradient exchange, no waits."""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from detector.build import build_detector
from detector.config import DetectorConfig
from detector.fast.autocast import uncached_autocast
from detector.fast.cuda_graphs import FIRST_RECORDED, run_as_written
from engine.precision import autocast
from engine.process.distributed import BACKEND_OF_GPUS, average_gradients
from losses import ALWA
from losses.config import LossConfig
from scripts.benchmarks.inference import compare
from scripts.benchmarks.scaling import Collectives
from scripts.benchmarks.timing import worst_of
from scripts.benchmarks.training import Trainee, build_trainee, build_work
from scripts.benchmarks.twins import build_ours, make_detections_likely, make_work

CLASSES = 20
SIZE_HW, SIDES = (256, 320), (0.1, 0.5)  # of images; of boxes, relative to the shorter side
INTERVAL = 2  # of ALWA: every second step closes a window
STEPS = 6  # the passes are recorded within
LARGEST_DIFFERENCE = 1e-3  # of losses and gradients, relative: sums on a GPU have no fixed order

Losses = Callable[[], dict[str, Tensor]]


def check_bf16(kind: str, backbone: str, device: torch.device) -> str:
    """Check that losses and gradients are finite in some steps under autocast.

    Raises:
        SystemExit: they are not.
    """
    trainee = _build(kind, backbone, device, "bf16")
    for _ in range(STEPS):
        trainee.step()
    losses = {name: float(loss.detach()) for name, loss in trainee.losses().items()}
    gradient = _gradient(trainee)
    if not bool(gradient.isfinite().all()) or not all(map(math.isfinite, losses.values())):
        raise SystemExit(f"not finite in bf16: losses {losses}, gradient {gradient.norm():.3g}")
    listed = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
    return f"finite losses ({listed}) and gradients"


def check_exchange(backbone: str, device: torch.device) -> str:
    """Check that a RetinaNet step under DDP with one rank has the gradients of the plain step.

    Raises:
        SystemExit: they differ, or not all were exchanged.
    """
    alone = _build("retinanet", backbone, device, "none")
    alone.step()
    expected = _gradient(alone)
    del alone
    with process_group():
        trainee = _build("retinanet", backbone, device, "none", wrapped=True)
        trainee.step()  # in the first one the ranks also agree on the order of their gradients
        difference = float((_gradient(trainee) - expected).norm() / expected.norm())
        with Collectives() as exchanged:
            trainee.step()
        if not difference <= LARGEST_DIFFERENCE or exchanged.bytes != 4 * len(expected):
            raise SystemExit(
                f"{exchanged.bytes:,} B exchanged of {len(expected):,} gradients, which differ by "
                f"{difference:.2g} (relative)"
            )
    return (
        f"{exchanged.bytes:,} B in {exchanged.calls} all-reduces; gradients of the plain step "
        f"(relative difference {difference:.1g})"
    )


def check_recorded(kind: str, backbone: str, device: torch.device) -> str:
    """Compare losses and gradients of a recorded pass with those of the eager pass.

    Raises:
        SystemExit: they differ by more than rounding, or nothing was recorded.
    """
    lines = []
    for amp in ("none", "bf16"):
        trainee = _build(kind, backbone, device, amp)
        model: Any = trainee.model
        graphs = model.graphs
        for _ in range(FIRST_RECORDED):
            recorded = _pass(trainee)
        masks = getattr(model, "mask_graphs", None)
        if not graphs.recorded or (masks is not None and not masks.recorded):
            raise SystemExit(f"{kind}: nothing was recorded")
        run_as_written(model)
        trainee.run = _with_the_recorded_casts(trainee.run)
        written, again = _pass(trainee), _pass(trainee)
        noise = _largest_difference(again, written)  # sums on a GPU have no fixed order
        worst = _largest_difference(recorded, written)
        if not worst <= max(LARGEST_DIFFERENCE, 2 * noise):
            raise SystemExit(
                f"{kind}, {amp}: the recorded pass differs by {worst:.2g} (relative), the written "
                f"one from itself by {noise:.2g}"
            )
        lines.append(f"{amp} {worst:.1g} (the written pass from itself {noise:.1g})")
    return f"relative difference {', '.join(lines)}"


def check_recorded_detection(kind: str, backbone: str, device: torch.device) -> str:
    """Compare detections of a recorded and an eager pass, in its example images and darker ones.

    Raises:
        SystemExit: they differ, or nothing was recorded.
    """
    lines = []
    images = make_work(kind, SIZE_HW, [0, 0], SIDES, CLASSES, device).images
    for amp in ("none", "bf16"):
        detector: Any = build_ours(kind, backbone, CLASSES, device)
        make_detections_likely(detector, kind, images[0])
        detector.eval()
        with torch.no_grad(), autocast(device, amp), uncached_autocast("cuda"):
            for _ in range(FIRST_RECORDED):
                first = detector(images)
            recorded = [*first, *detector([image // 2 for image in images])]
            if detector.graphs.recorded != int(kind != "mask_rcnn"):
                raise SystemExit(f"{kind}: {detector.graphs.recorded} passes were recorded")
            run_as_written(detector)
            written = [*detector(images), *detector([image // 2 for image in images])]
        lines.append(f"{amp} {compare(recorded, written, first_label=0)}")
    return "; ".join(lines)


def check_statistics(device: torch.device) -> str:
    """Check batch norm's statistics after recorded passes, which count once, the warm-up never.

    Raises:
        SystemExit: they differ from those of eager passes, or nothing was recorded.
    """
    options: dict[str, object] = {"type": "retinanet", "backbone": "resnet18", "weights": "none"}
    options |= {"norm": "batch", "retinanet": {"head_norm": "batch"}, "trainable_stages": 5}
    torch.manual_seed(0)
    recorded = build_detector(DetectorConfig.model_validate(options), LossConfig(), CLASSES).to(
        device
    )
    written = copy.deepcopy(recorded)  # a copy records nothing
    work = make_work("retinanet", SIZE_HW, [5, 5], SIDES, CLASSES, device)
    for _ in range(STEPS):
        for detector in (recorded, written):
            losses = detector(work.images, work.targets)
            torch.stack(list(losses.values())).sum().backward()
            detector.zero_grad(set_to_none=True)
    if recorded.graphs is None or not recorded.graphs.recorded:
        raise SystemExit("batch norm: nothing was recorded")
    worst = _largest_difference(*([b.float() for b in d.buffers()] for d in (recorded, written)))
    if not worst <= LARGEST_DIFFERENCE:
        raise SystemExit(f"batch norm: statistics differ by {worst:.2g} (relative)")
    return f"batch norm: statistics after {STEPS} passes differ by {worst:.1g} (relative)"


def _with_the_recorded_casts(run: Losses) -> Losses:
    """Cast where values are read: on a CPU this alone changes RetinaNet's gradients by 0.0018."""

    def run_as_recorded() -> dict[str, Tensor]:
        with uncached_autocast("cuda"):
            return run()

    return run_as_recorded


def _pass(trainee: Trainee) -> tuple[Tensor, Tensor]:
    """Return losses and all gradients as one vector, with the same samples each time."""
    torch.manual_seed(0)
    trainee.optimizer.zero_grad(set_to_none=True)
    losses = torch.stack(list(trainee.losses().values()))
    losses.sum().backward()
    return losses.detach(), _gradient(trainee)


def _largest_difference(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    pairs = zip(ours, theirs, strict=True)
    ratios = [float((mine - other).norm() / other.norm()) for mine, other in pairs]
    return worst_of(ratios)


def check_no_waits(kind: str, backbone: str, device: torch.device) -> str:
    """Check that steps with ALWA, closing a window every second step, never wait for the GPU.

    Raises:
        RuntimeError: from PyTorch, if the host waits for the GPU.
    """
    for amp in ("none", "bf16"):
        trainee = _build(kind, backbone, device, amp)
        for _ in range(STEPS):  # anchors, momentum and other things that are made once
            trainee.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(STEPS):
                trainee.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return f"{STEPS} steps with {STEPS // INTERVAL} windows, in float32 and in bf16, without a wait"


@contextmanager
def process_group() -> Iterator[None]:
    """Create a process group of only this process."""
    with tempfile.TemporaryDirectory() as folder:
        meeting_place = f"file://{Path(folder, 'meeting')}"
        dist.init_process_group(BACKEND_OF_GPUS, init_method=meeting_place, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _build(
    kind: str, backbone: str, device: torch.device, amp: str, wrapped: bool = False
) -> Trainee:
    """Build our detector with ALWA on random pixels; ``wrapped``: under DDP."""
    options = argparse.Namespace(
        detector=kind, backbone=backbone, classes=CLASSES, size=SIZE_HW, device=str(device),
        boxes=5, batch=2, box_sides=SIDES, amp=amp,
    )  # fmt: skip
    work = build_work(options)
    trainee = build_trainee("ours", options, work)
    detector: Any = trainee.model
    trainee.weighting = ALWA(detector.weighting_pairs, interval=INTERVAL).to(device)
    if wrapped:
        model = average_gradients(trainee.model)
        trainee.run = lambda: model(work.images, work.targets)
    return trainee


def _gradient(trainee: Trainee) -> Tensor:
    """Return all gradients as one vector.

    Raises:
        SystemExit: a parameter has none.
    """
    parameters = [p for p in trainee.model.parameters() if p.requires_grad]
    gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
    if len(gradients) < len(parameters):
        raise SystemExit(f"{len(parameters) - len(gradients)} parameters have no gradient")
    return torch.cat(gradients)
