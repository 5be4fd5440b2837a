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


def _as_tuple(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Sizes = Annotated[tuple[Positive, ...], Field(min_length=1), BeforeValidator(_as_tuple)]


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
            f"levels: {list(levels)} is not a pyramid; give consecutive levels, the first from 2 "
            f"to 5, the last from 5 to {last}"
        )


def _check_sizes(sizes: Sequence[Sequence[float]], levels: Sequence[int]) -> None:
    if len(sizes) != len(levels) or len({len(level_sizes) for level_sizes in sizes}) != 1:
        raise ValueError(
            f"anchors.sizes: {len(sizes)} entries for the {len(levels)} pyramid levels "
            f"{list(levels)}; give one entry per level, each with the same number of sizes"
        )


class AnchorConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The anchors of every pyramid level. A size is the square root of an anchor's area."""

    sizes: tuple[Sizes, ...] | None = Field(
        default=None,
        description="anchor size(s) in pixels per pyramid level, finest first; null: RetinaNet "
        "4 x stride, RPN 8 x stride, or 32, 64, ..., 512 each if strides repeat "
        "(mobilenet_v3_large)",
    )
    scales_per_octave: Annotated[int, Field(ge=1, le=16)] | None = Field(
        default=None,
        description="scales per octave n: each size is also multiplied by 2^(1/n), 2^(2/n), ...; "
        "null: RetinaNet 3, RPN 1",
    )
    ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        default=(0.5, 1.0, 2.0), description="aspect ratios (height / width) of each anchor size"
    )
    rounded: bool = Field(
        default=True,
        description="true: torchvision's anchors (sizes rounded down, corners to whole pixels, "
        "stride = image size // grid size); false: exact sizes and strides, as in the paper",
    )


class RetinaNetConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Options of RetinaNet."""

    p6_from: Literal["p5", "c5"] = Field(
        default="p5",
        description="source of P6: p5, of the pyramid (torchvision), or c5, of the backbone (the "
        "paper)",
    )
    relu_before_p7: bool = Field(
        default=True,
        description="apply a ReLU between P6 and P7 (torchvision: true, the paper: false)",
    )
    tower_depth: Annotated[int, Field(ge=1, le=16)] = Field(
        default=4, description="3x3 convolutions before the output layer of each of the two heads"
    )
    head_norm: LayerNormName = Field(
        default="none",
        description="normalization of the heads: none, batch, group or sync (synchronized batch); "
        "small detectors trained from scratch need one",
    )
    prior_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.01,
        description="initial score of every class (sets the bias of the output layer)",
    )
    foreground_iou: Fraction = Field(
        default=0.5, description="anchors with at least this IoU are positive"
    )
    background_iou: Fraction = Field(default=0.4, description="anchors below this IoU are negative")
    low_quality_matches: bool = Field(
        default=True,
        description="make the best anchors of each object positive, whatever their IoU",
    )
    focal_alpha: Fraction = Field(default=0.25, description="focal loss: weight of the positives")
    focal_gamma: Annotated[float, Field(ge=0, le=100)] = Field(
        default=2.0, description="focal loss: exponent that down-weights easy examples"
    )
    topk_candidates: Count = Field(
        default=1000, description="highest-scoring predictions per pyramid level that enter NMS"
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RetinaNetConfig:
        return _check_thresholds(self)


class RPNConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The region proposal network of Faster and Mask R-CNN."""

    conv_depth: Annotated[int, Field(ge=1, le=16)] = Field(
        default=1, description="3x3 convolutions before the two output layers"
    )
    foreground_iou: Fraction = Field(
        default=0.7, description="anchors with at least this IoU are positive"
    )
    background_iou: Fraction = Field(default=0.3, description="anchors below this IoU are negative")
    low_quality_matches: bool = Field(
        default=True,
        description="make the best anchors of each object positive, whatever their IoU",
    )
    batch_size_per_image: Count = Field(default=256, description="anchors sampled per image")
    positive_fraction: Fraction = Field(
        default=0.5, description="maximum fraction of positives among the sampled anchors"
    )
    pre_nms_top_n_train: Count = Field(
        default=2000, description="proposals per level before NMS, in training"
    )
    pre_nms_top_n_test: Count = Field(
        default=1000, description="proposals per level before NMS, at test time"
    )
    post_nms_top_n_train: Count = Field(
        default=2000, description="proposals per image after NMS, in training (the paper: 1000)"
    )
    post_nms_top_n_test: Count = Field(
        default=1000, description="proposals per image after NMS, at test time"
    )
    nms_threshold: Fraction = Field(
        default=0.7, description="NMS: IoU above which a lower-scoring proposal is suppressed"
    )
    score_threshold: Fraction = Field(
        default=0.0,
        description="discard proposals below this score (torchvision on mobilenet_v3_large: 0.05)",
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RPNConfig:
        return _check_thresholds(self)


class RoIConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The box head of Faster and Mask R-CNN."""

    foreground_iou: Fraction = Field(
        default=0.5, description="proposals with at least this IoU are positive"
    )
    background_iou: Fraction = Field(
        default=0.5, description="proposals below this IoU are negative"
    )
    batch_size_per_image: Count = Field(default=512, description="proposals sampled per image")
    positive_fraction: Fraction = Field(
        default=0.25, description="maximum fraction of positives among the sampled proposals"
    )
    box_weights: tuple[Positive, Positive, Positive, Positive] = Field(
        default=(10.0, 10.0, 5.0, 5.0), description="factors of the encoded (x, y, w, h) deltas"
    )
    pool_size: Count = Field(default=7, description="RoIAlign for boxes: bins per side")
    sampling_ratio: Count = Field(
        default=2, description="RoIAlign for boxes: sampling points per bin along each side"
    )
    representation_size: Count = Field(
        default=1024, description="width of the two fully connected layers"
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RoIConfig:
        return _check_thresholds(self)


class MaskConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The mask head of Mask R-CNN."""

    pool_size: Count = Field(
        default=14, description="RoIAlign for masks: bins per side (masks have twice as many)"
    )
    sampling_ratio: Count = Field(
        default=2, description="RoIAlign for masks: sampling points per bin along each side"
    )
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        default=(256, 256, 256, 256), description="channels of each 3x3 convolution"
    )
    predictor_channels: Count = Field(default=256, description="channels of the upsampling layer")


class DetectorConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """A detector: its architecture, backbone and pyramid, its heads, and what it returns."""

    type: Literal["retinanet", "faster_rcnn", "mask_rcnn"] = Field(
        default="retinanet", description="detector architecture"
    )
    backbone: BackboneName = Field(default="resnet50", description="backbone network")
    weights: Annotated[str, AfterValidator(os.path.expanduser)] = Field(
        default="imagenet",
        min_length=1,
        description="imagenet (the backbone: torchvision's IMAGENET1K_V1), coco (the detector: "
        "torchvision's COCO_V1, resnet50 only), none, or a .pth or .safetensors file of a "
        "backbone or detector",
    )
    trainable_stages: Annotated[int, Field(ge=0, le=5)] = Field(
        default=3,
        description="backbone stages to train, counted from the last; 5: all",
    )
    norm: NormName = Field(
        default="frozen",
        description="normalization of the backbone: frozen (nothing trained), frozen_stats "
        "(statistics frozen, scale and shift trained, as in the paper), batch, group or sync "
        "(synchronized batch)",
    )
    # With null, a file of your own of torchvision's ResNet-50 detector with frozen norms and 91
    # classes cannot be told from COCO_V1 and gets 0. mobilenet_v3_large's ImageNet weights were
    # trained with 1e-3, and are used with 1e-5, as in torchvision's detectors.
    norm_eps: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="eps of the backbone's normalization, 0 only with frozen norms; null: that of "
        "the weights or checkpoint (1e-5, torchvision's COCO_V1: 0); for detector files of your "
        "own set 0 if fine-tuned from COCO_V1, else 1e-5",
    )
    fpn_channels: Count = Field(
        default=256, description="channels of the pyramid and of the heads on it"
    )
    fpn_norm: LayerNormName = Field(
        default="none",
        description="normalization of the pyramid: none, batch, group or sync (synchronized batch)",
    )
    levels: tuple[int, ...] | None = Field(
        default=None,
        description="pyramid levels; level l has stride 2^l; null: RetinaNet [3, 4, 5, 6, 7], "
        "Faster and Mask R-CNN [2, 3, 4, 5, 6], or [5, 5, 6] on mobilenet_v3_large",
    )
    anchors: AnchorConfig = Field(default_factory=AnchorConfig, description="anchors")
    head_init: Literal["torchvision", "width"] = Field(
        default="torchvision",
        description="initialization of the heads' convolutions: torchvision (normal with std 0.01, "
        "made for 256 channels) or width (He, scaled to the number of channels)",
    )
    retinanet: RetinaNetConfig = Field(
        default_factory=RetinaNetConfig, description="options of RetinaNet"
    )
    rpn: RPNConfig = Field(
        default_factory=RPNConfig,
        description="options of Faster and Mask R-CNN: region proposal network",
    )
    roi: RoIConfig = Field(
        default_factory=RoIConfig, description="options of Faster and Mask R-CNN: box head"
    )
    mask: MaskConfig = Field(
        default_factory=MaskConfig, description="options of Mask R-CNN: mask head"
    )
    score_threshold: Fraction = Field(
        default=0.05, description="discard detections that do not score above this"
    )
    nms_threshold: Fraction = Field(
        default=0.5,
        description="NMS: IoU above which a lower-scoring detection of the same class is "
        "suppressed",
    )
    detections_per_image: Count = Field(
        default=100, description="maximum number of detections per image"
    )
    channels_last: bool = Field(
        default=True,
        description="use the channels-last memory format: faster, with the same results up to "
        "rounding",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="on a GPU, capture the forward and backward pass of each image size in CUDA "
        "graphs: faster for small batches, with the same results; not with weighting gradnorm",
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
                f"weights: coco exists only for resnet50, not for {self.backbone}; choose "
                "backbone: resnet50, weights: imagenet, or a file"
            )
        return self

    @model_validator(mode="after")
    def _eps_fits_norm(self) -> DetectorConfig:
        if self.norm_eps == 0 and self.norm not in FROZEN_NORMS:
            raise ValueError(
                f"norm_eps: 0 can make norm: {self.norm} divide by zero; leave it out, or choose "
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
