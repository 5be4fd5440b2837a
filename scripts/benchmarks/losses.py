"""RetinaNet's matching and losses, forward and backward, against torchvision's."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scripts.benchmarks.machine import describe_machine
from scripts.benchmarks.memory import peak_memory
from scripts.benchmarks.processes import Alone, memory_note, run_alone
from scripts.benchmarks.report import Report, Row
from scripts.benchmarks.timing import alternate, worst_of
from scripts.benchmarks.twins import Work, build_ours, build_theirs, make_work

if TYPE_CHECKING:
    from detector.fast.sparse_towers import Wanted

LARGEST_DIFFERENCE = 1e-4  # of a loss, relative
STRIDES = tuple(2**level for level in (3, 4, 5, 6, 7))


@dataclass(frozen=True)
class Case:
    """Boxes per image and images per batch."""

    boxes: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.boxes}x{self.batch}"


def run_losses(options: argparse.Namespace) -> Report | Alone:
    """Report a row for each case; with ``--side`` the measurements of one side in one case."""
    device = torch.device(options.device)
    if options.side:
        boxes, _, batch = options.case.partition("x")
        work = Sides(options, Case(int(boxes), int(batch))).work()[options.side]
        memory = peak_memory(work, device)
        return Alone(alternate({"it": work}, options.repeats, device, 0)["it"], memory)
    height, width = options.size
    title = f"RetinaNet's matching and losses, {options.classes} classes, {height} x {width}"
    report = Report(title, describe_machine(device))
    worst = worst_of(Sides(options, case).difference() for case in cases(options))
    if not worst <= LARGEST_DIFFERENCE:
        raise SystemExit(f"losses differ by {worst:.1g} (relative): nothing was timed")
    report.checks.append(f"same losses and gradients, largest relative difference {worst:.1g}")
    for case in cases(options):
        name = f"{case.boxes} boxes an image, batch {case.batch}"
        if options.separate:
            alone = run_alone(case.name)
            times = (alone["ours"].seconds, alone["theirs"].seconds)
            report.rows.append(Row(f"{name}, a process each", *times, notes=memory_note(alone)))
        else:
            seconds = alternate(Sides(options, case).work(), options.repeats, device)
            report.rows.append(Row(name, seconds["ours"], seconds["theirs"]))
    return report


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield each number of boxes at the first batch size, then each batch size at the first."""
    first_boxes, first_batch = options.boxes_list[0], options.batches[0]
    yield from (Case(boxes, first_batch) for boxes in options.boxes_list)
    yield from (Case(first_boxes, batch) for batch in options.batches[1:])


class GivenHead(nn.Module):
    """A replacement of our head with given outputs, in the memory format of convolutions.

    Args:
        logits, deltas: ``(B, 9 * values, H, W)`` of each level.
    """

    looks_locally = True

    def __init__(self, logits: list[Tensor], deltas: list[Tensor], classes: int) -> None:
        super().__init__()
        self.logits, self.deltas, self.classes = logits, deltas, classes

    def classify(self, maps: object) -> list[Tensor]:  # noqa: ARG002
        return [per_anchor(level, self.classes) for level in self.logits]

    def regress(self, maps: object) -> list[Tensor]:  # noqa: ARG002
        return [per_anchor(level, 4) for level in self.deltas]

    def regress_at(self, maps: object, wanted: Wanted) -> Tensor:
        return torch.cat(self.regress(maps), dim=1)[wanted.images, wanted.anchors]


class Sides:
    """The two loss functions over the same random head outputs.

    The outputs are maps as from each side's convolutions: ours in channels-last order, the
    default. The time of a side includes reordering them.
    """

    def __init__(self, options: argparse.Namespace, case: Case) -> None:
        device, size = torch.device(options.device), tuple(options.size)
        boxes, counts = tuple(options.box_sides), [case.boxes] * case.batch
        self.batch: Work = make_work("retinanet", size, counts, boxes, options.classes, device)
        padded = (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32)
        grids = [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in STRIDES]
        self.logits = random_maps(case.batch, options.classes, grids, (-4.6, 0.6), device)
        self.deltas = random_maps(case.batch, 4, grids, (0.0, 0.2), device)
        self.our_logits, self.our_deltas = channels_last(self.logits), channels_last(self.deltas)
        self.classes = options.classes
        self.ours: Any = build_ours("retinanet", "resnet18", options.classes, device)
        self.theirs: Any = build_theirs("retinanet", "resnet18", options.classes, size, device)
        self.maps = [torch.empty(1, 1, *grid, device=device) for grid in grids]
        self.anchors = self.ours.anchor_generator.of_pyramid(padded, self.maps)
        self.ours.head = GivenHead(self.our_logits, self.our_deltas, options.classes)

    def work(self) -> dict[str, Callable[[], dict[str, Tensor]]]:
        return {"ours": self.run_ours, "theirs": self.run_theirs}

    def run_ours(self) -> dict[str, Tensor]:
        targets = self.batch.targets
        return self._backward(self.ours.training_losses(self.maps, self.anchors, targets))

    def run_theirs(self) -> dict[str, Tensor]:
        """Compute torchvision's losses, including the concatenation of its heads."""
        outputs = {
            "cls_logits": torch.cat([per_anchor(level, self.classes) for level in self.logits], 1),
            "bbox_regression": torch.cat([per_anchor(level, 4) for level in self.deltas], 1),
        }
        anchors = [torch.cat(self.anchors)] * len(self.batch.dicts)
        return self._backward(self.theirs.compute_loss(self.batch.dicts, outputs, anchors))

    def difference(self) -> float:
        """Return the largest relative difference of a loss or of the gradients of one map."""
        results = []
        leaves = {"ours": self.our_logits + self.our_deltas, "theirs": self.logits + self.deltas}
        for side, run in self.work().items():
            losses = run()
            results.append([*losses.values(), *(level.grad for level in leaves[side])])
        return worst_of(
            float((mine - other).norm() / other.norm().clamp(min=1e-12))
            for mine, other in zip(*results, strict=True)
        )

    def _backward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        for level in (*self.logits, *self.deltas, *self.our_logits, *self.our_deltas):
            level.grad = None
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}


def random_maps(
    batch: int,
    values: int,
    grids: list[tuple[int, int]],
    mean_std: tuple[float, float],
    device: torch.device,
) -> list[Tensor]:
    """Return normal ``(batch, 9 * values, H, W)`` maps of each grid that require gradients."""
    generator = torch.Generator().manual_seed(values)
    mean, std = mean_std
    maps = [torch.randn(batch, 9 * values, *grid, generator=generator) for grid in grids]
    return [(level * std + mean).to(device).requires_grad_() for level in maps]


def channels_last(maps: list[Tensor]) -> list[Tensor]:
    """Return leaf tensors with the same values in channels-last order."""
    return [
        level.detach().clone(memory_format=torch.channels_last).requires_grad_() for level in maps
    ]


def per_anchor(output: Tensor, values: int) -> Tensor:
    """``(B, 9 * values, H, W)`` -> ``(B, H * W * 9, values)``."""
    batch, _, height, width = output.shape
    parted = output.view(batch, -1, values, height, width).permute(0, 3, 4, 1, 2)
    return parted.reshape(batch, -1, values)
