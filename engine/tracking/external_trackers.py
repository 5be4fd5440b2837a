"""Trackers of other projects that a run is shown in beside TensorBoard.

Their packages are imported on use. Each remembers its run in the run's folder, so that a resumed
run goes on there; what was logged after the checkpoint then stands there twice.
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
    """What is shown of an evaluation.

    Attributes:
        step: iterations before it.
        scores: by tag.
        pictures: ``(H, W, 3)``: detections beside the ground truth.
        curves: precision and recall of each class.
    """

    step: int
    scores: Mapping[str, float]
    pictures: Sequence[Pixels]
    curves: Mapping[str, PrecisionRecall]


class ExternalTracker(Protocol):
    """Where the numbers and pictures of a run are shown."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """What an evaluation has to show, as far as there is a place for it."""

    def close(self, finished: bool) -> None:
        """End the run here; nothing can be shown afterwards.

        Args:
            finished: whether it came to its end, neither stopped nor failed.
        """


class MLflow:
    """A run in MLflow: at ``MLFLOW_TRACKING_URI``, or in the local folder ``mlruns`` beside the
    runs' folders.

    Args:
        folder: the run's; its parent's name is that of the experiment.
        config: every key by its dotted path.
        resumed: go on with the run that the folder remembers.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:
        mlflow = _import("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if place is None:
            place = (folder.parent / "mlruns").resolve().as_uri()
            # MLflow asks to be told that a plain folder is wanted rather than a database.
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
        """The id of an experiment, which is made if it is not there."""
        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                made: str = self._client.create_experiment(name)
                return made
            except Exception:  # MLflow's, or of the store
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
                # another run, begun at the same time, was faster
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
    """A run in Weights & Biases; ``WANDB_MODE=offline`` keeps it in the run's folder.

    Args:
        folder: the run's; its parent's name is that of the project.
        config: every key by its dotted path.
        resumed: go on with the run that the folder remembers.
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
        # A window's statistics are known an iteration late: steps need not ascend.
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
    """A tracker whose failures end no training: after the first it is told nothing more.

    Args:
        name: of ``TRACKERS``.
        folder, config, resumed: see the trackers.

    Raises:
        InputError: its package is not installed, or it cannot be begun.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:
        self._name = name
        try:
            self._tracker: ExternalTracker | None = TRACKERS[name](folder, config, resumed)
        except InputError:
            raise
        except Exception as error:  # of a library that is not ours: anything
            raise InputError(
                f"train.trackers: {name} cannot be started: {error}; fix that, or remove it"
            ) from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._tell("scalars", values, step)

    def evaluation(self, evaluation: Evaluation) -> None:
        self._tell("evaluation", evaluation)

    def close(self, finished: bool) -> None:
        self._tell("close", finished)

    def _tell(self, method: str, *arguments: object) -> None:
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
    """Raise InputError for trackers whose package is not installed."""
    for name in names:
        _import(name)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"train.trackers: {name} is not installed; pip install -e '.[{name}]', or remove it"
        ) from None
