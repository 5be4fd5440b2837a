"""Laws of the block ``loss`` of a config and of the weighting built from it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from losses import (
    ALWA,
    DWA,
    GLS,
    CoVWeighting,
    FixedWeights,
    GradNorm,
    LossWeighting,
    RandomWeights,
    SelfBalancing,
    UncertaintyWeighting,
)
from losses.alwa import UPDATES, VARIANTS
from losses.box import BOX_LOSSES
from losses.config import BoxLossConfig, LossConfig, WeightingConfig, build_weighting

PAIRS = {"head": ("classification", "bbox_regression")}
NAMES = ("classification", "bbox_regression", "loss_classifier", "loss_box_reg", "a", "b", "c")


def choices(config: type[BaseModel], key: str) -> tuple[Any, ...]:
    return get_args(config.model_fields[key].annotation)


def test_the_choices_of_a_config_are_those_of_the_code() -> None:
    assert choices(BoxLossConfig, "type") == tuple(BOX_LOSSES)
    assert choices(WeightingConfig, "update") == UPDATES
    assert choices(WeightingConfig, "variant") == VARIANTS


def test_an_empty_block_is_l1_with_fixed_weights_of_one() -> None:
    config = LossConfig.model_validate({})
    assert config.box == config.rpn_box == BoxLossConfig(type="l1", beta=1.0)
    assert config.normalizer == "batch"
    weighting = build_weighting(config.weighting, PAIRS, NAMES)
    assert isinstance(weighting, FixedWeights)
    assert weighting.interval == 100
    assert {name: w.item() for name, w in weighting.weights().items()} == {
        "classification": 1.0,
        "bbox_regression": 1.0,
    }


def test_every_key_of_the_weighting_reaches_it() -> None:
    block = {
        "type": "alwa",
        "variant": 1,
        "interval": 7,
        "initial": [0.75, 1.5],
        "update": "unweighted",
        "pairs": {"roi": ["loss_classifier", "loss_box_reg"]},
    }
    weighting = build_weighting(WeightingConfig.model_validate(block), PAIRS, NAMES)
    assert isinstance(weighting, ALWA)
    assert (weighting.variant, weighting.interval, weighting.update) == (1, 7, "unweighted")
    assert weighting.pairs == {"roi": ("loss_classifier", "loss_box_reg")}
    assert weighting.lambdas.tolist() == [[0.75, 1.5]]


def test_fixed_weights_take_their_weights_from_initial() -> None:
    config = WeightingConfig.model_validate({"initial": [0.5, 2], "interval": 9})
    weighting = build_weighting(config, PAIRS, NAMES)
    assert isinstance(weighting, FixedWeights)
    assert weighting.interval == 9
    assert weighting.lambdas.tolist() == [[0.5, 2.0]]


@pytest.mark.parametrize(
    ("type_name", "rule"),
    [
        ("fixed", FixedWeights),
        ("alwa", ALWA),
        ("uncertainty", UncertaintyWeighting),
        ("dwa", DWA),
        ("rlw", RandomWeights),
        ("gls", GLS),
        ("cov", CoVWeighting),
        ("self_balancing", SelfBalancing),
        ("gradnorm", GradNorm),
    ],
)
def test_every_type_builds_its_rule(type_name: str, rule: type[LossWeighting]) -> None:
    config = WeightingConfig.model_validate({"type": type_name, "interval": 9})
    weighting = build_weighting(config, PAIRS, NAMES)
    assert type(weighting) is rule
    assert weighting.interval == 9
    assert weighting.pairs == PAIRS
    assert choices(WeightingConfig, "type").count(type_name) == 1


def test_the_options_of_a_rule_reach_it() -> None:
    block = {
        "dwa": {"temperature": 3},
        "rlw": {"seed": 4},
        "gradnorm": {"alpha": "5e-1", "lr": "1e-3"},
    }

    def build(type_name: str) -> Any:
        config = WeightingConfig.model_validate({**block, "type": type_name})
        return build_weighting(config, PAIRS, NAMES)

    assert build("dwa").temperature == 3
    assert build("rlw").seed == 4
    assert (build("gradnorm").alpha, build("gradnorm").lr) == (0.5, 0.001)


@pytest.mark.parametrize("type_name", ["fixed", "alwa", "uncertainty", "gradnorm"])
def test_rules_with_a_beginning_take_it_from_initial(type_name: str) -> None:
    config = WeightingConfig.model_validate({"type": type_name, "initial": [0.5, 2]})
    assert build_weighting(config, PAIRS, NAMES).lambdas.tolist() == [[0.5, 2.0]]


@pytest.mark.parametrize("type_name", ["dwa", "rlw", "gls", "cov", "self_balancing"])
def test_initial_weights_that_nobody_would_read_are_refused(type_name: str) -> None:
    with pytest.raises(ValidationError, match=f"initial: {type_name} sets its own weights"):
        WeightingConfig.model_validate({"type": type_name, "initial": [0.5, 2]})


def test_numbers_that_yaml_reads_as_strings_are_numbers() -> None:
    config = LossConfig.model_validate(
        {"box": {"beta": "1e-1"}, "weighting": {"initial": ["5e-1", "1e0"]}}
    )
    assert config.box.beta == 0.1
    assert config.weighting.initial == (0.5, 1.0)


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"box": {"type": "cIOU"}}, "box.type"),
        ({"box": {"beta": -1}}, "box.beta"),
        ({"box": {"beta": float("nan")}}, "box.beta"),
        ({"rpn_box": {"gamma": 2}}, "rpn_box.gamma"),
        ({"normalizer": "sum"}, "normalizer"),
        ({"weighting": {"variant": 3}}, "weighting.variant"),
        ({"weighting": {"interval": 1}}, "weighting.interval"),
        ({"weighting": {"interval": 2.5}}, "weighting.interval"),
        ({"weighting": {"initial": [1, 0]}}, "weighting.initial.1"),
        ({"weighting": {"initial": [1, float("inf")]}}, "weighting.initial.1"),
        ({"weighting": {"initial": [1, 1, 1]}}, "weighting.initial"),
        ({"weighting": {"update": "add"}}, "weighting.update"),
        ({"weighting": {"type": "ranksort"}}, "weighting.type"),
        ({"weighting": {"dwa": {"temperature": 0}}}, "weighting.dwa.temperature"),
        ({"weighting": {"gradnorm": {"alpha": -1}}}, "weighting.gradnorm.alpha"),
        ({"weighting": {"gradnorm": {"lr": 0}}}, "weighting.gradnorm.lr"),
        ({"weighting": {"rlw": {"temperature": 1}}}, "weighting.rlw.temperature"),
        ({"weighting": {"pairs": {}}}, "weighting.pairs"),
        ({"weighting": {"pairs": {"head": ["a"]}}}, "weighting.pairs.head"),
        ({"wieghting": {}}, "wieghting"),
    ],
)
def test_a_slip_is_refused_at_its_key(block: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        LossConfig.model_validate(block)
    places = {".".join(map(str, error["loc"])) for error in refusal.value.errors()}
    assert any(place.startswith(key) for place in places)
    assert all(place.startswith(key.split(".")[0]) for place in places)


def test_a_loss_in_two_pairs_is_refused_when_the_weighting_is_built() -> None:
    config = WeightingConfig.model_validate({"pairs": {"one": ["a", "b"], "two": ["b", "c"]}})
    with pytest.raises(ValueError, match="pair 'two': loss 'b' is already in a pair"):
        build_weighting(config, PAIRS, NAMES)


def test_every_option_says_what_it_means() -> None:
    for config in (BoxLossConfig, WeightingConfig, LossConfig):
        assert all(field.description for field in config.model_fields.values())


def test_a_loss_that_the_detector_does_not_emit_is_refused() -> None:
    config = WeightingConfig.model_validate({"pairs": {"one": ["classification", "box"]}})
    with pytest.raises(ValueError, match="pair 'one': the detector has no loss 'box'; choose"):
        build_weighting(config, PAIRS, NAMES)
