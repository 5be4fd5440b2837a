"""Third-party trackers in addition to TensorBoard.

Their packages are imported on use. Each stores its run id in the run's folder, so that a resumed
run continues there; what was logged after the checkpoint then appears twice.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from data.errors import InputError
from data.images import Pixels
from engine.evaluation.precision_recall import PrecisionRecall

log = logging.getLogger(__name__)

PARAMETERS_AT_ONCE = 100  # more are refused by MLflow


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation to track.

    Attributes:
        step: number of iterations before it.
        scores: scores by tag.
        pictures: ``(H, W, 3)`` images of detections beside the ground truth.
        curves: precision-recall curve of each class.
    """

    step: int
    scores: Mapping[str, float]
    pictures: Sequence[Pixels]
    curves: Mapping[str, PrecisionRecall]


class ExternalTracker(Protocol):
    """A tracker of the numbers and pictures of a run."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log one point of each curve, by tag."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """Log the results of an evaluation, as far as the tracker supports them."""

    def close(self, finished: bool) -> None:
        """End the run; nothing can be logged afterwards.

        Args:
            finished: whether training is complete, neither stopped nor failed.
        """


class MLflow:
    """Tracks a run in MLflow: at ``MLFLOW_TRACKING_URI``, or in ``mlruns`` beside the run folders.

    Args:
        folder: the run folder; the name of its parent is that of the experiment.
        config: every key by its dotted path.
        resumed: whether to continue the run whose id is stored in the folder.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:
        mlflow = _import("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if place is None:
            place = (folder.parent / "mlruns").resolve().as_uri()
            # MLflow requires this opt-in for a plain folder instead of a database.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = mlflow.MlflowClient(place)
        memory = folder / "mlflow_run.txt"
        if resumed and memory.exists():
            self._run = memory.read_text(encoding="utf-8").strip()
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._create(folder)
        memory.write_text(self._run + "\n", encoding="utf-8")
        entities = importlib.import_module("mlflow.entities")
        values = [entities.Param(key, str(value)) for key, value in config.items()]
        for start in range(0, len(values), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run, params=values[start : start + PARAMETERS_AT_ONCE])

    def _create(self, folder: Path) -> str:
        experiment = self._experiment(folder.parent.resolve().name)
        run: str = self._client.create_run(experiment, run_name=folder.name).info.run_id
        return run

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, which is created if it does not exist."""
        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                made: str = self._client.create_experiment(name)
                return made
            except Exception:  # MLflow's, or the store's
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
                # another run, started at the same time, was faster
        number: str = known.experiment_id
        return number

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._client.log_metric(self._run, tag, value, step=step)

    def evaluation(self, evaluation: Evaluation) -> None:
        self.scalars(evaluation.scores, evaluation.step)
        for number, picture in enumerate(evaluation.pictures):
            place = f"val/detections_{number}/{evaluation.step:08d}.png"
            self._client.log_image(self._run, picture, place)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")


class Wandb:
    """Tracks a run in Weights & Biases; ``WANDB_MODE=offline`` keeps it in the run folder.

    Args:
        folder: the run folder; the name of its parent is that of the project.
        config: every key by its dotted path.
        resumed: whether to continue the run whose id is stored in the folder.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:
        self._wandb = _import("wandb")
        memory = folder / "wandb_run.txt"
        known = memory.read_text(encoding="utf-8").strip() if resumed and memory.exists() else None
        self._run = self._wandb.init(
            project=folder.parent.resolve().name,
            name=folder.name,
            dir=str(folder),
            id=known,
            resume="allow",
            config=dict(config),
        )
        memory.write_text(f"{self._run.id}\n", encoding="utf-8")
        # Statistics of a window are logged an iteration late, so steps may not be ascending.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def evaluation(self, evaluation: Evaluation) -> None:
        images = [self._wandb.Image(picture) for picture in evaluation.pictures]
        self._run.log({**evaluation.scores, "val/detections": images, "step": evaluation.step})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], bool], ExternalTracker]] = {
    "mlflow": MLflow,
    "wandb": Wandb,
}


class FaultTolerantTracker:
    """A tracker whose failures do not end training: after the first one it is disabled.

    Args:
        name: key of ``TRACKERS``.
        folder: the run folder.
        config: every key by its dotted path.
        resumed: whether to continue the run whose id is stored in the folder.

    Raises:
        InputError: its package is not installed, or it cannot be started.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:
        self._name = name
        try:
            self._tracker: ExternalTracker | None = TRACKERS[name](folder, config, resumed)
        except InputError:
            raise
        except Exception as error:  # third-party code may raise anything
            raise InputError(
                f"train.trackers: {name} cannot be started: {error}; fix that, or remove it"
            ) from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._forward("scalars", values, step)

    def evaluation(self, evaluation: Evaluation) -> None:
        self._forward("evaluation", evaluation)

    def close(self, finished: bool) -> None:
        self._forward("close", finished)

    def _forward(self, method: str, *arguments: object) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*arguments)
        except Exception as error:
            self._tracker = None
            log.warning(
                "train.trackers: %s failed and is disabled for the rest of this run: %s",
                self._name,
                error,
            )


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        InputError: one is not.
    """
    for name in names:
        _import(name)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"train.trackers: {name} is not installed; pip install -e '.[{name}]', or remove it"
        ) from None
