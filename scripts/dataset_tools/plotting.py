"""A figure of a dataset: six plots of its images and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.annotations import Annotations
from scripts.dataset_tools.statistics import aspect_ratios, box_sides
from scripts.figures import literal, new_figure, save_figure

_MOST_CLASSES = 30  # bars
_CELLS = 40  # a side of the map of centers


def plot_dataset(annotations: Annotations, title: str, path: Path) -> None:
    """Write the figure as PNG, SVG or PDF, by the extension.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure((15, 9))
    axes = figure.subplots(2, 3).ravel()
    figure.suptitle(literal(title))
    _plot_classes(axes[0], annotations)
    _plot_counts(axes[1], annotations)
    _plot_image_sizes(axes[2], annotations)
    _plot_sides(axes[3], annotations)
    _plot_ratios(axes[4], annotations)
    _plot_centers(axes[5], annotations)
    save_figure(figure, path)


def _plot_classes(axis: Any, annotations: Annotations) -> None:
    counts = np.bincount(annotations.labels, minlength=len(annotations.classes))
    order = np.argsort(-counts, kind="stable")[:_MOST_CLASSES][::-1]
    names = [literal(annotations.classes[label]) for label in order.tolist()]
    bars = axis.barh(names, counts[order])
    axis.bar_label(bars, padding=2, fontsize=8)
    rest = len(counts) - len(order)
    axis.set(title="objects by class" + (f" ({rest} rarer ones not shown)" if rest else ""))
    axis.margins(x=0.12)
    axis.tick_params(axis="y", labelsize=8)


def _plot_counts(axis: Any, annotations: Annotations) -> None:
    counts = np.diff(annotations.offsets)
    width = int(counts.max(initial=0)) // 50 + 1
    axis.hist(counts, bins=np.arange(-0.5, counts.max(initial=0) + width + 0.5, width))
    axis.set(title="objects per image", xlabel="objects", ylabel="images")


def _plot_image_sizes(axis: Any, annotations: Annotations) -> None:
    sizes, counts = np.unique(annotations.sizes, axis=0, return_counts=True)
    axis.scatter(sizes[:, 1], sizes[:, 0], s=10 + 200 * counts / counts.max(), alpha=0.5)
    axis.set(title="image sizes", xlabel="width, px", ylabel="height, px")
    axis.margins(0.15)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)


def _plot_sides(axis: Any, annotations: Annotations) -> None:
    sides = box_sides(annotations)
    if len(sides):
        axis.hist(sides, bins=_log_bins(sides))
    for bound in (32, 96):
        axis.axvline(bound, color="gray", linestyle=":")
    axis.set(
        title="box sides (dotted: COCO's small, medium, large)",
        xlabel="square root of the area, px",
        ylabel="objects",
    )
    _label_log_scale(axis, (4, 8, 16, 32, 64, 128, 256, 512, 1024))


def _plot_ratios(axis: Any, annotations: Annotations) -> None:
    ratios = aspect_ratios(annotations)
    if len(ratios):
        axis.hist(ratios, bins=_log_bins(ratios))
    axis.set(title="aspect ratios", xlabel="height / width", ylabel="objects")
    _label_log_scale(axis, (0.1, 0.2, 0.5, 1, 2, 5, 10))


def _plot_centers(axis: Any, annotations: Annotations) -> None:
    centers = (annotations.boxes[:, :2] + annotations.boxes[:, 2:]) / 2
    centers = centers / annotations.sizes[annotations.object_images()][:, ::-1]
    grid, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=_CELLS, range=[[0, 1], [0, 1]])
    axis.imshow(grid, extent=(0, 1, 1, 0), cmap="magma", aspect="auto")
    axis.set(title="box centers", xlabel="x / image width", ylabel="y / image height")


def _label_log_scale(axis: Any, ticks: tuple[float, ...]) -> None:
    limits = axis.get_xlim()
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlim(max(limits[0], ticks[0] / 4), limits[1])


def _log_bins(values: Any) -> Any:
    low, high = float(values.min()), float(values.max())
    return np.geomspace(low * 0.95, high * 1.05, 40)
