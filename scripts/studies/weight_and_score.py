"""Scores of a study's runs over the weight of their classification loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from data.errors import InputError
from engine.config import parse_config
from engine.strict_yaml import read_yaml
from scripts.curves import pair_of, read_curves
from scripts.figures import literal
from scripts.studies.definition import Score
from scripts.studies.figures import ShownRun, finished, label_panel
from scripts.studies.results import score_at
from scripts.studies.run import read_scores
from scripts.studies.statistics import rank_correlation

# By the type of the weighting; rules without their own color share the last.
COLORS = {"fixed": "tab:gray", "alwa": "tab:red"}
OTHER = "tab:blue"
# Of a number, in points from its own one.
PLACES = [(4, 3), (4, -9), (-10, 3), (-10, -9), (4, 12), (-10, 12), (4, -18), (-10, -18), (12, -3)]


@dataclass(frozen=True)
class WeighedRun:
    """The data of one run in the figure.

    Attributes:
        title: title of its cell; runs with the same title form one point.
        rule: type of its weighting.
        weight: weight of the classification loss, mean over the second half of the log lines.
        score: value of the study's first metric.
    """

    title: str
    rule: str
    weight: float
    score: float


def draw_weights(runs: Sequence[ShownRun], heading: str, scored: Score) -> Figure:
    """Draw a point for each title, its mean score over its mean weight, with a ray to each run.

    Raises:
        InputError: a run has no curves or no scores.
    """
    metric, path = next(iter(scored.metrics.items()))
    weighed = [weigh(run, scored.split, path) for run in runs]
    figure, axes = plt.subplots(figsize=(10, 7))
    axes.set_xscale("log")
    for number, title in enumerate(dict.fromkeys(run.title for run in weighed), start=1):
        _draw_point(axes, number, [run for run in weighed if run.title == title])
    title = f"{len(weighed)} runs"
    correlation = rank_correlation([r.weight for r in weighed], [r.score for r in weighed])
    if len(weighed) > 2 and correlation is not None:
        title += f", rank correlation {correlation:.2f}"
    label_panel(axes, title, "weight of the classification loss, mean of the second half")
    axes.set_ylabel(literal(metric), fontsize=9)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    finished(figure, heading)
    part_numbers(axes)
    return figure


def weigh(run: ShownRun, split: str, path: str) -> WeighedRun:
    """Read a run's mean weight and its score.

    Args:
        path: dotted, of the score in metrics.json.

    Raises:
        InputError: the run has no curves, or no such score.
    """
    curves = read_curves(run.folder)
    tag = f"loss_weight/{pair_of(curves, run.folder)[0]}"
    if tag not in curves:
        raise InputError(f"{run.folder}: has no curve {tag}, the weight of its classification loss")
    weights = curves[tag].values
    score = score_at(read_scores(run.folder, split), path)
    if score is None:
        raise InputError(f"{run.folder}: has no score {path}")
    rule = parse_config(read_yaml(run.folder / "config.yaml"), str(run.folder)).loss.weighting.type
    return WeighedRun(run.title, rule, float(weights[len(weights) // 2 :].mean()), score)


def _draw_point(axes: Axes, number: int, runs: Sequence[WeighedRun]) -> None:
    """Draw the mean of one title, numbered as in the legend, with a ray to each of its runs."""
    color = COLORS.get(runs[0].rule, OTHER)
    mean = (float(np.mean([r.weight for r in runs])), float(np.mean([r.score for r in runs])))
    for run in runs if len(runs) > 1 else ():
        ray = ([mean[0], run.weight], [mean[1], run.score])
        axes.plot(*ray, color=color, alpha=0.5, linewidth=0.5, marker=".", markersize=3)
    label = literal(f"{number}  {runs[0].title}")
    axes.plot(*mean, "o", color=color, markersize=5, label=label)
    axes.annotate(str(number), mean, PLACES[0], textcoords="offset points", fontsize=7)


def part_numbers(axes: Axes) -> None:
    """Move each number to the first free place beside its point."""
    numbers = [text for text in axes.texts if isinstance(text, Annotation)]
    points = [axes.transData.transform(number.xy) for number in numbers]
    taken: list[Bbox] = []
    for number in numbers:
        for place in PLACES:
            number.set_position(place)
            box = number.get_window_extent()
            if not (box.count_overlaps(taken) or any(box.contains(*point) for point in points)):
                break
        taken.append(number.get_window_extent())
