"""A config file says what is meant, or is refused with the key, the value and the choices."""

from pathlib import Path

import pytest
import yaml

from data.errors import InputError
from engine.config import Config, dump_config, load_config, split_words
from engine.strict_yaml import read_yaml

ROOT = Path(__file__).parents[2]
# files right in studies/ describe grids of runs: tests/scripts/test_studies.py
CONFIGS = sorted(
    path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "studies"
)


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_config_file_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.train.name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_a_dumped_config_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(write(tmp_path, dump_config(config.model_dump(mode="json")))) == config


def test_an_empty_file_gives_the_defaults_and_the_name_of_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "", "my_run.yaml"))
    assert config.train.name == "my_run"
    assert config.train.model_copy(update={"name": None}) == Config().train


def test_a_file_wins_over_its_bases_and_a_later_base_over_an_earlier(tmp_path: Path) -> None:
    write(tmp_path, "train: {epochs: 1, lr: 0.1, seed: 1}", "bases/one.yaml")
    write(tmp_path, "train: {epochs: 2, lr: 0.2}", "bases/two.yaml")
    path = write(tmp_path, "base: [bases/one.yaml, bases/two.yaml]\ntrain: {epochs: 3}")
    train = load_config(path).train
    assert (train.epochs, train.lr, train.seed) == (3, 0.2, 1)


def test_a_map_of_free_names_is_replaced_and_not_merged(tmp_path: Path) -> None:
    pairs = "loss: {weighting: {pairs: {a: [b, c]}}}"
    write(tmp_path, "train: {freeze: {backbone.body: [0, 2]}, lr: 0.1}\n" + pairs, "base.yaml")
    path = write(tmp_path, "base: base.yaml\nloss: {weighting: {pairs: {d: [e, f]}}}")
    config = load_config(path)
    assert config.train.freeze == {"backbone.body": (0, 2)}
    assert config.loss.weighting.pairs == {"d": ("e", "f")}
    other = load_config(path, ["train.freeze={backbone.fpn: [0, 1]}"]).train
    assert (other.freeze, other.lr) == ({"backbone.fpn": (0, 1)}, 0.1)
    none = load_config(path, ["train.freeze={}", "train={}"]).train
    assert (none.freeze, none.lr) == ({}, 0.1)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epochs: 3, milestones: [1, 2]}")
    config = load_config(path, ["train.epochs=5", "train.milestones=[4]", "loss.box.type=ciou"])
    assert config.train.epochs == 5
    assert config.train.milestones == (4,)
    assert config.loss.box.type == "ciou"


def test_numbers_may_be_written_as_1e_minus_4(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "train: {lr: 1e-4}")).train.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("loss: {box: {type: cIOU}}", ["loss.box.type", "'cIOU'", "'ciou'", "'l1'"]),
        ("train: {epoch: 3}", ["train.epoch", "'epochs'"]),
        ("trian: {epochs: 3}", ["trian", "'train'"]),
        ("train: {epochs: three}", ["train.epochs", "three"]),
        ("train: {epochs: 0}", ["train.epochs", "0"]),
        ("train: {lr: true}", ["train.lr", "True"]),
        ("train: {epochs: yes}", ["train.epochs", "True"]),
        ("data: {image_size: [1000, 600]}", ["data.image_size"]),
        ("train: {lr: 0.1, lr: 0.2}", ["'lr'", "twice", "line 1"]),
        ("train: [1, 2]", ["train"]),
        ("train: {lr: .nan}", ["train.lr"]),
        ("train: {lr: .inf}", ["train.lr", "finite"]),
        ("train: {clip_gradients: .inf}", ["train.clip_gradients", "finite"]),
        ("train: {name: ..}", ["train.name", "plain folder name"]),
        ("train: {name: ''}", ["train.name", "plain folder name"]),
        ('train: {output: "a\\0b"}', ["line 1", "NUL"]),
        ("train: {name: 2024}", ["train.name", "expected text", "quote", "2024"]),
        ("train: {device: gpu}", ["train.device", "'gpu'", "'cuda'"]),
        ("train: {best: coco_segm_AP}", ["train.best", "masks", "mask_rcnn"]),
        ("train:", ["train: expected a mapping of keys"]),
        ("data: {train: 3}", ["data.train: expected a name or a list of names, got 3"]),
        ("data: {val: null}", ["data.val: expected a name or a list of names, got None"]),
        ("data: {image_size: 600}", ["image_size: expected two numbers, such as [600, 1000], "]),
        ("data: {image_size: [600]}", ["data.image_size: expected two numbers", "got [600]"]),
        (
            "data: {image_size: [1, 2, 3]}",
            ["data.image_size: expected two numbers", "got [1, 2, 3]"],
        ),
        ("data: {image_size: [true, 1000]}", ["image_size.0: expected a whole number, got True"]),
        ("data: {shapes: {shapes: []}}", ["data.shapes.shapes: expected at least one value"]),
        ("data: {root: }", ["data.root: expected a path, such as", "got None"]),
        ("data: {root: @x}", ["cannot start any token; quote the text"]),
        ("data:\n\tformat: voc", ["cannot start any token; indent with spaces"]),
        ("train: {milestones: 8}", ["train.milestones: expected a list, such as [8, 11]"]),
        ("train: {freeze: {backbone: [0]}}", ["train.freeze.backbone: expected two numbers"]),
        ("train: {lr: fast}", ["train.lr: expected a number"]),
        ("train: {scale_lr: 3}", ["train.scale_lr: expected true or false"]),
        ("- 1\n- 2", ["mapping"]),
        ("a: &a 1\ntrain: *a", ["aliases"]),
        ("train: !!python/object/apply:os.system [true]", ["the tag", "remove it"]),
        ("a: !!timestamp x", ["the tag"]),
        ("a: !!bool x", ["the tag"]),
        ("a: !!float ''", ["the tag"]),
        ("a: !!set [1]", ["the tag"]),
        ("train: {epochs: 0x" + "f" * 5000 + "}", ["too large"]),
        ("train: {epochs: " + "9" * 5000 + "}", ["not valid YAML"]),
        ('train: {name: "\\ud800"}', ["lone surrogate"]),
        ('base: "a\\0b"', ["NUL"]),
        ("train: {epochs: 2001-02-03}", ["train.epochs", "whole number"]),
        ("train: {epochs: 010}", ["'010' is an octal", "quote the text"]),
        ("train: {epochs: 1:30}", ["'1:30' is an octal or base-60 number"]),
        ("train: {lr: 1:30.5}", ["'1:30.5' is a base-60 number"]),
        ("train: {trackers: [mlflow, mlflow]}", ["train.trackers", "has a duplicate"]),
        ("train: {epochs: 3", ["line"]),
        ("1: 2", ["key 1", "quote"]),
        ("base: 3", ["base"]),
        ("base: missing.yaml", ["missing.yaml", "file not found"]),
        ("base: run.yaml", ["circle"]),
        ("train: {name: ../escape}", ["name", "../escape"]),
        ("a: " + "[" * 200 + "]" * 200, ["nested deeper"]),
        ("\x00", ["not valid YAML"]),
    ],
)
def test_a_wrong_file_is_refused_with_one_clear_error(
    text: str, parts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, text))
    message = str(error.value)
    assert "run.yaml" in message or "missing.yaml" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "key",
    [
        "data.batch_size",
        "data.image_size",
        "data.shapes.scale",
        "detector.anchors.ratios",
        "detector.anchors.sizes",
        "detector.norm_eps",
        "detector.rpn.batch_size_per_image",
        "evaluate.iou",
        "loss.box.beta",
        "loss.weighting.initial",
        "loss.weighting.interval",
        "loss.weighting.variant",
        "train.epochs",
        "train.momentum",
    ],
)
def test_true_is_no_number_in_any_block(key: str, tmp_path: Path) -> None:
    numbers = {
        "data.image_size": "[true, 600]",
        "data.shapes.scale": "[0.5, true]",
        "detector.anchors.ratios": "[true]",
        "detector.anchors.sizes": "[true, 16, 32, 64, 128]",
        "loss.weighting.initial": "[true, 1.0]",
        "loss.weighting.interval": "true",
    }
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        load_config(write(tmp_path, ""), [f"{key}={numbers.get(key, 'true')}"])


def test_what_is_wrong_on_the_command_line_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {lrr: 1}\ndata: {batch_size: 0}\n")
    with pytest.raises(InputError) as error:
        load_config(path, ["train.epocks=1", "data.repeat=x"])
    words = [line.split(": ") for line in str(error.value).splitlines()]
    places = {key: place for place, key, *_ in words}
    assert places == {
        "train.lrr": str(path),
        "data.batch_size": str(path),
        "train.epocks": "command line",
        "data.repeat": "command line",
    }
    with pytest.raises(InputError, match=r"^command line: train\.lr: expected a number, got True"):
        load_config(write(tmp_path, ""), ["train.lr=true"])
    with pytest.raises(InputError, match=r"^command line: train\.lr: expected a number, got {"):
        load_config(write(tmp_path, ""), ["train.lr.x=1"])
    with pytest.raises(
        InputError, match=r"^command line: detector\.levels: \[2, 3\] is not a pyramid"
    ):
        load_config(write(tmp_path, ""), ["detector.levels=[2, 3]"])


def test_a_long_override_is_no_file_name() -> None:
    word = f"data.root={'x' * 5000}"
    assert split_words(["a.yaml", word]) == (["a.yaml"], [word])


@pytest.mark.parametrize("key", ["data.root", "detector.weights", "train.output"])
def test_a_path_may_begin_at_home(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ``key=~/x`` the shell leaves the ``~`` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    block, leaf = key.split(".")
    config = load_config(write(tmp_path, ""), [f"{key}=~/x"])
    assert str(getattr(getattr(config, block), leaf)) == str(tmp_path / "x")


@pytest.mark.parametrize("text", ["runs #2", "#2", "[64, 96]  # small"])
def test_an_override_that_yaml_would_cut_off_at_a_comment_is_refused(
    text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="what follows # would be a comment; put the text in"):
        load_config(write(tmp_path, ""), [f"train.output={text}"])


def test_a_sharp_that_begins_no_comment_stays(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {output: a}  # a comment of a file")
    assert load_config(path, ["train.output='runs #2'"]).train.output == "runs #2"
    assert load_config(path, ["train.output=runs#2"]).train.output == "runs#2"


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3", ""])
def test_an_override_without_key_or_value_is_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"key\.path=value"):
        load_config(write(tmp_path, ""), [override])


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, "train: {epochs: 0}\nloss: {box: {type: iou}}"))
    assert "train.epochs" in str(error.value)
    assert "loss.box.type" in str(error.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="UTF-8"):
        read_yaml(path)


def test_every_key_says_what_it_means() -> None:
    def check(model: type, prefix: str) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{prefix}{name} has no description"
            nested = field.annotation
            if isinstance(nested, type) and hasattr(nested, "model_fields"):
                check(nested, f"{prefix}{name}.")

    check(Config, "")


def test_the_keys_of_the_contract_exist(tmp_path: Path) -> None:
    contract = {
        "detector": {
            "type": "faster_rcnn",
            "backbone": "resnet50",
            "weights": "none",
            "trainable_stages": 3,
            "norm": "frozen_stats",
            "fpn_channels": 256,
            "score_threshold": 0.05,
            "nms_threshold": 0.5,
            "detections_per_image": 100,
        },
        "loss": {
            "box": {"type": "smooth_l1", "beta": 1.0},
            "rpn_box": {"type": "l1"},
            "weighting": {
                "type": "alwa",
                "variant": 1,
                "interval": 100,
                "initial": [1.0, 1.0],
                "update": "unweighted",
            },
        },
        "data": {
            "format": "voc",
            "root": "x",
            "train": "trainval",
            "val": "test",
            "classes": None,
            "image_size": [600, 1000],
            "repeat": 1,
            "batch_size": 2,
            "workers": 2,
            "augment": [{"HorizontalFlip": {"p": 0.5}}],
        },
        "train": {
            "name": "my_run",
            "output": "runs",
            "epochs": 12,
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 1.0e-4,
            "milestones": [8, 11],
            "warmup_iterations": 500,
            "amp": "bf16",
            "seed": 0,
            "device": "auto",
            "optimizer": "adamw",
            "log_every": 20,
        },
        "evaluate": {"iou": 0.5, "every": 1},
    }
    config = load_config(write(tmp_path, yaml.safe_dump(contract)))
    assert config.loss.weighting.update == "unweighted"
