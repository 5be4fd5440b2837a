"""TensorBoard output of a run: curves and their layout, images and hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from engine.evaluation.precision_recall import THRESHOLDS
from engine.tracking.external_trackers import Evaluation

_HYPERPARAMETERS_SUFFIX = ".hyperparameters"  # suffix of their event file
Plain = bool | str | float | int


class TensorBoard:
    """Writes the event files of a run.

    Args:
        folder: folder of the event files.
        pairs: the paired losses, one chart per pair.
        hyperparameters: values by which runs are compared, in addition to the final ``scores``.
        scores: the tags of the scores.
        purge_step: step from which on the contents of earlier files are discarded.
    """

    def __init__(
        self,
        folder: Path,
        pairs: Mapping[str, tuple[str, str]],
        hyperparameters: Mapping[str, Plain],
        scores: Sequence[str],
        purge_step: int,
    ) -> None:
        _write_hyperparameters(folder, hyperparameters, scores)
        self._writer = SummaryWriter(folder, purge_step=purge_step)
        self._writer.add_custom_scalars(layout(pairs))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log one point of each curve, by tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def evaluation(self, evaluation: Evaluation) -> None:
        """Log scores, images and precision-recall curves."""
        step = evaluation.step
        for number, picture in enumerate(evaluation.pictures):
            self._writer.add_image(f"val/detections_{number}", picture, step, dataformats="HWC")
        for name, curve in evaluation.curves.items():
            # A detector has no true negatives; the plugin requires them but does not draw them.
            self._writer.add_pr_curve_raw(
                f"precision_recall/{name}",
                curve.right,
                curve.wrong,
                np.zeros(len(THRESHOLDS)),
                curve.objects - curve.right,
                curve.precision,
                curve.recall,
                step,
                len(THRESHOLDS),
            )
        self.scalars(evaluation.scores, step)

    def close(self, finished: bool) -> None:  # noqa: ARG002
        """Flush and close the file."""
        self._writer.close()


def _write_hyperparameters(
    folder: Path, hyperparameters: Mapping[str, Plain], scores: Sequence[str]
) -> None:
    """Write hyperparameters to a separate event file, replacing an existing one.

    TensorBoard keeps the first ones that it reads in a folder, even for a run that was restarted or
    resumed with another config; a purge does not remove them. Its table shows the latest value of
    each score's curve, so the run need not be finished.
    """
    for file in folder.glob(f"events.out.tfevents.*{_HYPERPARAMETERS_SUFFIX}"):
        file.unlink()
    writer = SummaryWriter(folder, filename_suffix=_HYPERPARAMETERS_SUFFIX)
    for summary in hparams(dict(hyperparameters), dict.fromkeys(scores, 0.0)):
        writer._get_file_writer().add_summary(summary)
    writer.close()


def layout(pairs: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Layout of TensorBoard's custom scalars: both losses of a pair in one chart (figures 3, 6)."""
    charts = {}
    for pair, names in pairs.items():
        for group, title in (
            ("loss_mean", "mean per window"),
            ("loss_std", "standard deviation per window"),
            ("loss_weight", "loss weight"),
        ):
            charts[f"{pair}: {title}"] = ["Multiline", [f"{group}/{name}" for name in names]]
    return {"classification against box regression": charts}
