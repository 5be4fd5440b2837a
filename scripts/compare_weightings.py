"""Compare how the loss weightings react to the same recorded losses.

    python scripts/compare_weightings.py
    python scripts/compare_weightings.py --scale 3 --output scaled.png
    python scripts/compare_weightings.py runs/my_run --interval 100

The raw losses of one recorded training run are replayed through every rule, iteration by iteration;
the weights are plotted and summarized in a table. The losses come from training with fixed weights:
another rule would have changed them, so this shows how rules react, not which is better.

A recording is a JSON file with the lists ``cls`` and ``box``, one number per iteration, and, for
GradNorm, ``cls_gradient`` and ``box_gradient``, their gradient norms at the shared layer. In a run
(its folder, ``metrics.jsonl`` or TensorBoard file) each log line counts as an iteration: train with
``train.log_every=1``. Needs matplotlib (the extra ``analysis``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.errors import InputError, unreadable
from engine.config import parse_config
from engine.process.standard_output import status_of_tool, tool
from engine.strict_yaml import read_yaml
from losses import (
    ALWA,
    DWA,
    GLS,
    CoVWeighting,
    GradNorm,
    LossWeighting,
    RandomWeights,
    SelfBalancing,
    UncertaintyWeighting,
)
from scripts.curves import pair_of, read_curves
from scripts.figures import check_figure, new_figure, save_figure
from scripts.number_types import at_least

ROOT = Path(__file__).resolve().parents[1]
RECORDING = ROOT / "tests/losses/fixtures/recorded_losses.json"
PAIR = {"head": ("cls", "box")}
RULES: dict[str, Callable[[int], LossWeighting]] = {
    "ALWA 1": lambda interval: ALWA(PAIR, 1, interval),
    "ALWA 2": lambda interval: ALWA(PAIR, 2, interval),
    "ALWA 2 multiplicative": lambda interval: ALWA(PAIR, 2, interval, update="multiplicative"),
    "ALWA 2 unweighted": lambda interval: ALWA(PAIR, 2, interval, update="unweighted"),
    "uncertainty": lambda interval: UncertaintyWeighting(PAIR, interval),
    "DWA": lambda interval: DWA(PAIR, interval),
    "RLW": lambda interval: RandomWeights(PAIR, interval),
    "GLS": lambda interval: GLS(PAIR, interval),
    "CoV": lambda interval: CoVWeighting(PAIR, interval),
    "self-balancing": lambda interval: SelfBalancing(PAIR, interval),
    "GradNorm": lambda interval: GradNorm(PAIR, interval),
}
SMALLEST = 1e-4  # lower limit of the weights' axis
LR = 0.02  # of the log-variances of uncertainty weighting: SGD with momentum, as the network


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    if not (isfinite(options.scale) and options.scale > 0):
        raise InputError(f"--scale {options.scale}: must be above 0")
    check_figure(options.output)
    recording = scaled(read_recording(options.recording), options.scale)
    for doubt in _doubts(options.recording, len(recording["cls"]), options.interval):
        print(f"compare_weightings.py: warning: {doubt}", file=sys.stderr)
    rules = [rule for rule in RULES if rule != "GradNorm" or "cls_gradient" in recording]
    weights = {rule: replay(RULES[rule](options.interval), recording) for rule in rules}
    print(table(weights, recording))
    save_figure(draw(weights, recording, options.scale), options.output)
    print(options.output)
    return 0


def _doubts(path: Path, iterations: int, interval: int) -> Iterator[str]:
    """Yield reasons why the figure may be misleading."""
    config = (path if path.is_dir() else path.parent) / "config.yaml"
    with suppress(InputError):  # of another version: the losses can be read all the same
        weighting = parse_config(read_yaml(config), str(config)).loss.weighting.type
        if weighting != "fixed":
            yield (
                f"{path} was trained with loss.weighting.type: {weighting}, which has shaped its "
                "losses"
            )
    if iterations < interval:
        yield (
            f"{path} has {iterations} iterations, fewer than a window of --interval {interval}: "
            "ALWA and DWA never update their weights"
        )


def read_recording(path: Path) -> dict[str, list[float]]:
    """Read the lists ``cls`` and ``box``, one number per iteration, and known gradient norms.

    Raises:
        InputError: the file or run is not found, or has no pair of losses.
    """
    if path.suffix == ".json":
        return _read_json(path)
    curves = read_curves(path)
    rows = list(zip(PAIR["head"], pair_of(curves, path), strict=True))
    for _, loss in rows:
        apart = int(np.diff(curves[f"loss/{loss}"].steps).max(initial=1))
        if apart > 1:
            raise InputError(
                f"{path}: log lines are up to {apart} iterations apart; train with "
                "train.log_every=1 to log every iteration"
            )
    return {name: curves[f"loss/{loss}"].values.tolist() for name, loss in rows}


def _read_json(path: Path) -> dict[str, list[float]]:
    try:
        recording: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
        lengths = {len(recording[name]) for name in recording if name != "source"}
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, TypeError):
        raise InputError(f"{path}: is not a JSON file of lists of losses") from None
    gradients = {f"{name}_gradient" for name in PAIR["head"]}
    rows = {*recording} - {"source"}
    if rows not in ({*PAIR["head"]}, {*PAIR["head"]} | gradients) or len(lengths) != 1:
        raise InputError(
            f"{path}: needs lists cls and box of equal length, one number per iteration, and "
            "either both or neither of cls_gradient and box_gradient"
        )
    values = [value for name in rows for value in recording[name]]
    if not values or not all(type(value) in (int, float) and isfinite(value) for value in values):
        raise InputError(f"{path}: lists must hold finite numbers, at least one each")
    return recording


def scaled(recording: dict[str, list[float]], factor: float) -> dict[str, list[float]]:
    """Return the recording with its classification loss and gradient multiplied by ``factor``."""
    values = {name: recording[name] for name in recording if name != "source"}
    return {
        name: [value * factor for value in row] if name.startswith("cls") else row
        for name, row in values.items()
    }


def replay(weighting: LossWeighting, recording: dict[str, list[float]]) -> np.ndarray:
    """Return the weights that a rule applies in each iteration, ``(iterations, 2)``."""
    layer = torch.zeros((), requires_grad=True)  # along it each loss has its recorded gradient
    weighting.watch([layer])
    optimizer = None
    if parameters := list(weighting.parameters()):
        optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9)
    rows = []
    for iteration in range(len(recording["cls"])):
        losses = {
            name: recording[name][iteration]
            + layer * recording.get(f"{name}_gradient", recording[name])[iteration]
            for name in PAIR["head"]
        }
        total = sum(weighting(losses).values())
        if optimizer is not None:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        rows.append(torch.stack(list(weighting.applied_weights().values())).numpy())
    return np.stack(rows)


def table(weights: dict[str, np.ndarray], recording: dict[str, list[float]]) -> str:
    """Format for each rule the ratio of its weights and the size of its total loss."""
    losses = np.stack([recording[name] for name in PAIR["head"]], axis=1)
    lines = [
        "| rule | λ_cls/λ_box, geometric mean | lowest | highest | last | mean total / fixed 1:1 |",
        "|---|---|---|---|---|---|",
    ]
    for rule, values in weights.items():
        ratio = values[:, 0] / values[:, 1]
        total = (values * losses).sum() / losses.sum()
        numbers = (np.exp(np.log(ratio).mean()), ratio.min(), ratio.max(), ratio[-1], total)
        lines.append(f"| {rule} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    return "\n".join(lines)


def draw(weights: dict[str, np.ndarray], recording: dict[str, list[float]], scale: float) -> Any:
    """Draw a panel with the losses and one with the weights of each rule, on a shared axis."""
    least, most = (float(bound(list(weights.values()))) for bound in (np.min, np.max))
    rows = -(-(len(weights) + 1) // 3)
    figure = new_figure((10, 2 * rows))
    axes = figure.subplots(rows, 3, sharex=True, squeeze=False)
    first, *panels = axes.flat
    for name in PAIR["head"]:
        first.plot(recording[name], linewidth=0.8, label=name)
    factor = "" if scale == 1 else f", cls times {scale:g}"
    first.set_title(f"raw losses as recorded{factor}", fontsize=9)
    first.legend(fontsize=7)
    for rule, panel in zip(weights, panels, strict=False):
        for number, name in enumerate(PAIR["head"]):
            panel.plot(weights[rule][:, number], linewidth=0.8, label=f"λ {name}")
        panel.set_yscale("log")
        panel.set_ylim(max(SMALLEST, min(0.1, least / 1.2)), max(10, most * 1.2))
        panel.axhline(1, color="grey", linewidth=0.5, linestyle=":")
        panel.set_title(rule, fontsize=9)
    for panel in panels[len(weights) :]:
        panel.set_axis_off()
    for panel in axes.flat:
        panel.tick_params(labelsize=7)
    axes[0, 1].legend(fontsize=7)
    figure.supxlabel("iteration", fontsize=9)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", type=Path, nargs="?", default=RECORDING, help="file or run")
    parser.add_argument("--interval", type=at_least(2), default=10, help="window length (10)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on cls, as of another normalizer (1)"
    )
    parser.add_argument("--output", type=Path, default=Path("weightings.png"), help="output image")
    return parser


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
