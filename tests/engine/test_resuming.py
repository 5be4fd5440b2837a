"""A run that goes on ends as an undisturbed one, and what may change before it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import StopAfter, check_resumes_exactly, config_of, differences, metrics, run, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.build import build_annotations
from data.errors import InputError
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.config import Config, override_config
from engine.resume import SCORING_KEYS, check_resume, keep_comparable, scores_alike
from engine.state import Progress


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a RetinaNet with ALWA."""
    return run(config_of(tiny(tmp_path_factory.mktemp("finished"))))


def test_a_changed_config_is_refused_and_shown_unless_allowed(finished: Path) -> None:
    changed = config_of(tiny(finished.parent, train={"weight_decay": 0.5}))
    with pytest.raises(InputError, match=r"train\.weight_decay: 0\.0001 -> 0\.5"):
        run(changed, resume=True)
    run(changed, resume=True, allow_changed=True)


def test_a_refused_resume_changes_nothing(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0})
    folder = run(config_of(values))
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "metrics.jsonl")}
    values["train"]["weight_decay"] = 0.5
    with pytest.raises(InputError, match="weight_decay"):
        run(config_of(values), resume=True)
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_an_allowed_change_of_the_learning_rate_takes_effect(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0, "momentum": 0.9})
    folder = run(config_of(values))
    values["train"] |= {"epochs": 2, "lr": 0.02, "momentum": 0.5}
    run(config_of(values), resume=True, allow_changed=True)
    rates = [line["lr"] for line in metrics(folder) if line["kind"] == "train"]
    assert rates[2:] == pytest.approx([0.01 / 4] * 3 + [0.02 / 4] * 5)
    saved = load_checkpoint(folder / "last.pt")["optimizer"]["param_groups"]
    assert [group["momentum"] for group in saved] == [0.5]


def test_milestones_stay_with_their_epochs_where_epochs_change_their_length(
    tmp_path: Path,
) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0, "milestones": [2]})
    folder = run(config_of(values))
    values["train"] |= {"epochs": 3, "accumulate": 2}
    run(config_of(values), resume=True, allow_changed=True)
    lines = [line for line in metrics(folder) if line["kind"] == "train"]
    assert [line["epoch"] for line in lines] == [0] * 5 + [1] * 3 + [2] * 3
    rates = [line["lr"] for line in lines if line["epoch"] > 0]
    assert rates[:3] == pytest.approx([rates[0]] * 3)
    assert rates[3:] == pytest.approx([rates[0] / 10] * 3)


def test_milestones_stay_with_their_epochs_where_the_one_under_way_becomes_shorter(
    tmp_path: Path,
) -> None:
    values = tiny(tmp_path, train={"epochs": 3, "pictures": 0, "milestones": [2]})
    folder = run(config_of(values), StopAfter(4))
    values["data"]["limit"] = 4  # two batches an epoch in place of five
    run(config_of(values), resume=True, allow_changed=True)
    lines = [line for line in metrics(folder) if line["kind"] == "train"]
    assert [line["epoch"] for line in lines] == [0] * 4 + [1] * 2 + [2] * 2
    rates = [line["lr"] for line in lines if line["epoch"] > 0]
    assert rates == pytest.approx([rates[0], rates[0], rates[0] / 10, rates[0] / 10])


@pytest.mark.parametrize(
    ("key", "value", "anew"),
    [
        ("train.best", "coco_AP", True),
        ("detector.nms_threshold", 0.9, True),
        ("data.limit", 2, True),
        ("data.shapes", {"seed": 1}, True),
        ("data.shapes", {"train_images": 12}, False),
        ("data.root", "moved", False),
    ],
)
def test_scores_of_another_kind_are_not_compared(
    key: str, value: Any, anew: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0})
    folder = run(config_of(values))
    contents = load_checkpoint(folder / "last.pt")
    contents["progress"]["best_score"] = 2.0  # no other score is as good
    save_checkpoint(folder / "last.pt", contents)
    config = override_config(
        tiny(tmp_path, train={"epochs": 2, "pictures": 0}), [f"{key}={value}"], "test"
    )
    run(config, resume=True, allow_changed=True)
    progress = load_checkpoint(folder / "last.pt")["progress"]
    assert (progress["best_epoch"], progress["best_score"] < 2) == (
        (2, True) if anew else (1, False)
    )


CHANGED_SCORES = {
    "data.exif": "ignore",
    "data.image_size": "[64, 64]",
    "data.limit": "2",
    "data.on_damaged": "skip",
    "data.val": "other",
    "detector.detections_per_image": "7",
    "detector.nms_threshold": "0.9",
    "detector.retinanet.topk_candidates": "7",
    "detector.rpn.nms_threshold": "0.9",
    "detector.rpn.post_nms_top_n_test": "7",
    "detector.rpn.pre_nms_top_n_test": "7",
    "detector.rpn.score_threshold": "0.3",
    "detector.score_threshold": "0.3",
    "evaluate.flip": "true",
    "evaluate.iou": "0.7",
    "train.best": "coco_AP",
}
SAVED, DIGEST = {"config": Config().model_dump(mode="json")}, {"validation": "same"}


def with_changed(*words: str) -> Config:
    return override_config(SAVED["config"], words, "test")


@pytest.mark.parametrize("key", CHANGED_SCORES)
def test_scores_with_another_value_of_a_key_are_not_alike(key: str) -> None:
    assert not scores_alike(SAVED, with_changed(f"{key}={CHANGED_SCORES[key]}"), DIGEST)


def test_scores_of_the_same_images_and_keys_are_alike() -> None:
    assert CHANGED_SCORES.keys() == SCORING_KEYS
    assert scores_alike(SAVED, with_changed("train.lr=0.5", "data.batch_size=7"), DIGEST)
    assert scores_alike({**SAVED, **DIGEST}, with_changed("data.val=other"), DIGEST)
    assert not scores_alike({**SAVED, **DIGEST}, Config(), {"validation": "others"})
    assert scores_alike({"config": {}}, Config(), DIGEST)  # of before there were such keys


@pytest.mark.parametrize(("evaluated", "best"), [(2, None), (3, 1)])
def test_the_best_is_not_sought_again_once_all_epochs_are_scored(
    evaluated: int, best: int | None
) -> None:
    progress = Progress(evaluated=evaluated, best_score=0.5, best_epoch=1)
    keep_comparable(progress, SAVED, with_changed("train.epochs=3", "train.best=coco_AP"), DIGEST)
    assert progress.best_epoch == best


@pytest.mark.parametrize(("before", "after"), [("none", "fp16"), ("fp16", "none")])
def test_precision_may_change_if_it_is_allowed(before: str, after: str, tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0, "amp": before})
    folder = run(config_of(values))
    values["train"] |= {"epochs": 2, "amp": after}
    run(config_of(values), resume=True, allow_changed=True)
    assert load_checkpoint(folder / "last.pt")["progress"]["epoch"] == 2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_moments_follow_their_weights_into_another_memory_order(
    optimizer: str, tmp_path: Path
) -> None:
    losses = []
    for channels_last in (True, False):
        train = {"name": f"{channels_last}", "momentum": 0.9, "optimizer": optimizer, "lr": 1e-3}
        values = tiny(tmp_path, train={**train, "epochs": 1, "pictures": 0})
        folder = run(config_of(values))
        values["train"]["epochs"] = 2
        values["detector"]["channels_last"] = channels_last
        run(config_of(values), resume=True, allow_changed=True)
        lines = [line["loss"] for line in metrics(folder) if line["kind"] == "train"]
        losses.append([sum(loss.values()) for loss in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("change", [{"freeze": {"backbone.body": [1, 2]}}, {"amp": "fp16"}])
def test_momentum_may_begin_if_it_is_allowed(change: dict[str, object], tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0, "momentum": 0.0})
    folder = run(config_of(values))
    values["train"] |= {"epochs": 3, "momentum": 0.9, **change}
    run(config_of(values), resume=True, allow_changed=True)
    assert load_checkpoint(folder / "last.pt")["progress"]["epoch"] == 3


def test_a_weighting_cannot_change_under_its_state(finished: Path) -> None:
    changed = tiny(finished.parent, loss={"weighting": {"initial": [0.25, 1.0]}})
    with pytest.raises(InputError, match=r"loss\.weighting\.initial: .*change it back"):
        run(config_of(changed), resume=True, allow_changed=True)


def test_another_number_of_images_is_noticed(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0})
    folder = run(config_of(values))
    contents = load_checkpoint(folder / "last.pt")
    assert contents["images"] == 10
    save_checkpoint(folder / "last.pt", {**contents, "images": 9})
    with pytest.raises(InputError, match="had 9 images and has 10"):
        run(config_of(values), resume=True)


@pytest.mark.parametrize(("split", "named"), [("train", "training"), ("val", "validation")])
def test_another_label_is_noticed(split: str, named: str, tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0})
    config = config_of(values)
    folder = run(config)
    path = Path(build_annotations(config.data, split).source)
    content = json.loads(path.read_text())
    one = content["annotations"][0]
    other = next(o for o in content["annotations"] if o["category_id"] != one["category_id"])
    swapped = other["category_id"], one["category_id"]
    one["category_id"], other["category_id"] = swapped
    path.write_text(json.dumps(content))
    told = f"the images or objects of the {named} split"
    with pytest.raises(InputError, match=f"--resume: {told}.* restore the data"):
        run(config, resume=True)
    run(config, resume=True, allow_changed=True)
    assert f"--allow-changed: {told}" in (folder / "train.log").read_text()


def test_the_same_data_elsewhere_are_the_same(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"pictures": 0})
    folder = run(config_of(values), StopAfter(3))
    (tmp_path / "shapes").rename(tmp_path / "moved")
    values["data"]["root"] = str(tmp_path / "moved")
    run(config_of(values), resume=True)
    contents = load_checkpoint(folder / "last.pt")
    assert contents["progress"]["epoch"] == 2
    # Of an older checkpoint nobody knows what it was trained on.
    del contents["training"]
    save_checkpoint(folder / "last.pt", contents)
    values["data"]["root"] = str(tmp_path / "shapes")
    with pytest.raises(InputError, match=r"data\.root"):
        run(config_of(values), resume=True)


def test_the_same_data_by_other_words_are_the_same(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"pictures": 0})
    folder = run(config_of(values), StopAfter(8))
    assert load_checkpoint(folder / "last.pt")["progress"]["best_epoch"] == 1
    values["data"] |= {"train": ["train"], "val": ["val"]}
    values["data"]["classes"] = ["circle", "square", "triangle"]
    run(config_of(values), resume=True)
    assert "chosen anew" not in (folder / "train.log").read_text()
    values["train"]["epochs"] = 3
    values["data"]["val"] = ["train"]
    with pytest.raises(InputError, match="objects of the validation split have changed"):
        run(config_of(values), resume=True)


def test_what_changes_no_result_may_change(tmp_path: Path) -> None:
    config = config_of(tiny(tmp_path))
    saved = {"config": config.model_dump(mode="json"), "classes": ["a"], "global_batch": 2}
    words = ["data.cache=memory", "data.follow_links=true", "data.max_image_pixels=9"]
    words += ["evaluate.engine=hotcoco", "train.epochs=9", "train.name=b", "train.patience=9"]
    check_resume(saved, override_config(saved["config"], words, "test"), world_size=1)
    with pytest.raises(InputError, match=r"evaluate\.iou: 0\.5 -> 0\.7"):
        check_resume(saved, override_config(saved["config"], ["evaluate.iou=0.7"], ""), 1)


def test_a_checkpoint_that_does_not_know_its_images_goes_on(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0})
    folder = run(config_of(values))
    contents = load_checkpoint(folder / "last.pt")
    older = {
        key: contents[key] for key in contents if key not in ("images", "training", "validation")
    }
    save_checkpoint(folder / "last.pt", older)
    values["train"]["epochs"] = 2
    run(config_of(values), resume=True)
    assert "chosen anew" not in (folder / "train.log").read_text()


def test_another_number_of_processes_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tiny(tmp_path))
    saved = {"config": config.model_dump(mode="json"), "classes": ["a"], "global_batch": 2}
    check_resume({**saved, "world_size": 2}, config, world_size=1)
    assert "processes: 1, previously 2" in caplog.text


def test_a_finished_run_keeps_the_config_that_it_was_trained_with(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0})
    folder = run(config_of(values))
    before = (folder / "config.yaml").read_bytes()
    values["train"]["lr"] = 0.5
    run(config_of(values), resume=True, allow_changed=True)
    assert (folder / "config.yaml").read_bytes() == before


def test_fewer_epochs_than_were_trained_change_nothing(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"pictures": 0, "log_every": 4})
    folder = run(config_of(values))
    names = ("config.yaml", "metrics.jsonl", "last.pt")
    before = {name: (folder / name).read_bytes() for name in names}
    for epochs in (1, 2):
        values["train"]["epochs"] = epochs
        run(config_of(values), resume=True)
        assert before == {name: (folder / name).read_bytes() for name in names}
    assert "train.epochs: 1, but epoch 2 has started already" in (folder / "train.log").read_text()


def test_another_optimizer_cannot_go_on(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0})
    run(config_of(values))
    values["train"] |= {"epochs": 2, "optimizer": "adamw"}
    for allowed in (False, True):
        with pytest.raises(
            InputError, match=r"optimizer: .* the state of its optimizer; change it"
        ):
            run(config_of(values), resume=True, allow_changed=allowed)


def test_what_is_never_accepted_is_told_before_what_may_be_allowed(finished: Path) -> None:
    weighting = tiny(finished.parent, loss={"weighting": {"interval": 5}})
    weights = tiny(finished.parent, detector={"weights": str(finished / "last.pt")})
    batch = tiny(finished.parent, train={"lr": 0.5}, data={"batch_size": 1})
    for values, message in (
        (weighting, "the state of its weighting"),
        (weights, r"detector\.weights: .* initial weights are only read when a run starts"),
        (batch, "global batches of"),
    ):
        for allowed in (False, True):
            with pytest.raises(InputError, match=message) as error:
                run(config_of(values), resume=True, allow_changed=allowed)
            assert "--allow-changed" not in str(error.value)


def test_a_map_of_free_names_is_shown_as_one_value(finished: Path) -> None:
    changed = tiny(finished.parent, train={"freeze": {"backbone.body": [0, 1]}})
    with pytest.raises(InputError, match=r"train\.freeze: {} -> {'backbone\.body': \[0, 1\]}"):
        run(config_of(changed), resume=True)


def test_another_architecture_is_refused_in_one_line(finished: Path) -> None:
    changed = tiny(finished.parent, detector={"fpn_channels": 8})
    with pytest.raises(InputError, match=r"does not fit .* size mismatch .* detector\.\*") as error:
        run(config_of(changed), resume=True, allow_changed=True)
    assert "\n" not in str(error.value)


def test_other_classes_cannot_go_on(finished: Path) -> None:
    changed = tiny(finished.parent, data={"classes": ["square", "circle", "triangle"]})
    with pytest.raises(InputError, match="contradicts the checkpoint"):
        run(config_of(changed), resume=True, allow_changed=True)


def test_more_epochs_change_a_cosine_and_are_refused(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0, "schedule": "cosine"})
    run(config_of(values))
    values["train"]["epochs"] = 2
    with pytest.raises(InputError, match=r"train\.epochs: 1 -> 2"):
        run(config_of(values), resume=True)


def test_another_global_batch_is_refused(finished: Path) -> None:
    with pytest.raises(InputError, match="global batches of 2 images"):
        run(config_of(tiny(finished.parent, data={"batch_size": 3})), resume=True)


def test_epochs_workers_and_logging_are_free_to_change(tmp_path: Path) -> None:
    folder = run(config_of(tiny(tmp_path, train={"epochs": 1})))
    run(config_of(tiny(tmp_path, train={"epochs": 2, "log_every": 2})), resume=True)
    assert load_checkpoint(folder / "last.pt")["progress"]["epoch"] == 2


@pytest.mark.parametrize(
    ("kind", "amp", "stop_at"),
    [
        ("retinanet", "none", 2),
        ("retinanet", "bf16", 5),
        ("retinanet", "fp16", 3),
        ("faster_rcnn", "none", 7),
        ("mask_rcnn", "none", 4),
    ],
)
def test_a_stopped_and_resumed_run_is_bit_equal_to_an_undisturbed_one(
    kind: str, amp: str, stop_at: int, tmp_path: Path
) -> None:
    check_resumes_exactly(tiny(tmp_path, kind, train={"amp": amp}), stop_at)


@pytest.mark.parametrize("rule", ["uncertainty", "gradnorm", "gls"])
def test_other_weightings_move_and_resume_exactly(rule: str, tmp_path: Path) -> None:
    values = tiny(tmp_path, loss={"weighting": {"type": rule}})
    values["train"]["epochs"] = 1
    whole = check_resumes_exactly(values, stop_at=2)
    weights = [record["loss_weight"]["classification"] for record in metrics(whole)[:-1]]
    assert len(set(weights)) > 2


def test_tensorboard_has_neither_gap_nor_overlap_after_a_resume(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"checkpoint_every": 4})
    folder = run(config_of(values), StopAfter(6))
    # As after a kill in iteration 7: the last checkpoint is that of iteration 4.
    (folder / "last.pt").unlink()
    run(config_of(values), resume=True)
    events = EventAccumulator(str(folder))
    events.Reload()
    for tag in ("loss/classification", "lr"):
        assert [event.step for event in events.Scalars(tag)] == list(range(1, 11))
    steps = [record["step"] for record in metrics(folder) if record["kind"] == "train"]
    assert steps == list(range(1, 11))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PK")])
def test_a_lost_checkpoint_is_replaced_before_it_becomes_the_best_or_the_previous_one(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    folder = run(config_of(tiny(tmp_path)))
    whole = load_checkpoint(folder / "last.pt")
    damage(folder / "last.pt")
    (folder / "best.pt").unlink()
    # As if no evaluation had had a score yet: the next one makes best.pt.
    contents = load_checkpoint(folder / "previous.pt")
    contents["progress"] |= {"best_score": None, "best_epoch": None}
    save_checkpoint(folder / "previous.pt", contents)
    run(config_of(tiny(tmp_path)), resume=True)
    for name in ("last.pt", "previous.pt", "best.pt"):
        load_checkpoint(folder / name)
    last = load_checkpoint(folder / "last.pt")
    assert differences(whole["detector"], last["detector"]) == []


def test_tensorboard_has_every_window_and_every_score_once_after_a_killed_evaluation(
    tmp_path: Path,
) -> None:
    values = tiny(tmp_path, train={"log_every": 2})
    folder = run(config_of(values))
    # previous.pt is the state before the last evaluation; the window of step 9 was logged at 10.
    (folder / "last.pt").unlink()
    run(config_of(values), resume=True)
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/classification")] == [2, 4, 6, 8, 10]
    assert [event.step for event in events.Scalars("loss_mean/classification")] == [3, 6, 9]
    assert [event.step for event in events.Scalars("val/voc_mAP")] == [5, 10]
