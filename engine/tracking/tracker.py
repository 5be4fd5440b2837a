"""Tracker of a run: log lines, metrics.jsonl, TensorBoard and other trackers."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from engine.config import Config
from engine.evaluation.precision_recall import PrecisionRecall
from engine.evaluation.scores import headline_scores, score_tags
from engine.process.standard_output import is_watched
from engine.state import Progress
from engine.tracking.external_trackers import Evaluation, ExternalTracker, FaultTolerantTracker
from engine.tracking.hyperparameters import hyperparameters
from engine.tracking.metrics_file import MetricsFile, read_records, records_before
from engine.tracking.tensorboard import TensorBoard

log = logging.getLogger(__name__)


class Tracker:
    """Writes the numbers of a run; disabled on ranks other than the main one.

    After a resume ``metrics.jsonl`` and TensorBoard continue from the checkpoint: what was written
    after it is removed. Without a resume they start empty.

    Args:
        folder: the run folder.
        pairs: the paired losses.
        config: config of the run, which names the trackers in addition to TensorBoard.
        resumed: progress of a resumed run; None for a new one.
        enabled: whether this is the main rank.

    Attributes:
        logged: step of the latest log line.
    """

    def __init__(
        self,
        folder: Path,
        pairs: Mapping[str, tuple[str, str]],
        config: Config,
        resumed: Progress | None,
        enabled: bool,
    ) -> None:
        self.score_tags = score_tags(config.detector.type)
        self.pairs = pairs
        self.epochs = config.train.epochs
        self.logged = 0
        self.bar: tqdm[Any] | None = None
        self.since = time.perf_counter()
        self.images = 0
        self.images_per_batch = 0
        self.images_per_second = 0.0
        self.metrics: MetricsFile | None = None
        self.trackers: list[ExternalTracker] = []
        self.last_window = 0
        if not enabled:
            return
        # A new run overwrites one that ended before its first checkpoint.
        purge_step = resumed.step + (resumed.evaluated == resumed.epoch) if resumed else 0
        found = list(read_records(folder)) if resumed else []
        kept = records_before(found, config, resumed) if resumed else []
        self.metrics = MetricsFile(folder, kept)
        tensorboard = TensorBoard(
            folder, pairs, hyperparameters(config), self.score_tags, purge_step
        )
        self.last_window = _last_window(found, before=purge_step)
        self.trackers.append(tensorboard)
        for record in kept:
            if record["kind"] == "train":
                self.logged = record["step"]
                # The purge also removed the log line of that step.
                if record["step"] >= purge_step:
                    self._write_scalars(record)
        for name in config.train.trackers:
            tracker = FaultTolerantTracker(name, folder, config.flat(), resumed is not None)
            self.trackers.append(tracker)

    def start_epoch(self, epoch: int, *, batches: int, done: int, images_per_batch: int) -> None:
        """Start the progress bar of an epoch; ``images_per_batch`` counts all ranks."""
        self.images_per_batch = images_per_batch
        self.since, self.images = time.perf_counter(), 0
        if self.metrics is not None and is_watched():
            self.bar = tqdm(
                total=batches,
                initial=done,
                desc=f"epoch {epoch + 1}/{self.epochs}",
                bar_format="{desc} {bar} {n_fmt}/{total_fmt}{postfix}",
            )

    def advance(self, batches: int) -> None:
        """Count the batches of one iteration."""
        self.images += batches * self.images_per_batch
        if self.bar is not None:
            self.bar.update(batches)

    def finish_epoch(self) -> None:
        """End the progress bar of an epoch."""
        self.measure()
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def measure(self) -> float:
        """Images per second since the last call; the previous value if there were none since."""
        now = time.perf_counter()
        if self.images:
            self.images_per_second = self.images / max(now - self.since, 1e-9)
        self.since, self.images = now, 0
        return self.images_per_second

    def train(self, record: dict[str, Any], batches_left: int) -> None:
        """Write one log line.

        Args:
            record: ``step``, ``epoch``, ``lr``; ``loss``, ``weighted_loss`` and ``loss_weight`` by
                name; ``windows``, the statistics of the windows completed since the last line; and
                ``images_per_second``, as measured in its iteration.
            batches_left: batches until the end of the run, to estimate the remaining time.
        """
        if self.metrics is None:
            return
        self.metrics.write({"kind": "train", **record})
        self.logged = record["step"]
        self._write_scalars(record)
        speed = record["images_per_second"]
        remaining = clock(batches_left * self.images_per_batch / max(speed, 1e-9))
        if self.bar is not None:
            short = f"{self._format_progress(record)}, {remaining} left, {speed:.1f} img/s"
            self.bar.set_postfix_str(short)
        log.info(
            "epoch %d/%d step %d: %s, %.1f images/s, %s left",
            record["epoch"] + 1,
            self.epochs,
            record["step"],
            _describe(record),
            speed,
            remaining,
            extra={"is_in_bar": self.bar is not None},
        )

    def evaluation(
        self,
        progress: Progress,
        scores: Mapping[str, Any],
        pictures: Sequence[npt.NDArray[np.uint8]] = (),
        curves: Mapping[str, PrecisionRecall] = MappingProxyType({}),
    ) -> None:
        """Write the results of an evaluation of the validation split.

        Args:
            progress: progress of the run.
            scores: scores in the form of ``metrics.json``.
            pictures: ``(H, W, 3)`` images of detections beside the ground truth.
            curves: precision-recall curve of each class.
        """
        if self.metrics is None:
            return
        record = {
            "kind": "evaluation",
            "step": progress.step,
            "epoch": progress.epoch,
            "scores": scores,
        }
        self.metrics.write(record)
        numbers = {f"val/{tag}": value for tag, value in headline_scores(scores).items()}
        known = {tag: value for tag, value in numbers.items() if value is not None}
        shown = [f"{tag} {known[tag]:.4f}" for tag in self.score_tags if tag in known]
        text = ", ".join(shown) or "no objects to score against"
        log.info("epoch %d scored: %s", progress.epoch, text)
        for tracker in self.trackers:
            tracker.evaluation(Evaluation(progress.step, known, pictures, curves))

    def close(self, finished: bool = True) -> None:
        """Flush and close all files; ``finished`` says whether the run is complete."""
        self.finish_epoch()
        for tracker in self.trackers:
            tracker.close(finished)
        if self.metrics is not None:
            self.metrics.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finished=kind is None)

    def _format_progress(self, record: Mapping[str, Any]) -> str:
        """Format total loss, λ of each pair and learning rate to fit into 80 columns."""
        weights = record["loss_weight"]
        pairs = [":".join(f"{weights[name]:.2g}" for name in pair) for pair in self.pairs.values()]
        total = sum(record["weighted_loss"].values())
        return f"loss {total:.3g}, λ {' '.join(pairs)}, lr {record['lr']:.2g}"

    def _write_scalars(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of a log line, and the windows not written yet, to all trackers."""
        values = {name: record[name] for name in ("lr", "images_per_second")}
        for group in ("loss", "weighted_loss", "loss_weight"):
            values |= {f"{group}/{name}": value for name, value in record[group].items()}
        points = [(record["step"], values)]
        for window in record["windows"]:
            if window["step"] <= self.last_window:
                continue
            self.last_window = window["step"]
            groups = ("loss_mean", "loss_std")
            statistics = {f"{g}/{name}": value for g in groups for name, value in window[g].items()}
            points.append((window["step"], statistics))
        for tracker in self.trackers:
            for step, numbers in points:
                tracker.scalars(numbers, step)


def _last_window(records: Sequence[Mapping[str, Any]], before: int) -> int:
    """The step of the last window that remains in TensorBoard after a purge from step ``before``.

    A window is part of the log line after it, which a checkpoint between the two does not have.
    """
    steps = [window["step"] for record in records for window in record.get("windows", ())]
    return max((step for step in steps if step < before), default=0)


def _describe(record: Mapping[str, Any]) -> str:
    """Format the losses, weights and learning rate of a log line in one row."""
    losses = ", ".join(
        f"{name} {value:.4f}"
        + (f" x {record['loss_weight'][name]:.3g}" if name in record["loss_weight"] else "")
        for name, value in record["loss"].items()
    )
    total = sum(record["weighted_loss"].values())
    return f"loss {total:.4f} ({losses}), lr {record['lr']:.3g}"


def clock(seconds: float) -> str:
    """Format seconds, rounded, as hours:minutes:seconds.

    >>> clock(59.6), clock(3723), clock(360_000)
    ('0:01:00', '1:02:03', '100:00:00')
    """
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
