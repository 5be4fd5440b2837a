"""Plot the curves of one run, or of several in one figure; they may still be running.

    python scripts/plot.py runs/quickstart
    python scripts/plot.py runs/fixed runs/alwa --output comparison.png --smooth 5
    python scripts/plot.py runs/* --tags 'val/coco_AP*' images_per_second --log

A run is given by its folder, its metrics.jsonl or a TensorBoard event file; of several, those
without curves are skipped. Six panels: the raw losses, the mean and the standard deviation of the
weighted losses per window, the loss weights, the learning rate, the average precision. With --tags
each curve whose name matches gets its own panel. Several runs: one color per run, one line style
per loss. Needs matplotlib (the extra `analysis`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.errors import InputError, some_of
from engine.process.standard_output import status_of_tool, tool
from scripts.curves import Curve, NoCurvesError, read_curves
from scripts.figures import check_figure, literal, new_figure, save_figure
from scripts.number_types import at_least

Runs = Mapping[str, Mapping[str, Curve]]

# title, tags, label of the y axis
PANELS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("raw losses", ("loss/*",), "loss"),
    ("weighted losses, mean per window", ("loss_mean/*",), "mean"),
    ("weighted losses, deviation per window", ("loss_std/*",), "standard deviation"),
    ("loss weights", ("loss_weight/*",), "λ"),
    ("learning rate", ("lr",), "lr"),
    (
        "validation",
        ("val/voc_mAP", "val/coco_AP", "val/coco_segm_AP"),
        "average precision",
    ),
)
SMOOTHED = ("loss/", "weighted_loss/", "images_per_second")
LINES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 1, 1, 1, 1, 1)))
HANDLE = 0.8  # inches of a legend's line and what is between it, its name and the next column
COLORS = ("#2563eb", "#ea580c", "#059669", "#c026d3", "#ca8a04", "#dc2626", "#0891b2", "#64748b")


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    drawn = not options.json or options.output is not None
    output = options.output or Path("curves.png")
    if drawn:
        check_figure(output)
    runs = read_runs(options.runs, options.names)
    panels = panels_of(runs, options.tags)
    if options.json:
        print(json.dumps(as_json(runs, options.tags)))
    else:
        print(format_runs(runs))
    if drawn:
        save_figure(draw(runs, panels, options.smooth, options.log), output)
        if not options.json:
            print(f"written: {output}")
    return 0


def read_runs(paths: Sequence[Path], names: Sequence[str] | None) -> dict[str, dict[str, Curve]]:
    """Read the curves of each run, by the given names or by the shortest that tell paths apart.

    Of several runs, those without curves are skipped, with a line on stderr.

    Raises:
        InputError: names and runs do not match, or no run has curves.
    """
    if names is not None and len(names) != len(paths):
        raise InputError(
            f"--names: {len(names)} names for {len(paths)} runs; give one name per run"
        )
    if names is not None and not all(names):
        raise InputError("--names: a name is empty; give every run a name")
    labels = list(names or shortest_names(paths))
    if len(set(labels)) < len(labels):
        raise InputError("a run is given twice; give each once, or distinguish them with --names")
    runs = {}
    for label, path in zip(labels, paths, strict=True):
        try:
            runs[label] = read_curves(path)
        except NoCurvesError as error:
            if len(paths) == 1:
                raise
            print(f"plot.py: skipped: {error}", file=sys.stderr)
    if not runs:
        raise InputError(f"none of the {len(paths)} runs has curves; give another")
    return runs


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """Return each run's folder name, with as many parent folders as needed to make it unique.

    >>> shortest_names([Path("a/x/metrics.jsonl"), Path("b/x"), Path("c/y")])
    ['a/x', 'b/x', 'c/y']
    """
    folders = [(path.parent if _is_file(path) else path).absolute().parts for path in paths]
    deepest = max(map(len, folders), default=1)
    for count in range(1, deepest + 1):
        names = ["/".join(parts[-count:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _is_file(path: Path) -> bool:
    return path.is_file() or path.suffix == ".jsonl"


def panels_of(runs: Runs, patterns: Sequence[str] | None) -> list[tuple[str, list[str], str]]:
    """Return title, tags and label of each panel that has curves.

    Raises:
        InputError: a pattern matches no tag, or without patterns there is no curve to show.
    """
    tags = list(dict.fromkeys(tag for curves in runs.values() for tag in curves))
    if patterns is None:
        wanted = [(title, _matching(tags, globs), label) for title, globs, label in PANELS]
        panels = [panel for panel in wanted if panel[1]]
        if not panels:
            raise InputError(
                f"{', '.join(runs)}: has none of the default curves; choose others with --tags: "
                f"{some_of(tags, 40)}"
            )
        return panels
    for pattern in patterns:
        if not _matching(tags, [pattern]):
            raise InputError(
                f"--tags: no curve matches {pattern!r}; choose from {some_of(tags, 40)}"
            )
    return [(tag, [tag], "") for tag in _matching(tags, patterns)]


def _matching(tags: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [tag for tag in tags if any(fnmatchcase(tag, pattern) for pattern in patterns)]


def as_json(runs: Runs, patterns: Sequence[str] | None) -> dict[str, Any]:
    """``{run: {tag: {"steps": [...], "values": [...]}}}``."""
    return {
        run: {
            tag: {"steps": curve.steps.tolist(), "values": curve.values.tolist()}
            for tag, curve in curves.items()
            if patterns is None or _matching([tag], patterns)
        }
        for run, curves in runs.items()
    }


def format_runs(runs: Runs) -> str:
    """Format a line for each run: its last step, last losses, and last and best scores."""
    lines = []
    for run, curves in runs.items():
        step = max(int(curve.steps[-1]) for curve in curves.values())
        parts = [f"{run}: step {step}"]
        parts += [
            f"{tag.removeprefix('loss/')} {curve.values[-1]:.4f}"
            for tag, curve in curves.items()
            if tag.startswith("loss/")
        ]
        for tag in PANELS[-1][1]:
            if tag in curves:
                values = curves[tag].values
                name = tag.removeprefix("val/")
                parts.append(f"{name} {values[-1]:.3f} (best {values.max():.3f})")
        lines.append(", ".join(parts))
    return "\n".join(lines)


def smooth(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Return the running mean over ``width`` values around each, over fewer at both ends.

    >>> smooth(np.array([0.0, 3.0, 0.0]), 3).tolist()
    [1.5, 1.0, 1.5]
    """
    kernel = np.ones(min(width, 2 * len(values) - 1))
    total = np.convolve(values, kernel, mode="full")
    count = np.convolve(np.ones(len(values)), kernel, mode="full")
    start = (len(kernel) - 1) // 2
    middle = slice(start, start + len(values))
    mean: npt.NDArray[np.float64] = total[middle] / count[middle]
    return mean


def draw(
    runs: Runs, panels: Sequence[tuple[str, list[str], str]], width: int, logarithmic: bool
) -> Any:
    """Draw a panel for each group of tags, over the iterations.

    Args:
        width: number of log lines in the running mean of the losses.
        logarithmic: use log scale for all y axes but those of scores and weights.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure((4.6 * columns, 3.0 * rows + 0.5))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, (title, tags, label) in zip(axes, panels, strict=False):
        _draw_panel(axis, runs, tags, width)
        if width > 1 and any(tag.startswith(SMOOTHED) for tag in tags):
            title = f"{title} (mean of {width} log lines)"
        axis.set_title(literal(title), fontsize=10)
        axis.set_ylabel(label, fontsize=9)
        if logarithmic and not tags[0].startswith(("val/", "loss_weight/")):
            axis.set_yscale("log")
        if tags[0].startswith("val/"):
            axis.set_ylim(0, 1)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis in axes[max(0, len(panels) - columns) : len(panels)]:
        axis.set_xlabel("iteration", fontsize=9)
        axis.tick_params(labelbottom=True)
    if len(runs) > 1:
        _name_the_runs(figure, list(runs))
    return figure


def _draw_panel(axis: Any, runs: Runs, tags: Sequence[str], width: int) -> None:
    """Draw the curves of one panel: color by run, line by tag; for a single run color by tag."""
    named: set[str] = set()
    for position, curves in enumerate(runs.values()):
        for number, tag in enumerate(tags):
            if tag not in curves:
                continue
            curve = curves[tag]
            values = smooth(curve.values, width) if tag.startswith(SMOOTHED) else curve.values
            alone = len(runs) == 1
            color = color_of(number, len(tags)) if alone else color_of(position, len(runs))
            axis.plot(
                curve.steps,
                values,
                color=color,
                linestyle=LINES[0 if alone else number % len(LINES)],
                linewidth=1.4,
                marker="o" if len(curve) < 20 else None,
                markersize=3,
                label=None if tag in named else literal(tag.split("/", 1)[-1]),
            )
            named.add(tag)
    if len(tags) > 1:
        legend = axis.legend(fontsize=7.5, frameon=False)
        if len(runs) > 1:  # the color is that of a run, the line tells the loss
            for handle in legend.get_lines():
                handle.set_color("#475569")
    axis.grid(color="#e2e8f0", linewidth=0.6)
    axis.tick_params(labelsize=8)


def color_of(number: int, count: int) -> Any:
    """Return the color of curve ``number`` out of ``count``; no two curves share one."""
    if count <= len(COLORS):
        return COLORS[number]
    from matplotlib import colormaps

    return colormaps["turbo"](number / (count - 1))


def _name_the_runs(figure: Any, names: Sequence[str]) -> None:
    """Add a legend of the runs, with as many columns as the longest name leaves room for."""
    from matplotlib.lines import Line2D
    from matplotlib.textpath import TextPath

    room = figure.get_figwidth()
    widths = [TextPath((0, 0), literal(name), size=9).get_extents().width / 72 for name in names]
    # Drawn on whole pixels, letters are a little wider than their outlines.
    letter = 1.08 * max(width / len(name) for width, name in zip(widths, names, strict=True))
    lines = [fill(name, int((room - HANDLE) / letter), break_on_hyphens=False) for name in names]
    longest = max(len(part) for text in lines for part in text.split("\n"))
    handles = [
        Line2D([], [], color=color_of(number, len(names)), linewidth=3, label=literal(text))
        for number, text in enumerate(lines)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(4, len(names), int(room / (HANDLE + letter * longest)))),
        frameon=False,
        fontsize=9,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder or file of a run")
    parser.add_argument("--output", type=Path, help="output image: .png, .svg, .pdf (curves.png)")
    parser.add_argument("--names", nargs="+", help="names of the runs in the legend")
    parser.add_argument(
        "--tags", nargs="+", metavar="TAG", help="curves to draw, * and ? allowed: val/coco_AP*"
    )
    parser.add_argument(
        "--smooth", type=at_least(1), default=1, help="log lines in the running mean (1)"
    )
    parser.add_argument("--log", action="store_true", help="log scale for losses and learning rate")
    parser.add_argument(
        "--json", action="store_true", help="print the curves; no image without --output"
    )
    return parser


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
