"""The options of a detector. The defaults are torchvision's; the paper's values can all be set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

BackboneName = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v3_large"
]
NormName = Literal["frozen", "frozen_stats", "batch", "group", "sync"]
LayerNormName = Literal["none", "batch", "group", "sync"]
FROZEN_NORMS = ("frozen", "frozen_stats")  # whose statistics never change


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Sizes = Annotated[tuple[Positive, ...], Field(min_length=1), BeforeValidator(_one_or_more)]


def _check_thresholds(config: Any) -> Any:
    if config.background_iou > config.foreground_iou:
        raise ValueError(
            f"background_iou: {config.background_iou} is above foreground_iou "
            f"{config.foreground_iou}; lower it"
        )
    return config


def _check_levels(levels: Sequence[int], last: int) -> None:
    consecutive = all(after - before == 1 for before, after in pairwise(levels))
    if not levels or not consecutive or not 2 <= levels[0] <= 5 or not 5 <= levels[-1] <= last:
        raise ValueError(
            f"levels: {list(levels)} is no pyramid; give consecutive levels that begin at 2 to 5 "
            f"and end at 5 to {last}"
        )


def _check_sizes(sizes: Sequence[Sequence[float]], levels: Sequence[int]) -> None:
    if len(sizes) != len(levels) or len({len(level_sizes) for level_sizes in sizes}) != 1:
        raise ValueError(
            f"anchors.sizes: {len(sizes)} entries for the {len(levels)} pyramid levels "
            f"{list(levels)}; give every level an entry with the same number of sizes"
        )


class AnchorConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The anchors of every pyramid level. A size is the square root of an anchor's area."""

    sizes: tuple[Sizes, ...] | None = Field(
        default=None,
        description="anchor size in pixels of each pyramid level, finest first, or a list of "
        "sizes a level; null: RetinaNet 4 x stride (32 at P3), RPN 8 x stride (32 at P2), or 32, "
        "64, 128, 256, 512 on every map where two have the same stride (mobilenet_v3_large)",
    )
    scales_per_octave: Annotated[int, Field(ge=1, le=16)] | None = Field(
        default=None,
        description="scales n: each size also times 2^(1/n), 2^(2/n) ...; null: RetinaNet 3, RPN 1",
    )
    ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        default=(0.5, 1.0, 2.0), description="height over width of the anchors of each size"
    )
    rounded: bool = Field(
        default=True,
        description="true: torchvision's anchors (sizes rounded down, corners to whole pixels, "
        "stride = image size // grid size); false: exact sizes and strides, as in the paper",
    )


class RetinaNetConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What only RetinaNet has."""

    p6_from: Literal["p5", "c5"] = Field(
        default="p5",
        description="P6 is made from the pyramid's P5 (torchvision) or from C5 (the paper)",
    )
    relu_before_p7: bool = Field(
        default=True, description="a ReLU between P6 and P7 (torchvision: true, the paper: false)"
    )
    tower_depth: Annotated[int, Field(ge=1, le=16)] = Field(
        default=4, description="3x3 convolutions before the last one, in each of the two heads"
    )
    head_norm: LayerNormName = Field(
        default="none",
        description="normalization in the heads; small detectors from scratch need one",
    )
    prior_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.01,
        description="score of every class at the start of training (sets the last bias)",
    )
    foreground_iou: Fraction = Field(
        default=0.5, description="an anchor from this IoU on is positive"
    )
    background_iou: Fraction = Field(
        default=0.4, description="an anchor below this IoU is negative"
    )
    low_quality_matches: bool = Field(
        default=True, description="the best anchors of each object are positive whatever their IoU"
    )
    focal_alpha: Fraction = Field(default=0.25, description="focal loss: the weight of positives")
    focal_gamma: Annotated[float, Field(ge=0, le=100)] = Field(
        default=2.0, description="focal loss: the exponent by which easy examples count less"
    )
    topk_candidates: Count = Field(
        default=1000, description="best predictions of each pyramid level that go into NMS"
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RetinaNetConfig:
        return _check_thresholds(self)


class RPNConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The region proposal network of Faster and Mask R-CNN."""

    conv_depth: Annotated[int, Field(ge=1, le=16)] = Field(
        default=1, description="3x3 convolutions before the two outputs"
    )
    foreground_iou: Fraction = Field(
        default=0.7, description="an anchor from this IoU on is positive"
    )
    background_iou: Fraction = Field(
        default=0.3, description="an anchor below this IoU is negative"
    )
    low_quality_matches: bool = Field(
        default=True, description="the best anchors of each object are positive whatever their IoU"
    )
    batch_size_per_image: Count = Field(default=256, description="anchors sampled in an image")
    positive_fraction: Fraction = Field(
        default=0.5, description="largest share of positives among the sampled"
    )
    pre_nms_top_n_train: Count = Field(
        default=2000, description="proposals a level before NMS, training"
    )
    pre_nms_top_n_test: Count = Field(
        default=1000, description="proposals a level before NMS, test"
    )
    post_nms_top_n_train: Count = Field(
        default=2000, description="proposals an image after NMS, training (the paper: 1000)"
    )
    post_nms_top_n_test: Count = Field(
        default=1000, description="proposals an image after NMS, test"
    )
    nms_threshold: Fraction = Field(
        default=0.7, description="IoU above which a proposal is suppressed"
    )
    score_threshold: Fraction = Field(
        default=0.0,
        description="proposals below this score are dropped (torchvision's on mobilenet_v3_large: "
        "0.05)",
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RPNConfig:
        return _check_thresholds(self)


class RoIConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The box head of Faster and Mask R-CNN."""

    foreground_iou: Fraction = Field(
        default=0.5, description="a proposal from this IoU on is positive"
    )
    background_iou: Fraction = Field(
        default=0.5, description="a proposal below this IoU is negative"
    )
    batch_size_per_image: Count = Field(default=512, description="proposals sampled in an image")
    positive_fraction: Fraction = Field(
        default=0.25, description="largest share of positives among the sampled"
    )
    box_weights: tuple[Positive, Positive, Positive, Positive] = Field(
        default=(10.0, 10.0, 5.0, 5.0), description="factors of the encoded (x, y, w, h) deltas"
    )
    pool_size: Count = Field(default=7, description="bins a side of RoIAlign for boxes")
    sampling_ratio: Count = Field(
        default=2, description="RoIAlign's sampling points a bin and side"
    )
    representation_size: Count = Field(default=1024, description="width of the two linear layers")

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RoIConfig:
        return _check_thresholds(self)


class MaskConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The mask head of Mask R-CNN."""

    pool_size: Count = Field(
        default=14, description="bins a side of RoIAlign for masks (a mask has twice)"
    )
    sampling_ratio: Count = Field(
        default=2, description="RoIAlign's sampling points a bin and side"
    )
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        default=(256, 256, 256, 256), description="width of each 3x3 convolution"
    )
    predictor_channels: Count = Field(default=256, description="width of the upsampling layer")


class DetectorConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """A detector: its kind, its backbone and pyramid, its heads, what it returns."""

    type: Literal["retinanet", "faster_rcnn", "mask_rcnn"] = Field(
        default="retinanet", description="the kind of detector"
    )
    backbone: BackboneName = Field(default="resnet50", description="the network below the pyramid")
    weights: Annotated[str, AfterValidator(os.path.expanduser)] = Field(
        default="imagenet",
        min_length=1,
        description="imagenet (the backbone: torchvision's IMAGENET1K_V1), coco (the whole "
        "detector, on resnet50: torchvision's COCO_V1), none, or a .pth or .safetensors file of a "
        "backbone or of a whole detector",
    )
    trainable_stages: Annotated[int, Field(ge=0, le=5)] = Field(
        default=3,
        description="stages of the backbone that are trained, counted from the last; 5: all",
    )
    norm: NormName = Field(
        default="frozen",
        description="the backbone's normalization: frozen (nothing trained), frozen_stats "
        "(statistics frozen, scale and shift trained: the paper), batch, group, sync",
    )
    norm_eps: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="eps of the backbone's normalization; null: that of the weights or the "
        "checkpoint, 1e-5, or 0 where torchvision's COCO_V1 detectors were trained with 0; 0 is "
        "for the frozen ones. A file of your own of torchvision's ResNet-50 detector with frozen "
        "norms and 91 classes cannot be told from COCO_V1: set 1e-5 for it; for one that was "
        "fine-tuned from COCO_V1 to other classes, set 0. mobilenet_v3_large's ImageNet weights "
        "were trained with 1e-3, and are used with 1e-5, as in torchvision's detectors",
    )
    fpn_channels: Count = Field(
        default=256, description="width of the pyramid and of the heads on it"
    )
    fpn_norm: LayerNormName = Field(default="none", description="normalization in the pyramid")
    levels: tuple[int, ...] | None = Field(
        default=None,
        description="pyramid levels, level l has stride 2^l; null: RetinaNet [3, 4, 5, 6, 7], "
        "Faster and Mask R-CNN [2, 3, 4, 5, 6], on mobilenet_v3_large [5, 5, 6]",
    )
    anchors: AnchorConfig = Field(default_factory=AnchorConfig, description="the anchors")
    head_init: Literal["torchvision", "width"] = Field(
        default="torchvision",
        description="initialization of the heads' convolutions: normal with std 0.01 (made for "
        "256 channels), or fitted to their width (He)",
    )
    retinanet: RetinaNetConfig = Field(
        default_factory=RetinaNetConfig, description="RetinaNet alone"
    )
    rpn: RPNConfig = Field(
        default_factory=RPNConfig, description="Faster and Mask R-CNN: proposals"
    )
    roi: RoIConfig = Field(default_factory=RoIConfig, description="Faster and Mask R-CNN: box head")
    mask: MaskConfig = Field(default_factory=MaskConfig, description="Mask R-CNN: mask head")
    score_threshold: Fraction = Field(
        default=0.05, description="detections must score more than this"
    )
    nms_threshold: Fraction = Field(
        default=0.5,
        description="IoU above which a lower-scoring detection of the class is suppressed",
    )
    detections_per_image: Count = Field(
        default=100, description="largest number of detections in an image"
    )
    channels_last: bool = Field(
        default=True,
        description="keep images and convolutions in channels-last memory order: the same numbers "
        "up to rounding, sooner",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="on a GPU, record the passes of each image size and launch them as one: the "
        "same numbers, sooner for small batches; not with the weighting gradnorm",
    )

    @property
    def pyramid_levels(self) -> tuple[int, ...]:
        """The level of each feature map, finest first; map of level l has stride 2^l."""
        if self.levels is not None:
            return self.levels
        if self.type == "retinanet":
            return (3, 4, 5, 6, 7)
        # torchvision's Faster R-CNN on MobileNetV3 reads two maps of stride 32
        return (5, 5, 6) if self.backbone == "mobilenet_v3_large" else (2, 3, 4, 5, 6)

    @model_validator(mode="after")
    def _coco_weights_are_published(self) -> DetectorConfig:
        if self.weights == "coco" and self.backbone != "resnet50":
            raise ValueError(
                f"weights: coco is on resnet50 alone, not on {self.backbone}; choose backbone: "
                "resnet50, weights: imagenet, or a file"
            )
        return self

    @model_validator(mode="after")
    def _eps_fits_norm(self) -> DetectorConfig:
        if self.norm_eps == 0 and self.norm not in FROZEN_NORMS:
            raise ValueError(
                f"norm_eps: 0 lets norm: {self.norm} divide by zero; leave it out, or choose "
                f"norm: {' or '.join(FROZEN_NORMS)}"
            )
        return self

    @model_validator(mode="after")
    def _pyramid_is_possible(self) -> DetectorConfig:
        if self.levels is not None:
            _check_levels(self.levels, last=7 if self.type == "retinanet" else 6)
        if self.anchors.sizes is not None:
            _check_sizes(self.anchors.sizes, self.pyramid_levels)
        return self
