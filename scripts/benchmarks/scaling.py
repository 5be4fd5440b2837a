"""Weak scaling of a training step: every rank has its own batch, on a growing number of ranks.

``run_scaling`` starts torchrun, which runs this file as a module once for each rank. The bytes are
those of the tensors that reach the process group: a ring all-reduce of N bytes among n ranks then
sends and receives 2 N (n - 1) / n of them on each. The two numbers per iteration that the training
loop also exchanges are not in a step here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.process.allocator import keep_freed_memory
from engine.process.distributed import leave, start_ranks
from losses.weighting import LossWeighting
from scripts.benchmarks.machine import describe_machine, in_words
from scripts.benchmarks.report import precision_name
from scripts.benchmarks.timing import alternate, median, ratio, spread
from scripts.benchmarks.training import build_trainee, build_work

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 2  # steps; in the second DDP regroups the gradients


@dataclass(frozen=True)
class Point:
    """The measurements of one number of ranks.

    Attributes:
        ranks: number of processes.
        seconds: time of each step on the slowest rank.
        trained: number of trained parameters.
        step_bytes: bytes that a rank passes to the collectives of a step: gradients.
        step_calls: number of these collectives.
        window_bytes: bytes that it passes to those of one window of ALWA.
        interval: steps in a window.
    """

    ranks: int
    seconds: list[float]
    trained: int
    step_bytes: int
    step_calls: int
    window_bytes: int
    interval: int


@dataclass(frozen=True)
class Scaling:
    """The results, fewest ranks first.

    Attributes:
        batch: images per rank.
    """

    title: str
    machine: dict[str, str]
    batch: int
    points: list[Point]

    def as_json(self) -> str:
        """Format every single time, with the table's numbers."""
        points = [
            {
                **asdict(point),
                "step_median": median(point.seconds),
                "images_per_second": self.images_per_second(point),
                "efficiency": self.efficiency(point),
            }
            for point in self.points
        ]
        return json.dumps({**asdict(self), "points": points}, indent=2)

    def as_markdown(self) -> str:
        """Format a caption and a line for each number of ranks."""
        machine = in_words(self.machine)
        header = "| ranks | step (quartiles) | steps/s | images/s | efficiency "
        header += "| exchanged in a step | ALWA's share |"
        lines = [f"**{self.title}**", "", machine, "", header, "|---" * 7 + "|"]
        return "\n".join([*lines, *map(self._line, self.points)])

    def images_per_second(self, point: Point) -> float:
        """Return the images per second of all ranks together."""
        return point.ranks * self.batch / median(point.seconds)

    def efficiency(self, point: Point) -> float:
        """Return the time of a step on the fewest ranks, divided by that on these ranks."""
        return ratio(self.points[0].seconds, point.seconds)

    def _line(self, point: Point) -> str:
        first, third = (1e3 * value for value in spread(point.seconds))
        window = point.window_bytes / point.interval
        return (
            f"| {point.ranks} | {1e3 * median(point.seconds):.0f} ms ({first:.0f} to {third:.0f}) "
            f"| {1 / median(point.seconds):.2f} | {self.images_per_second(point):.2f} "
            f"| {self.efficiency(point):.0%} | {point.step_bytes:,} B in {point.step_calls} "
            f"| {point.window_bytes:,} B / {point.interval} = {window:.0f} B |"
        )


def run_scaling(options: argparse.Namespace) -> Scaling:
    """Measure each number of ranks in turn, so that load on the machine affects all alike."""
    counts = sorted(options.ranks)
    rounds = [[_launch(ranks, options) for ranks in counts] for _ in range(options.rounds)]
    points = [
        Point(**{**asdict(same[0]), "seconds": [s for point in same for s in point.seconds]})
        for same in zip(*rounds, strict=True)
    ]
    height, width = options.size
    title = (
        f"Weak scaling of a step: {options.detector}, {options.backbone}, {height} x {width}, "
        f"{options.batch} images a rank, {options.classes} classes, {_threads(options)} thread(s) "
        f"a rank, {precision_name(options.amp)}"
    )
    machine = describe_machine(torch.device(options.device))
    del machine["threads"]  # of this process, which does nothing
    return Scaling(title, machine, options.batch, points)


def _threads(options: argparse.Namespace) -> int:
    return options.threads or 1


def _launch(ranks: int, options: argparse.Namespace) -> Point:
    plain = {name: value for name, value in vars(options).items() if name != "run"}
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with tempfile.TemporaryDirectory() as folder:
        module = ["-m", "scripts.benchmarks.scaling", json.dumps(plain), folder]
        run = subprocess.run(
            [sys.executable, "-m", *launcher, *module],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(_threads(options))},
        )
        files = [Path(folder, f"{rank}.json") for rank in range(ranks)]
        if not all(file.exists() for file in files):
            raise SystemExit(f"{ranks} rank(s) failed:\n{run.stderr}")
        answers = [Point(**json.loads(file.read_text())) for file in files]
    slowest = [max(step) for step in zip(*(answer.seconds for answer in answers), strict=True)]
    return Point(**{**asdict(answers[0]), "seconds": slowest})


class Collectives(TorchDispatchMode):
    """Counts calls that reach the process group, including DDP's own in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("c10d::"):
            tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.calls += 1
        return func(*args, **(kwargs or {}))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Write this rank's ``Point`` as JSON to the folder."""
    keep_freed_memory()
    torch.set_num_threads(_threads(options))
    with start_ranks(options.device) as ranks:
        work = build_work(options)
        trainee = build_trainee("ours", options, work)
        model, weighting = ranks.wrap(trainee.model), trainee.weighting
        assert weighting is not None
        trainee.run = lambda: model(work.images, work.targets)
        for _ in range(WARM_UP):
            trainee.step()
        with Collectives() as step:
            trainee.step()
        with Collectives() as window:
            pass_window(weighting, ranks.device)
        seconds = alternate({"it": trainee.step}, options.repeats, ranks.device, warm_up=0)["it"]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        counted = (trained, step.bytes, step.calls, window.bytes, weighting.interval)
        point = Point(ranks.world_size, seconds, *counted)
        Path(folder, f"{ranks.rank}.json").write_text(json.dumps(asdict(point)))


def pass_window(weighting: LossWeighting, device: torch.device) -> None:
    """Run the iterations of one window with dummy losses."""
    nothing = torch.zeros((), device=device)
    losses = {name: nothing for pair in weighting.pairs.values() for name in pair}
    for _ in range(weighting.interval):
        weighting(losses)


if __name__ == "__main__":
    measure(argparse.Namespace(**json.loads(sys.argv[1])), Path(sys.argv[2]))
    leave(0)
