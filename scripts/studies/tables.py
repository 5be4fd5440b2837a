"""A study's results as Markdown, LaTeX and CSV: the paper's table beside ours."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.tracking.tracker import clock
from scripts.studies.definition import Labels
from scripts.studies.results import Cell, Results, median
from scripts.studies.statistics import Paired

NOT_RUN = "not run"
Grid = list[list[str]]


def markdown(results: Results) -> str:
    """Format the table, the paired changes, the cost of the runs, and errors."""
    study = results.study
    scored = f"`{study.score.split}`" if study.score.split != "val" else "the validation split"
    seeds = _seeds(len(study.seeds))
    changes = paired_changes(results)
    against = f"; in brackets the change against {_name(study.against)} in points"
    parts = [
        f"**{study.title}.** Mean ± standard deviation over {seeds}"
        f"{against if len(changes) > 1 or study.paper.cells else ''}. "
        f"`last.pt` scored on {scored}.",
        _pipes(comparison(results)),
    ]
    if len(changes) > 1:
        parts += ["Changes paired over seeds, in points:", _pipes(changes)]
    costs = cost(results)
    parts += [_pipes(costs)] if len(costs) > 1 else []
    parts += _about_the_paper(results)
    parts += [f"* {line}" for line in troubles(results)]
    return "\n\n".join(parts) + "\n"


def latex(results: Results) -> str:
    """Format the comparison and the paired changes as LaTeX tables (booktabs) with comments."""
    changes = paired_changes(results)
    grids = [comparison(results), *([changes] if len(changes) > 1 else [])]
    words = [results.study.title, *_about_the_paper(results)]
    head = "".join(f"% {' '.join(text.split())}\n" for text in words)
    return head + "\n".join(map(_tabular, grids))


def _about_the_paper(results: Results) -> Iterator[str]:
    """Yield notes on the paper's numbers that stand beside ours."""
    study = results.study
    if study.paper.printed == "changes" and study.paper.cells:
        yield "The paper prints changes; its other values here are baseline + change."
    if study.note:
        yield study.note


def _tabular(grid: Grid) -> str:
    head, *rows = grid
    lines = [
        r"\begin{tabular}{" + "l" * len(head) + "}",
        r"\toprule",
        _ampersands(head),
        r"\midrule",
        *map(_ampersands, rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def comma_separated(results: Results) -> str:
    """Format everything as CSV, a row for each cell and metric; cells not run are empty."""
    names = [axis.name for axis in results.study.axes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "metric", *CSV_COLUMNS, "paper_printed"])
    for cell in results.cells:
        for metric in results.study.score.metrics:
            numbers = _numbers(cell, metric, results.change(cell, metric))
            shown = ["" if number is None else f"{number:.6g}" for number in numbers]
            printed = "" if cell.published[metric] is None else _printed(results, cell)
            writer.writerow([*cell.labels.values(), metric, *shown, printed])
    return text.getvalue()


def _printed(results: Results, cell: Cell) -> str:
    """Return whether the paper prints a cell's value, or a change to compute it from."""
    as_changes = results.study.paper.printed == "changes" and not cell.is_baseline
    return "change" if as_changes else "value"


CSV_COLUMNS = (
    "paper",
    "paper_change_points",
    "mean",
    "standard_deviation",
    "seeds",
    "change_points",
    "change_standard_deviation",
    "change_seeds",
    "p_t_test",
    "p_sign_flip",
)


def comparison(results: Results) -> Grid:
    """Build the paper's table with our numbers beside; the first row is the heading."""
    study = results.study
    row_axes = [axis.name for axis in study.axes if axis.name != study.columns]
    across = [axis.values for axis in study.axes if axis.name == study.columns]
    columns: list[str | None] = [*across[0]] if across else [None]
    places = list(itertools.product(columns, study.score.metrics))
    printed = {m for m in study.score.metrics for c in results.cells if c.published[m] is not None}
    head = list(row_axes)
    for column, metric in places:
        names = [column, metric if len(study.score.metrics) > 1 or column is None else None]
        title = " ".join(name for name in names if name)
        head += [f"{title}, paper", f"{title}, here"] if metric in printed else [title]
    rows = [head]
    for labels, cells in _rows(results, row_axes):
        row = list(labels)
        for column, metric in places:
            cell = next((c for c in cells if c.labels.get(study.columns or "") == column), None)
            row += [_paper(cell, metric, study.score.digits)] if metric in printed else []
            row += [_ours(results, cell, metric)]
        rows.append(row)
    return rows


def paired_changes(results: Results) -> Grid:
    """Compare each cell with its baseline by both tests; cells that were not run are omitted."""
    study = results.study
    rows = [[*(axis.name for axis in study.axes), "metric", "change", "seeds", *P_COLUMNS]]
    for cell in results.cells:
        for metric in study.score.metrics:
            change = results.change(cell, metric)
            if change is not None:
                shown = _with_deviation(change, study.score.digits - 2)
                count = str(change.difference.count)
                tests = [_probability(p) for p in (change.t_test, change.sign_flip)]
                rows.append([*cell.labels.values(), metric, shown, count, *tests])
    return rows


P_COLUMNS = ("p, paired t-test", "p, exact sign flips")


def cost(results: Results) -> Grid:
    """Build the cost of the runs of each cell on each machine, and the number of λ updates."""
    names = [axis.name for axis in results.study.axes]
    rows = [
        [*names, "runs", "training, median", "CPU time", "iterations", "C", "windows", "machine"]
    ]
    for cell in results.cells:
        for machine, runs in _by_machine(cell.cost):
            seconds = median([run["seconds"] for run in runs if "seconds" in run])
            cpu = median([run["cpu_seconds"] for run in runs if "cpu_seconds" in run])
            iterations, interval = runs[0]["iterations"], runs[0]["interval"]
            row = [str(len(runs)), *("" if s is None else clock(s) for s in (seconds, cpu))]
            windows = "" if iterations is None else str(iterations // interval)
            row += [str(iterations or ""), str(interval), windows, machine]
            rows.append([*cell.labels.values(), *row])
    return rows


def _by_machine(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    machines: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        machines[str(run.get("machine", "unknown"))].append(run)
    yield from sorted(machines.items())


def troubles(results: Results) -> Iterator[str]:
    """Yield runs that failed, whose folder holds something else, or of other code versions."""
    processes = {
        run["processes"] for cell in results.cells for run in cell.cost if "processes" in run
    }
    if len(processes) > 1:
        numbers = " and ".join(map(str, sorted(processes)))
        yield (
            f"trained by {numbers} processes: batch norm and loss.normalizer: batch are each "
            "process's own"
        )
    versions = {v for cell in results.cells for run in cell.cost for v in run.get("code", [])}
    if len(versions) > 1:
        yield f"trained by several versions of the code: {', '.join(sorted(versions))}"
    for cell in results.cells:
        for seed, reason in cell.trouble.items():
            yield f"{_name(cell.labels)}, seed {seed}: {reason}"


def _numbers(cell: Cell, metric: str, change: Paired | None) -> list[float | None]:
    """Return a cell's numbers in the order of ``CSV_COLUMNS``."""
    own = cell.summary(metric)
    numbers: list[float | None] = [cell.published[metric], cell.published_change[metric]]
    numbers += [own.mean, own.deviation, own.count] if own else [None, None, 0]
    if change is None:
        return [*numbers, None, None, None, None, None]
    both = change.difference
    return [*numbers, both.mean, both.deviation, both.count, change.t_test, change.sign_flip]


def _rows(results: Results, axes: Sequence[str]) -> Iterator[tuple[tuple[str, ...], list[Cell]]]:
    """Yield the cells of each row, in the order of the first of each."""
    rows: dict[tuple[str, ...], list[Cell]] = {}
    for cell in results.cells:
        rows.setdefault(tuple(cell.labels[axis] for axis in axes), []).append(cell)
    yield from rows.items()


def _paper(cell: Cell | None, metric: str, digits: int) -> str:
    if cell is None or cell.published[metric] is None:
        return "-"
    change = cell.published_change[metric]
    return f"{cell.published[metric]:.{digits}f}" + _in_brackets(change, digits - 2)


def _ours(results: Results, cell: Cell | None, metric: str) -> str:
    if cell is None:
        return "-"
    own, digits = cell.summary(metric), results.study.score.digits
    if own is None:
        if cell.trouble:
            return "no result"  # failed, of another config, or damaged: said below the table
        return "no score" if cell.cost else NOT_RUN  # as for a size of which there are no objects
    text = f"{own.mean:.{digits}f}"
    if own.deviation is not None:
        text += f" ± {own.deviation:.{digits}f}"
    if (change := results.change(cell, metric)) is not None:
        both = change.difference
        pairs = None if both.count == own.count else both.count
        text += _in_brackets(both.mean, digits - 2, pairs)
    wanted = len(results.study.seeds)
    return text if own.count == wanted else f"{text}, {own.count} of {wanted} seeds"


def _in_brackets(change: float | None, digits: int, pairs: int | None = None) -> str:
    """Format a change in points; ``pairs`` is its number of seeds if the mean's differs."""
    if change is None:
        return ""
    seeds = f" over {_seeds(pairs)}" if pairs else ""
    return f" ({change + 0.0:+.{digits}f}{seeds})"


def _seeds(count: int) -> str:
    return f"{count} seed" + "s" * (count != 1)


def _with_deviation(change: Paired, digits: int) -> str:
    mean, deviation = change.difference.mean, change.difference.deviation
    return f"{mean:+.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _probability(p: float | None) -> str:
    if p is None:
        return ""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _name(labels: Labels) -> str:
    return ", ".join(labels.values())


def _pipes(grid: Grid) -> str:
    escaped = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in grid]
    head, *rows = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([head, "|" + "---|" * len(grid[0]), *rows])


def _ampersands(row: Sequence[str]) -> str:
    text = " & ".join(map(_escaped, row))
    # The end of the previous line would take these as its arguments.
    return ("{}" if text.startswith(("[", "*")) else "") + text + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "→": r"$\rightarrow$",
    "<": "$<$",
    ">": "$>$",
}


def _escaped(cell: str) -> str:
    """Escape a cell for LaTeX: minus signs, dashes for lone hyphens, and <."""
    cell = " ".join(cell.split())
    text = re.sub(r"[_%&#{}$\\~^±λ→<>]", lambda found: _LATEX.get(found[0], rf"\{found[0]}"), cell)
    return "--" if text == "-" else re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)
