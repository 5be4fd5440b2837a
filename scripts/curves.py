"""Curves of a run, finished or still running, from its ``metrics.jsonl`` or TensorBoard files.

    curves = read_curves(Path("runs/my_run"))
    curves["loss_mean/classification"].steps, curves["val/voc_mAP"].values

Both sources give the same tags (docs/guide.md, *Curves*) with the same steps and, apart from
TensorBoard's float32, the same values. One exception: if a finished run is extended, TensorBoard
keeps the losses of its former last iteration, which ``metrics.jsonl`` drops.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import InputError, unreadable
from engine.evaluation.scores import headline_scores
from engine.tracking.metrics_file import METRICS

TABLE, EVENTS = "curves.csv", "events.out.tfevents"
PAIRS = (
    ("loss_objectness", "loss_rpn_box_reg"),
    ("classification", "bbox_regression"),
    ("loss_classifier", "loss_box_reg"),
)

Point = tuple[str, int, float]  # tag, iteration, value


class NoCurvesError(InputError):
    """A folder or file is not of a run, or the run has logged nothing yet."""


@dataclass(frozen=True)
class Curve:
    """A scalar over the iterations of a run.

    Attributes:
        steps: ``(S,)`` int64, iterations, ascending and distinct.
        values: ``(S,)`` float64.
    """

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)


def pair_of(curves: Mapping[str, Curve], run: str | Path) -> tuple[str, str]:
    """Return the names of the classification and box loss that a run weighs against each other.

    If there are several pairs, the first of ``PAIRS``.

    Raises:
        InputError: the run has none of these pairs.
    """
    for group in ("loss_weight", "loss"):
        for pair in PAIRS:
            if all(f"{group}/{name}" in curves for name in pair):
                return pair
    raise InputError(f"{run}: has none of the loss pairs {PAIRS}")


def read_curves(run: str | Path) -> dict[str, Curve]:
    """Read all curves of a run by tag: ``loss/...``, ``loss_mean/...``, ``lr``, ``val/...``.

    The run may still be in progress: an incomplete last line is skipped. If a step was written
    twice, the later value counts.

    Args:
        run: the run's folder (``metrics.jsonl`` is preferred to the ``curves.csv`` of a kept run
            and that to TensorBoard's files), a ``metrics.jsonl``, or a TensorBoard event file.

    Raises:
        InputError: the run is not found or damaged.
        NoCurvesError: it has no curves yet, or the folder or file is not of a run.
    """
    run = Path(run)
    if run.is_dir():
        points = _points_of_folder(run)
    elif EVENTS in run.name:
        points = read_events(run)
    else:
        points = read_metrics(run)
    gathered: dict[str, dict[int, float]] = defaultdict(dict)
    for tag, step, value in points:
        gathered[tag][step] = value
    if not gathered:
        raise NoCurvesError(
            f"{run}: has no curves yet; the first come after train.log_every iterations"
        )
    return {tag: _curve(values) for tag, values in gathered.items()}


def _points_of_folder(folder: Path) -> Iterator[Point]:
    for name, read in ((METRICS, read_metrics), (TABLE, read_table)):
        if (folder / name).is_file():
            return read(folder / name)
    return read_events(folder)


def read_metrics(path: Path) -> Iterator[Point]:
    """Read the points of a ``metrics.jsonl``.

    Raises:
        InputError: the file cannot be read, or a line other than the last is not of a run.
        NoCurvesError: the file is not text, or its first line is not of a run.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise _foreign(path, 1) from None
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return  # a run in progress is writing it
        try:
            record = json.loads(line)
            points = list(_points(record))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _foreign(path, number) from None
        yield from points


def _foreign(path: Path, number: int) -> InputError:
    """Return the error for a line: on line 1 the file is not of a run, further down damaged."""
    if number > 1:
        return InputError(f"{path}: line {number} is damaged; delete it")
    return NoCurvesError(
        f"{path}: line 1 is not a log line of a run; give a run's folder, its {METRICS} or its "
        f"{EVENTS}.*"
    )


def _points(record: Mapping[str, Any]) -> Iterator[Point]:
    """Yield the points of one line, with the tags that TensorBoard gets."""
    step = int(record["step"])
    if record["kind"] == "evaluation":
        for name, value in headline_scores(record["scores"]).items():
            if value is not None:
                yield f"val/{name}", step, float(value)
        return
    for group in ("loss", "weighted_loss", "loss_weight"):
        for name, value in record[group].items():
            yield f"{group}/{name}", step, float(value)
    for tag in ("lr", "images_per_second"):
        yield tag, step, float(record[tag])
    for window in record["windows"]:
        for group in ("loss_mean", "loss_std"):
            for name, value in window[group].items():
                yield f"{group}/{name}", int(window["step"]), float(value)


def read_table(path: Path) -> Iterator[Point]:
    """Read the points of a kept run: a row for each iteration, a column for each tag.

    Raises:
        InputError: the file cannot be read, or a cell is not a number.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines()))
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise _foreign(path, 1) from None
    if rows and "step" not in rows[0]:
        raise _foreign(path, 1)
    if not text.endswith("\n"):  # the last number may be one of fewer digits
        raise InputError(f"{path}: last line is truncated; restore it, or add its line break")
    for number, row in enumerate(rows, start=2):
        try:
            step = int(row.pop("step"))
            points = [(tag, step, float(value)) for tag, value in row.items() if value]
        except (ValueError, KeyError, TypeError):
            raise _foreign(path, number) from None
        yield from points


def read_events(path: Path) -> Iterator[Point]:
    """Read the points of a TensorBoard event file, or of all in a folder as one run.

    Raises:
        InputError: the run is not found.
        NoCurvesError: the folder has no event file.
    """
    if path.is_dir() and not any(EVENTS in file.name for file in path.iterdir()):
        raise NoCurvesError(
            f"{path}: has neither {METRICS} nor {EVENTS}.*; give the folder of a run"
        )
    if not path.exists():
        raise InputError(f"{path}: run not found; check the path")
    # its import takes a second, which runs with a metrics.jsonl need not wait for
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    everything = {"scalars": 0, "images": 1, "tensors": 1, "histograms": 1, "audio": 1}
    accumulator = EventAccumulator(str(path), size_guidance=everything)
    accumulator.Reload()
    for tag in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(tag):
            yield tag, int(event.step), float(event.value)


def _curve(values: Mapping[int, float]) -> Curve:
    steps = sorted(values)
    return Curve(
        np.array(steps, dtype=np.int64),
        np.array([values[step] for step in steps], dtype=np.float64),
    )
