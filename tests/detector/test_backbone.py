"""Backbones: torchvision's parameters, levels and strides, what is frozen, the norms' eps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from data.errors import InputError
from detector.backbone import Backbone, build_backbone
from detector.norm import FrozenStatsBatchNorm2d, group_norm, group_norm_of_coarse_maps

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
NORMS = ("frozen", "frozen_stats", "batch", "group", "sync")
TWO_STAGE = (2, 3, 4, 5, 6)
RETINANET = (3, 4, 5, 6, 7)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def small(**options: object) -> Backbone:
    torch.manual_seed(0)
    return build_backbone("resnet18", **{"levels": RETINANET, "channels": 8, **options})


def test_parameters_are_those_of_torchvisions_retinanet() -> None:
    expected = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).backbone
    ours = build_backbone("resnet50", levels=RETINANET, norm="batch", coarse="p5")
    assert list(shapes(ours).items()) == list(shapes(expected).items())


def test_parameters_are_those_of_torchvisions_second_retinanet() -> None:
    expected = detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None).backbone
    assert shapes(build_backbone("resnet50", levels=RETINANET, norm="batch", coarse="c5")) == (
        shapes(expected)
    )


def test_parameters_are_those_of_torchvisions_faster_rcnn() -> None:
    expected = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).backbone
    assert shapes(build_backbone("resnet50", levels=TWO_STAGE, norm="batch")) == shapes(expected)


def test_parameters_are_those_of_torchvisions_faster_rcnn_with_norms_in_the_pyramid() -> None:
    expected = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).backbone
    ours = build_backbone("resnet50", levels=TWO_STAGE, norm="batch", fpn_norm="batch")
    assert shapes(ours) == shapes(expected)


def test_mobilenet_computes_what_torchvisions_does() -> None:
    model = detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
    expected = model.backbone.eval()
    ours = build_backbone("mobilenet_v3_large", levels=(5, 5, 6), norm="batch").eval()
    ours.load_state_dict(expected.state_dict())
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        pairs = zip(ours(image).values(), expected(image).values(), strict=True)
        assert all(torch.equal(ours_map, expected_map) for ours_map, expected_map in pairs)


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152", "resnet18", "resnet34"])
def test_frozen_resnets_have_torchvisions_keys_and_frozen_stages(name: str) -> None:
    expected = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name=name, weights=None, trainable_layers=2
    )
    ours = build_backbone(name, levels=TWO_STAGE, trainable_stages=2)
    assert shapes(ours) == shapes(expected)
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, parameter in expected.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("trainable", range(5))
def test_mobilenets_frozen_stages_are_torchvisions(trainable: int) -> None:
    expected = detection.backbone_utils.mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=trainable
    )
    ours = build_backbone("mobilenet_v3_large", levels=(5, 5, 6), trainable_stages=trainable)
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, parameter in expected.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large"])
def test_five_trainable_stages_are_the_whole_network(name: str) -> None:
    backbone = build_backbone(name, levels=RETINANET, trainable_stages=5, norm="batch")
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large"])
@pytest.mark.parametrize(
    ("levels", "coarse"),
    [
        ((2, 3, 4, 5), "p5"),
        ((5,), "c5"),
        ((3, 4, 5, 6), "p5"),
        ((4, 5, 6, 7), "c5"),
        ((2, 3, 4, 5, 6), "max_pool"),
    ],
)
def test_a_map_of_level_l_has_stride_two_to_the_l(
    name: str, levels: tuple[int, ...], coarse: str
) -> None:
    backbone = build_backbone(name, levels=levels, channels=12, norm="group", coarse=coarse)
    maps = backbone(torch.rand(1, 3, 128, 256))
    expected = [(1, 12, math.ceil(128 / 2**level), 256 // 2**level) for level in levels]
    assert [tuple(level.shape) for level in maps.values()] == expected
    assert backbone.lateral_names == tuple(maps)[: sum(level <= 5 for level in levels)]


def test_p6_from_c5_without_relu_is_the_papers() -> None:
    backbone = small(coarse="c5", relu_before_p7=False, norm="group")
    image = torch.rand(1, 3, 128, 128)
    maps = backbone(image)
    extra = backbone.fpn.extra_blocks
    p6 = extra.p6(list(backbone.body(image).values())[-1])
    torch.testing.assert_close(maps["p6"], p6)
    torch.testing.assert_close(maps["p7"], extra.p7(p6))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [*RESNETS, "mobilenet_v3_large"])
def test_every_norm_builds_with_every_backbone(name: str, norm: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, levels=RETINANET, norm=norm, channels=40, fpn_norm="group")
    assert backbone.out_channels == 40


def step(backbone: Backbone) -> dict[str, Tensor]:
    """One step of SGD in training mode -> the state before it."""
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    maps = backbone.train()(torch.rand(2, 3, 64, 64))
    sum(level.square().mean() for level in maps.values()).backward()
    torch.optim.SGD(trained, lr=0.1).step()
    return before


def changed(backbone: Backbone, before: dict[str, Tensor], ending: str) -> set[str]:
    state = backbone.state_dict()
    return {
        name
        for name, tensor in before.items()
        if name.endswith(ending) and not torch.equal(tensor, state[name])
    }


@pytest.mark.parametrize("norm", NORMS[:4])
def test_what_is_frozen_gets_no_gradient_and_the_rest_does(norm: str) -> None:
    backbone = small(norm=norm, trainable_stages=2)
    step(backbone)
    frozen = ("body.conv1", "body.bn1", "body.layer1", "body.layer2")
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name


def test_frozen_norms_never_change() -> None:
    backbone = small(norm="frozen", trainable_stages=5)
    before = step(backbone)
    assert isinstance(backbone.body["bn1"], FrozenBatchNorm2d)
    assert not {name for name in changed(backbone, before, "") if ".bn" in name}


def test_frozen_stats_train_scale_and_shift_but_not_the_statistics() -> None:
    backbone = small(norm="frozen_stats", trainable_stages=3)
    before = step(backbone)
    assert not changed(backbone, before, "running_mean") | changed(backbone, before, "running_var")
    trained = {name for name in changed(backbone, before, "weight") if ".bn" in name}
    assert trained
    assert all(name.startswith(("body.layer2", "body.layer3", "body.layer4")) for name in trained)


def test_frozen_stats_give_the_same_in_training_and_evaluation() -> None:
    backbone = small(norm="frozen_stats")
    image = torch.rand(2, 3, 64, 64)
    trained, evaluated = backbone.train()(image), backbone.eval()(image)
    assert all(torch.equal(trained[name], evaluated[name]) for name in trained)
    assert not any(
        layer.training for layer in backbone.train().modules() if isinstance(layer, nn.BatchNorm2d)
    )


def test_batch_norm_updates_statistics_of_trained_stages_only() -> None:
    backbone = small(norm="batch", trainable_stages=3)
    moved = changed(backbone, step(backbone), "running_mean")
    assert moved
    assert all(name.startswith(("body.layer2", "body.layer3", "body.layer4")) for name in moved)


def test_evaluation_mode_changes_no_statistics() -> None:
    backbone = small(norm="batch", trainable_stages=5).eval()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 64, 64))
    assert not changed(backbone, before, "")


def test_sync_norm_refuses_to_train_on_the_cpu_and_evaluates_there() -> None:
    backbone = small(norm="sync", trainable_stages=5)
    with pytest.raises(InputError, match=r"set batch or group instead in detector\.norm, "):
        backbone(torch.rand(2, 3, 64, 64))
    assert backbone.eval()(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (40, 8), (72, 8), (7, 1), (960, 32)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (64, 8), (48, 4), (34, 2), (16, 2), (8, 1), (7, 1)]
)
def test_groups_of_coarse_maps_hold_several_channels(channels: int, groups: int) -> None:
    assert group_norm_of_coarse_maps(channels).num_groups == groups


@pytest.mark.parametrize("norm", ["frozen", "frozen_stats"])
def test_an_eps_of_zero_survives_the_state_dict(norm: str) -> None:
    backbone = small(norm=norm)
    backbone.norm_eps = 0.0
    restored = small(norm=norm)
    restored.load_state_dict(backbone.state_dict())
    assert restored.norm_eps == 0.0
    kinds = (FrozenBatchNorm2d, FrozenStatsBatchNorm2d)
    assert {m.eps for m in restored.body.modules() if isinstance(m, kinds)} == {0.0}


def test_a_state_with_the_usual_eps_brings_it_along() -> None:
    backbone = small(norm="frozen")
    backbone.norm_eps = 0.0
    backbone.load_state_dict({}, strict=False)  # of no norms
    assert backbone.norm_eps == 0.0
    backbone.load_state_dict(small(norm="frozen").state_dict())
    assert backbone.norm_eps == 1e-5


@pytest.mark.parametrize(("levels", "lost"), [((3, 4, 5, 6), ("p7",)), ((3, 4, 5), ("p6", "p7"))])
def test_coarse_levels_that_a_pyramid_lacks_are_unexpected_in_its_state(
    levels: tuple[int, ...], lost: tuple[str, ...]
) -> None:
    state = small(levels=(3, 4, 5, 6, 7), coarse="p5").state_dict()
    keys = small(levels=levels, coarse="p5").load_state_dict(state, strict=False)
    expected = [f"fpn.extra_blocks.{name}.{part}" for name in lost for part in ("weight", "bias")]
    assert keys == ([], expected)


def test_an_eps_that_was_asked_for_stays_when_a_state_is_loaded() -> None:
    backbone = small(norm_eps=1e-5)
    backbone.load_state_dict(small(norm_eps=1e-3).state_dict())
    assert backbone.norm_eps == 1e-5
    assert "norm_eps" not in backbone.state_dict()


def test_batch_norm_of_one_value_is_refused_in_words() -> None:
    backbone = small(norm="batch", levels=(3, 4, 5))
    with pytest.raises(
        InputError, match=r"increase data\.batch_size or data\.image_size, or change"
    ):
        backbone(torch.zeros(1, 3, 32, 32))
    assert backbone(torch.zeros(2, 3, 32, 32))["2"].shape == (2, 8, 1, 1)
    assert backbone.eval()(torch.zeros(1, 3, 32, 32))["2"].shape == (1, 8, 1, 1)


def test_the_usual_eps_leaves_no_trace_in_the_state_dict() -> None:
    assert not [name for name in small().state_dict() if "eps" in name]
    assert small(norm_eps=1e-3).state_dict()["norm_eps"] == 1e-3
