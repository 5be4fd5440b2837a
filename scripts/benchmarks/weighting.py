"""The cost of ALWA: microseconds per iteration, and its share of a training step."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from losses import ALWA
from losses.weighting import LossWeighting
from scripts.benchmarks.machine import describe_machine
from scripts.benchmarks.report import Report, Row
from scripts.benchmarks.timing import alternate, median
from scripts.benchmarks.training import Trainee, build_trainee, build_work

ITERATIONS = 500  # per repetition: five windows, so that the mean includes their statistics
STEPS_IN_A_ROW = 20
LOSSES = [0.7, 1.3]
PAIRS = {"head": ("classification", "bbox_regression")}


def run_weighting(options: argparse.Namespace) -> Report:
    """Time the sum of two losses with and without ALWA, forward and backward."""
    device = torch.device(options.device)
    _check(device)
    weighting = ALWA(PAIRS, interval=100).to(device)
    values = torch.tensor(LOSSES, device=device, requires_grad=True)
    seconds = alternate(
        {
            "ours": lambda: _iterate(values, weighting),
            "theirs": lambda: _iterate(values, lambda losses: losses),
        },
        options.repeats,
        device,
        warm_up=2,
    )
    title = "ALWA against a plain sum of the losses, one iteration, forward and backward"
    report = Report(title, describe_machine(device, ("torch",)))
    report.checks.append("weights of 1: the same sum and gradient as the plain sum")
    ours, theirs = ([each / ITERATIONS for each in seconds[side]] for side in ("ours", "theirs"))
    added = median(ours) - median(theirs)
    trainee = build_trainee("ours", options, build_work(options))
    sides = ("without", "with") if device.type == "cuda" else ("without",)
    steps = _whole_steps(trainee, options.step_repeats, sides)
    step = median(steps["without"])
    name = f"{options.detector} {options.size[0]} x {options.size[1]}, batch {options.batch}"
    notes = {
        "ALWA adds": f"{added * 1e6:.1f} µs",
        "of a step": f"{added / step:.4%} of {step * 1e3:.0f} ms ({name})",
    }
    report.rows.append(Row("iteration", ours, theirs, notes=notes))
    if device.type == "cuda":  # where the host's part may run beside the GPU's
        difference = median(steps["with"]) - step
        notes = {"ALWA adds": f"{difference * 1e6:.1f} µs", "of a step": f"{difference / step:.4%}"}
        report.rows.append(
            Row(f"whole steps ({name})", steps["with"], steps["without"], notes=notes)
        )
    return report


def _whole_steps(trainee: Trainee, repeats: int, sides: Sequence[str]) -> dict[str, list[float]]:
    """Time steps with and without ALWA alternately; on a GPU the mean of many in a row."""
    many = STEPS_IN_A_ROW if trainee.device.type == "cuda" else 1
    weighting = trainee.weighting

    def run(used: LossWeighting | None) -> None:
        trainee.weighting = used
        for _ in range(many):
            trainee.step()

    work = {"with": lambda: run(weighting), "without": lambda: run(None)}
    seconds = alternate({side: work[side] for side in sides}, repeats, trainee.device)
    return {side: [each / many for each in seconds[side]] for side in sides}


Weigh = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _iterate(values: Tensor, weigh: Weigh) -> None:
    for _ in range(ITERATIONS):
        values.grad = None
        _total(values, weigh).backward()


def _total(values: Tensor, weigh: Weigh) -> Tensor:
    classification, regression = values.unbind()
    losses = weigh({"classification": classification, "bbox_regression": regression})
    return torch.stack(list(losses.values())).sum()


def _check(device: torch.device) -> None:
    results = []
    for weigh in (ALWA(PAIRS).to(device), lambda losses: losses):
        values = torch.tensor(LOSSES, device=device, requires_grad=True)
        total = _total(values, weigh)
        (gradient,) = torch.autograd.grad(total, values)
        results.append([total.item(), *gradient.tolist()])
    if results[0] != results[1]:
        raise SystemExit(
            f"sum and gradients: ALWA with weights of 1 gives {results[0]}, the plain sum "
            f"{results[1]}: nothing was timed"
        )
