"""The paper's figures 1, 2, 3, 5, 6 and 7, drawn from runs of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl

from data.errors import InputError
from engine.process.atomic_file import write_atomically
from scripts.curves import pair_of, read_curves
from scripts.figures import literal

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# As in the paper's figures: classification red and dashed, boxes blue and solid.
CLASSIFICATION = {"color": "tab:red", "linestyle": "--", "linewidth": 1.0}
BOX = {"color": "tab:blue", "linestyle": "-", "linewidth": 1.0}
FIRST_LINES = 5
WINDOW_ROWS = {
    "loss_mean": "mean of the window",
    "loss_std": "standard deviation of the window",
    "loss_weight": "λ",
}


@dataclass(frozen=True)
class ShownRun:
    """A run in a figure: its title and its folder."""

    title: str
    folder: Path


def draw_losses(runs: Sequence[ShownRun], heading: str) -> Figure:
    """Draw figure 1: both losses of each run over training, and their means at the start.

    Raises:
        InputError: a run has no curves.
    """
    figure, axes = plt.subplots(
        len(runs), 2, figsize=(9, 3.2 * len(runs)), squeeze=False, width_ratios=(3, 1)
    )
    for run, (curve_panel, bar_panel) in zip(runs, axes, strict=True):
        curves = read_curves(run.folder)
        pair = pair_of(curves, run.folder)
        for name, style in zip(pair, (CLASSIFICATION, BOX), strict=True):
            curve = curves[f"loss/{name}"]
            curve_panel.plot(curve.steps, curve.values, label=name, **style)
        label_panel(curve_panel, f"(a) {run.title}: raw losses", "iteration")
        curve_panel.set_ylim(bottom=0)
        curve_panel.legend(fontsize=8)
        first = [curves[f"loss/{name}"] for name in pair]
        means = [float(curve.values[:FIRST_LINES].mean()) for curve in first]
        colors = [str(CLASSIFICATION["color"]), str(BOX["color"])]
        bars = bar_panel.bar(("classification", "box"), means, color=colors)
        bar_panel.bar_label(bars, fmt="%.3f", fontsize=8)
        bar_panel.margins(y=0.15)
        until = int(first[0].steps[:FIRST_LINES][-1])
        label_panel(bar_panel, f"(b) mean of the log lines\nup to iteration {until}", "")
    return finished(figure, heading)


def draw_windows(runs: Sequence[ShownRun], heading: str) -> Figure:
    """Draw figures 3 and 6: mean and deviation of the weighted losses in each window, and λ.

    Each run has a column; the panels of a row share their scale.

    Raises:
        InputError: a run has no curves, or has not completed a window.
    """
    figure, axes = plt.subplots(
        3, len(runs), figsize=(3.6 * len(runs), 7.2), squeeze=False, sharex="col", sharey="row"
    )
    for run, column in zip(runs, axes.T, strict=True):
        curves = read_curves(run.folder)
        pair = pair_of(curves, run.folder)
        for panel, group in zip(column, WINDOW_ROWS, strict=True):
            for name, style in zip(pair, (CLASSIFICATION, BOX), strict=True):
                curve = curves.get(f"{group}/{name}")
                if curve is None:
                    raise InputError(f"{run.folder}: has not completed a window of losses yet")
                drawn = panel.plot(curve.steps, curve.values, label=name, **style)
                if group == "loss_weight":  # constant within a window, often the same for both
                    drawn[0].set_drawstyle("steps-pre")
                    drawn[0].set_zorder(3 if name == pair[0] else 2)
            label_panel(panel, run.title if panel is column[0] else "", "")
        column[-1].set_xlabel("iteration")
    for panel, title in zip(axes[:, 0], WINDOW_ROWS.values(), strict=True):
        panel.set_ylabel(title, fontsize=9)
        panel.set_ylim(bottom=0)  # once all runs are drawn: it ends the row's common scaling
    axes[0, 0].legend(fontsize=8)
    return finished(figure, heading)


def label_panel(panel: Axes, title: str, below: str) -> None:
    """Set title, axis and grid of a panel."""
    panel.set_title(literal(title), fontsize=9)
    panel.set_xlabel(below)
    panel.tick_params(which="both", labelsize=8)
    panel.grid(alpha=0.3, linewidth=0.5)


def finished(figure: Figure, heading: str) -> Figure:
    """Return the figure with its heading, laid out."""
    figure.suptitle(literal(heading), fontsize=10)
    figure.tight_layout()
    return figure


def write_figure(figure: Figure, path: Path) -> list[Path]:
    """Write ``<path>.png`` and ``<path>.svg``; raise InputError if they cannot be written."""
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    options: dict[str, Any] = {"bbox_inches": "tight", "facecolor": "white"}
    for file in files:
        # without a date, and with ids derived from the name, equal figures are equal files
        metadata = {"Date": None} if file.suffix == ".svg" else None
        picture = BytesIO()
        kind = file.suffix.removeprefix(".")
        with mpl.rc_context({"svg.hashsalt": path.name}):
            figure.savefig(picture, format=kind, dpi=130, metadata=metadata, **options)
        write_atomically(file, picture.getbuffer())
    plt.close(figure)
    return files
