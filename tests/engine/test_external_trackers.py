"""What TensorBoard and the other trackers are told of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runs import StopAfter, config_of, metrics, run, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from data.errors import InputError
from engine.config import Config
from engine.tracking import external_trackers
from engine.tracking.hyperparameters import hyperparameters
from engine.tracking.tensorboard import TensorBoard


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    values = tiny(tmp_path_factory.mktemp("finished"), train={"epochs": 1, "lr": 0.02})
    events = EventAccumulator(str(run(config_of(values))), size_guidance={"tensors": 0})
    events.Reload()
    return events


def test_every_class_with_objects_has_a_precision_recall_curve(finished: EventAccumulator) -> None:
    tags = [tag for tag in finished.Tags()["tensors"] if tag.startswith("precision_recall/")]
    assert tags
    assert {tag.split("/")[1] for tag in tags} <= {"circle", "square", "triangle"}
    for tag in tags:
        (event,) = finished.Tensors(tag)
        true_positives, *_, precision, recall = make_ndarray(event.tensor_proto)
        assert event.step == 5
        assert (np.diff(true_positives) <= 0).all()
        assert (np.diff(recall) <= 0).all()
        assert ((precision >= 0) & (precision <= 1)).all()


def hparams_of(events: EventAccumulator) -> Iterator[Any]:
    for content in events.PluginTagToContent("hparams").values():
        yield plugin_data_pb2.HParamsPluginData.FromString(content)


def test_hyperparameters_stand_beside_the_final_scores(finished: EventAccumulator) -> None:
    contents = list(hparams_of(finished))
    (experiment,) = [data.experiment for data in contents if data.HasField("experiment")]
    (session,) = [
        data.session_start_info for data in contents if data.HasField("session_start_info")
    ]
    assert session.hparams["train.lr"].number_value == 0.02
    assert session.hparams["loss.weighting.type"].string_value == "alwa"
    scores = {metric.name.tag for metric in experiment.metric_infos}
    assert {"val/voc_mAP", "val/coco_AP"} <= scores <= set(finished.Tags()["scalars"])


def test_a_run_that_begins_anew_shows_its_own_hyperparameters(tmp_path: Path) -> None:
    for lr in (1e6, 0.01):
        tracker = TensorBoard(tmp_path, {}, {"train.lr": lr}, ["val/voc_mAP"], purge_step=0)
        tracker.scalars({"val/voc_mAP": 0.5}, 1)
        tracker.close(finished=True)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (session,) = [
        data.session_start_info
        for data in hparams_of(events)
        if data.HasField("session_start_info")
    ]
    assert session.hparams["train.lr"].number_value == 0.01


def test_the_layout_lays_both_losses_of_a_pair_over_each_other(finished: EventAccumulator) -> None:
    (event,) = finished.Tensors("custom_scalars__config__")
    written = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in written.category[0].chart}
    assert charts["head: loss weight"] == [
        "loss_weight/classification",
        "loss_weight/bbox_regression",
    ]
    assert len(charts) == 3
    assert {tag for tags in charts.values() for tag in tags} <= set(finished.Tags()["scalars"])


def test_all_runs_have_the_same_columns(tmp_path: Path) -> None:
    one = hyperparameters(config_of(tiny(tmp_path, train={"ema": 0.9})))
    other = hyperparameters(Config())
    assert one.keys() == other.keys()
    assert (one["train.ema"], other["train.ema"]) == (0.9, "null")
    assert other["train.lr"] == 0.01


def test_a_tracker_that_is_not_installed_is_named() -> None:
    with pytest.raises(
        InputError, match=r"no_such_tracker is not installed; pip install -e '\.\[no_"
    ):
        external_trackers._import("no_such_tracker")


class Failing:
    """A tracker whose server goes away."""

    asked = 0

    def __init__(self, *_: Any) -> None:
        pass

    def scalars(self, *_: Any) -> None:
        Failing.asked += 1
        if Failing.asked == 3:
            raise ConnectionError("no route")

    evaluation = close = scalars


def test_a_tracker_that_fails_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(external_trackers.TRACKERS, "mlflow", Failing)
    values = tiny(tmp_path, train={"trackers": ["mlflow"], "epochs": 1})
    folder = run(config_of(values))
    assert Failing.asked == 3
    assert "mlflow failed" in (folder / "train.log").read_text()
    assert metrics(folder)[-1]["kind"] == "evaluation"


def test_a_tracker_that_cannot_be_begun_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(external_trackers.TRACKERS, "mlflow", begin)
    with pytest.raises(InputError, match="mlflow cannot be started: no route"):
        run(config_of(tiny(tmp_path, train={"trackers": ["mlflow"]})))


def mlflow_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of each metric of the only run in a local store, as its files have them."""
    (run_folder,) = [path.parent for path in folder.glob("mlruns/*/*/params")]
    points = {}
    for path in (run_folder / "metrics").rglob("*"):
        if path.is_file():
            lines = [line.split() for line in path.read_text().splitlines()]
            points[str(path.relative_to(run_folder / "metrics"))] = [
                (int(step), float(value)) for _, value, step, *_ in lines
            ]
    return points


def test_mlflow_gets_the_numbers_of_metrics_jsonl_also_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    values = tiny(tmp_path, train={"trackers": ["mlflow"], "log_every": 2})
    folder = run(config_of(values), StopAfter(4))
    run(config_of(values), resume=True)
    points = mlflow_metrics(tmp_path)
    lines = [line for line in metrics(folder) if line["kind"] == "train"]
    assert points["loss/classification"] == [
        (line["step"], pytest.approx(line["loss"]["classification"])) for line in lines
    ]
    assert [step for step, _ in points["loss_mean/classification"]] == [3, 6, 9]
    scores = [line for line in metrics(folder) if line["kind"] == "evaluation"]
    assert [step for step, _ in points["val/coco_AP"]] == [line["step"] for line in scores]
    assert all(math.isfinite(value) for values in points.values() for _, value in values)
    (lr,) = tmp_path.glob("mlruns/*/*/params/train.lr")
    assert lr.read_text() == "0.01"
    assert len(list(tmp_path.glob("mlruns/*/*/artifacts/val/detections_0/*.png"))) == 2


class Racing:
    """A store in which another run makes the experiment first."""

    def __init__(self, appears: bool) -> None:
        self.appears, self.asked = appears, 0

    def get_experiment_by_name(self, name: str) -> Any:
        self.asked += 1
        return (
            SimpleNamespace(experiment_id=f"{name} 7") if self.asked > 1 and self.appears else None
        )

    def create_experiment(self, name: str) -> str:
        raise ConnectionError(f"no {name}")

    def create_run(self, experiment: str, run_name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{run_name} of {experiment}"))


def test_an_experiment_that_another_run_makes_at_the_same_time_is_shared() -> None:
    tracker = object.__new__(external_trackers.MLflow)
    tracker._client = Racing(appears=True)
    assert tracker._create(Path("/all/run")) == "run of all 7"
    tracker._client = Racing(appears=False)
    with pytest.raises(ConnectionError, match="no all"):
        tracker._create(Path("/all/run"))


def test_wandb_keeps_a_run_offline_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    values = tiny(tmp_path, train={"trackers": ["wandb"], "epochs": 1})
    folder = run(config_of(values), StopAfter(2))
    number = (folder / "wandb_run.txt").read_text().strip()
    run(config_of(values), resume=True)
    wandb.teardown()  # its own process writes the last bytes a moment after a run has ended
    parts = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in parts] == [f"run-{number}.wandb"] * 2
    for key in (b"loss/classification", b"val/voc_mAP", b"train.lr"):
        assert key in parts[-1].read_bytes()
    assert list(folder.glob("wandb/offline-run-*/files/media/images/val/detections*.png"))
