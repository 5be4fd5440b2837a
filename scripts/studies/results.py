"""Results of a study: the scores of each cell, with the paper's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import InputError, shown, some_of
from scripts.studies.definition import Labels, Study
from scripts.studies.ledger import iterations_of, results_folder
from scripts.studies.run import Run, read_record, read_scores, scores_file, stage
from scripts.studies.statistics import Paired, Summary, compare, summarize


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        scores: scores by seed, for each metric.
        published: the paper's value for each metric, None if it has none.
        published_change: the paper's change in points against its baseline, for each metric.
        cost: record of each run: seconds, CPU seconds, machine, iterations.
        trouble: error by seed, of runs that failed or have another config.
    """

    labels: Labels
    is_baseline: bool
    scores: Mapping[str, dict[int, float]]
    published: Mapping[str, float | None]
    published_change: Mapping[str, float | None]
    cost: list[dict[str, Any]] = field(default_factory=list)
    trouble: dict[int, str] = field(default_factory=dict)

    def summary(self, metric: str) -> Summary | None:
        """Compute mean and standard deviation over seeds."""
        return summarize(list(self.scores[metric].values()))


@dataclass(frozen=True)
class Results:
    """All cells of a study, in the table's order."""

    study: Study
    cells: list[Cell]

    def at(self, labels: Labels) -> Cell | None:
        """Return the cell with exactly these labels."""
        return next((cell for cell in self.cells if cell.labels == labels), None)

    def change(self, cell: Cell, metric: str) -> Paired | None:
        """Compare a cell with its baseline, in points, paired over seeds; None for a baseline."""
        baseline = self.at(self.study.baseline(cell.labels))
        if cell.is_baseline or baseline is None:
            return None
        values, others = (
            {seed: 100 * score for seed, score in part.scores[metric].items()}
            for part in (cell, baseline)
        )
        return compare(values, others)


def collect(
    study: Study, runs: Path, extra: Mapping[str, Any], ledger: Path | None = None
) -> Results:
    """Read the available results of a study, here or in the ledger; the rest stays empty."""
    return Results(study, [_cell(study, labels, runs, extra, ledger) for labels in study.cells()])


def _cell(
    study: Study, labels: Labels, runs: Path, extra: Mapping[str, Any], ledger: Path | None
) -> Cell:
    values, changes = _published(study, labels)
    cell = Cell(
        labels,
        study.against.items() <= labels.items(),
        {metric: {} for metric in study.score.metrics},
        values,
        changes,
    )
    for seed in study.seeds:
        run = study.run(labels, seed, extra)
        _add(cell, run, results_folder(run, study.score.split, runs, ledger), study, seed)
    return cell


def _add(cell: Cell, run: Run, folder: Path, study: Study, seed: int) -> None:
    try:
        reached = stage(run, folder, study.score.split)
    except InputError as error:
        cell.trouble[seed] = str(error)
        return
    record, file = read_record(folder), scores_file(folder, study.score.split)
    if reached == "failed":
        cell.trouble[seed] = record["error"]
    if reached != "scored":
        if not record and file.is_file():
            cell.trouble[seed] = (
                f"{file}: is not counted: no study.json beside it identifies its run"
            )
        return
    try:
        scores = read_scores(folder, study.score.split)
    except InputError as error:
        cell.trouble[seed] = str(error)
        return
    for metric, path in study.score.metrics.items():
        try:
            value = score_at(scores, path)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        if isinstance(value, int | float) and math.isfinite(value):
            cell.scores[metric][seed] = value
        elif value is not None:
            cell.trouble[seed] = f"{file}: {path} is {shown(value)}, not a score; score it again"
    interval = run.config.loss.weighting.interval
    iterations = record.get("iterations") or iterations_of(folder)
    cell.cost.append({**record, "interval": interval, "iterations": iterations})


def _published(
    study: Study, labels: Labels
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Return the paper's values and changes of a cell, one computed from the other."""
    nothing: list[float | None] = [None] * len(study.score.metrics)
    own = study.published(labels) or nothing
    base = study.published(study.baseline(labels)) or nothing
    is_baseline = study.against.items() <= labels.items()
    values, changes = {}, {}
    for metric, value, under in zip(study.score.metrics, own, base, strict=False):
        change = None
        if value is not None and under is not None and not is_baseline:
            printed = study.paper.printed == "changes"
            change = value if printed else 100 * (value - under)
            value = under + value / 100 if printed else value
        values[metric], changes[metric] = value, change
    unnamed = dict.fromkeys(study.score.metrics)
    return {**unnamed, **values}, {**unnamed, **changes}


def score_at(scores: Mapping[str, Any], path: str) -> float | None:
    """Return the number at a dotted path of ``metrics.json``, None for null.

    Raises:
        InputError: the path does not lead to a number.
    """
    value: Any = scores
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise InputError(
                f"score.metrics: {shown(path)} is not a score: {shown(name)} is not among "
                f"{some_of(list(value)) if isinstance(value, Mapping) else 'a number'}; correct it"
            )
        value = value[name]
    if isinstance(value, Mapping):
        inside = some_of(list(value))
        raise InputError(f"score.metrics: {shown(path)} holds {inside}; choose one of them")
    return value


def median(values: list[float]) -> float | None:
    """Return the median, None without values."""
    return statistics.median(values) if values else None
