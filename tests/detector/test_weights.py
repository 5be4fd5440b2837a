"""Weights: what a file holds ends in the right place of a detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model
from torchvision.ops import FrozenBatchNorm2d

from data.errors import InputError
from detector.build import Detector, build_detector
from detector.config import DetectorConfig
from detector.pretrained.class_rows import COCO_ROWS
from detector.pretrained.weights import PretrainedReport, load_pretrained
from losses.config import LossConfig

COCO_CLASSES = tuple(name for name in COCO_ROWS if name not in ("__background__", "N/A"))
BUILDERS = {
    "retinanet": detection.retinanet_resnet50_fpn,
    "faster_rcnn": detection.fasterrcnn_resnet50_fpn,
    "mask_rcnn": detection.maskrcnn_resnet50_fpn,
}
SMALL = {"backbone": "resnet18", "fpn_channels": 8}


def start(
    classes: tuple[str, ...] = ("a", "b"), **options: object
) -> tuple[Detector, PretrainedReport]:
    """Build a detector and load its weights, as at the start of a training."""
    config = DetectorConfig.model_validate(options)
    torch.manual_seed(1)
    detector = build_detector(config, LossConfig(), len(classes))
    return detector, load_pretrained(detector, config, classes)


def save_published(kind: str, path: Path) -> dict[str, Tensor]:
    """A file such as torchvision publishes: 91 rows, norms that never counted batches."""
    torch.manual_seed(0)
    state = BUILDERS[kind](weights=None, weights_backbone=None, num_classes=91).state_dict()
    state = {name: x for name, x in state.items() if not name.endswith("num_batches_tracked")}
    for name, tensor in state.items():
        if name.endswith(("running_var", "running_mean", "bias")):
            tensor.uniform_(0.5, 1.5)
    torch.save(state, path)
    return state


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("published")
    return {
        kind: (folder / f"{kind}.pth", save_published(kind, folder / f"{kind}.pth"))
        for kind in BUILDERS
    }


def rows_of(layer: Tensor, classes: int, side_by_side: int = 1) -> Tensor:
    return layer.view(-1, classes, side_by_side, *layer.shape[1:])


CLASS_LAYERS = {
    "retinanet": {"head.classification_head.cls_logits": 1},
    "faster_rcnn": {
        "roi_heads.box_predictor.cls_score": 1,
        "roi_heads.box_predictor.bbox_pred": 4,
    },
    "mask_rcnn": {
        "roi_heads.box_predictor.cls_score": 1,
        "roi_heads.box_predictor.bbox_pred": 4,
        "roi_heads.mask_predictor.mask_fcn_logits": 1,
    },
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_published_detector_gives_each_class_its_row_by_name(kind: str, published: Any) -> None:
    path, state = published[kind]
    classes = ("toothbrush", "unicorn", "person")
    detector, report = start(classes, type=kind, weights=str(path))
    assert report.classes_kept == ("toothbrush", "person")
    assert report.reinitialized == ("class unicorn",)
    assert report.unused == ()
    assert report.loaded == len(state)
    names = classes if kind == "retinanet" else ("__background__", *classes)
    own = detector.state_dict()
    for layer, side_by_side in CLASS_LAYERS[kind].items():
        for part in (f"{layer}.weight", f"{layer}.bias"):
            ours = rows_of(own.pop(part), len(names), side_by_side)
            theirs = rows_of(state[part], len(COCO_ROWS), side_by_side)
            equal = [
                name in COCO_ROWS and torch.equal(ours[:, index], theirs[:, COCO_ROWS.index(name)])
                for index, name in enumerate(names)
            ]
            assert equal == [name != "unicorn" for name in names]
    del own["backbone.norm_eps"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())


def test_all_80_classes_of_a_published_detector_are_kept(published: Any) -> None:
    _, report = start(COCO_CLASSES, weights=str(published["retinanet"][0]))
    assert report.classes_kept == COCO_CLASSES
    assert len(COCO_CLASSES) == 80
    assert report.reinitialized == report.unused == ()


def test_a_published_detector_detects_as_torchvisions_does(published: Any) -> None:
    path, state = published["retinanet"]
    detector, report = start(COCO_CLASSES, weights=str(path), score_threshold=0.0)
    assert report.norm_eps == 0
    peer = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    peer.load_state_dict(state, strict=False)
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30  # as good as 0, which older PyTorch refuses
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        ours = list(detector.eval().backbone(image).values())
        theirs = list(peer.eval().backbone(image).values())
        logits = detector.head(ours)["cls_logits"]
        expected = peer.head(theirs)["cls_logits"]
    for our_map, their_map in zip(ours, theirs, strict=True):
        assert float((our_map - their_map).abs().max()) < 1e-5 * float(their_map.abs().max())
    indices = [COCO_ROWS.index(name) for name in COCO_CLASSES]
    difference = (logits - expected[..., indices]).abs().max()
    assert float(difference) < 1e-5 * float(expected.abs().max())


def test_the_eps_of_a_published_detector_survives_a_checkpoint(published: Any) -> None:
    detector, _ = start(("cat",), weights=str(published["retinanet"][0]))
    restored = build_detector(DetectorConfig(), LossConfig(), 1)
    restored.load_state_dict(detector.state_dict())
    eps = {m.eps for m in restored.modules() if isinstance(m, FrozenBatchNorm2d)}
    assert eps == {0.0}


@pytest.mark.parametrize(("norm", "eps"), [("frozen_stats", 0.0), ("batch", 1e-5)])
def test_the_eps_of_zero_is_for_frozen_statistics(norm: str, eps: float, published: Any) -> None:
    _, report = start(("cat",), weights=str(published["retinanet"][0]), norm=norm)
    assert report.norm_eps == eps


@pytest.mark.parametrize(("norm", "eps"), [("frozen_stats", 0.0), ("batch", 1e-5), ("group", 1e-5)])
def test_an_eps_of_zero_of_our_own_file_is_for_frozen_statistics(
    norm: str, eps: float, tmp_path: Path
) -> None:
    config = DetectorConfig(norm="group" if norm == "group" else "frozen", **SMALL)
    first = build_detector(config, LossConfig(), 1)
    first.backbone.norm_eps = 0.0
    torch.save({"detector": first.state_dict(), "classes": ["a"]}, tmp_path / "best.pt")
    detector, report = start(("a",), weights=str(tmp_path / "best.pt"), norm=norm, **SMALL)
    assert report.norm_eps == detector.backbone.norm_eps == eps


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ()),
        ({"anchors": {"sizes": [16, 32, 64, 128, 256]}}, ("anchors.sizes null, here [[16",)),
        ({"anchors": {"sizes": [32, 64, 128, 256, 512], "scales_per_octave": 3}}, ()),  # the same
        ({"levels": [3, 4, 5, 6], "roi": {"box_weights": [1, 1, 1, 1]}}, ()),  # RetinaNet has none
        (
            {"type": "faster_rcnn", "levels": [3, 4, 5], "anchors": {"ratios": [1]}},
            (),
        ),  # no head of it
    ],
)
def test_what_a_checkpoint_s_layers_meant_otherwise_is_told(
    options: dict[str, Any], told: tuple[str, ...], tmp_path: Path
) -> None:
    config = DetectorConfig(**SMALL)
    first = build_detector(config, LossConfig(), 1)
    saved = {"classes": ["a"], "config": {"detector": config.model_dump(mode="json")}}
    torch.save({"detector": first.state_dict(), **saved}, tmp_path / "best.pt")
    _, report = start(("a",), weights=str(tmp_path / "best.pt"), **SMALL, **options)
    assert len(report.trained_with) == len(told)
    assert all(a.startswith(b) for a, b in zip(report.trained_with, told, strict=True))


def test_a_configured_eps_wins(published: Any) -> None:
    _, report = start(("cat",), weights=str(published["retinanet"][0]), norm_eps=1e-3)
    assert report.norm_eps == 1e-3


def test_the_layout_of_older_files_is_understood(published: Any, tmp_path: Path) -> None:
    _, state = published["retinanet"]
    renamed = {}
    for name, tensor in state.items():
        for index in range(4):
            name = name.replace(f"_head.conv.{index}.0.", f"_head.conv.{2 * index}.")
            name = name.replace(f"blocks.{index}.0.", f"blocks.{index}.")
        renamed[name] = tensor
    torch.save(renamed, tmp_path / "old.pth")
    detector, report = start(COCO_CLASSES, weights=str(tmp_path / "old.pth"))
    assert report.reinitialized == report.unused == ()
    own = detector.state_dict()
    name = "head.regression_head.conv.3.0.weight"
    assert torch.equal(own[name], state[name])


def test_a_mask_head_that_the_file_lacks_is_listed(published: Any) -> None:
    _, report = start(("cat",), type="mask_rcnn", weights=str(published["faster_rcnn"][0]))
    assert report.reinitialized
    assert all(name.startswith("roi_heads.mask_") for name in report.reinitialized)
    assert "roi_heads.mask_head" in str(report)


def test_a_mask_head_without_a_place_is_listed(published: Any) -> None:
    _, report = start(("cat",), type="faster_rcnn", weights=str(published["mask_rcnn"][0]))
    assert report.reinitialized == ()
    assert all(name.startswith("roi_heads.mask_") for name in report.unused)


def test_safetensors_are_read(published: Any, tmp_path: Path) -> None:
    _, state = published["retinanet"]
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    _, report = start(("cat",), weights=str(tmp_path / "weights.safetensors"))
    assert report.classes_kept == ("cat",)


def test_an_exported_file_gives_its_classes_by_name_also_91_of_them(tmp_path: Path) -> None:
    """Whose rows are not torchvision's 91: ``person`` stands elsewhere there."""
    options = {**SMALL, "trainable_stages": 5, "norm": "batch"}
    names = (*(f"class {number}" for number in range(90)), "person")
    first, _ = start(names, weights="none", **options)
    path = tmp_path / "best.safetensors"
    metadata = {"classes": json.dumps(names), "detector": "retinanet"}
    state = {name: tensor.contiguous() for name, tensor in first.state_dict().items()}
    safetensors.torch.save_file(state, path, metadata)
    second, report = start(("person", "dog", "class 3"), weights=str(path), **options)
    assert report.classes_kept == ("person", "class 3")
    assert report.reinitialized == ("class dog",)
    part = "head.classification_head.cls_logits.weight"
    ours, theirs = rows_of(second.state_dict()[part], 3), rows_of(first.state_dict()[part], 91)
    assert torch.equal(ours[:, [0, 2]], theirs[:, [90, 3]])


@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_our_own_checkpoint_gives_its_classes_by_name(kind: str, tmp_path: Path) -> None:
    options = {**SMALL, "type": kind, "trainable_stages": 5, "norm": "batch"}
    first, _ = start(("a", "b", "c"), weights="none", **options)
    first.backbone.norm_eps = 1e-4
    path = tmp_path / "best.pt"
    torch.save({"version": 1, "detector": first.state_dict(), "classes": ["a", "b", "c"]}, path)
    second, report = start(("c", "z", "a"), weights=str(path), **options)
    assert report.classes_kept == ("c", "a")
    assert report.reinitialized == ("class z",)
    assert report.norm_eps == 1e-4
    layer = "head.classification_head.cls_logits"
    if kind == "faster_rcnn":
        layer = "roi_heads.box_predictor.cls_score"
    extra = int(kind == "faster_rcnn")
    ours = rows_of(second.state_dict()[f"{layer}.weight"], 3 + extra)
    theirs = rows_of(first.state_dict()[f"{layer}.weight"], 3 + extra)
    assert torch.equal(ours[:, extra], theirs[:, extra + 2])
    assert torch.equal(ours[:, extra + 2], theirs[:, extra])


def test_a_detector_of_unnamed_classes_gives_all_but_the_class_rows(tmp_path: Path) -> None:
    options = {**SMALL, "trainable_stages": 5, "norm": "batch"}
    first, _ = start(("a", "b"), weights="none", **options)
    torch.save(
        {"model": {f"module.{k}": v for k, v in first.state_dict().items()}}, tmp_path / "x.pth"
    )
    second, report = start(("a", "b"), weights=str(tmp_path / "x.pth"), **options)
    assert report.classes_kept == ()
    assert report.reinitialized == ("head.classification_head.cls_logits", "class a", "class b")
    name = "head.regression_head.bbox_reg.weight"
    assert torch.equal(second.state_dict()[name], first.state_dict()[name])


def test_no_class_is_called_kept_where_the_heads_are_of_another_kind(tmp_path: Path) -> None:
    options = {**SMALL, "trainable_stages": 5, "norm": "batch"}
    first, _ = start(("a", "b"), weights="none", type="faster_rcnn", **options)
    path = tmp_path / "best.pt"
    torch.save({"version": 1, "detector": first.state_dict(), "classes": ["a", "b"]}, path)
    options["levels"] = [2, 3, 4, 5, 6]  # or the pyramids would differ
    _, report = start(("a", "b"), weights=str(path), type="retinanet", **options)
    assert report.classes_kept == ()
    assert {"class a", "class b", "head.classification_head.cls_logits"} <= {*report.reinitialized}
    assert "heads kept" not in str(report)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large"])
def test_a_classification_network_fills_the_backbone(name: str, tmp_path: Path) -> None:
    network = get_model(name, weights=None)
    torch.save(network.state_dict(), tmp_path / "network.pth")
    detector, report = start(backbone=name, weights=str(tmp_path / "network.pth"))
    assert report.reinitialized == ("pyramid", "heads")
    body = detector.backbone.body.state_dict()
    source = network.features if name == "mobilenet_v3_large" else network
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in body.items())


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("resnet18", {"backbone": "resnet34"}, "backbone=resnet34"),
        ("resnet34", {"backbone": "resnet18"}, "backbone=resnet18"),
        ("resnet18", {"backbone": "resnet50"}, "size mismatch"),
        ("resnet18", {"backbone": "mobilenet_v3_large"}, "backbone=mobilenet_v3_large"),
        ("resnet18", {"backbone": "resnet18", "norm": "group"}, "group norm"),
    ],
)
def test_a_network_of_another_kind_is_refused(
    file: str, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    torch.save(get_model(file, weights=None).state_dict(), tmp_path / "network.pth")
    with pytest.raises(InputError, match=message) as raised:
        start(weights=str(tmp_path / "network.pth"), **options)
    assert "\n" not in str(raised.value)


def test_a_detector_of_another_kind_is_refused(published: Any) -> None:
    with pytest.raises(InputError, match="size mismatch"):
        start(("cat",), type="faster_rcnn", weights=str(published["retinanet"][0]))
    for options in ({"fpn_channels": 64}, {"anchors": {"scales_per_octave": 1}}):
        with pytest.raises(InputError, match="fpn_channels and anchors"):
            start(("cat",), weights=str(published["retinanet"][0]), **options)


@pytest.mark.parametrize(
    ("kind", "given", "own", "cure"),
    [
        ("faster_rcnn", {"fpn_norm": "batch"}, {}, "detector.fpn_norm"),
        ("faster_rcnn", {}, {"fpn_norm": "group"}, "detector.fpn_norm"),
        ("faster_rcnn", {"fpn_norm": "batch"}, {"fpn_norm": "group"}, "detector.fpn_norm"),
        ("faster_rcnn", {"rpn": {"conv_depth": 2}}, {}, "detector.rpn.conv_depth"),
        ("retinanet", {"retinanet": {"head_norm": "group"}}, {}, "detector.retinanet.head_norm"),
        ("retinanet", {}, {"retinanet": {"tower_depth": 5}}, "detector.retinanet.tower_depth"),
        ("mask_rcnn", {"mask": {"channels": [8, 8]}}, {"mask": {"channels": [8]}}, "mask.channels"),
    ],
)
def test_a_file_with_other_layers_in_a_block_is_refused(
    kind: str, given: dict[str, Any], own: dict[str, Any], cure: str, tmp_path: Path
) -> None:
    options = {**SMALL, "fpn_channels": 32, "trainable_stages": 5, "norm": "batch", "type": kind}
    first, _ = start(weights="none", **{**options, **given})
    torch.save(first.state_dict(), tmp_path / "detector.pth")
    options["weights"] = str(tmp_path / "detector.pth")
    with pytest.raises(InputError, match=cure.replace(".", r"\.")) as raised:
        start(**{**options, **own})
    assert "detector.pth does not fit: the " in str(raised.value)
    assert start(**{**options, **given})[1].unused == ()


def test_a_second_version_of_torchvision_needs_its_norms_and_its_depth(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    torch.save(theirs.state_dict(), tmp_path / "v2.pth")
    options: dict[str, Any] = {"type": "faster_rcnn", "weights": str(tmp_path / "v2.pth")}
    with pytest.raises(InputError, match="fpn_norm"):
        start(("cat",), **options)
    with pytest.raises(InputError, match="conv_depth"):
        start(("cat",), fpn_norm="batch", **options)
    fitting: dict[str, Any] = {"fpn_norm": "batch", "rpn": {"conv_depth": 2}, **options}
    with pytest.raises(InputError, match=r"not roi_heads\.box_head\.fc6\.weight, .*v2; use only"):
        start(("cat",), **fitting)
    ours, report = start(("cell",), **fitting)  # of which the file has no rows
    heads = {name.rpartition(".")[0] for name in report.reinitialized if "." in name}
    assert heads == {"roi_heads.box_head", "roi_heads.box_predictor"}
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        maps = ours.eval().backbone(image)
        expected = theirs.eval().backbone(image)
    for level, own_map in zip(expected.values(), maps.values(), strict=True):
        assert float((level - own_map).abs().max()) < 1e-5 * float(level.abs().max())


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "frozen", "trainable_stages": 5},
        {"norm": "frozen_stats", "trainable_stages": 5},
        {"norm": "batch", "trainable_stages": 4},
    ],
)
def test_frozen_layers_with_random_weights_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"detector\.weights=imagenet") as raised:
        start(weights="none", **SMALL, **options)
    assert "\n" not in str(raised.value)


def test_nothing_frozen_needs_no_weights() -> None:
    _, report = start(weights="none", trainable_stages=5, norm="batch", **SMALL)
    assert str(report) == "weights: none: random initialization, norm eps 1e-05"


def test_imagenet_reads_torchvisions_first_weights_from_its_cache(cache: Path) -> None:
    network = get_model("resnet18", weights=None)
    cache.mkdir(parents=True)
    torch.save(network.state_dict(), cache / "resnet18-f37072fd.pth")
    detector, report = start(weights="imagenet", **SMALL)
    assert report.source == str(cache / "resnet18-f37072fd.pth")
    assert report.norm_eps == 1e-5
    assert torch.equal(detector.backbone.body["conv1"].weight, network.conv1.weight)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("retinanet", "retinanet_resnet50_fpn_coco-eeacb38b.pth"),
        ("faster_rcnn", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
        ("mask_rcnn", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"),
    ],
)
def test_coco_is_torchvisions_whole_detector(
    kind: str, file: str, published: Any, cache: Path
) -> None:
    path, _ = published[kind]
    cache.mkdir(parents=True)
    (cache / file).hardlink_to(path)
    _, report = start(("cat", "unicorn"), weights="coco", type=kind)
    assert report.source == str(cache / file)
    assert report.classes_kept == ("cat",)
    assert report.reinitialized == ("class unicorn",)


def test_coco_has_no_other_backbones() -> None:
    with pytest.raises(ValueError, match="coco exists only for resnet50, not for resnet18"):
        DetectorConfig(weights="coco", backbone="resnet18")


def test_a_detector_whose_p6_reads_another_map_names_the_key(published: Any) -> None:
    path, _ = published["retinanet"]
    with pytest.raises(InputError, match=r"retinanet\.p6_from"):
        start(("cat",), weights=str(path), retinanet={"p6_from": "c5"})
